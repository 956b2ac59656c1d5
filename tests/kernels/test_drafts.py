"""Verifying drafts: whatever they are, a sequence gets the tokens, scores and end that it would get without."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from helpers import fill_slot
from programs import TINY, even_placement, make_executor, make_limits, random_program
from waferline_kernels.executor import Executor, StopReason
from waferline_kernels.ring import Finish
from waferline_kernels.sequences import SPAN
from waferline_kernels.tiles import Q8

MODEL = random_program(TINY, Q8)
PROMPT = [1, 2, 3, 4, 5, 6, 7]
SAMPLING: dict[str, dict[str, Any]] = {
    "greedy": {},
    "drawn": {"temperature": 0.9, "top_p": 0.95, "seed": 3, "num_logprobs": 3},
    "penalised": {
        "temperature": 1.5,
        "seed": 5,
        "num_logprobs": 0,
        "repetition_penalty": 1.4,
        "frequency_penalty": 0.3,
        "presence_penalty": 0.2,
        "logit_bias": {9: 1.5},
        "bad_words": [[2], [3, 4]],
        "allowed_ids": list(range(0, TINY.vocab, 3)),
        "stop_ids": [27, 30],
        "min_tokens": 9,
    },
}


@contextmanager
def executor_of(target: str, **limits: int) -> Iterator[Executor]:
    executor = make_executor(target, MODEL[0], even_placement(MODEL[0], 3), MODEL[1], make_limits(**limits))
    try:
        yield executor
    finally:
        executor.close()


def run(executor: Executor, *batch: tuple[int, int, int, int], max_steps: int = 1) -> tuple[StopReason, list[tuple]]:
    """Why the run ended, and its entries without their time."""
    reason = executor.run(MODEL[0], np.array(list(batch), SPAN), max_steps).reason
    entries = executor.ring.drain()
    entries["time_ns"] = 0
    return reason, [tuple(np.asarray(field).tolist() for field in entry.tolist()) for entry in entries]


def plain(executor: Executor, count: int, slot: int = 0, **sampling: Any) -> list[tuple]:
    """The entries of ``count`` tokens after PROMPT, or of all to the end, a step each."""
    fill_slot(executor, slot, PROMPT, **sampling)
    reason, entries = run(executor, (slot, 0, len(PROMPT), 1))
    while len(entries) < count and reason is not StopReason.FINISHED:
        reason, more = run(executor, (slot, len(PROMPT) + len(entries) - 1, 1, 1))
        entries += more
    return entries


def draft(executor: Executor, slot: int, num_tokens: int, drafts: list[int]) -> tuple[int, int, int, int]:
    """Take ``slot`` back to ``num_tokens`` and lay ``drafts`` behind; the span that verifies them."""
    table, rows = executor.sequences, 1 + len(drafts)
    table.num_tokens[slot] = num_tokens
    table.tokens[slot, num_tokens : num_tokens + len(drafts)] = drafts
    return slot, num_tokens - 1, rows, rows


def tokens_of(entries: list[tuple]) -> list[int]:
    return [entry[2] for entry in entries]


@pytest.mark.parametrize("name", SAMPLING)
def test_each_right_draft_is_a_token_and_so_is_what_follows(target: str, name: str) -> None:
    with executor_of(target) as executor:
        expected = plain(executor, 13, **SAMPLING[name])
        right = tokens_of(expected)
        for num_known in (1, 3, 6):
            for num_right in range(6):
                drafts = right[num_known : num_known + 5]
                for at in range(num_right, 5):
                    drafts[at] = (drafts[at] + 1 + 7 * at) % TINY.vocab
                start = len(PROMPT) + num_known
                reason, entries = run(executor, draft(executor, 0, start, drafts), max_steps=1)
                assert entries == expected[num_known : num_known + num_right + 1]
                assert reason is StopReason.STEPS
                end = start + num_right + 1
                assert executor.sequences.num_tokens[0] == end
                assert executor.sequences.tokens[0, :end].tolist() == [*PROMPT, *right[: end - len(PROMPT)]]
                # What was computed of the wrong ones is overwritten.
                assert run(executor, (0, end - 1, 1, 1))[1] == expected[num_known + num_right + 1 :][:1]


def test_a_run_goes_on_while_all_drafts_are_right(target: str) -> None:
    with executor_of(target) as executor:
        expected = plain(executor, 12)
        right, start = tokens_of(expected), len(PROMPT) + 2
        for drafts, num_tokens in ((right[2:5], 9), ([*right[2:4], 130], 3)):
            reason, entries = run(executor, draft(executor, 0, start, drafts), max_steps=6)
            assert (reason, entries) == (StopReason.STEPS, expected[2 : 2 + num_tokens])


def test_nothing_follows_the_end(target: str) -> None:
    with executor_of(target) as executor:
        right = tokens_of(plain(executor, 8))
        at = next(at for at in range(2, 8) if right[at] not in right[:at])
        for limit, finish in (
            ({"stop_ids": [right[at]]}, Finish.STOP),
            ({"max_tokens": at + 1}, Finish.LENGTH),
        ):
            expected = plain(executor, 100, **limit)
            assert expected[-1][4] == finish
            for num_known in range(1, at + 1):
                span = draft(executor, 0, len(PROMPT) + num_known, right[num_known:])
                assert run(executor, span, max_steps=9) == (StopReason.FINISHED, expected[num_known:])
                assert executor.sequences.num_tokens[0] == len(PROMPT) + at + 1


def test_drafts_reach_to_the_end_of_the_context(target: str) -> None:
    with executor_of(target, max_num_seqs=2, max_model_len=20) as executor:
        executor.sequences.tokens[1] = 99  # what lies behind
        expected = plain(executor, 100)
        right = tokens_of(expected)
        assert len(right) == 13
        assert run(executor, draft(executor, 0, 18, right[11:])) == (StopReason.FINISHED, expected[11:])
        assert (executor.sequences.tokens[1] == 99).all()
        draft(executor, 0, 18, right[11:])
        with pytest.raises(ValueError, match=r"batch\.start"):
            run(executor, (0, 17, 4, 4))


def test_drafts_of_one_sequence_change_no_other(target: str) -> None:
    with executor_of(target) as executor:
        params = [SAMPLING["penalised"], SAMPLING["drawn"], {"num_prompt_logprobs": 2}]
        expected = [plain(executor, 8, slot, **fields) for slot, fields in enumerate(params[:2])]
        fill_slot(executor, 2, PROMPT, **params[2])
        scored = run(executor, (2, 0, 7, 7))[1]
        fill_slot(executor, 2, PROMPT, **params[2])
        drafts = [[*tokens_of(expected[0])[2:5], 7, 7], tokens_of(expected[1])[3:6]]
        batch = [draft(executor, 0, 9, drafts[0]), (2, 0, 7, 7), draft(executor, 1, 10, drafts[1])]
        reason, entries = run(executor, *batch, max_steps=4)
        assert entries == [*expected[0][2:6], *scored, *expected[1][3:7]]
        assert reason is StopReason.STEPS


def test_the_ring_has_room_for_every_row(target: str) -> None:
    with executor_of(target, max_num_seqs=1, max_num_logits=4, max_model_len=64) as executor:
        right = tokens_of(plain(executor, 30))
        executor.run(MODEL[0], np.array([(0, 6 + 30, 1, 1)], SPAN), 13)
        assert executor.ring.free == 3
        span = draft(executor, 0, 8, right[1:4])
        result = executor.run(MODEL[0], np.array([span], SPAN), 1)
        assert (result.num_steps, result.reason) == (0, StopReason.RING_FULL)
        executor.ring.drain()
        assert tokens_of(run(executor, span)[1]) == right[1:5]


@pytest.mark.parametrize("span", [(0, 6, 3, 2), (0, 7, 2, 2), (0, 6, 3, 1), (0, 0, 9, 0)])
def test_drafts_without_the_logits_they_need_are_refused(target: str, span: tuple[int, int, int, int]) -> None:
    with executor_of(target) as executor:
        fill_slot(executor, 0, PROMPT)
        with pytest.raises(ValueError, match=r"batch\.start: .* rows within the \[7\] tokens .* logits of all drafts"):
            run(executor, span)


def test_a_draft_outside_the_vocabulary_is_refused(target: str) -> None:
    if target == "reference":
        pytest.skip("the reference looks tokens up")
    with executor_of(target) as executor:
        fill_slot(executor, 0, PROMPT)
        with pytest.raises(ValueError, match="slot 0"):
            run(executor, draft(executor, 0, 7, [3, TINY.vocab]))
