"""The scheduler, driven by a scripted executor: whatever is added, aborted and preempted, every sequence gets exactly
its own tokens, and every slot and block returns."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from invariants import check_blocks, check_contents, check_decode_batch
from scripted import (
    VOCAB,
    FakeCosts,
    LetterTokenizer,
    ScriptedExecutor,
    expected_tokens,
    make_request,
    make_sequence,
    scripted_drafts,
)
from stepper import run_all, run_step

from waferline.runtime.drafter import SpeculativeConfig
from waferline.runtime.output_processor import append_token, unpack_entries
from waferline.runtime.scheduler import MAX_STEPS, Scheduler
from waferline.runtime.sequence import NO_ROW, Sequence
from waferline.runtime.step_builder import ScheduledStep
from waferline_kernels.executor import StopReason
from waferline_kernels.sequences import KV_BLOCK_SIZE, ExecutorLimits

STOP_IDS = (7, 31)
STOP_ID = 20  # of the stop string, which Python finds after the executor has gone on
STOP_STRING = LetterTokenizer().token_text(STOP_ID)


def make_scheduler(
    seqs: int = 4,
    rows: int = 64,
    blocks: int = 32,
    max_model_len: int = 128,
    logits: int | None = None,
    enable_prefix_caching: bool = True,
    cost_model: Any = None,
    itl_target_ms: float | None = None,
    speculative_config: SpeculativeConfig | None = None,
) -> tuple[Scheduler, ScriptedExecutor]:
    limits = ExecutorLimits(seqs, min(max_model_len, blocks * KV_BLOCK_SIZE), rows, logits or max(seqs, 8), blocks)
    executor = ScriptedExecutor(limits)
    scheduler = Scheduler(
        limits,
        executor.sequences,
        enable_prefix_caching=enable_prefix_caching,
        cost_model=cost_model,
        itl_target_ms=itl_target_ms,
        speculative_config=speculative_config,
    )
    return scheduler, executor


def take_step(scheduler: Scheduler, executor: ScriptedExecutor) -> ScheduledStep:
    step = scheduler.schedule()
    assert step is not None
    run_step(scheduler, executor, step)
    return step


class SchedulerMachine(RuleBasedStateMachine):
    @initialize(
        seqs=st.integers(1, 5),
        spare_rows=st.integers(0, 40),
        blocks=st.integers(1, 16),
        spare_logits=st.integers(0, 5),
        enable_prefix_caching=st.sampled_from([True, True, False]),
        costs=st.builds(FakeCosts, *[st.sampled_from([0.0, 0.01, 0.3, 5.0])] * 3),
        itl_target_ms=st.none() | st.sampled_from([0.5, 2.0, 5.0, 20.0]),
        num_drafts=st.sampled_from([0, 1, 4, 9]),
        acceptance=st.sampled_from([0.0, 0.6, 0.9, 1.0]),
    )
    def start(
        self,
        seqs: int,
        spare_rows: int,
        blocks: int,
        spare_logits: int,
        enable_prefix_caching: bool,
        costs: FakeCosts,
        itl_target_ms: float | None,
        num_drafts: int,
        acceptance: float,
    ) -> None:
        self.scheduler, self.executor = make_scheduler(
            seqs,
            seqs + spare_rows,
            blocks,
            logits=seqs + spare_logits,
            enable_prefix_caching=enable_prefix_caching,
            cost_model=costs,
            itl_target_ms=itl_target_ms,
            speculative_config=scripted_drafts(num_drafts, acceptance) if num_drafts else None,
        )
        self.costs, self.itl_target_ms = costs, itl_target_ms
        self.limits = self.executor.limits
        self.all: list[Sequence] = []

    @rule(seeds=st.lists(st.integers(0, 999), min_size=1, max_size=4), n=st.sampled_from([1, 1, 2, 4]))
    def add(self, seeds: list[int], n: int) -> None:
        """Requests of ``n`` completions, whose prompts are often one another's beginning."""
        for seed in seeds:
            random = np.random.default_rng(seed)
            stem = np.random.default_rng(seed % 2).integers(VOCAB, size=self.limits.max_model_len)
            prompt = stem[: random.integers(1, self.limits.max_model_len // 2 + 1)].tolist()
            prompt[-1] = int(random.integers(VOCAB))
            self.request(prompt, random, n)

    @precondition(lambda self: any(sequence.is_finished for sequence in self.all))
    @rule(data=st.data())
    def append(self, data: st.DataObject) -> None:
        """A conversation's next turn: a completion goes on."""
        former = data.draw(st.sampled_from([sequence for sequence in self.all if sequence.is_finished]))
        prompt = [*former.token_ids, *data.draw(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=20))]
        if len(prompt) < self.limits.max_model_len:
            self.request(prompt, np.random.default_rng(len(self.all)), 1, former.request.cache_salt)

    def request(self, prompt: list[int], random: np.random.Generator, n: int, cache_salt: str | None = None) -> None:
        request = make_request(
            prompt,
            max_tokens=int(random.integers(1, self.limits.max_model_len - len(prompt) + 1)),
            seed=int(random.integers(1000)),
            name=f"r{len(self.all)}",
            n=n,
            prompt_logprobs=0 if random.random() < 0.25 else None,
            stop=STOP_STRING if random.random() < 0.3 else None,
            stop_ids=STOP_IDS if random.random() < 0.5 else (),
            cache_salt=cache_salt or str(random.choice(["one", "two"])),
            priority=int(random.choice([0, 0, 0, -1, 2])),
            tenant=str(random.choice(["a", "b"])),
        )
        for sequence in request.sequences:
            self.all.append(sequence)
            self.scheduler.add(sequence)

    @precondition(lambda self: self.scheduler.has_work)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        alive = [sequence for sequence in self.all if not sequence.is_finished]
        if alive:
            self.scheduler.finish(data.draw(st.sampled_from(alive)), "abort")

    @precondition(lambda self: self.scheduler.running and not self.scheduler.running[-1].is_finished)
    @rule()
    def preempt(self) -> None:
        self.scheduler._preempt(self.scheduler.running.pop())

    @rule(times=st.integers(1, 10))
    def steps(self, times: int) -> None:
        for _ in range(times):
            self.step()

    def step(self) -> None:
        alive = [sequence for sequence in self.all if not sequence.is_finished]
        step = self.scheduler.schedule()
        check_blocks(self.scheduler)
        check_decode_batch(self.scheduler)
        assert (step is None) == (not alive)
        if step is None:
            return
        assert 1 <= step.max_steps <= MAX_STEPS
        assert self.scheduler.running[0] in step.sequences, "the first in rank always advances"
        last = self.scheduler.running[-1].rank[0]
        may_wait = not self.scheduler.can_admit() or self.scheduler._first_is_being_cached()
        assert may_wait or all(waiting.rank[0] >= last for waiting in self.scheduler.waiting)
        assert step.batch["count"].sum() <= self.limits.max_num_batched_tokens
        assert step.batch["num_logits"].sum() <= self.limits.max_num_logits
        self.check_time(step)
        before = {id(sequence): sequence.num_computed_tokens for sequence in step.sequences}
        result, _ = run_step(self.scheduler, self.executor, step, seconds=1.0)
        assert result.num_steps >= 1
        # Nothing else ends a run early: reserved blocks suffice, and no flag is left over from an earlier sequence.
        assert result.reason in (StopReason.STEPS, StopReason.FINISHED)
        for sequence in step.sequences:
            assert sequence.num_computed_tokens > before[id(sequence)]
            assert sequence.is_finished or sequence.num_computed_tokens < sequence.num_tokens

    def check_time(self, step: ScheduledStep) -> None:
        """All that wait for their next token are in the step; what else is does not make it take longer than the target, or
        than a tenth more than they alone, but for a single row."""
        assert {s for s in self.scheduler.running if s.decode_row != NO_ROW} <= {*step.sequences}
        batch = step.batch
        ends = batch["start"] + batch["count"]
        context_tokens = sum(sum(range(start + 1, end + 1)) for start, end in zip(batch["start"], ends, strict=True))
        assert step.shape == (batch["count"].sum(), context_tokens, batch["num_logits"].sum(), ends.sum())
        alone = self.scheduler._decoding.shape
        num_other_rows = step.shape.num_rows - alone.num_rows
        if self.itl_target_ms is not None and alone.num_rows and num_other_rows > 1:
            longest = max(self.itl_target_ms, 1.1 * self.costs.predict_step_ms(*alone))
            assert self.costs.predict_step_ms(*step.shape) <= longest

    @invariant()
    def running_sequences_are_in_the_order_of_their_rank(self) -> None:
        ranks = [sequence.rank for sequence in self.scheduler.running]
        assert ranks == sorted(ranks)

    @invariant()
    def blocks_are_held_and_shared_rightly(self) -> None:
        check_blocks(self.scheduler)
        check_decode_batch(self.scheduler)
        check_contents(self.scheduler, self.executor, self.all)
        held = {id_ for s in self.scheduler.running if not s.is_finished for id_ in s.block_ids}
        assert self.scheduler.kv_cache_usage == len(held) / self.limits.num_kv_blocks
        assert self.scheduler.kv_cache.enable_prefix_caching or not self.scheduler.kv_cache.block_pool._cached

    def teardown(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        run_all(self.scheduler, self.executor, seconds=1.0)
        assert self.scheduler.kv_cache.block_pool.num_free == self.limits.num_kv_blocks
        assert self.scheduler.slots == [None] * self.limits.max_num_seqs
        assert self.scheduler.kv_cache_usage == self.scheduler.num_running == 0
        for sequence in self.all:
            request = sequence.request
            stop_ids = [*request.stop_ids, *([STOP_ID] if request.params.stop else [])]
            expected = expected_tokens(
                request.prompt_token_ids, request.max_tokens, request.seed + sequence.index, stop_ids
            )
            output = sequence.token_ids[sequence.num_prompt_tokens :]
            if sequence.finish_reason == "abort":
                assert output == expected[: len(output)]
                continue
            assert output == expected
            assert sequence.finish_reason == ("stop" if output[-1] in stop_ids else "length")
            if sequence.prompt_logprobs is not None:
                scored = [logprobs[0].token_id for logprobs in sequence.prompt_logprobs[1:]]
                assert scored == request.prompt_token_ids[1:]


SchedulerMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=20, deadline=None)
TestScheduler = SchedulerMachine.TestCase


def test_a_step_mixes_sampling_rows_and_prompt_chunks() -> None:
    scheduler, executor = make_scheduler(rows=8)
    scheduler.add(make_sequence([1, 2, 3], 100, name="short"))
    first = scheduler.schedule()
    assert first is not None
    assert first.batch.tolist() == [(first.sequences[0].slot, 0, 3, 1)]
    executor.run(None, first.batch, 1)
    for _, _, token, *_ in unpack_entries(executor.ring.drain()):
        append_token(first.sequences[0], token, 0, 0, None)
    scheduler.update(first, 1)
    scheduler.add(make_sequence(list(range(20)), 5, name="long"))
    spans = []
    for _ in range(3):
        step = scheduler.schedule()
        assert step is not None
        spans.append([span[1:] for span in step.batch.tolist()])
        assert step.max_steps == 1
        step.max_steps = 1
        run_step(scheduler, executor, step)
    assert spans == [[(3, 1, 1), (0, 7, 0)], [(4, 1, 1), (7, 7, 0)], [(5, 1, 1), (14, 6, 1)]]


def test_a_prompt_beside_streams_takes_the_time_that_the_target_leaves() -> None:
    costs = FakeCosts(row_ms=1.0, logits_ms=0.5)
    scheduler, executor = make_scheduler(seqs=4, rows=512, max_model_len=512, cost_model=costs, itl_target_ms=26.0)
    for seed in range(2):
        scheduler.add(make_sequence([seed], 100, name=f"stream {seed}"))
    take_step(scheduler, executor)
    scheduler.add(make_sequence(list(range(40)), 5, name="long"))
    scheduler.add(make_sequence([1, 2, 3], 5, name="short"))
    # 18.2 ms of the 26 are planned with: 1, 1.5 for each stream, 1 for each row, and 0.5 more for that which is sampled.
    spans = [[span[1:] for span in take_step(scheduler, executor).batch.tolist()] for _ in range(4)]
    assert spans == [
        [(1, 1, 1), (1, 1, 1), (0, 14, 0)],
        [(2, 1, 1), (2, 1, 1), (14, 14, 0)],
        [(3, 1, 1), (3, 1, 1), (28, 12, 1), (0, 1, 0)],
        [(4, 1, 1), (4, 1, 1), (40, 1, 1), (1, 2, 1)],
    ]


@pytest.mark.parametrize(("seconds", "rows"), [(0.09, [69, 69, 69]), (0.12, [69, 69, 59]), (0.5, [69, 69, 3])])
def test_where_the_machine_stalls_a_prompt_takes_less_and_never_nothing(seconds: float, rows: list[int]) -> None:
    """70 of 100 ms are planned with. From the second time on that steps take 50 ms more, 60 are; and if there is no room at
    all for what they take more, as long again as the stream takes alone, which is 2."""
    costs = FakeCosts(row_ms=1.0)
    scheduler, executor = make_scheduler(rows=512, blocks=64, max_model_len=512, cost_model=costs, itl_target_ms=100.0)
    scheduler.add(make_sequence([1], 100, name="stream"))
    take_step(scheduler, executor)
    scheduler.add(make_sequence([2] * 400, 5, name="long"))
    taken = []
    for _ in rows:
        step = scheduler.schedule()
        assert step is not None
        taken.append(step.shape.num_rows)
        run_step(scheduler, executor, step, seconds=seconds)
    assert taken == rows


def test_a_prompt_that_nobody_waits_beside_takes_all_rows() -> None:
    scheduler, executor = make_scheduler(rows=64, cost_model=FakeCosts(row_ms=1.0), itl_target_ms=2.0)
    scheduler.add(make_sequence([1] * 100, 5))
    assert [take_step(scheduler, executor).shape.num_rows for _ in range(3)] == [64, 36, 1]


@pytest.mark.parametrize(
    ("row_ms", "itl_target_ms", "rows"),
    [(2.0, 0.1, [2, 2, 2]), (2.0, 41.0, [2, 2, 2]), (2.0, 64.0, [3, 3, 3]), (10.0, 57.0, [1, 1, 1])],
)
def test_where_the_target_leaves_no_time_a_prompt_still_advances(
    row_ms: float, itl_target_ms: float, rows: list[int]
) -> None:
    """Two streams take 41 ms alone, of which a tenth is time for two rows, as 75% of 64 ms is for three; or 57, where a
    tenth is not even for one."""
    costs = FakeCosts(row_ms, logits_ms=18.0)
    scheduler, executor = make_scheduler(rows=64, cost_model=costs, itl_target_ms=itl_target_ms)
    for seed in range(2):
        scheduler.add(make_sequence([seed], 100, name=f"stream {seed}"))
    take_step(scheduler, executor)
    scheduler.add(make_sequence(list(range(10)), 5, name="long"))
    assert [take_step(scheduler, executor).shape.num_rows - 2 for _ in rows] == rows


def test_the_cost_model_is_told_what_a_step_took() -> None:
    costs = FakeCosts(row_ms=1.0)
    scheduler, executor = make_scheduler(cost_model=costs)
    for seed in range(2):
        scheduler.add(make_sequence([seed] * 5, 100, name=f"stream {seed}"))
    for num_steps, seconds in ((1, 0.003), (11, 0.11)):
        step = scheduler.schedule()
        assert step is not None
        for sequence in step.sequences:
            sequence.token_ids += [0] * num_steps
            executor.sequences.num_tokens[sequence.slot] = sequence.num_tokens
        scheduler.update(step, num_steps, seconds)
    # Rows, tokens attended to, logits, milliseconds, tokens read; of many steps those of the one in the middle.
    assert costs.observed == [(10, 30, 2, 3.0, 10), (2, 2 * 6 + 10, 2, 10.0, 2 * 6 + 10)]


def test_what_a_target_needs_is_checked() -> None:
    with pytest.raises(ValueError, match="itl_target_ms: 5, expected None without a cost model"):
        make_scheduler(itl_target_ms=5)
    with pytest.raises(
        ValueError, match=r"max_num_seqs: 5, expected at most the rows \(4\) and logits \(8\) of a step"
    ):
        make_scheduler(seqs=5, rows=4)


def test_many_steps_are_taken_without_python_between_them() -> None:
    scheduler, executor = make_scheduler(max_model_len=3 * MAX_STEPS)
    sequence = make_sequence([1, 2, 3], 2 * MAX_STEPS, seed=1)
    scheduler.add(sequence)
    steps = run_all(scheduler, executor)
    assert sequence.num_output_tokens > MAX_STEPS
    assert len(steps) == 1 + -(-(sequence.num_output_tokens - 1) // MAX_STEPS)  # the prompt in a step of its own


def test_one_that_waits_for_a_slot_does_not_shorten_the_runs_of_others() -> None:
    scheduler, executor = make_scheduler(seqs=1)
    scheduler.add(make_sequence([1], 60, name="a"))
    scheduler.add(make_sequence([2], 60, name="b"))
    take_step(scheduler, executor)
    step = scheduler.schedule()
    assert step is not None
    assert (len(step.sequences), step.max_steps) == (1, MAX_STEPS)


def test_one_that_waits_for_rows_alone_is_not_kept_waiting() -> None:
    scheduler, _ = make_scheduler(seqs=3, rows=3)
    for name in "abc":
        scheduler.add(make_sequence([1, 2, 3][: 2 if name == "a" else 1], 60, name=name))
    step = scheduler.schedule()
    assert step is not None
    assert (len(step.sequences), step.max_steps) == (2, 1)


def test_the_youngest_is_preempted_and_computed_again() -> None:
    scheduler, executor = make_scheduler(blocks=4, max_model_len=64)
    old, young = make_sequence([1] * 20, 40, seed=3, name="old"), make_sequence([2] * 20, 40, seed=4, name="young")
    scheduler.add(old)
    scheduler.add(young)
    run_all(scheduler, executor)
    assert scheduler.num_preemptions > 0
    for sequence, seed in ((old, 3), (young, 4)):
        assert sequence.token_ids[20:] == expected_tokens(sequence.token_ids[:20], 40, seed)


def test_one_of_a_higher_priority_takes_the_place_of_the_last_of_a_lower_one() -> None:
    scheduler, executor = make_scheduler(seqs=2)
    later, usual, usual_too, urgent, urgent_too = (
        make_sequence([number], 20, name=str(number), priority=priority)
        for number, priority in enumerate((1, 0, 0, -1, -1))
    )
    for sequence in (later, usual):
        scheduler.add(sequence)
    assert [s.request.request_id for s in run_once(scheduler, executor)] == ["1", "0"]
    scheduler.add(usual_too)
    assert [s.request.request_id for s in run_once(scheduler, executor)] == ["1", "2"]
    assert later.num_output_tokens == 1
    scheduler.add(urgent)
    scheduler.add(urgent_too)
    assert [s.request.request_id for s in run_once(scheduler, executor)] == ["3", "4"]
    assert scheduler.num_preemptions == 3
    run_all(scheduler, executor)
    assert {s.num_output_tokens for s in (later, usual, usual_too, urgent, urgent_too)} == {20}


def run_once(scheduler: Scheduler, executor: ScriptedExecutor) -> list[Sequence]:
    """Take one step; what runs then, by rank."""
    step = scheduler.schedule()
    assert step is not None
    step.max_steps = 1
    run_step(scheduler, executor, step)
    return scheduler.running


def test_no_blocks_are_taken_for_a_higher_priority_from_its_own() -> None:
    scheduler, executor = make_scheduler(seqs=4, blocks=4, max_model_len=64)
    scheduler.add(make_sequence([1] * 30, 10, name="a"))
    scheduler.add(make_sequence([2] * 30, 10, name="b", tenant="other"))
    run_once(scheduler, executor)
    scheduler.add(make_sequence([3] * 10, 10, name="c", tenant="third"))
    run_once(scheduler, executor)
    assert (scheduler.num_running, scheduler.num_preemptions) == (2, 0)
    scheduler.add(make_sequence([4] * 30, 10, name="d", priority=-1))
    assert [s.request.request_id for s in run_once(scheduler, executor)] == ["d", "a"]


def test_nothing_of_a_lower_priority_gives_way_in_vain() -> None:
    scheduler, executor = make_scheduler(seqs=4, blocks=16, rows=256, max_model_len=256)
    usual, later = make_sequence([1] * 40, 100, name="usual"), make_sequence([2] * 40, 30, name="later", priority=1)
    scheduler.add(usual)
    scheduler.add(later)
    run_once(scheduler, executor)
    large = make_sequence([3] * 220, 10, name="large")  # 14 blocks, of which `usual` leaves 13
    scheduler.add(large)
    run_once(scheduler, executor)
    assert (scheduler.running, scheduler.num_preemptions) == ([usual, later], 0)
    run_all(scheduler, executor)
    assert (usual.num_output_tokens, later.num_output_tokens, large.num_output_tokens) == (100, 30, 10)


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60), st.sampled_from("ab")), min_size=2, max_size=8),
    seqs=st.integers(2, 6),
)
def test_a_sequence_is_preempted_no_more_often_than_blocks_are_needed_anew(
    sizes: list[tuple[int, int, str]], seqs: int
) -> None:
    scheduler, executor = make_scheduler(seqs=seqs, blocks=8, max_model_len=128)
    sequences = [
        make_sequence([number] * prompt, output, name=str(number), tenant=tenant)
        for number, (prompt, output, tenant) in enumerate(sizes)
    ]
    times: Counter[Sequence] = Counter()
    preempt = scheduler._preempt

    def count_and_preempt(sequence: Sequence) -> None:
        times[sequence] += 1
        preempt(sequence)

    scheduler._preempt = count_and_preempt  # type: ignore[method-assign]
    for sequence in sequences:
        scheduler.add(sequence)
    run_all(scheduler, executor)
    num_new_blocks = 0  # of a sequence and those before it, after their prompts
    for sequence in sequences:
        num_new_blocks += -(-sequence.num_tokens // KV_BLOCK_SIZE) - -(-sequence.num_prompt_tokens // KV_BLOCK_SIZE)
        assert times[sequence] <= num_new_blocks
        assert sequence.is_finished
    assert not times[sequences[0]]


def test_blocks_are_reserved_ahead_only_as_far_as_there_are_any() -> None:
    scheduler, executor = make_scheduler(blocks=3, max_model_len=48)
    for name in "ab":
        scheduler.add(make_sequence([1] * 9, 30, name=name))
    take_step(scheduler, executor)
    step = scheduler.schedule()
    assert step is not None
    assert step.max_steps == 4  # both stay within the 16 tokens of their blocks
    assert scheduler.kv_cache.block_pool.num_free == 1


def test_scored_prompts_are_chunked_by_the_logits_that_a_step_has_room_for() -> None:
    scheduler, executor = make_scheduler(seqs=1, rows=64, logits=8)
    sequence = make_sequence([1] * 20, 3, seed=2, prompt_logprobs=0)
    scheduler.add(sequence)
    steps = run_all(scheduler, executor)
    assert [step.batch.tolist()[0][1:] for step in steps[:3]] == [(0, 8, 8), (8, 8, 8), (16, 4, 4)]
    assert sequence.prompt_logprobs is not None
    assert len(sequence.prompt_logprobs) == 20


def test_a_finished_sequence_keeps_its_blocks_until_the_run_has_ended() -> None:
    scheduler, executor = make_scheduler()
    sequence = make_sequence([1] * 20, 60)
    scheduler.add(sequence)
    scheduler.schedule()
    scheduler.finish(sequence, "abort")
    assert executor.sequences.stop_flags[sequence.slot] == 1
    assert scheduler.kv_cache.block_pool.num_free < 32
    assert scheduler.kv_cache_usage == 0
    assert scheduler.has_work
    assert scheduler.schedule() is None
    assert scheduler.kv_cache.block_pool.num_free == 32
    assert not scheduler.has_work


def test_what_could_never_fit_is_refused() -> None:
    scheduler, _ = make_scheduler(blocks=2)
    with pytest.raises(ValueError, match="needs 3 KV blocks, expected at most 2"):
        scheduler.add(make_sequence([1] * 20, 14))
    scheduler.add(make_sequence([1] * 20, 13))  # the last token takes no room
