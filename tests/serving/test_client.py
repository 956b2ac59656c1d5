"""Client and AsyncClient against a real server loop, and against servers that misbehave."""

from __future__ import annotations

import asyncio
import gc
import itertools
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any

import msgpack
import pytest
import zmq
from running_server import RunningServer

from waferline.runtime.errors import RequestFailed
from waferline.runtime.messages import Delta, EngineOutput
from waferline.runtime.sampling_params import SamplingParams
from waferline.serving import wire
from waferline.serving.async_client import AsyncClient
from waferline.serving.call import Batch
from waferline.serving.client import Client
from waferline.serving.session import Inbox, Session

Start = Callable[..., RunningServer]


@pytest.fixture
def client(server: RunningServer) -> Iterator[Client]:
    with Client(server.address, timeout=10) as client:
        yield client


def wait_until_idle(client: Client) -> None:
    deadline = time.monotonic() + 10
    while client.stats()["num_running"]:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def run_async(server: RunningServer, body: Callable[[AsyncClient], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        async with AsyncClient(server.address, timeout=10) as client:
            await body(client)

    asyncio.run(main())


def test_generate_one_prompt(client: Client) -> None:
    (output,) = client.generate("echo", SamplingParams(max_tokens=3, seed=5))
    assert output.prompt == "echo"
    assert output.prompt_token_ids == list(b"echo")
    assert output.seed == 5
    assert output.finished
    (completion,) = output.outputs
    assert completion.text == "0 1 2 "
    assert completion.token_ids == [0, 1, 2]
    assert completion.finish_reason == "length"


def test_generate_keeps_the_order_of_prompts(client: Client) -> None:
    params = [SamplingParams(max_tokens=length, n=n) for length, n in ((40, 1), (1, 2), (7, 1))]
    prompts: list[str | list[int]] = ["slow", [1, 2], "echo"]
    outputs = client.generate(prompts, params)
    assert [len(output.outputs[0].token_ids) for output in outputs] == [40, 1, 7]
    assert [output.prompt for output in outputs] == ["slow", None, "echo"]
    assert len(outputs[1].outputs) == 2


def test_a_list_of_ids_is_one_prompt(client: Client) -> None:
    (output,) = client.generate([5, 6, 7])
    assert output.prompt_token_ids == [5, 6, 7]
    assert client.generate([]) == []


def test_generate_names_the_prompt_that_fails_and_cancels_the_others(client: Client) -> None:
    with pytest.raises(RequestFailed, match=r"prompts\[1\]") as raised:
        client.generate(["slow", "refuse"], SamplingParams(max_tokens=100_000))
    assert raised.value.code == "prompt_too_long"
    wait_until_idle(client)


@pytest.mark.parametrize("n", [10**9, "2", None])
def test_a_number_of_completions_that_was_assigned_fails_by_its_name(client: Client, n: Any) -> None:
    params = SamplingParams()
    params.n = n
    with pytest.raises(RequestFailed, match=r"prompts\[0\]: .*n\b") as raised:
        client.generate(["a", "b"], params)
    assert raised.value.code == "invalid_request"


@pytest.mark.parametrize("prompt", ["", [], [1, -1], ["a", "b"], "x" * (5 << 20), 5.0, "\ud800"])
def test_a_prompt_that_is_none_fails(client: Client, prompt: Any) -> None:
    with pytest.raises(RequestFailed) as raised:
        next(client.stream(prompt))
    assert raised.value.code in ("invalid_request", "prompt_too_long")
    assert len(client.generate("echo")[0].outputs[0].token_ids) == 16


@pytest.mark.parametrize(
    ("request_options", "field"),
    [
        ({"sampling_params": SamplingParams(stop="\ud800")}, "sampling_params"),
        ({"request_id": "\ud800"}, "request_id"),
        ({"tenant": "\ud800"}, "tenant"),
    ],
)
def test_what_is_no_unicode_is_named(client: Client, request_options: dict[str, Any], field: str) -> None:
    with pytest.raises(RequestFailed, match=f"invalid_request: {field}: "):
        client.stream("Hi", **request_options)


def test_what_does_not_pair_is_refused_before_it_is_sent(client: Client) -> None:
    with pytest.raises(ValueError, match="sampling_params"):
        client.generate(["a", "b"], [SamplingParams()])
    with pytest.raises(TypeError, match="prompts"):
        client.generate(5)  # type: ignore[arg-type]


def test_stream_yields_each_token_as_a_delta(client: Client) -> None:
    stream = client.stream("echo", SamplingParams(max_tokens=3, n=2))
    deltas = list(stream)
    assert [(delta.index, delta.token_ids, delta.text) for delta in deltas] == [
        (index, [i], f"{i} ") for i in range(3) for index in range(2)
    ]
    assert all(isinstance(delta, Delta) and delta.request_id == stream.request_id for delta in deltas)
    assert deltas[-1].finish_reason == "length"
    assert stream.accepted
    assert stream.accepted.prompt_token_ids == list(b"echo")
    assert stream.finished
    assert stream.finished.num_output_tokens == 6
    assert list(stream) == []


def test_streams_are_interleaved_on_one_connection(client: Client) -> None:
    streams = [client.stream("slow", SamplingParams(max_tokens=5 + i)) for i in range(20)]
    lengths = [0] * 20
    while any(not stream.finished for stream in streams):
        for i, stream in enumerate(streams):
            lengths[i] += next(stream, None) is not None
    assert lengths == [5 + i for i in range(20)]


@pytest.mark.parametrize("end", ["close", "drop"])
def test_a_stream_left_early_is_cancelled(client: Client, end: str) -> None:
    stream = client.stream("slow", SamplingParams(max_tokens=100_000))
    next(stream)
    if end == "close":
        stream.close()
        assert list(stream) == []
    else:
        del stream
        gc.collect()
    wait_until_idle(client)


def test_a_stream_that_a_signal_closes_ends(client: Client) -> None:
    stream = client.stream("slow", SamplingParams(max_tokens=100_000))
    former = signal.signal(signal.SIGALRM, lambda *_: stream.close())
    try:
        assert [signal.raise_signal(signal.SIGALRM) for _ in stream] == [None]
        waited_for = client.stream("sleepy", SamplingParams(max_tokens=100_000))
        signal.signal(signal.SIGALRM, lambda *_: waited_for.close())
        next(waited_for)
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        assert list(waited_for) == []
    finally:
        signal.signal(signal.SIGALRM, former)


def test_cancel_ends_a_stream_with_abort(client: Client) -> None:
    stream = client.stream("slow", SamplingParams(max_tokens=100_000), request_id="mine")
    assert next(stream).request_id == "mine"
    client.cancel("mine")
    remaining = list(stream)
    assert len(remaining) < 1000
    assert stream.finished
    assert stream.finished.finish_reasons == ["abort"]
    client.cancel("mine")  # nothing left to cancel
    client.cancel("another")


def test_a_batch_is_sent_as_the_server_can_take_it(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("waferline.serving.call.MAX_IN_FLIGHT", 3)
    lengths = list(range(1, 11))
    outputs = client.generate([[1]] * 10, [SamplingParams(max_tokens=length) for length in lengths])
    assert [len(output.outputs[0].token_ids) for output in outputs] == lengths


def test_a_batch_has_as_many_completions_in_flight_as_a_server_lets_wait(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("waferline.serving.call.MAX_IN_FLIGHT", 5)
    params = [SamplingParams(n=n) for n in (2, 2, 2, 64, 1)]
    batch = Batch(client._connection, ["echo"] * len(params), params, {}, inbox := Inbox[EngineOutput]())
    in_flight = []
    while not batch.is_done:
        batch.send()
        in_flight.append(sum(params[index].n for index, _ in batch._in_flight.values()))
        client._wait(inbox)
        batch.take()
    assert max(n for n in in_flight if n != 64) <= 5
    assert [len(output.outputs) for output in batch.results()] == [2, 2, 2, 64, 1]


def test_ids_that_are_made_up_are_new(client: Client) -> None:
    stream = client.stream("slow", SamplingParams(max_tokens=50), request_id="request-0")
    assert len(client.generate(["echo"] * 3)) == 3
    assert len(list(stream)) == 50


def test_a_request_id_is_used_once_at_a_time(client: Client) -> None:
    stream = client.stream("slow", SamplingParams(max_tokens=3), request_id="mine")
    with pytest.raises(RequestFailed, match="duplicate_id"):
        client.stream("slow", request_id="mine")
    assert len(list(stream)) == 3
    with pytest.raises(RequestFailed, match="request_id"):
        client.stream("echo", request_id="x" * 1000)
    client.stream("slow", request_id="mine").close()
    with pytest.raises(RequestFailed, match="duplicate_id"):  # the server has not ended it yet
        client.stream("slow", request_id="mine")
    wait_until_idle(client)
    assert len(list(client.stream("slow", SamplingParams(max_tokens=2), request_id="mine"))) == 2


@pytest.mark.parametrize("request_id", [5, b"mine", ["mine"]])
def test_a_request_id_is_text(client: Client, request_id: Any) -> None:
    with pytest.raises(
        TypeError, match=f"request_id: {re.escape(repr(request_id))}, expected None or text of 1 to 256"
    ):
        client.stream("echo", request_id=request_id)


def test_a_stream_that_is_dropped_unread_does_not_cancel_another_of_its_id(client: Client) -> None:
    unread = client.stream("echo", SamplingParams(max_tokens=1), request_id="mine")
    while client._connection.session.is_waiting:
        client.ping()
    stream = client.stream("slow", SamplingParams(max_tokens=20), request_id="mine")
    unread.close()
    assert len(list(stream)) == 20


def test_an_async_client_outlives_an_event_loop(server: RunningServer) -> None:
    client = AsyncClient(server.address, timeout=10)
    for _ in range(2):
        assert asyncio.run(client.ping()) > 0
    asyncio.run(client.close())


def test_ping_and_stats(client: Client) -> None:
    assert 0 < client.ping() < 5
    stats = client.stats()
    assert stats["model"] == "fake"
    assert stats["version"] == 1


def test_a_server_that_is_not_there_is_unavailable() -> None:
    address = f"tcp://127.0.0.1:{free_port()}"
    with Client(address, timeout=0.2) as client:
        begin = time.monotonic()
        for ask in (client.ping, client.stats, lambda: client.generate("echo"), lambda: next(client.stream("echo"))):
            with pytest.raises(RequestFailed, match=address) as raised:
                ask()
            assert raised.value.code == "unavailable"
        assert time.monotonic() - begin < 5

    async def main() -> None:
        async with AsyncClient(address, timeout=0.2) as client:
            for ask in (client.ping(), client.stats(), client.generate("echo"), anext(client.stream("echo"))):
                with pytest.raises(RequestFailed, match="unavailable"):
                    await ask

    asyncio.run(main())


def test_silence_is_no_failure_while_the_server_answers_pings(server: RunningServer) -> None:
    with Client(server.address, timeout=1.2) as client:
        assert len(list(client.stream("sleepy", SamplingParams(max_tokens=2)))) == 2


def test_what_a_session_does_about_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("waferline.serving.session.time.monotonic", lambda: now)
    session, inbox = Session("tcp://server:1", timeout=10.0), Inbox[EngineOutput]()
    session.restart_silence()
    session.generate("x", SamplingParams(), inbox)
    now = 102.0
    assert session.check_silence() == (3.0, None)
    now = 106.0
    assert session.check_silence() == (5.0, wire.encode(wire.Ping()))
    assert session.check_silence() == (5.0, None)
    now = 109.0
    session.feed(wire.encode(wire.Pong(wire.PROTOCOL_VERSION)))
    now = 111.0
    assert session.check_silence() == (3.0, None)
    now = 200.0  # the client was busy, and has not asked
    assert session.check_silence() == (5.0, wire.encode(wire.Ping()))
    now = 204.0
    assert session.check_silence() == (1.0, None)
    now = 206.0
    assert session.check_silence() == (0.0, None)


def test_a_client_that_was_busy_asks_before_it_gives_up(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(client: AsyncClient) -> None:
        stream = client.stream("sleepy", SamplingParams(max_tokens=2))
        await anext(stream)
        monotonic = time.monotonic
        monkeypatch.setattr(time, "monotonic", lambda: monotonic() + 60)  # all that time in which the loop did not run
        assert await anext(stream)

    run_async(server, body)


@pytest.mark.parametrize(("end", "code"), [(signal.SIGINT, "shutting_down"), ("die", "engine_dead")])
def test_a_server_that_ends_fails_its_streams(start_server: Start, end: int | str, code: str) -> None:
    server = start_server()
    with Client(server.address, timeout=10) as client:
        stream = client.stream("slow", SamplingParams(max_tokens=100_000))
        next(stream)
        if isinstance(end, int):
            server.signal(end)
        fatal = client.stream("die") if end == "die" else None
        with pytest.raises(RequestFailed) as raised:
            list(stream)
        assert raised.value.code == code
        assert list(stream) == []
        del fatal
        server.join()


@pytest.fixture
def imposter() -> Iterator[zmq.Socket[bytes]]:
    """A ROUTER of the test's own, in a server's place."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.linger = 0
        router.rcvtimeo = 5000
        router.bind("tcp://127.0.0.1:*")
        yield router


def address_of(router: zmq.Socket[bytes]) -> str:
    return str(router.getsockopt_string(zmq.LAST_ENDPOINT))


def reply(router: zmq.Socket[bytes], *messages: dict[str, Any]) -> None:
    identity, frame = router.recv_multipart()
    request_id = msgpack.unpackb(frame).get("id")
    for message in messages:
        router.send_multipart([identity, msgpack.packb({"id": request_id} | message)])


def test_a_gap_in_the_sequence_is_noticed(imposter: zmq.Socket[bytes]) -> None:
    tokens = {"type": "tokens", "index": 0, "token_ids": [1], "text": "", "time_ns": 0}
    with Client(address_of(imposter), timeout=5) as client:
        stream = client.stream("x")
        reply(imposter, {**tokens, "seq": 0}, {**tokens, "seq": 2})
        assert next(stream).token_ids == [1]
        with pytest.raises(RequestFailed, match="seq 2, expected 1"):
            next(stream)


def test_what_is_no_message_fails_what_waits(imposter: zmq.Socket[bytes]) -> None:
    with Client(address_of(imposter), timeout=5) as client:
        stream = client.stream("x")
        reply(imposter, {"type": "surprise"})
        with pytest.raises(RequestFailed, match="internal"):
            next(stream)


def test_an_error_without_an_id_is_for_the_only_one_that_waits(imposter: zmq.Socket[bytes]) -> None:
    with Client(address_of(imposter), timeout=5) as client:
        streams = [client.stream("x") for _ in range(2)]
        answers: list[dict[str, Any]] = [
            {"type": "error", "code": "invalid_request", "message": "whose?", "id": None},
            {"type": "error", "code": "overloaded", "message": "too much"},
        ]
        reply(imposter, *answers)
        with pytest.raises(RequestFailed, match="overloaded: too much"):
            next(streams[0])
        reply(imposter, answers[0])
        with pytest.raises(RequestFailed, match=r"invalid_request: whose\?"):
            next(streams[1])


def test_another_version_of_the_protocol_is_noticed(imposter: zmq.Socket[bytes]) -> None:
    async def main() -> None:
        async with AsyncClient(address_of(imposter), timeout=5) as client:
            ping = asyncio.ensure_future(client.ping())
            await asyncio.sleep(0)
            identity, frame = imposter.recv_multipart()
            pong = {"type": "pong", "version": 2, "nonce": msgpack.unpackb(frame)["nonce"]}
            imposter.send_multipart([identity, msgpack.packb(pong)])
            with pytest.raises(RequestFailed, match="version 2"):
                await ping

    asyncio.run(main())


def test_a_lost_connection_is_noticed_at_once() -> None:
    with zmq.Context() as context:
        router = context.socket(zmq.ROUTER)
        router.rcvtimeo = 5000
        router.bind("tcp://127.0.0.1:*")
        with Client(address_of(router), timeout=600) as client:
            stream = client.stream("x")
            router.recv_multipart()
            router.close(linger=0)
            with pytest.raises(RequestFailed, match="was lost"):
                next(stream)


def test_a_connection_lost_before_is_nothing_to_a_new_request() -> None:
    with zmq.Context() as context, Client(f"tcp://127.0.0.1:{free_port()}", timeout=5) as client:
        for ask in (lambda: next(client.stream("x")), client.ping, client.stats):
            with context.socket(zmq.ROUTER) as router:
                bind(router, client._connection.session.address)
                answerer = threading.Thread(target=answer_one, args=(router,))
                answerer.start()
                ask()
                answerer.join()
            assert client._connection.dealer.monitor.poll(5000)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def bind(router: zmq.Socket[bytes], address: str) -> None:
    """As soon as whoever had the address before has let it go, which happens in the background."""
    router.linger = 0
    router.rcvtimeo = 5000
    deadline = time.monotonic() + 5
    while True:
        try:
            return router.bind(address)
        except zmq.ZMQError:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def answer_one(router: zmq.Socket[bytes]) -> None:
    """Answer a request's first token, a ping or a question for the numbers."""
    identity, frame = router.recv_multipart()
    asked = msgpack.unpackb(frame)
    answers = {
        "generate": {"type": "tokens", "seq": 0, "index": 0, "token_ids": [1], "text": "", "time_ns": 0},
        "ping": {"type": "pong", "version": 1},
        "stats": {"type": "stats", "version": 1, "uptime_s": 1.0, "requests_in_flight": 0},
    }
    answer = answers[asked["type"]] | {name: asked[name] for name in ("id", "nonce") if name in asked}
    router.send_multipart([identity, msgpack.packb(answer)])


def test_tokens_keep_their_order_where_taking_them_in_is_interrupted(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by garbage collection, which finds a stream and cancels it."""
    connection = client._connection
    feed = connection.session.feed

    def interrupted(frame: bytes) -> None:
        connection.send(wire.encode(wire.Ping()))
        feed(frame)

    monkeypatch.setattr(connection.session, "feed", interrupted)
    stream = client.stream("echo", SamplingParams(max_tokens=200))
    assert [delta.token_ids for delta in stream] == [[i] for i in range(200)]


def interrupt(*arguments: Any) -> None:
    raise KeyboardInterrupt


def test_ctrl_c_loses_no_token(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    streams = [client.stream("slow", SamplingParams(max_tokens=20)) for _ in range(2)]
    with monkeypatch.context() as patch:
        patch.setattr(client._connection.session, "feed", interrupt)
        with pytest.raises(KeyboardInterrupt):
            next(streams[0])
    for stream in streams:
        assert [delta.token_ids for delta in stream] == [[i] for i in range(20)]


def test_a_request_that_ctrl_c_kept_from_its_owner_is_cancelled(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = client._connection
    send = connection.send
    for ask in (client.stream, client.generate):

        def interrupted(frame: bytes) -> None:
            patch.undo()
            send(frame)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(connection, "send", interrupted)
            with pytest.raises(KeyboardInterrupt):
                ask("slow", SamplingParams(max_tokens=100_000))
        wait_until_idle(client)


def test_what_ctrl_c_may_have_lost_is_no_longer_waited_for(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    streams = [client.stream("slow", SamplingParams(max_tokens=100_000)) for _ in range(2)]
    recv = zmq.Socket.recv

    def interrupted(self: zmq.Socket[bytes], *arguments: Any, **options: Any) -> Any:
        if self is client._connection.dealer.socket:  # the server's thread has sockets too
            raise KeyboardInterrupt
        return recv(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(zmq.Socket, "recv", interrupted)
        with pytest.raises(KeyboardInterrupt):
            next(streams[0])
    for stream in streams:
        with pytest.raises(RequestFailed, match="interrupted"):
            list(stream)
    wait_until_idle(client)
    assert len(list(client.stream("echo", SamplingParams(max_tokens=3)))) == 3


def test_a_token_that_ctrl_c_fell_upon_does_not_come_twice(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = client.stream("slow", SamplingParams(max_tokens=20))
    next(stream)
    while stream._inbox:
        stream._inbox.take()
    with monkeypatch.context() as patch:
        patch.setattr(stream._inbox, "put", interrupt)
        with pytest.raises(KeyboardInterrupt):
            next(stream)
    with pytest.raises(RequestFailed, match=r"tokens arrived with seq \d+, expected \d+"):
        list(stream)


def test_a_stream_that_another_thread_drops_is_cancelled_by_the_client_s(client: Client) -> None:
    streams = [client.stream("slow", SamplingParams(max_tokens=100_000))]
    next(streams[0])
    senders = []
    send = client._connection.send
    client._connection.send = lambda frame: (senders.append(threading.get_ident()), send(frame))  # type: ignore
    other = threading.Thread(target=streams.clear)
    other.start()
    other.join()
    wait_until_idle(client)
    assert set(senders) == {threading.get_ident()}


def test_a_closed_client_says_so(server: RunningServer) -> None:
    client = Client(server.address)
    stream = client.stream("slow")
    client.close()
    client.close()
    with pytest.raises(RequestFailed, match="closed"):
        list(stream)
    with pytest.raises(RequestFailed, match="closed"):
        client.ping()


def test_a_client_that_a_signal_closes_while_it_waits_is_unavailable(server: RunningServer) -> None:
    client = Client(server.address)
    stream = client.stream("sleepy", SamplingParams(max_tokens=100_000))
    next(stream)
    former = signal.signal(signal.SIGALRM, lambda *_: client.close())
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    with pytest.raises(RequestFailed, match="unavailable: the client was closed"):
        list(stream)
    signal.signal(signal.SIGALRM, former)


@pytest.mark.parametrize("operation", ["get", "recv", "send"])
def test_a_client_that_is_closed_between_two_steps_is_unavailable(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    """As by a signal's handler, which may come before any use of a socket."""
    client = Client(server.address)
    uninterrupted = getattr(zmq.Socket, operation)

    def interrupted(self: zmq.Socket[bytes], *arguments: Any, **options: Any) -> Any:
        if self is client._connection.dealer.socket:  # the server's thread has sockets too
            monkeypatch.undo()
            client.close()
        return uninterrupted(self, *arguments, **options)

    monkeypatch.setattr(zmq.Socket, operation, interrupted)
    with pytest.raises(RequestFailed, match=r"unavailable: the client (was|is) closed"):
        client.ping()


def test_a_client_that_is_closed_while_it_connects_again_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client(f"tcp://127.0.0.1:{free_port()}", timeout=0.1)
    connect = zmq.Socket.connect

    def interrupted(self: zmq.Socket[bytes], address: str) -> Any:
        result = connect(self, address)
        if address.startswith("tcp:"):
            client.close()
        return result

    monkeypatch.setattr(zmq.Socket, "connect", interrupted)
    with pytest.raises(RequestFailed, match="unavailable"):
        client.ping()
    assert client._connection.closed


@pytest.mark.parametrize(
    "address", ["", "nonsense", "tcp://127.0.0.1", "tcp://127.0.0.1:65536", "tcp://x:*", "udp://x:1"]
)
def test_an_address_that_is_none(address: str) -> None:
    with pytest.raises(ValueError, match="address"):
        Client(address)


@pytest.mark.parametrize("timeout", [0, -1, float("inf"), float("nan")])
def test_a_timeout_that_is_none(timeout: float) -> None:
    with pytest.raises(ValueError, match="timeout"):
        Client(timeout=timeout)


def test_options_go_to_the_engine_and_the_time_to_come_back_comes_back(server: RunningServer, client: Client) -> None:
    with pytest.raises(RequestFailed, match=r"prompts\[0\]: -2 acme 500 70") as failed:
        client.generate("busy", priority=-2, tenant="acme", deadline_ms=500, queue_timeout_ms=70)
    assert (failed.value.code, failed.value.retry_after_ms) == ("overloaded", 70)
    with pytest.raises(RequestFailed, match="3 acme None None") as failed:
        list(client.stream("busy", priority=3, tenant="acme"))
    assert failed.value.retry_after_ms == 70
    with pytest.raises(RequestFailed, match="deadline_ms: 0, expected an integer from 1"):
        client.stream("echo", deadline_ms=0)
    with pytest.raises(TypeError, match="urgency"):
        client.stream("echo", urgency=1)  # type: ignore[call-arg]

    async def body(client: AsyncClient) -> None:
        with pytest.raises(RequestFailed, match="-2 acme 500 70") as failed:
            await client.generate("busy", priority=-2, tenant="acme", deadline_ms=500, queue_timeout_ms=70)
        assert failed.value.retry_after_ms == 70
        with pytest.raises(RequestFailed, match="3 acme None None"):
            async for _ in client.stream("busy", priority=3, tenant="acme"):
                pass

    run_async(server, body)


def test_each_connection_is_a_tenant_of_its_own_unless_it_names_one(server: RunningServer, client: Client) -> None:
    def tenant(client: Client) -> str:
        with pytest.raises(RequestFailed) as failed:
            client.generate("busy")
        return failed.value.message

    with Client(server.address) as other:
        assert tenant(client) == tenant(client) != tenant(other)


def test_a_cache_salt_goes_to_the_engine_and_the_cached_tokens_come_back(server: RunningServer, client: Client) -> None:
    [output] = client.generate("echo", cache_salt="abc")
    assert output.num_cached_tokens == 3
    stream = client.stream("echo", cache_salt="abcd")
    list(stream)
    assert stream.finished is not None
    assert stream.finished.num_cached_tokens == 4
    with pytest.raises(RequestFailed, match="cache_salt: '', expected None or text of 1 to 256 characters"):
        client.generate("echo", cache_salt="")

    async def body(client: AsyncClient) -> None:
        [output] = await client.generate("echo", cache_salt="abc")
        assert output.num_cached_tokens == 3
        stream = client.stream("echo", cache_salt="abcd")
        async for _ in stream:
            pass
        assert stream.finished is not None
        assert stream.finished.num_cached_tokens == 4

    run_async(server, body)


def test_async_generate_and_stream(server: RunningServer) -> None:
    async def body(client: AsyncClient) -> None:
        async def count(length: int) -> int:
            return len([delta async for delta in client.stream("slow", SamplingParams(max_tokens=length))])

        lengths = list(range(1, 21))
        assert await asyncio.gather(*map(count, lengths)) == lengths
        outputs = await client.generate(["echo", "slow"], SamplingParams(max_tokens=2))
        assert [output.outputs[0].text for output in outputs] == ["0 1 "] * 2
        assert await client.ping() > 0
        assert (await client.stats())["model"] == "fake"

    run_async(server, body)


def test_async_streams_left_early_are_cancelled(server: RunningServer) -> None:
    async def body(client: AsyncClient) -> None:
        async for _ in client.stream("slow", SamplingParams(max_tokens=100_000)):
            break
        closed = client.stream("slow", SamplingParams(max_tokens=100_000))
        await anext(closed)
        await closed.aclose()
        cancelled = client.stream("slow", SamplingParams(max_tokens=100_000), request_id="mine")
        await anext(cancelled)
        await client.cancel("mine")
        assert len([delta async for delta in cancelled]) < 1000
        task = asyncio.ensure_future(client.generate("slow", SamplingParams(max_tokens=100_000)))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        deadline = time.monotonic() + 10
        while (await client.stats())["num_running"]:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)

    run_async(server, body)


def test_an_async_stream_that_another_task_closes_ends(server: RunningServer) -> None:
    async def body(client: AsyncClient) -> None:
        stream = client.stream("sleepy", SamplingParams(max_tokens=100_000))
        await anext(stream)
        waiting = [asyncio.ensure_future(anext(stream, None)) for _ in range(3)]
        await asyncio.sleep(0)
        await stream.aclose()
        assert await asyncio.gather(*waiting) == [None] * 3

    run_async(server, body)


def test_tasks_that_share_an_async_stream_end_with_it(server: RunningServer) -> None:
    async def body(client: AsyncClient) -> None:
        async def take(stream: AsyncIterator[Delta]) -> list[int]:
            return [token_id async for delta in stream for token_id in delta.token_ids]

        stream = client.stream("slow", SamplingParams(max_tokens=20))
        shares = await asyncio.gather(*(take(stream) for _ in range(3)))
        assert sorted(itertools.chain(*shares)) == list(range(20))

    run_async(server, body)


def test_async_failures_are_raised_where_they_are_waited_for(server: RunningServer) -> None:
    async def body(client: AsyncClient) -> None:
        going_on = client.stream("slow", SamplingParams(max_tokens=20))
        with pytest.raises(RequestFailed, match=r"prompts\[0\]"):
            await client.generate("refuse")
        with pytest.raises(RequestFailed, match="prompt_too_long"):
            await anext(client.stream("refuse"))
        assert len([delta async for delta in going_on]) == 20

    run_async(server, body)


def test_importing_a_client_is_quick_and_loads_no_engine() -> None:
    program = (
        "import time; begin = time.process_time(); from waferline import Client; took = time.process_time() - begin\n"
        "import sys; print(took); print({'numpy', 'numba', 'waferline_kernels', 'asyncio'} & set(sys.modules))"
    )
    took, loaded = min(
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split("\n")[
            :2
        ]
        for _ in range(3)
    )
    assert loaded == "set()"
    assert float(took) < 0.2
