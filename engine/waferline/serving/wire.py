"""The wire messages: msgpack maps with a ``type``, one in each frame; ``docs/protocol.md`` tells them in full.

>>> encode(Cancel(id="a")).hex(" ")
'82 a4 74 79 70 65 a6 63 61 6e 63 65 6c a2 69 64 a1 61'
>>> decode_client_message([bytes.fromhex("82a474797065a663616e63656ca26964a161")])
Cancel(id='a')
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from ..runtime.errors import INVALID_REQUEST, PROMPT_TOO_LONG, RequestFailed, shown
from ..runtime.messages import Delta, TokenLogprob
from ..runtime.request_options import check_request_options, options_of
from ..runtime.sampling_params import SamplingParams

PROTOCOL_VERSION = 1
MAX_MESSAGE_BYTES = 4 << 20
MAX_FRAME_BYTES = 16 << 20  # a peer that sends a longer frame is disconnected before the frame is read
MAX_ID_LENGTH = 256  # characters
MAX_PROMPT_LENGTH = 1 << 20  # characters or token ids; the model's own bound is lower

MAX_NONCE = 2**63 - 1
MAX_REASON_LENGTH = 1000  # characters


class Generate(msgspec.Struct, tag_field="type", tag="generate", forbid_unknown_fields=True, omit_defaults=True):
    id: str
    prompt: str | list[int]  # whose ids the engine checks, which knows the vocabulary
    params: SamplingParams = msgspec.field(default_factory=SamplingParams)
    cache_salt: str | None = None
    priority: int = 0
    tenant: str | None = None
    deadline_ms: int | None = None
    queue_timeout_ms: int | None = None


class Cancel(msgspec.Struct, tag_field="type", tag="cancel", forbid_unknown_fields=True):
    id: str


class Ping(msgspec.Struct, tag_field="type", tag="ping", forbid_unknown_fields=True, omit_defaults=True):
    nonce: int | None = None


class GetStats(msgspec.Struct, tag_field="type", tag="stats", forbid_unknown_fields=True):
    pass


ClientMessage = Generate | Cancel | Ping | GetStats


class Accepted(msgspec.Struct, tag_field="type", tag="accepted"):
    id: str
    prompt_token_ids: list[int]
    seed: int


class Tokens(msgspec.Struct, tag_field="type", tag="tokens", omit_defaults=True):
    id: str
    seq: int
    index: int
    token_ids: list[int]
    text: str
    time_ns: int
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    logprobs: list[TokenLogprob] | None = None
    prompt_logprobs: list[list[TokenLogprob]] | None = None

    @classmethod
    def from_delta(cls, delta: Delta, request_id: str, seq: int) -> Tokens:
        return cls(
            request_id,
            seq,
            delta.index,
            delta.token_ids,
            delta.text,
            delta.time_ns,
            delta.finish_reason,
            delta.stop_reason,
            delta.logprobs,
            delta.prompt_logprobs,
        )

    def to_delta(self) -> Delta:
        return Delta(
            self.id,
            self.index,
            self.token_ids,
            self.text,
            self.finish_reason,
            self.stop_reason,
            self.logprobs,
            self.prompt_logprobs,
            self.time_ns,
        )


class Finished(msgspec.Struct, tag_field="type", tag="finished"):
    id: str
    finish_reasons: list[str]
    num_prompt_tokens: int
    num_output_tokens: int
    num_cached_tokens: int = 0


class Error(msgspec.Struct, tag_field="type", tag="error", omit_defaults=True):
    code: str
    message: str
    id: str | None = None
    retry_after_ms: int | None = None


class Pong(msgspec.Struct, tag_field="type", tag="pong", omit_defaults=True):
    version: int
    nonce: int | None = None


class Stats(msgspec.Struct, tag_field="type", tag="stats"):
    """Its fields go out beside those of the engine's own stats, in one map."""

    version: int
    uptime_s: float
    requests_in_flight: int


ServerMessage = Accepted | Tokens | Finished | Error | Pong | Stats


class InvalidMessage(RequestFailed):
    """A client's message that cannot be taken; ``request_id`` is the one it carried, where one could be read."""

    def __init__(self, code: str, message: str, request_id: str | None) -> None:
        super().__init__(code, message)
        self.request_id = request_id


class _Envelope(msgspec.Struct):
    """What is read of a message that is not valid as a whole."""

    type: Any = None
    id: Annotated[str, Meta(min_length=1, max_length=MAX_ID_LENGTH)] | None = None


_encoder = msgspec.msgpack.Encoder()
_client_decoder: msgspec.msgpack.Decoder[ClientMessage] = msgspec.msgpack.Decoder(ClientMessage)
_server_decoder: msgspec.msgpack.Decoder[ServerMessage] = msgspec.msgpack.Decoder(ServerMessage)
_envelope_decoder = msgspec.msgpack.Decoder(_Envelope)


def encode(message: ClientMessage | ServerMessage) -> bytes:
    return _encoder.encode(message)


def can_encode(value: object) -> bool:
    """Whether MessagePack has a form for ``value``: it has none for lone surrogates and integers of more than 64 bits."""
    try:
        _encoder.encode(value)
    except (TypeError, ValueError, OverflowError):
        return False
    return True


def encode_stats(stats: Stats, engine_stats: Mapping[str, Any]) -> bytes:
    return _encoder.encode({**engine_stats, **msgspec.to_builtins(stats)})


def decode_client_message(frames: Sequence[bytes]) -> ClientMessage:
    """The message in a client's ``frames`` (the identity taken off). Raises InvalidMessage for anything malformed."""
    if len(frames) != 1:
        raise InvalidMessage(INVALID_REQUEST, f"frames: {len(frames)}, expected each message in one frame", None)
    frame = frames[0]
    if len(frame) > MAX_MESSAGE_BYTES:
        envelope = _read_envelope(frame)
        code = PROMPT_TOO_LONG if envelope.type == "generate" else INVALID_REQUEST
        raise InvalidMessage(code, f"message: {len(frame)} bytes, expected at most {MAX_MESSAGE_BYTES}", envelope.id)
    try:
        decoded = _client_decoder.decode(frame)
    except (ValueError, RecursionError) as error:
        hint = "; expected generate, cancel, ping or stats" if str(error).endswith("`$.type`") else ""
        reason = str(error)[:MAX_REASON_LENGTH]  # which can name a field of any length
        raise InvalidMessage(INVALID_REQUEST, f"malformed message: {reason}{hint}", _read_envelope(frame).id) from None
    _check_values(decoded)
    return decoded


def _check_values(message: ClientMessage) -> None:
    """Raise InvalidMessage for a value out of range. (Those of ``params`` were checked when they were made.)"""
    if isinstance(message, Generate | Cancel) and not 1 <= len(message.id) <= MAX_ID_LENGTH:
        allowed = f"expected 1 to {MAX_ID_LENGTH} characters"
        raise InvalidMessage(INVALID_REQUEST, f"id: {shown(message.id)}, {allowed}", None)
    if isinstance(message, Ping) and not 0 <= (message.nonce or 0) <= MAX_NONCE:
        raise InvalidMessage(INVALID_REQUEST, f"nonce: {message.nonce}, expected 0 to {MAX_NONCE}", None)
    if isinstance(message, Generate):
        try:
            _check_prompt(message.prompt)
            check_request_options(options_of(message))
        except RequestFailed as error:
            raise InvalidMessage(error.code, error.message, message.id) from None


def _check_prompt(prompt: str | list[int]) -> None:
    if not prompt:
        raise RequestFailed(INVALID_REQUEST, f"prompt: {prompt!r}, expected at least one character or token id")
    if len(prompt) > MAX_PROMPT_LENGTH:
        allowed = f"expected at most {MAX_PROMPT_LENGTH} characters or token ids"
        raise RequestFailed(PROMPT_TOO_LONG, f"prompt: {len(prompt)} long, {allowed}")


def decode_server_message(frame: bytes) -> ServerMessage:
    """The message in a server's ``frame``; unknown fields are ignored. Raises ValueError where it is not one."""
    return _server_decoder.decode(frame)


def decode_stats(frame: bytes) -> dict[str, Any]:
    """All fields of a stats message but its type."""
    fields: dict[str, Any] = msgspec.msgpack.decode(frame)
    del fields["type"]
    return fields


def _read_envelope(frame: bytes) -> _Envelope:
    try:
        return _envelope_decoder.decode(frame)
    except (ValueError, RecursionError):
        return _Envelope()
