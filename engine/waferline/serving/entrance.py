"""How requests come to the engine, where some take long to be tokenised and checked and others must not wait for them."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import msgspec

from ..runtime.errors import INTERNAL, OVERLOADED
from ..runtime.messages import EngineOutput, Finished, GenerateRequest, RequestError
from ..runtime.prompts import is_slow_to_admit
from ..runtime.request_options import begin_limit

MAX_WAITING_LENGTH = 16 << 20  # characters and ids; of the longest prompts that a server takes, 16

OnOutput = Callable[[list[EngineOutput]], None]


class Engine(Protocol):
    """What the engine process needs of an EngineCore."""

    def add(self, request: GenerateRequest) -> None: ...

    def abort(self, request_id: str) -> None: ...

    def stats(self) -> Any: ...

    def close(self) -> None: ...


class Entrance:
    """Hands ``engine`` its requests in turn, but for those that are slow to admit: they wait here for a thread that takes
    them up one after the other.

    What waits here is in bounds like all that waits: at most ``max_waiting_requests`` completions, not counting those of
    the request that is being taken up, and MAX_WAITING_LENGTH characters and ids. It can be aborted, and is out of time
    when it is.
    """

    def __init__(self, engine: Engine, on_output: OnOutput, max_waiting_requests: int | None = None) -> None:
        self._engine = engine
        self._on_output = on_output
        self._max_waiting_requests = max_waiting_requests
        self._thread = ThreadPoolExecutor(1, "waferline-tokenize")
        self._lock = threading.Lock()
        self._waiting: dict[str, GenerateRequest] = {}
        self._entering: GenerateRequest | None = None
        self._is_aborted = False  # the one that is entering
        self._error_codes: Counter[str] = Counter()  # of requests that the engine never had

    def add(self, request: GenerateRequest) -> None:
        if not is_slow_to_admit(request.prompt, request.params):
            return self._engine.add(request)
        with self._lock:
            refusal = self._refusal(request)
            if refusal is None:
                self._waiting[request.request_id] = request
        if refusal is None:
            self._thread.submit(self._take_up, request.request_id)
        else:
            self._fail(request.request_id, OVERLOADED, refusal)

    def abort(self, request_id: str) -> None:
        with self._lock:
            waiting = self._waiting.pop(request_id, None)
            is_entering = self._entering is not None and self._entering.request_id == request_id
            self._is_aborted |= is_entering
        if waiting is not None:
            self._on_output([Finished(request_id, ["abort"] * waiting.params.n, 0, 0)])
        elif not is_entering:
            self._engine.abort(request_id)

    def end_overdue(self) -> float | None:
        """Fail what is out of time; the seconds after which to do it again, None where there is no need."""
        now_ns = time.monotonic_ns()
        failed, due_ns = [], []
        with self._lock:
            for request in list(self._waiting.values()):
                limit = begin_limit(request)
                if limit is None or request.arrival_ns is None:
                    continue
                if limit.time_ns(request.arrival_ns) <= now_ns:
                    del self._waiting[request.request_id]
                    failed.append((request.request_id, limit.failure()))
                else:
                    due_ns.append(limit.time_ns(request.arrival_ns))
        for request_id, failure in failed:
            self._fail(request_id, failure.code, failure.message)
        return (min(due_ns) - now_ns) / 1e9 if due_ns else None

    def stats(self) -> dict[str, Any]:
        """The engine's, with what waits here and what failed here."""
        stats: dict[str, Any] = msgspec.to_builtins(self._engine.stats())
        with self._lock:
            stats["request_errors_total"] = dict(Counter(stats["request_errors_total"]) + self._error_codes)
            here = [*self._waiting.values(), *([self._entering] if self._entering else [])]
        if here:
            now_ns = time.monotonic_ns()
            waits = [(now_ns - (request.arrival_ns or now_ns)) / 1e9 for request in here]
            stats["num_requests_waiting"] += sum(request.params.n for request in here)
            stats["oldest_wait_seconds"] = max(stats["oldest_wait_seconds"], *waits)
        return stats

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)

    def _refusal(self, request: GenerateRequest) -> str | None:
        """Why there is no room for ``request``; None where there is. One that need not wait always has it."""
        waiting = [*self._waiting.values(), request]
        if self._entering is None and not self._waiting:
            return None
        completions, bound = sum(one.params.n for one in waiting), self._max_waiting_requests
        if bound is not None and completions > bound:
            return f"max_waiting_requests: {completions} with this request, expected at most {bound}"
        length = sum(map(_length, waiting))
        if length > MAX_WAITING_LENGTH:
            allowed = f"expected at most {MAX_WAITING_LENGTH} characters and ids"
            return f"prompt: {length} long with those that wait to be tokenized, {allowed}"
        return None

    def _fail(self, request_id: str, code: str, message: str) -> None:
        with self._lock:
            self._error_codes[code] += 1
        self._on_output([RequestError(request_id, code, message)])

    def _take_up(self, request_id: str) -> None:
        with self._lock:
            request = self._entering = self._waiting.pop(request_id, None)
        if request is None:
            return  # it has ended
        try:
            self._engine.add(request)
        except Exception as error:  # which nobody else would see
            self._fail(request_id, INTERNAL, f"the request could not be taken up: {error!r}")
        with self._lock:
            is_aborted, self._is_aborted, self._entering = self._is_aborted, False, None
        if is_aborted:
            self._engine.abort(request_id)


def _length(request: GenerateRequest) -> int:
    return len(request.prompt) + len(request.params.allowed_token_ids or ())
