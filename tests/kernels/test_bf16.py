"""Weights in bf16 on ``amx``: the order of its sums as architecture.md states it, whatever rows run together."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from helpers import LEVELS, fill_slot
from programs import Weights, even_placement, make_executor, make_limits, matmul_program
from waferline_kernels.program import Program
from waferline_kernels.sequences import SPAN
from waferline_kernels.tiles import BF16, F32, bfloat16_bits, bfloat16_to_float32, pack_matrix, unpack_matrix

pytestmark = pytest.mark.skipif("amx" not in LEVELS, reason="needs AMX")
STEP = 32  # K of one tdpbf16ps
Floats = NDArray[np.float32]


def amx_products(program: Program, weights: Weights, rows: int, chunk: int, threads: int = 1) -> Floats:
    """Rows 0 .. rows - 1 of the embedding times the matrix, ``chunk`` rows a step."""
    limits = make_limits(max_num_seqs=1, max_model_len=rows + 1, max_num_batched_tokens=chunk, max_num_logits=chunk)
    executor = make_executor("native-amx", program, even_placement(program, threads), weights, limits)
    try:
        fill_slot(executor, 0, list(range(rows)))
        parts = []
        for start in range(0, rows, chunk):
            count = min(chunk, rows - start)
            executor.run(program, np.array([(0, start, count, count)], SPAN), 1)
            executor.ring.drain()
            parts.append(executor.logits[:count, : program.dims.vocab].copy())
        return np.concatenate(parts)
    finally:
        executor.close()


def without_denormals(x: Floats) -> Floats:
    return np.where(np.abs(x) < np.finfo(np.float32).tiny, np.float32(0), x)


def nearest_bfloat16(x: Floats) -> Floats:
    return without_denormals(bfloat16_to_float32(bfloat16_bits(without_denormals(x))))


def stated_products(x: Floats, weight: Floats) -> Floats:
    """x [rows, K] times weight [N, K], K a multiple of STEP. Products and sums in extended precision round but once."""
    upper = nearest_bfloat16(x)
    halves = (upper, nearest_bfloat16(without_denormals(x) - upper))
    w = without_denormals(weight)[None].astype(np.longdouble)  # [1, N, K]
    total = np.zeros((len(x), len(weight)), np.float32)
    for start in range(0, x.shape[1], STEP):
        for half in halves:
            chains = []
            for odd in (0, 1):
                chain = np.zeros_like(total)
                for k in range(start + odd, start + STEP, 2):
                    chain = without_denormals((chain + half[:, k, None] * w[:, :, k]).astype(np.float32))
                chains.append(chain)
            total = without_denormals(total + without_denormals(chains[0] + chains[1]))
    return total


@pytest.mark.parametrize("exponents", [(0, 1), (-6, 6), (-60, 55), (-75, -55)], ids=str)
def test_sums_are_made_in_the_stated_order(exponents: tuple[int, int]) -> None:
    """From ordinary numbers to very large ones and to products that are denormal, and so nothing."""
    n, k, rows = 24, 320, 7
    rng = np.random.default_rng(5)
    x, weight = (
        (rng.standard_normal((n, k)) * 2.0 ** rng.integers(*exponents, (n, k))).astype(np.float32) for _ in range(2)
    )
    program, weights = matmul_program(n, k, BF16)
    weights |= {"embed": pack_matrix(x, F32), "matrix": pack_matrix(weight, BF16)}
    expected = stated_products(x[:rows], unpack_matrix(weights["matrix"], n, k, BF16))
    assert np.isfinite(expected).all()
    assert (amx_products(program, weights, rows, rows) == expected).all()


@pytest.mark.parametrize("k", [288, 599])
def test_a_row_is_the_same_alone_and_among_many(k: int) -> None:
    """Beyond two tiles of rows K goes in blocks; beyond 256 rows and 32 strips those do too."""
    program, weights = matmul_program(600, k, BF16)
    whole = amx_products(program, weights, 280, 280, threads=2)
    for chunk, rows in ((1, 3), (20, 40), (33, 66), (270, 280)):
        assert (amx_products(program, weights, rows, chunk) == whole[:rows]).all()


def test_what_follows_a_short_strip_is_not_read_as_weights() -> None:
    program, weights = matmul_program(32, 40, BF16)
    expected = amx_products(program, weights, 3, 3)
    weights["matrix"][1] = 0xFF  # columns 16 to 31: NaNs
    products = amx_products(program, weights, 3, 3)
    assert (products[:, :16] == expected[:, :16]).all()
    assert np.isnan(products[:, 16:]).all()


def test_a_step_may_want_no_logits() -> None:
    program, weights = matmul_program(16, 32, BF16)
    executor = make_executor("native-amx", program, even_placement(program, 1), weights, make_limits())
    try:
        fill_slot(executor, 0, [1, 2, 3])
        assert executor.run(program, np.array([(0, 0, 2, 0)], SPAN), 1).num_steps == 1
    finally:
        executor.close()
