"""``waferline bench schedule``: a request trace replayed against the simulated engine and, if wanted, the real one.

The simulation is the engine's own scheduler on a virtual clock, moved by a cost model that has learnt from measured steps
of this machine (``--fabric host``) or goes by a maker's figures (``--fabric wse3``).
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from waferline_kernels.sequences import ExecutorLimits

from ..fabric.cost import CostModel
from ..fabric.residency import fill_cores
from ..fabric.spec import FABRICS, wse3
from ..model.compile import stored_tensors
from ..model.load import Model, load_model
from ..runtime.admission import AdmissionLimits, check_milliseconds
from ..runtime.limits import plan_limits
from ..runtime.request_options import check_request_options
from .calibration import calibrated_cost_model
from .output import PERCENTILES, machine, print_json, print_table, rounded
from .replay import replay
from .simulation import Simulation, TimedScheduler
from .streams import OUTCOMES, StreamRecorder, summarize
from .trace import TraceRequest, read_trace
from .workload import TimedRequest, make_workload

RANGES = {"time_scale": (1e-6, 1e6), "load": (1e-6, 1e6), "seconds": (1e-9, 1e9)}
CAPACITY_REQUESTS = 500  # of the trace, that come all at once to see how many a second can be served
LIMITS = ("max_num_seqs", "max_model_len", "max_num_batched_tokens", "kv_cache_memory", "kv_dtype")
BOUNDS = ("max_waiting_requests", "max_waiting_tokens", "max_ttft_ms")
LATENCIES = {"TTFT": "ttft", "ITL": "itl", "queue": "queue", "refusal": "refusal"}
FIGURES = {
    "requests/s": "requests_per_second",
    "tokens/s": "tokens_per_second",
    "goodput, requests/s": "goodput_per_second",
    "fluidity index": "fluidity_index",
    "fluid streams": "fluid_share",
    "preemptions": "num_preemptions",
    "steps": "num_steps",
    "schedules": "num_schedules",
    "a schedule, p50 us": "schedule_p50_us",
    "a schedule, p99 us": "schedule_p99_us",
    "the same of the fullest": "full_schedule_p50_us",
    "a step's share, us": "schedule_us_per_step",
}


def run(args: argparse.Namespace) -> None:
    """Simulate, replay and print. Raises ModelError, OSError, ValueError or BackendUnavailable for what cannot be done,
    and RuntimeError where a request is unaccounted for."""
    _check(args)
    model = load_model(args.model, args.dtype, args.max_model_len)
    trace = read_trace(args.trace, None if args.seconds else args.requests, args.skip)
    limits, cost_model = _engine_of(args, model)
    capacity = measure_capacity(args, model, limits, cost_model, trace)
    workload = _make_workload(args, trace, capacity)
    results = {"simulated": _simulate(args, model, limits, cost_model, workload)}
    if args.real:
        results["real"] = _replay(args, model, workload)
    result = {
        "model": model.name,
        "dtype": model.dtype,
        "fabric": args.fabric,
        "requests": len(workload),
        "capacity_per_second": round(capacity.per_second, 3),
        "capacity_requests": capacity.num_requests,
        "capacity_refused": capacity.num_requests - capacity.num_finished,
        "load": rounded(_load(workload, capacity), 3),
        "ttft_limit_ms": args.ttft_limit_ms,
        "itl_limit_ms": args.itl_limit_ms,
        **{name: getattr(args, name) for name in ("itl_target_ms", "queue_timeout_ms", *BOUNDS)},
        "max_num_seqs": limits.max_num_seqs,
        "max_model_len": limits.max_model_len,
        "max_num_batched_tokens": limits.max_num_batched_tokens,
        "num_kv_blocks": limits.num_kv_blocks,
        **results,
    }
    if args.json:
        print_json({"bench": "schedule", **machine(), **result})
    else:
        _print(result, results)


class Capacity(NamedTuple):
    """What an engine makes of requests that come all at once; those that it does not finish are too long for it."""

    num_requests: int
    num_finished: int
    seconds: float

    @property
    def per_second(self) -> float:
        """Requests that are finished."""
        return self.num_finished / self.seconds

    @property
    def asked_per_second(self) -> float:
        """Requests of which those that can be finished are as many as that."""
        return self.num_requests / self.seconds


def measure_capacity(
    args: argparse.Namespace, model: Model, limits: ExecutorLimits, cost_model: CostModel, trace: list[TraceRequest]
) -> Capacity:
    """Of a simulated engine, with requests of ``trace`` that are picked evenly. Raises ValueError where none can be
    served."""
    workload = make_workload(trace[:: -(-len(trace) // CAPACITY_REQUESTS)], 0.0, args.seed)
    simulation = Simulation(model, limits, cost_model, args.seed, itl_target_ms=args.itl_target_ms)
    simulation.run(workload)
    num_finished = simulation.recorder.outcomes()["finished"]
    if not num_finished:
        raise ValueError(
            f"trace: {args.trace}: none of {len(workload)} requests can be served, expected some of fewer than "
            f"{limits.max_model_len} prompt tokens"
        )
    return Capacity(len(workload), num_finished, simulation.clock.now_ns * 1e-9)


def scheduling_costs(scheduler: TimedScheduler, num_steps: int) -> dict[str, Any]:
    """Processor time of schedules that were made, and of those for nearly as many sequences as ever ran at once."""
    if not scheduler.costs_ns:
        return {"num_schedules": 0}
    costs, sequences = np.array(scheduler.costs_ns) * 1e-3, np.array(scheduler.num_scheduled)
    full = costs[sequences >= 0.9 * sequences.max()]
    return {
        "num_schedules": len(costs),
        "schedule_p50_us": round(float(np.percentile(costs, 50)), 1),
        "schedule_p99_us": round(float(np.percentile(costs, 99)), 1),
        "full_schedule_p50_us": round(float(np.percentile(full, 50)), 1),
        "full_sequences": int(sequences.max()),
        "schedule_us_per_step": round(float(costs.sum()) / num_steps, 1),
    }


def _check(args: argparse.Namespace) -> None:
    if args.fabric not in FABRICS:
        raise ValueError(f"fabric: {args.fabric!r}, expected one of {', '.join(FABRICS)}")
    if args.real and args.fabric != "host":
        raise ValueError(f"fabric: {args.fabric!r}, expected 'host', which alone has a real engine")
    for field, (least, most) in RANGES.items():
        value = getattr(args, field)
        if value is not None and not least <= value <= most:
            raise ValueError(f"{field}: {value}, expected {least:g} to {most:g}")
    for field in ("ttft_limit_ms", "itl_limit_ms", "itl_target_ms"):
        check_milliseconds(field, getattr(args, field))
    for field in ("skip", "seed"):
        if getattr(args, field) < 0:
            raise ValueError(f"{field}: {getattr(args, field)}, expected at least 0")
    check_request_options({"queue_timeout_ms": args.queue_timeout_ms})
    if not 0 <= args.cancel_share <= 1:
        raise ValueError(f"cancel_share: {args.cancel_share}, expected 0 to 1")
    if args.seconds is not None and args.load is None:
        raise ValueError(f"seconds: {args.seconds}, expected a load with it")


def _engine_of(args: argparse.Namespace, model: Model) -> tuple[ExecutorLimits, CostModel]:
    """What bounds the engine, and what its steps take."""
    limits = {name: getattr(args, name) for name in LIMITS}
    if args.fabric == "host":
        planned = plan_limits(model, **limits)
        return planned, calibrated_cost_model(model, args.threads, planned.kv_dtype)
    fabric, program = wse3(), model.program
    where = fill_cores(program, fabric)
    if limits["kv_cache_memory"] is None:  # all that the weights leave free
        weights = sum(tensor.nbytes for tensor in stored_tensors(program.tensors))
        limits["kv_cache_memory"] = fabric.levels[-1].bytes_total - weights
    planned = plan_limits(model, **limits)
    return planned, CostModel(program, where, fabric, planned.kv_dtype)


def _make_workload(args: argparse.Namespace, trace: list[TraceRequest], capacity: Capacity) -> list[TimedRequest]:
    """The requests wanted. A load asks for as many times the capacity, on the average over all of them."""
    limits_ns = round(args.ttft_limit_ms * 1e6), round(args.itl_limit_ms * 1e6)
    if args.load is None:
        return make_workload(trace, args.time_scale, args.seed, args.cancel_share, *limits_ns)
    rate = args.load * capacity.asked_per_second
    if args.seconds is not None:
        count = max(2, round(rate * args.seconds))
        if count > len(trace):
            raise ValueError(
                f"seconds: {args.seconds}, expected at most {len(trace) / rate:.1f}: the trace has {len(trace)} "
                f"requests, and {rate:.1f} a second are wanted"
            )
        trace = trace[:count]
    span = trace[-1].arrival_ns * 1e-9
    if span == 0:
        raise ValueError(f"load: {args.load}, expected none for a trace whose {len(trace)} requests come at once")
    return make_workload(trace, len(trace) / rate / span, args.seed, args.cancel_share, *limits_ns)


def _load(workload: list[TimedRequest], capacity: Capacity) -> float | None:
    """How many times the capacity is asked for; None where all do so at once."""
    seconds = workload[-1].arrival_ns * 1e-9
    return len(workload) / seconds / capacity.asked_per_second if seconds else None


def _simulate(
    args: argparse.Namespace, model: Model, limits: ExecutorLimits, cost_model: CostModel, workload: list[TimedRequest]
) -> dict[str, Any]:
    bounds = AdmissionLimits(**{name: getattr(args, name) for name in BOUNDS})
    simulation = Simulation(model, limits, cost_model, args.seed, itl_target_ms=args.itl_target_ms, bounds=bounds)
    simulation.run(workload, args.queue_timeout_ms)
    scheduler, num_steps = simulation.scheduler, simulation.runner.num_steps
    figures = _figures(args, simulation.recorder, num_steps, scheduler.num_preemptions)
    return {**figures, **scheduling_costs(scheduler, num_steps)}


def _replay(args: argparse.Namespace, model: Model, workload: list[TimedRequest]) -> dict[str, Any]:
    options = {name: getattr(args, name) for name in ("threads", "itl_target_ms", *LIMITS, *BOUNDS)}
    recorder, stats = replay(model, workload, args.seed, args.queue_timeout_ms, **options)
    return _figures(args, recorder, stats.steps_total, stats.num_preemptions_total)


def _figures(
    args: argparse.Namespace, recorder: StreamRecorder, num_steps: int, num_preemptions: int
) -> dict[str, Any]:
    return {
        **recorder.outcomes(),
        **summarize(recorder.streams.values(), args.ttft_limit_ms, args.itl_limit_ms),
        "num_steps": num_steps,
        "num_preemptions": num_preemptions,
    }


def _print(result: Mapping[str, Any], results: Mapping[str, Mapping[str, Any]]) -> None:
    print(
        f"{result['model']} {result['dtype']} on {result['fabric']}, up to {result['max_num_seqs']} sequences at once"
    )
    load = "at once, of" if result["load"] is None else f"at {result['load']:.2f} of"
    print(
        f"{result['requests']} requests {load} a capacity of {result['capacity_per_second']:.2f} a second "
        f"({result['capacity_refused']} of {result['capacity_requests']} refused as too long); "
        f"good: TTFT to {result['ttft_limit_ms']:g} ms, no gap over {result['itl_limit_ms']:g} ms"
    )
    rows: list[list[str]] = []

    def add(name: str, field: str) -> None:
        values = [figures.get(field) for figures in results.values()]
        if any(value is not None for value in values):
            rows.append([name, *("" if value is None else f"{value:.5g}" for value in values)])

    for outcome in OUTCOMES:
        add(outcome.replace("_", " "), outcome)
    for name, field in LATENCIES.items():
        for part in (*(f"p{p}" for p in PERCENTILES), "max"):
            add(f"{name} {part}, ms", f"{field}_{part}_ms")
    for name, field in FIGURES.items():
        add(name, field)
    print_table(("", *results), rows)
