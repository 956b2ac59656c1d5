"""The Placement: where each strip of each matrix lies, and so which worker computes it.

Worker ``w`` owns the strips ``[first, first + count)`` of a tensor, one after the other from byte ``offset`` of its
arena. Offsets follow execution order, so that a step is one linear sweep of each arena.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .program import Program

SHARE = np.dtype([("first", np.int32), ("count", np.int32), ("offset", np.int64)])


@dataclass(frozen=True)
class Placement:
    shares: NDArray[np.void]  # SHARE [num_tensors][num_workers]
    arena_bytes: tuple[int, ...]  # of each worker
    cpus: tuple[int, ...] | None = None  # the CPU each worker is pinned to; None leaves that to the system

    @property
    def num_workers(self) -> int:
        return len(self.arena_bytes)

    def swept_bytes(self, program: Program) -> tuple[int, ...]:
        """Of each worker's arena, from its beginning to the end of the last strip that a step of ``program`` sweeps."""
        ends = [0] * self.num_workers
        for tensor in program.swept_tensors:
            for worker, share in enumerate(self.shares[tensor]):
                end = int(share["offset"]) + int(share["count"]) * program.tensors[tensor].strip_bytes
                ends[worker] = max(ends[worker], end)
        return tuple(ends)


def check_placement(program: Program, placement: Placement) -> None:
    """Raise ValueError unless every strip has one place inside its worker's arena, a gate's beside its up's, and every
    worker a CPU where any has."""
    if placement.cpus is not None and len(placement.cpus) != placement.num_workers:
        raise ValueError(f"placement.cpus: {placement.cpus}, expected one for each of {placement.num_workers} workers")
    for tensor, shares in zip(program.tensors, placement.shares, strict=True):
        ends = shares["offset"] + shares["count"].astype(np.int64) * tensor.strip_bytes
        firsts = np.concatenate([[0], np.cumsum(shares["count"])])
        if (firsts[:-1] != shares["first"]).any() or firsts[-1] != tensor.num_strips:
            raise ValueError(f"placement: {tensor.name}'s shares do not cover its {tensor.num_strips} strips in order")
        if tensor.interleaved and (shares["count"] % 2).any():
            raise ValueError(f"placement: the shares of {tensor.name} part strips that are multiplied in pairs")
        if (shares["offset"] < 0).any() or (ends > np.array(placement.arena_bytes)).any():
            raise ValueError(f"placement: the shares of {tensor.name} lie outside the arenas")
