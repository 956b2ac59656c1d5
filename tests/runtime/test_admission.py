"""Admission: what is let in, what is answered at once, and how good its predictions are."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from recorder import RecordingCore
from scripted import ScriptedExecutor, make_request
from stepper import run_step

from waferline.model.load import Model
from waferline.runtime.admission import LEAST_MARGIN, SPREADS, Admission, AdmissionLimits, cautious_turns
from waferline.runtime.errors import RequestFailed
from waferline.runtime.request import Request
from waferline.runtime.scheduler import Scheduler
from waferline_kernels.sequences import ExecutorLimits


class LinearCost:
    """A step takes 5 ms, 0.1 ms for each row of a prompt, and ``context_ms`` for each token that is attended to."""

    def __init__(self, context_ms: float = 0.0) -> None:
        self.context_ms = context_ms

    def predict_step_ms(
        self, num_rows: int, context_tokens: int, num_logits_rows: int, kv_tokens: int | None = None
    ) -> float:
        return 5 + 0.1 * (num_rows - num_logits_rows) + self.context_ms * context_tokens


class Bench:
    """A scheduler whose steps take what LinearCost says."""

    def __init__(
        self, seqs: int = 8, rows: int = 264, blocks: int = 1000, context_ms: float = 0.0, **bounds: Any
    ) -> None:
        limits = ExecutorLimits(seqs, 2048, rows, max(seqs, 8), blocks)
        self.executor = ScriptedExecutor(limits)
        self.scheduler = Scheduler(limits, self.executor.sequences)
        self.cost_model: Any = LinearCost(context_ms)
        self.admission = Admission(AdmissionLimits(**bounds), self.scheduler, limits, self.cost_model)
        self.milliseconds = 0.0
        self.num_generated = 0

    def accept(self, request: Request) -> Request:
        self.admission.check(request)
        self.admission.taken_up(request)
        for sequence in request.sequences:
            self.scheduler.add(sequence)
        return request

    def refusal(self, request: Request) -> RequestFailed:
        with pytest.raises(RequestFailed) as refused:
            self.admission.check(request)
        assert refused.value.code == "overloaded"
        assert refused.value.retry_after_ms is not None
        assert refused.value.retry_after_ms >= 1
        return refused.value

    def step(self) -> None:
        step = self.scheduler.schedule()
        assert step is not None
        step.max_steps = 1
        self.milliseconds += self.cost_model.predict_step_ms(*step.shape)
        _, deltas = run_step(self.scheduler, self.executor, step)
        self.num_generated += len(deltas)
        for sequence in step.sequences:
            if sequence.is_finished:
                self.admission.ended(self.num_generated)


def prompt_of(number: int, length: int) -> list[int]:
    return [number % 50, number // 50, *[7] * (length - 2)]


def test_without_bounds_all_are_let_in() -> None:
    bench = Bench(seqs=1)
    for number in range(2000):
        bench.accept(make_request(prompt_of(number, 20), 10))
    assert len(bench.scheduler.waiting) == 2000


def test_the_worked_example() -> None:
    bench = Bench()
    for number in range(7):
        bench.accept(make_request(prompt_of(number, 2), 100))
    bench.step()  # 7 run, and an eighth can
    bench.accept(make_request(prompt_of(7, 1999), 100))
    request = make_request([1], 100)
    ahead, own = bench.admission._predict(request)
    # Room for 264 - 7 rows beside the 7 that run.
    assert ahead == pytest.approx(1999 / 257 * 5 + 1999 * 0.1)
    assert own == pytest.approx(1 / 256 * 5 + 0.1)  # the one ahead decodes by then
    bench.admission.ended(40)
    # One of the 8 has to end before there is a slot; 7.8 steps are more than the 5 that this takes.
    assert bench.admission._predict(request)[0] == pytest.approx(ahead)
    bench.admission.ended(40 + 360)
    assert bench.admission._predict(request)[0] == pytest.approx(200 / 8 * 5 + 1999 * 0.1)


def predicted_and_taken_ms(bench: Bench, request: Request) -> tuple[float, float]:
    """Until the first token of ``request``, accepted now."""
    predicted, begin = bench.admission.predict_ttft_ms(request), bench.milliseconds
    bench.accept(request)
    while request.num_output_tokens == 0:
        bench.step()
    return predicted, bench.milliseconds - begin


@pytest.mark.parametrize(("prompt", "output", "seqs"), [(300, 2, 32), (10, 100, 4), (100, 50, 8)])
def test_the_predicted_time_is_about_what_it_takes(prompt: int, output: int, seqs: int) -> None:
    bench = Bench(seqs=seqs)
    first = [bench.accept(make_request(prompt_of(number, prompt), output, seed=number)) for number in range(3 * seqs)][
        :seqs
    ]
    while not all(sequence.is_finished for request in first for sequence in request.sequences):
        bench.step()
    for number in range(100, 100 + 2 * seqs):
        bench.accept(make_request(prompt_of(number, prompt), output, seed=number))
    last = make_request(prompt_of(200, prompt), output)
    predicted, taken = predicted_and_taken_ms(bench, last)
    assert taken == pytest.approx(predicted, rel=0.25)


def test_a_short_prompt_waits_long_behind_long_ones() -> None:
    """Their rows take longer than its own, which attend to less."""
    bench = Bench(seqs=16, context_ms=1e-3)
    for number in range(6):
        bench.accept(make_request(prompt_of(number, 1800), 40, seed=number))
    bench.step()
    last = make_request([1, 2, 3], 10)
    predicted, taken = predicted_and_taken_ms(bench, last)
    assert taken == pytest.approx(predicted, rel=0.1)


def test_what_takes_longer_than_predicted_is_reckoned_with() -> None:
    bench = Bench(seqs=32, max_ttft_ms=1000)
    bench.accept(make_request(prompt_of(0, 300), 2))
    request = make_request(prompt_of(1, 1900), 2)
    for factor in (0.5, 1.0, 5.0):
        bench.admission.check(request)
        bench.admission.taken_up(request)
        for _ in range(100):
            bench.admission.begun(request, factor * request.predicted_ttft_ms)
        assert bench.admission.slowness == pytest.approx(max(1.0, factor), rel=0.02)
    bench.refusal(request)


def test_first_tokens_that_vary_leave_less_of_the_bound() -> None:
    bench = Bench(seqs=32, max_ttft_ms=1000)
    request = make_request(prompt_of(1, 1900), 2)
    bench.accept(request)
    margins = []
    for off in (0.0, 0.1, 0.3):
        for number in range(200):
            bench.admission.begun(request, (1 + off * (-1) ** number) * request.predicted_ttft_ms)
        margins.append(bench.admission.margin)
    assert margins == pytest.approx([LEAST_MARGIN, 1 + SPREADS * 0.1, 1 + SPREADS * 0.3], rel=0.05)


def test_without_a_bound_first_tokens_teach_nothing() -> None:
    bench = Bench()
    request = bench.accept(make_request([1, 2, 3], 2))
    before = bench.admission.margin
    for _ in range(20_000):  # so often that an average of zeros would come to nothing
        bench.admission.begun(request, 5.0)
    assert bench.admission.margin == before


@pytest.mark.parametrize("turns", [1, 2, 5, 20, 100])
def test_completions_end_hardly_ever_later_than_is_reckoned_with(turns: int) -> None:
    times = np.random.default_rng(turns).exponential(size=(20_000, turns)).sum(axis=1)
    assert 0.01 < np.mean(times > cautious_turns(turns)) < 0.04
    assert cautious_turns(turns) > turns > cautious_turns(0) == 0


def test_a_bound_on_waiting_requests_counts_those_that_find_no_slot() -> None:
    bench = Bench(seqs=2, max_waiting_requests=3)
    for number in range(5):
        bench.accept(make_request([number], 10))
    error = bench.refusal(make_request([9], 10))
    assert error.message == "max_waiting_requests: 4 with this request, expected at most 3"
    bench.step()
    bench.refusal(make_request([9], 10))  # two run, three wait
    bench.scheduler.finish(bench.scheduler.running[0], "abort")
    bench.accept(make_request([9], 10))  # takes the slot in its turn
    bench.refusal(make_request([9], 10))


def test_no_waiting_at_all_can_be_asked_for() -> None:
    bench = Bench(seqs=2, max_waiting_requests=0)
    bench.accept(make_request([1], 10, n=2))
    bench.refusal(make_request([2], 10))
    bench.step()
    bench.refusal(make_request([2], 10))
    assert (bench.scheduler.num_running, len(bench.scheduler.waiting)) == (2, 0)


def test_what_has_been_let_in_counts_before_the_scheduler_knows_of_it() -> None:
    bench = Bench(seqs=1, max_waiting_requests=1)
    first, second, third = (make_request([number], 10) for number in range(3))
    bench.admission.check(first)
    bench.admission.check(second)
    bench.refusal(third)
    bench.admission.taken_up(second)  # its caller was interrupted
    bench.admission.check(third)


def test_a_bound_on_waiting_tokens() -> None:
    bench = Bench(seqs=1, max_waiting_tokens=100)
    bench.accept(make_request(prompt_of(0, 500), 10))  # alone: it does not wait
    bench.step()
    bench.accept(make_request(prompt_of(1, 60), 10))
    error = bench.refusal(make_request(prompt_of(2, 41), 10))
    assert error.message == "max_waiting_tokens: 101 with this request, expected at most 100"
    bench.accept(make_request(prompt_of(3, 40), 10))


def test_a_slow_queue_is_known_beforehand_and_the_time_to_come_back_is_right() -> None:
    bench = Bench(seqs=32, max_ttft_ms=1000)
    number = 0
    while True:
        request = make_request(prompt_of(number, 300), 2, seed=number)
        try:
            bench.accept(request)
        except RequestFailed as error:
            refused = error
            break
        number += 1
    assert 15 < number < 40  # some 36 ms each
    match = re.fullmatch(r"max_ttft_ms: (\d+) are predicted, expected at most 1000", refused.message)
    assert match
    assert 1000 < int(match[1]) < 1050
    assert refused.retry_after_ms is not None
    begin = bench.milliseconds
    while bench.milliseconds < begin + refused.retry_after_ms:
        bench.step()
    bench.accept(request)


def test_urgent_requests_are_let_in_where_others_are_not() -> None:
    bench = Bench(seqs=32, max_ttft_ms=1625)
    for number in range(27):
        bench.accept(make_request(prompt_of(number, 300), 2))
    bench.refusal(make_request(prompt_of(50, 600), 2))
    bench.accept(make_request(prompt_of(50, 600), 2, priority=-1))
    bench.accept(make_request(prompt_of(51, 300), 2, tenant="another"))  # whose turn is next
    assert len(bench.scheduler.waiting) == 29


def test_an_idle_engine_takes_what_no_bound_would_allow() -> None:
    bench = Bench(seqs=2, max_waiting_requests=0, max_waiting_tokens=0, max_ttft_ms=0.001)
    bench.accept(make_request(prompt_of(0, 2000), 10, n=5))
    assert len(bench.scheduler.waiting) == 5


def test_slots_without_blocks_are_not_free() -> None:
    bench = Bench(seqs=8, blocks=20, max_waiting_requests=1)
    for number in range(3):
        bench.accept(make_request(prompt_of(number, 150), 10))
    bench.step()
    assert bench.scheduler.num_running == 2
    bench.refusal(make_request(prompt_of(9, 150), 10))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_waiting_requests": -1}, ValueError, "max_waiting_requests: -1, expected at least 0"),
        ({"max_waiting_tokens": 1.5}, TypeError, "max_waiting_tokens: 1.5, expected an integer or None"),
        ({"max_ttft_ms": 0}, ValueError, "max_ttft_ms: 0, expected 0.001 to 1e"),
        ({"max_ttft_ms": "1"}, TypeError, "max_ttft_ms: '1', expected milliseconds or None"),
        ({"tenant_weights": {"a": 0}}, ValueError, "tenant_weights: 'a': 0, expected a number above 0"),
        ({"tenant_weights": ["a"]}, TypeError, "tenant_weights: .'a'., expected a dict from the tenants' names"),
    ],
)
def test_bounds_that_are_none_are_refused(
    tiny_model: Model, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        RecordingCore(tiny_model, **options)
