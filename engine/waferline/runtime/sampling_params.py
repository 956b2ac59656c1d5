"""SamplingParams: how a request's tokens are chosen, in vLLM's words."""

from __future__ import annotations

import math
from typing import Any

import msgspec

MAX_STOP_TOKEN_IDS = 60  # the executor's bound, less room for a model's own end-of-sequence ids
MAX_STOP_STRINGS = 16
MAX_STOP_LENGTH = 1024  # characters
MAX_LOGPROBS = 20
MAX_N = 64


class SamplingParams(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """How tokens are chosen and when a completion ends.

    Every field is checked when an instance is made: TypeError for a wrong type, ValueError for a value out of range,
    each naming the field, the value and what is allowed.

    >>> SamplingParams(temperature=0.8, top_p=0.95, max_tokens=64).temperature
    0.8
    """

    n: int = 1
    """Completions of one prompt, each drawn with its own index."""
    temperature: float = 1.0
    """0 takes the most likely token (greedy)."""
    top_k: int = 0
    """Draw among the k most likely tokens; 0 or -1: all."""
    top_p: float = 1.0
    """Draw among the fewest most likely tokens whose probabilities reach this sum."""
    min_p: float = 0.0
    """Draw among tokens at least this share as likely as the most likely one."""
    seed: int | None = None
    """None: one is drawn when the request is admitted, and reported."""
    max_tokens: int | None = 16
    """None: as many as the model's context has room for."""
    min_tokens: int = 0
    """No end token and no stop id before this many."""
    stop: str | list[str] | None = None
    """Strings that end the completion; they are not part of its text."""
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    logprobs: int | None = None
    """Report the chosen token's log-probability and those of this many most likely tokens."""
    prompt_logprobs: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        self._check_integer("n", 1, MAX_N)
        self._check_number("temperature", 0.0, math.inf)
        self._check_integer("top_k", -1, 2**31 - 1)
        self._check_number("top_p", 0.0, 1.0, exclusive_low=True)
        self._check_number("min_p", 0.0, 1.0)
        self._check_integer("seed", 0, 2**64 - 1, optional=True)
        self._check_integer("max_tokens", 1, 2**31 - 1, optional=True)
        self._check_integer("min_tokens", 0, 2**31 - 1)
        self._check_integer("logprobs", 0, MAX_LOGPROBS, optional=True)
        self._check_integer("prompt_logprobs", 0, MAX_LOGPROBS, optional=True)
        self._check_number("presence_penalty", -2.0, 2.0)
        self._check_number("frequency_penalty", -2.0, 2.0)
        self._check_number("repetition_penalty", 0.0, math.inf, exclusive_low=True)
        if not isinstance(self.ignore_eos, bool):
            raise TypeError(f"ignore_eos: {self.ignore_eos!r}, expected a bool")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens: {self.min_tokens}, expected at most max_tokens ({self.max_tokens})")
        self._check_stop()

    @property
    def stop_strings(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or ())

    def _check_integer(self, field: str, low: int, high: int, optional: bool = False) -> None:
        value = getattr(self, field)
        if value is None and optional:
            return
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"{field}: {value!r}, expected an integer{' or None' if optional else ''}")
        if not low <= value <= high:
            raise ValueError(f"{field}: {value}, expected {low} to {high}")

    def _check_number(self, field: str, low: float, high: float, exclusive_low: bool = False) -> None:
        value: Any = getattr(self, field)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise TypeError(f"{field}: {value!r}, expected a number")
        if not low <= value <= high or not math.isfinite(value) or (exclusive_low and value == low):
            allowed = f"above {low:g}" if exclusive_low else f"at least {low:g}"
            raise ValueError(
                f"{field}: {value}, expected {allowed}" + (f" and at most {high:g}" if high < math.inf else "")
            )

    def _check_stop(self) -> None:
        stop: Any = self.stop_strings if isinstance(self.stop, str | list | None) else self.stop
        if not isinstance(stop, list) or not all(isinstance(s, str) for s in stop):
            raise TypeError(f"stop: {self.stop!r}, expected a string or a list of strings")
        if "" in stop or len(stop) > MAX_STOP_STRINGS:
            raise ValueError(f"stop: {self.stop!r}, expected at most {MAX_STOP_STRINGS} strings, none empty")
        if (longest := max(map(len, stop), default=0)) > MAX_STOP_LENGTH:
            raise ValueError(f"stop: a string of {longest} characters, expected at most {MAX_STOP_LENGTH}")
        ids: Any = self.stop_token_ids or []
        if not isinstance(ids, list) or not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
            raise TypeError(f"stop_token_ids: {ids!r}, expected a list of integers")
        if len(ids) > MAX_STOP_TOKEN_IDS or any(i < 0 for i in ids):
            raise ValueError(f"stop_token_ids: {ids!r}, expected at most {MAX_STOP_TOKEN_IDS} ids of at least 0")
