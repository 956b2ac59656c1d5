"""Each sampling parameter by itself: every executor against what it means in numpy, and against its distribution."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import TARGETS, fill_slot
from programs import even_placement, make_executor, make_limits, matmul_program
from waferline_kernels.constraints import (
    MAX_BAD_WORD_TOKENS,
    MAX_LOGIT_BIAS,
    pack_allowed_ids,
    pack_bad_words,
    pack_constraints,
    unpack_allowed_ids,
)
from waferline_kernels.executor import Executor, StopReason
from waferline_kernels.ring import Finish
from waferline_kernels.sampling import sample_token
from waferline_kernels.sequences import SPAN
from waferline_kernels.tiles import F32

VOCAB = 83
PROGRAM, WEIGHTS = matmul_program(VOCAB, 8, F32)
NUM_SLOTS = 50


@pytest.fixture(scope="module", params=["reference", *TARGETS])
def executor(request: pytest.FixtureRequest) -> Iterator[Executor]:
    made = make_executor(
        str(request.param), PROGRAM, even_placement(PROGRAM, 1), WEIGHTS, make_limits(max_num_seqs=NUM_SLOTS)
    )
    yield made
    made.close()


@pytest.fixture(scope="module")
def logits_after(executor: Executor) -> np.ndarray:
    """float32 [VOCAB, VOCAB]: the logits after each token. The model looks at no other."""
    rows = []
    for token in range(VOCAB):
        run(executor, [token], 1)
        rows.append(executor.logits[0, :VOCAB].copy())
    return np.array(rows)


def run(executor: Executor, prompt: list[int], max_steps: int, **sampling: Any) -> list[int]:
    """The completion of ``prompt`` in one run of at most ``max_steps`` steps."""
    fill_slot(executor, 0, prompt, **sampling)
    executor.run(PROGRAM, np.array([(0, len(prompt) - 1, 1, 1)], SPAN), max_steps)
    tokens: list[int] = executor.ring.drain()["token"].tolist()
    return tokens


def check_distribution(executor: Executor, expected: np.ndarray, varied: str = "seed", **sampling: Any) -> None:
    """Draw 2,000 tokens after token 3; chi-square within five standard deviations of its mean."""
    table, drawn, draws = executor.sequences, [], 2000
    for slot in range(NUM_SLOTS):
        fill_slot(executor, slot, [3], **{"temperature": 1.0, **sampling})
    for first in range(0, draws, NUM_SLOTS):
        table.num_tokens[:] = 1
        table.sampling[varied] = np.arange(first, first + NUM_SLOTS)
        executor.run(PROGRAM, np.array([(slot, 0, 1, 1) for slot in range(NUM_SLOTS)], SPAN), 1)
        drawn += executor.ring.drain()["token"].tolist()
    counts = np.bincount(drawn, minlength=VOCAB)
    possible = expected > 0
    assert counts[~possible].sum() == 0
    freedom = np.count_nonzero(possible) - 1
    chi_square = ((counts - draws * expected)[possible] ** 2 / (draws * expected[possible])).sum()
    assert chi_square < freedom + 5 * np.sqrt(2 * freedom)


def softmax(z: np.ndarray) -> np.ndarray:
    weights = np.exp(z.astype(np.float64) - z.max())
    return weights / weights.sum()


def renormalized(p: np.ndarray, kept: np.ndarray) -> np.ndarray:
    return np.where(kept, p, 0) / p[kept].sum()


def top_k(p: np.ndarray, k: int) -> np.ndarray:
    return renormalized(p, p >= np.sort(p)[-k])


def top_p(p: np.ndarray, share: float) -> np.ndarray:
    order = np.argsort(-p, kind="stable")
    before = np.empty_like(p)
    before[order] = p[order].cumsum() - p[order]
    return renormalized(p, before < share * p.sum())


def min_p(p: np.ndarray, share: float) -> np.ndarray:
    return renormalized(p, p >= share * p.max())


@pytest.mark.parametrize(
    ("sampling", "meaning"),
    [
        ({}, lambda z: softmax(z)),
        ({"temperature": 2.5}, lambda z: softmax(z / np.float32(2.5))),
        ({"top_k": 6}, lambda z: top_k(softmax(z), 6)),
        ({"top_p": 0.6}, lambda z: top_p(softmax(z), 0.6)),
        ({"min_p": 0.25}, lambda z: min_p(softmax(z), 0.25)),
        ({"min_p": 0.1, "top_k": 20, "top_p": 0.8}, lambda z: top_p(top_k(min_p(softmax(z), 0.1), 20), 0.8)),
    ],
    ids=["plain", "temperature", "top_k", "top_p", "min_p", "all"],
)
def test_draws_follow_the_distribution(
    executor: Executor, logits_after: np.ndarray, sampling: dict[str, Any], meaning: Callable[[np.ndarray], np.ndarray]
) -> None:
    check_distribution(executor, meaning(logits_after[3]), **sampling)


def test_completions_of_one_seed_are_drawn_independently(executor: Executor, logits_after: np.ndarray) -> None:
    check_distribution(executor, softmax(logits_after[3]), varied="completion_index", seed=2**63 + 5)


def test_a_run_of_many_steps_obeys_all_of_them(executor: Executor, logits_after: np.ndarray) -> None:
    sampling = {
        "temperature": 0.9,
        "top_k": 40,
        "top_p": 0.97,
        "presence_penalty": 0.4,
        "frequency_penalty": 0.2,
        "repetition_penalty": 1.2,
        "min_tokens": 40,
        "stop_ids": [5, 6],
        "allowed_ids": list(range(3, 70)),
        "bad_words": [[7], [8, 9], [10, 11, 12]],
        "logit_bias": {20: 2.0, 21: -3.0, 7: 50.0},
        "seed": 11,
    }
    tokens = [3, *run(executor, [3], 40, **sampling)]
    assert len(tokens) == 41
    rules = executor.sequences.rules(0)
    for at in range(1, len(tokens)):
        history = np.array(tokens[:at], np.int32)
        assert tokens[at] == sample_token(logits_after[tokens[at - 1]], rules, history)


def test_bias_is_added_to_the_logits(executor: Executor, logits_after: np.ndarray) -> None:
    z = logits_after[3].copy()
    best, other = int(z.argmax()), 17
    lacks = float(z[best] - z[other])
    assert run(executor, [3], 1, logit_bias={other: lacks + 0.001}) == [other]
    assert run(executor, [3], 1, logit_bias={other: lacks - 0.001}) == [best]
    bias = {best: -2.0, other: 1.5, 40: 0.25}
    for token, value in bias.items():
        z[token] += np.float32(value)
    assert run(executor, [3], 1, logit_bias=bias) == [int(z.argmax())]
    check_distribution(executor, softmax(z), logit_bias=bias)


def test_only_allowed_ids_are_drawn(executor: Executor, logits_after: np.ndarray) -> None:
    allowed = [0, 5, 31, 32, 63, 64, 82]
    z = np.full(VOCAB, -np.inf, np.float32)
    z[allowed] = logits_after[3, allowed]
    assert run(executor, [3], 1, allowed_ids=allowed) == [int(z.argmax())]
    check_distribution(executor, softmax(z), allowed_ids=allowed)


def test_a_single_token_is_allowed(executor: Executor) -> None:
    for token in (0, 31, 32, 82):
        assert run(executor, [3], 4, allowed_ids=[token], temperature=2.0) == [token] * 4


def test_bad_words_do_not_come_out_of_a_run_of_many_steps(executor: Executor, logits_after: np.ndarray) -> None:
    free = run(executor, [3], 12)
    bad_words = [[free[0]], free[3:5], free[5:8], [*free[2:6]]]
    tokens = run(executor, [3], 40, bad_words=bad_words)
    assert len(tokens) == 40
    for at, token in enumerate(tokens):
        z = logits_after[[3, *tokens][at]].copy()
        for *prefix, last in bad_words:
            if tokens[at - len(prefix) if at >= len(prefix) else len(tokens) : at] == prefix:
                z[last] = -np.inf
        assert token == z.argmax()
    for word in bad_words:
        assert all(tokens[at : at + len(word)] != word for at in range(len(tokens)))


def test_the_prompt_is_no_part_of_a_bad_word(executor: Executor) -> None:
    (first,) = run(executor, [3], 1)
    assert run(executor, [3], 1, bad_words=[[3, first]]) == [first]
    assert run(executor, [3], 1, bad_words=[[first]]) != [first]
    assert run(executor, [3, first], 1, bad_words=[[first]] * 2, num_prompt_tokens=1) != [first]


def test_a_bad_word_s_draws_follow_the_distribution_without_it(executor: Executor, logits_after: np.ndarray) -> None:
    z = logits_after[3].copy()
    banned = int(z.argmax())
    z[banned] = -np.inf
    check_distribution(executor, softmax(z), bad_words=[[banned], [4, 7]])


def test_no_stop_id_comes_before_min_tokens(executor: Executor, logits_after: np.ndarray) -> None:
    free = run(executor, [3], 6)
    stop_ids = free[:3]
    fill_slot(executor, 0, [3], stop_ids=stop_ids, min_tokens=5)
    executor.run(PROGRAM, np.array([(0, 0, 1, 1)], SPAN), 30)
    entries = executor.ring.drain()
    tokens = entries["token"].tolist()
    for at, token in enumerate(tokens):
        z = logits_after[[3, *tokens][at]].copy()
        if at < 5:
            z[stop_ids] = -np.inf
        assert token == z.argmax()
    assert not set(tokens[:5]) & set(stop_ids)
    assert set(entries["finish"][:-1].tolist()) <= {Finish.NONE}


def test_a_stop_id_that_alone_may_be_drawn_ends_nothing_before_min_tokens(executor: Executor) -> None:
    fill_slot(executor, 0, [3], stop_ids=[7], allowed_ids=[7], min_tokens=5)
    result = executor.run(PROGRAM, np.array([(0, 0, 1, 1)], SPAN), 30)
    entries = executor.ring.drain()
    assert result.reason is StopReason.FINISHED
    assert entries["token"].tolist() == [7] * 5
    assert entries["finish"].tolist() == [Finish.NONE] * 4 + [Finish.STOP]


def test_penalties_come_after_the_bias(executor: Executor, logits_after: np.ndarray) -> None:
    z = logits_after[3].copy()
    z[3] += np.float32(6)
    assert z[3] > 0  # so that the penalty divides it
    z[3] /= np.float32(2)
    z[40] -= np.float32(0.5)
    sampling = {"logit_bias": {3: 6.0, 40: -0.5}, "repetition_penalty": 2.0}
    assert run(executor, [3], 1, **sampling) == [int(z.argmax())]
    check_distribution(executor, softmax(z), **sampling)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_where_all_are_banned_the_lowest_allowed_id_is_taken(executor: Executor, temperature: float) -> None:
    everything = {"bad_words": [[token] for token in range(VOCAB)], "temperature": temperature}
    assert run(executor, [3], 2, **everything) == [0, 0]
    assert run(executor, [3], 2, allowed_ids=[70, 40], **everything) == [40, 40]


def test_constraints_of_one_slot_are_not_those_of_another(executor: Executor, logits_after: np.ndarray) -> None:
    best = int(logits_after[3].argmax())
    fill_slot(executor, 0, [3], allowed_ids=[9])
    fill_slot(executor, 1, [3], bad_words=[[best]])
    fill_slot(executor, 2, [3], logit_bias={11: 100.0})
    fill_slot(executor, 3, [3])
    executor.run(PROGRAM, np.array([(slot, 0, 1, 1) for slot in range(4)], SPAN), 1)
    second = int(np.argsort(-logits_after[3], kind="stable")[1])
    assert executor.ring.drain()["token"].tolist() == [9, second, 11, best]


@given(st.integers(1, 300), st.data())
def test_a_mask_has_a_bit_for_each_allowed_token(vocab: int, data: st.DataObject) -> None:
    token_ids = data.draw(st.lists(st.integers(0, vocab - 1)))
    mask = pack_allowed_ids(token_ids, vocab)
    assert [i for i in range(vocab) if mask[i // 32] >> np.uint32(i % 32) & 1] == sorted(set(token_ids))
    assert np.flatnonzero(unpack_allowed_ids(mask, vocab)).tolist() == sorted(set(token_ids))


def test_what_does_not_fit_is_refused() -> None:
    fits = [[1] * (MAX_BAD_WORD_TOKENS - 4), [2, 3]]
    assert pack_bad_words(fits)[-3:].tolist() == [2, 2, 3]
    with pytest.raises(ValueError, match=r"bad_words: 1023 tokens in 3 sequences.*expected at most 1024 in all"):
        pack_bad_words([*fits, [4]])
    with pytest.raises(ValueError, match="logit_bias: 301 tokens, expected at most 300"):
        pack_constraints(dict.fromkeys(range(MAX_LOGIT_BIAS + 1), 1.0), [])
