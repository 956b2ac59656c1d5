"""Replaying a workload against the real engine, in real time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from ..model.load import Model
from ..runtime.engine_core import EngineCore
from ..runtime.stats import EngineStats
from .streams import Stream, StreamRecorder
from .workload import TimedRequest

LEAD_NS = 10**8  # between having everything ready and the first request


def replay(
    model: Model, workload: Iterable[TimedRequest], seed: int, queue_timeout_ms: int | None, **options: Any
) -> tuple[StreamRecorder, EngineStats]:
    """Ask an EngineCore of ``model`` for each of ``workload`` when it is due, and wait until all have ended: what came
    back, and the engine's own figures. ``options``: what EngineCore takes. Latencies count from when a request was due, be
    it asked for late, and a token's time is when the engine hands it over."""
    recorder = StreamRecorder(time.monotonic_ns)
    core = EngineCore(model, on_output=recorder.on_output, **options)
    try:
        begin = time.monotonic_ns() + LEAD_NS
        for due_ns, act in _events(core, recorder, workload, seed, queue_timeout_ms, begin):
            time.sleep(max(0, due_ns - time.monotonic_ns()) * 1e-9)
            act()
        core.drain()
        return recorder, core.stats()
    finally:
        core.close()


def _events(
    core: EngineCore,
    recorder: StreamRecorder,
    workload: Iterable[TimedRequest],
    seed: int,
    queue_timeout_ms: int | None,
    begin: int,
) -> list[tuple[int, Callable[[], None]]]:
    """When to do what, in the order of time."""

    def arrive(timed: TimedRequest) -> None:
        recorder.begin(Stream(timed.request_id, begin + timed.arrival_ns, timed.num_prompt_tokens))
        core.add(timed.message(core.model.program.dims.vocab, seed, queue_timeout_ms))

    events = []
    for timed in workload:
        due = begin + timed.arrival_ns
        events.append((due, partial(arrive, timed)))
        if timed.patience_ns is not None:
            events.append((due + timed.patience_ns, partial(core.abort, timed.request_id)))
    return sorted(events, key=lambda event: event[0])
