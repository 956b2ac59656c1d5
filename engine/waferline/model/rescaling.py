"""Rescaling channels when a model is quantised, so that it loses less.

A quantised weight shares its scale with others along K: beside a column of large magnitude the others keep few bits. But
how large a channel is where a matrix reads it is free, as long as whatever makes the channel makes up for it. So columns
are made alike: those that read a channel are divided by their root mean square, and the channel is multiplied by it

- in the gain of the norm before the matrix;
- in the rows of up for down's columns, for silu(gate) * up is linear in up;
- in the rows of v (and its bias) for o's, for attention takes weighted means of v. Query heads that share a KV head share
  its channels, and so the factors.

A channel then is as large as its part in the result, whatever a checkpoint had: outliers in a norm's gain, between up and
down or between v and o disappear. Those of the residual stream stay. The final norm is left alone where the output matrix
is also the embedding, whose rows are gathered without a norm.

But what a channel's size is taken from, the activations, is quantised too, and an outlier of the residual stream that
large columns read would become a larger one. So after a norm a channel's part, its gain times its columns' root mean
square, is divided between the two: with eight bits each gets its square root, with four bits the columns, which need it
more, stay with its fourth root (what SmoothQuant, arXiv:2211.10438, does with measured activations and calls the migration
strength). Mean KL divergence from f32 in 1e-3 nats, 20 stories of stories260K:

    weights    outliers           as they are   columns alike   part divided
    q8         none                      1.45            1.50           1.42
    q8         of the residual           1.49            9.53           1.94
    q8         between v and o           6.56            1.50           1.42
    q4         none                      64.0            58.1           56.2
    q4         of the residual           78.6            84.8           68.7
    q4         between v and o           88.9            58.1           56.2

The mean is taken over ``SAMPLED_ROWS`` rows at most, evenly spread, after their own rescaling.

A worked example: a column of down whose root mean square is 0.25 is multiplied by 4, and the row of up that makes its
channel by 0.25.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from waferline_kernels.program import Program
from waferline_kernels.tiles import Q4, Q8

from .checkpoint import Checkpoint
from .spec import ModelConfig, Pair
from .tensor_file import to_float32

Factors = NDArray[np.float32]
ROOTS_LEFT = {Q8.name: 1, Q4.name: 2}  # with columns after a norm: so often the square root of a channel's part
SAMPLED_ROWS = 1024
LEAST = np.float32(1e-30)  # a column below it is as good as zeros, and stays as it is


class Rescaling:
    """The factors for each of the program's tensors, from the weights alone, found when they are asked for.

    They are for matrices in quantised formats and what makes their channels; the rest stays as it is. Any thread may ask.
    """

    def __init__(self, checkpoint: Checkpoint, config: ModelConfig, program: Program) -> None:
        self._checkpoint = checkpoint
        self._config = config
        self._specs = {spec.name: spec for spec in program.tensors}
        roles = {_split(name)[1] for name in self._specs}
        self._pairs = [pair for pair in config.architecture.pairs if roles.issuperset(pair.read_by)]
        self._sizes: dict[str, Factors] = {}  # by the tensor that reads the channels, the first if several do
        self._lock = threading.RLock()

    def columns(self, name: str) -> Factors | None:
        """What the columns of the matrix ``name`` are multiplied by, float32 [k]; None: nothing."""
        at, role = _split(name)
        pair = next((pair for pair in self._pairs if role in pair.read_by), None)
        if pair is None or not self._is_free(name):
            return None
        return (np.float32(1) / self._channel_sizes(at, pair))[self._channels(at, pair)]

    def rows(self, name: str, part: int) -> Factors | None:
        """What the rows of source ``part`` of a matrix, of its bias or of a norm are multiplied by, float32 [rows]; None:
        nothing."""
        at, role = _split(name.removesuffix("_bias"))
        for pair in self._pairs:
            if (pair.made_by, pair.part) == (role, part) and self._is_free(at + pair.read_by[0]):
                return self._channel_sizes(at, pair)
        return None

    def _is_free(self, reader: str) -> bool:
        is_embedding = reader == "logits" and self._config.tied
        return self._specs[reader].format.is_quantized and not is_embedding

    def _channels(self, at: str, pair: Pair) -> NDArray[np.int64]:
        """The channel that each column of ``pair.read_by`` reads: [k]. Only a KV head's have several readers each."""
        columns, head_dim = self._specs[at + pair.read_by[0]].k, self._config.head_dim
        column = np.arange(columns)
        if pair.read_by != ("o",):
            return column
        shared_by = self._config.heads // self._config.kv_heads
        return column // (head_dim * shared_by) * head_dim + column % head_dim

    def _channel_sizes(self, at: str, pair: Pair) -> Factors:
        """What each channel is multiplied by, and the columns that read it divided by: float32 [channels]."""
        with self._lock:
            if at + pair.read_by[0] not in self._sizes:
                parts = [
                    (self._checkpoint.view(source), self.rows(name, part))
                    for name in (at + role for role in pair.read_by)
                    for part, source in enumerate(self._config.checkpoint_parts(self._specs[name]))
                ]
                sizes = channel_sizes(parts, self._channels(at, pair))
                self._sizes[at + pair.read_by[0]] = sizes / self._left_with_columns(at, pair, sizes)
            return self._sizes[at + pair.read_by[0]]

    def _left_with_columns(self, at: str, pair: Pair, sizes: Factors) -> Factors:
        """How large the columns that read each channel are to be: float32 [channels]."""
        maker, reader = self._specs[at + pair.made_by], self._specs[at + pair.read_by[0]]
        if not maker.is_table:
            return np.ones_like(sizes)
        [source] = self._config.checkpoint_parts(maker)
        part = np.abs(to_float32(self._checkpoint.view(source)).reshape(-1)) * sizes
        for _ in range(ROOTS_LEFT[reader.format.name]):
            part = np.sqrt(part)
        return np.where(np.isfinite(part) & (part > LEAST), part, np.float32(1))


def channel_sizes(parts: list[tuple[NDArray[Any], Factors | None]], channels: NDArray[np.int64]) -> Factors:
    """The root mean square of all columns that read each channel, of matrices as stored [n, k] and their rows' factors.

    1 for a channel that nothing reads. Sums go down the rows, so that their order is the same on every machine.
    """
    every = -(-sum(len(stored) for stored, _ in parts) // SAMPLED_ROWS)
    squares, count = np.zeros(len(channels), np.float32), 0
    with np.errstate(over="ignore", invalid="ignore"):
        for stored, rows in parts:
            sample = rescaled(to_float32(stored[::every]), None if rows is None else rows[::every], None)
            squares += (sample * sample).sum(axis=0)
            count += len(sample)
        sizes = np.sqrt(np.bincount(channels, squares) / np.bincount(channels) / count).astype(np.float32)
    return np.where(np.isfinite(sizes) & (sizes > LEAST), sizes, np.float32(1))


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
