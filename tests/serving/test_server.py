"""The server's loop, seen by raw clients: answers, isolation, and clients that are slow or gone."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from typing import Any

import msgpack
import pytest
from running_server import RawClient, RunningServer

from waferline.runtime.prompts import LONG_PROMPT
from waferline.serving import outbox, wire
from waferline.serving import server as server_module

Connect = Callable[..., RawClient]


def tokens_of(received: list[dict[str, Any]], request_id: str) -> list[int]:
    """The ids in the tokens messages of a request, whose sequence numbers are checked."""
    tokens = [message for message in received if message["type"] == "tokens" and message["id"] == request_id]
    assert [message["seq"] for message in tokens] == list(range(len(tokens)))
    return [token for message in tokens for token in message["token_ids"]]


def engine_is_idle(client: RawClient) -> bool:
    client.send(type="stats")
    *_, stats = client.receive_until("stats")
    return bool(stats["requests_in_flight"] == 0 and stats["num_running"] == 0)


def wait_until_idle(client: RawClient) -> None:
    deadline = time.monotonic() + 10
    while not engine_is_idle(client):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_request_from_accepted_to_finished(server: RunningServer, connect: Connect) -> None:
    client = connect(server)
    client.send(type="generate", id="a", prompt="echo", params={"max_tokens": 3, "seed": 9}, cache_salt="abc")
    accepted, *tokens, finished = client.receive_until("finished")
    assert accepted == {"type": "accepted", "id": "a", "prompt_token_ids": list(b"echo"), "seed": 9}
    assert tokens_of(tokens, "a") == [0, 1, 2]
    assert [message.get("finish_reason") for message in tokens] == [None, None, "length"]
    assert finished == {
        "type": "finished",
        "id": "a",
        "finish_reasons": ["length"],
        "num_prompt_tokens": 4,
        "num_output_tokens": 3,
        "num_cached_tokens": 3,
    }


def test_completions_share_one_sequence_of_messages(server: RunningServer, connect: Connect) -> None:
    client = connect(server)
    client.send(type="generate", id="a", prompt=[5], params={"max_tokens": 2, "n": 2})
    received = client.receive_until("finished")
    assert tokens_of(received, "a") == [0, 0, 1, 1]
    assert [m["index"] for m in received if m["type"] == "tokens"] == [0, 1, 0, 1]


def test_many_streams_on_one_connection(server: RunningServer, connect: Connect) -> None:
    client = connect(server)
    for i in range(50):
        client.send(type="generate", id=f"r{i}", prompt=[1], params={"max_tokens": i + 1})
    received: list[dict[str, Any]] = []
    while sum(message["type"] == "finished" for message in received) < 50:
        received.append(client.receive())
    for i in range(50):
        assert tokens_of(received, f"r{i}") == list(range(i + 1))


def test_clients_may_use_the_same_id(server: RunningServer, connect: Connect) -> None:
    clients = [connect(server) for _ in range(3)]
    for i, client in enumerate(clients):
        client.send(type="generate", id="same", prompt=[1], params={"max_tokens": 5 + i})
    for i, client in enumerate(clients):
        assert tokens_of(client.receive_until("finished"), "same") == list(range(5 + i))


def test_a_connection_with_a_name_of_its_own_is_refused(server: RunningServer, connect: Connect) -> None:
    """Its requests would go on when it is gone, and their tokens would come to whoever takes the name next."""
    client = connect(server, routing_id=b"mine")
    client.send(type="generate", id="a", prompt="echo")
    client.send(type="ping")
    message = "ZMQ_ROUTING_ID: b'mine', expected it unset: a connection's requests end with it"
    error = {"type": "error", "code": "invalid_request", "message": message}
    assert [client.receive(), client.receive()] == [{**error, "id": "a"}, error]


def test_an_id_in_flight_cannot_be_used_again_until_it_has_ended(server: RunningServer, connect: Connect) -> None:
    client = connect(server)
    client.send(type="generate", id="a", prompt="slow", params={"max_tokens": 10})
    client.send(type="generate", id="a", prompt="echo")
    received = client.receive_until("finished")
    assert [(m["id"], m["code"]) for m in received if m["type"] == "error"] == [("a", "duplicate_id")]
    assert tokens_of(received, "a") == list(range(10))
    client.send(type="generate", id="a", prompt="echo", params={"max_tokens": 1})
    assert tokens_of(client.receive_until("finished"), "a") == [0]


def test_cancel(server: RunningServer, connect: Connect) -> None:
    client = connect(server)
    client.send(type="generate", id="a", prompt="slow", params={"max_tokens": 1000})
    client.send(type="generate", id="b", prompt="slow", params={"max_tokens": 10})
    client.receive_until("tokens")
    client.send(type="cancel", id="a")
    received = client.receive_until("finished")
    assert received[-1]["id"] == "a"
    assert received[-1]["finish_reasons"] == ["abort"]
    assert received[-1]["num_output_tokens"] < 1000
    received += client.receive_until("finished")
    assert received[-1]["id"] == "b"
    assert received[-1]["num_output_tokens"] == 10


def test_cancel_of_what_is_not_in_flight(server: RunningServer, connect: Connect) -> None:
    client, other = connect(server), connect(server)
    other.send(type="generate", id="a", prompt="slow", params={"max_tokens": 5})
    other.receive_until("accepted")
    client.send(type="cancel", id="a")  # another client's
    error = client.receive()
    assert (error["type"], error["id"], error["code"]) == ("error", "a", "unknown_request")
    assert tokens_of(other.receive_until("finished"), "a") == list(range(5))


def test_a_request_the_engine_refuses(server: RunningServer, connect: Connect) -> None:
    client = connect(server)
    client.send(type="generate", id="a", prompt="refuse")
    assert client.receive() == {
        "type": "error",
        "id": "a",
        "code": "prompt_too_long",
        "message": "prompt: too long",
    }
    assert engine_is_idle(client)


def test_a_request_arrives_when_the_server_gets_it(
    start_server: Callable[..., RunningServer], connect: Connect
) -> None:
    """And not when the engine does, which may still be loading."""
    server = start_server()
    client = connect(server)
    before = time.monotonic_ns()
    client.send(type="generate", id="a", prompt="arrival")
    client.send(type="ping")
    assert client.receive()["type"] == "pong"
    after = time.monotonic_ns()
    assert before <= int(client.receive()["message"]) <= after


def test_long_prompts_wait_as_all_others_do(server: RunningServer, connect: Connect) -> None:
    client = connect(server)
    heavy = "heavy " + "x" * LONG_PROMPT
    for name in ("first", "second", "late"):
        options = {"queue_timeout_ms": 1} if name == "late" else {}
        client.send(type="generate", id=name, prompt=heavy, params={"max_tokens": 1}, **options)
    client.send(type="cancel", id="second")
    ends: dict[str, Any] = {}
    while len(ends) < 3:
        message = client.receive_until("finished", "error")[-1]
        ends[message["id"]] = message.get("code") or message["finish_reasons"]
    assert ends == {"second": ["abort"], "late": "deadline_exceeded", "first": ["length"]}
    assert list(ends)[-1] == "first"


def test_ping_and_stats(server: RunningServer, connect: Connect) -> None:
    client = connect(server)
    client.send(type="ping", nonce=7)
    client.send(type="ping")
    assert client.receive() == {"type": "pong", "version": wire.PROTOCOL_VERSION, "nonce": 7}
    assert client.receive() == {"type": "pong", "version": wire.PROTOCOL_VERSION}
    client.send(type="stats")
    stats = client.receive()
    assert (stats["type"], stats["version"], stats["model"]) == ("stats", wire.PROTOCOL_VERSION, "fake")


MALFORMED = [
    (b"", None),
    (b"\xc1", None),
    (b"\x91" * 5000, None),
    (msgpack.packb([1]), None),
    (msgpack.packb({}), None),
    (msgpack.packb({"type": "nonsense", "id": "bad"}), "bad"),
    (msgpack.packb({"type": "generate", "id": "bad", "prompt": ""}), "bad"),
    (msgpack.packb({"type": "generate", "id": "bad", "prompt": "x", "params": {"n": 0}}), "bad"),
    (msgpack.packb({"type": "generate", "id": "bad", "prompt": "x", "unknown": 1}), "bad"),
    (msgpack.packb({"type": "generate", "id": "bad", "prompt": "x" * (5 << 20)}), "bad"),
    (msgpack.packb({"type": "generate", "id": 1, "prompt": "x"}), None),
    (msgpack.packb({"type": "cancel", "id": "bad", "unknown": 1}), "bad"),
]


def test_malformed_messages_get_one_error_each_and_streams_go_on(server: RunningServer, connect: Connect) -> None:
    client, other = connect(server), connect(server)
    for one in (client, other):
        one.send(type="generate", id="good", prompt="slow", params={"max_tokens": 20})
        one.receive_until("accepted")
    for frame, _ in MALFORMED:
        client.socket.send(frame)
    client.socket.send_multipart([b"", msgpack.packb({"type": "ping"})])
    received = client.receive_until("finished")
    errors = [message for message in received if message["type"] == "error"]
    assert [error.get("id") for error in errors] == [request_id for _, request_id in MALFORMED] + [None]
    assert {error["code"] for error in errors} == {"invalid_request", "prompt_too_long"}
    assert all(error["message"] for error in errors)
    assert tokens_of(received, "good") == list(range(20))
    assert tokens_of(other.receive_until("finished"), "good") == list(range(20))


def test_an_error_never_seems_to_end_a_stream_that_goes_on(server: RunningServer, connect: Connect) -> None:
    client = connect(server)
    client.send(type="generate", id="a", prompt="slow", params={"max_tokens": 10})
    client.send(type="cancel", id="a", unknown=1)
    received = client.receive_until("finished")
    assert [message.get("id") for message in received if message["type"] == "error"] == [None]
    assert tokens_of(received, "a") == list(range(10))


def test_a_frame_beyond_every_bound_costs_only_its_sender(server: RunningServer, connect: Connect) -> None:
    client, other = connect(server), connect(server)
    client.socket.send(b"\xc6" + bytes(wire.MAX_FRAME_BYTES))
    client.send(type="ping")
    other.send(type="ping")
    assert other.receive()["type"] == "pong"


def test_requests_of_a_client_that_vanished_are_aborted(server: RunningServer, connect: Connect) -> None:
    observer, client = connect(server), connect(server)
    client.send(type="generate", id="a", prompt="slow", params={"max_tokens": 100_000})
    client.receive_until("tokens")
    assert not engine_is_idle(observer)
    client.socket.close(linger=0)
    wait_until_idle(observer)


def test_a_slow_client_gets_every_token_and_holds_up_nobody(server: RunningServer, connect: Connect) -> None:
    slow, fast = connect(server, rcvhwm=1, rcvbuf=4096), connect(server)
    num_tokens = 8000  # more than ZeroMQ and the kernel hold for a client
    slow.send(type="generate", id="a", prompt="bulky", params={"max_tokens": num_tokens})
    fast.send(type="generate", id="b", prompt="echo", params={"max_tokens": num_tokens})
    assert tokens_of(fast.receive_until("finished"), "b") == list(range(num_tokens))
    wait_until_idle(fast)
    assert server.server._outbox
    assert tokens_of(slow.receive_until("finished"), "a") == list(range(num_tokens))


def test_a_client_that_never_reads_is_given_up(
    server: RunningServer, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "MAX_UNREAD_BYTES", 100_000)
    slow, observer = connect(server, rcvhwm=1, rcvbuf=4096), connect(server)
    slow.send(type="generate", id="a", prompt="bulky", params={"max_tokens": 2**31 - 1})
    time.sleep(0.1)
    wait_until_idle(observer)
    error = slow.receive_until("error")[-1]
    assert (error["id"], error["code"]) == ("a", "overloaded")


def test_large_messages_are_taken_one_at_a_time(connect: Connect) -> None:
    """So that what the engine says meanwhile does not wait for all of them."""
    running = RunningServer(is_started=False)
    client = connect(running)
    for _ in range(5):
        client.send(type="ping", padding="x" * server_module.BYTES_PER_TURN)
    time.sleep(0.2)  # in which all of them arrive
    for _ in range(5):
        running.server._on_clients()
        assert client.receive()["type"] == "error"
        assert not client.socket.poll(20)
    running.signal(signal.SIGINT)
    running.server.run()


def test_more_requests_than_the_server_takes(
    server: RunningServer, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "MAX_REQUESTS", 2)
    client = connect(server)
    for i in range(3):
        client.send(type="generate", id=f"r{i}", prompt="slow", params={"max_tokens": 3})
    received = client.receive_until("finished") + client.receive_until("finished")
    assert [(m["id"], m["code"]) for m in received if m["type"] == "error"] == [("r2", "overloaded")]
