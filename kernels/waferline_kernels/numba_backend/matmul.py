"""Matmul of rows with the strips of one worker, and what becomes of each strip's sixteen columns.

Strips are outermost: a strip stays in the nearest cache while all rows pass over it.
"""

from __future__ import annotations

from typing import Any

from ..program import NO_TENSOR, Epilogue
from ..tiles import TILE_N
from .jit import inlined, kernel
from .rows import exponential
from .state import FORMAT_BF16, FORMAT_F32, FORMAT_Q8, Source, State, source_of
from .strips import ROWS, Rows, bf16_row, bf16_rows, f32_row, f32_rows, q4_row, q4_rows, q8_row, q8_rows
from .vectors import Vector, load, splat, store


@inlined
def strip_row(state: State, tensor: Any, strip: int, source: Source, row: int) -> Vector:
    """Row ``row`` of the source times the strip at byte ``strip`` of the arena."""
    arena, format, floats_at = state.arena, tensor["format"], source.floats + row * source.stride
    if format == FORMAT_F32:
        return f32_row(arena, strip, tensor["k"], state.buffers, floats_at)
    if format == FORMAT_BF16:
        return bf16_row(arena, strip, tensor["k"], state.buffers, floats_at)
    codes_at = (source.first + row) * state.sizes[0]["codes_stride"]
    group_at = (source.first + row) * state.sizes[0]["group_stride"]
    if format == FORMAT_Q8:
        return q8_row(arena, strip, tensor["k"], state.codes, codes_at, state.scales, state.sums, group_at)
    return q4_row(arena, strip, tensor["k"], state.codes, codes_at, state.scales, state.sums, group_at)


@inlined
def strip_rows(state: State, tensor: Any, strip: int, source: Source, row: int) -> Rows:
    """The four rows from ``row``."""
    arena, format, floats_at = state.arena, tensor["format"], source.floats + row * source.stride
    if format == FORMAT_F32:
        return f32_rows(arena, strip, tensor["k"], state.buffers, floats_at, source.stride)
    if format == FORMAT_BF16:
        return bf16_rows(arena, strip, tensor["k"], state.buffers, floats_at, source.stride)
    codes_stride, group_stride = state.sizes[0]["codes_stride"], state.sizes[0]["group_stride"]
    codes_at, group_at = (source.first + row) * codes_stride, (source.first + row) * group_stride
    codes, scales, sums = state.codes, state.scales, state.sums
    if format == FORMAT_Q8:
        return q8_rows(arena, strip, tensor["k"], codes, codes_at, codes_stride, scales, sums, group_at, group_stride)
    return q4_rows(arena, strip, tensor["k"], codes, codes_at, codes_stride, scales, sums, group_at, group_stride)


@inlined
def silu(x: Vector) -> Vector:
    return x / (splat(1.0) + exponential(splat(0.0) - x))


@inlined
def finish(state: State, epilogue: int, bias: int, column: int, at: int, y: Vector) -> None:
    """Store the sixteen columns from ``column`` of one row at index ``at`` of the buffers."""
    if bias != NO_TENSOR:
        y = y + load(state.tables, state.tensors[bias]["table_at"] + column)
    if epilogue == Epilogue.ADD:
        y = load(state.buffers, at) + y
    store(state.buffers, at, y)


@kernel
def multiply(state: State, instruction: Any, worker: int, rows: int) -> None:
    """MATMUL and LOGITS: ``rows`` rows times the worker's strips of the weight, through the epilogue."""
    tensor, share = state.tensors[instruction["weight"]], state.shares[instruction["weight"], worker]
    source = source_of(state, instruction["src"], worker, rows)
    dst = state.buffer_at[instruction["dst"]] + instruction["dst_column"]
    stride = state.buffer_stride[instruction["dst"]]
    epilogue, bias = instruction["epilogue"], instruction["bias"]
    is_pair = epilogue == Epilogue.SILU_MUL
    step = 2 if is_pair else 1
    strip_bytes, together = tensor["strip_bytes"], rows // ROWS * ROWS
    for s in range(0, share["count"], step):
        strip = share["offset"] + s * strip_bytes
        column = (share["first"] + s) // step * TILE_N
        at = dst + column
        for row in range(0, together, ROWS):
            y0, y1, y2, y3 = strip_rows(state, tensor, strip, source, row)
            if is_pair:
                up0, up1, up2, up3 = strip_rows(state, tensor, strip + strip_bytes, source, row)
                y0, y1, y2, y3 = silu(y0) * up0, silu(y1) * up1, silu(y2) * up2, silu(y3) * up3
            finish(state, epilogue, bias, column, at, y0)
            finish(state, epilogue, bias, column, at + stride, y1)
            finish(state, epilogue, bias, column, at + 2 * stride, y2)
            finish(state, epilogue, bias, column, at + 3 * stride, y3)
            at += ROWS * stride
        for row in range(together, rows):
            y = strip_row(state, tensor, strip, source, row)
            if is_pair:
                y = silu(y) * strip_row(state, tensor, strip + strip_bytes, source, row)
            finish(state, epilogue, bias, column, at, y)
            at += stride
