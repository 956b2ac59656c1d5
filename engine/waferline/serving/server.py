"""The server: one loop between the clients' ROUTER socket and the engine process.

A request's life here: ``_generate`` names it and hands it to the engine; ``_forward`` turns each of the engine's
outputs into one frame for the client that asked; its last output, or the client's end, removes it. The loop sleeps
until a socket is readable, and never waits for a client.
"""

from __future__ import annotations

import itertools
import math
import signal
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec
import zmq

from ..runtime import messages
from ..runtime.errors import (
    DUPLICATE_ID,
    ENGINE_DEAD,
    INTERNAL,
    INVALID_REQUEST,
    OVERLOADED,
    SHUTTING_DOWN,
    UNKNOWN_REQUEST,
    shown,
)
from ..runtime.request_options import options_of
from . import wire
from .address import check_that_path_is_free
from .engine_link import (
    Abort,
    EngineConfig,
    EngineError,
    EngineProcess,
    EngineStats,
    GetStats,
    LoadFailed,
    Outputs,
    Ready,
    Report,
)
from .outbox import MAX_UNREAD_BYTES, Outbox
from .timeouts import poll_ms

MAX_REQUESTS = 4096  # in flight, over all clients
MESSAGES_PER_TURN = 16  # from one side, before the other is looked at
BYTES_PER_TURN = 1 << 18  # the same; of a message that has more, one
BACKLOG_RETRY_S = 0.05
HEARTBEAT_S = 5
HEARTBEAT_TIMEOUT_S = 30
LINGER_S = 2  # for the last frames, when the server closes at once
LAST_REPORTS_MS = 100  # for what a dead engine had still sent


class Stream(msgspec.Struct):
    """A request in flight: whose it is, what they call it, and the next ``seq``."""

    client: bytes
    id: str
    next_seq: int = 0


class Server:
    """Serves the model of ``config`` at an address, until told to stop.

    ``on_ready`` is called with the engine's stats when the model is loaded; clients may connect and ask before that.
    ``drain_timeout``: seconds that requests in flight have left after SIGTERM. Raises OSError where ``bind`` is taken
    or is not an address of this machine, and ValueError for what is no number of seconds.
    """

    def __init__(
        self,
        bind: str,
        config: EngineConfig,
        *,
        drain_timeout: float = 30.0,
        on_ready: Callable[[dict[str, Any]], None] = lambda stats: None,
        start_engine: Callable[[zmq.Context[zmq.Socket[bytes]], EngineConfig], EngineProcess] = EngineProcess,
    ) -> None:
        if not 0 <= drain_timeout < math.inf:
            raise ValueError(f"drain_timeout: {drain_timeout}, expected a finite number of seconds of at least 0")
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        try:
            self._router = bound_router(self._context, bind)
            self._engine = start_engine(self._context, config)
        except BaseException:
            self._context.destroy(linger=0)
            raise
        self.address: str = self._router.getsockopt_string(zmq.LAST_ENDPOINT)
        self._outbox = Outbox(self._router)
        self._drain_timeout = drain_timeout
        self._on_ready = on_ready

        self._started = time.monotonic()
        self._streams: dict[str, Stream] = {}  # by the engine's name of the request
        self._names: dict[bytes, dict[str, str]] = {}  # client -> its id of a request -> the engine's name of it
        self._new_names = map(str, itertools.count())
        self._stats_askers: deque[bytes] = deque()
        self._drain_deadline: float | None = None
        self._stopping = False

        self._signals, self._signal_sender = socket.socketpair()
        self._signal_sender.setblocking(False)
        self._former_handlers: dict[int, Any] = {}
        self._poller = zmq.Poller()
        self._handlers: dict[object, Callable[[], None]] = {
            self._signals.fileno(): self._on_signals,
            self._router: self._on_clients,
            self._engine.reports: self._on_engine,
            self._engine.lifeline.fileno(): self._on_engine_death,
        }
        for readable in self._handlers:
            self._poller.register(readable, zmq.POLLIN)

    def install_signal_handlers(self) -> None:
        """SIGTERM drains, SIGINT or a second SIGTERM stops; to be called in the process's main thread."""
        signal.set_wakeup_fd(self._signal_sender.fileno())
        for signum in (signal.SIGTERM, signal.SIGINT):
            self._former_handlers[signum] = signal.signal(signum, lambda *_: None)

    def _restore_signal_handlers(self) -> None:
        if self._former_handlers:
            signal.set_wakeup_fd(-1)
        for signum, handler in self._former_handlers.items():
            signal.signal(signum, handler)

    def signal(self, signum: int) -> None:
        """Do what the process does on SIGTERM or SIGINT; callable from any thread."""
        self._signal_sender.send(bytes([signum]))

    def run(self) -> None:
        """Serve until stopped or drained, then close. Raises EngineError where the engine ends first."""
        code, message = INTERNAL, "the server failed"
        try:
            self._loop()
            code, message = SHUTTING_DOWN, "the server is shutting down"
        except EngineError as error:
            code, message, self._drain_deadline = ENGINE_DEAD, str(error), None
            raise
        finally:
            self._fail_all(code, message)
            self._close()

    def _loop(self) -> None:
        while not self._stopping:
            for readable, _ in self._poller.poll(self._poll_timeout_ms()):
                self._handlers[readable]()
            if self._outbox:
                for client in self._outbox.flush():
                    self._drop_client(client)
            if self._drain_deadline is not None:
                drained = not self._streams and not self._outbox
                self._stopping |= drained or time.monotonic() >= self._drain_deadline

    def _poll_timeout_ms(self) -> int | None:
        timeouts = [BACKLOG_RETRY_S] if self._outbox else []
        if self._drain_deadline is not None:
            timeouts.append(max(0.0, self._drain_deadline - time.monotonic()))
        return poll_ms(min(timeouts)) if timeouts else None

    # From clients

    def _on_clients(self) -> None:
        num_messages = num_bytes = 0
        while num_messages < MESSAGES_PER_TURN and num_bytes < BYTES_PER_TURN:
            try:
                client, *frames = self._router.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            num_messages += 1
            num_bytes += sum(map(len, frames))
            try:
                message = wire.decode_client_message(frames)
                check_identity(client, message)
                self._handle(client, message)
            except wire.InvalidMessage as error:
                self._refuse(client, error)

    def _handle(self, client: bytes, message: wire.ClientMessage) -> None:
        match message:
            case wire.Generate():
                self._generate(client, message)
            case wire.Cancel():
                name = self._names.get(client, {}).get(message.id)
                if name is None:
                    raise wire.InvalidMessage(UNKNOWN_REQUEST, f"id: {message.id!r} is not in flight", message.id)
                self._engine.send(Abort(name))
            case wire.Ping():
                self._send(client, wire.Pong(wire.PROTOCOL_VERSION, message.nonce))
            case wire.GetStats():
                self._stats_askers.append(client)
                self._engine.send(GetStats())

    def _generate(self, client: bytes, message: wire.Generate) -> None:
        if message.id in self._names.get(client, {}):
            raise wire.InvalidMessage(DUPLICATE_ID, f"id: {message.id!r} is in flight already", message.id)
        if self._drain_deadline is not None:
            raise wire.InvalidMessage(SHUTTING_DOWN, "the server takes no new requests", message.id)
        if len(self._streams) >= MAX_REQUESTS:
            raise wire.InvalidMessage(OVERLOADED, f"{MAX_REQUESTS} requests are in flight already", message.id)
        name = next(self._new_names)
        self._streams[name] = Stream(client, message.id)
        self._names.setdefault(client, {})[message.id] = name
        options = options_of(message)
        # Unless it says whose a request is, each connection is a tenant of its own.
        options["tenant"] = message.tenant or f"connection {client.hex()}"
        arrival_ns = time.monotonic_ns()
        request = messages.GenerateRequest(name, message.prompt, message.params, **options, arrival_ns=arrival_ns)
        self._engine.send(request)

    def _refuse(self, client: bytes, error: wire.InvalidMessage) -> None:
        """Answer a message that cannot be taken, without its id where that would seem to end a request in flight."""
        in_flight = error.request_id in self._names.get(client, {})
        request_id = None if in_flight and error.code != DUPLICATE_ID else error.request_id
        self._send(client, wire.Error(error.code, error.message, request_id))

    # From the engine

    def _on_engine(self) -> None:
        for _ in range(MESSAGES_PER_TURN):
            report = self._engine.receive()
            if report is None:
                return
            self._handle_report(report)

    def _handle_report(self, report: Report) -> None:
        match report:
            case Outputs(outputs):
                for output in outputs:
                    self._forward(output)
            case EngineStats(stats):
                uptime = time.monotonic() - self._started
                own = wire.Stats(wire.PROTOCOL_VERSION, uptime, len(self._streams))
                self._send_frame(self._stats_askers.popleft(), wire.encode_stats(own, stats))
            case Ready(stats):
                self._engine.remove_directory()
                self._on_ready(stats)
            case LoadFailed(message):
                raise EngineError(message)

    def _forward(self, output: messages.EngineOutput) -> None:
        stream = self._streams.get(output.request_id)
        if stream is None:
            return  # its client is gone
        message: wire.ServerMessage
        match output:
            case messages.Delta():
                message = wire.Tokens.from_delta(output, stream.id, stream.next_seq)
                stream.next_seq += 1
            case messages.Accepted():
                message = wire.Accepted(stream.id, output.prompt_token_ids, output.seed)
            case messages.Finished():
                self._remove(output.request_id)
                message = wire.Finished(
                    stream.id,
                    output.finish_reasons,
                    output.num_prompt_tokens,
                    output.num_output_tokens,
                    output.num_cached_tokens,
                )
            case messages.RequestError():
                self._remove(output.request_id)
                message = wire.Error(output.code, output.message, stream.id, output.retry_after_ms)
        self._send(stream.client, message)
        if isinstance(output, messages.RequestError) and output.code == ENGINE_DEAD:
            raise EngineError(output.message)

    def _on_engine_death(self) -> None:
        while self._engine.reports.poll(LAST_REPORTS_MS):
            self._on_engine()
        raise EngineError(f"the engine process {self._engine.describe_end()}")

    # From the process

    def _on_signals(self) -> None:
        for signum in self._signals.recv(64):
            if signum == signal.SIGTERM and self._drain_deadline is None:
                self._drain_deadline = time.monotonic() + self._drain_timeout
            elif signum in (signal.SIGTERM, signal.SIGINT):
                self._stopping, self._drain_deadline = True, None

    # To clients

    def _send(self, client: bytes, message: wire.ServerMessage) -> None:
        self._send_frame(client, wire.encode(message))

    def _send_frame(self, client: bytes, frame: bytes) -> None:
        if not self._outbox.send(client, frame):
            self._drop_client(client)

    def _drop_client(self, client: bytes) -> None:
        """Abort the requests of a client that is gone, or that reads too little; the latter is told."""
        for request_id, name in self._names.pop(client, {}).items():
            del self._streams[name]
            self._engine.send(Abort(name))
            message = f"the client has left more than {MAX_UNREAD_BYTES} bytes unread"
            self._send(client, wire.Error(OVERLOADED, message, request_id))

    def _remove(self, name: str) -> None:
        stream = self._streams.pop(name)
        names = self._names[stream.client]
        del names[stream.id]
        if not names:
            del self._names[stream.client]

    def _fail_all(self, code: str, message: str) -> None:
        for name, stream in list(self._streams.items()):
            if name in self._streams:  # not dropped meanwhile
                self._remove(name)
                self._send(stream.client, wire.Error(code, message, stream.id))
        while self._stats_askers:
            self._send(self._stats_askers.popleft(), wire.Error(code, message))

    def _close(self) -> None:
        self._engine.close()  # signals that come meanwhile must not keep it from cleaning up
        self._restore_signal_handlers()
        self._signals.close()
        self._signal_sender.close()
        if self._drain_deadline is not None:  # what is left of the time is for clients that read slowly
            self._router.linger = max(LINGER_S * 1000, poll_ms(self._drain_deadline - time.monotonic()))
        self._router.close()
        self._context.term()


def check_identity(client: bytes, message: wire.ClientMessage) -> None:
    """Raise InvalidMessage unless ZeroMQ has named ``client``, anew for each connection. Under a name of a client's own the
    requests of a connection that is lost would go on, and their tokens come to the next one of that name."""
    if not client.startswith(b"\0"):
        problem = f"ZMQ_ROUTING_ID: {shown(client)}, expected it unset: a connection's requests end with it"
        raise wire.InvalidMessage(INVALID_REQUEST, problem, getattr(message, "id", None))


def bound_router(context: zmq.Context[zmq.Socket[bytes]], address: str) -> zmq.Socket[bytes]:
    """The socket for clients. Raises OSError where ``address`` cannot be bound to, or not without harm."""
    check_that_path_is_free(address)
    router = context.socket(zmq.ROUTER)
    router.setsockopt(zmq.ROUTER_MANDATORY, 1)  # sending tells when a client is gone, or has no room
    router.setsockopt(zmq.MAXMSGSIZE, wire.MAX_FRAME_BYTES)
    router.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_S * 1000)
    router.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_S * 1000)
    router.setsockopt(zmq.LINGER, LINGER_S * 1000)
    router.setsockopt(zmq.IPV6, int("[" in address))
    try:
        router.bind(address)
    except zmq.ZMQError as error:
        raise OSError(f"bind: {address!r}: {zmq.strerror(error.errno or 0)}") from None
    return router
