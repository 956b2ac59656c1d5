"""Which blocks a sequence begins with, and what a request tells of it."""

from __future__ import annotations

from typing import Any

import pytest
from invariants import check_blocks
from recorder import RecordingCore
from scripted import ScriptedExecutor, make_request, make_sequence
from stepper import run_all, run_step

from test_scheduler import make_scheduler
from waferline.model.load import Model
from waferline.runtime.errors import shown
from waferline.runtime.messages import Finished
from waferline.runtime.scheduler import Scheduler
from waferline.runtime.sequence import Sequence

PROMPT = [i % 50 for i in range(70)]


def complete(scheduler: Scheduler, executor: ScriptedExecutor, sequence: Sequence) -> int | None:
    """Run ``sequence`` to its end; the tokens that it found cached."""
    scheduler.add(sequence)
    run_all(scheduler, executor)
    return sequence.num_cached_tokens


@pytest.mark.parametrize(
    ("prompt", "num_cached_tokens"),
    [
        (PROMPT, 64),  # of 70 tokens in blocks of 16
        (PROMPT[:65], 64),
        (PROMPT[:64], 48),  # the last token is computed, and the block that it is in
        (PROMPT[:16], 0),
        ([*PROMPT[:40], 49, *PROMPT[41:]], 32),
        ([49, *PROMPT[1:]], 0),
        ([*PROMPT, *PROMPT], 64),
    ],
)
def test_a_prompt_begins_with_the_full_blocks_that_are_cached(prompt: list[int], num_cached_tokens: int) -> None:
    scheduler, executor = make_scheduler(max_model_len=256)
    assert complete(scheduler, executor, make_sequence(PROMPT, 1)) == 0
    assert complete(scheduler, executor, make_sequence(prompt, 1, name="second")) == num_cached_tokens
    assert scheduler.kv_cache.num_prefix_cache_queries == 70 + len(prompt)
    assert scheduler.kv_cache.num_prefix_cache_hits == num_cached_tokens


def test_a_conversation_goes_on_where_it_was() -> None:
    scheduler, executor = make_scheduler(max_model_len=256)
    first = make_sequence(PROMPT, 30)
    complete(scheduler, executor, first)
    assert first.num_tokens == 100
    # The last token was sampled and never computed; the block of the 96 before it is full.
    assert complete(scheduler, executor, make_sequence([*first.token_ids, 1, 2, 3], 30, name="second")) == 96


def test_tokens_after_a_stop_string_are_not_cached() -> None:
    scheduler, executor = make_scheduler(rows=256, max_model_len=256)
    free = make_sequence(PROMPT, 60)
    complete(scheduler, executor, free)
    stop = chr(ord("a") + free.token_ids[75])
    scheduler, executor = make_scheduler(rows=256, max_model_len=256)
    stopped = make_sequence(PROMPT, 60, stop=stop)
    complete(scheduler, executor, stopped)
    assert stopped.finish_reason == "stop"
    assert stopped.num_tokens <= 76
    assert len(scheduler.kv_cache.block_pool._cached) == stopped.num_tokens // 16


def test_the_completions_of_a_request_share_its_prompt() -> None:
    scheduler, executor = make_scheduler(seqs=4, rows=100)
    request = make_request(PROMPT, 20, n=4)
    for sequence in request.sequences:
        scheduler.add(sequence)
    first = scheduler.schedule()
    assert first is not None
    assert [span[1:] for span in first.batch.tolist()] == [(0, 70, 1)]
    assert first.max_steps == 1, "the others are not to wait longer than for the prompt"
    run_step(scheduler, executor, first)
    second = scheduler.schedule()
    assert second is not None
    assert [span[1:] for span in second.batch.tolist()] == [(70, 1, 1), (64, 6, 1), (64, 6, 1), (64, 6, 1)]
    shared = {tuple(sequence.block_ids[:4]) for sequence in request.sequences}
    assert len(shared) == 1
    assert len({sequence.block_ids[4] for sequence in request.sequences}) == 4
    second.max_steps = 2
    run_step(scheduler, executor, second)
    check_blocks(scheduler)
    scheduler.finish(request.sequences[0], "abort")  # its blocks remain with the others
    run_all(scheduler, executor)
    assert request.num_cached_tokens == 0
    assert [sequence.num_cached_tokens for sequence in request.sequences] == [0, 64, 64, 64]


def test_prompts_that_begin_alike_and_arrive_together_are_computed_once() -> None:
    scheduler, executor = make_scheduler(seqs=4, rows=40, max_model_len=256)
    for number in range(4):
        scheduler.add(make_sequence([*PROMPT, number, number], 5, name=f"r{number}"))
    steps = run_all(scheduler, executor)
    # 72 rows of the first, then 8 of each other, and 4 tokens of each that are sampled and computed.
    assert sum(int(step.batch["count"].sum()) for step in steps[:3]) == 72 + 3 * 8 + 1
    assert scheduler.kv_cache.num_prefix_cache_hits == 3 * 64


def test_a_higher_priority_does_not_wait_for_blocks_that_a_lower_one_computes() -> None:
    scheduler, executor = make_scheduler(seqs=4, rows=4, max_model_len=256)
    usual = make_sequence([7] * 60, 1, name="usual", priority=1)
    for sequence in (make_sequence(PROMPT, 1, name="later", priority=2), usual):
        scheduler.add(sequence)
        step = scheduler.schedule()
        assert step is not None
        run_step(scheduler, executor, step)
    scheduler.add(urgent := make_sequence(PROMPT, 1, name="urgent"))
    while not urgent.is_finished:
        step = scheduler.schedule()
        assert step is not None
        run_step(scheduler, executor, step)
    assert not usual.is_finished
    run_all(scheduler, executor)


def test_a_preempted_sequence_finds_its_blocks_again() -> None:
    scheduler, executor = make_scheduler(rows=100)
    sequence = make_sequence(PROMPT, 40)
    scheduler.add(sequence)
    for max_steps in (1, 15):
        step = scheduler.schedule()
        assert step is not None
        step.max_steps = max_steps
        run_step(scheduler, executor, step)
    assert sequence.num_tokens == 86
    scheduler._preempt(scheduler.running.pop())
    step = scheduler.schedule()
    assert step is not None
    assert step.batch.tolist()[0][1:] == (80, 6, 1)
    assert sequence.num_cached_tokens == 0, "when it first began"
    assert scheduler.kv_cache.num_prefix_cache_queries == 70


def test_without_prefix_caching_nothing_is_shared() -> None:
    scheduler, executor = make_scheduler(enable_prefix_caching=False)
    assert complete(scheduler, executor, make_sequence(PROMPT, 1)) == 0
    assert complete(scheduler, executor, make_sequence(PROMPT, 1, name="second")) == 0
    assert scheduler.kv_cache.num_prefix_cache_queries == scheduler.kv_cache.num_prefix_cache_hits == 0


def test_what_is_cached_gives_way_to_what_runs() -> None:
    scheduler, executor = make_scheduler(blocks=6, max_model_len=96)
    complete(scheduler, executor, make_sequence(PROMPT, 1))
    # Of 6 blocks 4 are cached, and 3 are needed: the end of the prompt goes first, and what is left is still found.
    complete(scheduler, executor, make_sequence(PROMPT[40::-1], 1, name="other"))
    assert complete(scheduler, executor, make_sequence(PROMPT, 1, name="again")) == 48
    assert scheduler.num_preemptions == 0


CHAT = "You are a friendly storyteller. Tell a story of a goat, and of what it saw."


def cached_tokens(recorder: RecordingCore, prompt: Any = CHAT, **fields: Any) -> int | None:
    return recorder.run(prompt, max_tokens=3, seed=1, ignore_eos=True, **fields).num_cached_tokens


def test_a_request_tells_how_much_of_its_prompt_was_cached(tiny_model: Model) -> None:
    length = len(tiny_model.tokenizer.encode(CHAT))
    full = (length - 1) // 16 * 16
    with RecordingCore(tiny_model) as recorder:
        assert cached_tokens(recorder) == 0
        assert cached_tokens(recorder) == full
        assert cached_tokens(recorder, CHAT[:40] + "!") == 32
        stats = recorder.core.stats()
        assert (stats.prefix_cache_queries_total, stats.prefix_cache_hits_total) == (2 * length + 41, full + 32)
        assert cached_tokens(recorder, prompt_logprobs=1) == 0, "each of its tokens is scored"
        assert recorder.core.stats().prefix_cache_queries_total == 2 * length + 41
        assert cached_tokens(recorder, n=2) == full
    with RecordingCore(tiny_model, enable_prefix_caching=False) as recorder:
        assert [cached_tokens(recorder) for _ in range(2)] == [0, 0]
        assert recorder.core.stats().prefix_cache_queries_total == 0
        assert not recorder.core.stats().enable_prefix_caching


def test_prefixes_are_shared_within_a_salt_only(tiny_model: Model) -> None:
    with RecordingCore(tiny_model) as recorder:
        found = []
        for number, salt in enumerate(["one", "two", None, "two", "one", None]):
            recorder.add(f"r{number}", CHAT, seed=1, max_tokens=2, cache_salt=salt)
            found.append(recorder.finish(f"r{number}").num_cached_tokens)
        assert found[:3] == [0, 0, 0]
        assert all(found[3:])
        assert len({tuple(recorder.finish(f"r{number}").outputs[0].token_ids) for number in range(6)}) == 1


@pytest.mark.parametrize("cache_salt", ["", "a" * 257, 5, "\ud800"])
def test_a_bad_salt_is_refused(tiny_model: Model, cache_salt: Any) -> None:
    with RecordingCore(tiny_model) as recorder:
        recorder.add("bad", CHAT, cache_salt=cache_salt)
        message = f"cache_salt: {shown(cache_salt)}, expected None or text of 1 to 256 characters"
        assert recorder.error("bad") == ("invalid_request", message)


def test_a_failed_step_leaves_nothing_in_the_cache(tiny_model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    with RecordingCore(tiny_model) as recorder:
        with monkeypatch.context() as patch:
            patch.setattr(recorder.core._executor, "run", None)
            recorder.add("fails", CHAT)
            recorder.error("fails")
        assert cached_tokens(recorder) == 0


def test_a_cancelled_request_gives_its_blocks_back_at_once(tiny_model: Model) -> None:
    """Whether it samples, is in the middle of its prompt, or waits; and each of its completions."""
    prompt = [i % 250 for i in range(200)]
    with RecordingCore(tiny_model, max_num_seqs=3, max_num_batched_tokens=8) as recorder:
        recorder.slow_down()
        recorder.add("samples", "abc", max_tokens=None, ignore_eos=True, n=2)
        recorder.wait_for_deltas("samples", 4)
        recorder.add("computes its prompt", prompt, n=3)
        recorder.add("waits", "abc")
        recorder.wait_for_accepted("waits")
        steps = recorder.core.stats().steps_total
        for name in ("computes its prompt", "waits", "samples"):
            recorder.core.abort(name)
        for name in ("computes its prompt", "waits", "samples"):
            end = recorder.wait(name)
            assert isinstance(end, Finished)
            assert set(end.finish_reasons) == {"abort"}
        assert recorder.deltas("computes its prompt") == []
        assert recorder.core.drain()
        stats = recorder.core.stats()
        assert stats.steps_total - steps <= 3 * 4  # a run of slow_down's for each command at most
        assert (stats.kv_cache_usage, stats.num_requests_running, stats.num_requests_waiting) == (0, 0, 0)
        recorder.core.close()
        assert recorder.core._scheduler.kv_cache.block_pool.num_free == stats.num_kv_blocks
