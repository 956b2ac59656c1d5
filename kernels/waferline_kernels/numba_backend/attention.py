"""Rotary embedding, and attention over the KV cache."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..sequences import KV_BLOCK_SIZE
from ..tiles import TILE_N
from .jit import inlined, kernel
from .kv import INT8_CODE, kv_tile, load_keys, load_values, scales_of, store_kv, values_of
from .rows import exponential
from .state import State, share_of
from .vectors import (
    Vector,
    first_lane,
    first_lanes,
    load,
    load_splat,
    load_weights,
    max_lanes,
    splat,
    store,
    sum_lanes,
    where_less,
)

CHUNK = 4 * KV_BLOCK_SIZE  # tokens between two merges of the softmax
WEIGHTS, CONTEXT = 0, CHUNK  # in a worker's scratch: the weights of one chunk, then the context of one head


@kernel
def rotate(x: NDArray[np.float32], at: int, table: NDArray[np.float32], cos_at: int, head_dim: int) -> None:
    """Rotate ``x[at : at + head_dim]`` in place, halves convention; the table's row has the cosines, then the sines."""
    half = head_dim // 2
    for d in range(half):
        cos, sin = table[cos_at + d], table[cos_at + half + d]
        first, second = x[at + d], x[at + half + d]
        x[at + d] = first * cos - second * sin
        x[at + half + d] = second * cos + first * sin


@kernel
def rotate_and_store(state: State, instruction: Any, worker: int) -> None:
    """ROTARY: the worker's part of all (row, head) pairs, a row's heads being its queries and then its keys."""
    sizes, layer, rope = state.sizes[0], instruction["layer"], state.tensors[instruction["weight"]]
    src, stride = state.buffer_at[instruction["src"]], state.buffer_stride[instruction["src"]]
    head_dim, x = sizes["head_dim"], state.buffers
    heads = sizes["heads"] + sizes["kv_heads"]
    begin, end = share_of(state.step[0]["num_rows"] * heads, worker, sizes["num_workers"])
    for pair in range(begin, end):
        row, head = pair // heads, pair % heads
        slot, position = state.rows[row, 0], int(state.rows[row, 1])
        at = src + row * stride + head * head_dim
        rotate(x, at, state.tables, rope["table_at"] + position * rope["table_stride"], head_dim)
        kv_head = head - sizes["heads"]
        if kv_head < 0:
            continue
        tile = kv_tile(state, layer, slot, position, kv_head)
        store_kv(state, tile, position % KV_BLOCK_SIZE, x, at, at + sizes["kv_heads"] * head_dim)


@kernel
def attend(state: State, instruction: Any, worker: int) -> None:
    """ATTEND: the worker's part of all (row, head) pairs, KV heads outermost, so that long contexts spread evenly, and the
    heads that share one together, while its keys and values are in the core's cache."""
    sizes, rows = state.sizes[0], state.step[0]["num_rows"]
    src, src_stride = state.buffer_at[instruction["src"]], state.buffer_stride[instruction["src"]]
    dst, dst_stride = state.buffer_at[instruction["dst"]], state.buffer_stride[instruction["dst"]]
    head_dim, sharing = sizes["head_dim"], sizes["heads"] // sizes["kv_heads"]
    begin, end = share_of(sizes["heads"] * rows, worker, sizes["num_workers"])
    for pair in range(begin, end):
        row, head = pair // sharing % rows, pair // (sharing * rows) * sharing + pair % sharing
        query = src + row * src_stride + head * head_dim
        context = dst + row * dst_stride + head * head_dim
        attend_row(state, instruction["layer"], head, row, query, context, state.contexts[worker])


@inlined
def attend_row(
    state: State, layer: int, head: int, row: int, query: int, dst: int, scratch: NDArray[np.float32]
) -> None:
    """One query head of one row over its KV blocks, four at a time in ascending order, the softmax merged chunk by chunk
    (Milakov and Gimelshein 2018). Chunks are counted from the sequence's start, so the order depends on nothing but the
    position."""
    sizes = state.sizes[0]
    head_dim, value_stride = sizes["head_dim"], sizes["value_stride"]
    slot, position = state.rows[row, 0], state.rows[row, 1]
    kv_head = head * sizes["kv_heads"] // sizes["heads"]
    scale = splat(1 / np.sqrt(np.float64(head_dim)))
    scratch[CONTEXT:] = 0
    denominator, largest = splat(0.0), np.float32(-np.inf)
    for begin in range(0, position + 1, CHUNK):
        tokens = min(position + 1 - begin, CHUNK)
        score_tokens(state, layer, slot, kv_head, begin, tokens, query, scratch)
        most = splat(-np.inf)
        for at in range(0, tokens, KV_BLOCK_SIZE):
            # The tokens after this row's are not yet written, or another sequence's.
            scores = load(scratch, WEIGHTS + at) * scale
            if sizes["kv_format"] == INT8_CODE:
                tile = kv_tile(state, layer, slot, begin + at, kv_head)
                scores = scores * load_weights(state.kv, scales_of(state, tile))
            scores = first_lanes(scores, tokens - at)
            store(scratch, WEIGHTS + at, scores)
            most = where_less(most, scores, scores, most)
        before, largest = largest, max(largest, max_lanes(most))
        decay = splat(first_lane(exponential(splat(before - largest))))
        denominator = denominator * decay
        for at in range(0, tokens, KV_BLOCK_SIZE):
            weights = exponential(load(scratch, WEIGHTS + at) - splat(largest))
            denominator = denominator + weights
            if sizes["kv_format"] == INT8_CODE:
                tile = kv_tile(state, layer, slot, begin + at, kv_head)
                weights = weights * load_weights(state.kv, scales_of(state, tile) + KV_BLOCK_SIZE * 4)
            store(scratch, WEIGHTS + at, weights)
        for d in range(0, value_stride - 3 * TILE_N, 4 * TILE_N):
            add_four_values(state, layer, slot, kv_head, begin, tokens, d, decay, scratch)
        for d in range(value_stride // (4 * TILE_N) * 4 * TILE_N, value_stride, TILE_N):
            add_values(state, layer, slot, kv_head, begin, tokens, d, decay, scratch)
    inverse = np.float32(1) / sum_lanes(denominator)
    for d in range(head_dim):
        state.buffers[dst + d] = scratch[CONTEXT + d] * inverse


@inlined
def score_tokens(
    state: State, layer: int, slot: int, kv_head: int, begin: int, tokens: int, query: int, scratch: NDArray[np.float32]
) -> None:
    """``WEIGHTS`` of the scratch = query . keys of the blocks of ``tokens`` tokens from ``begin``: whole blocks."""
    buffers, kv = state.buffers, state.kv
    head_dim, format = state.sizes[0]["head_dim"], state.sizes[0]["kv_format"]
    at = 0
    if tokens > CHUNK - KV_BLOCK_SIZE:  # four chains side by side
        keys0, keys1 = kv_tile(state, layer, slot, begin, kv_head), kv_tile(state, layer, slot, begin + 16, kv_head)
        keys2, keys3 = (
            kv_tile(state, layer, slot, begin + 32, kv_head),
            kv_tile(state, layer, slot, begin + 48, kv_head),
        )
        s0, s1, s2, s3 = splat(0.0), splat(0.0), splat(0.0), splat(0.0)
        for d in range(head_dim):
            q = load_splat(buffers, query + d)
            s0 = s0 + load_keys(kv, format, keys0, d) * q
            s1 = s1 + load_keys(kv, format, keys1, d) * q
            s2 = s2 + load_keys(kv, format, keys2, d) * q
            s3 = s3 + load_keys(kv, format, keys3, d) * q
        store(scratch, WEIGHTS, s0)
        store(scratch, WEIGHTS + 16, s1)
        store(scratch, WEIGHTS + 32, s2)
        store(scratch, WEIGHTS + 48, s3)
        at = CHUNK
    while at < tokens:
        keys, total = kv_tile(state, layer, slot, begin + at, kv_head), splat(0.0)
        for d in range(head_dim):
            total = total + load_keys(kv, format, keys, d) * load_splat(buffers, query + d)
        store(scratch, WEIGHTS + at, total)
        at += KV_BLOCK_SIZE


@inlined
def add_four_values(
    state: State,
    layer: int,
    slot: int,
    kv_head: int,
    begin: int,
    tokens: int,
    d: int,
    decay: Vector,
    scratch: NDArray[np.float32],
) -> None:
    """``CONTEXT + d`` = context * decay + weights . values, tokens ascending, for four vectors of the context."""
    kv, at, stride, format = state.kv, CONTEXT + d, state.sizes[0]["value_stride"], state.sizes[0]["kv_format"]
    v0, v1 = load(scratch, at) * decay, load(scratch, at + 16) * decay
    v2, v3 = load(scratch, at + 32) * decay, load(scratch, at + 48) * decay
    for block in range(0, tokens, KV_BLOCK_SIZE):
        values = values_of(state, kv_tile(state, layer, slot, begin + block, kv_head))
        for token in range(min(KV_BLOCK_SIZE, tokens - block)):
            weight = load_splat(scratch, WEIGHTS + block + token)
            v0 = v0 + load_values(kv, format, values, stride, token, d) * weight
            v1 = v1 + load_values(kv, format, values, stride, token, d + 16) * weight
            v2 = v2 + load_values(kv, format, values, stride, token, d + 32) * weight
            v3 = v3 + load_values(kv, format, values, stride, token, d + 48) * weight
    store(scratch, at, v0)
    store(scratch, at + 16, v1)
    store(scratch, at + 32, v2)
    store(scratch, at + 48, v3)


@inlined
def add_values(
    state: State,
    layer: int,
    slot: int,
    kv_head: int,
    begin: int,
    tokens: int,
    d: int,
    decay: Vector,
    scratch: NDArray[np.float32],
) -> None:
    """The same for one vector."""
    kv, stride, format = state.kv, state.sizes[0]["value_stride"], state.sizes[0]["kv_format"]
    total = load(scratch, CONTEXT + d) * decay
    for block in range(0, tokens, KV_BLOCK_SIZE):
        values = values_of(state, kv_tile(state, layer, slot, begin + block, kv_head))
        for token in range(min(KV_BLOCK_SIZE, tokens - block)):
            weight = load_splat(scratch, WEIGHTS + block + token)
            total = total + load_values(kv, format, values, stride, token, d) * weight
    store(scratch, CONTEXT + d, total)
