"""The KV cache's tiles, as `kv_cache` lays them out: where they lie, writing a token into one, reading vectors from one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..kv_cache import KV_BF16, KV_F32, KV_INT8
from ..sequences import KV_BLOCK_SIZE
from ..tiles import LINE_BYTES, MIN_ACTIVATION_MAX, Q8_MAX_CODE, TILE_N
from .jit import inlined, kernel
from .rows import NO_FRACTION
from .state import State
from .vectors import (
    Vector,
    bfloat16_of,
    load_codes,
    load_weights,
    signed_byte,
    store_bfloat16,
    store_float32,
)

F32_CODE, BF16_CODE, INT8_CODE = KV_F32.code, KV_BF16.code, KV_INT8.code
ELEMENT_BYTES = (4, 2, 1)  # by format
MAX_CODE = np.float32(Q8_MAX_CODE)


@inlined
def kv_tile(state: State, layer: int, slot: int, position: int, kv_head: int) -> int:
    """The byte of `kv` at which the tile begins that holds ``position`` of the sequence in ``slot``."""
    sizes = state.sizes[0]
    block = state.block_tables[slot, position // KV_BLOCK_SIZE]
    return ((layer * sizes["num_kv_blocks"] + block) * sizes["kv_heads"] + kv_head) * sizes["kv_tile"]


@inlined
def values_of(state: State, tile: int) -> int:
    """The byte at which a tile's values begin."""
    sizes = state.sizes[0]
    rows = (sizes["head_dim"] + 3) // 4 * 4 if sizes["kv_format"] == INT8_CODE else sizes["head_dim"]
    return tile + rows * KV_BLOCK_SIZE * ELEMENT_BYTES[sizes["kv_format"]]


@inlined
def scales_of(state: State, tile: int) -> int:
    """The byte at which an int8 tile's scales begin: 16 of the keys, then 16 of the values."""
    return values_of(state, tile) + KV_BLOCK_SIZE * state.sizes[0]["value_stride"]


@inlined
def load_keys(kv: NDArray[np.uint8], format: int, tile: int, d: int) -> Vector:
    """Element ``d`` of the tile's sixteen keys; of int8 before the scales."""
    if format == F32_CODE:
        return load_weights(kv, tile + d * LINE_BYTES)
    if format == BF16_CODE:
        return bfloat16_of(load_codes(kv, tile + d // 2 * LINE_BYTES), d % 2)
    return signed_byte(load_codes(kv, tile + d // 4 * LINE_BYTES), d % 4)


@inlined
def load_values(kv: NDArray[np.uint8], format: int, values: int, stride: int, token: int, d: int) -> Vector:
    """Elements ``d .. d + 15`` of the value of ``token`` of a block; of int8 before the scale."""
    if format == F32_CODE:
        return load_weights(kv, values + (token * stride + d) * 4)
    if format == BF16_CODE:
        return bfloat16_of(load_codes(kv, values + d * 2 * KV_BLOCK_SIZE + token // 2 * LINE_BYTES), token % 2)
    return signed_byte(load_codes(kv, values + (token // 4 * stride + d) * 4), token % 4)


@inlined
def code_scale(x: NDArray[np.float32], at: int, count: int) -> tuple[np.float32, np.float32]:
    """What ``x[at : at + count]`` is multiplied by to become codes, and what codes are worth."""
    largest = np.float32(0)
    for i in range(at, at + count):
        largest = max(largest, abs(x[i]))
    if largest < MIN_ACTIVATION_MAX:
        return np.float32(0), np.float32(0)
    return MAX_CODE / largest, largest / MAX_CODE


@inlined
def code_of(x: np.float32) -> np.uint8:
    """The nearest integer, as a signed byte's bits."""
    return np.uint8(np.int32((x + NO_FRACTION) - NO_FRACTION) & 255)


@kernel
def store_kv(state: State, tile: int, token: int, x: NDArray[np.float32], key: int, value: int) -> None:
    """Write a token's key and value, which begin at ``x[key]`` and ``x[value]``, rounded to the cache's format."""
    sizes, kv = state.sizes[0], state.kv
    format, head_dim, stride = sizes["kv_format"], sizes["head_dim"], sizes["value_stride"]
    values = values_of(state, tile)
    if format == F32_CODE:
        for d in range(head_dim):
            store_float32(kv, tile + (d * KV_BLOCK_SIZE + token) * 4, x[key + d])
            store_float32(kv, values + (token * stride + d) * 4, x[value + d])
    elif format == BF16_CODE:
        for d in range(head_dim):
            store_bfloat16(kv, tile + d // 2 * LINE_BYTES + token * 4 + d % 2 * 2, x[key + d])
            column = values + d // TILE_N * 2 * TILE_N * KV_BLOCK_SIZE
            store_bfloat16(kv, column + token // 2 * LINE_BYTES + d % TILE_N * 4 + token % 2 * 2, x[value + d])
    else:
        scales = scales_of(state, tile) + token * 4
        key_inverse, key_scale = code_scale(x, key, head_dim)
        value_inverse, value_scale = code_scale(x, value, head_dim)
        store_float32(kv, scales, key_scale)
        store_float32(kv, scales + KV_BLOCK_SIZE * 4, value_scale)
        for d in range(head_dim):
            kv[tile + d // 4 * LINE_BYTES + token * 4 + d % 4] = code_of(x[key + d] * key_inverse)
            kv[values + (token // 4 * stride + d) * 4 + token % 4] = code_of(x[value + d] * value_inverse)
