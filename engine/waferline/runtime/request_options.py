"""What a request may say beside its prompt and its sampling parameters: whose it is, and when it is wanted."""

from __future__ import annotations

from typing import Any, NamedTuple, TypedDict

from .errors import DEADLINE_EXCEEDED, INVALID_REQUEST, RequestFailed, shown

MAX_NAME_LENGTH = 256  # characters
MIN_PRIORITY, MAX_PRIORITY = -(2**31), 2**31 - 1
MAX_MILLISECONDS = 2**31 - 1


class RequestOptions(TypedDict, total=False):
    """The keywords of ``generate`` and ``stream``, and the fields of the messages below them; each can be left out.

    ``cache_salt``: requests share cached blocks only with those of the same salt; one of its own keeps a tenant's
    prompts from showing in another's timing. ``priority``: a lower one goes first; 0 where none is given. ``tenant``:
    those of one priority get shares of the engine by their weights, however much each asks for. ``deadline_ms``: a
    completion that has not ended by then, counted from the request's arrival, ends there with what it has, and finish
    reason "deadline". ``queue_timeout_ms``: a request that has not begun by then fails, code "deadline_exceeded"; so
    does one that has not begun by its deadline.
    """

    cache_salt: str | None
    priority: int
    tenant: str | None
    deadline_ms: int | None
    queue_timeout_ms: int | None


def options_of(message: Any) -> RequestOptions:
    """The options in the fields of a message."""
    options: Any = {name: getattr(message, name) for name in RequestOptions.__annotations__}
    checked: RequestOptions = options
    return checked


class BeginLimit(NamedTuple):
    """The option by which a request is given up that has not begun, and its milliseconds from the arrival on."""

    option: str
    milliseconds: int

    def time_ns(self, arrival_ns: int) -> int:
        return arrival_ns + self.milliseconds * 1_000_000

    def failure(self) -> RequestFailed:
        return RequestFailed(DEADLINE_EXCEEDED, f"{self.option}: {self.milliseconds}, and it had not begun")


def begin_limit(message: Any) -> BeginLimit | None:
    """What the fields of a message say about its beginning; None: it waits as long as it takes."""
    limits = [BeginLimit(name, getattr(message, name)) for name in ("queue_timeout_ms", "deadline_ms")]
    return min(
        (limit for limit in limits if limit.milliseconds is not None),
        key=lambda limit: limit.milliseconds,
        default=None,
    )


def check_request_options(options: RequestOptions) -> None:
    """Raise RequestFailed, naming the field, for one that is not allowed."""
    for name in ("cache_salt", "tenant"):
        _check_name(name, options.get(name))
    _check_integer("priority", options.get("priority", 0), MIN_PRIORITY, MAX_PRIORITY)
    for name in ("deadline_ms", "queue_timeout_ms"):
        value = options.get(name)
        if value is not None:
            _check_integer(name, value, 1, MAX_MILLISECONDS)


def _check_name(field: str, value: Any) -> None:
    try:
        if value is None or (value.encode() and len(value) <= MAX_NAME_LENGTH):
            return
    except (AttributeError, UnicodeEncodeError):
        pass
    allowed = f"None or text of 1 to {MAX_NAME_LENGTH} characters"
    raise RequestFailed(INVALID_REQUEST, f"{field}: {shown(value)}, expected {allowed}")


def _check_integer(field: str, value: Any, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise RequestFailed(INVALID_REQUEST, f"{field}: {shown(value)}, expected an integer from {low} to {high}")
