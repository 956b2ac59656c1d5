"""Laying out an executor's memory: one flat array of each kind, with the places of what lies in it."""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import NDArray

from ..aligned import HUGE_PAGE, aligned_zeros
from ..kv_cache import kv_format
from ..placement import Placement
from ..program import INSTRUCTION, Buffer, Program
from ..ring import ENTRY
from ..sequences import SPAN, ExecutorLimits, SequenceTable
from ..tiles import ALIGNMENT, GROUP, LINE_BYTES, SUBGROUPS, TILE_N, round_up
from .attention import CHUNK
from .barrier import CONTROL_WORDS, SPINS
from .order import NUM_BUCKETS
from .state import PRIVATE_ROWS, SIZES, STEP_AT_HAND, TENSOR, State

MAX_INSTRUCTIONS = 4096


def allocate(program: Program, placement: Placement, limits: ExecutorLimits, table: SequenceTable) -> State:
    """The state of an executor of ``program``, its weights not yet loaded. What is large is not touched yet."""
    dims, workers, rows = program.dims, placement.num_workers, limits.max_num_batched_tokens
    act_rows = rows + workers * PRIVATE_ROWS
    format, value_stride = kv_format(limits.kv_dtype), round_up(dims.head_dim, TILE_N)
    shares, arena = _arena(placement)
    tensors, table_floats = _tensors(program)
    buffer_stride = np.array([dims.buffer_stride(buffer) for buffer in Buffer], np.int64)
    buffer_rows = [{Buffer.ACT: act_rows, Buffer.LOGITS: limits.max_num_logits}.get(buffer, rows) for buffer in Buffer]
    buffer_ends = np.cumsum(buffer_stride * buffer_rows)
    codes_stride = round_up(int(buffer_stride[Buffer.ACT]), ALIGNMENT)
    group_stride = -(-codes_stride // GROUP)
    logits_stride = int(buffer_stride[Buffer.LOGITS])
    sizes = {
        "num_workers": workers,
        "spins": SPINS if workers <= _available_cpus() else 0,
        "heads": dims.heads,
        "kv_heads": dims.kv_heads,
        "head_dim": dims.head_dim,
        "vocab": dims.vocab,
        "value_stride": value_stride,
        "kv_format": format.code,
        "kv_tile": format.tile_bytes(dims.head_dim),
        "num_kv_blocks": limits.num_kv_blocks,
        "max_rows": rows,
        "max_model_len": limits.max_model_len,
        "codes_stride": codes_stride,
        "group_stride": group_stride,
    }
    return State(
        control=aligned_zeros(CONTROL_WORDS, np.int64),
        step=aligned_zeros(1, STEP_AT_HAND),
        sizes=np.array([tuple(sizes[name] for name in SIZES.names or ())], SIZES),
        instructions=aligned_zeros(MAX_INSTRUCTIONS, INSTRUCTION),
        tensors=tensors,
        shares=shares,
        arena=arena,
        tables=aligned_zeros(table_floats, np.float32),
        buffers=aligned_zeros(int(buffer_ends[-1]), np.float32),
        buffer_at=buffer_ends - buffer_stride * buffer_rows,
        buffer_stride=buffer_stride,
        codes=aligned_zeros(act_rows * codes_stride, np.int8),
        scales=aligned_zeros(act_rows * group_stride, np.float32),
        sums=aligned_zeros(act_rows * group_stride * SUBGROUPS, np.int32),
        kv=aligned_zeros(limits.num_kv_blocks * dims.kv_block_bytes(format), np.uint8),
        spans=aligned_zeros(limits.max_num_seqs, SPAN),
        rows=aligned_zeros((rows, 3), np.int32),
        wanted=aligned_zeros(limits.max_num_logits, np.int32),
        entries=aligned_zeros(limits.max_num_logits, ENTRY),
        tokens=table.tokens.reshape(-1),
        num_tokens=table.num_tokens,
        block_tables=table.block_tables,
        sampling=table.sampling,
        constraints=table.constraints,
        allowed_ids=table.allowed_ids,
        contexts=aligned_zeros((workers, CHUNK + value_stride), np.float32),
        floats=aligned_zeros((workers, 3, logits_stride), np.float32),
        counts=aligned_zeros((workers, dims.vocab), np.int32),
        bucket_counts=aligned_zeros((workers, NUM_BUCKETS), np.int32),
        masses=aligned_zeros((workers, NUM_BUCKETS), np.float64),
        ids=aligned_zeros((workers, 2, dims.vocab), np.int32),
    )


def logits_of(state: State) -> NDArray[np.float32]:
    """The logits buffer, float32 [max_num_logits, stride], a view."""
    return state.buffers[state.buffer_at[Buffer.LOGITS] :].reshape(-1, state.buffer_stride[Buffer.LOGITS])


def load_table(state: State, index: int, array: NDArray[np.float32]) -> None:
    """Copy a table (float32 [n, k]) to its place."""
    at, stride = int(state.tensors[index]["table_at"]), int(state.tensors[index]["table_stride"])
    state.tables[at : at + len(array) * stride].reshape(-1, stride)[:, : array.shape[1]] = array


def load_strips(state: State, index: int, worker: int, strips: NDArray[np.uint8]) -> None:
    """Copy the worker's share of a matrix (uint8 [num_strips, strip_bytes]) to its arena."""
    first, count, offset = state.shares[index, worker].tolist()
    part = strips[first : first + count]
    state.arena[offset : offset + part.size].reshape(part.shape)[...] = part


def _available_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _arena(placement: Placement) -> tuple[NDArray[np.void], NDArray[np.uint8]]:
    """One array for all arenas, each on pages of its own, and the shares with their offsets in it."""
    sizes = np.array([round_up(size + LINE_BYTES, HUGE_PAGE) for size in placement.arena_bytes])  # see strips.py
    ends = np.cumsum(sizes)
    shares = placement.shares.copy()
    shares["offset"] += ends - sizes
    return shares, aligned_zeros(int(ends[-1]), np.uint8, HUGE_PAGE)


def _tensors(program: Program) -> tuple[NDArray[np.void], int]:
    """TENSOR [num_tensors], and the floats that the tables take together."""
    tensors, floats = aligned_zeros(len(program.tensors), TENSOR), 0
    for row, tensor in zip(tensors, program.tensors, strict=True):
        row["k"], row["strip_bytes"] = tensor.k, tensor.strip_bytes
        row["format"] = tensor.format.code
        if tensor.is_table:
            row["table_at"], row["table_stride"] = floats, round_up(tensor.k, TILE_N)
            floats += tensor.n * round_up(tensor.k, TILE_N)
    return tensors, floats
