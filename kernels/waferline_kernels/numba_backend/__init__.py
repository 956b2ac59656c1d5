"""The numba executor: the kernels JIT-compiled, for machines without a C compiler or not x86.

Kernels compute with sixteen-lane vectors (`vectors`), so they read like the native ones and vectorise the same way; one
compiled function (`step.run_worker`) holds them all and is cached on disk. Worker 0 is the caller of `run`; the others
are threads that sleep in that function, without the GIL, until a step begins.
"""

from .executor import NumbaExecutor

__all__ = ["NumbaExecutor"]
