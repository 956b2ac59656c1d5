"""A discrete-event simulation of the engine: its own scheduler and request runner, on a clock that a cost model moves.

What EngineCore's threads and its callers do in real time happens here in turn in virtual time. A step takes as long as
the cost model predicts; what callers ask for meanwhile is put in an inbox and wakes the run; tokens are drained when
their step ends, and the inbox is emptied between two runs. The same workload gives the same steps, tokens and times,
whatever the machine.
"""

from __future__ import annotations

import copy
import heapq
import itertools
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from waferline_kernels.executor import RunResult, StepwiseExecutor, StopReason, empty_entries
from waferline_kernels.placement import SHARE, Placement
from waferline_kernels.program import Program
from waferline_kernels.ring import Finish
from waferline_kernels.sequences import NO_LOGPROBS, ExecutorLimits

from ..fabric.cost import CostModel
from ..model.load import Model
from ..runtime.admission import Admission, AdmissionLimits
from ..runtime.messages import RequestError
from ..runtime.request_runner import RequestRunner, make_request
from ..runtime.scheduler import Scheduler
from ..runtime.step_builder import ScheduledStep
from .streams import Stream, StreamRecorder
from .workload import TimedRequest


class VirtualClock:
    """A time that moves only when it is told to, and what is to happen when it comes to other times."""

    def __init__(self) -> None:
        self.now_ns = 0
        self._events: list[tuple[int, int, Callable[[], None]]] = []  # a heap: when, in which order, what
        self._order = itertools.count()

    @property
    def next_ns(self) -> int | None:
        """When the next event is."""
        return self._events[0][0] if self._events else None

    def at(self, time_ns: int, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (time_ns, next(self._order), event))

    def advance(self, time_ns: int) -> None:
        """Move to ``time_ns``, with all events until then each at its own time, those of one time in order."""
        while self._events and self._events[0][0] <= time_ns:
            self.now_ns, _, event = heapq.heappop(self._events)
            event()
        self.now_ns = time_ns


class SimulatedExecutor(StepwiseExecutor):
    """An executor without kernels: a step moves ``clock`` by what ``cost_model`` predicts, and invents tokens. ``on_step``
    is called after each step."""

    name = "simulated"
    level = "none"

    def __init__(
        self, program: Program, limits: ExecutorLimits, cost_model: CostModel, clock: VirtualClock, seed: int
    ) -> None:
        super().__init__(program, Placement(np.zeros((0, 1), SHARE), (0,)), limits)
        self.on_step: Callable[[], None] = lambda: None
        self._cost_model = cost_model
        self._clock = clock
        self._random = np.random.default_rng(seed)

    def run(self, program: Program, batch: NDArray[np.void], max_steps: int) -> RunResult:
        begin = self._clock.now_ns
        result = super().run(program, batch, max_steps)
        return replace(result, seconds=(self._clock.now_ns - begin) * 1e-9)

    def _step(self, program: Program, batch: NDArray[np.void]) -> NDArray[np.void]:
        table, slots = self.sequences, batch["slot"]
        counts, ends = batch["count"].astype(np.int64), batch["start"].astype(np.int64) + batch["count"]
        contexts = counts * batch["start"] + counts * (counts + 1) // 2  # tokens that each span's rows attend to
        milliseconds = self._cost_model.predict_step_ms(
            int(counts.sum()), int(contexts.sum()), int(batch["num_logits"].sum()), int(ends.sum())
        )
        self._clock.advance(self._clock.now_ns + round(milliseconds * 1e6))

        at = batch["num_logits"] > 0  # prompts are not scored: what has logits is sampled
        slots, positions = slots[at], ends[at]
        entries = empty_entries(len(slots))
        entries["slot"], entries["position"] = slots, positions
        entries["token"] = self._random.integers(0, self.dims.vocab, len(slots))
        entries["num_top"] = NO_LOGPROBS
        entries["time_ns"] = self._clock.now_ns
        params = table.sampling[slots]
        is_last = positions + 1 - params["num_prompt_tokens"] >= params["max_tokens"]
        entries["finish"] = np.where(is_last, Finish.LENGTH, Finish.NONE)
        table.tokens[slots, positions] = entries["token"]
        table.num_tokens[slots] = positions + 1
        return entries

    def _reason_to_return(self, *arguments: Any) -> StopReason | None:
        self.on_step()
        return super()._reason_to_return(*arguments)


class TimedScheduler(Scheduler):
    """A scheduler that keeps what each step cost it in processor time, ``schedule`` and ``update`` together."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.costs_ns: list[int] = []  # of each step, by order
        self.num_scheduled: list[int] = []  # sequences of each step

    def schedule(self) -> ScheduledStep | None:
        begin = time.thread_time_ns()
        step = super().schedule()
        took = time.thread_time_ns() - begin
        if step is not None:
            self.costs_ns.append(took)
            self.num_scheduled.append(len(step.sequences))
        return step

    def update(
        self, step: ScheduledStep, num_steps: int, seconds: float = 0.0, gaps_ms: Collection[float] = ()
    ) -> None:
        begin = time.thread_time_ns()
        super().update(step, num_steps, seconds, gaps_ms)
        self.costs_ns[-1] += time.thread_time_ns() - begin


class Simulation:
    """An engine of ``model`` within ``limits`` whose steps take what ``cost_model`` predicts. No weights are read.

    ``itl_target_ms`` and ``bounds`` as EngineCore has them. The scheduler has a cost model of its own that begins as
    this one does, and so knows what steps will take, which a real engine's has to learn.
    """

    def __init__(
        self,
        model: Model,
        limits: ExecutorLimits,
        cost_model: CostModel,
        seed: int,
        *,
        itl_target_ms: float | None = None,
        bounds: AdmissionLimits | None = None,
    ) -> None:
        self.clock = VirtualClock()
        self.recorder = StreamRecorder(lambda: self.clock.now_ns)
        self._model = model
        self._limits = limits
        self._seed = seed
        self._executor = SimulatedExecutor(model.program, limits, cost_model, self.clock, seed)
        learning = copy.deepcopy(cost_model)
        self.scheduler = TimedScheduler(
            limits, self._executor.sequences, cost_model=learning, itl_target_ms=itl_target_ms
        )
        admission = Admission(bounds or AdmissionLimits(), self.scheduler, limits, learning)
        self.runner = RequestRunner(
            model, self._executor, self.scheduler, self.recorder.on_output, admission, lambda: self.clock.now_ns
        )
        self._executor.on_step = lambda: self.runner.process(self._executor.ring.drain())
        self._inbox: list[Callable[[], None]] = []

    def run(self, workload: Iterable[TimedRequest], queue_timeout_ms: int | None = None) -> None:
        """Serve ``workload`` to its end. Raises RuntimeError where a step fails, or where requests are left that neither
        run nor end."""
        for timed in workload:
            self.clock.at(timed.arrival_ns, partial(self._ask, timed, queue_timeout_ms))
        while True:
            self._take_commands()
            step = self.runner.schedule()
            if step is not None:
                self._take(step)
            elif self.clock.next_ns is not None:
                self.clock.advance(self.clock.next_ns)
            else:
                break
        if not self.runner.is_idle:
            raise RuntimeError(f"simulation: {self.recorder.num_open} requests neither run nor end")

    def _take_commands(self) -> None:
        self._executor.sequences.wake[0] = 0
        commands, self._inbox = self._inbox, []
        for command in commands:
            command()
        self.runner.end_overdue()

    def _take(self, step: ScheduledStep) -> None:
        for sequence in step.sequences:
            stream = self.recorder.streams[sequence.request.request_id]
            if stream.start_ns is None:
                stream.start_ns = self.clock.now_ns
        result = self.runner.run(step)
        if isinstance(result, Exception):
            raise RuntimeError(f"simulation: a step failed: {result}") from result
        self.runner.postprocess(step, result)

    # What callers do, at any time.

    def _ask(self, timed: TimedRequest, queue_timeout_ms: int | None) -> None:
        self.recorder.begin(Stream(timed.request_id, timed.arrival_ns, timed.num_prompt_tokens))
        message = timed.message(self._model.program.dims.vocab, self._seed, queue_timeout_ms)
        request = make_request(message, self._model, self._limits.max_model_len, timed.arrival_ns)
        if isinstance(request, RequestError):
            self._post(partial(self.runner.emit_error, request))
            return
        if not self.runner.let_in(request):
            return
        self._post(partial(self.runner.accept, request))
        if queue_timeout_ms is not None:
            self.clock.at(timed.arrival_ns + queue_timeout_ms * 10**6, self._executor.wake)
        if timed.patience_ns is not None:
            abort = partial(self.runner.abort, timed.request_id)
            self.clock.at(timed.arrival_ns + timed.patience_ns, partial(self._post, abort))

    def _post(self, command: Callable[[], None]) -> None:
        self._inbox.append(command)
        self._executor.wake()
