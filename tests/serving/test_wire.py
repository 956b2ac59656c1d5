"""The schemas: what is taken, what is refused and with which words."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from waferline.runtime.errors import INVALID_REQUEST, PROMPT_TOO_LONG
from waferline.runtime.messages import Delta, TokenLogprob
from waferline.runtime.sampling_params import SamplingParams
from waferline.serving import wire

GENERATE = {"type": "generate", "id": "a", "prompt": "Once"}


def decode(message: Any) -> wire.ClientMessage:
    return wire.decode_client_message([msgpack.packb(message)])


def refusal(message: Any) -> wire.InvalidMessage:
    with pytest.raises(wire.InvalidMessage) as raised:
        decode(message)
    return raised.value


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (GENERATE, wire.Generate("a", "Once", SamplingParams())),
        ({**GENERATE, "prompt": [1, 2]}, wire.Generate("a", [1, 2])),
        (
            {**GENERATE, "params": {"temperature": 0, "seed": 2**64 - 1, "max_tokens": None, "stop": ["x"]}},
            wire.Generate("a", "Once", SamplingParams(temperature=0, seed=2**64 - 1, max_tokens=None, stop=["x"])),
        ),
        (
            {**GENERATE, "params": {"logit_bias": {5: 1, 6: -0.5}, "bad_words": ["x"], "output_kind": "final_only"}},
            wire.Generate(
                "a", "Once", SamplingParams(logit_bias={5: 1, 6: -0.5}, bad_words=["x"], output_kind="final_only")
            ),
        ),
        ({**GENERATE, "cache_salt": "é" * 256}, wire.Generate("a", "Once", cache_salt="é" * 256)),
        ({**GENERATE, "cache_salt": None}, wire.Generate("a", "Once")),
        (
            {**GENERATE, "priority": -(2**31), "tenant": "x", "deadline_ms": 1, "queue_timeout_ms": 2**31 - 1},
            wire.Generate("a", "Once", priority=-(2**31), tenant="x", deadline_ms=1, queue_timeout_ms=2**31 - 1),
        ),
        ({"type": "cancel", "id": "é" * 256}, wire.Cancel("é" * 256)),
        ({"type": "ping"}, wire.Ping()),
        ({"type": "ping", "nonce": 0}, wire.Ping(0)),
        ({"type": "stats"}, wire.GetStats()),
    ],
)
def test_valid_messages_are_taken_and_encode_back(message: dict[str, Any], expected: wire.ClientMessage) -> None:
    assert decode(message) == expected
    assert wire.decode_client_message([wire.encode(expected)]) == expected


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompt": ""}, "prompt: '', expected at least one character or token id"),
        ({"prompt": []}, "prompt: [], expected at least one character or token id"),
        ({"prompt": 5}, "$.prompt"),
        ({"prompt": b"Once"}, "$.prompt"),
        ({"prompt": None}, "$.prompt"),
        ({"prompt": [1, "a"]}, "$.prompt[1]"),
        ({"prompt": [True]}, "$.prompt[0]"),
        ({"prompt": [1.0]}, "$.prompt[0]"),
        ({"params": []}, "$.params"),
        ({"params": None}, "$.params"),
        ({"params": {"temprature": 1}}, "temprature"),
        ({"params": {"temperature": "hot"}}, "$.params.temperature"),
        ({"params": {"temperature": -1}}, "temperature: -1"),
        ({"params": {"temperature": float("nan")}}, "temperature: nan"),
        ({"params": {"top_p": 0}}, "top_p: 0"),
        ({"params": {"n": 0}}, "n: 0"),
        ({"params": {"n": True}}, "$.params.n"),
        ({"params": {"max_tokens": 0}}, "max_tokens: 0"),
        ({"params": {"max_tokens": 2, "min_tokens": 3}}, "min_tokens: 3"),
        ({"params": {"seed": -1}}, "seed: -1"),
        ({"params": {"stop": [""]}}, "stop"),
        ({"params": {"stop_token_ids": [-1]}}, "stop_token_ids"),
        ({"params": {"logprobs": 1000}}, "logprobs: 1000"),
        ({"params": {"logit_bias": {"5": 1.0}}}, "$.params.logit_bias"),
        ({"params": {"logit_bias": {5: 200}}}, "logit_bias[5]: 200"),
        ({"params": {"allowed_token_ids": []}}, "allowed_token_ids: []"),
        ({"params": {"bad_words": [""]}}, "bad_words: ['']"),
        ({"params": {"output_kind": "all"}}, "$.params.output_kind"),
        ({"cache_salt": ""}, "cache_salt: '', expected None or text of 1 to 256 characters"),
        ({"cache_salt": "a" * 257}, "cache_salt: 'aaaa"),
        ({"cache_salt": 1}, "$.cache_salt"),
        ({"priority": 2**31}, "priority: 2147483648, expected an integer from -2147483648 to 2147483647"),
        ({"priority": -(2**31) - 1}, "priority: -2147483649, expected an integer from -2147483648"),
        ({"priority": 2**64 - 1}, "priority: 18446744073709551615, expected"),
        ({"priority": 0.5}, "$.priority"),
        ({"tenant": ""}, "tenant: '', expected"),
        ({"tenant": "y" * 10**6}, "..., expected None or text of 1 to 256 characters"),
        ({"deadline_ms": 0}, "deadline_ms: 0, expected an integer from 1 to 2147483647"),
        ({"deadline_ms": 1.5}, "$.deadline_ms"),
        ({"queue_timeout_ms": 2**31}, "queue_timeout_ms: 2147483648, expected an integer from 1 to 2147483647"),
        ({"queue_timeout_ms": True}, "$.queue_timeout_ms"),
        ({"extra": 1}, "extra"),
        ({"params": {"temperature" * 10**5: 1}}, "unknown field `temperature"),
        ({"type": "x" * 10**6}, "'xxx"),
        ({"type": "tokens"}, "$.type"),
        ({"type": 1}, "$.type"),
        ({"type": None}, "$.type"),
    ],
)
def test_malformed_generate_names_what_is_wrong(changes: dict[str, Any], words: str) -> None:
    error = refusal(GENERATE | changes)
    assert (error.code, error.request_id) == (INVALID_REQUEST, "a")
    assert words in error.message
    assert len(error.message) < 1200


@pytest.mark.parametrize("request_id", [7, None, b"a", ["a"]])
def test_an_id_that_is_none_is_not_repeated(request_id: object) -> None:
    error = refusal(GENERATE | {"id": request_id})
    assert (error.code, error.request_id) == (INVALID_REQUEST, None)
    assert "$.id" in error.message


@pytest.mark.parametrize("kind", ["generate", "cancel"])
@pytest.mark.parametrize(("request_id", "told"), [("", "''"), ("x" * 257, f"'{'x' * 199}...")])
def test_an_id_out_of_range_is_told_but_as_no_id(kind: str, request_id: str, told: str) -> None:
    message = {**GENERATE, "id": request_id} if kind == "generate" else {"type": kind, "id": request_id}
    error = refusal(message)
    assert (error.code, error.request_id) == (INVALID_REQUEST, None)
    assert error.message == f"id: {told}, expected 1 to 256 characters"


@pytest.mark.parametrize("nonce", [-1, 2**63])
def test_a_nonce_out_of_range(nonce: int) -> None:
    assert refusal({"type": "ping", "nonce": nonce}).message == f"nonce: {nonce}, expected 0 to {2**63 - 1}"


@pytest.mark.parametrize("message", [{}, [], "generate", 1, None, {"type": "cancel"}, {"type": "stats", "id": 1}])
def test_what_is_no_message_at_all(message: object) -> None:
    assert refusal(message).code == INVALID_REQUEST


@pytest.mark.parametrize("frames", [[], [b"", msgpack.packb(GENERATE)], [msgpack.packb(GENERATE)] * 2])
def test_a_message_is_one_frame(frames: list[bytes]) -> None:
    with pytest.raises(wire.InvalidMessage, match="one frame"):
        wire.decode_client_message(frames)


@pytest.mark.parametrize(
    "prompt", ["x" * (wire.MAX_PROMPT_LENGTH + 1), [1] * (wire.MAX_PROMPT_LENGTH + 1), "x" * wire.MAX_MESSAGE_BYTES]
)
def test_an_oversized_prompt_is_refused_by_its_id(prompt: str | list[int]) -> None:
    error = refusal(GENERATE | {"prompt": prompt})
    assert (error.code, error.request_id) == (PROMPT_TOO_LONG, "a")
    assert str(wire.MAX_PROMPT_LENGTH) in error.message or str(wire.MAX_MESSAGE_BYTES) in error.message


@pytest.mark.parametrize(
    "frame", [b"", b"\xc1", b"\x91" * 100_000, b"\xdd\xff\xff\xff\xff", b"\x81\xa4type\xa1\xff", b"\xc0\x00"]
)
def test_what_is_no_msgpack(frame: bytes) -> None:
    with pytest.raises(wire.InvalidMessage):
        wire.decode_client_message([frame])


def outcome(frame: bytes) -> wire.ClientMessage | wire.InvalidMessage:
    try:
        return wire.decode_client_message([frame])
    except wire.InvalidMessage as error:
        return error


@given(st.binary())
def test_any_bytes_decode_or_are_refused(frame: bytes) -> None:
    result = outcome(frame)
    assert not isinstance(result, wire.InvalidMessage) or result.code == INVALID_REQUEST


@given(st.data())
def test_a_damaged_message_decodes_or_is_refused(data: st.DataObject) -> None:
    frame = bytearray(msgpack.packb(GENERATE | {"params": {"temperature": 0.5, "stop": ["a", "b"], "seed": 3}}))
    for _ in range(data.draw(st.integers(1, 4))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    del frame[data.draw(st.integers(0, len(frame))) :]
    result = outcome(bytes(frame))
    if isinstance(result, wire.InvalidMessage):
        assert result.request_id is None or 1 <= len(result.request_id) <= wire.MAX_ID_LENGTH


def test_a_delta_survives_the_wire() -> None:
    logprobs = [TokenLogprob(5, -0.5, 1, " a"), TokenLogprob(6, -1.5, 2, "é")]
    delta = Delta("a", 1, [5], " a", "stop", "a", logprobs, [[], logprobs], 123)
    tokens = wire.decode_server_message(wire.encode(wire.Tokens.from_delta(delta, "a", 7)))
    assert isinstance(tokens, wire.Tokens)
    assert tokens.seq == 7
    assert tokens.to_delta() == delta


def test_fields_at_rest_are_left_out() -> None:
    plain = msgpack.unpackb(wire.encode(wire.Tokens.from_delta(Delta("a", 0, [5], "x"), "a", 0)))
    assert set(plain) == {"type", "id", "seq", "index", "token_ids", "text", "time_ns"}


def test_a_client_ignores_fields_it_does_not_know() -> None:
    assert wire.decode_server_message(msgpack.packb({"type": "pong", "version": 1, "new": 2})) == wire.Pong(1)
