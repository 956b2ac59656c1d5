"""A client's socket, and how it learns that the server is gone."""

from __future__ import annotations

import threading
from collections import deque
from typing import Any

import zmq

from ..runtime.errors import INTERNAL, UNAVAILABLE, RequestFailed
from ..runtime.messages import EngineOutput
from ..runtime.prompts import Prompt
from ..runtime.request_options import RequestOptions
from ..runtime.sampling_params import SamplingParams
from . import wire
from .address import check_address
from .session import Inbox, Session

HEARTBEAT_MS = 5_000
HEARTBEAT_TIMEOUT_MS = 30_000
READABLE = int(zmq.POLLIN)  # an enumeration's member takes a microsecond longer
LINGER_MS = 100  # for a last cancel; where it is lost, the server notices that the client is gone


class Connection:
    """A DEALER socket connected to an address, and the monitor that tells when the connection breaks.

    Raises ValueError for what is not an address, or not a timeout.
    """

    def __init__(self, address: str, timeout: float) -> None:
        check_address(address)
        self.session = Session(address, timeout)
        self._is_taking_in = False
        self._arrived: deque[bytes] = deque()  # frames that the session has not been fed with
        self._is_lost = False
        self._thread = threading.get_ident()  # the last that used the socket
        self._dropped: deque[str] = deque()  # requests whose streams another thread's garbage collection found
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket = self._context.socket(zmq.DEALER)
        self.socket.set_hwm(0)  # read from the wire at once, so that heartbeats are answered however slow the reader
        self.socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
        self.socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS)
        self.socket.setsockopt(zmq.LINGER, LINGER_MS)
        self.socket.setsockopt(zmq.IPV6, int("[" in address))
        self.monitor = self.socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        try:
            self.socket.connect(address)
        except zmq.ZMQError as error:
            self.close()
            raise ValueError(f"address: {address!r}: {zmq.strerror(error.errno or 0)}") from None

    def send(self, frame: bytes) -> None:
        """Send ``frame``, and take in what has arrived: sending can swallow the event that would have told of it."""
        if self.socket.closed:
            raise RequestFailed(UNAVAILABLE, "the client is closed")
        self.socket.send(frame, zmq.NOBLOCK)
        self.take_in()

    def generate(
        self,
        prompt: Prompt,
        params: SamplingParams,
        inbox: Inbox[EngineOutput],
        request_id: str | None = None,
        options: RequestOptions | None = None,
    ) -> str:
        """Send a request whose outputs go to ``inbox``; its id."""
        self.take_in()  # first: that a former connection was lost is nothing to a new request
        request_id, frame = self.session.generate(prompt, params, inbox, request_id, options)
        self.send(frame)
        return request_id

    def ping(self, inbox: Inbox[wire.Pong]) -> None:
        """Ask for an answer, to ``inbox``."""
        self.take_in()
        self.send(self.session.ping(inbox))

    def stats(self, inbox: Inbox[dict[str, Any]]) -> None:
        """Ask for the server's numbers, to ``inbox``."""
        self.take_in()
        self.send(self.session.stats(inbox))

    def cancel(self, request_id: str) -> None:
        """Ask for a request's early end; nothing happens where it has ended."""
        frame = self.session.cancel(request_id)
        if frame is not None:
            self.send(frame)

    def withdraw(self, request_id: str) -> None:
        """Cancel a request, and ignore what else comes of it."""
        self.cancel(request_id)
        self.session.forget(request_id)

    def drop(self, request_id: str) -> None:
        """Withdraw a request whose stream is garbage, which any thread may find: a socket is one thread's."""
        if threading.get_ident() == self._thread:
            self.withdraw(request_id)
        else:
            self._dropped.append(request_id)

    def take_in(self) -> bool:
        """Feed the session with all that has arrived; whether anything has.

        Nothing where this is at it already, interrupted by a stream's end: the frames' order is the tokens' order.
        Interrupted by Ctrl-C it goes on the next time.
        """
        if self._is_taking_in or self.socket.closed:
            return False
        self._is_taking_in, self._thread = True, threading.get_ident()
        try:
            self._receive()
            heard = bool(self._arrived or self._is_lost)
            while self._arrived:
                self.session.feed(self._arrived[0])
                self._arrived.popleft()
            if self._is_lost:
                self.session.fail_all(UNAVAILABLE, f"the connection to {self.session.address} was lost")
                self._is_lost = False
            while self._dropped:
                self.withdraw(self._dropped.popleft())
            return heard
        finally:
            self._is_taking_in = False

    def _receive(self) -> None:
        while _is_readable(self.monitor):
            self._is_lost = True  # what the server sent before that lies in the socket by now
            self.monitor.recv_multipart()
        while _is_readable(self.socket):
            try:
                self._arrived.append(self.socket.recv(zmq.NOBLOCK))
            except BaseException:  # Ctrl-C: a frame may be lost, and nobody is to wait for it
                for frame in self.session.cancel_all():
                    self.socket.send(frame, zmq.NOBLOCK)
                self.session.fail_all(INTERNAL, "interrupted while a message was received")
                raise

    def close(self) -> None:
        if self.socket.closed:
            return
        self.session.fail_all(UNAVAILABLE, "the client was closed")
        self.socket.disable_monitor()
        self.monitor.close(linger=0)
        self.socket.close()
        self._context.term()


def _is_readable(socket: zmq.Socket[bytes]) -> bool:
    return bool(int(socket.get(zmq.EVENTS)) & READABLE)
