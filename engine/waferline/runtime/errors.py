"""The one typed exception of a request, and the closed set of its codes."""

from __future__ import annotations

INVALID_REQUEST = "invalid_request"  # malformed, wrong type, value out of range
PROMPT_TOO_LONG = "prompt_too_long"  # can never fit the context or the KV cache
DUPLICATE_ID = "duplicate_id"
UNKNOWN_REQUEST = "unknown_request"
OVERLOADED = "overloaded"  # too many requests in flight, or a client that leaves too much unread
SHUTTING_DOWN = "shutting_down"
INTERNAL = "internal"
ENGINE_DEAD = "engine_dead"
UNAVAILABLE = "unavailable"  # a client's own: no answer from the server, or the connection was lost
CODES = (
    INVALID_REQUEST,
    PROMPT_TOO_LONG,
    DUPLICATE_ID,
    UNKNOWN_REQUEST,
    OVERLOADED,
    SHUTTING_DOWN,
    INTERNAL,
    ENGINE_DEAD,
    UNAVAILABLE,
)


class RequestFailed(Exception):
    """A request was refused or failed; others are not affected. ``code`` is one of ``CODES``."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
