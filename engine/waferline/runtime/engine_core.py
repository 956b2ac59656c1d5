"""EngineCore: requests in, tokens out. Its loop is ``schedule -> run -> postprocess``: the verbs of a RequestRunner.

Two threads serve it. The *engine thread* plans steps and runs them; it sleeps while there is nothing to do. The *drain
thread* takes tokens from the ring while a run of many steps is still going on, so that each leaves the moment it
exists; it sleeps when the engine thread does. They share one lock, which neither holds while a step runs. What others
ask for goes through an inbox that the engine thread empties between runs, so a caller can be interrupted anywhere.
"""

from __future__ import annotations

import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..model.load import Model
from .admission import Admission, AdmissionLimits, check_milliseconds
from .drafter import SpeculativeConfig, read_speculative_config
from .errors import ENGINE_DEAD, SHUTTING_DOWN, RequestFailed
from .executor_setup import ExecutorSetup
from .messages import EngineOutput, GenerateRequest, RequestError
from .request import Request
from .request_runner import RequestRunner, make_request
from .scheduler import Scheduler
from .speculation import DraftCounts
from .stats import EngineStats
from .waiting_queue import check_tenant_weights

# How long a Python thread that computes may keep the engine's from the interpreter. With Python's own 5 ms a cancellation
# then took 5 to 16 ms, and the engine stood still for as long between two runs; with this, 0.3 to 2 ms.
SWITCH_INTERVAL_S = 0.0005
MAX_DRAIN_WAIT_S = 0.1  # how long after the last token the drain thread goes back to sleep

logger = logging.getLogger(__name__)


@dataclass
class Abort:
    request_id: str


@dataclass
class Drain:
    is_drained: threading.Event


@dataclass
class Close:
    reason: RequestFailed  # what every request is told that has not ended


Command = Request | RequestError | Abort | Drain | Close


class EngineCore:
    """Runs ``model`` for many requests at once.

    ``threads``: workers of a step; None leaves it to the placement. ``max_num_seqs``: sequences that run at once.
    ``max_model_len``: tokens of a sequence, prompt and completion; None: as many as the model was made for and the KV
    cache holds. ``max_num_batched_tokens``: rows of a step. ``kv_cache_memory``: bytes; None: half of the free memory,
    and no more than can be used. ``kv_dtype``: "f32", "bf16", "int8", or "auto", which is
    f32 beside weights in f32 and else bf16.
    ``enable_prefix_caching``: whether prompts begin with what is in the KV cache of them. ``itl_target_ms``: milliseconds
    between two tokens of a stream, which the prompts of others do not lengthen beyond it; None: they are computed as fast
    as can be. ``max_waiting_requests``,
    ``max_waiting_tokens``, ``max_ttft_ms``: beyond which a request is answered at once that there is too much to do,
    see AdmissionLimits. ``tenant_weights``: the shares of tenants, by name; 1 for those not named.
    ``speculative_config``: what is drafted, see ``read_speculative_config``; None: nothing.

    ``on_output`` is given every message to the outside, in order, by one thread at a time. It hands them over and
    returns: nothing else happens in the engine meanwhile.

    Python's thread switch interval is lowered to SWITCH_INTERVAL_S for the whole process, and stays so.

    Raises ValueError, TypeError or BackendUnavailable for limits that cannot be met. ``close`` must be called at last.
    """

    def __init__(
        self,
        model: Model,
        *,
        threads: int | None = None,
        max_num_seqs: int = 16,
        max_model_len: int | None = None,
        max_num_batched_tokens: int = 512,
        kv_cache_memory: int | None = None,
        kv_dtype: str = "auto",
        enable_prefix_caching: bool = True,
        itl_target_ms: float | None = None,
        max_waiting_requests: int | None = None,
        max_waiting_tokens: int | None = None,
        max_ttft_ms: float | None = None,
        tenant_weights: dict[str, float] | None = None,
        speculative_config: Mapping[str, Any] | SpeculativeConfig | None = None,
        on_output: Callable[[list[EngineOutput]], None],
    ) -> None:
        if not isinstance(enable_prefix_caching, bool):
            raise TypeError(f"enable_prefix_caching: {enable_prefix_caching!r}, expected True or False")
        check_milliseconds("itl_target_ms", itl_target_ms)
        check_tenant_weights(tenant_weights)
        bounds = AdmissionLimits(max_waiting_requests, max_waiting_tokens, max_ttft_ms)
        speculation = read_speculative_config(speculative_config)
        self._itl_target_ms = itl_target_ms
        self._setup = ExecutorSetup(
            model,
            threads=threads,
            max_num_seqs=max_num_seqs,
            max_model_len=max_model_len,
            max_num_batched_tokens=max_num_batched_tokens,
            kv_cache_memory=kv_cache_memory,
            kv_dtype=kv_dtype,
            num_speculative_tokens=speculation.num_speculative_tokens if speculation else 0,
        )
        self.model = model = self._setup.model
        if itl_target_ms is not None:
            self._setup.touch_kv_cache()
        self._executor = self._setup.executor
        self._scheduler = Scheduler(
            self._setup.limits,
            self._executor.sequences,
            enable_prefix_caching=enable_prefix_caching,
            cost_model=self._setup.cost_model,
            itl_target_ms=itl_target_ms,
            tenant_weights=tenant_weights,
            speculative_config=speculation,
        )
        limits, cost_model = self._setup.limits, self._setup.cost_model
        admission = Admission(bounds, self._scheduler, limits, cost_model)
        self._on_output = on_output
        self._runner = RequestRunner(model, self._executor, self._scheduler, self._emit, admission)
        self._drains: list[Drain] = []

        self._process = os.getpid()
        self._inbox: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._lock: Any = threading.RLock()
        self._is_awake = threading.Event()  # the engine thread, and with it the drain thread
        self._has_ended = False

        sys.setswitchinterval(min(sys.getswitchinterval(), SWITCH_INTERVAL_S))
        self._engine_thread = threading.Thread(target=self._serve, name="waferline-engine", daemon=True)
        self._drain_thread = threading.Thread(target=self._serve_ring, name="waferline-drain", daemon=True)
        self._engine_thread.start()
        self._drain_thread.start()

    # What others call, from any thread.

    def add(self, message: GenerateRequest) -> None:
        """Ask for completions; ``on_output`` is told soon whether they are accepted. A prompt that is a string is
        tokenised in the calling thread. That there is too much to do already is told at once, in the calling thread.
        Raises RuntimeError in a forked child, which has the engine's memory but not its threads."""
        self.check_process()
        request = make_request(message, self.model, self._setup.limits.max_model_len, time.monotonic_ns())
        if isinstance(request, RequestError):
            self._post(request)
        else:
            self._enter(request)

    def check_process(self) -> None:
        """Raise RuntimeError in a forked child, where nobody would answer."""
        if os.getpid() != self._process:
            raise RuntimeError(f"the engine is process {self._process}'s: after a fork, make another one")

    def _enter(self, request: Request) -> None:
        """Hand ``request`` to the engine thread, or answer it now, even while a long step is running."""
        with self._lock:
            if not self._runner.let_in(request):
                return
        try:
            self._post(request)
        except BaseException:  # the caller was interrupted
            self._runner.admission.taken_up(request)
            raise

    def abort(self, request_id: str) -> None:
        """End a request after the step at hand; nothing happens where none of that id is running."""
        self._post(Abort(request_id))

    def drain(self, timeout: float | None = None) -> bool:
        """Refuse further requests and wait for those at hand, at most ``timeout`` seconds; whether all have ended."""
        drain = Drain(threading.Event())
        self._post(drain)
        return drain.is_drained.wait(timeout)

    def close(self) -> None:
        """End every request with an error, stop the threads and release the memory. May be called more than once; in a
        forked child nothing happens."""
        if os.getpid() != self._process:
            return
        self._post(Close(RequestFailed(SHUTTING_DOWN, "the engine was closed")))
        if threading.current_thread() in (self._engine_thread, self._drain_thread) or self._lock._is_owned():
            # Garbage collection ran there and found the engine's owner, or a signal's handler where this thread has the
            # lock: neither can wait for threads that wait for it.
            threading.Thread(target=self.close, name="waferline-close").start()
            return
        self._engine_thread.join()
        self._is_awake.set()
        self._drain_thread.join()
        with self._lock:
            self._setup.close()

    def _post(self, command: Command) -> None:
        self._inbox.put(command)
        self._executor.wake()
        if self._has_ended:
            self._answer_rest()

    def stats(self) -> EngineStats:
        """The numbers of this moment; what has been asked for but not yet been taken up is in none of them. Raises
        RuntimeError in a forked child."""
        self.check_process()
        setup, scheduler, runner = self._setup, self._scheduler, self._runner
        drafts = DraftCounts() if scheduler.speculator is None else scheduler.speculator.counts
        with self._lock:
            return EngineStats(
                num_requests_running=scheduler.num_running,
                num_requests_waiting=len(scheduler.waiting),
                num_tokens_waiting=scheduler.waiting.num_tokens,
                oldest_wait_seconds=runner.oldest_wait_seconds,
                requests_begun_total=runner.num_begun,
                request_queue_time_seconds_total=runner.queue_seconds,
                kv_cache_usage=scheduler.kv_cache_usage,
                num_preemptions_total=scheduler.num_preemptions,
                prefix_cache_queries_total=scheduler.kv_cache.num_prefix_cache_queries,
                prefix_cache_hits_total=scheduler.kv_cache.num_prefix_cache_hits,
                spec_decode_num_drafts_total=drafts.num_drafts,
                spec_decode_num_draft_tokens_total=drafts.num_draft_tokens,
                spec_decode_num_accepted_tokens_total=drafts.num_accepted_tokens,
                prompt_tokens_total=runner.num_prompt_tokens,
                generation_tokens_total=runner.num_output_tokens,
                request_success_total=dict(runner.finish_reasons),
                request_errors_total=dict(runner.error_codes),
                steps_total=runner.num_steps,
                step_seconds_total=runner.step_seconds,
                model=self.model.name,
                dtype=self.model.dtype,
                backend=self._executor.name,
                level=self._executor.level,
                threads=setup.placement.num_workers,
                model_bytes=setup.model_bytes,
                residency=setup.residency,
                max_model_len=setup.limits.max_model_len,
                max_num_seqs=setup.limits.max_num_seqs,
                max_num_batched_tokens=setup.limits.max_num_batched_tokens,
                kv_dtype=setup.kv_dtype,
                kv_cache_bytes=setup.kv_cache_bytes,
                num_kv_blocks=setup.limits.num_kv_blocks,
                enable_prefix_caching=scheduler.kv_cache.enable_prefix_caching,
                itl_target_ms=self._itl_target_ms,
                max_waiting_requests=runner.admission.bounds.max_waiting_requests,
                max_waiting_tokens=runner.admission.bounds.max_waiting_tokens,
                max_ttft_ms=runner.admission.bounds.max_ttft_ms,
                num_speculative_tokens=setup.num_speculative_tokens,
            )

    # The engine thread.

    def _serve(self) -> None:
        try:
            self._executor.attach()
            reason = self._step_loop()
        except BaseException as error:
            logger.exception("the engine stopped")
            reason = RequestFailed(ENGINE_DEAD, f"the engine stopped: {error!r}")
        self._end(reason)

    def _step_loop(self) -> RequestFailed:
        """Take steps until the engine is closed; why it was."""
        while True:
            close = self._take_commands()
            if close is not None:
                return close.reason
            with self._lock:
                step = self._runner.schedule()
            if step is not None:
                result = self._runner.run(step)
                with self._lock:
                    self._runner.postprocess(step, result)

    def _take_commands(self) -> Close | None:
        """Do what was asked for; sleep for as long as there is nothing else to do."""
        first = None
        if not self._scheduler.has_work:
            self._is_awake.clear()
            first = self._inbox.get()
            self._is_awake.set()
        self._executor.sequences.wake[0] = 0  # before the inbox is emptied: whatever comes later raises it again
        with self._lock:
            command = first or self._next_command()
            while command is not None and not isinstance(command, Close):
                self._carry_out(command)
                command = self._next_command()
            self._runner.end_overdue()
            return command

    def _next_command(self) -> Command | None:
        try:
            return self._inbox.get_nowait()
        except queue.Empty:
            return None

    def _carry_out(self, command: Request | RequestError | Abort | Drain) -> None:
        match command:
            case Request():
                self._runner.accept(command)
            case RequestError():
                self._runner.emit_error(command)
            case Abort(request_id):
                self._runner.abort(request_id)
            case Drain():
                refusal = RequestFailed(SHUTTING_DOWN, "the engine takes no further requests")
                self._runner.refusal = self._runner.refusal or refusal
                self._drains.append(command)
                self._tell_if_drained()

    def _end(self, reason: RequestFailed) -> None:
        """Leave nobody waiting for an answer, now or later."""
        with self._lock:
            self._runner.end(reason)
            self._has_ended = True
            self._answer_rest()

    def _answer_rest(self) -> None:
        """Answer what is asked of an engine that has ended."""
        with self._lock:
            while (command := self._next_command()) is not None:
                if not isinstance(command, Close):
                    self._carry_out(command)

    # The drain thread.

    def _serve_ring(self) -> None:
        try:
            self._drain_loop()
        except BaseException as error:
            logger.exception("the engine stopped")
            self._post(Close(RequestFailed(ENGINE_DEAD, f"the engine stopped: {error!r}")))

    def _drain_loop(self) -> None:
        ring, deadlines = self._executor.ring, self._runner.deadlines
        woken_for: int | None = None
        while True:
            self._is_awake.wait()
            if self._has_ended:
                return
            due_ns, timeout = deadlines.next_ns, MAX_DRAIN_WAIT_S
            if due_ns is not None and due_ns != woken_for:
                timeout = min(timeout, max(0.0, (due_ns - time.monotonic_ns()) / 1e9))
            if ring.wait(timeout):
                with self._lock:
                    self._runner.process(ring.drain())
            if due_ns is not None and due_ns != woken_for and time.monotonic_ns() >= due_ns:
                woken_for = due_ns
                self._executor.wake()  # the engine thread sees to what is due when the step at hand has ended

    # Either of them, with the lock held.

    def _emit(self, outputs: list[EngineOutput]) -> None:
        try:
            self._on_output(outputs)
        except Exception:
            logger.exception("on_output failed; %d outputs are lost", len(outputs))
        self._tell_if_drained()

    def _tell_if_drained(self) -> None:
        if self._drains and self._runner.is_idle:
            for drain in self._drains:
                drain.is_drained.set()
            self._drains = []
