"""The one typed exception of a request, and the closed set of its codes."""

from __future__ import annotations

from itertools import islice

MAX_SHOWN = 200  # characters of a value in an error

INVALID_REQUEST = "invalid_request"  # malformed, wrong type, value out of range
PROMPT_TOO_LONG = "prompt_too_long"  # can never fit the context or the KV cache
DUPLICATE_ID = "duplicate_id"
UNKNOWN_REQUEST = "unknown_request"
OVERLOADED = "overloaded"  # too much is in flight or waits already, or a client leaves too much unread
DEADLINE_EXCEEDED = "deadline_exceeded"  # its queue timeout or deadline passed before it began
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
    DEADLINE_EXCEEDED,
    SHUTTING_DOWN,
    INTERNAL,
    ENGINE_DEAD,
    UNAVAILABLE,
)


class RequestFailed(Exception):
    """A request was refused or failed; others are not affected. ``code`` is one of ``CODES``; ``retry_after_ms`` is
    when the same request is expected to be taken, where it was refused as there was too much to do."""

    def __init__(self, code: str, message: str, retry_after_ms: int | None = None) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.retry_after_ms = retry_after_ms


def shown(value: object) -> str:
    """``value`` as it is named in an error, which stays short, and is cheap to make, whatever somebody sent.

    >>> shown("a" * 5), len(shown(["a"] * 1_000_000))
    ("'aaaaa'", 203)
    """
    if isinstance(value, str | bytes | list | tuple):
        value = value[: MAX_SHOWN + 1]
    elif isinstance(value, dict):
        value = dict(islice(value.items(), MAX_SHOWN + 1))
    try:
        text = repr(value)
    except ValueError:  # Python writes no integers of more than 4300 digits
        return "a number of too many digits to be shown"
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "..."
