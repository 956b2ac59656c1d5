"""The runner on a clock of the test's: every request is answered once, in time, and accounted for."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import LetterTokenizer, ScriptedExecutor, expected_tokens, make_request

from waferline.runtime.admission import Admission, AdmissionLimits
from waferline.runtime.deadlines import Deadlines
from waferline.runtime.messages import Accepted, Delta, EngineOutput, Finished, RequestError
from waferline.runtime.request import Request
from waferline.runtime.request_runner import RequestRunner
from waferline.runtime.scheduler import Scheduler
from waferline_kernels.executor import empty_entries
from waferline_kernels.sequences import ExecutorLimits

MS = 1_000_000


class RunnerBench:
    """A runner that takes a step in each millisecond."""

    def __init__(self, seqs: int = 2, blocks: int = 16, rows: int = 16, **bounds: Any) -> None:
        limits = ExecutorLimits(seqs, 16 * blocks, rows, max(seqs, 8), blocks)
        self.executor = executor = ScriptedExecutor(limits)
        model: Any = SimpleNamespace(program=None, tokenizer=LetterTokenizer())
        cost_model: Any = SimpleNamespace(predict_step_ms=lambda *shape: 1.0)
        self.scheduler = Scheduler(limits, executor.sequences)
        admission = Admission(AdmissionLimits(**bounds), self.scheduler, limits, cost_model)
        self.now_ns = 0
        self.messages: dict[str, list[EngineOutput]] = {}
        self.runner = RequestRunner(model, executor, self.scheduler, self.record, admission, lambda: self.now_ns)

    def record(self, outputs: list[EngineOutput]) -> None:
        for output in outputs:
            self.messages.setdefault(output.request_id, []).append(output)

    def ask(self, request: Request) -> None:
        request.arrival_ns = request.entry_ns = self.now_ns
        if self.runner.let_in(request):
            self.runner.accept(request)

    def step(self) -> None:
        self.runner.end_overdue()
        step = self.runner.schedule()
        if step is not None:
            step.max_steps = 1
            self.runner.postprocess(step, self.runner.run(step))
        self.now_ns += MS

    def end(self, name: str) -> EngineOutput:
        return self.messages[name][-1]

    def check_that_nothing_is_left(self) -> None:
        assert self.runner.schedule() is None
        assert self.runner.is_idle
        assert self.scheduler.kv_cache.block_pool.num_free == self.scheduler.kv_cache.block_pool.num_blocks
        assert not self.scheduler.running
        assert not self.scheduler.waiting
        assert self.runner.deadlines.take_due(10**12) == []


def test_a_deadline_ends_a_completion_with_what_it_has() -> None:
    bench = RunnerBench()
    bench.ask(make_request([1, 2], 100, name="late", deadline_ms=5))
    bench.ask(make_request([3], 3, name="in time", deadline_ms=5, n=1))
    for _ in range(6):
        bench.step()
    assert bench.end("late") == Finished("late", ["deadline"], 2, 5)
    assert bench.end("in time") == Finished("in time", ["length"], 1, 3)
    assert bench.runner.finish_reasons == {"stop": 0, "length": 1, "abort": 0, "deadline": 1}
    bench.check_that_nothing_is_left()


def test_the_scheduler_is_told_how_long_streams_waited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's time between two runs included, and for each step of a run."""
    bench = RunnerBench(seqs=3)
    told: list[list[float]] = []
    monkeypatch.setattr(bench.scheduler, "update", lambda *arguments: told.append(arguments[-1]))
    bench.ask(make_request([1], 100, n=2))
    for time_ns in (5 * MS, 7 * MS, 30 * MS):
        bench.executor.time_ns = time_ns
        bench.step()
    for time_ns in (32 * MS, 35 * MS):
        entries = empty_entries(3)
        entries["slot"], entries["time_ns"] = 2, time_ns
        bench.runner.process(entries)
    bench.executor.time_ns = 39 * MS
    bench.step()
    assert [pytest.approx(gaps) for gaps in told] == [[5], [2], [23], [2, 3, 4]]


def test_a_deadline_keeps_what_is_gathered_and_ends_all_completions() -> None:
    bench = RunnerBench()
    request = make_request([1, 2], 100, name="late", deadline_ms=5, n=3)
    for sequence in request.sequences:
        sequence.gathered = []
    bench.ask(request)
    for _ in range(6):
        bench.step()
    *_, finished = bench.messages["late"]
    assert finished == Finished("late", ["deadline"] * 3, 2, 10)  # the third had no slot
    assert [len(m.token_ids) for m in bench.messages["late"] if isinstance(m, Delta)] == [5, 5]
    bench.check_that_nothing_is_left()


@pytest.mark.parametrize("gathers", [False, True])
def test_a_deadline_lets_out_text_that_was_held_back(gathers: bool) -> None:
    tokens = expected_tokens([1, 2], 5, 0)
    text = "".join(map(LetterTokenizer().token_text, tokens))
    bench = RunnerBench()
    request = make_request([1, 2], 100, name="late", deadline_ms=5, stop=text[2:] + "never")
    request.sequences[0].gathered = [] if gathers else None
    bench.ask(request)
    for _ in range(6):
        bench.step()
    deltas = [message for message in bench.messages["late"] if isinstance(message, Delta)]
    assert "".join(delta.text for delta in deltas) == text
    assert [token for delta in deltas for token in delta.token_ids] == tokens
    assert len(deltas) == (1 if gathers else 6)
    bench.check_that_nothing_is_left()


@pytest.mark.parametrize("option", ["queue_timeout_ms", "deadline_ms"])
def test_what_has_not_begun_in_time_fails(option: str) -> None:
    bench = RunnerBench(seqs=1)
    bench.ask(make_request([1], 10, name="runs", queue_timeout_ms=3))
    options: dict[str, Any] = {option: 3}
    bench.ask(make_request([2], 10, name="waits", **options))
    bench.ask(make_request([2], 3, name="patient", queue_timeout_ms=20, deadline_ms=100))
    for _ in range(20):
        bench.step()
    assert bench.end("waits") == RequestError("waits", "deadline_exceeded", f"{option}: 3, and it had not begun")
    assert bench.end("runs") == Finished("runs", ["length"], 1, 10)
    assert bench.end("patient") == Finished("patient", ["length"], 1, 3)
    assert bench.runner.num_begun == 2
    assert bench.runner.queue_seconds == pytest.approx(0.010)
    bench.check_that_nothing_is_left()


def test_one_that_was_preempted_has_begun() -> None:
    bench = RunnerBench(seqs=2, blocks=3)
    bench.ask(make_request([1] * 10, 30, name="first"))
    bench.ask(make_request([2] * 10, 30, name="second", queue_timeout_ms=10))
    while not bench.scheduler.num_preemptions:
        bench.step()
    assert bench.runner.oldest_wait_seconds == pytest.approx(bench.now_ns / 1e9)
    while not bench.runner.is_idle:
        bench.step()
    assert bench.end("second") == Finished("second", ["length"], 10, 30)


@settings(max_examples=40, deadline=None)
@given(data=st.data(), seqs=st.integers(1, 3), bound=st.sampled_from([None, 0, 2, 5]), ttft=st.sampled_from([None, 9]))
def test_every_request_is_answered_once_and_accounted_for(
    data: st.DataObject, seqs: int, bound: int | None, ttft: float | None
) -> None:
    bench = RunnerBench(seqs, blocks=6, max_waiting_requests=bound, max_ttft_ms=ttft)
    times = st.none() | st.integers(1, 20)
    requests = {}
    for number in range(data.draw(st.integers(1, 20))):
        name = str(number)
        requests[name] = make_request(
            [number % 50] * data.draw(st.integers(1, 40)),
            data.draw(st.integers(1, 30)),
            number,
            name,
            n=data.draw(st.sampled_from([1, 1, 2, 3])),
            deadline_ms=data.draw(times),
            queue_timeout_ms=data.draw(times),
            priority=data.draw(st.sampled_from([0, 0, 1])),
            tenant=data.draw(st.sampled_from([None, "a", "b"])),
        )
        bench.ask(requests[name])
        for _ in range(data.draw(st.integers(0, 4))):
            bench.step()
        if data.draw(st.integers(0, 4)) == 0:
            bench.runner.abort(data.draw(st.sampled_from(sorted(requests))))
    for _ in range(1000):
        if bench.runner.is_idle:
            break
        bench.step()
    bench.check_that_nothing_is_left()

    outcomes: Counter[str] = Counter()
    for name, request in requests.items():
        *before, end = bench.messages[name]
        assert not any(isinstance(message, Finished | RequestError) for message in before)
        if isinstance(end, RequestError) and end.code == "overloaded":
            assert not before
            assert end.retry_after_ms is not None
        else:
            assert [isinstance(message, Accepted) for message in before] == [True] + [False] * (len(before) - 1)
        if isinstance(end, RequestError):
            outcomes[end.code] += 1
            assert not request.num_output_tokens
            continue
        assert isinstance(end, Finished)
        outcomes.update(end.finish_reasons)
        assert end.num_output_tokens == sum(isinstance(message, Delta) for message in before)
        if "deadline" in end.finish_reasons:
            assert request.deadline_ms is not None
    errors = bench.runner.error_codes
    assert set(errors) <= {"overloaded", "deadline_exceeded"}
    assert outcomes == +(bench.runner.finish_reasons + errors)
    assert sum(request.params.n for name, request in requests.items() if bench.messages[name][1:]) >= sum(
        bench.runner.finish_reasons.values()
    )


@given(times=st.lists(st.tuples(st.integers(1, 50), st.booleans()), max_size=200), step=st.integers(1, 20))
def test_deadlines_come_in_their_order_and_those_of_ended_requests_never(
    times: list[tuple[int, bool]], step: int
) -> None:
    deadlines = Deadlines()
    expected = []
    for number, (milliseconds, ends) in enumerate(times):
        request = make_request([1], 1, name=str(number), deadline_ms=milliseconds)
        deadlines.add(request)
        if ends:
            request.sequences[0].finish_reason = "stop"
        else:
            expected.append((request.end_by_ns, number, request))  # once, although it has to begin by then too
    assert len(deadlines._heap) <= 2 * len(times)
    expected.sort(key=lambda entry: entry[:2])
    due: list[Request] = []
    for now_ms in range(0, 51 + step, step):
        found = deadlines.take_due(now_ms * MS)
        assert all(request.deadline_ms is not None and request.deadline_ms <= now_ms for request in found)
        due += found
        assert deadlines.next_ns is None or deadlines.next_ns > now_ms * MS
    assert due == [request for _, _, request in expected]


def test_deadlines_far_away_of_ended_requests_take_no_memory() -> None:
    deadlines = Deadlines()
    for _ in range(1000):
        request = make_request([1], 1, deadline_ms=2**31 - 1)
        deadlines.add(request)
        request.sequences[0].finish_reason = "stop"
    assert len(deadlines._heap) < 200
