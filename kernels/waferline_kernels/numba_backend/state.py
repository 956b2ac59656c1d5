"""What every worker sees of an executor: flat arrays, and where in them things lie."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..program import Buffer
from ..tiles import BF16, F32, Q4, Q8
from .jit import inlined

FORMATS = (F32, BF16, Q8, Q4)
FORMAT_F32, FORMAT_BF16, FORMAT_Q8, FORMAT_Q4 = (format.code for format in FORMATS)

PRIVATE_ROWS = 4
"""Up to here every worker prepares all rows for itself, in rows of its own: cheaper than a barrier."""

SIZES = np.dtype(
    [
        (name, np.int64)
        for name in (
            "num_workers",
            "spins",  # at a barrier before the core is yielded
            "heads",
            "kv_heads",
            "head_dim",
            "vocab",
            "value_stride",  # floats from one token's value to the next
            "kv_format",  # KvFormat.code
            "kv_tile",  # bytes
            "num_kv_blocks",
            "max_rows",  # of a step
            "max_model_len",
            "codes_stride",  # activation codes from one row to the next
            "group_stride",  # activation groups from one row to the next
        )
    ]
)

TENSOR = np.dtype(
    [
        (name, np.int64)
        for name in (
            "k",
            "format",  # TileFormat.code
            "strip_bytes",
            "table_at",  # a table's first float in `tables`
            "table_stride",  # floats from one row of a table to the next
        )
    ]
)

STEP_AT_HAND = np.dtype(
    [
        (name, np.int64)
        for name in (
            "num_spans",
            "num_instructions",
            "num_rows",
            "num_wanted",
            "resting",  # 1: there is none, and the workers go to sleep
            "stop",  # 1: the workers' threads end when woken
        )
    ]
)


class State(NamedTuple):
    """The arrays of one executor. ``W`` workers; a row of activations is a token of the step.

    The activations have ``max_rows`` shared rows and behind them ``PRIVATE_ROWS`` of each worker.
    """

    control: NDArray[np.int64]  # the barrier's words
    step: NDArray[np.void]  # STEP_AT_HAND [1]
    sizes: NDArray[np.void]  # SIZES [1]
    instructions: NDArray[np.void]  # INSTRUCTION [MAX_INSTRUCTIONS]
    tensors: NDArray[np.void]  # TENSOR [num_tensors]
    shares: NDArray[np.void]  # SHARE [num_tensors, W]; offsets are those of the arena that holds all workers'
    arena: NDArray[np.uint8]  # the workers' strips, worker by worker
    tables: NDArray[np.float32]  # tables, each row padded to whole vectors
    buffers: NDArray[np.float32]  # all program.Buffers
    buffer_at: NDArray[np.int64]  # [num_buffers]: a buffer's first float
    buffer_stride: NDArray[np.int64]  # [num_buffers]: floats from one row to the next
    codes: NDArray[np.int8]  # [max_rows + W * PRIVATE_ROWS, codes_stride]: quantised activations
    scales: NDArray[np.float32]  # [max_rows + W * PRIVATE_ROWS, group_stride]
    sums: NDArray[np.int32]  # [max_rows + W * PRIVATE_ROWS, group_stride, SUBGROUPS]: of each subgroup's codes
    kv: NDArray[np.uint8]  # [layers, num_kv_blocks, kv_heads, kv_tile]
    spans: NDArray[np.void]  # SPAN [max_num_seqs]
    rows: NDArray[np.int32]  # [max_rows, 3]: slot, position and token of each row
    wanted: NDArray[np.int32]  # [max_num_logits]: rows whose logits are wanted
    entries: NDArray[np.void]  # ENTRY [max_num_logits]
    tokens: NDArray[np.int32]  # [max_num_seqs * max_model_len]
    num_tokens: NDArray[np.int32]  # [max_num_seqs]
    block_tables: NDArray[np.int32]  # [max_num_seqs, max_blocks_per_seq]
    sampling: NDArray[np.void]  # SAMPLING [max_num_seqs]
    constraints: NDArray[np.void]  # CONSTRAINTS [max_num_seqs]
    allowed_ids: NDArray[np.uint32]  # [max_num_seqs, mask_words(vocab)]
    contexts: NDArray[np.float32]  # [W, CHUNK + value_stride]: scratch of `attend`
    floats: NDArray[
        np.float32
    ]  # [W, 3, padded vocab]: scratch of `sample`, as are the rest; logits raw and not, weights
    counts: NDArray[np.int32]  # [W, vocab]: zero between uses
    bucket_counts: NDArray[np.int32]  # [W, NUM_BUCKETS]
    masses: NDArray[np.float64]  # [W, NUM_BUCKETS]
    ids: NDArray[np.int32]  # [W, 2, vocab]


class Source(NamedTuple):
    """Where a matmul finds its rows."""

    first: int  # the first row of the quantised activations
    floats: int  # the first float in `buffers`
    stride: int  # floats from one row to the next


@inlined
def source_of(state: State, buffer: int, worker: int, rows: int) -> Source:
    """``rows`` rows of ``buffer``: those of ACT are the worker's own where they are few."""
    first = 0
    if buffer == Buffer.ACT and rows <= PRIVATE_ROWS:
        first = state.sizes[0]["max_rows"] + worker * PRIVATE_ROWS
    stride = state.buffer_stride[buffer]
    return Source(first, state.buffer_at[buffer] + first * stride, stride)


@inlined
def share_of(count: int, worker: int, num_workers: int) -> tuple[int, int]:
    """The worker's even part ``begin .. end - 1`` of ``count`` things."""
    return count * worker // num_workers, count * (worker + 1) // num_workers
