"""Whatever bytes a client sends, it gets one answer each, and the server goes on."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from running_server import RawClient, RunningServer

from waferline.serving import wire

nonces = itertools.count(1 << 40)  # beyond what the strategies draw
scalars = (
    st.none() | st.booleans() | st.integers(-(2**31), 2**32) | st.floats() | st.text(max_size=5) | st.binary(max_size=5)
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
)
maps = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["generate", "cancel", "ping", "stats", "tokens"]) | values,
        "id": st.sampled_from(["a", "b"]) | values,
        "prompt": st.lists(st.integers(0, 300), max_size=3) | values,
        "params": st.dictionaries(st.sampled_from(["n", "max_tokens", "stop", "seed"]), values, max_size=2) | values,
        "nonce": values,
        "other": values,
    },
)
frames = st.binary(max_size=20) | maps.map(msgpack.packb) | values.map(msgpack.packb)


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Iterator[RawClient]:
    client = RawClient(server.address)
    yield client
    client.socket.close(linger=0)


def is_malformed(message: list[bytes]) -> bool:
    try:
        wire.decode_client_message(message)
    except wire.InvalidMessage:
        return True
    return False


def receive_until_pong(client: RawClient, nonce: int) -> list[dict[str, Any]]:
    received = []
    while (message := client.receive()) != {"type": "pong", "version": wire.PROTOCOL_VERSION, "nonce": nonce}:
        received.append(message)
    return received


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(messages=st.lists(st.lists(frames, min_size=1, max_size=2), max_size=5))
def test_one_error_for_each_malformed_message(client: RawClient, messages: list[list[bytes]]) -> None:
    malformed = [message for message in messages if is_malformed(message)]
    for message in malformed:
        client.socket.send_multipart(message)
    nonce = next(nonces)
    client.send(type="ping", nonce=nonce)
    answers = receive_until_pong(client, nonce)
    assert [answer["type"] for answer in answers] == ["error"] * len(malformed)
    assert {answer["code"] for answer in answers} <= {"invalid_request"}


@settings(max_examples=100, deadline=None)
@given(messages=st.lists(st.lists(frames, min_size=1, max_size=2), max_size=5))
def test_the_server_survives_valid_and_malformed_messages_mixed(client: RawClient, messages: list[list[bytes]]) -> None:
    for message in messages:
        client.socket.send_multipart(message)
    nonce = next(nonces)
    client.send(type="ping", nonce=nonce)
    for answer in receive_until_pong(client, nonce):
        assert answer["type"] in ("accepted", "tokens", "finished", "error", "pong", "stats")
