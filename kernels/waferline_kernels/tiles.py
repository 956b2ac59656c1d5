"""Tiles: the one layout in which weights lie, with the packer and its inverse.

A *tile* is 64 (K) x 16 (N) weights; a *strip* is the tiles of 16 columns, following each other along K. ``N`` counts
the outputs of a matrix and ``K`` its inputs, so a checkpoint's ``[N, K]`` weight becomes ``ceil(N / 16)`` strips.

A strip is made of *lines* of 64 bytes, each 16 columns times as many K as fit, so that a line is one vector register:

======  =========================  ======================================================================
format  a line                     weight
======  =========================  ======================================================================
f32     float32 [16]               itself
bf16    bfloat16 [16][2]           itself
q8      uint8 [16][4]              (code - 128) * scale, code in 1..255
q4      uint8 [16][4], two codes   (code - 8) * scale, code in 0..15; a byte holds k in its low half and
        a byte                     k + 4 in its high half
======  =========================  ======================================================================

The q8 lines serve VNNI's four-wide dot product and, sixteen of them, an AMX tile register; a q4 line unpacks to two of
them. In a quantised strip every two groups are led by a line of their scales, so that a strip is read in one ascending
sweep, which is what hardware prefetchers follow::

    scales  bfloat16 [2][16]    of groups 2 b and 2 b + 1
    lines   of group 2 b, then of group 2 b + 1

A worked example, q8, ``K = 4``, ``N = 1``, weights ``[0.5, -1.0, 0.0, 1.0]``: the scale is bfloat16(1 / 127) =
0.00787354, the codes are ``round(w / scale) + 128`` = ``[192, 1, 128, 255]``, and the strip is a line of scales (``3c01``
and zeros) followed by the line ``c0 01 80 ff`` and fifteen columns of ``80 80 80 80``.

Activations of a quantised matmul are int8, one float32 scale for each (row, group): see ``quantize_rows``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

TILE_N = 16
LINE_BYTES = 64
ALIGNMENT = 64  # bytes: a cache line, and the widest vector register
Q8_MAX_CODE = 127
Q8_ZERO_POINT = 128
MIN_ACTIVATION_MAX = np.float32(1e-30)  # below it a group counts as zeros: 127 / max would overflow


@dataclass(frozen=True)
class TileFormat:
    """How a strip stores its weights.

    ``code`` identifies the storage in a program's tensor table. ``group`` is the number of K that share one scale, 0
    where weights are not quantised; it is part of the format, as is the ``zero_point`` of the unsigned codes.
    """

    name: str
    code: int
    bits: int
    group: int = 0
    zero_point: int = 0

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

        >>> Q8.line_slots(200)[1]  # 32 lines, of two groups, after the first and 18 after the second
        array([ 0, 33])
        """
        lines = np.arange(-(-k // self.line_k))
        if not self.is_quantized:
            return lines, lines[:0]
        block = 2 * self.group // self.line_k  # lines that share one line of scales
        return lines + lines // block + 1, lines[::block] // block * (block + 1)

    def strip_bytes(self, k: int) -> int:
        return sum(len(slots) for slots in self.line_slots(k)) * LINE_BYTES


F32 = TileFormat("f32", code=0, bits=32)
Q8 = TileFormat("q8", code=1, bits=8, group=64, zero_point=Q8_ZERO_POINT)
BF16 = TileFormat("bf16", code=2, bits=16)
Q4 = TileFormat("q4", code=3, bits=4, group=32, zero_point=8)
FORMATS = {format.name: format for format in (F32, BF16, Q8, Q4)}


def round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def num_strips(n: int) -> int:
    return -(-n // TILE_N)


def bfloat16_bits(x: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Round finite float32 to the nearest bfloat16, ties to even; its bits as uint16, same shape."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype(np.uint16)


def bfloat16_to_float32(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """The float32 values, exact, of bfloat16 ``bits`` (uint16), same shape."""
    return (np.ascontiguousarray(bits, np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)


def pack_matrix(weight: NDArray[np.float32], format: TileFormat) -> NDArray[np.uint8]:
    """Pack ``weight`` (float32 ``[N, K]``) into strips: uint8 ``[num_strips(N), strip_bytes(K)]``.

    Columns of the last strip beyond N hold weights of zero. Raises ValueError for a weight that is not a finite matrix.
    """
    if weight.ndim != 2 or 0 in weight.shape:
        raise ValueError(f"weight: shape {weight.shape}, expected a matrix [N, K] with N and K of at least 1")
    n, k = weight.shape
    strips = num_strips(n)
    # [strips, 16, K]
    columns = np.zeros((strips, TILE_N, k), np.float32)
    columns.reshape(-1, k)[:n] = weight
    if not np.isfinite(columns).all():
        raise ValueError("weight: holds NaN or infinity, expected finite numbers")
    if not format.is_quantized:
        return _lines(bfloat16_bits(columns) if format.bits == 16 else columns, format)
    scales, codes = _quantize_columns(columns, format)
    line_slots, scale_slots = format.line_slots(k)
    packed = np.zeros((strips, len(line_slots) + len(scale_slots), LINE_BYTES), np.uint8)
    pairs = np.zeros((strips, 2 * len(scale_slots), TILE_N), np.uint16)
    pairs[:, : scales.shape[2]] = scales.transpose(0, 2, 1)
    packed[:, scale_slots] = pairs.view(np.uint8).reshape(strips, -1, LINE_BYTES)
    packed[:, line_slots] = _lines(codes, format).reshape(strips, -1, LINE_BYTES)
    return packed.reshape(strips, -1)


def _lines(columns: NDArray[Any], format: TileFormat) -> NDArray[np.uint8]:
    """The lines of ``columns`` (weights or codes [S, 16, K]), uint8 [S, lines * 64]; K is padded with zero weights."""
    strips, _, k = columns.shape
    lines = -(-k // format.line_k)
    padded = np.full((strips, TILE_N, lines * format.line_k), format.zero_point, columns.dtype)
    padded[:, :, :k] = columns
    if format.bits == 4:
        low_high = padded.reshape(strips, TILE_N, lines, 2, 4)
        padded = (low_high[:, :, :, 0] | low_high[:, :, :, 1] << 4).reshape(strips, TILE_N, -1)
    by_line = padded.reshape(strips, TILE_N, lines, -1).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(by_line).view(np.uint8).reshape(strips, -1)


def _quantize_columns(columns: NDArray[np.float32], format: TileFormat) -> tuple[NDArray[np.uint16], NDArray[np.uint8]]:
    """Quantise ``columns`` (float32 [S, 16, K]): scales (bfloat16 bits [S, 16, G]) and codes (uint8 [S, 16, K])."""
    strips, _, k = columns.shape
    padded = np.zeros((strips, TILE_N, format.num_groups(k) * format.group), np.float32)
    padded[:, :, :k] = columns
    grouped = padded.reshape(strips, TILE_N, -1, format.group)
    scales = bfloat16_bits(_largest_scale(grouped) if format.bits == 8 else _least_squares_scale(grouped, format))
    signed = _signed_codes(grouped, bfloat16_to_float32(scales), format)
    codes = (signed + format.zero_point).astype(np.uint8).reshape(strips, TILE_N, -1)[:, :, :k]
    return scales, codes


def _largest_scale(grouped: NDArray[np.float32]) -> NDArray[np.float32]:
    """The scale that gives the largest weight of each group [..., group] the signed code 127."""
    return np.abs(grouped).max(axis=-1) / np.float32(Q8_MAX_CODE)


def _least_squares_scale(grouped: NDArray[np.float32], format: TileFormat) -> NDArray[np.float32]:
    """The scale of each group [..., group] with the least squared error among those that were tried.

    With four bits the code -8 has no counterpart, so the weight of largest magnitude is put there, which may make the
    scale negative, and the scale is tried shrunk: that clips the largest weight and serves all others better. Each
    trial ends with the least-squares scale for its codes.
    """
    extreme = np.take_along_axis(grouped, np.abs(grouped).argmax(axis=-1, keepdims=True), axis=-1)[..., 0]
    best, least = np.zeros_like(extreme), np.full_like(extreme, np.inf)
    for shrink in LEAST_SQUARES_TRIALS:
        codes = _signed_codes(grouped, extreme / np.float32(-shrink), format)
        squares = (codes * codes).sum(axis=-1)
        scale = (codes * grouped).sum(axis=-1) / np.where(squares > 0, squares, np.float32(1))
        rounded = bfloat16_to_float32(bfloat16_bits(scale))
        error = grouped - _signed_codes(grouped, rounded, format) * rounded[..., None]
        squared_error = (error * error).sum(axis=-1)
        is_better = squared_error < least
        best, least = np.where(is_better, rounded, best), np.where(is_better, squared_error, least)
    return best


LEAST_SQUARES_TRIALS = (6.6, 7.0, 7.4, 7.8, 8.0, 8.2, 8.6, 9.0, 9.6)  # codes that the largest weight would have


def _signed_codes(grouped: NDArray[np.float32], scale: NDArray[np.float32], format: TileFormat) -> NDArray[np.float32]:
    """Codes less the zero point, as float32 [..., group], of groups with ``scale`` [...]; a scale of 0 gives zeros."""
    divisor = scale[..., None]
    steps = grouped / np.where(divisor == 0, np.float32(np.inf), divisor)
    lowest = -format.zero_point + (format.bits == 8)  # q8 leaves code 0 unused, so that every code has its negative
    return np.clip(np.rint(steps), lowest, format.zero_point - 1)


def strip_codes(packed: NDArray[np.uint8], k: int, format: TileFormat) -> NDArray[np.uint8]:
    """The codes of quantised strips as uint8 ``[num_strips * 16, K]``, a row for each column of the strips."""
    strips = packed.shape[0]
    lines = packed.reshape(strips, -1, LINE_BYTES)[:, format.line_slots(k)[0]].reshape(strips, -1, TILE_N, 4)
    if format.bits == 4:
        lines = np.concatenate([lines & 15, lines >> 4], axis=-1)
    return np.ascontiguousarray(lines.transpose(0, 2, 1, 3).reshape(strips * TILE_N, -1)[:, :k])


def strip_scales(packed: NDArray[np.uint8], k: int, format: TileFormat) -> NDArray[np.float32]:
    """The scales of quantised strips as float32 ``[num_strips * 16, G]``."""
    strips, groups = packed.shape[0], format.num_groups(k)
    lines = packed.reshape(strips, -1, LINE_BYTES)[:, format.line_slots(k)[1]]
    bits = np.ascontiguousarray(lines).view(np.uint16).reshape(strips, -1, TILE_N)[:, :groups]
    return bfloat16_to_float32(bits).transpose(0, 2, 1).reshape(strips * TILE_N, groups)


def unpack_matrix(packed: NDArray[np.uint8], n: int, k: int, format: TileFormat) -> NDArray[np.float32]:
    """The weights that ``packed`` strips stand for, float32 ``[N, K]``: the inverse of ``pack_matrix``."""
    expected = (num_strips(n), format.strip_bytes(k))
    if packed.dtype != np.uint8 or packed.shape != expected:
        found = f"{packed.dtype} {packed.shape}"
        raise ValueError(f"packed: {found}, expected uint8 {expected} for {format.name} [{n}, {k}]")
    if format.is_quantized:
        signed = strip_codes(packed, k, format)[:n].astype(np.float32) - np.float32(format.zero_point)
        return signed * np.repeat(strip_scales(packed, k, format)[:n], format.group, axis=1)[:, :k]
    elements: NDArray[Any] = packed.view(np.uint16 if format.bits == 16 else np.float32)
    lines = elements.reshape(expected[0], -1, TILE_N, format.line_k)
    weights = lines.transpose(0, 2, 1, 3).reshape(expected[0] * TILE_N, -1)[:n, :k]
    return bfloat16_to_float32(weights) if format.bits == 16 else np.ascontiguousarray(weights)


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
