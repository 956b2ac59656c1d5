"""Rounding with error feedback: less lost where inputs go together, and nothing changed where they do not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from waferline_kernels.gptq import error_feedback, round_with_feedback
from waferline_kernels.tiles import GROUP, Q4, pack_matrix, q4_steps, strip_scales, unpack_matrix


def output_error(packed: NDArray[np.uint8], weight: NDArray[np.float32], x: NDArray[np.float32]) -> float:
    n, k = weight.shape
    return float(np.square(x @ (unpack_matrix(packed, n, k, Q4) - weight).T).mean())


@given(n=st.integers(1, 40), k=st.integers(1, 300), seed=st.integers(0, 99))
@settings(max_examples=20)
def test_inputs_that_do_not_go_together_change_nothing(n: int, k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    weight = rng.standard_t(3, (n, k)).astype(np.float32)
    weight[rng.integers(n)] = 0
    packed = pack_matrix(weight, Q4)
    for diagonal in (rng.uniform(0, 9, k), np.zeros(k), np.full(k, 1e30)):
        feedback = error_feedback(np.diag(diagonal).astype(np.float32))
        np.testing.assert_array_equal(round_with_feedback(packed, weight, feedback), packed)


@pytest.mark.parametrize(("n", "k"), [(48, 64), (20, 300), (7, 36)])
def test_less_is_lost_on_inputs_that_go_together(n: int, k: int) -> None:
    rng = np.random.default_rng(k)
    weight = rng.standard_normal((n, k)).astype(np.float32)
    mixed = rng.standard_normal((k // 4, k)) * rng.uniform(0.1, 3, k)
    x, unseen = (
        (rng.standard_normal((2000, k // 4)) @ mixed + 0.3 * rng.standard_normal((2000, k))).astype(np.float32)
        for _ in range(2)
    )
    packed = pack_matrix(weight, Q4)
    rounded = round_with_feedback(packed, weight, error_feedback(x.T @ x))
    np.testing.assert_array_equal(strip_scales(rounded, k, Q4), strip_scales(packed, k, Q4))
    np.testing.assert_array_equal(q4_steps(rounded, k), q4_steps(packed, k))
    for inputs in (x, unseen):
        assert output_error(rounded, weight, inputs) < 0.5 * output_error(packed, weight, inputs)


def test_the_worked_example() -> None:
    weight = np.float32([[0.4, 0.4, -8]])
    packed = pack_matrix(weight, Q4)
    np.testing.assert_array_equal(unpack_matrix(packed, 1, 3, Q4), [[0, 0, -8]])
    hessian = np.float32([[1, 1, 0], [1, 1, 0], [0, 0, 1]])
    rounded = round_with_feedback(packed, weight, error_feedback(hessian))
    np.testing.assert_array_equal(unpack_matrix(rounded, 1, 3, Q4), [[1, 0, -8]])


def test_steps_are_what_codes_are_counted_in() -> None:
    weight = np.random.default_rng(0).standard_normal((18, 2 * GROUP + 40)).astype(np.float32)
    packed = pack_matrix(weight, Q4)
    steps = q4_steps(packed, weight.shape[1])[:18].repeat(32, axis=1)[:, : weight.shape[1]]
    codes = unpack_matrix(packed, *weight.shape, Q4) / steps
    np.testing.assert_array_equal(codes, np.clip(np.rint(weight / steps), -8, 7))


def test_inputs_that_are_not_finite() -> None:
    with pytest.raises(ValueError, match="hessian: holds NaN or infinity"):
        error_feedback(np.full((4, 4), np.inf, np.float32))
