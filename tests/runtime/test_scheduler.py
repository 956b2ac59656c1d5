"""The scheduler, driven by a scripted executor: whatever is added, aborted and preempted, every sequence gets exactly
its own tokens, and every slot and block returns."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from scripted import VOCAB, ScriptedExecutor, expected_tokens, make_sequence

from waferline.runtime.messages import TokenLogprob
from waferline.runtime.output_processor import append_prompt_logprobs, append_token, unpack_entries
from waferline.runtime.scheduler import MAX_STEPS, ScheduledStep, Scheduler
from waferline.runtime.sequence import Sequence
from waferline_kernels.executor import RunResult, StopReason
from waferline_kernels.sequences import KV_BLOCK_SIZE, ExecutorLimits

STOP_IDS = (7, 31)


def make_scheduler(
    seqs: int = 4, rows: int = 64, blocks: int = 32, max_model_len: int = 128, logits: int | None = None
) -> tuple[Scheduler, ScriptedExecutor]:
    limits = ExecutorLimits(seqs, min(max_model_len, blocks * KV_BLOCK_SIZE), rows, logits or max(seqs, 8), blocks)
    executor = ScriptedExecutor(limits)
    return Scheduler(limits, executor.sequences), executor


def run_step(scheduler: Scheduler, executor: ScriptedExecutor, step: ScheduledStep) -> RunResult:
    """What the engine does with a step."""
    result = executor.run(None, step.batch, step.max_steps)
    for slot, position, token, is_prompt, finish, _, _ in unpack_entries(executor.ring.drain()):
        sequence = scheduler.slots[slot]
        assert sequence is not None
        if is_prompt:
            append_prompt_logprobs(sequence, position, [TokenLogprob(token, 0.0, 1, "")])
        elif not sequence.is_finished:
            delta = append_token(sequence, token, finish, 0, None)
            if delta.finish_reason:
                scheduler.finish(sequence, delta.finish_reason)
    scheduler.update(step, result.num_steps)
    return result


def run_all(scheduler: Scheduler, executor: ScriptedExecutor) -> list[ScheduledStep]:
    steps = []
    while (step := scheduler.schedule()) is not None:
        run_step(scheduler, executor, step)
        steps.append(step)
        assert len(steps) < 10_000, "no end"
    return steps


class SchedulerMachine(RuleBasedStateMachine):
    @initialize(
        seqs=st.integers(1, 5),
        spare_rows=st.integers(0, 40),
        blocks=st.integers(1, 12),
        spare_logits=st.integers(0, 5),
    )
    def start(self, seqs: int, spare_rows: int, blocks: int, spare_logits: int) -> None:
        self.scheduler, self.executor = make_scheduler(seqs, seqs + spare_rows, blocks, logits=seqs + spare_logits)
        self.limits = self.executor.limits
        self.all: list[Sequence] = []

    @rule(seeds=st.lists(st.integers(0, 999), min_size=1, max_size=4), may_stop=st.booleans())
    def add(self, seeds: list[int], may_stop: bool) -> None:
        longest = self.limits.max_model_len
        for seed in seeds:
            random = np.random.default_rng(seed)
            prompt = random.integers(VOCAB, size=random.integers(1, longest // 2 + 1)).tolist()
            max_tokens = int(random.integers(1, longest - len(prompt) + 1))
            name, prompt_logprobs = f"r{len(self.all)}", 0 if seed % 2 else None
            stop_ids = STOP_IDS if may_stop else ()
            sequence = make_sequence(prompt, max_tokens, seed, name, prompt_logprobs, stop_ids)
            self.all.append(sequence)
            self.scheduler.add(sequence)

    @precondition(lambda self: self.scheduler.waiting or self.scheduler.running)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        alive = [sequence for sequence in self.all if not sequence.is_finished]
        if alive:
            self.scheduler.finish(data.draw(st.sampled_from(alive)), "abort")

    @rule(times=st.integers(1, 10))
    def steps(self, times: int) -> None:
        for _ in range(times):
            self.step()

    def step(self) -> None:
        alive = [sequence for sequence in self.all if not sequence.is_finished]
        step = self.scheduler.schedule()
        assert (step is None) == (not alive)
        if step is None:
            return
        assert 1 <= step.max_steps <= MAX_STEPS
        assert alive[0] in step.sequences, "the oldest always advances"
        assert step.batch["count"].sum() <= self.limits.max_num_batched_tokens
        assert step.batch["num_logits"].sum() <= self.limits.max_num_logits
        before = {sequence.request.request_id: sequence.num_computed_tokens for sequence in step.sequences}
        result = run_step(self.scheduler, self.executor, step)
        assert result.num_steps >= 1
        # Nothing else ends a run early: reserved blocks suffice, and no flag is left over from an earlier sequence.
        assert result.reason in (StopReason.STEPS, StopReason.FINISHED)
        for sequence in step.sequences:
            assert sequence.num_computed_tokens > before[sequence.request.request_id]
            assert sequence.is_finished or sequence.num_computed_tokens < sequence.num_tokens

    @invariant()
    def sequences_are_in_order_of_arrival(self) -> None:
        order = {id(sequence): number for number, sequence in enumerate(self.all)}
        numbers = [order[id(sequence)] for sequence in [*self.scheduler.running, *self.scheduler.waiting]]
        assert numbers == sorted(numbers)

    @invariant()
    def every_block_has_one_owner(self) -> None:
        pool, running = self.scheduler.block_pool, self.scheduler.running
        held = [block_id for sequence in running for block_id in sequence.block_ids]
        assert len(held) == len(set(held)) == pool.num_blocks - pool.num_free
        for sequence in running:
            table = self.executor.sequences.block_tables[sequence.slot]
            assert table[: len(sequence.block_ids)].tolist() == sequence.block_ids
            assert self.scheduler.slots[sequence.slot] is sequence
        assert not any(sequence.block_ids or sequence.is_running for sequence in self.scheduler.waiting)

    def teardown(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        run_all(self.scheduler, self.executor)
        assert self.scheduler.block_pool.num_free == self.limits.num_kv_blocks
        assert self.scheduler.slots == [None] * self.limits.max_num_seqs
        assert self.scheduler.kv_cache_usage == self.scheduler.num_running == 0
        for sequence in self.all:
            request = sequence.request
            expected = expected_tokens(
                request.prompt_token_ids, request.max_tokens, request.seed, tuple(request.stop_ids)
            )
            output = sequence.token_ids[sequence.num_prompt_tokens :]
            if sequence.finish_reason == "abort":
                assert output == expected[: len(output)]
                continue
            assert output == expected
            assert sequence.finish_reason == ("stop" if output[-1] in request.stop_ids else "length")
            if sequence.prompt_logprobs is not None:
                scored = [logprobs[0].token_id for logprobs in sequence.prompt_logprobs[1:]]
                assert scored == request.prompt_token_ids[1:]


SchedulerMachine.TestCase.settings = settings(max_examples=30, stateful_step_count=20, deadline=None)
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
        assert step.max_steps == (MAX_STEPS if step.batch["num_logits"].all() else 1)
        step.max_steps = 1
        run_step(scheduler, executor, step)
    assert spans == [[(3, 1, 1), (0, 7, 0)], [(4, 1, 1), (7, 7, 0)], [(5, 1, 1), (14, 6, 1)]]


def test_many_steps_are_taken_without_python_between_them() -> None:
    scheduler, executor = make_scheduler()
    sequence = make_sequence([1, 2, 3], 60, seed=1)
    scheduler.add(sequence)
    steps = run_all(scheduler, executor)
    assert sequence.num_output_tokens > MAX_STEPS
    assert len(steps) == -(-sequence.num_output_tokens // MAX_STEPS)


def test_one_that_waits_for_a_slot_does_not_shorten_the_runs_of_others() -> None:
    scheduler, _ = make_scheduler(seqs=1)
    scheduler.add(make_sequence([1], 60, name="a"))
    scheduler.add(make_sequence([2], 60, name="b"))
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


def test_blocks_are_reserved_ahead_only_as_far_as_there_are_any() -> None:
    scheduler, _ = make_scheduler(blocks=3, max_model_len=48)
    for name in "ab":
        scheduler.add(make_sequence([1] * 10, 30, name=name))
    step = scheduler.schedule()
    assert step is not None
    assert step.max_steps == 4  # both stay within the 16 tokens of their blocks
    assert scheduler.block_pool.num_free == 1


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
    assert scheduler.block_pool.num_free < 32
    assert scheduler.kv_cache_usage == 0
    assert scheduler.has_work
    assert scheduler.schedule() is None
    assert scheduler.block_pool.num_free == 32
    assert not scheduler.has_work


def test_what_could_never_fit_is_refused() -> None:
    scheduler, _ = make_scheduler(blocks=2)
    with pytest.raises(ValueError, match="needs 3 KV blocks, expected at most 2"):
        scheduler.add(make_sequence([1] * 20, 14))
    scheduler.add(make_sequence([1] * 20, 13))  # the last token takes no room
