"""The sample instruction of every executor against its numpy statement, and the statement against what it promises."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers import TARGETS, fill_slot
from programs import even_placement, make_executor, make_limits, matmul_program
from waferline_kernels.executor import Executor
from waferline_kernels.philox import uniform
from waferline_kernels.sampling import log_softmax, penalized_logits, sample_token
from waferline_kernels.sequences import SPAN, SamplingRules, SequenceTable
from waferline_kernels.tiles import F32, pack_matrix

VOCAB = 83
PROGRAM, WEIGHTS = matmul_program(VOCAB, 8, F32)
TOKENS = st.integers(0, VOCAB - 1)
PARAMETERS = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 0.3, 1.0, 3.0]),
        "top_k": st.sampled_from([0, 1, 5, 82, 1000]),
        "top_p": st.sampled_from([1.0, 0.9, 0.5, 1e-6]),
        "min_p": st.sampled_from([0.0, 0.1, 1.0]),
        "presence_penalty": st.sampled_from([0.0, 0.7, -2.0]),
        "frequency_penalty": st.sampled_from([0.0, 0.4, -1.0]),
        "repetition_penalty": st.sampled_from([1.0, 1.5, 0.8]),
        "min_tokens": st.sampled_from([0, 6]),
        "stop_ids": st.lists(TOKENS, max_size=5),
        "logit_bias": st.dictionaries(TOKENS, st.sampled_from([-100.0, -0.3, 0.7, 5.0]), max_size=5),
        "allowed_ids": st.none() | st.lists(TOKENS, min_size=1, max_size=40),
        "bad_words": st.lists(st.lists(TOKENS, min_size=1, max_size=3), max_size=6),
        "completion_index": st.integers(0, 3),
        "seed": st.integers(0, 2**64 - 1),
        "num_prompt_tokens": st.sampled_from([1, 4]),
    }
)


@pytest.fixture(scope="module", params=TARGETS)
def executor(request: pytest.FixtureRequest) -> Any:
    made = make_executor(str(request.param), PROGRAM, even_placement(PROGRAM, 1), WEIGHTS, make_limits())
    yield made
    made.close()


def sample(executor: Executor, tokens: list[int], **sampling: Any) -> tuple[np.void, np.ndarray]:
    """One step over the last of ``tokens``: its entry and the logits it was sampled from."""
    fill_slot(executor, 0, tokens, **sampling)
    executor.run(PROGRAM, np.array([(0, len(tokens) - 1, 1, 1)], SPAN), 1)
    return executor.ring.drain()[0], executor.logits[0, :VOCAB].copy()


@given(PARAMETERS, st.lists(TOKENS, min_size=4, max_size=20))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_token_is_the_one_that_numpy_states(
    executor: Executor, sampling: dict[str, Any], tokens: list[int]
) -> None:
    entry, logits = sample(executor, tokens, **sampling)
    rules = executor.sequences.rules(0)
    expected = sample_token(logits, rules, np.array(tokens, np.int32))
    if entry["token"] != expected:
        # Both computed the same distribution; a draw at its very edge may fall to either side of rounding.
        z = penalized_logits(logits, rules, np.array(tokens, np.int32))
        weights = np.exp((z - z.max()) / max(sampling["temperature"], 1e-9)).astype(np.float64)
        assert weights[[expected, entry["token"]]].min() < 1e-6 * weights.sum()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("target", TARGETS)
def test_greedy_takes_the_lowest_of_the_largest_wherever_they_lie(target: str, threads: int) -> None:
    vocab = 163
    program, weights = matmul_program(vocab, 8, F32)
    weights["embed"] = pack_matrix(np.ones((vocab, 8), np.float32), F32)
    for largest in ([7], [162], [130, 90], [161, 2, 66], [70, 6], range(vocab)):
        rows = np.full((vocab, 8), -1e38, np.float32)  # whose sum is -infinity
        rows[list(largest)] = -3
        weights["matrix"] = pack_matrix(rows, F32)
        executor = make_executor(target, program, even_placement(program, threads), weights, make_limits())
        fill_slot(executor, 0, [3])
        executor.run(program, np.array([(0, 0, 1, 1)], SPAN), 1)
        assert executor.ring.drain()["token"].tolist() == [min(largest)]
        executor.close()


@pytest.mark.parametrize("target", TARGETS)
def test_many_rows_of_a_large_vocabulary_take_the_lowest_of_the_largest(target: str) -> None:
    """Kernels search it part by part."""
    rows, vocab = 40, 4000
    program, weights = matmul_program(vocab, 8, F32)
    columns = np.random.default_rng(3).standard_normal((vocab // 2, 8)).astype(np.float32)
    weights["matrix"] = pack_matrix(np.concatenate((columns, columns)), F32)  # each logit occurs twice
    limits = make_limits(max_num_seqs=rows, max_num_batched_tokens=rows, max_num_logits=rows)
    executor = make_executor(target, program, even_placement(program, 1), weights, limits)
    for slot in range(rows):
        fill_slot(executor, slot, [slot])
    executor.run(program, np.array([(slot, 0, 1, 1) for slot in range(rows)], SPAN), 1)
    tokens = executor.ring.drain()["token"]
    assert tokens.tolist() == executor.logits[:rows, :vocab].argmax(axis=1).tolist()
    assert len(set(tokens.tolist())) > rows // 2
    executor.close()


@pytest.mark.parametrize("num_logprobs", [0, 1, 20])
def test_logprobs_are_those_of_the_raw_logits(executor: Executor, num_logprobs: int) -> None:
    entry, logits = sample(executor, [3, 9], num_logprobs=num_logprobs, temperature=0.7, presence_penalty=1.0, seed=4)
    expected = log_softmax(logits)
    order = np.argsort(-logits, kind="stable")
    assert entry["num_top"] == num_logprobs
    assert entry["logprob"] == pytest.approx(expected[entry["token"]], abs=1e-5)
    assert entry["rank"] == 1 + order.tolist().index(entry["token"])
    assert entry["top_ids"][:num_logprobs].tolist() == order[:num_logprobs].tolist()
    np.testing.assert_allclose(entry["top_logprobs"][:num_logprobs], expected[order[:num_logprobs]], atol=1e-5)


def test_prompt_tokens_are_scored(executor: Executor) -> None:
    tokens = [3, 9, 27, 81]
    fill_slot(executor, 0, tokens, num_prompt_logprobs=2)
    executor.run(PROGRAM, np.array([(0, 0, 4, 4)], SPAN), 1)
    entries, logits = executor.ring.drain(), executor.logits[:4, :VOCAB]
    assert entries["is_prompt"].tolist() == [1, 1, 1, 0]
    assert entries["position"].tolist() == [1, 2, 3, 4]
    assert entries["token"][:3].tolist() == tokens[1:]
    assert entries["num_top"].tolist() == [2, 2, 2, -1]
    for row in range(3):
        assert entries["logprob"][row] == pytest.approx(log_softmax(logits[row])[tokens[row + 1]], abs=1e-5)


def empty_rules(vocab: int) -> SamplingRules:
    return SequenceTable.allocate(make_limits(), vocab).rules(0)


def test_what_the_statement_promises() -> None:
    logits = np.array([1.0, 3.0, 3.0, 2.0, -1.0], np.float32)
    rules = empty_rules(len(logits))
    params = rules.params
    params["top_p"] = params["repetition_penalty"] = 1
    none = np.zeros(0, np.int32)
    assert sample_token(logits, rules, none) == 1  # ties go to the lowest id
    params["temperature"] = 1
    draws = {(k, p, m): set() for k, p, m in [(2, 1.0, 0), (0, 0.5, 0), (0, 1.0, 0.3), (0, 1.0, 0)]}
    for top_k, top_p, min_p in draws:
        params["top_k"], params["top_p"], params["min_p"] = top_k, top_p, min_p
        for seed in range(300):
            params["seed"] = seed
            draws[top_k, top_p, min_p].add(sample_token(logits, rules, none))
    assert draws[2, 1.0, 0] == {1, 2}
    assert draws[0, 0.5, 0] == {1, 2}
    assert draws[0, 1.0, 0.3] == {1, 2, 3}
    assert draws[0, 1.0, 0] == {0, 1, 2, 3, 4}


def test_penalties_mean_what_they_say() -> None:
    logits = np.array([2.0, -2.0, 1.0, 1.0], np.float32)
    rules = empty_rules(len(logits))
    params = rules.params
    params["repetition_penalty"], params["presence_penalty"], params["frequency_penalty"] = 2.0, 0.5, 0.25
    params["num_prompt_tokens"] = 1
    penalized = penalized_logits(logits, rules, np.array([0, 1, 2, 2], np.int32))
    assert penalized.tolist() == [1.0, -4.0 - 0.75, 0.5 - 1.0, 1.0]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_no_numbers_crash_nothing(executor: Executor, value: float) -> None:
    weights = {name: array.copy() for name, array in WEIGHTS.items()}
    weights["matrix"].view(np.float32)[:] = value
    other = make_executor(_target(executor), PROGRAM, even_placement(PROGRAM, 1), weights, make_limits())
    try:
        for sampling in ({}, {"temperature": 1.0}, {"temperature": 1.0, "top_k": 3, "top_p": 0.9}, {"num_logprobs": 3}):
            entry, _ = sample(other, [3], **sampling)
            assert 0 <= entry["token"] < VOCAB
    finally:
        other.close()


@pytest.mark.parametrize("sampling", [{}, {"top_p": 0.9}, {"top_k": 50}, {"min_p": 0.01}, {"repetition_penalty": 1.5}])
@pytest.mark.parametrize("temperature", [0.0, 1.0, 1e-38])
def test_a_logit_that_is_no_number_is_never_drawn(
    executor: Executor, sampling: dict[str, Any], temperature: float
) -> None:
    weights = {name: array.copy() for name, array in WEIGHTS.items()}
    weights["matrix"].view(np.float32).reshape(-1, 8, 16)[1, :, 3] = np.nan  # of token 19
    other = make_executor(_target(executor), PROGRAM, even_placement(PROGRAM, 1), weights, make_limits())
    try:
        for seed in range(20):
            sampling |= {"temperature": temperature, "seed": seed, "allowed_ids": range(5, VOCAB)}
            entry, logits = sample(other, [3], **sampling)
            assert np.isnan(logits[19])
            assert entry["token"] == sample_token(logits, other.sequences.rules(0), np.array([3], np.int32))
            assert entry["token"] >= 5
            assert entry["token"] != 19
    finally:
        other.close()


@pytest.mark.parametrize("sampling", [{}, {"top_p": 0.9}, {"min_p": 0.01}])
def test_of_logits_that_became_infinite_the_first_is_taken(executor: Executor, sampling: dict[str, Any]) -> None:
    """By a penalty, or by a very small temperature."""
    _, logits = sample(executor, [3, 7])
    positive = np.flatnonzero(logits > 0)[3:9].tolist()
    sampling = sampling | {"temperature": 1.0, "repetition_penalty": 1e-40, "allowed_ids": range(3, VOCAB)}
    entry, _ = sample(executor, [*reversed(positive), 3], **sampling)
    rules = executor.sequences.rules(0)
    expected = sample_token(executor.logits[0, :VOCAB], rules, np.array([*reversed(positive), 3], np.int32))
    assert entry["token"] == expected
    entry, logits = sample(executor, [3], **(sampling | {"temperature": 1e-40, "repetition_penalty": 1.0}))
    assert entry["token"] == 3 + np.flatnonzero(logits[3:] > 0)[0]


def test_logits_that_the_temperature_takes_to_minus_infinity_leave_the_lowest_allowed(executor: Executor) -> None:
    weights = {name: array.copy() for name, array in WEIGHTS.items()}
    weights["matrix"].view(np.float32)[:] = -1e4
    weights["embed"].view(np.float32)[:] = 1.0
    other = make_executor(_target(executor), PROGRAM, even_placement(PROGRAM, 1), weights, make_limits())
    try:
        entry, logits = sample(other, [3], temperature=1e-38, allowed_ids=range(5, VOCAB), num_logprobs=2)
        assert logits.max() < -1
        assert entry["token"] == 5
    finally:
        other.close()


def test_a_draw_at_the_end_of_the_sum_is_no_token_of_no_weight(target: str) -> None:
    """The sum that a draw is a share of is added up in another order than the walk to it."""
    vocab, nearly_one = 16384, 28_841_929  # a seed that draws 1 - 2e-8
    assert uniform(nearly_one, 0, 1) > 1 - 1e-7
    program, weights = matmul_program(vocab, 1, F32)
    weights["embed"] = pack_matrix(np.ones((vocab, 1), np.float32), F32)
    for seed in range(12):
        row = np.random.default_rng(seed).standard_normal(vocab).astype(np.float32)
        row[-1] = row.max() - 80
        weights["matrix"] = pack_matrix(row[:, None], F32)
        executor = make_executor(target, program, even_placement(program, 1), weights, make_limits())
        try:
            fill_slot(executor, 0, [1], temperature=1.0, seed=nearly_one)
            executor.run(program, np.array([(0, 0, 1, 1)], SPAN), 1)
            [entry] = executor.ring.drain()
            assert entry["token"] < vocab - 1
        finally:
            executor.close()


def _target(executor: Executor) -> str:
    return f"native-{executor.level}" if executor.name == "native" else executor.name
