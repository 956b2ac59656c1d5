"""The sockets of a client's connection, which end with whoever has them, be it closed, garbage, or the program's end."""

from __future__ import annotations

import os
import select
from collections.abc import Callable

import zmq

Socket = zmq.Socket[bytes]

HEARTBEAT_MS = 5_000
HEARTBEAT_TIMEOUT_MS = 30_000
LINGER_MS = 100  # for a last cancel; where it is lost, the server notices that the client is gone


class Dealer:
    """A DEALER socket connected to ``address``, and the monitor that tells when the connection breaks.

    ``on_sockets`` is called with the sockets to read from from now on, none at the end, while the former ones are still
    open: for an event loop to let go of them. Raises ValueError for what cannot be connected to.
    """

    def __init__(self, address: str) -> None:
        self.closed = False
        self._address = address
        self._process = os.getpid()
        self.on_sockets: Callable[[tuple[Socket, ...]], None] = lambda sockets: None
        self._context: zmq.Context[Socket] = zmq.Context()
        try:
            self._use(*self._connect())
        except zmq.ZMQError as error:
            self._context.destroy(linger=0)
            raise ValueError(f"address: {address!r}: {zmq.strerror(error.errno or 0)}") from None

    def _connect(self) -> tuple[Socket, Socket]:
        socket = self._context.socket(zmq.DEALER)
        socket.set_hwm(0)  # read from the wire at once, so that heartbeats are answered however slow the reader
        socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS)
        socket.setsockopt(zmq.IPV6, int("[" in self._address))
        monitor = socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        socket.connect(self._address)
        return socket, monitor

    def _use(self, socket: Socket, monitor: Socket) -> None:
        self.socket, self.monitor = socket, monitor
        # Their descriptors, not the sockets: a signal's handler may close these while they are waited for.
        self._poller = select.poll()
        self._poller.register(socket.fileno(), select.POLLIN)
        self._poller.register(monitor.fileno(), select.POLLIN)

    def wait(self, timeout_ms: int) -> None:
        """Return once there may be something to receive; to be called when all that there was has been received."""
        self._poller.poll(timeout_ms)

    def renew(self) -> None:
        """Leave the connection for a new one: nothing sent on it is sent any more, and nothing is received from it."""
        if self.closed:
            return
        former = self.socket, self.monitor
        try:
            sockets = self._connect()
            self.on_sockets(sockets)
            self._use(*sockets)
            _close(*former, linger_ms=0)
        except zmq.ZMQError:
            if not self.closed:  # by a signal's handler
                raise

    @property
    def is_foreign(self) -> bool:
        """Whether this is a forked child, which has no threads of ZeroMQ: any use waits for ever."""
        return os.getpid() != self._process

    def check_process(self) -> None:
        """Raise RuntimeError in a forked child."""
        if self.is_foreign:
            raise RuntimeError(f"the client is process {self._process}'s: after a fork, make another one")

    def close(self) -> None:
        """In a forked child nothing happens."""
        if self.is_foreign or self.closed:
            return
        self.closed = True
        self.on_sockets(())
        _close(self.socket, self.monitor, LINGER_MS)
        # The context's end waits for all sockets: also for those that ``renew``, interrupted by this, has just made.
        self._context.destroy(linger=0)


def _close(socket: Socket, monitor: Socket, linger_ms: int) -> None:
    socket.disable_monitor()
    monitor.close(linger=0)
    socket.close(linger=linger_ms)
