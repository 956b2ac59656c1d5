"""The sockets of a client's connection, which end with whoever has them, be it closed, garbage, or the program's end."""

from __future__ import annotations

import os
from collections.abc import Callable

import zmq

HEARTBEAT_MS = 5_000
HEARTBEAT_TIMEOUT_MS = 30_000
LINGER_MS = 100  # for a last cancel; where it is lost, the server notices that the client is gone


class Dealer:
    """A DEALER socket connected to ``address``, and the monitor that tells when the connection breaks.

    ``before_close`` is called while the sockets are still open: for an event loop to let go of them. Raises ValueError
    for what cannot be connected to.
    """

    def __init__(self, address: str) -> None:
        self._process = os.getpid()
        self.before_close: Callable[[], None] = lambda: None
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

    @property
    def is_foreign(self) -> bool:
        """Whether this is a forked child, which has no threads of ZeroMQ: any use waits for ever."""
        return os.getpid() != self._process

    def check_process(self) -> None:
        """Raise RuntimeError in a forked child."""
        if self.is_foreign:
            raise RuntimeError(f"the client is process {self._process}'s: after a fork, make another one")

    @property
    def closed(self) -> bool:
        return self.socket.closed

    def close(self) -> None:
        """In a forked child nothing happens."""
        if self.is_foreign or self.closed:
            return
        self.before_close()
        self.socket.disable_monitor()
        self.monitor.close(linger=0)
        self.socket.close()
        self._context.term()
