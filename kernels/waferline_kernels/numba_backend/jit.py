"""How this backend compiles: kernels (Python that numba turns into machine code) and operations (LLVM IR by hand)."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
from llvmlite import ir
from numba.core import types
from numba.core.registry import cpu_target
from numba.extending import intrinsic

Function = TypeVar("Function", bound=Callable[..., Any])

_TRIPLE, HOST_CPU, _FEATURES = cpu_target.target_context.codegen().magic_tuple()
"""The processor that numba compiles for, as LLVM names it: this machine's, or what NUMBA_CPU_NAME says."""
HOST_FEATURES = frozenset(_FEATURES.split(","))
IS_X86 = _TRIPLE.startswith("x86_64")


def kernel(function: Function, **options: bool) -> Function:
    """Compile ``function`` when first called, to run without the GIL. Floats follow IEEE: no fast-math, no contraction.

    Kernels allocate nothing and the executor outlives its arrays, so they do without numba's counting of references, whose
    atomic operations on words that all workers share would cost more than a small strip. A kernel is not cached by
    itself: the cache of `step.run_worker` holds all that it calls.
    """
    jit: Callable[..., Callable[[Function], Any]] = numba.njit
    return cast(Function, jit(nogil=True, error_model="numpy", boundscheck=False, _nrt=False, **options)(function))


def inlined(function: Function) -> Function:
    """A kernel that is part of its callers: for small ones that take a `State`, whose arrays a call copies one by one."""
    return kernel(function, forceinline=True)


def operation(result: Any, *operands: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make ``emit(builder, *values)``, which builds LLVM IR, callable from kernels; of an array it gets the data pointer.

    ``result`` and ``operands`` are numba types; arguments are converted to them.
    """

    def decorate(emit: Callable[..., Any]) -> Callable[..., Any]:
        def define(typing_context: Any, *args: Any) -> Any:
            def generate(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> Any:
                plain = [
                    context.make_array(kind)(context, builder, value).data if isinstance(kind, types.Array) else value
                    for kind, value in zip(operands, values, strict=True)
                ]
                made = emit(builder, *plain)
                return context.get_dummy_value() if result is types.none else made

            return result(*operands), generate

        define.__name__, define.__doc__ = emit.__name__, emit.__doc__
        define.__signature__ = inspect.signature(emit)  # type: ignore[attr-defined]  # numba matches arguments to it
        return cast(Callable[..., Any], intrinsic(define))

    return decorate
