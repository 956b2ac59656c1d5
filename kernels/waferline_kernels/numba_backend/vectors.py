"""Sixteen lanes, the width of a strip, as values that kernels compute with; LLVM splits them to the machine's registers.

The q8 dot product is carried by

    vpdpbusd zmm      AVX512-VNNI: 64 multiply-adds an instruction, activations broadcast from memory
    pmaddwd           any other x86: codes widened to 16 bits in two halves, 8 to 32 multiply-adds an instruction
    smull and the like elsewhere, as LLVM finds them in the same IR

Measured on one Zen 4 core at batch 1, with scales for groups of 64: 80 GB/s of q8 weights from L2 and 67 from L3 with the
first, 39 and 46 with the second; plain 32-bit multiplies reach 27.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.core.typing.templates import ConcreteTemplate, infer_global, signature
from numba.extending import lower_builtin, models, register_model

from ..tiles import MAX_SUBSCALE, TILE_N
from .jit import HOST_FEATURES, operation

Vector = Any  # to the type checker; numba knows FLOATS from INTS

I1, I8, I16, I32, F32, F64 = (
    ir.IntType(1),
    ir.IntType(8),
    ir.IntType(16),
    ir.IntType(32),
    ir.FloatType(),
    ir.DoubleType(),
)
HAS_VNNI = "+avx512vnni" in HOST_FEATURES


class LanesType(types.Type):
    def __init__(self, name: str, element: ir.Type) -> None:
        self.element = element
        super().__init__(name=name)


FLOATS = LanesType("float32x16", F32)
INTS = LanesType("int32x16", I32)
FLOAT_ARRAY, BYTE_ARRAY, CODE_ARRAY = types.float32[::1], types.uint8[::1], types.int8[::1]


@register_model(LanesType)
class LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, lanes: LanesType) -> None:
        super().__init__(manager, lanes, lanes_of(lanes.element))  # type: ignore[no-untyped-call]


def lanes_of(element: ir.Type, count: int = TILE_N) -> ir.VectorType:
    return ir.VectorType(element, count)


def every_lane(element: ir.Type, value: float, count: int = TILE_N) -> ir.Constant:
    return ir.Constant(lanes_of(element, count), [value] * count)


def _register_operator(function: Any, instructions: dict[LanesType, str]) -> None:
    class Template(ConcreteTemplate):
        cases = [signature(lanes, lanes, lanes) for lanes in instructions]  # noqa: RUF012

    infer_global(function)(Template)
    for lanes, instruction in instructions.items():

        def lower(context: Any, builder: Any, sig: Any, args: Any, instruction: str = instruction) -> Any:
            return getattr(builder, instruction)(*args)

        lower_builtin(function, lanes, lanes)(lower)


_register_operator(operator.add, {FLOATS: "fadd", INTS: "add"})
_register_operator(operator.sub, {FLOATS: "fsub"})
_register_operator(operator.mul, {FLOATS: "fmul", INTS: "mul"})
_register_operator(operator.truediv, {FLOATS: "fdiv"})


def _broadcast(builder: ir.IRBuilder, x: ir.Value) -> ir.Value:
    nothing = ir.Constant(lanes_of(x.type), ir.Undefined)
    return builder.shuffle_vector(builder.insert_element(nothing, x, I32(0)), nothing, every_lane(I32, 0))


def _load(builder: ir.IRBuilder, data: ir.Value, index: ir.Value, kind: ir.Type) -> ir.Value:
    value = builder.load(builder.bitcast(builder.gep(data, [index]), kind.as_pointer()))
    value.align = 1
    return value


def _store(builder: ir.IRBuilder, data: ir.Value, index: ir.Value, value: ir.Value) -> None:
    builder.store(value, builder.bitcast(builder.gep(data, [index]), value.type.as_pointer())).align = 1


def _fold(builder: ir.IRBuilder, x: ir.Value, combine: Callable[[ir.Value, ir.Value], ir.Value]) -> ir.Value:
    """Fold the upper half of the lanes onto the lower one until one lane is left: one tree on every machine."""
    nothing = ir.Constant(x.type, ir.Undefined)
    for width in (8, 4, 2, 1):
        upper = ir.Constant(lanes_of(I32), [(lane + width) % TILE_N for lane in range(TILE_N)])
        x = combine(x, builder.shuffle_vector(x, nothing, upper))
    return builder.extract_element(x, I32(0))


@operation(FLOATS, types.float32)
def splat(builder: Any, x: Any) -> Any:
    return _broadcast(builder, x)


@operation(INTS, types.int32)
def splat_int(builder: Any, x: Any) -> Any:
    return _broadcast(builder, x)


@operation(FLOATS, FLOAT_ARRAY, types.intp)
def load(builder: Any, data: Any, index: Any) -> Any:
    return _load(builder, data, index, lanes_of(F32))


@operation(FLOATS, FLOAT_ARRAY, types.intp)
def load_splat(builder: Any, data: Any, index: Any) -> Any:
    """The float at ``index``, in every lane."""
    return _broadcast(builder, _load(builder, data, index, F32))


@operation(types.none, FLOAT_ARRAY, types.intp, FLOATS)
def store(builder: Any, data: Any, index: Any, value: Any) -> None:
    _store(builder, data, index, value)


@operation(FLOATS, BYTE_ARRAY, types.intp)
def load_weights(builder: Any, data: Any, index: Any) -> Any:
    """The 64 bytes at byte ``index`` as float32."""
    return _load(builder, data, index, lanes_of(F32))


@operation(FLOATS, BYTE_ARRAY, types.intp)
def load_scales(builder: Any, data: Any, index: Any) -> Any:
    """The 32 bytes at byte ``index``, bfloat16, as float32."""
    bits = builder.zext(_load(builder, data, index, lanes_of(I16)), lanes_of(I32))
    return builder.bitcast(builder.shl(bits, every_lane(I32, 16)), lanes_of(F32))


@operation(types.float32, BYTE_ARRAY, types.intp)
def float32_at(builder: Any, data: Any, index: Any) -> Any:
    return _load(builder, data, index, F32)


@operation(types.float32, BYTE_ARRAY, types.intp)
def bfloat16_at(builder: Any, data: Any, index: Any) -> Any:
    bits = builder.zext(_load(builder, data, index, I16), I32)
    return builder.bitcast(builder.shl(bits, I32(16)), F32)


@operation(INTS, BYTE_ARRAY, types.intp)
def load_codes(builder: Any, data: Any, index: Any) -> Any:
    """The line at byte ``index``, the four bytes of a column in a lane."""
    return _load(builder, data, index, lanes_of(I32))


@operation(INTS, INTS)
def flip_signs(builder: Any, x: Any) -> Any:
    """Signed bytes plus 128, as unsigned ones."""
    return builder.xor(x, every_lane(I32, 0x80808080))


@operation(INTS, BYTE_ARRAY, types.intp, types.intp)
def load_subscales(builder: Any, data: Any, index: Any, shift: Any) -> Any:
    """The nibbles of the 16 bytes at byte ``index``, those ``shift`` bits up, as subscales -8..-1, 1..8."""
    wide = builder.zext(_load(builder, data, index, lanes_of(I8)), lanes_of(I32))
    nibbles = builder.and_(builder.lshr(wide, _broadcast(builder, builder.trunc(shift, I32))), every_lane(I32, 15))
    below = builder.sub(nibbles, every_lane(I32, MAX_SUBSCALE))
    is_positive = builder.icmp_signed(">=", below, every_lane(I32, 0))
    return builder.add(below, builder.zext(is_positive, lanes_of(I32)))


@operation(INTS, INTS)
def low_nibbles(builder: Any, x: Any) -> Any:
    return builder.and_(x, every_lane(I32, 0x0F0F0F0F))


@operation(INTS, INTS)
def high_nibbles(builder: Any, x: Any) -> Any:
    return builder.and_(builder.lshr(x, every_lane(I32, 4)), every_lane(I32, 0x0F0F0F0F))


@operation(FLOATS, INTS)
def even_bfloat16(builder: Any, x: Any) -> Any:
    return builder.bitcast(builder.shl(x, every_lane(I32, 16)), lanes_of(F32))


@operation(FLOATS, INTS)
def odd_bfloat16(builder: Any, x: Any) -> Any:
    return builder.bitcast(builder.and_(x, every_lane(I32, 0xFFFF0000)), lanes_of(F32))


@operation(types.none, BYTE_ARRAY, types.intp, types.float32)
def store_float32(builder: Any, data: Any, index: Any, x: Any) -> None:
    _store(builder, data, index, x)


@operation(types.none, BYTE_ARRAY, types.intp, types.float32)
def store_bfloat16(builder: Any, data: Any, index: Any, x: Any) -> None:
    """The nearest bfloat16, ties to even, and finite: tiles.bfloat16_bits."""
    bits = builder.bitcast(x, I32)
    odd = builder.and_(builder.lshr(bits, I32(16)), I32(1))
    magnitude = builder.add(builder.add(builder.and_(bits, I32(0x7FFFFFFF)), I32(0x7FFF)), odd)
    is_finite = builder.icmp_unsigned("<", magnitude, I32(0x7F800000))
    magnitude = builder.select(is_finite, builder.lshr(magnitude, I32(16)), I32(0x7F7F))
    sign = builder.and_(builder.lshr(bits, I32(16)), I32(0x8000))
    _store(builder, data, index, builder.trunc(builder.or_(sign, magnitude), I16))


@operation(FLOATS, INTS, types.int32)
def bfloat16_of(builder: Any, x: Any, number: Any) -> Any:
    """The first or second bfloat16 of each lane, as float32."""
    shift = _broadcast(builder, builder.mul(builder.sub(I32(1), number), I32(16)))
    return builder.bitcast(builder.and_(builder.shl(x, shift), every_lane(I32, 0xFFFF0000)), lanes_of(F32))


@operation(FLOATS, INTS, types.int32)
def signed_byte(builder: Any, x: Any, number: Any) -> Any:
    """Byte ``number`` of each lane, signed, as a float."""
    shift = _broadcast(builder, builder.sub(I32(24), builder.mul(number, I32(8))))
    return builder.sitofp(builder.ashr(builder.shl(x, shift), every_lane(I32, 24)), lanes_of(F32))


@operation(INTS, CODE_ARRAY, types.intp)
def load_activations(builder: Any, data: Any, index: Any) -> Any:
    """The 4 activation codes at ``index``, in every lane."""
    return _broadcast(builder, _load(builder, data, index, I32))


@operation(INTS, INTS, INTS, INTS)
def dot4(builder: Any, sums: Any, codes: Any, activations: Any) -> Any:
    """``sums`` plus, in each lane, the exact dot product of four unsigned codes and four signed activations."""
    words, halves, products = lanes_of(I32), lanes_of(I16, 2 * TILE_N), lanes_of(I32, 2 * TILE_N)
    if HAS_VNNI:
        vpdpbusd = builder.module.declare_intrinsic(
            "llvm.x86.avx512.vpdpbusd.512", fnty=ir.FunctionType(words, [words] * 3)
        )
        return builder.call(vpdpbusd, [sums, codes, activations])
    # Even and odd bytes, widened to 16 bits; then the shape of pmaddwd: multiply, and add neighbours.
    codes, activations = builder.bitcast(codes, halves), builder.bitcast(activations, halves)
    byte = every_lane(I16, 8, 2 * TILE_N)
    even = (builder.and_(codes, every_lane(I16, 255, 2 * TILE_N)), builder.ashr(builder.shl(activations, byte), byte))
    odd = (builder.lshr(codes, byte), builder.ashr(activations, byte))
    nothing = ir.Constant(products, ir.Undefined)
    for weights, factors in (even, odd):
        product = builder.mul(builder.sext(weights, products), builder.sext(factors, products))
        first, second = (
            builder.shuffle_vector(product, nothing, ir.Constant(words, list(range(side, 2 * TILE_N, 2))))
            for side in (0, 1)
        )
        sums = builder.add(sums, builder.add(first, second))
    return sums


@operation(types.none, BYTE_ARRAY, types.intp)
def prefetch(builder: Any, data: Any, index: Any) -> None:
    """Ask for the cache line of byte ``index``, which may lie beyond the array."""
    address = builder.gep(data, [index])
    kind = ir.FunctionType(ir.VoidType(), [address.type, I32, I32, I32])
    builder.call(
        builder.module.declare_intrinsic("llvm.prefetch", [address.type], kind), [address, I32(0), I32(3), I32(1)]
    )


@operation(FLOATS, INTS)
def to_floats(builder: Any, x: Any) -> Any:
    return builder.sitofp(x, lanes_of(F32))


@operation(INTS, FLOATS)
def to_ints(builder: Any, x: Any) -> Any:
    """Truncate; ``x`` lies well within int32."""
    return builder.fptosi(x, lanes_of(I32))


@operation(FLOATS, FLOATS)
def power_of_two(builder: Any, n: Any) -> Any:
    """2^n for whole ``n`` of -126 to 127."""
    biased = builder.add(builder.fptosi(n, lanes_of(I32)), every_lane(I32, 127))
    return builder.bitcast(builder.shl(biased, every_lane(I32, 23)), lanes_of(F32))


@operation(types.none, CODE_ARRAY, types.intp, INTS)
def store_bytes(builder: Any, data: Any, index: Any, value: Any) -> None:
    _store(builder, data, index, builder.trunc(value, lanes_of(I8)))


@operation(FLOATS, FLOATS, FLOATS, FLOATS, FLOATS)
def where_less(builder: Any, x: Any, limit: Any, yes: Any, no: Any) -> Any:
    """``yes`` where ``x < limit``, else ``no`` (a NaN is not less)."""
    return builder.select(builder.fcmp_ordered("<", x, limit), yes, no)


@operation(FLOATS, FLOATS, types.intp)
def first_lanes(builder: Any, x: Any, count: Any) -> Any:
    """``x`` in the first ``count`` lanes, -inf in the others."""
    lanes = ir.Constant(lanes_of(I32), list(range(TILE_N)))
    kept = builder.icmp_signed("<", lanes, _broadcast(builder, builder.trunc(count, I32)))
    return builder.select(kept, x, every_lane(F32, float("-inf")))


@operation(FLOATS, FLOATS)
def without_nan(builder: Any, x: Any) -> Any:
    """``x`` with -inf for NaN."""
    return builder.select(builder.fcmp_ordered("ord", x, x), x, every_lane(F32, float("-inf")))


@operation(types.int32, FLOATS, FLOATS)
def count_less(builder: Any, a: Any, b: Any) -> Any:
    """In how many lanes ``a < b``."""
    return _fold(builder, builder.zext(builder.fcmp_ordered("<", a, b), lanes_of(I32)), builder.add)


@operation(INTS, INTS, FLOATS)
def larger_magnitude(builder: Any, bits: Any, x: Any) -> Any:
    """The larger of ``bits`` and the bits of ``abs(x)``: for magnitudes the integers' order, with NaN above infinity."""
    magnitude = builder.and_(builder.bitcast(x, lanes_of(I32)), every_lane(I32, 0x7FFFFFFF))
    return builder.select(builder.icmp_signed(">", magnitude, bits), magnitude, bits)


@operation(types.float32, INTS)
def largest_magnitude(builder: Any, bits: Any) -> Any:
    """The largest lane, as the float32 whose bits it holds."""

    def larger(a: Any, b: Any) -> Any:
        return builder.select(builder.icmp_signed(">", b, a), b, a)

    return builder.bitcast(_fold(builder, bits, larger), F32)


@operation(types.float32, FLOATS)
def sum_lanes(builder: Any, x: Any) -> Any:
    return _fold(builder, x, builder.fadd)


@operation(types.float64, FLOATS)
def sum_lanes_float64(builder: Any, x: Any) -> Any:
    return _fold(builder, builder.fpext(x, lanes_of(F64)), builder.fadd)


@operation(types.int32, INTS)
def sum_lanes_int(builder: Any, x: Any) -> Any:
    return _fold(builder, x, builder.add)


@operation(types.float32, FLOATS)
def max_lanes(builder: Any, x: Any) -> Any:
    def larger(a: Any, b: Any) -> Any:
        return builder.select(builder.fcmp_ordered(">", b, a), b, a)

    return _fold(builder, x, larger)


@operation(types.float32, FLOATS)
def first_lane(builder: Any, x: Any) -> Any:
    return builder.extract_element(x, I32(0))
