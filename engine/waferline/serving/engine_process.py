"""The engine process: it loads a model, and runs an EngineCore on behalf of the server that started it."""

from __future__ import annotations

import ctypes
import shutil
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import closing

import msgspec
import zmq

from ..runtime.messages import EngineOutput, GenerateRequest
from .engine_link import (
    Abort,
    Command,
    EngineConfig,
    EngineStats,
    GetStats,
    LoadFailed,
    Outputs,
    Ready,
    Report,
    command_address,
    pipe,
    report_address,
)
from .entrance import Engine, Entrance, OnOutput
from .timeouts import poll_ms

FLUSH_MS = 1000  # for the last reports, when the process ends
LIMITS = (
    "threads",
    "max_num_seqs",
    "max_model_len",
    "max_num_batched_tokens",
    "kv_cache_memory",
    "kv_dtype",
    "enable_prefix_caching",
    "itl_target_ms",
    "max_waiting_requests",
    "max_waiting_tokens",
    "max_ttft_ms",
    "tenant_weights",
    "speculative_config",
)


def create_engine(config: EngineConfig, on_output: OnOutput) -> Engine:
    """The EngineCore that ``config`` asks for."""
    from ..model.load import load_model
    from ..runtime.engine_core import EngineCore

    model = load_model(config.model, config.dtype, config.max_model_len)
    limits = {name: getattr(config, name) for name in LIMITS if getattr(config, name) is not None}
    return EngineCore(model, **limits, on_output=on_output)


class Reporter:
    """Sends reports; the engine's thread and this process's main thread share it."""

    def __init__(self, pipe_end: zmq.Socket[bytes]) -> None:
        self._pipe = pipe_end
        self._encoder = msgspec.msgpack.Encoder()
        self._lock = threading.Lock()

    def send(self, report: Report) -> None:
        with self._lock:
            self._pipe.send(self._encoder.encode(report))

    def send_outputs(self, outputs: list[EngineOutput]) -> None:
        self.send(Outputs(outputs))


def main(create: Callable[[EngineConfig, OnOutput], Engine] = create_engine) -> int:
    """Serve the commands of the process that started this one until it closes the lifeline; the exit status."""
    directory, lifeline_fd = sys.argv[1:]
    die_with_parent()
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)  # the server decides when this process ends
    with zmq.Context[zmq.Socket[bytes]]() as context, socket.socket(fileno=int(lifeline_fd)) as lifeline:
        commands, reports = pipe(context, zmq.PULL), pipe(context, zmq.PUSH)
        with commands, reports:
            reports.linger = FLUSH_MS
            commands.bind(command_address(directory))
            reports.connect(report_address(directory))
            try:
                return run(commands, Reporter(reports), lifeline, create)
            finally:
                shutil.rmtree(directory, ignore_errors=True)  # where the other side ended too early to do it


def run(
    commands: zmq.Socket[bytes],
    reporter: Reporter,
    lifeline: socket.socket,
    create: Callable[[EngineConfig, OnOutput], Engine],
) -> int:
    poller = zmq.Poller()
    poller.register(commands, zmq.POLLIN)
    poller.register(lifeline, zmq.POLLIN)
    if is_cut(poller, commands):
        return 0
    config = msgspec.msgpack.decode(commands.recv(), type=EngineConfig)
    try:
        engine = create(config, reporter.send_outputs)
    except Exception as error:  # whatever is wrong with a model is told to the one who asked for it
        if not isinstance(error, OSError | TypeError | ValueError | RuntimeError):
            traceback.print_exc()
        reporter.send(LoadFailed(str(error) or type(error).__name__))
        return 1
    try:
        reporter.send(Ready(msgspec.to_builtins(engine.stats())))
        with closing(Entrance(engine, reporter.send_outputs, config.max_waiting_requests)) as entrance:
            serve(commands, reporter, poller, entrance)
    finally:
        engine.close()
    return 0


def is_cut(poller: zmq.Poller, commands: zmq.Socket[bytes], timeout: float | None = None) -> bool:
    """Wait for a command, for the end of the lifeline, or ``timeout`` seconds; whether it is the second."""
    return any(readable is not commands for readable, _ in poller.poll(None if timeout is None else poll_ms(timeout)))


def serve(commands: zmq.Socket[bytes], reporter: Reporter, poller: zmq.Poller, entrance: Entrance) -> None:
    """Carry out the server's commands until the lifeline is cut."""
    decoder = msgspec.msgpack.Decoder(Command)
    while not is_cut(poller, commands, entrance.end_overdue()):
        try:
            command = decoder.decode(commands.recv(zmq.NOBLOCK))
        except zmq.Again:
            continue  # something is out of time
        match command:
            case GenerateRequest():
                entrance.add(command)
            case Abort(request_id):
                entrance.abort(request_id)
            case GetStats():
                reporter.send(EngineStats(entrance.stats()))


def die_with_parent() -> None:
    """On Linux: be killed when the process that started this one is, even in the midst of loading a model."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
