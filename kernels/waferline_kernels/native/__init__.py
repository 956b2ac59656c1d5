"""The native executor: C micro-kernels for each instruction-set level and a team of pinned threads, bound by Cython.

Absent where the package was installed without a C compiler; ``unavailable_reason`` says so.
"""

from __future__ import annotations

_IMPORT_ERROR = ""
try:
    import waferline_kernels.native._native  # noqa: F401  by its full name: its absence is then told as just that
except ImportError as error:
    _IMPORT_ERROR = str(error)
else:
    from .executor import (
        NativeExecutor,
        choose_level,
        level_kernels,
        measure_barrier,
        measure_peak,
        measure_read,
        pack_matrix,
        supported_levels,
    )


def is_available() -> bool:
    return not _IMPORT_ERROR


def unavailable_reason() -> str:
    return f"its native extension was not built or does not load ({_IMPORT_ERROR})"


__all__ = [
    "NativeExecutor",
    "choose_level",
    "is_available",
    "level_kernels",
    "measure_barrier",
    "measure_peak",
    "measure_read",
    "pack_matrix",
    "supported_levels",
    "unavailable_reason",
]
