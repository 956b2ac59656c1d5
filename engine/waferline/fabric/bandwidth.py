"""The bandwidth that a sweep over weights can reach: the limit that tokens per second are held against."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from waferline_kernels import native

BYTES_PER_TIMING = 400e6  # swept in one timing: long enough to drown the clock and the team's start
REPEATS = 5


def measure_bandwidth(footprint: int, threads: int, cpus: tuple[int, ...] | None = None) -> float:
    """Bytes a second of a plain prefetched read by ``threads`` threads, each over its own share of ``footprint`` bytes.

    The best of five timings: a limit is what the machine can do, and everything else on it only takes away. With the
    native backend the read is its kernels'; without it, numpy's reduction.
    """
    read = _native_read if native.is_available() else _numpy_read
    sweeps = max(1, int(BYTES_PER_TIMING / footprint))
    return footprint * sweeps / min(read(footprint, threads, cpus, sweeps) for _ in range(REPEATS))


def _native_read(footprint: int, threads: int, cpus: tuple[int, ...] | None, sweeps: int) -> float:
    return native.measure_read(threads, cpus, footprint, sweeps)


def _numpy_read(footprint: int, threads: int, cpus: tuple[int, ...] | None, sweeps: int) -> float:
    del cpus  # numpy's threads are not pinned
    parts = [np.ones(max(1, footprint // threads // 8), np.uint64) for _ in range(threads)]

    def sweep(part: np.ndarray[tuple[int], np.dtype[np.uint64]]) -> None:
        for _ in range(sweeps):
            part.sum()

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(sweep, parts))
        return _seconds(lambda: list(pool.map(sweep, parts)))


def _seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin
