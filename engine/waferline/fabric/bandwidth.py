"""The bandwidth that a sweep over weights can reach: the limit that tokens per second are held against."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from waferline_kernels import native
from waferline_kernels.tiles import TileFormat

MACS_PER_TIMING = 50_000_000  # of each thread
BARRIERS_PER_TIMING = 2000
USUAL_BARRIER_SECONDS = 0.4e-6
REPEATS = 5


def read_seconds(footprint: int, threads: int, cpus: tuple[int, ...] | None, sweeps: int) -> float:
    """Seconds that ``threads`` threads take to read ``footprint`` bytes, each its own share, ``sweeps`` times over."""
    if native.is_available():
        return native.measure_read(threads, cpus, footprint, sweeps)
    return _numpy_read(footprint, threads, sweeps)  # its threads are not pinned


def _numpy_read(footprint: int, threads: int, sweeps: int) -> float:
    parts = [np.ones(max(1, footprint // threads // 8), np.uint64) for _ in range(threads)]

    def sweep(part: np.ndarray[tuple[int], np.dtype[np.uint64]]) -> None:
        for _ in range(sweeps):
            part.sum()

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(sweep, parts))  # once unmeasured, into the caches
        return _seconds(lambda: list(pool.map(sweep, parts)))


def measure_peak(format: TileFormat, threads: int, cpus: tuple[int, ...] | None, level: str | None = None) -> float:
    """Multiply-adds a second of ``threads`` threads on operands in registers, with the dot product that the instruction
    set ``level`` (default: the one in force) has for weights of ``format``; without the native backend, those of
    numpy's float32 matmul, which reaches nearly all that the processor does."""
    if native.is_available():
        level = native.choose_level(level)
        return max(native.measure_peak(threads, cpus, format, MACS_PER_TIMING, level) for _ in range(REPEATS))
    a = np.ones((512, 512), np.float32)
    return float(a.size * 512 / min(_seconds(lambda: a @ a) for _ in range(REPEATS)))


def measure_barrier(threads: int, cpus: tuple[int, ...] | None) -> float:
    """Seconds that ``threads`` threads take to meet; where the native backend is not there to tell, what is usual."""
    if not native.is_available():
        return USUAL_BARRIER_SECONDS
    return min(native.measure_barrier(threads, cpus, BARRIERS_PER_TIMING) for _ in range(REPEATS))


def _seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin
