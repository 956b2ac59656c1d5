"""From checkpoint tensors to a program's tensors: joined, converted and packed when they are asked for."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from waferline_kernels.program import Program, TensorSpec
from waferline_kernels.tiles import TILE_N, interleave_strips, pack_matrix

from .checkpoint import Checkpoint
from .errors import ModelError
from .rope import rotary_table
from .spec import ModelConfig
from .tensor_file import LazyWeights, to_float32

STRIPS_AT_ONCE = 64  # bounds the temporaries of packing to a few megabytes, whatever the matrix


def checkpoint_weights(checkpoint: Checkpoint, config: ModelConfig, program: Program) -> LazyWeights:
    """The weights of ``program`` by tensor name: strips for a matrix, float32 [n, k] for a table.

    Names, shapes and dtypes of the whole checkpoint are checked at once; values when a tensor is asked for. Raises
    ModelError for either.
    """
    parts = {spec.name: config.checkpoint_parts(spec) for spec in program.tensors if spec.name != "rope"}
    checkpoint.check({name: shape for shapes in parts.values() for name, shape in shapes.items()}, config.tied)
    return LazyWeights(
        {
            spec.name: partial(_pack, checkpoint, spec, tuple(parts[spec.name]))
            if spec.name in parts
            else partial(rope_table, config, spec)
            for spec in program.tensors
        }
    )


def rope_table(config: ModelConfig, spec: TensorSpec) -> NDArray[np.float32]:
    return rotary_table(spec.k, config.rope_theta, config.rope_scaling, max_model_len=spec.n)


def _pack(checkpoint: Checkpoint, spec: TensorSpec, names: tuple[str, ...]) -> NDArray[Any]:
    views = [checkpoint.view(name) for name in names]
    try:
        if spec.is_table:
            return _finite(np.concatenate([to_float32(view) for view in views])[None])
        if spec.interleaved:
            return interleave_strips(*(_pack_strips(view, spec) for view in views))
        if len(views) == 1:
            return _pack_strips(views[0], spec)
        return _pack_strips(np.concatenate([to_float32(view) for view in views]), spec)
    except ValueError as error:
        raise ModelError(f"{checkpoint.folder}: {' + '.join(names)}: {error}") from None


def _pack_strips(stored: NDArray[Any], spec: TensorSpec) -> NDArray[np.uint8]:
    """Strips of one matrix [n, k]: uint8 [num_strips, strip_bytes], converted and packed a few strips at a time."""
    rows = STRIPS_AT_ONCE * TILE_N
    strips = [pack_matrix(to_float32(stored[at : at + rows]), spec.format) for at in range(0, len(stored), rows)]
    return np.concatenate(strips)


def _finite(table: NDArray[np.float32]) -> NDArray[np.float32]:
    if not np.isfinite(table).all():
        raise ValueError("weight: holds NaN or infinity, expected finite numbers")
    return table
