"""Rotary position embedding: its parameters in a config, and the table of cosines and sines that the kernels read.

Computed as `transformers` does (`modeling_rope_utils.py`: `compute_default_rope_parameters`,
`_compute_linear_scaling_rope_parameters`, `_compute_llama3_parameters`): inverse frequencies and angles in float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from .fields import Fields
from .parallel import run_jobs

DEFAULT_THETA = 10000.0
POSITIONS_AT_ONCE = 4096  # whose table a thread makes at a time
TYPES = ("default", "linear", "llama3")


@dataclass(frozen=True)
class RopeScaling:
    """How a model stretches its frequencies to a longer context. The last three fields belong to ``llama3`` alone."""

    type: str  # "linear" or "llama3"
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 0


def parse_rope(config: Fields) -> tuple[float, RopeScaling | None]:
    """Theta and the scaling of a config: in ``rope_theta`` and ``rope_scaling`` or, since transformers 5, both in
    ``rope_parameters``. Raises ModelError for a type beyond ``TYPES``, a missing parameter, and two that disagree, of
    which versions of transformers take one or the other."""
    names = [name for name in ("rope_parameters", "rope_scaling") if name in config]
    if not names:
        return config.number("rope_theta", DEFAULT_THETA), None
    parsed = [_parse_block(config, config.object(name)) for name in names]
    if parsed[0] != parsed[-1]:
        config.fail("rope_scaling", f"what rope_parameters says: {config.raw('rope_parameters')}")
    return parsed[0]


def _parse_block(config: Fields, block: Fields) -> tuple[float, RopeScaling | None]:
    theta = (block if "rope_theta" in block else config).number("rope_theta", DEFAULT_THETA)
    type_field = "rope_type" if "rope_type" in block else "type"
    type_name = block.string(type_field, "default")
    if type_name not in TYPES:
        block.fail(type_field, f"one of {', '.join(TYPES)}")
    if "partial_rotary_factor" in block and block.number("partial_rotary_factor") != 1:
        block.fail("partial_rotary_factor", "1")
    if type_name == "default":
        return theta, None
    factor = block.number("factor")
    if type_name == "linear":
        return theta, RopeScaling(type_name, factor)
    original = block.integer("original_max_position_embeddings", config.integer("max_position_embeddings"))
    low, high = block.number("low_freq_factor"), block.number("high_freq_factor")
    if high <= low:
        block.fail("high_freq_factor", f"a number above low_freq_factor ({low:g})")
    return theta, RopeScaling(type_name, factor, low, high, original)


def inverse_frequencies(head_dim: int, theta: float, scaling: RopeScaling | None) -> NDArray[np.float32]:
    """Radians a position turns each pair of a head by, float32 [head_dim / 2]."""
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    # The power is rounded once, from float64: to the bit what torch computes.
    inverse: NDArray[np.float32] = np.float32(1) / np.power(np.float64(theta), exponents).astype(np.float32)
    if scaling is None:
        return inverse
    slowed: NDArray[np.float32] = inverse / np.float32(scaling.factor)
    if scaling.type == "linear":
        return slowed
    # llama3: long waves are slowed by the factor, short ones kept, those between are mixed.
    wavelength = np.float32(2 * math.pi) / inverse
    span = scaling.high_freq_factor - scaling.low_freq_factor
    turns = np.float32(scaling.original_max_position_embeddings) / wavelength
    smooth = np.clip((turns - np.float32(scaling.low_freq_factor)) / np.float32(span), 0, 1)
    mixed: NDArray[np.float32] = (np.float32(1) - smooth) * slowed + smooth * inverse
    return mixed


def rotary_table(head_dim: int, theta: float, scaling: RopeScaling | None, max_model_len: int) -> NDArray[np.float32]:
    """float32 [max_model_len, head_dim]: of each position the cosines (first half of the columns) and the sines.

    ``rotary_table(4, 100.0, None, 2)[1]`` is ``[cos 1, cos 0.1, sin 1, sin 0.1]``.
    """
    inverse = inverse_frequencies(head_dim, theta, scaling)
    table = np.empty((max_model_len, head_dim), np.float32)

    def fill(first: int) -> None:
        rows = table[first : first + POSITIONS_AT_ONCE]
        positions = np.arange(first, first + len(rows), dtype=np.float32)
        angles = (positions[:, None] * inverse).astype(np.float64)
        rows[:, : head_dim // 2], rows[:, head_dim // 2 :] = np.cos(angles), np.sin(angles)

    run_jobs(partial(fill, first) for first in range(0, max_model_len, POSITIONS_AT_ONCE))
    return table
