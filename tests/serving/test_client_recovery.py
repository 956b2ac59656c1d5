"""What a client that has given a server up leaves behind: nothing that a later request could meet."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgpack
import pytest
import zmq

from waferline.runtime.errors import RequestFailed
from waferline.serving.async_client import AsyncClient
from waferline.serving.client import Client


class Imposter:
    """A ROUTER of the test's own, in a server's place."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], address: str = "tcp://127.0.0.1:*") -> None:
        self.router = context.socket(zmq.ROUTER)
        self.router.linger = 0
        self.router.rcvtimeo = 10_000
        self._bind(address)
        self.address = str(self.router.getsockopt_string(zmq.LAST_ENDPOINT))

    def _bind(self, address: str) -> None:
        """As soon as whoever had the address before has let it go, which happens in the background."""
        deadline = time.monotonic() + 10
        while True:
            try:
                return self.router.bind(address)
            except zmq.ZMQError:
                assert time.monotonic() < deadline
                time.sleep(0.01)

    def receive(self, kind: str) -> tuple[bytes, dict[str, Any]]:
        """The next message of this type, and whose it is; others are dropped."""
        while True:
            client, frame = self.router.recv_multipart()
            message: dict[str, Any] = msgpack.unpackb(frame)
            if message["type"] == kind:
                return client, message

    def send(self, client: bytes, **message: Any) -> None:
        self.router.send_multipart([client, msgpack.packb(message)])

    def send_token(self, client: bytes, request_id: str, seq: int, token_id: int) -> None:
        token = {"index": 0, "token_ids": [token_id], "text": "", "time_ns": 0}
        self.send(client, type="tokens", id=request_id, seq=seq, **token)

    def finish(self, client: bytes, request_id: str) -> None:
        counts = {"num_prompt_tokens": 1, "num_output_tokens": 1}
        self.send(client, type="finished", id=request_id, finish_reasons=["length"], **counts)


Start = Callable[..., Imposter]


@pytest.fixture
def start_imposter() -> Iterator[Start]:
    imposters = []
    with zmq.Context() as context:

        def start(*address: str) -> Imposter:
            imposters.append(Imposter(context, *address))
            return imposters[-1]

        yield start
        for imposter in imposters:
            imposter.router.close()


@pytest.fixture
def imposter(start_imposter: Start) -> Imposter:
    return start_imposter()


def test_tokens_of_a_request_that_was_given_up_reach_no_other_of_its_id(imposter: Imposter) -> None:
    with Client(imposter.address, timeout=0.2) as client:
        with pytest.raises(RequestFailed, match="unavailable: no answer"):
            next(client.stream("a", request_id="mine"))
        former, _ = imposter.receive("generate")
        imposter.send_token(former, "mine", seq=0, token_id=1)
        stream = client.stream("b", request_id="mine")
        present, _ = imposter.receive("generate")
        imposter.send_token(present, "mine", seq=0, token_id=2)
        imposter.finish(present, "mine")
        assert present != former
        assert [delta.token_ids for delta in stream] == [[2]]


def test_a_request_whose_tokens_were_lost_is_cancelled(imposter: Imposter) -> None:
    with Client(imposter.address, timeout=10) as client:
        stream = client.stream("a", request_id="mine")
        sender, _ = imposter.receive("generate")
        imposter.send_token(sender, "mine", seq=0, token_id=1)
        imposter.send_token(sender, "mine", seq=2, token_id=3)
        assert next(stream).token_ids == [1]
        with pytest.raises(RequestFailed, match="internal: tokens arrived with seq 2, expected 1"):
            next(stream)
        assert imposter.receive("cancel") == (sender, {"type": "cancel", "id": "mine"})
        with pytest.raises(RequestFailed, match="duplicate_id"):
            client.stream("b", request_id="mine")
        imposter.finish(sender, "mine")
        while client._connection.session.is_waiting:
            client._connection.take_in()
        client.stream("b", request_id="mine")
        assert imposter.receive("generate")[1]["prompt"] == "b"


@pytest.mark.parametrize("frame", [b"no message", msgpack.packb({"type": "surprise"})])
def test_what_is_no_message_ends_the_connection(imposter: Imposter, frame: bytes) -> None:
    with Client(imposter.address, timeout=10) as client:
        stream = client.stream("a", request_id="mine")
        former, _ = imposter.receive("generate")
        imposter.router.send_multipart([former, frame])
        with pytest.raises(RequestFailed, match=r"internal: .* sent what is not a message of this protocol"):
            next(stream)
        client.stream("b", request_id="mine")
        present, _ = imposter.receive("generate")
        assert present != former


def test_what_no_server_was_there_to_take_does_not_run_once_there_is_one(
    imposter: Imposter, start_imposter: Start
) -> None:
    imposter.router.close()
    with Client(imposter.address, timeout=0.2) as client:
        for _ in range(3):
            with pytest.raises(RequestFailed, match="unavailable"):
                next(client.stream("a"))
        present = start_imposter(imposter.address)
        client.stream("b", request_id="wanted")
        _, message = present.receive("generate")
        assert message["id"] == "wanted"


def test_an_async_client_goes_on_with_a_server_that_answers_again(imposter: Imposter, start_imposter: Start) -> None:
    async def answer_ping(client: AsyncClient, imposter: Imposter) -> None:
        ping = asyncio.ensure_future(client.ping())
        await asyncio.sleep(0)
        sender, message = await asyncio.to_thread(imposter.receive, "ping")
        while "nonce" not in message:  # one that asks after a silence
            sender, message = await asyncio.to_thread(imposter.receive, "ping")
        imposter.send(sender, type="pong", version=1, nonce=message["nonce"])
        assert await ping > 0

    async def main() -> None:
        async with AsyncClient(imposter.address, timeout=0.2) as impatient:
            with pytest.raises(RequestFailed, match="no answer"):
                await anext(impatient.stream("a"))
            imposter.receive("generate")
            impatient._connection.session.timeout = 10.0
            await answer_ping(impatient, imposter)
        async with AsyncClient(imposter.address, timeout=10) as client:
            stream = client.stream("a")
            imposter.receive("generate")
            imposter.router.close()
            with pytest.raises(RequestFailed, match="was lost"):
                await anext(stream)
            await answer_ping(client, start_imposter(imposter.address))

    asyncio.run(main())
