"""Residency: strips of a placement counted per core, and a wafer filled core after core."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from waferline.fabric.curve import BandwidthCurve
from waferline.fabric.host import CacheLevel
from waferline.fabric.placement import choose_threads, plan_placement
from waferline.fabric.residency import fill_cores, host_residency, resident_level
from waferline.fabric.spec import FabricSpec, Links, wse3
from waferline.model.load import load_model
from waferline_kernels.program import Buffer, Dims, Op, Program, ProgramBuilder, TensorSpec
from waferline_kernels.tiles import F32, FORMATS, Q8, TileFormat

LEVELS = (CacheLevel("L1", 32_000, 64_000), CacheLevel("L2", 1_000_000, 2_000_000))
CURVE = BandwidthCurve((1,), (1e9,))


def fabric(cores: int, bytes_per_core: int) -> FabricSpec:
    sram = CacheLevel("SRAM", bytes_per_core, cores * bytes_per_core)
    return FabricSpec("wafer", cores, (sram,), CURVE, dict.fromkeys(FORMATS, 1e12), Links())


def matrices(*shapes: tuple[int, int], format: TileFormat = Q8) -> Program:
    build = ProgramBuilder(Dims(hidden=64, layers=1, heads=1, kv_heads=1, head_dim=2, ffn=1, vocab=16))
    for index, (n, k) in enumerate(shapes):
        weight = build.tensor(TensorSpec(f"m{index}", n, k, format))
        build.emit(Op.MATMUL, Buffer.X, Buffer.X, weight=weight, k=k, n=n)
    return build.build()


def test_levels_by_share_and_by_sum() -> None:
    assert resident_level(LEVELS, 32_000, 64_000) == "L1"
    assert resident_level(LEVELS, 32_001, 50_000) == "L2"
    assert resident_level(LEVELS, 900_000, 2_000_001) == "DRAM"
    assert resident_level((), 1, 1) == "DRAM"


def test_a_placement_s_fullest_core() -> None:
    program = load_model(Path(__file__).parents[1] / "fixtures" / "untied", "q4").program
    placement = plan_placement(program, 2)
    host = replace(fabric(2, 1), name="host", levels=LEVELS)
    found = host_residency(program, placement, host)
    assert found.cores == found.cores_used == 2
    for tensor, place in found.places.items():
        spec = program.tensors[tensor]
        assert place.bytes == spec.nbytes
        assert place.fullest_bytes == spec.strip_bytes * placement.shares["count"][tensor].max()
    assert {program.tensors[t].name for t in found.places} == {s.name for s in program.tensors if not s.is_table}


@pytest.mark.parametrize(("hidden", "threads"), [(64, 1), (576, 2)])
def test_a_program_too_small_to_share_has_one_worker(hidden: int, threads: int) -> None:
    layers = matrices(*[(4 * hidden, hidden)] * 8)
    assert choose_threads(layers, available=2) == threads
    assert choose_threads(layers, available=1) == 1


def test_the_worked_example() -> None:
    found = fill_cores(matrices((2048, 2048)), wse3())
    assert (found.places[0].cores, found.cores_used) == (88, 88)
    assert found.places[0].fullest_bytes == 47 * 1040


def test_matrices_share_the_core_on_which_they_meet() -> None:
    """f32 tiles of 4,096 bytes, two to a core: 3 tiles over 2 cores, then 2 tiles over the half left and one more."""
    found = fill_cores(matrices((48, 64), (32, 64), format=F32), fabric(9, 8192))
    assert [(place.cores, place.fullest_bytes) for place in found.places.values()] == [(2, 8192), (2, 4096)]
    assert (found.cores_used, found.kv_cores) == (3, 6)


def test_what_does_not_fit_is_said() -> None:
    with pytest.raises(ValueError, match="wafer has 2 cores, and 3 would be needed"):
        fill_cores(matrices((48, 64), (32, 64), format=F32), fabric(2, 8192))


@given(st.lists(st.tuples(st.integers(1, 200), st.integers(1, 300)), min_size=1, max_size=6), st.integers(5000, 40000))
def test_filling_holds_every_tile_once(shapes: list[tuple[int, int]], bytes_per_core: int) -> None:
    program = matrices(*shapes)
    found = fill_cores(program, fabric(10_000, bytes_per_core))
    total = 0
    for place in found.places.values():
        assert place.fullest_bytes <= bytes_per_core
        assert place.fullest_bytes * place.cores >= place.bytes
        total += place.bytes
    assert total == program.swept_bytes
    assert sum(place.cores for place in found.places.values()) <= found.cores_used + len(shapes) - 1
    largest_tile = max(-(-spec.nbytes // (spec.num_strips * -(-spec.k // 64))) for spec in program.tensors)
    assert found.cores_used <= 1 + total / (bytes_per_core - largest_tile) * 1.3 + len(shapes)
