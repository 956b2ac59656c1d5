"""The step: every worker walks the program's instructions, doing its part of each and meeting the others between them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..program import Op
from ..tiles import GROUP, LINE_BYTES, MAX_SUBSCALE, Q4, Q4_ZERO_POINT, Q8, SUBGROUP, TILE_N
from .attention import attend, rotate_and_store
from .barrier import barrier, wait_to_be_woken
from .jit import inlined, kernel
from .matmul import multiply
from .rows import quantize_row, rms_norm
from .sampling import sample
from .state import FORMAT_BF16, FORMAT_F32, FORMAT_Q8, PRIVATE_ROWS, State, share_of, source_of
from .vectors import bfloat16_at, float32_at

NO_SLOT = -1

# What worker 0's call does; the other workers' calls end only with the executor.
PREPARE, RUN, REST = 0, 1, 2


@kernel
def lay_out_rows(state: State) -> int:
    """Lay out the spans' rows. Returns the slot of a token outside the vocabulary, or NO_SLOT."""
    sizes, step = state.sizes[0], state.step[0]
    num_rows, num_wanted = 0, 0
    for s in range(step["num_spans"]):
        span = state.spans[s]
        slot, end = span["slot"], span["start"] + span["count"]
        for position in range(span["start"], end):
            token = state.tokens[slot * sizes["max_model_len"] + position]
            if not 0 <= token < sizes["vocab"]:
                return int(slot)
            state.rows[num_rows, 0], state.rows[num_rows, 1], state.rows[num_rows, 2] = slot, position, token
            if position >= end - span["num_logits"]:
                state.wanted[num_wanted] = num_rows
                num_wanted += 1
            num_rows += 1
    step["num_rows"], step["num_wanted"] = num_rows, num_wanted
    return NO_SLOT


Q8_LINE_K, Q4_LINE_K = Q8.line_k, Q4.line_k
Q8_BLOCK_LINES, Q4_BLOCK_LINES = (f.groups_per_line * GROUP // f.line_k for f in (Q8, Q4))  # led by a line of scales


@inlined
def weight_at(arena: NDArray[np.uint8], strip: int, tensor: Any, column: int, k: int) -> np.float32:
    """The weight of one column and K of the strip at byte ``strip``."""
    format, at = tensor["format"], strip + column * 4
    if format == FORMAT_F32:
        return float32_at(arena, at + k * LINE_BYTES)
    if format == FORMAT_BF16:
        return bfloat16_at(arena, at + k // 2 * LINE_BYTES + k % 2 * 2)
    is_q8 = format == FORMAT_Q8
    block = Q8_BLOCK_LINES if is_q8 else Q4_BLOCK_LINES
    line = k // (Q8_LINE_K if is_q8 else Q4_LINE_K)
    code = arena[at + (line + line // block + 1) * LINE_BYTES + k % 4]
    scale_line = strip + line // block * (block + 1) * LINE_BYTES
    scale = bfloat16_at(arena, scale_line + ((k // GROUP % 2 if is_q8 else 0) * TILE_N + column) * 2)
    if is_q8:
        return np.float32(np.int8(code)) * scale
    subgroup = k % GROUP // SUBGROUP
    nibbles = np.int32(arena[scale_line + (2 + subgroup // 2) * TILE_N + column])
    below = (nibbles >> subgroup % 2 * 4 & 15) - MAX_SUBSCALE
    subscale = below + 1 if below >= 0 else below
    return np.float32(((np.int32(code) >> k % 8 // 4 * 4 & 15) - Q4_ZERO_POINT) * subscale) * scale


@kernel
def embed(state: State, instruction: Any, worker: int) -> None:
    """EMBED: the worker's part of K, for all rows. A row of the embedding is a column of its strip, 4 codes in 64 bytes."""
    weight = instruction["weight"]
    tensor, num_workers, arena = state.tensors[weight], state.sizes[0]["num_workers"], state.arena
    k = tensor["k"]
    begin, end = share_of((k + 3) // 4, worker, num_workers)
    dst, stride = state.buffer_at[instruction["dst"]], state.buffer_stride[instruction["dst"]]
    for row in range(state.step[0]["num_rows"]):
        token = state.rows[row, 2]
        owner = 0
        while token // TILE_N >= state.shares[weight, owner]["first"] + state.shares[weight, owner]["count"]:
            owner += 1
        share = state.shares[weight, owner]
        strip = share["offset"] + (token // TILE_N - share["first"]) * tensor["strip_bytes"]
        for i in range(begin * 4, min(end * 4, k)):
            state.buffers[dst + row * stride + i] = weight_at(arena, strip, tensor, token % TILE_N, i)
        if worker == 0:
            for i in range(k, stride):
                state.buffers[dst + row * stride + i] = 0


@kernel
def prepare(state: State, instruction: Any, worker: int, rows: int) -> None:
    """NORM and QUANTIZE: all rows into the worker's own where they are few, else its part of them."""
    k, num_workers = instruction["k"], state.sizes[0]["num_workers"]
    src, src_stride = state.buffer_at[instruction["src"]], state.buffer_stride[instruction["src"]]
    act = source_of(state, instruction["dst"], worker, rows)
    begin, end = (0, rows) if rows <= PRIVATE_ROWS else share_of(rows, worker, num_workers)
    for row in range(begin, end):
        src_at = src + (state.wanted[row] if instruction["wanted_rows"] else row) * src_stride
        if instruction["op"] == Op.NORM:
            normed = act.floats + row * act.stride
            gains_at = state.tensors[instruction["weight"]]["table_at"]
            rms_norm(state.buffers, src_at, state.tables, gains_at, k, instruction["eps"], state.buffers, normed)
            src_at = normed
        if instruction["group"] > 0:
            codes_at = (act.first + row) * state.sizes[0]["codes_stride"]
            group_at = (act.first + row) * state.sizes[0]["group_stride"]
            quantize_row(state.buffers, src_at, k, state.codes, codes_at, state.scales, state.sums, group_at)


@inlined
def meet(state: State) -> None:
    barrier(state.control, state.sizes[0]["num_workers"], state.sizes[0]["spins"])


@kernel
def run_step(state: State, worker: int) -> None:
    step = state.step[0]
    for n in range(step["num_instructions"]):
        instruction = state.instructions[n]
        op = instruction["op"]
        rows = step["num_wanted"] if instruction["wanted_rows"] else step["num_rows"]
        if op == Op.NORM or op == Op.QUANTIZE:
            prepare(state, instruction, worker, rows)
            if rows <= PRIVATE_ROWS:
                continue
        elif op == Op.MATMUL or op == Op.LOGITS:
            multiply(state, instruction, worker, rows)
        elif op == Op.ROTARY:
            rotate_and_store(state, instruction, worker)
        elif op == Op.ATTEND:
            attend(state, instruction, worker)
        elif op == Op.EMBED:
            embed(state, instruction, worker)
        elif op == Op.SAMPLE:
            sample(state, worker)
        meet(state)


def _sources_digest() -> bytes:
    """Of every file that `run_worker` is made from, this package's and the constants it takes from the one around it."""
    digest = hashlib.sha256()
    for folder in (Path(__file__).parent, Path(__file__).parents[1]):
        for path in sorted(folder.glob("*.py")):
            digest.update(path.read_bytes())
    return digest.digest()


def _compile_run_worker(sources: bytes) -> Callable[..., int]:
    """The one function that numba caches on disk, with all it calls. Numba's own key covers no file but this one; it does
    cover a closure's variables, so ``sources`` is one."""

    def run_worker(worker: int, command: int, wake_descriptor: int, *arrays: Any) -> int:
        """Worker 0: do ``command`` and return; a step that cannot run returns a slot that is at fault, else NO_SLOT.
        Another worker: sleep until woken, run steps until worker 0 rests, and so on until `stop` is set."""
        len(sources)
        state = State(*arrays)
        if worker == 0:
            if command == RUN:
                slot = lay_out_rows(state)
                if slot != NO_SLOT:
                    return slot
                state.step[0]["resting"] = 0
                meet(state)
                run_step(state, worker)  # a literal 0 would compile it once more
            elif command == REST:
                state.step[0]["resting"] = 1
                meet(state)
                meet(state)
            return NO_SLOT
        while True:
            wait_to_be_woken(wake_descriptor)
            if state.step[0]["stop"]:
                return NO_SLOT
            meet(state)
            while not state.step[0]["resting"]:
                run_step(state, worker)
                meet(state)
            meet(state)

    return kernel(run_worker, cache=True)


run_worker = _compile_run_worker(_sources_digest())
