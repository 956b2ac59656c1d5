"""The simulated engine: every request accounted for, times that only go forward, and the same run for the same seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from waferline.bench.simulation import Simulation
from waferline.bench.streams import summarize
from waferline.bench.trace import TraceRequest
from waferline.bench.workload import TimedRequest, make_workload
from waferline.fabric.cost import CostModel
from waferline.fabric.residency import fill_cores
from waferline.fabric.spec import wse3
from waferline.model.load import Model, load_model
from waferline.runtime.admission import AdmissionLimits
from waferline.runtime.stalls import PLANNED_SHARE
from waferline_kernels.sequences import ExecutorLimits

TINY_MODEL = Path(__file__).parents[1] / "fixtures" / "qwen2"
MAX_MODEL_LEN = 200


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model(TINY_MODEL, "q8")


def make_cost_model(model: Model) -> CostModel:
    """A wafer's: the same on every machine."""
    fabric = wse3()
    return CostModel(model.program, fill_cores(model.program, fabric), fabric, "f32")


def make_simulation(model: Model, num_kv_blocks: int = 40, **options: Any) -> Simulation:
    limits = ExecutorLimits(8, MAX_MODEL_LEN, 64, 8, num_kv_blocks)
    return Simulation(model, limits, make_cost_model(model), 3, **options)


def make_trace(count: int) -> list[TraceRequest]:
    """Requests of 1 to 210 and 1 to 60 tokens, every 200 us."""
    return [TraceRequest(at * 200_000, 1 + at * 37 % 210, 1 + at * 11 % 60) for at in range(count)]


def events(simulation: Simulation) -> list[tuple[object, ...]]:
    streams = simulation.recorder.streams.values()
    return [(s.request_id, s.outcome, s.answer_ns, s.start_ns, s.end_ns, tuple(s.token_times_ns)) for s in streams]


def test_every_request_is_accounted_for_and_time_goes_forward(model: Model) -> None:
    trace = make_trace(300)
    workload = make_workload(trace, 1.0, 1, 0.2, 10**6, 10**4)
    impatient = {timed.request_id for timed in workload if timed.patience_ns is not None}
    simulation = make_simulation(model)
    simulation.run(workload, queue_timeout_ms=10)
    outcomes = simulation.recorder.outcomes()
    assert sum(outcomes.values()) == 300
    assert outcomes["rejected"] == sum(request.num_prompt_tokens >= MAX_MODEL_LEN for request in trace) > 0
    assert outcomes["cancelled"] > 10
    assert outcomes["timed_out"] > 10
    assert outcomes["failed"] == 0
    assert simulation.scheduler.num_preemptions > 0
    for timed, traced in zip(workload, trace, strict=True):
        stream = simulation.recorder.streams[timed.request_id]
        times = [stream.arrival_ns, stream.answer_ns, stream.start_ns, *stream.token_times_ns, stream.end_ns]
        known = [time for time in times if time is not None]
        assert known == sorted(known)
        assert len(set(stream.token_times_ns)) == len(stream.token_times_ns)
        if stream.outcome == "finished":
            room = MAX_MODEL_LEN - traced.num_prompt_tokens
            assert len(stream.token_times_ns) == min(room, traced.num_output_tokens)
        if stream.outcome == "cancelled":
            assert timed.request_id in impatient
    assert simulation.scheduler.kv_cache.block_pool.num_free == 40


def test_the_same_seed_gives_the_same_run(model: Model) -> None:
    first, second, third = make_simulation(model), make_simulation(model), make_simulation(model)
    for simulation, seed in ((first, 1), (second, 1), (third, 2)):
        simulation.run(make_workload(make_trace(60), 1.0, seed, 0.2, 10**6, 10**4))
    assert events(first) == events(second)
    assert events(first) != events(third)


def test_a_request_alone_takes_what_the_cost_model_predicts(model: Model) -> None:
    """A prompt of 100 tokens in steps of 64 rows, then two single ones; nothing else advances the clock."""
    simulation, cost_model = make_simulation(model), make_cost_model(model)
    simulation.run([TimedRequest(0, 1000, 100, 3, None)])
    steps = [(64, sum(range(1, 65)), 0, 64), (36, sum(range(65, 101)), 1, 100), (1, 101, 1, 101), (1, 102, 1, 102)]
    durations = [round(cost_model.predict_step_ms(*step) * 1e6) for step in steps]
    ends = [1000 + sum(durations[: at + 1]) for at in range(4)]
    [stream] = simulation.recorder.streams.values()
    assert stream.token_times_ns == ends[1:]
    assert (stream.answer_ns, stream.start_ns, stream.end_ns) == (1000, 1000, ends[-1])
    assert simulation.runner.num_steps == 4
    assert len(simulation.scheduler.num_scheduled) < 4  # decoding is one run of several steps


def test_steps_that_take_what_is_predicted_leave_the_whole_target_to_plan_with(model: Model) -> None:
    simulation = make_simulation(model, itl_target_ms=0.02)
    simulation.run(make_workload(make_trace(100), 0.1, 0))
    assert simulation.scheduler.target is not None
    assert simulation.scheduler.target.stalls.planned_ms == PLANNED_SHARE * 0.02


def test_an_arrival_wakes_a_run_of_many_steps(model: Model) -> None:
    """A request that comes while another decodes begins with the next step, and does not wait for the run's end."""
    alone = make_simulation(model)
    alone.run([TimedRequest(0, 0, 10, 60, None)])
    times = alone.recorder.streams["request-0"].token_times_ns
    arrival = (times[20] + times[21]) // 2
    both = make_simulation(model)
    both.run([TimedRequest(0, 0, 10, 60, None), TimedRequest(1, arrival, 10, 2, None)])
    assert both.recorder.streams["request-1"].start_ns == times[21]


def test_what_is_too_much_is_refused_at_once(model: Model) -> None:
    """Beside a step that lasts, and in no time; what is accepted waits no longer than the queue is."""
    simulation = make_simulation(model, bounds=AdmissionLimits(max_waiting_requests=3))
    simulation.run(make_workload(make_trace(200), 0.1, 0))
    outcomes, streams = simulation.recorder.outcomes(), simulation.recorder.streams.values()
    assert outcomes["finished"] + outcomes["rejected"] == 200
    too_long = sum(request.num_prompt_tokens >= MAX_MODEL_LEN for request in make_trace(200))
    answered_at_once = [s for s in streams if s.outcome == "rejected" and s.answer_ns == s.arrival_ns]
    assert len(answered_at_once) >= outcomes["rejected"] - too_long > 50
    unbounded = make_simulation(model)
    unbounded.run(make_workload(make_trace(200), 0.1, 0))
    waits = [
        max(s.start_ns - s.arrival_ns for s in run.recorder.streams.values() if s.start_ns is not None)
        for run in (simulation, unbounded)
    ]
    assert waits[0] < waits[1] / 5


def test_more_load_costs_latency(model: Model) -> None:
    figures = []
    for time_scale in (4.0, 0.1):
        simulation = make_simulation(model, num_kv_blocks=200)
        simulation.run(make_workload(make_trace(100), time_scale, 0))
        figures.append(summarize(simulation.recorder.streams.values(), 1.0, 0.1))
    calm, busy = figures
    assert calm["ttft_p95_ms"] < busy["ttft_p95_ms"]
    assert calm["queue_p95_ms"] < busy["queue_p95_ms"]
    assert calm["fluidity_index"] > busy["fluidity_index"]
