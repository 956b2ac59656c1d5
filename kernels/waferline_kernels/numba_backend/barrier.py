"""The barrier at which workers meet between instructions, and the sleep from which they are woken for a step.

A waiting worker spins briefly, then yields its core to whoever needs it, then dozes: so it is correct, if slower, with
more workers than cores. Numba has no atomics for the CPU; the few that are needed are written as LLVM IR.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numpy.typing import NDArray

from .jit import IS_X86, kernel, operation

SPINS = 1000  # some ten microseconds: the usual imbalance within a step
YIELDS = 5000  # some milliseconds
DOZE_MICROSECONDS = 50

# Words of the control array, each written by many workers on a cache line of its own.
GENERATION, ARRIVED = 0, 16
CONTROL_WORDS = 48

_I8, _I32, _I64, _WORDS = ir.IntType(8), ir.IntType(32), ir.IntType(64), types.int64[::1]
_IS_WINDOWS = os.name == "nt"


def _system_call(builder: Any, name: str, result: ir.Type, *args: ir.Value) -> Any:
    function = builder.module.globals.get(name) or ir.Function(
        builder.module, ir.FunctionType(result, [arg.type for arg in args]), name
    )
    return builder.call(function, args)


@operation(types.int64, _WORDS, types.intp)
def atomic_load(builder: Any, words: Any, index: Any) -> Any:
    return builder.load_atomic(builder.gep(words, [index]), "acquire", 8)


@operation(types.none, _WORDS, types.intp, types.int64)
def atomic_store(builder: Any, words: Any, index: Any, value: Any) -> None:
    builder.store_atomic(value, builder.gep(words, [index]), "release", 8)


@operation(types.int64, _WORDS, types.intp, types.int64)
def atomic_add(builder: Any, words: Any, index: Any, value: Any) -> Any:
    """Add, and return what was there before."""
    return builder.atomic_rmw("add", builder.gep(words, [index]), value, "acq_rel")


@operation(types.none)
def pause(builder: Any) -> None:
    """Tell the core that this is a spin loop."""
    if IS_X86:
        builder.call(
            builder.module.declare_intrinsic("llvm.x86.sse2.pause", fnty=ir.FunctionType(ir.VoidType(), [])), []
        )


@operation(types.none)
def yield_core(builder: Any) -> None:
    _system_call(builder, "SwitchToThread" if _IS_WINDOWS else "sched_yield", _I32)


@operation(types.none)
def doze(builder: Any) -> None:
    if _IS_WINDOWS:
        _system_call(builder, "Sleep", ir.VoidType(), _I32(1))
    else:
        _system_call(builder, "usleep", _I32, _I32(DOZE_MICROSECONDS))


@operation(types.int64, types.int64)
def read_byte(builder: Any, descriptor: Any) -> Any:
    """Sleep until the file descriptor has a byte, and take it: 1, or what ``read`` says of an interruption or error."""
    size = _I32 if _IS_WINDOWS else _I64
    byte = cgutils.alloca_once(builder, _I8)
    name = "_read" if _IS_WINDOWS else "read"
    taken = _system_call(builder, name, size, builder.trunc(descriptor, _I32), byte, size(1))
    return builder.sext(taken, _I64) if _IS_WINDOWS else taken


@kernel
def wait_to_be_woken(descriptor: int) -> None:
    while read_byte(descriptor) != 1:
        doze()


@kernel
def barrier(control: NDArray[np.int64], num_workers: int, spins: int) -> None:
    """Return when all workers have called it; what each wrote before is then seen by all. ``spins`` before yielding."""
    if num_workers == 1:
        return
    generation = atomic_load(control, GENERATION)
    if atomic_add(control, ARRIVED, 1) == num_workers - 1:
        atomic_store(control, ARRIVED, 0)
        atomic_store(control, GENERATION, generation + 1)
        return
    waited = 0
    while atomic_load(control, GENERATION) == generation:
        waited += 1
        if waited < spins:
            pause()
        elif waited < spins + YIELDS:
            yield_core()
        else:
            doze()
