"""What is the numba backend's own: its vectors, its one compiled function, its team."""

from __future__ import annotations

import gc
import threading
import time
from typing import Any

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from helpers import fill_slot
from programs import TINY, even_placement, make_executor, make_limits, matmul_program, random_program
from waferline_kernels.numba_backend import NumbaExecutor, vectors
from waferline_kernels.numba_backend.memory import MAX_INSTRUCTIONS
from waferline_kernels.numba_backend.rows import exponential, quantize_row
from waferline_kernels.numba_backend.step import run_worker
from waferline_kernels.numba_backend.vectors import (
    dot4,
    load,
    load_activations,
    load_codes,
    splat_int,
    store,
    to_floats,
)
from waferline_kernels.placement import Placement
from waferline_kernels.program import Program
from waferline_kernels.reference import matmul_quantized
from waferline_kernels.sequences import SPAN
from waferline_kernels.tiles import F32, GROUP, Q8, SUBGROUP, quantize_rows, unpack_matrix


def make(model: tuple[Program, dict[str, Any]], threads: int = 1) -> NumbaExecutor:
    executor = make_executor("numba", model[0], even_placement(model[0], threads), model[1], make_limits())
    assert isinstance(executor, NumbaExecutor)
    return executor


def team_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("waferline-worker")]


@settings(max_examples=40)
@given(
    n=st.integers(1, 70),
    k=st.integers(1, 300),
    rows=st.integers(1, 9),
    threads=st.integers(1, 3),
    seed=st.integers(0, 9),
)
def test_q8_matmul_equals_the_reference_for_any_shape(n: int, k: int, rows: int, threads: int, seed: int) -> None:
    program, weights = matmul_program(n, k, Q8, seed)
    executor = make((program, weights), threads)
    tokens = np.random.default_rng(seed).integers(0, n, rows)
    fill_slot(executor, 0, tokens.tolist())
    executor.run(program, np.array([(0, 0, rows, rows)], SPAN), 1)
    x = unpack_matrix(weights["embed"], n, k, F32)[tokens]
    expected = matmul_quantized(*quantize_rows(x, Q8.group), weights["matrix"], k, Q8)
    assert (executor.logits[:rows, :n] == expected[:, :n]).all()
    executor.close()


@given(values=st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=150), halves=st.booleans())
def test_quantised_rows_are_those_of_numpy(values: list[float], halves: bool) -> None:
    x = np.array([values], np.float32)
    if halves:  # every code a tie or a whole number
        x = np.rint(np.clip(x, -254, 254)) / np.float32(2)
        x[0, 0] = 127
    k = x.shape[1]
    padded = np.zeros(-(-k // 16) * 16, np.float32)
    padded[:k] = x[0]
    codes, scales, sums = np.ones(len(padded), np.int8), np.ones(2, np.float32), np.ones(8, np.int32)
    quantize_row(padded, 0, k, codes, 0, scales, sums, 0)
    expected_codes, expected_scales = quantize_rows(x, GROUP)
    groups = expected_scales.shape[1]
    assert (codes[:k] == expected_codes[0]).all()
    assert (codes[k:] == 0).all()
    assert (scales[:groups] == expected_scales[0]).all()
    expected_sums = [codes[begin : begin + SUBGROUP].sum(dtype=np.int64) for begin in range(0, k, SUBGROUP)]
    assert sums[: len(expected_sums)].tolist() == expected_sums


@pytest.mark.parametrize(
    "has_vnni", [pytest.param(True, marks=pytest.mark.skipif(not vectors.HAS_VNNI, reason="no VNNI")), False]
)
def test_dot4_is_exact_on_every_instruction_set(monkeypatch: pytest.MonkeyPatch, has_vnni: bool) -> None:
    monkeypatch.setattr(vectors, "HAS_VNNI", has_vnni)

    @numba.njit
    def dot(codes: Any, activations: Any, out: Any) -> None:
        store(out, 0, to_floats(dot4(splat_int(3), load_codes(codes, 0), load_activations(activations, 0))))

    rng = np.random.default_rng(0)
    for low, high in ((0, 256), (255, 256), (0, 1)):
        codes = rng.integers(low, high, 64).astype(np.uint8)
        for activations in (rng.integers(-127, 128, 4), np.full(4, -127), np.full(4, 127)):
            out = np.zeros(16, np.float32)
            dot(codes, activations.astype(np.int8), out)
            assert (out == codes.reshape(16, 4).astype(np.int64) @ activations + 3).all()


def test_the_exponential_is_within_two_ulp() -> None:
    @numba.njit
    def compute(x: Any, y: Any) -> None:
        for i in range(0, len(x), 16):
            store(y, i, exponential(load(x, i)))

    def exp(x: NDArray[np.float32]) -> NDArray[np.float32]:
        y = np.zeros_like(x)
        compute(x, y)
        return y

    x = np.linspace(-87.25, 88, 16 * 20_000).astype(np.float32)
    exact = np.exp(x.astype(np.float64))
    assert (np.abs(exp(x) - exact) <= 2 * np.spacing(exact.astype(np.float32))).all()
    special = np.array([0, -0.0, -87.4, -1e30, -np.inf, 100, np.inf, np.nan] * 2, np.float32)
    y = exp(special)[:8]
    assert y[:5].tolist() == [1, 1, 0, 0, 0]
    assert np.isfinite(y[5:7]).all()
    assert np.isnan(y[7])


def test_one_compiled_function_serves_every_executor() -> None:
    for format, threads in ((F32, 1), (Q8, 2)):
        make(random_program(TINY, format), threads).close()
    assert len(run_worker.signatures) == 1  # type: ignore[attr-defined]
    stats = run_worker.stats  # type: ignore[attr-defined]
    assert sum(stats.cache_hits.values()) + sum(stats.cache_misses.values()) == 1


def test_the_team_sleeps_between_runs_and_ends_with_the_executor() -> None:
    model = random_program(TINY, Q8)
    executor = make(model, 4)
    fill_slot(executor, 0, [1, 2, 3])
    executor.run(model[0], np.array([(0, 0, 3, 1)], SPAN), 5)
    assert len(team_threads()) == 3
    time.sleep(0.02)
    before = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before < 0.03
    executor.close()
    executor.close()
    assert team_threads() == []


def test_an_executor_that_is_dropped_ends_its_team() -> None:
    model = random_program(TINY, Q8)
    executor = make(model, 3)
    fill_slot(executor, 0, [1, 2, 3])
    executor.run(model[0], np.array([(0, 0, 3, 1)], SPAN), 5)
    del executor
    gc.collect()
    assert team_threads() == []


def test_a_run_that_is_refused_leaves_the_executor_usable() -> None:
    model = random_program(TINY, Q8)
    executor = make(model, 3)
    fill_slot(executor, 0, [1, TINY.vocab, 3])
    with pytest.raises(ValueError, match="slot 0 has a token id outside 0 to 130"):
        executor.run(model[0], np.array([(0, 0, 3, 1)], SPAN), 5)
    fill_slot(executor, 0, [1, 2, 3])
    assert executor.run(model[0], np.array([(0, 0, 3, 1)], SPAN), 5).num_steps == 5
    executor.close()


def test_weights_and_placements_that_do_not_fit_are_refused() -> None:
    program, weights = random_program(TINY, Q8)
    placement, limits = even_placement(program, 2), make_limits()
    for name in ("norm", "logits"):
        with pytest.raises(ValueError, match=rf"weights\['{name}'\]"):
            make_executor("numba", program, placement, weights | {name: weights[name][:, :-1]}, limits)
    assert team_threads() == []
    shares = placement.shares.copy()
    shares["offset"][program.tensor_id("logits"), 1] = placement.arena_bytes[1]
    with pytest.raises(ValueError, match="logits lie outside the arenas"):
        make_executor("numba", program, Placement(shares, placement.arena_bytes), weights, limits)
    shares = placement.shares.copy()
    shares["count"][program.tensor_id("logits"), 0] -= 1
    with pytest.raises(ValueError, match="logits's shares do not cover"):
        make_executor("numba", program, Placement(shares, placement.arena_bytes), weights, limits)


def test_a_program_that_is_not_the_executors_is_refused() -> None:
    model = random_program(TINY, Q8)
    executor, batch = make(model), np.array([(0, 0, 3, 1)], SPAN)
    fill_slot(executor, 0, [1, 2, 3])
    with pytest.raises(ValueError, match="its tensors are not those"):
        executor.run(random_program(TINY, Q8)[0], batch, 1)
    long = Program(TINY, model[0].tensors, np.repeat(model[0].instructions, MAX_INSTRUCTIONS))
    with pytest.raises(ValueError, match=f"expected at most {MAX_INSTRUCTIONS}"):
        executor.run(long, batch, 1)
    executor.close()
