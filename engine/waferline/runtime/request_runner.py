"""RequestRunner: the requests at hand, and the three verbs ``schedule -> run -> postprocess`` that advance them.

It has no threads, no lock and no clock but the one it is given: whoever drives it (EngineCore's threads, or a simulation)
calls one method at a time, apart from ``run``, beside which requests may be let in, and ``process`` may be called for the
tokens that a run of many steps has made so far.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from waferline_kernels.executor import Executor, RunResult

from ..model.load import Model
from .admission import Admission
from .deadlines import Deadlines
from .errors import DUPLICATE_ID, INTERNAL, RequestFailed
from .messages import Accepted, EngineOutput, Finished, GenerateRequest, RequestError
from .output_processor import (
    append_prompt_logprobs,
    append_token,
    held_back,
    join_deltas,
    token_logprobs,
    unpack_entries,
)
from .request import Request, admit_request
from .request_options import begin_limit
from .scheduler import Scheduler
from .sequence import Sequence
from .step_builder import ScheduledStep

logger = logging.getLogger(__name__)


def make_request(message: GenerateRequest, model: Model, max_model_len: int, now_ns: int) -> Request | RequestError:
    """The request that ``message`` asks for, its sequences made; what its client is told where ``model`` cannot run it, or
    its time is over at ``now_ns``."""
    try:
        request = admit_request(message, model, max_model_len, now_ns)
        request.sequences = [Sequence(request, index, model.tokenizer) for index in range(request.params.n)]
    except RequestFailed as error:
        return RequestError(message.request_id, error.code, error.message)
    except Exception as error:
        logger.exception("request %s could not be admitted", message.request_id)
        return RequestError(message.request_id, INTERNAL, f"the request could not be admitted: {error!r}")
    return request


class RequestRunner:
    """Runs requests of ``model`` on ``executor``, in the steps of ``scheduler``. ``on_output`` is given every message to
    the outside, in order. ``clock_ns``: of the requests' times of arrival."""

    def __init__(
        self,
        model: Model,
        executor: Executor,
        scheduler: Scheduler,
        on_output: Callable[[list[EngineOutput]], None],
        admission: Admission,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.admission = admission
        self.deadlines = Deadlines()
        self.refusal: RequestFailed | None = None  # of every further request
        self.num_prompt_tokens = self.num_output_tokens = self.num_steps = 0
        self.step_seconds = 0.0
        self.num_begun = 0  # requests
        self.queue_seconds = 0.0  # that they had waited
        self.finish_reasons = Counter(stop=0, length=0, abort=0, deadline=0)
        self.error_codes: Counter[str] = Counter()
        self._model = model
        self._executor = executor
        self._scheduler = scheduler
        self._on_output = on_output
        self._clock_ns = clock_ns
        self._requests: dict[str, Request] = {}
        self._last_token_ns = 0  # when the last step ended that gave tokens
        self._gaps_ms: list[float] = []  # between such steps, of the run at hand

    @property
    def is_idle(self) -> bool:
        """Whether every request that was accepted has ended."""
        return not self._requests

    @property
    def oldest_wait_seconds(self) -> float:
        """How long the request of the sequence that waits longest has been here; 0 where none waits."""
        arrivals = [sequence.request.arrival_ns for sequence in self._scheduler.waiting.oldest()]
        return (self._clock_ns() - min(arrivals)) / 1e9 if arrivals else 0.0

    def let_in(self, request: Request) -> bool:
        """Whether ``request`` is to be accepted soon; where there is too much to do it is answered now."""
        try:
            if self.refusal is None:
                self.admission.check(request)
        except RequestFailed as error:
            self.emit_error(RequestError(request.request_id, error.code, error.message, error.retry_after_ms))
            return False
        return True

    def accept(self, request: Request) -> None:
        """Queue the sequences of ``request``, or refuse it."""
        self.admission.taken_up(request)
        refusal = self.refusal
        if request.request_id in self._requests:
            refusal = RequestFailed(DUPLICATE_ID, f"request_id: {request.request_id!r} is in use, expected a new one")
        if refusal is not None:
            self.emit_error(RequestError(request.request_id, refusal.code, refusal.message))
            return
        self._requests[request.request_id] = request
        self.num_prompt_tokens += len(request.prompt_token_ids)
        self._emit([Accepted(request.request_id, request.prompt_token_ids, request.seed)])
        for sequence in request.sequences:
            self._scheduler.add(sequence)
        self.deadlines.add(request)

    def abort(self, request_id: str) -> None:
        """End a request; nothing happens where none of that id is at hand."""
        request = self._requests.get(request_id)
        if request is not None:
            self._finish_all(request, "abort")

    def end_overdue(self) -> None:
        """End the requests that are out of time: with what they have, or with an error where they have not begun."""
        if self.deadlines.next_ns is None:
            return
        now_ns = self._clock_ns()
        for request in self.deadlines.take_due(now_ns):
            limit = begin_limit(request)
            if limit is not None and not request.has_begun:
                self._fail([request], limit.failure())
            elif request.end_by_ns is not None and request.end_by_ns <= now_ns:
                self._finish_all(request, "deadline")

    def schedule(self) -> ScheduledStep | None:
        """The next step; None where no sequence is left."""
        step = self._scheduler.schedule()
        for request in self._scheduler.take_begun():
            self.num_begun += 1
            self.queue_seconds += (self._clock_ns() - request.arrival_ns) / 1e9
        return step

    def run(self, step: ScheduledStep) -> RunResult | Exception:
        """Run ``step``; why it failed where it did."""
        try:
            return self._executor.run(self._model.program, step.batch, step.max_steps)
        except Exception as error:
            logger.exception("a step failed")
            return error

    def postprocess(self, step: ScheduledStep, result: RunResult | Exception) -> None:
        """Emit what is left of the tokens of ``step``, and record how far it came. Where it failed, all requests that had
        a part in it have."""
        if isinstance(result, Exception):
            requests = {sequence.request.request_id: sequence.request for sequence in step.sequences}
            alive = [request for name, request in requests.items() if self._requests.get(name) is request]
            self._fail(alive, RequestFailed(INTERNAL, f"the step failed: {result}"))
        self.process(self._executor.ring.drain())
        if isinstance(result, RunResult):
            self._scheduler.update(step, result.num_steps, result.seconds, self._gaps_ms)
            self._gaps_ms = []
            self.num_steps += result.num_steps
            self.step_seconds += result.seconds

    def process(self, entries: NDArray[np.void]) -> None:
        """Turn ``entries`` (ENTRY [n]) into outputs."""
        outputs: list[EngineOutput] = []
        slots, tokenizer = self._scheduler.slots, self._model.tokenizer
        for row, (slot, position, token, is_prompt, finish, num_top, time_ns) in enumerate(unpack_entries(entries)):
            if time_ns != self._last_token_ns:
                self._gaps_ms.append((time_ns - self._last_token_ns) * 1e-6)
                self._last_token_ns = time_ns
            sequence = slots[slot]
            if sequence is None or sequence.finish_reason is not None:
                continue  # computed beyond a stop
            try:
                logprobs = token_logprobs(entries[row], tokenizer) if num_top >= 0 else None
                if is_prompt:
                    append_prompt_logprobs(sequence, position, logprobs)
                    continue
                delta = append_token(sequence, token, finish, time_ns, logprobs)
            except Exception as error:
                logger.exception("request %s failed", sequence.request.request_id)
                self._emit(outputs)
                outputs = []
                self._fail([sequence.request], RequestFailed(INTERNAL, f"token {token} of it failed: {error!r}"))
                continue
            (outputs if sequence.gathered is None else sequence.gathered).append(delta)
            self.num_output_tokens += 1
            if sequence.index == 0 and sequence.num_output_tokens == 1:
                self.admission.begun(sequence.request, (self._clock_ns() - sequence.request.entry_ns) * 1e-6)
            if delta.finish_reason is not None:
                self._finish(sequence, delta.finish_reason, outputs)
        self._emit(outputs)

    def emit_error(self, error: RequestError) -> None:
        """Tell of a request that is not, or no longer, at hand."""
        self.error_codes[error.code] += 1
        self._emit([error])

    def end(self, reason: RequestFailed) -> None:
        """End every request with ``reason``, and refuse all further ones. The scheduler, which may be what failed, is
        not asked."""
        self.refusal = reason
        for request in list(self._requests.values()):
            for sequence in request.sequences:
                sequence.finish_reason = sequence.finish_reason or "error"
            del self._requests[request.request_id]
            self.emit_error(RequestError(request.request_id, reason.code, reason.message))

    def _finish(self, sequence: Sequence, reason: str, outputs: list[EngineOutput]) -> None:
        """End ``sequence``, and with the last of its request the request."""
        self._scheduler.finish(sequence, reason)
        if sequence.is_running:
            self.admission.ended(self.num_output_tokens)
        if sequence.gathered:
            outputs.append(join_deltas(sequence.gathered))
        self.finish_reasons[reason] += 1
        request = sequence.request
        if request.is_finished:
            reasons = [str(sequence.finish_reason) for sequence in request.sequences]
            outputs.append(
                Finished(
                    request.request_id,
                    reasons,
                    len(request.prompt_token_ids),
                    request.num_output_tokens,
                    request.num_cached_tokens,
                )
            )
            del self._requests[request.request_id]

    def _finish_all(self, request: Request, reason: str) -> None:
        outputs: list[EngineOutput] = []
        for sequence in request.sequences:
            if sequence.is_finished:
                continue
            rest = held_back(sequence, self._last_token_ns)
            if rest is not None:
                (outputs if sequence.gathered is None else sequence.gathered).append(rest)
            self._finish(sequence, reason, outputs)
        self._emit(outputs)

    def _fail(self, requests: list[Request], error: RequestFailed) -> None:
        """End ``requests``, none of which has ended, with ``error``."""
        for request in requests:
            for sequence in request.sequences:
                if not sequence.is_finished:
                    self._scheduler.finish(sequence, "error")
            del self._requests[request.request_id]
            self.emit_error(RequestError(request.request_id, error.code, error.message))

    def _emit(self, outputs: list[EngineOutput]) -> None:
        if outputs:
            self._on_output(outputs)
