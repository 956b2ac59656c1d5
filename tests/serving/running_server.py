"""A server loop in a thread, with the fake engine in a process of its own, and a raw client."""

from __future__ import annotations

import os
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import msgpack
import zmq

from waferline.serving.engine_link import EngineConfig, EngineError, EngineProcess
from waferline.serving.server import Server

FAKE_ENGINE = (sys.executable, str(Path(__file__).parent / "fake_engine.py"))
RECEIVE_TIMEOUT_MS = 30_000


class RunningServer:
    """``server`` in a thread; ``failure`` is what its ``run`` raised, once it has ended. Not
    ``is_started``: the server is there, its loop is the test's to call."""

    def __init__(self, model: str = "fake", is_started: bool = True, **options: Any) -> None:
        self.ready = threading.Event()
        self.failure: EngineError | None = None
        self.server = Server(
            "tcp://127.0.0.1:*",
            EngineConfig(model=model),
            on_ready=lambda stats: self.ready.set(),
            start_engine=partial(EngineProcess, command=FAKE_ENGINE),
            **options,
        )
        self.address = self.server.address
        self._thread = threading.Thread(target=self._run)
        if is_started:
            self._thread.start()

    def _run(self) -> None:
        try:
            self.server.run()
        except EngineError as error:
            self.failure = error

    def signal(self, signum: int) -> None:
        self.server.signal(signum)

    def join(self, timeout: float = 20.0) -> None:
        self._thread.join(timeout)
        assert not self._thread.is_alive()

    @property
    def is_running(self) -> bool:
        return self._thread.is_alive()


class RawClient:
    """A client as another language would write it: a DEALER socket and the ``msgpack`` package."""

    def __init__(self, address: str, **options: Any) -> None:
        self.socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.RCVTIMEO, RECEIVE_TIMEOUT_MS)
        for name, value in options.items():
            setattr(self.socket, name, value)
        self.socket.connect(address)

    def send(self, **message: Any) -> None:
        self.socket.send(msgpack.packb(message))

    def receive(self) -> dict[str, Any]:
        frames = self.socket.recv_multipart()
        assert len(frames) == 1
        message: dict[str, Any] = msgpack.unpackb(frames[0])
        return message

    def receive_until(self, *types: str) -> list[dict[str, Any]]:
        """All messages up to the first of one of ``types``."""
        received = [self.receive()]
        while received[-1]["type"] not in types:
            received.append(self.receive())
        return received


def child_of(pid: int) -> int:
    """The one process that ``pid`` has started, such as a server's engine (Linux)."""
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(child)


def cpu_seconds(pid: int) -> float:
    """Processor time that a process has used (Linux)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def is_alive(pid: int) -> bool:
    """Whether a process runs (Linux)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 10
    while is_alive(pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)
