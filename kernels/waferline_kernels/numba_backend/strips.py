"""The product of rows with one strip, for each format of its weights.

A kernel is written once for the quantised formats, over a function that gives a group's exact sums, and once for the
float ones, over a function that loads the weights of two K. The last such pair of a strip may reach a line beyond it;
what it finds there is not used.

Four rows at a time share each load of weights; a single row keeps four exact sums a group, so that the dot product's
latency does not bound it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ..tiles import GROUP, LINE_BYTES, Q4, Q4_ZERO_POINT, Q8, SUBGROUP, SUBGROUPS, TILE_N
from .jit import inlined, kernel
from .vectors import (
    Vector,
    dot4,
    even_bfloat16,
    flip_signs,
    high_nibbles,
    load_activations,
    load_codes,
    load_scales,
    load_splat,
    load_subscales,
    load_weights,
    low_nibbles,
    odd_bfloat16,
    prefetch,
    splat,
    splat_int,
    to_floats,
)

ROWS = 4  # that share each load of weights
Q8_OFFSET = 128
Q4_SUBGROUP_LINES = SUBGROUP // Q4.line_k
SCALES = TILE_N * 2  # bytes: the bfloat16 scales of one group, two of which share a line
PREFETCH = 512  # bytes ahead

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


@inlined
def load_q8(arena: NDArray[np.uint8], at: int) -> Vector:
    """A line of q8, Q8_OFFSET added: the dot product takes unsigned weights."""
    return flip_signs(load_codes(arena, at))


@inlined
def load_q4(arena: NDArray[np.uint8], at: int) -> Pair:
    line = load_codes(arena, at)
    return low_nibbles(line), high_nibbles(line)


@kernel
def q8_sum(
    arena: NDArray[np.uint8],
    line: int,
    end: int,
    codes: NDArray[np.int8],
    at: int,
    sums: NDArray[np.int32],
    sums_at: int,
) -> Vector:
    """The exact sums of one group of q8, whose lines end before ``end``, times one row's codes."""
    first, second = splat_int(-Q8_OFFSET * sums[sums_at]), splat_int(-Q8_OFFSET * sums[sums_at + 1])
    third, fourth = splat_int(-Q8_OFFSET * sums[sums_at + 2]), splat_int(-Q8_OFFSET * sums[sums_at + 3])
    while line + 4 * LINE_BYTES <= end:
        for i in range(4):
            prefetch(arena, line + i * LINE_BYTES + PREFETCH)
        first = dot4(first, load_q8(arena, line), load_activations(codes, at))
        second = dot4(second, load_q8(arena, line + LINE_BYTES), load_activations(codes, at + 4))
        third = dot4(third, load_q8(arena, line + 2 * LINE_BYTES), load_activations(codes, at + 8))
        fourth = dot4(fourth, load_q8(arena, line + 3 * LINE_BYTES), load_activations(codes, at + 12))
        line += 4 * LINE_BYTES
        at += 16
    while line < end:
        first = dot4(first, load_q8(arena, line), load_activations(codes, at))
        line += LINE_BYTES
        at += 4
    return (first + second) + (third + fourth)


@kernel
def q4_sum(
    arena: NDArray[np.uint8],
    line: int,
    end: int,
    codes: NDArray[np.int8],
    at: int,
    sums: NDArray[np.int32],
    sums_at: int,
) -> Vector:
    """The same for q4; the group's line of scales lies before its first."""
    total, subscales_at = splat_int(0), line - 2 * TILE_N
    for subgroup in range(SUBGROUPS):
        low_sum, high_sum = splat_int(-Q4_ZERO_POINT * sums[sums_at + subgroup]), splat_int(0)
        for _ in range(min((end - line) // LINE_BYTES, Q4_SUBGROUP_LINES)):
            prefetch(arena, line + PREFETCH)
            low, high = load_q4(arena, line)
            low_sum = dot4(low_sum, low, load_activations(codes, at))
            high_sum = dot4(high_sum, high, load_activations(codes, at + 4))
            line += LINE_BYTES
            at += 8
        subscales = load_subscales(arena, subscales_at + subgroup // 2 * TILE_N, subgroup % 2 * 4)
        total = total + (low_sum + high_sum) * subscales
    return total


@inlined
def four_offsets(offset: int, sums: NDArray[np.int32], at: int, stride: int) -> Rows:
    """``offset`` times a sum of each of four rows, whose sums are ``stride`` apart."""
    return (
        splat_int(offset * sums[at]),
        splat_int(offset * sums[at + stride]),
        splat_int(offset * sums[at + 2 * stride]),
        splat_int(offset * sums[at + 3 * stride]),
    )


@inlined
def four_dots(y: Rows, line: Vector, codes: NDArray[np.int8], at: int, stride: int) -> Rows:
    """A line times the codes of four rows, ``stride`` apart."""
    return (
        dot4(y[0], line, load_activations(codes, at)),
        dot4(y[1], line, load_activations(codes, at + stride)),
        dot4(y[2], line, load_activations(codes, at + 2 * stride)),
        dot4(y[3], line, load_activations(codes, at + 3 * stride)),
    )


@inlined
def four_sums(a: Rows, b: Rows) -> Rows:
    return a[0] + b[0], a[1] + b[1], a[2] + b[2], a[3] + b[3]


@kernel
def q8_sums(
    arena: NDArray[np.uint8],
    line: int,
    end: int,
    codes: NDArray[np.int8],
    at: int,
    codes_stride: int,
    sums: NDArray[np.int32],
    sums_at: int,
    sums_stride: int,
) -> Rows:
    """``q8_sum`` of four rows."""
    y = four_offsets(-Q8_OFFSET, sums, sums_at, sums_stride)
    for subgroup in range(1, SUBGROUPS):
        y = four_sums(y, four_offsets(-Q8_OFFSET, sums, sums_at + subgroup, sums_stride))
    while line < end:
        prefetch(arena, line + PREFETCH)
        y = four_dots(y, load_q8(arena, line), codes, at, codes_stride)
        line += LINE_BYTES
        at += 4
    return y


@kernel
def q4_sums(
    arena: NDArray[np.uint8],
    line: int,
    end: int,
    codes: NDArray[np.int8],
    at: int,
    codes_stride: int,
    sums: NDArray[np.int32],
    sums_at: int,
    sums_stride: int,
) -> Rows:
    """``q4_sum`` of four rows."""
    subscales_at = line - 2 * TILE_N
    y = splat_int(0), splat_int(0), splat_int(0), splat_int(0)
    for subgroup in range(SUBGROUPS):
        dots = four_offsets(-Q4_ZERO_POINT, sums, sums_at + subgroup, sums_stride)
        for _ in range(min((end - line) // LINE_BYTES, Q4_SUBGROUP_LINES)):
            prefetch(arena, line + PREFETCH)
            low, high = load_q4(arena, line)
            dots = four_dots(four_dots(dots, low, codes, at, codes_stride), high, codes, at + 4, codes_stride)
            line += LINE_BYTES
            at += 8
        s = load_subscales(arena, subscales_at + subgroup // 2 * TILE_N, subgroup % 2 * 4)
        y = four_sums(y, (dots[0] * s, dots[1] * s, dots[2] * s, dots[3] * s))
    return y


def make_quantized_row(group_sum: Callable[..., Vector], line_k: int, groups_per_line: int) -> Callable[..., Vector]:
    def quantized_row(
        arena: NDArray[np.uint8],
        line: int,
        k: int,
        codes: NDArray[np.int8],
        codes_at: int,
        scales: NDArray[np.float32],
        sums: NDArray[np.int32],
        group_at: int,
    ) -> Vector:
        """One row times the strip at byte ``line``: 16 columns; each group exact, groups added in ascending K."""
        columns, scale_at = splat(0.0), line
        for begin in range(0, k, GROUP):
            if begin // GROUP % groups_per_line == 0:
                scale_at, line = line, line + LINE_BYTES
            else:
                scale_at += SCALES
            end = line + (min(GROUP, k - begin) + line_k - 1) // line_k * LINE_BYTES
            total = to_floats(group_sum(arena, line, end, codes, codes_at + begin, sums, group_at * SUBGROUPS))
            columns = columns + total * (load_scales(arena, scale_at) * load_splat(scales, group_at))
            line = end
            group_at += 1
        return columns

    return kernel(quantized_row)


def make_quantized_rows(group_sums: Callable[..., Rows], line_k: int, groups_per_line: int) -> Callable[..., Rows]:
    def quantized_rows(
        arena: NDArray[np.uint8],
        line: int,
        k: int,
        codes: NDArray[np.int8],
        codes_at: int,
        codes_stride: int,
        scales: NDArray[np.float32],
        sums: NDArray[np.int32],
        group_at: int,
        group_stride: int,
    ) -> Rows:
        """The same bits for four rows, ``codes_stride`` codes and ``group_stride`` groups apart."""
        scale_at = line
        y0, y1, y2, y3 = splat(0.0), splat(0.0), splat(0.0), splat(0.0)
        for begin in range(0, k, GROUP):
            if begin // GROUP % groups_per_line == 0:
                scale_at, line = line, line + LINE_BYTES
            else:
                scale_at += SCALES
            end = line + (min(GROUP, k - begin) + line_k - 1) // line_k * LINE_BYTES
            sums_at, sums_stride = group_at * SUBGROUPS, group_stride * SUBGROUPS
            s0, s1, s2, s3 = group_sums(
                arena, line, end, codes, codes_at + begin, codes_stride, sums, sums_at, sums_stride
            )
            weight_scales = load_scales(arena, scale_at)
            y0 = y0 + to_floats(s0) * (weight_scales * load_splat(scales, group_at))
            y1 = y1 + to_floats(s1) * (weight_scales * load_splat(scales, group_at + group_stride))
            y2 = y2 + to_floats(s2) * (weight_scales * load_splat(scales, group_at + 2 * group_stride))
            y3 = y3 + to_floats(s3) * (weight_scales * load_splat(scales, group_at + 3 * group_stride))
            line = end
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
q8_row = make_quantized_row(q8_sum, Q8.line_k, Q8.groups_per_line)
q8_rows = make_quantized_rows(q8_sums, Q8.line_k, Q8.groups_per_line)
q4_row = make_quantized_row(q4_sum, Q4.line_k, Q4.groups_per_line)
q4_rows = make_quantized_rows(q4_sums, Q4.line_k, Q4.groups_per_line)
