"""Sending to many clients through one ROUTER socket, where a slow one must neither lose a token nor hold up another."""

from __future__ import annotations

import errno
from collections import deque

import zmq

MAX_UNREAD_BYTES = 64 << 20  # of one client, beyond what ZeroMQ and the kernel hold for it


class Backlog:
    """Frames that wait until a client has read earlier ones."""

    __slots__ = ("frames", "num_bytes")

    def __init__(self) -> None:
        self.frames: deque[bytes] = deque()
        self.num_bytes = 0

    def append(self, frame: bytes) -> None:
        self.frames.append(frame)
        self.num_bytes += len(frame)

    def popleft(self) -> None:
        self.num_bytes -= len(self.frames.popleft())


class Outbox:
    """The sending side of ``router``, a socket with ROUTER_MANDATORY set."""

    def __init__(self, router: zmq.Socket[bytes]) -> None:
        self._router = router
        self._backlogs: dict[bytes, Backlog] = {}

    def __bool__(self) -> bool:
        """Whether anything waits for a slow client."""
        return bool(self._backlogs)

    def send(self, client: bytes, frame: bytes) -> bool:
        """Send ``frame`` now, or keep it while ``client`` is slow.

        False: the client is gone, or has left more than MAX_UNREAD_BYTES unread; nothing is kept for it any more.
        """
        backlog = self._backlogs.get(client)
        if backlog is None:
            try:
                if self._send(client, frame):
                    return True
            except ClientGoneError:
                return False
            backlog = self._backlogs[client] = Backlog()
        backlog.append(frame)
        if backlog.num_bytes > MAX_UNREAD_BYTES:
            del self._backlogs[client]
            return False
        return True

    def flush(self) -> list[bytes]:
        """Send what slow clients have room for by now; the clients that turned out to be gone."""
        gone = []
        for client, backlog in list(self._backlogs.items()):
            try:
                while backlog.frames and self._send(client, backlog.frames[0]):
                    backlog.popleft()
            except ClientGoneError:
                gone.append(client)
                backlog.frames.clear()
            if not backlog.frames:
                del self._backlogs[client]
        return gone

    def _send(self, client: bytes, frame: bytes) -> bool:
        """Whether there was room for ``frame``. Raises ClientGoneError."""
        try:
            self._router.send_multipart((client, frame), zmq.NOBLOCK)
        except zmq.Again:
            return False
        except zmq.ZMQError as error:
            if error.errno == errno.EHOSTUNREACH:
                raise ClientGoneError from None
            raise
        return True


class ClientGoneError(Exception):
    """No connection leads to the client any more."""
