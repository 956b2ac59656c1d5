"""The kernel table as data: the kernels of matmul, attention, rows and sampling that this machine can run.

The native rows are read from the table that the C executor dispatches by; tests hold each to the reference, and
``waferline bench kernels`` measures each. A kernel's name is its specification: ``matmul_q8_64x16_avx512``.
"""

from __future__ import annotations

from dataclasses import dataclass

from . import native
from .kv_cache import KV_FORMATS, KvFormat
from .tiles import FORMATS, TILE_K, TILE_N, TileFormat

ROW_OPERATIONS = ("rms_norm", "quantize", "max", "argmax", "exp_sum")
"""Those that read neither weights nor keys and values; the three last make up the sampling of a token."""


@dataclass(frozen=True)
class Kernel:
    """``format`` and ``tile`` are those of the weights, None and "" for a kernel that reads none; ``kv_format`` is that of
    the keys and values that ``attend`` reads."""

    operation: str
    format: TileFormat | None
    backend: str
    level: str | None  # the native backend's instruction set
    kv_format: KvFormat | None = None

    @property
    def tile(self) -> str:
        return f"{TILE_K}x{TILE_N}" if self.format else ""

    @property
    def target(self) -> str:
        """The instruction set, or the backend that has but one."""
        return self.level or self.backend

    @property
    def name(self) -> str:
        weights = (self.format.name, self.tile) if self.format else ()
        keys = (self.kv_format.name,) if self.kv_format else ()
        return "_".join((self.operation, *weights, *keys, self.target))


def kernel_table() -> tuple[Kernel, ...]:
    """Native kernels by level, lowest first, then numba's."""
    from .numba_backend.state import FORMATS as NUMBA_FORMATS  # here: it loads numba

    by_code = {format.code: format for format in FORMATS.values()}
    kv_by_code = {format.code: format for format in KV_FORMATS.values()}
    kernels = [
        Kernel(operation, None, "native", level, kv_by_code[code])
        if operation == "attend" and code is not None
        else Kernel(operation, None if code is None else by_code[code], "native", level)
        for level in (native.supported_levels() if native.is_available() else ())
        for operation, code in native.level_kernels(level)
    ]
    kernels += [Kernel("matmul", format, "numba", None) for format in NUMBA_FORMATS]
    kernels += [Kernel("attend", None, "numba", None, kv_format) for kv_format in KV_FORMATS.values()]
    kernels += [Kernel(operation, None, "numba", None) for operation in ROW_OPERATIONS]
    return tuple(kernels)
