"""Tiles: the one layout in which weights lie, with the packer and its inverse.

A *tile* is 64 (K) x 16 (N) weights; a *strip* is the tiles of 16 columns, following each other along K. ``N`` counts
the outputs of a matrix and ``K`` its inputs, so a checkpoint's ``[N, K]`` weight becomes ``ceil(N / 16)`` strips.

A strip is made of *lines* of 64 bytes, each 16 columns times as many K as fit, so that a line is one vector register:

======  =========================  ======================================================================
format  a line                     weight
======  =========================  ======================================================================
f32     float32 [16]               itself
bf16    bfloat16 [16][2]           itself
q8      int8 [16][4]               code * scale, code in -127..127
q4      uint8 [16][4], two codes   (code - 8) * subscale * scale, code in 0..15, subscale in -8..-1 or 1..8;
        a byte                     a byte holds k in its low half and k + 4 in its high half
======  =========================  ======================================================================

The q8 lines serve VNNI's four-wide dot product and, sixteen of them, an AMX tile register; a q4 line unpacks to two of
them. A scale is a bfloat16 for each (group of 128 K, column). Sums over so many products are exact integers, and only
once a group do they become floats: that is what lets the tile registers run. Four bits need finer scales than that, so
a q4 group has an integer subscale for each 32 K; a code times its subscale is an int8, and the sum stays exact (the
progressive quantisation of QServe, Lin et al. 2024). It has a sign because the code -8 has no counterpart: the largest
weight of either sign can have it.

The scales lie among the codes, so that a strip is read in one ascending sweep, which is what hardware prefetchers
follow. In q8 two groups are led by a line of their scales, in q4 each group by a line of its own::

    q8  scales     bfloat16 [2][16]    of groups 2 b and 2 b + 1
        lines      of group 2 b, then of group 2 b + 1
    q4  scales     bfloat16 [16]       of group b
        subscales  uint8 [2][16]       0..15 for -8..-1, 1..8: those of the first and third 32 K in the low halves, of
                                       the second and fourth in the high halves
        lines      of group b

A worked example, q8, ``K = 4``, ``N = 1``, weights ``[0.5, -1.0, 0.0, 1.0]``: the scale is bfloat16(1 / 127) =
0.00787354, the codes are ``round(w / scale)`` = ``[64, -127, 0, 127]``, and the strip is a line of scales (``013c`` and
zeros) followed by the line ``40 81 00 7f`` and fifteen columns of zeros.

Activations of a quantised matmul are int8, one float32 scale for each (row, group): see ``quantize_rows``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

TILE_K = 64
TILE_N = 16
LINE_BYTES = 64
ALIGNMENT = 64  # bytes: a cache line, and the widest vector register
Q8_MAX_CODE = 127
Q4_ZERO_POINT = 8
GROUP = 128
SUBGROUP = 32
SUBGROUPS = GROUP // SUBGROUP
MAX_SUBSCALE = 8
MIN_STEP = np.float32(1e-30)  # a smaller step between q4 codes would overflow when inverted
MIN_ACTIVATION_MAX = np.float32(1e-30)  # below it a group counts as zeros: 127 / max would overflow


@dataclass(frozen=True)
class TileFormat:
    """How a strip stores its weights.

    ``code`` identifies the storage in a program's tensor table. ``group`` is the number of K that share one scale, 0
    where weights are not quantised; ``groups_per_line`` is how many groups' scales share a line.
    """

    name: str
    code: int
    bits: int
    group: int = 0
    groups_per_line: int = 0

    @property
    def is_quantized(self) -> bool:
        return self.group > 0

    @property
    def line_k(self) -> int:
        """K of one line."""
        return LINE_BYTES * 8 // (TILE_N * self.bits)

    def num_groups(self, k: int) -> int:
        return -(-k // self.group) if self.group else 0

    def line_slots(self, k: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where in a strip, counted in lines, the lines of weights lie, and where those of scales.

        >>> Q8.line_slots(400)[1]  # 64 lines, of two groups, after the first and 36 after the second
        array([ 0, 65])
        """
        lines = np.arange(-(-k // self.line_k))
        if not self.is_quantized:
            return lines, lines[:0]
        block = self.groups_per_line * self.group // self.line_k  # lines that share one line of scales
        return lines + lines // block + 1, lines[::block] // block * (block + 1)

    def strip_bytes(self, k: int) -> int:
        return sum(len(slots) for slots in self.line_slots(k)) * LINE_BYTES


F32 = TileFormat("f32", code=0, bits=32)
Q8 = TileFormat("q8", code=1, bits=8, group=GROUP, groups_per_line=2)
BF16 = TileFormat("bf16", code=2, bits=16)
Q4 = TileFormat("q4", code=3, bits=4, group=GROUP, groups_per_line=1)
FORMATS = {format.name: format for format in (F32, BF16, Q8, Q4)}


def round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def num_strips(n: int) -> int:
    return -(-n // TILE_N)


def bfloat16_bits(x: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Round float32 to the nearest bfloat16, ties to even; its bits as uint16, same shape. What is not finite, or would no
    longer be, becomes the largest finite one of its sign."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    magnitude = (bits & np.uint32(0x7FFFFFFF)) + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    sign = (bits >> np.uint32(16)) & np.uint32(0x8000)
    return (sign | np.minimum(magnitude >> np.uint32(16), np.uint32(0x7F7F))).astype(np.uint16)


def bfloat16_to_float32(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """The float32 values, exact, of bfloat16 ``bits`` (uint16), same shape."""
    return (np.ascontiguousarray(bits, np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)


def pack_matrix(weight: NDArray[np.float32], format: TileFormat) -> NDArray[np.uint8]:
    """Pack ``weight`` (float32 ``[N, K]``) into strips: uint8 ``[num_strips(N), strip_bytes(K)]``.

    Columns of the last strip beyond N hold weights of zero. Raises ValueError for a weight that is not a finite matrix.
    """
    n, k = checked_matrix(weight).shape
    strips = num_strips(n)
    # [strips, 16, K]
    columns = np.zeros((strips, TILE_N, k), np.float32)
    columns.reshape(-1, k)[:n] = weight
    if not np.isfinite(columns).all():
        raise ValueError(NOT_FINITE)
    if not format.is_quantized:
        return _lines(bfloat16_bits(columns) if format.bits == 16 else columns, format)
    padded = np.zeros((strips, TILE_N, format.num_groups(k) * format.group), np.float32)
    padded[:, :, :k] = columns
    groups = padded.reshape(strips, TILE_N, -1, format.group)
    line_slots, scale_slots = format.line_slots(k)
    packed = np.zeros((strips, len(line_slots) + len(scale_slots), LINE_BYTES), np.uint8)
    codes: NDArray[Any]
    if format.bits == 8:
        scales, codes = quantize_q8(groups)
        lines = np.zeros((strips, 2 * len(scale_slots), TILE_N), np.uint16)
        lines[:, : scales.shape[2]] = scales.transpose(0, 2, 1)
        packed[:, scale_slots] = lines.view(np.uint8).reshape(strips, -1, LINE_BYTES)
    else:
        scales, subscales, codes = quantize_q4(groups)
        packed[:, scale_slots, : 2 * TILE_N] = np.ascontiguousarray(scales.transpose(0, 2, 1)).view(np.uint8)
        nibbles = (subscales + MAX_SUBSCALE - (subscales > 0)).astype(np.uint8)
        pairs = nibbles[..., 0::2] | nibbles[..., 1::2] << 4  # [strips, 16, G, 2]
        packed[:, scale_slots, 2 * TILE_N :] = pairs.transpose(0, 2, 3, 1).reshape(strips, -1, 2 * TILE_N)
    codes = codes.reshape(strips, TILE_N, -1)[:, :, :k]
    packed[:, line_slots] = _lines(codes, format).reshape(strips, -1, LINE_BYTES)
    return packed.reshape(strips, -1)


NOT_FINITE = "weight: holds NaN or infinity, expected finite numbers"


def checked_matrix(weight: NDArray[Any]) -> NDArray[Any]:
    """``weight``, if it is a matrix. Raises ValueError where it is not."""
    if weight.ndim != 2 or 0 in weight.shape:
        raise ValueError(f"weight: shape {weight.shape}, expected a matrix [N, K] with N and K of at least 1")
    return weight


def _lines(columns: NDArray[Any], format: TileFormat) -> NDArray[np.uint8]:
    """The lines of ``columns`` (weights or codes [S, 16, K]), uint8 [S, lines * 64]; K is padded with zero weights."""
    strips, _, k = columns.shape
    lines = -(-k // format.line_k)
    padded = np.full((strips, TILE_N, lines * format.line_k), Q4_ZERO_POINT if format.bits == 4 else 0, columns.dtype)
    padded[:, :, :k] = columns
    if format.bits == 4:
        low_high = padded.reshape(strips, TILE_N, lines, 2, 4)
        padded = (low_high[:, :, :, 0] | low_high[:, :, :, 1] << 4).reshape(strips, TILE_N, -1)
    by_line = padded.reshape(strips, TILE_N, lines, -1).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(by_line).view(np.uint8).reshape(strips, -1)


def quantize_q8(groups: NDArray[np.float32]) -> tuple[NDArray[np.uint16], NDArray[np.int8]]:
    """Quantise ``groups`` (float32 [..., 128]): scales (bfloat16 bits [...]) and codes (int8 [..., 128]).

    The scale gives the largest weight of a group the code 127.
    """
    scales = bfloat16_bits(np.abs(groups).max(axis=-1) / np.float32(Q8_MAX_CODE))
    scale = bfloat16_to_float32(scales)[..., None]
    codes = np.rint(groups / np.where(scale == 0, np.float32(np.inf), scale))
    return scales, np.clip(codes, -Q8_MAX_CODE, Q8_MAX_CODE).astype(np.int8)


def quantize_q4(groups: NDArray[np.float32]) -> tuple[NDArray[np.uint16], NDArray[np.int8], NDArray[np.uint8]]:
    """Quantise ``groups`` (float32 [..., 128]): scales (bfloat16 bits [...]), subscales (int8 [..., 4]) and codes (uint8
    [..., 128], 0..15).

    The subscales and the scale are those of least squared error among the ones tried; the largest weight may be clipped,
    which serves all others better.
    """
    subgroups = groups.reshape(*groups.shape[:-1], -1, SUBGROUP)  # [..., 4, 32]
    extreme = np.take_along_axis(subgroups, np.abs(subgroups).argmax(axis=-1, keepdims=True), axis=-1)[..., 0]
    largest = np.abs(extreme).max(axis=-1)  # [...]
    scale, least = np.zeros_like(largest), np.full_like(largest, np.inf)
    subscales = np.ones_like(extreme)
    for reach in Q4_TRIALS:
        tried = largest / np.float32(reach * MAX_SUBSCALE)
        errors, chosen = _best_subscales(subgroups, extreme, tried, reach)
        is_better = errors < least
        scale, least = np.where(is_better, tried, scale), np.where(is_better, errors, least)
        subscales = np.where(is_better[..., None], chosen, subscales)
    integers = q4_codes(subgroups, scale[..., None] * subscales) * subscales[..., None]
    squares = _sum_in_order((integers * integers).reshape(groups.shape))
    products = _sum_in_order((integers * subgroups).reshape(groups.shape))
    fitted = products / np.maximum(squares, np.float32(1))  # squares are whole numbers
    scales = bfloat16_bits(fitted)
    codes = q4_codes(subgroups, bfloat16_to_float32(scales)[..., None] * subscales) + np.float32(Q4_ZERO_POINT)
    return scales, subscales.astype(np.int8), codes.astype(np.uint8).reshape(groups.shape)


Q4_TRIALS = (6.9, 7.4, 7.9, 8.4, 8.9)  # codes that the largest weight of a group would have


def _best_subscales(
    subgroups: NDArray[np.float32], extreme: NDArray[np.float32], scale: NDArray[np.float32], reach: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """With ``scale`` [...] given: the squared errors [...] and the subscales [..., 4] of ``subgroups`` [..., 4, 32], whose
    weights of largest magnitude, ``extreme`` [..., 4], come to have the code -8."""
    sign, divisor = np.where(extreme > 0, np.float32(-1), np.float32(1)), scale[..., None]
    nearest = np.rint(np.abs(extreme) / np.where(divisor > 0, divisor, np.float32(np.inf)) / np.float32(reach))
    least, chosen = np.full_like(extreme, np.inf), np.ones_like(extreme)
    for offset in (-1, 0, 1):
        tried = np.clip(nearest + np.float32(offset), 1, MAX_SUBSCALE) * sign
        steps = divisor * tried
        error = subgroups - q4_codes(subgroups, steps) * steps[..., None]
        squared_error = _sum_in_order(error * error)
        is_better = squared_error < least
        least, chosen = np.where(is_better, squared_error, least), np.where(is_better, tried, chosen)
    return _sum_in_order(least), chosen


def q4_codes(x: NDArray[np.float32], step: NDArray[np.float32]) -> NDArray[np.float32]:
    """``x`` [..., n] times 1 / ``step`` [...], to the nearest in -8 .. 7; a step below ``MIN_STEP`` gives zeros."""
    is_tiny = np.abs(step) < MIN_STEP
    inverse = np.where(is_tiny, np.float32(0), np.float32(1) / np.where(is_tiny, np.float32(1), step))
    return np.clip(np.rint(x * inverse[..., None]), -Q4_ZERO_POINT, Q4_ZERO_POINT - 1)


def _sum_in_order(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """The sum over the last axis in ascending order, each addition rounded by itself."""
    total = np.zeros(x.shape[:-1], np.float32)
    for i in range(x.shape[-1]):
        total += x[..., i]
    return total


def strip_integers(packed: NDArray[np.uint8], k: int, format: TileFormat) -> NDArray[np.int8]:
    """The weights of quantised strips less their scales, int8 ``[num_strips * 16, K]``, a row for each column: the
    codes of q8, and of q4 codes times subscales."""
    strips = packed.shape[0]
    line_slots, scale_slots = format.line_slots(k)
    by_slot = packed.reshape(strips, -1, LINE_BYTES)
    lines = by_slot[:, line_slots].reshape(strips, -1, TILE_N, 4)
    if format.bits == 8:
        return _by_column(lines.view(np.int8), k)
    codes = _by_column(np.concatenate([lines & 15, lines >> 4], axis=-1).view(np.int8), k) - np.int8(Q4_ZERO_POINT)
    return codes * np.repeat(_subscales(by_slot[:, scale_slots]), SUBGROUP, axis=1)[:, :k]


def _subscales(scale_lines: NDArray[np.uint8]) -> NDArray[np.int8]:
    """The subscales that q4's lines of scales [strips, G, 64] hold: int8 [strips * 16, 4 G]."""
    strips, groups, _ = scale_lines.shape
    nibbles = scale_lines[..., 2 * TILE_N :].reshape(strips, groups, 2, TILE_N)
    subscales = np.stack([nibbles & 15, nibbles >> 4], axis=3).transpose(0, 4, 1, 2, 3)  # [strips, 16, G, 2, 2]
    signed = subscales.reshape(strips * TILE_N, -1).astype(np.int8) - np.int8(MAX_SUBSCALE)
    return signed + (signed >= 0)


def q4_steps(packed: NDArray[np.uint8], k: int) -> NDArray[np.float32]:
    """What a step between two codes of q4 strips is: subscale times scale, float32 ``[num_strips * 16, 4 G]``."""
    scale_lines = packed.reshape(len(packed), -1, LINE_BYTES)[:, Q4.line_slots(k)[1]]
    return _subscales(scale_lines).astype(np.float32) * np.repeat(strip_scales(packed, k, Q4), SUBGROUPS, axis=1)


def with_q4_codes(packed: NDArray[np.uint8], codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A copy of q4 strips ``packed`` that has their scales and other ``codes`` (0..15, ``[num_strips * 16, K]``)."""
    strips, k = len(packed), codes.shape[1]
    lines = packed.reshape(strips, -1, LINE_BYTES).copy()
    lines[:, Q4.line_slots(k)[0]] = _lines(codes.reshape(strips, TILE_N, k), Q4).reshape(strips, -1, LINE_BYTES)
    return lines.reshape(packed.shape)


def _by_column(lines: NDArray[Any], k: int) -> NDArray[Any]:
    """Lines [S, L, 16, line_k] as [S * 16, K]."""
    return np.ascontiguousarray(lines.transpose(0, 2, 1, 3).reshape(len(lines) * TILE_N, -1)[:, :k])


def strip_scales(packed: NDArray[np.uint8], k: int, format: TileFormat) -> NDArray[np.float32]:
    """The scales of quantised strips as float32 ``[num_strips * 16, G]``."""
    strips, groups = packed.shape[0], format.num_groups(k)
    lines = packed.reshape(strips, -1, LINE_BYTES)[:, format.line_slots(k)[1], : format.groups_per_line * 2 * TILE_N]
    bits = np.ascontiguousarray(lines).view(np.uint16).reshape(strips, -1, TILE_N)[:, :groups]
    return bfloat16_to_float32(bits).transpose(0, 2, 1).reshape(strips * TILE_N, groups)


def unpack_matrix(packed: NDArray[np.uint8], n: int, k: int, format: TileFormat) -> NDArray[np.float32]:
    """The weights that ``packed`` strips stand for, float32 ``[N, K]``: the inverse of ``pack_matrix``."""
    expected = (num_strips(n), format.strip_bytes(k))
    if packed.dtype != np.uint8 or packed.shape != expected:
        found = f"{packed.dtype} {packed.shape}"
        raise ValueError(f"packed: {found}, expected uint8 {expected} for {format.name} [{n}, {k}]")
    if format.is_quantized:
        integers = strip_integers(packed, k, format)[:n].astype(np.float32)
        return integers * np.repeat(strip_scales(packed, k, format)[:n], format.group, axis=1)[:, :k]
    elements: NDArray[Any] = packed.view(np.uint16 if format.bits == 16 else np.float32)
    weights = _by_column(elements.reshape(expected[0], -1, TILE_N, format.line_k), k)[:n]
    return bfloat16_to_float32(weights) if format.bits == 16 else weights


def interleave_strips(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Strips of two equal matrices in turn (first 0, second 0, first 1, ...), as silu(gate) * up reads them."""
    return np.stack([first, second], axis=1).reshape(-1, first.shape[1])


def quantize_rows(x: NDArray[np.float32], group: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Quantise activations ``x`` (float32 [M, K]): codes int8 [M, K] and scales float32 [M, G].

    For each group: ``scale = amax / 127`` and ``code = round_half_even(x * (127 / amax))``, every operation rounded by
    itself in float32, so that every backend gives the same bits. A group below ``MIN_ACTIVATION_MAX`` is all zeros.
    """
    rows, k = x.shape
    groups = -(-k // group)
    padded = np.zeros((rows, groups * group), np.float32)
    padded[:, :k] = x
    grouped = padded.reshape(rows, groups, group)
    amax = np.abs(grouped).max(axis=2)
    tiny = amax < MIN_ACTIVATION_MAX
    inverse = np.float32(Q8_MAX_CODE) / np.where(tiny, np.float32(1), amax)
    codes = np.rint(grouped * np.where(tiny, np.float32(0), inverse)[..., None]).astype(np.int8)
    scales = np.where(tiny, np.float32(0), amax / np.float32(Q8_MAX_CODE)).astype(np.float32)
    return codes.reshape(padded.shape)[:, :k].copy(), scales
