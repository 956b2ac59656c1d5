"""When drafts are verified, and when they are not worth it; times are made up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from recorder import RecordingCore
from scripted import expected_tokens, make_sequence, scripted_drafts
from stepper import run_step

from test_scheduler import make_scheduler
from waferline.model.load import Model
from waferline.runtime.drafter import SpeculativeConfig
from waferline.runtime.messages import Finished
from waferline.runtime.scheduler import MAX_STEPS, Scheduler
from waferline.runtime.sequence import Sequence
from waferline.runtime.speculation import PLAIN_STEPS, RETRY_STEPS, TURNAROUND_S

PROMPT = [1, 2, 3]
Times = Callable[[int], float]


def slow_rows(rows: int) -> float:
    """Seconds of a step that waits for its rows."""
    return float(rows)


def cheap_rows(rows: int) -> float:
    """Seconds of a step that waits for its weights."""
    return 1 + rows / 50


def run(
    config: SpeculativeConfig, sequences: list[Sequence], times: Times, **limits: int
) -> tuple[Scheduler, list[Any]]:
    """Run ``sequences`` to their ends, in steps that take ``times`` of their rows; the steps."""
    scheduler, executor = make_scheduler(speculative_config=config, **limits)
    for sequence in sequences:
        scheduler.add(sequence)
    steps = []
    while (step := scheduler.schedule()) is not None:
        run_step(scheduler, executor, step, seconds=times(int(step.batch["count"].sum())))
        steps.append(step)
    for sequence in sequences:
        request = sequence.request
        assert sequence.token_ids[len(PROMPT) :] == expected_tokens(PROMPT, request.max_tokens, request.seed)
    return scheduler, steps


def counts(scheduler: Scheduler) -> tuple[int, int, int]:
    assert scheduler.speculator is not None
    drafts = scheduler.speculator.counts
    return drafts.num_drafts, drafts.num_draft_tokens, drafts.num_accepted_tokens


def test_right_drafts_are_verified_as_many_as_may_be() -> None:
    scheduler, steps = run(scripted_drafts(4, 1.0), [make_sequence(PROMPT, 60)], cheap_rows)
    assert [step.batch["count"].tolist() for step in steps[:5]] == [[3], [1], [1], [1], [5]]
    # 60 = 1 + 3 + 11 * 5 + 1: after the last draft a token still is to be sampled.
    assert counts(scheduler) == (11, 44, 44)
    assert len(steps) == 1 + PLAIN_STEPS + 11 + 1


def test_wrong_drafts_are_given_up_soon() -> None:
    scheduler, steps = run(scripted_drafts(4, 0.0), [make_sequence(PROMPT, 110)], cheap_rows)
    drafts, _, accepted = counts(scheduler)
    assert accepted == 0
    assert 3 < drafts < 20
    assert not any(sum(step.num_drafts) for step in steps[25:])


def test_drafts_are_given_up_where_rows_cost_what_tokens_do() -> None:
    scheduler, _ = run(scripted_drafts(4, 0.9), [make_sequence(PROMPT, 110)], slow_rows)
    assert counts(scheduler)[0] < 10


def test_as_many_are_drafted_as_pay() -> None:
    """Where a row adds a quarter and a draft is right with 0.6, two are worth most, and four less than none."""
    _, steps = run(scripted_drafts(4, 0.6), [make_sequence(PROMPT, 110)], lambda rows: 3.0 + rows)
    assert 2 in {sum(step.num_drafts) for step in steps[20:-3]} <= {1, 2, 3}


def test_what_proves_right_after_it_was_given_up_is_drafted_again() -> None:
    tokens = expected_tokens(PROMPT, 120, 0)

    class Turning:
        """Wrong at first, then right."""

        def propose(self, token_ids: list[int], max_tokens: int) -> list[int]:
            begin = len(token_ids) - len(PROMPT)
            return [token if begin > 60 else (token + 1) % 50 for token in tokens[begin : begin + max_tokens]]

    _, steps = run(SpeculativeConfig(4, lambda sequence: Turning()), [make_sequence(PROMPT, 120)], cheap_rows)
    drafts = [sum(step.num_drafts) for step in steps]
    assert not any(drafts[20:50])
    assert drafts[-6:-1] == [4] * 5


def test_without_drafts_runs_are_as_long_as_they_are_without_speculation() -> None:
    class Silent:
        def propose(self, token_ids: list[int], max_tokens: int) -> list[int]:
            return []

    silent = SpeculativeConfig(4, lambda sequence: Silent())
    sequence = make_sequence(PROMPT, 2 * MAX_STEPS)
    _, steps = run(silent, [sequence], lambda rows: TURNAROUND_S / 10, max_model_len=3 * MAX_STEPS)
    assert [step.max_steps for step in steps[:6]] == [1, 1, 1, 1, MAX_STEPS, MAX_STEPS]
    # Where a step takes long, drafts are looked for after every one.
    _, steps = run(silent, [make_sequence(PROMPT, 20)], lambda rows: 1e3 * TURNAROUND_S)
    assert [step.max_steps for step in steps] == [1] * 20


def test_without_drafts_times_are_measured_again_at_last() -> None:
    """The first steps with drafts are slow, later ones would not be."""
    slow_steps = iter([50.0] * 3)
    scheduler, steps = run(
        scripted_drafts(2, 1.0),
        [make_sequence(PROMPT, RETRY_STEPS + 100)],
        lambda rows: next(slow_steps, 1.0) if rows == 3 else 1.0,
        max_model_len=512,
        blocks=32,
    )
    drafts = [sum(step.num_drafts) for step in steps]
    assert 0 in drafts[6:]
    assert drafts[-20:-1].count(2) > 15
    assert counts(scheduler)[1] == counts(scheduler)[2]


@pytest.mark.parametrize("limits", [{"rows": 4}, {"rows": 64, "logits": 4}])
def test_drafts_take_the_rows_that_are_left(limits: dict[str, int]) -> None:
    sequences = [make_sequence(PROMPT, 40, seed, f"r{seed}") for seed in range(2)]
    _, steps = run(scripted_drafts(4, 1.0), sequences, cheap_rows, seqs=2, **limits)
    assert max(step.batch["count"].sum() for step in steps if sum(step.num_drafts)) == 4


def test_each_request_is_judged_by_itself() -> None:
    right, wrong = scripted_drafts(4, 1.0), scripted_drafts(4, 0.0)
    config = SpeculativeConfig(4, lambda sequence: (wrong if sequence.request.seed else right).make_drafter(sequence))
    sequences = [make_sequence(PROMPT, 110, seed, f"r{seed}") for seed in range(2)]
    _, steps = run(config, sequences, cheap_rows)
    late = [dict(zip((s.request.seed for s in step.sequences), step.num_drafts, strict=True)) for step in steps[19:22]]
    assert late == [{0: 4, 1: 0}] * 3


NGRAM = {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 3, "prompt_lookup_min": 1}
LOOPING: dict[str, Any] = {
    "max_tokens": 80,
    "ignore_eos": True,
    "seed": 1,
    "logprobs": 2,
    "allowed_token_ids": [65, 66],
}


@pytest.fixture
def recorder(tiny_model: Model, monkeypatch: pytest.MonkeyPatch) -> Iterator[RecordingCore]:
    """An engine with drafts whose steps are said to take as long as makes them pay."""
    update = Scheduler.update
    monkeypatch.setattr(Scheduler, "update", lambda self, step, num_steps, *_: update(self, step, num_steps, 1.0))
    with RecordingCore(tiny_model, speculative_config=NGRAM) as recorder:
        yield recorder


def test_an_engine_gives_the_same_with_drafts_and_tells_of_them(tiny_model: Model, recorder: RecordingCore) -> None:
    with RecordingCore(tiny_model) as plain:
        expected = plain.run("AB", n=2, **LOOPING).outputs
        assert plain.core.stats().spec_decode_num_drafts_total == 0
    assert recorder.run("AB", n=2, **LOOPING).outputs == expected
    stats = recorder.core.stats()
    assert 0 < stats.spec_decode_num_accepted_tokens_total < stats.spec_decode_num_draft_tokens_total
    assert 0 < stats.spec_decode_num_drafts_total <= stats.spec_decode_num_draft_tokens_total
    assert stats.steps_total < 80


def test_an_abort_between_drafts_ends_the_request(recorder: RecordingCore) -> None:
    recorder.slow_down()
    recorder.add("aborted", "AB", **LOOPING | {"max_tokens": None})
    recorder.wait_for_deltas("aborted", 20)
    recorder.core.abort("aborted")
    end = recorder.wait("aborted")
    assert isinstance(end, Finished)
    assert end.num_output_tokens == recorder.num_tokens("aborted")
    assert recorder.core.drain()
    assert recorder.core.stats().kv_cache_usage == 0
    assert recorder.core.stats().spec_decode_num_drafts_total > 0
