"""Residency: in which cores and at which level each tensor of a program lies, on the host or on a wafer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from waferline_kernels.placement import Placement
from waferline_kernels.program import Program
from waferline_kernels.tiles import TILE_K

from .host import CacheLevel
from .placement import execution_order
from .spec import FabricSpec

DRAM = "DRAM"


@dataclass(frozen=True)
class Place:
    """Where a tensor's ``bytes`` lie: over ``cores`` cores, ``fullest_bytes`` with the one that has most of them."""

    bytes: int
    cores: int
    fullest_bytes: int


@dataclass(frozen=True)
class Residency:
    """``places``: by tensor id, of the matrices. ``kv_cores``: that share each layer's keys and values."""

    places: dict[int, Place]
    cores: int
    cores_used: int
    kv_cores: int
    level: str


def resident_level(levels: tuple[CacheLevel, ...], bytes_per_core: int, bytes_total: int) -> str:
    """The nearest level that holds a sweep whole: "L2", "L3" or, where none does, "DRAM".

    Caches evict what a larger sweep brings in before it comes round again, so a level that holds a part holds nothing.
    """
    for level in levels:
        if bytes_per_core <= level.bytes_per_core and bytes_total <= level.bytes_total:
            return level.name
    return DRAM


def host_residency(program: Program, placement: Placement, fabric: FabricSpec) -> Residency:
    """Of a placement on this machine: its workers are the cores, and a step's whole sweep decides on the level."""
    places = {}
    for tensor in execution_order(program):
        sizes = placement.shares["count"][tensor].astype(np.int64) * program.tensors[tensor].strip_bytes
        places[tensor] = Place(int(sizes.sum()), int(np.count_nonzero(sizes)), int(sizes.max()))
    level = resident_level(fabric.levels, max(placement.swept_bytes(program)), program.swept_bytes)
    workers = placement.num_workers
    return Residency(places, workers, workers, workers, level)


def fill_cores(program: Program, fabric: FabricSpec) -> Residency:
    """Fill core after core with tiles in execution order, as software-managed SRAM is filled; what is left keeps KV.

    With 48,888 bytes a core and q8 tiles of 1,040 bytes (scales included), 47 tiles fill one: a matrix of 2048 x 2048
    (4,096 tiles) lies over 88 cores, or 89 where it begins in one that is part full. Raises ValueError for a program
    that the fabric does not hold.
    """
    [sram] = fabric.levels
    places, cores_used, free = {}, 1, sram.bytes_per_core  # free: of the core being filled
    for tensor in execution_order(program):
        spec = program.tensors[tensor]
        tiles = spec.num_strips * -(-spec.k // TILE_K)
        tile_bytes = -(-spec.nbytes // tiles)
        per_core = sram.bytes_per_core // tile_bytes
        here = min(tiles, free // tile_bytes)
        further = -(-(tiles - here) // per_core)
        most = max(here, min(tiles - here, per_core))
        places[tensor] = Place(spec.nbytes, further + (here > 0), most * tile_bytes)
        last = tiles - here - (further - 1) * per_core
        free = sram.bytes_per_core - last * tile_bytes if further else free - here * tile_bytes
        cores_used += further
    if cores_used > fabric.cores:
        raise ValueError(
            f"fabric: {fabric.name} has {fabric.cores} cores, and {cores_used} would be needed for the model's "
            f"{program.swept_bytes / 1e9:.1f} GB of weights"
        )
    kv_cores = max(1, (fabric.cores - cores_used) // program.dims.layers)
    return Residency(places, fabric.cores, cores_used, kv_cores, sram.name)
