"""The product of rows with one strip, for each format of its weights.

A kernel is written once for the quantised formats and once for the float ones, over a function that loads a *pair*: two
vectors, of four K each (codes) or of one (floats). The last pair of a strip may reach a line beyond it; what it finds
there is multiplied by activations of zero, or not used.

Four rows at a time share each load of weights; a single row keeps four exact sums a group, so that the dot product's
latency does not bound it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..tiles import LINE_BYTES, TILE_N
from .jit import kernel
from .vectors import (
    Vector,
    dot4,
    even_bfloat16,
    high_nibbles,
    load_activations,
    load_codes,
    load_scales,
    load_splat,
    load_weights,
    low_nibbles,
    odd_bfloat16,
    prefetch,
    splat,
    splat_int,
    to_floats,
)

ROWS = 4  # that share each load of weights
PAIR_K = 8  # of a pair of codes
SCALES = TILE_N * 2  # bytes: the bfloat16 scales of one group, two of which share a line
PREFETCH = 4096  # bytes ahead

Pair = tuple[Vector, Vector]
Rows = tuple[Vector, Vector, Vector, Vector]
LoadPair = Callable[[NDArray[np.uint8], int], Pair]


@kernel
def load_f32_pair(arena: NDArray[np.uint8], at: int) -> Pair:
    prefetch(arena, at + LINE_BYTES + PREFETCH)
    return load_weights(arena, at), load_weights(arena, at + LINE_BYTES)


@kernel
def load_bf16_pair(arena: NDArray[np.uint8], at: int) -> Pair:
    line = load_codes(arena, at)
    return even_bfloat16(line), odd_bfloat16(line)


@kernel
def load_q8_pair(arena: NDArray[np.uint8], at: int) -> Pair:
    prefetch(arena, at + LINE_BYTES + PREFETCH)
    return load_codes(arena, at), load_codes(arena, at + LINE_BYTES)


@kernel
def load_q4_pair(arena: NDArray[np.uint8], at: int) -> Pair:
    line = load_codes(arena, at)
    return low_nibbles(line), high_nibbles(line)


def make_quantized_row(load_pair: LoadPair, pair_bytes: int) -> Callable[..., Vector]:
    def quantized_row(
        arena: NDArray[np.uint8],
        strip: int,
        tensor: Any,
        codes: NDArray[np.int8],
        codes_at: int,
        scales: NDArray[np.float32],
        sums: NDArray[np.int32],
        group_at: int,
    ) -> Vector:
        """One row times the strip at byte ``strip``: 16 columns; each group exact, groups added in ascending K."""
        k, group, zero_point, line = tensor["k"], tensor["group"], tensor["zero_point"], strip
        scale_at = strip
        columns = splat(0.0)
        for begin in range(0, k, group):
            if begin // group % 2 == 0:
                scale_at, line = line, line + LINE_BYTES
            else:
                scale_at += SCALES
            end = line + (min(group, k - begin) + PAIR_K - 1) // PAIR_K * pair_bytes
            at = codes_at + begin
            first, second, third, fourth = (
                splat_int(-zero_point * sums[group_at]),
                splat_int(0),
                splat_int(0),
                splat_int(0),
            )
            while line + 2 * pair_bytes <= end:
                prefetch(arena, line + PREFETCH)
                prefetch(arena, line + pair_bytes + PREFETCH)
                low, high = load_pair(arena, line)
                first = dot4(first, low, load_activations(codes, at))
                second = dot4(second, high, load_activations(codes, at + 4))
                low, high = load_pair(arena, line + pair_bytes)
                third = dot4(third, low, load_activations(codes, at + 8))
                fourth = dot4(fourth, high, load_activations(codes, at + 12))
                line += 2 * pair_bytes
                at += 2 * PAIR_K
            while line < end:
                low, high = load_pair(arena, line)
                first = dot4(first, low, load_activations(codes, at))
                second = dot4(second, high, load_activations(codes, at + 4))
                line += pair_bytes
                at += PAIR_K
            total = to_floats((first + second) + (third + fourth))
            columns = columns + total * (load_scales(arena, scale_at) * load_splat(scales, group_at))
            group_at += 1
        return columns

    return kernel(quantized_row)


def make_quantized_rows(load_pair: LoadPair, pair_bytes: int) -> Callable[..., Rows]:
    def quantized_rows(
        arena: NDArray[np.uint8],
        strip: int,
        tensor: Any,
        codes: NDArray[np.int8],
        codes_at: int,
        codes_stride: int,
        scales: NDArray[np.float32],
        sums: NDArray[np.int32],
        group_at: int,
        group_stride: int,
    ) -> Rows:
        """The same bits for four rows, ``codes_stride`` codes and ``group_stride`` groups apart."""
        k, group, zero_point, line = tensor["k"], tensor["group"], tensor["zero_point"], strip
        scale_at = strip
        y0, y1, y2, y3 = splat(0.0), splat(0.0), splat(0.0), splat(0.0)
        for begin in range(0, k, group):
            if begin // group % 2 == 0:
                scale_at, line = line, line + LINE_BYTES
            else:
                scale_at += SCALES
            end = line + (min(group, k - begin) + PAIR_K - 1) // PAIR_K * pair_bytes
            a0 = codes_at + begin
            a1, a2, a3 = a0 + codes_stride, a0 + 2 * codes_stride, a0 + 3 * codes_stride
            g0, g1 = group_at, group_at + group_stride
            g2, g3 = group_at + 2 * group_stride, group_at + 3 * group_stride
            s0, s1 = splat_int(-zero_point * sums[g0]), splat_int(-zero_point * sums[g1])
            s2, s3 = splat_int(-zero_point * sums[g2]), splat_int(-zero_point * sums[g3])
            while line < end:
                prefetch(arena, line + PREFETCH)
                low, high = load_pair(arena, line)
                s0 = dot4(dot4(s0, low, load_activations(codes, a0)), high, load_activations(codes, a0 + 4))
                s1 = dot4(dot4(s1, low, load_activations(codes, a1)), high, load_activations(codes, a1 + 4))
                s2 = dot4(dot4(s2, low, load_activations(codes, a2)), high, load_activations(codes, a2 + 4))
                s3 = dot4(dot4(s3, low, load_activations(codes, a3)), high, load_activations(codes, a3 + 4))
                line += pair_bytes
                a0, a1, a2, a3 = a0 + PAIR_K, a1 + PAIR_K, a2 + PAIR_K, a3 + PAIR_K
            weight_scales = load_scales(arena, scale_at)
            y0 = y0 + to_floats(s0) * (weight_scales * load_splat(scales, g0))
            y1 = y1 + to_floats(s1) * (weight_scales * load_splat(scales, g1))
            y2 = y2 + to_floats(s2) * (weight_scales * load_splat(scales, g2))
            y3 = y3 + to_floats(s3) * (weight_scales * load_splat(scales, g3))
            group_at += 1
        return y0, y1, y2, y3

    return kernel(quantized_rows)


def make_float_row(load_pair: LoadPair, pair_bytes: int) -> Callable[..., Vector]:
    def float_row(arena: NDArray[np.uint8], strip: int, k: int, x: NDArray[np.float32], x_at: int) -> Vector:
        """One row times the strip at byte ``strip``: even and odd K in one chain each, added at the end."""
        evens, odds = splat(0.0), splat(0.0)
        for at in range(x_at, x_at + k - 1, 2):
            prefetch(arena, strip + PREFETCH)
            even, odd = load_pair(arena, strip)
            evens, odds = evens + even * load_splat(x, at), odds + odd * load_splat(x, at + 1)
            strip += pair_bytes
        if k % 2:
            evens = evens + load_pair(arena, strip)[0] * load_splat(x, x_at + k - 1)
        return evens + odds

    return kernel(float_row)


def make_float_rows(load_pair: LoadPair, pair_bytes: int) -> Callable[..., Rows]:
    def float_rows(
        arena: NDArray[np.uint8], strip: int, k: int, x: NDArray[np.float32], x_at: int, x_stride: int
    ) -> Rows:
        """The same bits for four rows, ``x_stride`` floats apart."""
        a0, a1, a2, a3 = x_at, x_at + x_stride, x_at + 2 * x_stride, x_at + 3 * x_stride
        evens0, evens1, evens2, evens3 = splat(0.0), splat(0.0), splat(0.0), splat(0.0)
        odds0, odds1, odds2, odds3 = splat(0.0), splat(0.0), splat(0.0), splat(0.0)
        for _ in range(k // 2):
            prefetch(arena, strip + PREFETCH)
            even, odd = load_pair(arena, strip)
            evens0, odds0 = evens0 + even * load_splat(x, a0), odds0 + odd * load_splat(x, a0 + 1)
            evens1, odds1 = evens1 + even * load_splat(x, a1), odds1 + odd * load_splat(x, a1 + 1)
            evens2, odds2 = evens2 + even * load_splat(x, a2), odds2 + odd * load_splat(x, a2 + 1)
            evens3, odds3 = evens3 + even * load_splat(x, a3), odds3 + odd * load_splat(x, a3 + 1)
            strip += pair_bytes
            a0, a1, a2, a3 = a0 + 2, a1 + 2, a2 + 2, a3 + 2
        if k % 2:
            even = load_pair(arena, strip)[0]
            evens0, evens1 = evens0 + even * load_splat(x, a0), evens1 + even * load_splat(x, a1)
            evens2, evens3 = evens2 + even * load_splat(x, a2), evens3 + even * load_splat(x, a3)
        return evens0 + odds0, evens1 + odds1, evens2 + odds2, evens3 + odds3

    return kernel(float_rows)


f32_row, f32_rows = make_float_row(load_f32_pair, 2 * LINE_BYTES), make_float_rows(load_f32_pair, 2 * LINE_BYTES)
bf16_row, bf16_rows = make_float_row(load_bf16_pair, LINE_BYTES), make_float_rows(load_bf16_pair, LINE_BYTES)
q8_row, q8_rows = make_quantized_row(load_q8_pair, 2 * LINE_BYTES), make_quantized_rows(load_q8_pair, 2 * LINE_BYTES)
q4_row, q4_rows = make_quantized_row(load_q4_pair, LINE_BYTES), make_quantized_rows(load_q4_pair, LINE_BYTES)
