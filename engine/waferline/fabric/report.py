"""The residency report: how many bytes of a model lie with each core, and in which level of its memory they stay."""

from __future__ import annotations

from collections.abc import Iterator

from waferline_kernels.placement import Placement
from waferline_kernels.program import Program

from .host import Host, probe_host

MB = 1e6


def resident_level(host: Host, bytes_per_core: int, bytes_total: int) -> str:
    """The nearest level that holds a sweep whole: "L2", "L3" or, where none does, "DRAM".

    Caches evict what a larger sweep brings in before it comes round again, so a level that holds a part holds nothing.
    """
    for cache in host.caches:
        if bytes_per_core <= cache.bytes_per_core and bytes_total <= cache.bytes_total:
            return cache.name
    return "DRAM"


def residency(program: Program, placement: Placement) -> str:
    """One line: the bytes a step sweeps, and where they stay.

    >>> residency(program, placement)
    '2.6 MB of weights a step, 1.3 MB per core over 2 cores, resident in L3'
    """
    largest, total = max(placement.arena_bytes), program.swept_bytes
    cores = placement.num_workers
    share = f", {largest / MB:.1f} MB per core over {cores} cores" if cores > 1 else " on one core"
    return f"{total / MB:.1f} MB of weights a step{share}, resident in {resident_level(probe_host(), largest, total)}"


def residency_lines(program: Program, placement: Placement) -> Iterator[str]:
    """The report in full: the caches, each core's arena, and what the KV cache and the program add."""
    host = probe_host()
    caches = ", ".join(f"{c.name} {c.bytes_total / MB:.1f} MB" for c in host.caches) or "unknown"
    yield f"cores      {len(host.cpus)} available; data caches over them: {caches}"
    yield f"sweep      {residency(program, placement)}"
    for worker, size in enumerate(placement.arena_bytes):
        strips = int(placement.shares["count"][:, worker].sum())
        yield f"worker {worker}   {size / MB:.1f} MB, {strips} strips"
    yield f"KV cache   {program.dims.kv_block_bytes} bytes a block of 16 tokens"
