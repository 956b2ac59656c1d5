"""Planning a Placement: which worker owns which strips, and where they lie in its arena."""

from __future__ import annotations

import numpy as np

from waferline_kernels.placement import SHARE, Placement
from waferline_kernels.program import Op, Program
from waferline_kernels.tiles import ALIGNMENT, round_up

from .host import probe_host

MAX_THREADS = 256

# What a second worker must save to be worth its barriers. The figures only have to be right within a factor of two:
# where the two sides are near, the choice hardly matters.
SWEPT_BYTES_PER_SECOND = 40e9  # of weights in one core's L2, attention and all between included: 26 to 62 measured
BARRIER_SECONDS = 0.4e-6
BARRIERS_PER_INSTRUCTION = 0.7


def choose_threads(program: Program, available: int) -> int:
    """Workers for a program: 1 where the barriers of a step would cost more than sharing the sweep saves."""
    saved = program.swept_bytes / SWEPT_BYTES_PER_SECOND / 2
    spent = len(program.instructions) * BARRIERS_PER_INSTRUCTION * BARRIER_SECONDS
    return available if available > 1 and saved > spent else 1


def check_threads(threads: int) -> None:
    """Raise ValueError for a number of threads that no placement can have, TypeError for what is no number of them."""
    if not isinstance(threads, int) or isinstance(threads, bool):
        raise TypeError(f"threads: {threads!r}, expected an integer")
    if not 1 <= threads <= MAX_THREADS:
        raise ValueError(f"threads: {threads}, expected 1 to {MAX_THREADS}")


def plan_placement(program: Program, threads: int | None = None, cpus: tuple[int, ...] | None = None) -> Placement:
    """Share each matrix's strips evenly among ``threads`` workers, in execution order.

    ``threads`` defaults to the CPUs of this process, or 1 for a program too small to share. Raises ValueError for a
    number outside 1 to 256.
    """
    if threads is None:
        threads = choose_threads(program, len(probe_host().cpus))
    check_threads(threads)
    shares = np.zeros((len(program.tensors), threads), SHARE)
    arena_bytes = [0] * threads
    for index in execution_order(program):
        tensor = program.tensors[index]
        unit = 2 if tensor.interleaved else 1  # a gate strip and its up strip belong together
        for worker in range(threads):
            first, end = (tensor.num_strips // unit * (worker + side) // threads * unit for side in (0, 1))
            shares[index, worker] = (first, end - first, arena_bytes[worker])
            arena_bytes[worker] += round_up((end - first) * tensor.strip_bytes, ALIGNMENT)
    return Placement(shares, tuple(arena_bytes), cpus)


def execution_order(program: Program) -> list[int]:
    """Ids of the matrices in the order in which a step sweeps them, then those that it only gathers rows from."""
    gathered = program.instructions["weight"][program.instructions["op"] == Op.EMBED].tolist()
    return list(dict.fromkeys([*program.swept_tensors, *gathered]))
