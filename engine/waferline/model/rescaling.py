"""Rescaling channels when a model is packed, so that quantisation loses less: norm gains folded, pairs equalised.

A quantised weight shares its scale with others along K, and so does an activation: next to a channel of large magnitude
the others keep few bits. Between two operations, though, a channel's magnitude is free:

- A norm's gain moves into the columns of the matrix that reads the norm, which keeps a gain of ones. Not the final norm's
  where the output matrix is also the embedding, whose rows are gathered without that gain.
- Rows that make a channel are divided by a factor, and the columns that read it multiplied by it. Up and down are such a
  pair, for silu(gate) * up is linear in up; so are v and o, for attention takes weighted means of v, and there the query
  heads that share a KV head share its channels' factors. The factor is the power of two nearest to
  ``sqrt(largest weight of the rows / largest weight of the columns)``, after which both have like magnitudes whatever
  they had before. Powers of two change no other bit, and a largest value is the same in whatever order it is sought.

A worked example: rows of up whose largest weight is 32 (an outlier) and columns of down whose largest is 0.5 get
``sqrt(64) = 8``, which leaves 4 and 4.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from waferline_kernels.program import Program
from waferline_kernels.tiles import TILE_N

from .checkpoint import Checkpoint
from .spec import ModelConfig, Pair
from .tensor_file import to_float32

Factors = NDArray[np.float32]
VALUES_AT_ONCE = 1 << 17  # float32 temporaries of 512 KiB stay in a core's cache


def rows_at_once(columns: int) -> int:
    """Rows of a matrix that are converted together: whole strips."""
    return max(TILE_N, VALUES_AT_ONCE // columns // TILE_N * TILE_N)


class Rescaling:
    """The factors for each of the program's tensors, from the weights alone, found when they are asked for.

    They are for matrices in quantised formats; the others stay as they are. Any thread may ask.
    """

    def __init__(self, checkpoint: Checkpoint, config: ModelConfig, program: Program) -> None:
        self._checkpoint = checkpoint
        self._config = config
        self._specs = {spec.name: spec for spec in program.tensors}
        self._found: dict[tuple[str, Pair], Factors] = {}
        self._lock = threading.Lock()

    def is_folded(self, name: str) -> bool:
        """Whether ``name`` is a norm's table whose gain is folded into the matrix that reads it."""
        at, role = _split(name)
        readers = [matrix for matrix, norm in self._config.architecture.norms.items() if norm == role]
        return any(self._gain(at + matrix) is not None for matrix in readers)

    def columns(self, name: str) -> Factors | None:
        """What the columns of the matrix ``name`` are multiplied by, float32 [k]; None: nothing."""
        at, role = _split(name)
        for pair in self._pairs():
            if pair.read_by == role and self._specs[name].format.is_quantized:
                factors = self._factors(at, pair)
                return factors[_channels(self._specs[name].k, len(factors), self._config.head_dim)]
        return self._gain(name)

    def rows(self, name: str, part: int) -> Factors | None:
        """What the rows of source ``part`` of a matrix or its bias are multiplied by, float32 [rows]; None: nothing."""
        at, role = _split(name.removesuffix("_bias"))
        for pair in self._pairs():
            if (pair.made_by, pair.part) == (role, part) and self._specs[at + pair.read_by].format.is_quantized:
                return np.float32(1) / self._factors(at, pair)
        return None

    def _pairs(self) -> tuple[Pair, ...]:
        return self._config.architecture.pairs

    def _gain(self, matrix: str) -> Factors | None:
        """The gain that is folded into the columns of ``matrix``."""
        at, role = _split(matrix)
        norm = self._config.architecture.norms.get(role)
        is_embedding = role == "logits" and self._config.tied
        if norm is None or is_embedding or not self._specs[matrix].format.is_quantized:
            return None
        return to_float32(self._source(at + norm))

    def _source(self, name: str, part: int = 0) -> NDArray[Any]:
        return self._checkpoint.view(list(self._config.checkpoint_parts(self._specs[name]))[part])

    def _factors(self, at: str, pair: Pair) -> Factors:
        """The factor of each channel of ``pair``: float32 [channels]."""
        with self._lock:
            if (at, pair) not in self._found:
                made_by, read_by = at + pair.made_by, at + pair.read_by
                made = _largest(self._source(made_by, pair.part), self._gain(made_by))[0]
                read = _largest(self._source(read_by), None)[1]
                of_channels = np.zeros_like(made)
                np.maximum.at(of_channels, _channels(len(read), len(made), self._config.head_dim), read)
                self._found[at, pair] = balance(made, of_channels)
            return self._found[at, pair]


def balance(made: Factors, read: Factors) -> Factors:
    """The power of two nearest to sqrt(made / read); 1 for a channel that either side leaves unused.

    >>> balance(np.float32([32, 1, 0]), np.float32([0.5, 1, 1]))
    array([8., 1., 1.], dtype=float32)
    """
    is_used = (made > 0) & (read > 0) & np.isfinite(made) & np.isfinite(read)
    ratio = np.where(is_used, made.astype(np.float64) / np.where(is_used, read, 1), 1)
    return np.ldexp(np.float32(1), np.frexp(ratio)[1] // 2)


def _channels(columns: int, channels: int, head_dim: int) -> NDArray[np.int64]:
    """The channel that each column reads: [columns]. Query heads that share a KV head read the channels of that one."""
    column, shared_by = np.arange(columns), columns // channels
    return column // (head_dim * shared_by) * head_dim + column % head_dim if shared_by > 1 else column


def _largest(stored: NDArray[Any], gain: Factors | None) -> tuple[Factors, Factors]:
    """The largest magnitude of each row and of each column of a matrix [n, k], times ``gain`` [k]."""
    n, k = stored.shape
    rows, columns = np.empty(n, np.float32), np.zeros(k, np.float32)
    for at in range(0, n, rows_at_once(k)):
        block = np.abs(rescaled(to_float32(stored[at : at + rows_at_once(k)]), None, gain))
        rows[at : at + len(block)] = block.max(axis=1)
        np.maximum(columns, block.max(axis=0), out=columns)
    return rows, columns


def rescaled(block: NDArray[np.float32], rows: Factors | None, columns: Factors | None) -> NDArray[np.float32]:
    """``block`` [n, k], itself multiplied by ``rows`` [n] and ``columns`` [k]. What overflows becomes infinite."""
    with np.errstate(over="ignore", invalid="ignore"):
        if rows is not None:
            block *= rows[:, None]
        if columns is not None:
            block *= columns
    return block


def _split(name: str) -> tuple[str, str]:
    """The layer's prefix and the role of a program's tensor: ("layers.3.", "qkv"), or ("", "logits")."""
    at, dot, role = name.rpartition(".")
    return at + dot, role
