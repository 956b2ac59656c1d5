"""A client's connection, and how it learns that the server is gone."""

from __future__ import annotations

import threading
import weakref
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
from .dealer import Dealer
from .session import Inbox, Session

READABLE = int(zmq.POLLIN)  # an enumeration's member takes a microsecond longer


class Connection:
    """What a client sends to an address and what comes of it: the sockets, and the session on them.

    Raises ValueError for what is not an address, or not a timeout.
    """

    def __init__(self, address: str, timeout: float) -> None:
        check_address(address)
        self.session = Session(address, timeout)
        self._is_taking_in = False
        self._look_again = False
        self._arrived: deque[bytes] = deque()  # frames that the session has not been fed with
        self._is_lost = False
        self._thread = threading.get_ident()  # the last that used the socket
        # Requests whose streams another thread's garbage collection found.
        self._dropped: deque[tuple[str, Inbox[EngineOutput]]] = deque()
        self.dealer = Dealer(address)
        # Its reference keeps the sockets out of whatever cycle of garbage this is found in: what ZeroMQ's own finalizers
        # would do there, in no order, waits for ever where the context comes before its sockets.
        self._close_dealer = weakref.finalize(self, self.dealer.close)

    @property
    def closed(self) -> bool:
        return self.dealer.closed

    def send(self, frame: bytes) -> None:
        """Send ``frame``, and take in what has arrived: sending can swallow the event that would have told of it.

        Raises RuntimeError in a forked child, as ``take_in`` does.
        """
        self.dealer.check_process()
        try:
            self.dealer.socket.send(frame, zmq.NOBLOCK)
        except zmq.ZMQError:
            if self.closed:
                raise RequestFailed(UNAVAILABLE, "the client is closed") from None
            raise
        self.take_in()

    def prepare(
        self,
        prompt: Prompt,
        params: SamplingParams,
        inbox: Inbox[EngineOutput],
        request_id: str | None = None,
        options: RequestOptions | None = None,
    ) -> tuple[str, bytes]:
        """The id of a request whose outputs are to go to ``inbox``, and the frame that asks for it.

        Whoever sends it has noted the id before: Ctrl-C leaves no request behind that nobody could withdraw.
        """
        self.take_in()  # first: that a former connection was lost is nothing to a new request
        return self.session.generate(prompt, params, inbox, request_id, options)

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

    def withdraw(self, request_id: str, inbox: Inbox[EngineOutput]) -> None:
        """Cancel a request, and ignore what else comes of it; nothing where another of its id is in flight by now.

        In a forked child nothing happens.
        """
        if self.dealer.is_foreign or not self.session.is_for(request_id, inbox):
            return
        self.cancel(request_id)
        self.session.forget(request_id)

    def drop(self, request_id: str, inbox: Inbox[EngineOutput]) -> None:
        """Withdraw a request whose stream is garbage, which any thread may find: a socket is one thread's.

        Nothing where the connection is closed, as at the program's end, or where a forked child finds the stream.
        """
        if self.dealer.is_foreign or self.closed:
            return
        if threading.get_ident() == self._thread:
            self.withdraw(request_id, inbox)
        else:
            self._dropped.append((request_id, inbox))

    def take_in(self) -> bool:
        """Feed the session with all that has arrived; whether anything has.

        Where this is at it already, interrupted by a stream's end, it only looks once more: the frames' order is the
        tokens' order. Interrupted by Ctrl-C it goes on the next time.
        """
        self.dealer.check_process()
        if self._is_taking_in:
            self._look_again = True
            return False
        if self.closed:
            return False
        self._is_taking_in, self._thread = True, threading.get_ident()
        try:
            heard = self._take_in_once()
            while self._look_again:
                self._look_again = False
                heard |= self._take_in_once()
            return heard
        except zmq.ZMQError:
            if self.closed:  # by a signal's handler: what is waited for has been told
                return True
            raise
        finally:
            self._is_taking_in = False

    def check_silence(self) -> float:
        """Ask a server that has been silent for a while, or give it up; after how many seconds to do so again."""
        delay, frame = self.session.check_silence()
        if frame is not None:
            self.send(frame)
        elif delay <= 0:
            session = self.session
            self._give_up(UNAVAILABLE, f"no answer from {session.address} within {session.timeout:g} s")
        return delay

    def _take_in_once(self) -> bool:
        self._receive()
        heard = bool(self._arrived or self._is_lost)
        try:
            while self._arrived:
                self.session.feed(self._arrived[0])
                self._arrived.popleft()
        except ValueError as error:
            self._give_up(INTERNAL, str(error))
        if self._is_lost:
            if self.session.is_waiting:
                self._give_up(UNAVAILABLE, f"the connection to {self.session.address} was lost")
            self._is_lost = False
        while self._dropped:
            self.withdraw(*self._dropped.popleft())
        return heard

    def _receive(self) -> None:
        while _is_readable(self.dealer.monitor):
            self._is_lost = True  # what the server sent before that lies in the socket by now
            self.dealer.monitor.recv_multipart()
        while _is_readable(self.dealer.socket):
            try:
                self._arrived.append(self.dealer.socket.recv(zmq.NOBLOCK))
            except BaseException:  # Ctrl-C: a frame may be lost, and nobody is to wait for it
                self._give_up(INTERNAL, "interrupted while a message was received")
                raise

    def _give_up(self, code: str, message: str) -> None:
        """Fail all that is waited for, and go on with a new connection.

        The server ends the requests of the former one. Their ids are free again: that nothing sent or received on it
        counts any more keeps their tokens from requests that are called the same, and what no server was there to take
        from running once there is one.
        """
        self._arrived.clear()
        self.session.fail_all(code, message)
        self.dealer.renew()

    def close(self) -> None:
        """Fail what is waited for, and close the sockets. In a forked child nothing happens."""
        if self.dealer.is_foreign or self.closed:
            return
        self.session.fail_all(UNAVAILABLE, "the client was closed")
        self._close_dealer()


def _is_readable(socket: zmq.Socket[bytes]) -> bool:
    return bool(int(socket.get(zmq.EVENTS)) & READABLE)
