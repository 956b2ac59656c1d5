"""The numba executor's cuts and draws where they are hard: equal and masked logits, large vocabularies, no numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from helpers import fill_slot
from programs import even_placement, make_executor, make_limits
from waferline_kernels.executor import Executor, empty_entries
from waferline_kernels.program import Buffer, Dims, Op, Program, ProgramBuilder
from waferline_kernels.ring import Finish
from waferline_kernels.sampling import sample_token, score
from waferline_kernels.sequences import NO_LOGPROBS, SPAN

VOCABS = (33, 1000, 50_000)

Sampler = Callable[[int], tuple[Executor, Program]]


@pytest.fixture(scope="module")
def sampler() -> Iterator[Sampler]:
    """For a vocabulary's size, an executor and the program that only samples."""
    made: dict[int, tuple[Executor, Program]] = {}
    with ExitStack() as stack:

        def make(vocab: int) -> tuple[Executor, Program]:
            if vocab not in made:
                build = ProgramBuilder(Dims(hidden=16, layers=1, heads=1, kv_heads=1, head_dim=2, ffn=16, vocab=vocab))
                build.emit(Op.SAMPLE, Buffer.LOGITS, Buffer.LOGITS, k=vocab, n=vocab)
                program = build.build()
                executor = make_executor("numba", program, even_placement(program, 1), {}, make_limits())
                stack.callback(executor.close)
                made[vocab] = executor, program
            return made[vocab]

        yield make


def sample(sampler: Sampler, logits: NDArray[np.float32], tokens: list[int], **params: Any) -> np.void:
    """The entry of the token that follows ``tokens``, sampled from ``logits``."""
    executor, program = sampler(len(logits))
    executor.logits[0, : len(logits)] = logits
    fill_slot(executor, 0, tokens, **params)
    executor.run(program, np.array([(0, len(tokens) - 1, 1, 1)], SPAN), 1)
    (entry,) = executor.ring.drain()
    return entry


def make_logits(vocab: int, seed: int, scale: float, step: float, num_masked: int) -> NDArray[np.float32]:
    """Random logits; rounded to multiples of ``step``, where there is one, they have many equals."""
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal(vocab).astype(np.float32) * np.float32(scale)
    if step:
        logits = np.rint(logits / np.float32(step)) * np.float32(step)
    logits[rng.integers(0, vocab, num_masked)] = -np.inf
    return logits


@settings(max_examples=300)
@given(
    vocab=st.sampled_from(VOCABS[:2]),
    seed=st.integers(0, 2**32 - 1),
    scale=st.sampled_from([0.0, 0.1, 1.0, 5.0, 60.0]),
    step=st.sampled_from([0.0, 0.5]),
    num_masked=st.sampled_from([0, 20]),
    num_tokens=st.integers(1, 40),
    num_prompt=st.integers(1, 40),
    params=st.fixed_dictionaries(
        {
            "temperature": st.sampled_from([0.0, 0.3, 1.0, 2.5]),
            "top_k": st.sampled_from([0, 0, 1, 2, 40, 999, 5000]),
            "top_p": st.sampled_from([1.0, 1.0, 0.95, 0.5, 0.01]),
            "min_p": st.sampled_from([0.0, 0.0, 0.05, 1.0]),
            "presence_penalty": st.sampled_from([0.0, 0.0, 1.5, -2.0]),
            "frequency_penalty": st.sampled_from([0.0, 0.0, 0.7]),
            "repetition_penalty": st.sampled_from([1.0, 1.0, 1.3, 0.6]),
            "min_tokens": st.sampled_from([0, 10]),
            "seed": st.integers(0, 2**64 - 1),
            "completion_index": st.integers(0, 3),
            "num_logprobs": st.sampled_from([NO_LOGPROBS, 0, 1, 20]),
            "stop_ids": st.sampled_from([[], [0], [1, 2, 30]]),
        }
    ),
)
def test_a_token_is_the_one_that_numpy_states(
    sampler: Sampler,
    vocab: int,
    seed: int,
    scale: float,
    step: float,
    num_masked: int,
    num_tokens: int,
    num_prompt: int,
    params: dict[str, Any],
) -> None:
    logits = make_logits(vocab, seed, scale, step, num_masked)
    tokens = np.random.default_rng(seed + 1).integers(0, min(vocab, 60), num_tokens).astype(np.int32)
    params["num_prompt_tokens"] = min(num_prompt, num_tokens)
    entry = sample(sampler, logits, tokens.tolist(), **params)
    rules = sampler(vocab)[0].sequences.rules(0)
    expected = empty_entries(1)[0]
    expected["slot"], expected["position"], expected["token"] = 0, num_tokens, sample_token(logits, rules, tokens)
    expected["num_top"] = NO_LOGPROBS
    if expected["token"] in params["stop_ids"]:
        expected["finish"] = Finish.STOP
    if params["num_logprobs"] != NO_LOGPROBS:
        score(logits, int(expected["token"]), params["num_logprobs"], expected)
    for field in ("slot", "position", "token", "is_prompt", "finish", "num_top", "rank", "top_ids"):
        np.testing.assert_array_equal(entry[field], expected[field], err_msg=field)
    for field in ("logprob", "top_logprobs"):
        np.testing.assert_allclose(entry[field], expected[field], rtol=1e-5, atol=1e-5, err_msg=field)


@pytest.mark.parametrize("scale", [0.0, 1.0, 8.0])
@pytest.mark.parametrize("params", [{}, {"top_p": 0.9}, {"top_k": 49_999}, {"top_k": 50, "top_p": 0.95, "min_p": 0.01}])
def test_a_large_vocabulary(sampler: Sampler, scale: float, params: dict[str, Any]) -> None:
    logits = make_logits(VOCABS[2], 7, scale, 0.0, 0)
    for seed in range(5):
        entry = sample(sampler, logits, [1, 2, 3], temperature=1.0, seed=seed, **params)
        rules = sampler(len(logits))[0].sequences.rules(0)
        assert entry["token"] == sample_token(logits, rules, np.array([1, 2, 3], np.int32))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("share", [0.1, 1.0])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("params", [{}, {"top_k": 5, "top_p": 0.9, "min_p": 0.1}, {"repetition_penalty": 1.2}])
def test_logits_that_are_not_numbers_still_give_a_token(
    sampler: Sampler, value: float, share: float, temperature: float, params: dict[str, Any]
) -> None:
    logits = make_logits(1000, 5, 1.0, 0.0, 0)
    logits[: int(share * 1000)] = value
    entry = sample(sampler, logits, [1, 2], temperature=temperature, num_logprobs=20, **params)
    assert 0 <= entry["token"] < 1000
    assert ((entry["top_ids"] >= 0) & (entry["top_ids"] < 1000)).all()
    if share < 1 and not value > 0:
        assert entry["token"] >= 100
