"""Kernels over a row of activations: RMS norm, quantisation, and the exponential that attention and silu share.

Rows are padded with zeros to whole vectors, so a kernel runs over ``ceil(k / 16)`` vectors of a row of ``k``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..tiles import GROUP, MIN_ACTIVATION_MAX, Q8_MAX_CODE, SUBGROUP, SUBGROUPS, TILE_N
from .jit import kernel
from .vectors import (
    Vector,
    larger_magnitude,
    largest_magnitude,
    load,
    power_of_two,
    splat,
    splat_int,
    store,
    store_bytes,
    sum_lanes,
    sum_lanes_int,
    to_ints,
    where_less,
)

SCALE_OF_MAX = np.float32(Q8_MAX_CODE)
NO_FRACTION = np.float32(12582912.0)  # 1.5 * 2^23: adding it leaves no room for a fraction
EXP_LOW, EXP_HIGH = np.float32(-87.3), np.float32(88.0)


@kernel
def round_even(x: Vector) -> Vector:
    """To the nearest integer, ties to even, for |x| below 2^22."""
    return (x + splat(NO_FRACTION)) - splat(NO_FRACTION)


@kernel
def exponential(x: Vector) -> Vector:
    """exp(x) to 2 ulp: 2^n * p(r), |r| <= ln(2) / 2, with Cephes' expf polynomial. Zero below -87.3, finite above 88."""
    low, high = splat(EXP_LOW), splat(EXP_HIGH)
    clamped = where_less(x, low, low, where_less(high, x, high, x))
    n = round_even(clamped * splat(1.44269504))
    r = (clamped - n * splat(0.693359375)) - n * splat(-2.12194440e-4)
    p = splat(1.9875691500e-4)
    p = p * r + splat(1.3981999507e-3)
    p = p * r + splat(8.3334519073e-3)
    p = p * r + splat(4.1665795894e-2)
    p = p * r + splat(1.6666665459e-1)
    p = p * r + splat(5.0000001201e-1)
    p = (p * (r * r) + r) + splat(1.0)
    return where_less(x, low, splat(0.0), p * power_of_two(n))


@kernel
def rms_norm(
    src: NDArray[np.float32],
    src_at: int,
    gains: NDArray[np.float32],
    gains_at: int,
    k: int,
    eps: np.float32,
    dst: NDArray[np.float32],
    dst_at: int,
) -> None:
    """``dst[k] = src[k] / sqrt(mean(src^2) + eps) * gains[k]``; each from its own index of a flat array."""
    squares = splat(0.0)
    for i in range(0, k, TILE_N):
        x = load(src, src_at + i)
        squares = squares + x * x
    inverse = splat(np.float32(1) / np.sqrt(sum_lanes(squares) / np.float32(k) + eps))
    for i in range(0, k, TILE_N):
        store(dst, dst_at + i, load(src, src_at + i) * inverse * load(gains, gains_at + i))


@kernel
def quantize_row(
    src: NDArray[np.float32],
    src_at: int,
    k: int,
    codes: NDArray[np.int8],
    codes_at: int,
    scales: NDArray[np.float32],
    sums: NDArray[np.int32],
    group_at: int,
) -> None:
    """``tiles.quantize_rows`` of one row, and the sum of each subgroup's codes, which takes the weights' zero point off
    a product. Codes after k, up to whole vectors, are zero."""
    for begin in range(0, k, GROUP):
        end = min(begin + GROUP, k)
        bits = splat_int(0)
        for i in range(begin, end, TILE_N):
            bits = larger_magnitude(bits, load(src, src_at + i))
        largest = largest_magnitude(bits)
        inverse, scale = np.float32(0), np.float32(0)
        if not largest < MIN_ACTIVATION_MAX:
            inverse, scale = SCALE_OF_MAX / largest, largest / SCALE_OF_MAX
        for subgroup in range(SUBGROUPS):
            total, first = splat_int(0), begin + subgroup * SUBGROUP
            for i in range(first, min(first + SUBGROUP, end), TILE_N):
                rounded = to_ints(round_even(load(src, src_at + i) * splat(inverse)))
                store_bytes(codes, codes_at + i, rounded)
                total = total + rounded
            sums[group_at * SUBGROUPS + subgroup] = sum_lanes_int(total)
        scales[group_at] = scale
        group_at += 1
