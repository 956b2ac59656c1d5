"""A client's side of one connection without its socket: frames to send, and whom an arriving frame is for."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from ..runtime.errors import (
    DUPLICATE_ID,
    INTERNAL,
    INVALID_REQUEST,
    PROMPT_TOO_LONG,
    UNAVAILABLE,
    UNKNOWN_REQUEST,
    RequestFailed,
)
from ..runtime.messages import Accepted, EngineOutput, Finished, RequestError
from ..runtime.request_options import RequestOptions, check_request_options
from ..runtime.sampling_params import SamplingParams
from . import wire

T = TypeVar("T")


class Inbox(Generic[T]):
    """What the server has answered to one or more messages and nobody has read yet; ``on_answer`` is called at each."""

    def __init__(self, on_answer: Callable[[], None] = lambda: None) -> None:
        self._answers: deque[T | RequestError] = deque()
        self._on_answer = on_answer
        self._has_ended = False

    def __bool__(self) -> bool:
        """Whether there is nothing to wait for: something can be taken, or nothing will ever be."""
        return bool(self._answers) or self._has_ended

    def end(self) -> None:
        """Nothing more is taken: whoever waits, be it several tasks, is to look again."""
        self._has_ended = True
        self._on_answer()

    def put(self, answer: T | RequestError) -> None:
        self._answers.append(answer)
        self._on_answer()

    def take(self) -> T | RequestError:
        return self._answers.popleft()


def checked(answer: T | RequestError) -> T:
    """``answer``. Raises RequestFailed where it is an error."""
    if isinstance(answer, RequestError):
        raise RequestFailed(answer.code, answer.message, answer.retry_after_ms)
    return answer


@dataclass
class _InFlight:
    inbox: Inbox[EngineOutput]
    next_seq: int = 0


class Session:
    """Which requests are in flight at ``address``, and when the server was last heard.

    A client that has heard nothing for half of ``timeout`` asks with a ping, and takes the server for gone where that
    is not answered within the other half: seconds in which the client itself does not get to asking do not count.
    """

    def __init__(self, address: str, timeout: float) -> None:
        if not 0 < timeout < float("inf"):
            raise ValueError(f"timeout: {timeout}, expected a positive number of seconds")
        self.address = address
        self.timeout = timeout
        self._numbers = itertools.count()
        self._requests: dict[str, _InFlight] = {}
        self._pings: dict[int, Inbox[wire.Pong]] = {}
        self._stats: deque[Inbox[dict[str, Any]]] = deque()
        self._last_heard = 0.0
        self._asked: float | None = None  # when, by a ping since then

    @property
    def is_waiting(self) -> bool:
        return bool(self._requests or self._pings or self._stats)

    def generate(
        self,
        prompt: str | list[int],
        params: SamplingParams,
        inbox: Inbox[EngineOutput],
        request_id: str | None = None,
        options: RequestOptions | None = None,
    ) -> tuple[str, bytes]:
        """The request's id, and the frame to send. Raises RequestFailed for what no server would take.

        Raises TypeError for an id that is not text: no answer could be told by it.
        """
        if not isinstance(request_id, str | None):
            raise TypeError(
                f"request_id: {request_id!r}, expected None or text of 1 to {wire.MAX_ID_LENGTH} characters"
            )
        if request_id is None:
            names = (f"request-{number}" for number in self._numbers)
            request_id = next(name for name in names if name not in self._requests)
        if not 0 < len(request_id) <= wire.MAX_ID_LENGTH:
            message = f"request_id: {request_id!r}, expected 1 to {wire.MAX_ID_LENGTH} characters"
            raise RequestFailed(INVALID_REQUEST, message)
        if request_id in self._requests:
            raise RequestFailed(DUPLICATE_ID, f"request_id: {request_id!r} is in use, expected a new one")
        check_request_options(options or {})
        generate = wire.Generate(request_id, prompt, params, **(options or {}))
        try:
            frame = wire.encode(generate)
        except (TypeError, ValueError, OverflowError) as error:
            fields = {"request_id": request_id, "prompt": prompt, "sampling_params": params, **(options or {})}
            field = next(name for name, value in fields.items() if not wire.can_encode(value))
            raise RequestFailed(INVALID_REQUEST, f"{field}: {error}") from None
        if len(frame) > wire.MAX_MESSAGE_BYTES:
            allowed = f"expected at most {wire.MAX_MESSAGE_BYTES}"
            raise RequestFailed(PROMPT_TOO_LONG, f"prompt: {len(frame)} bytes as a message, {allowed}")
        self._requests[request_id] = _InFlight(inbox)
        return request_id, frame

    def is_for(self, request_id: str, inbox: Inbox[EngineOutput]) -> bool:
        """Whether what comes for a request goes to ``inbox``: its id may be another's, once it has ended."""
        return request_id in self._requests and self._requests[request_id].inbox is inbox

    def cancel(self, request_id: str) -> bytes | None:
        """The frame to send, or None where the request is not in flight any more."""
        return wire.encode(wire.Cancel(request_id)) if request_id in self._requests else None

    def ping(self, inbox: Inbox[wire.Pong]) -> bytes:
        nonce = next(self._numbers)
        self._pings[nonce] = inbox
        return wire.encode(wire.Ping(nonce))

    def stats(self, inbox: Inbox[dict[str, Any]]) -> bytes:
        self._stats.append(inbox)
        return wire.encode(wire.GetStats())

    def forget(self, request_id: str) -> None:
        """Ignore what else comes for a request; its id stays in use until the server has ended it."""
        if request_id in self._requests:
            self._requests[request_id].inbox = Inbox()

    def feed(self, frame: bytes) -> None:
        """Put the server's message into the inbox that it is for; what nobody waits for is dropped.

        Raises ValueError for what is not a message.
        """
        self.restart_silence()
        try:
            message = wire.decode_server_message(frame)
        except ValueError as error:
            raise ValueError(f"{self.address} sent what is not a message of this protocol: {error}") from None
        match message:
            case wire.Tokens():
                self._feed_tokens(message)
            case wire.Accepted(request_id, prompt_token_ids, seed):
                if (request := self._requests.get(request_id)) is not None:
                    request.inbox.put(Accepted(request_id, prompt_token_ids, seed))
            case wire.Finished(request_id, finish_reasons, num_prompt_tokens, num_output_tokens, num_cached_tokens):
                if (request := self._requests.pop(request_id, None)) is not None:
                    counts = num_prompt_tokens, num_output_tokens, num_cached_tokens
                    request.inbox.put(Finished(request_id, finish_reasons, *counts))
            case wire.Error():
                self._feed_error(message)
            case wire.Pong():
                self._feed_pong(message)
            case wire.Stats():
                if self._stats:
                    self._stats.popleft().put(wire.decode_stats(frame))

    def _feed_tokens(self, message: wire.Tokens) -> None:
        request = self._requests.get(message.id)
        if request is None:
            return
        expected = request.next_seq
        request.next_seq = message.seq + 1  # first: were this interrupted, the same message again would tell
        if message.seq == expected:
            request.inbox.put(message.to_delta())
        else:
            problem = f"tokens arrived with seq {message.seq}, expected {expected}"
            request.inbox.put(RequestError(message.id, INTERNAL, problem))

    def _feed_error(self, error: wire.Error) -> None:
        if error.id is None:
            if self._stats:  # of all that a client sends, only this is meant to fail without an id
                self._stats.popleft().put(RequestError("", error.code, error.message))
            elif len(self._requests) + len(self._pings) == 1:  # then it can only be that one's
                self.fail_all(error.code, error.message)
        elif error.code != UNKNOWN_REQUEST:  # the answer to a cancel that crossed the request's end
            request = self._requests.pop(error.id, None)
            if request is not None:
                request.inbox.put(RequestError(error.id, error.code, error.message, error.retry_after_ms))

    def _feed_pong(self, pong: wire.Pong) -> None:
        inbox = None if pong.nonce is None else self._pings.pop(pong.nonce, None)
        if inbox is None:
            return
        if pong.version == wire.PROTOCOL_VERSION:
            inbox.put(pong)
        else:
            spoken = f"{self.address} speaks version {pong.version} of the protocol, expected {wire.PROTOCOL_VERSION}"
            inbox.put(RequestError("", UNAVAILABLE, spoken))

    def fail_all(self, code: str, message: str) -> None:
        """End everything that is waited for with one error."""
        requests = self._requests
        others: list[Inbox[Any]] = [*self._pings.values(), *self._stats]
        self._requests = {}
        self._pings.clear()
        self._stats.clear()
        for request_id, request in requests.items():
            request.inbox.put(RequestError(request_id, code, message))
        for inbox in others:
            inbox.put(RequestError("", code, message))

    def check_silence(self) -> tuple[float, bytes | None]:
        """After no frame has arrived for a while: how long to wait on, in seconds, and a frame to send first.

        No longer (0) where it has not answered a ping.
        """
        now, patience = time.monotonic(), self.timeout / 2
        if self._asked is not None:
            return max(0.0, self._asked + patience - now), None
        if now < self._last_heard + patience:
            return self._last_heard + patience - now, None
        self._asked = now
        return patience, wire.encode(wire.Ping())

    def restart_silence(self) -> None:
        """Count silence from now: something was heard, or nobody has listened before."""
        self._last_heard, self._asked = time.monotonic(), None
