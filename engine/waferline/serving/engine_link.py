"""The server's side of the engine process: the messages between the two, and a handle on the process.

Commands go down one ZeroMQ pipe and reports come up another, over ``ipc://`` in a private folder. Of each pipe the
receiving end is bound and the sending end connects, so that no send ever waits: a socket that connects queues what is
sent at once, be its peer not there yet or gone for ever, while one that is bound has a queue only for peers that are there.
A socket pair is the *lifeline*: each side reads end-of-file from it the moment the other is gone, however it went.
"""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Sequence
from typing import Any

import msgspec
import zmq

from ..runtime.messages import EngineOutput, GenerateRequest
from .python_command import python_command

CLOSE_TIMEOUT_S = 5.0
RECONNECT_MS = 10  # until the process that was started is there
MAX_TEMPORARY_PATH = 70  # of the some 100 characters that a socket's path may have


class EngineConfig(msgspec.Struct, tag="config", kw_only=True):
    """Which model to load and the limits to run it with; None takes the engine's own default."""

    model: str
    dtype: str | None = None
    threads: int | None = None
    max_num_seqs: int | None = None
    max_model_len: int | None = None
    max_num_batched_tokens: int | None = None
    kv_cache_memory: int | None = None  # bytes
    kv_dtype: str | None = None
    enable_prefix_caching: bool | None = None
    itl_target_ms: float | None = None
    max_waiting_requests: int | None = None
    max_waiting_tokens: int | None = None
    max_ttft_ms: float | None = None
    tenant_weights: dict[str, float] | None = None
    speculative_config: dict[str, Any] | None = None


class Abort(msgspec.Struct, tag="abort"):
    request_id: str


class GetStats(msgspec.Struct, tag="get_stats"):
    pass


Command = EngineConfig | GenerateRequest | Abort | GetStats


class Ready(msgspec.Struct, tag="ready"):
    stats: dict[str, Any]


class LoadFailed(msgspec.Struct, tag="load_failed"):
    message: str


class Outputs(msgspec.Struct, tag="outputs"):
    outputs: list[EngineOutput]


class EngineStats(msgspec.Struct, tag="stats"):
    stats: dict[str, Any]


Report = Ready | LoadFailed | Outputs | EngineStats


class EngineError(RuntimeError):
    """The engine could not load its model, or its process ended by itself."""


class EngineProcess:
    """A process that loads the model of ``config`` and then runs requests; ``command`` starts another than this package's.

    ``reports`` (a ZeroMQ socket) is readable when there is something to ``receive``, ``lifeline`` (a socket) when the
    process has ended.
    """

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], config: EngineConfig, command: Sequence[str] | None = None
    ) -> None:
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[Report] = msgspec.msgpack.Decoder(Report)
        first_command = self._encoder.encode(config)  # what cannot be sent leaves no process behind
        self._directory = private_directory()
        self._commands = pipe(context, zmq.PUSH)
        self._commands.reconnect_ivl = RECONNECT_MS
        self._commands.connect(command_address(self._directory))
        self.reports = pipe(context, zmq.PULL)
        self.reports.bind(report_address(self._directory))
        self.lifeline, far_end = socket.socketpair()
        with far_end:
            self._process = subprocess.Popen(
                [*(command or engine_command()), self._directory, str(far_end.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=2,  # the server's standard output is its own
                pass_fds=[far_end.fileno()],
                start_new_session=True,  # a Ctrl-C in the terminal is the server's to handle
            )
        self._commands.send(first_command)

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, command: Command) -> None:
        self._commands.send(self._encoder.encode(command))

    def receive(self) -> Report | None:
        """The next report, or None where none is waiting."""
        try:
            return self._decoder.decode(self.reports.recv(zmq.NOBLOCK))
        except zmq.Again:
            return None

    def remove_directory(self) -> None:
        """Remove the folder of the two pipes; they need it no more once both sides are connected."""
        shutil.rmtree(self._directory, ignore_errors=True)

    def describe_end(self) -> str:
        """How the process ended, once the lifeline has told that it did."""
        status = self._wait(CLOSE_TIMEOUT_S)
        return f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"

    def close(self) -> None:
        """End the process, by force where it takes longer than CLOSE_TIMEOUT_S, and release what was held for it."""
        self.lifeline.close()
        try:
            self._wait(CLOSE_TIMEOUT_S)
        finally:  # also where a Ctrl-C ends the waiting
            self._commands.close(linger=0)
            self.reports.close(linger=0)
            self.remove_directory()

    def _wait(self, timeout: float) -> int:
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


def engine_command() -> list[str]:
    return python_command("waferline.serving.engine_process")


def private_directory() -> str:
    """A new folder that only this user can enter, with a path short enough for the names of sockets in it."""
    is_short = len(tempfile.gettempdir()) <= MAX_TEMPORARY_PATH
    return tempfile.mkdtemp(prefix="waferline-", dir=None if is_short else "/tmp")


def command_address(directory: str) -> str:
    return f"ipc://{directory}/commands"


def report_address(directory: str) -> str:
    return f"ipc://{directory}/reports"


def pipe(context: zmq.Context[zmq.Socket[bytes]], kind: int) -> zmq.Socket[bytes]:
    """A socket of ``kind`` that holds as much as is in flight: requests are bounded, and so are their tokens."""
    end: zmq.Socket[bytes] = context.socket(kind)
    end.set_hwm(0)
    return end
