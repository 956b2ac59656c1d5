"""SamplingParams: how a request's tokens are chosen, in vLLM's words."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import msgspec

from .errors import shown

MAX_STOP_TOKEN_IDS = 60  # the executor's bound, less room for a model's own end-of-sequence ids
MAX_STOP_STRINGS = 16
MAX_STOP_LENGTH = 1024  # characters
MAX_LOGPROBS = 20
MAX_N = 64
MAX_LOGIT_BIAS = 300  # tokens; the executor's bound
MAX_BIAS = 100.0  # of one token, either way
MAX_ALLOWED_TOKEN_IDS = 1 << 18
MAX_BAD_WORDS = 256  # the executor bounds their tokens too
MAX_BAD_WORD_LENGTH = 256  # characters
MAX_TEMPERATURE = 1e6  # in which, as in the next, float32 has room for any logits
MIN_REPETITION_PENALTY, MAX_REPETITION_PENALTY = 1e-3, 1e3
OUTPUT_KINDS = ("delta", "final_only")


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
    include_stop_str_in_output: bool = False
    """The stop string, or the text of the stop id, is part of the text after all."""
    ignore_eos: bool = False
    logprobs: int | None = None
    """Report the chosen token's log-probability and those of this many most likely tokens."""
    prompt_logprobs: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] | None = None
    """Token id -> what is added to its logit, -100 to 100."""
    allowed_token_ids: list[int] | None = None
    """No others are drawn."""
    bad_words: list[str] | None = None
    """Their last token is never drawn where it would complete one of them, be it at the beginning or after a space."""
    detokenize: bool = True
    """False: no text, only token ids."""
    skip_special_tokens: bool = True
    """False: special tokens are part of the text."""
    truncate_prompt_tokens: int | None = None
    """Take only this many tokens of the prompt, the last ones."""
    output_kind: Literal["delta", "final_only"] = "delta"
    """What a stream is made of: a delta for each token, or one for a whole completion at its end."""

    def __post_init__(self) -> None:
        self._check_integer("n", 1, MAX_N)
        self._check_number("temperature", 0.0, MAX_TEMPERATURE)
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
        self._check_number("repetition_penalty", MIN_REPETITION_PENALTY, MAX_REPETITION_PENALTY)
        self._check_integer("truncate_prompt_tokens", 1, 2**31 - 1, optional=True)
        for field in ("ignore_eos", "include_stop_str_in_output", "detokenize", "skip_special_tokens"):
            if not isinstance(getattr(self, field), bool):
                raise TypeError(f"{field}: {shown(getattr(self, field))}, expected a bool")
        if self.output_kind not in OUTPUT_KINDS:
            raise ValueError(f"output_kind: {shown(self.output_kind)}, expected one of {', '.join(OUTPUT_KINDS)}")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens: {self.min_tokens}, expected at most max_tokens ({self.max_tokens})")
        self._check_stop()
        self._check_constraints()

    @property
    def stop_strings(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or ())

    def _check_integer(self, field: str, low: int, high: int, optional: bool = False) -> None:
        value = getattr(self, field)
        if value is None and optional:
            return
        if not _is_integer(value):
            raise TypeError(f"{field}: {shown(value)}, expected an integer{' or None' if optional else ''}")
        if not low <= value <= high:
            raise ValueError(f"{field}: {shown(value)}, expected {low} to {high}")

    def _check_number(self, field: str, low: float, high: float, exclusive_low: bool = False) -> None:
        value: Any = getattr(self, field)
        if not _is_number(value):
            raise TypeError(f"{field}: {shown(value)}, expected a number")
        if not low <= value <= high or (exclusive_low and value == low):
            allowed = f"above {low:g}" if exclusive_low else f"at least {low:g}"
            raise ValueError(f"{field}: {shown(value)}, expected {allowed} and at most {high:g}")

    def _check_stop(self) -> None:
        stop: Any = self.stop_strings if isinstance(self.stop, str | list | None) else self.stop
        too_many = isinstance(stop, list) and len(stop) > MAX_STOP_STRINGS
        if not too_many and not (isinstance(stop, list) and all(isinstance(s, str) for s in stop)):
            raise TypeError(f"stop: {shown(self.stop)}, expected a string or a list of strings")
        if too_many or "" in stop:
            raise ValueError(f"stop: {shown(self.stop)}, expected at most {MAX_STOP_STRINGS} strings, none empty")
        if (longest := max(map(len, stop), default=0)) > MAX_STOP_LENGTH:
            raise ValueError(f"stop: a string of {longest} characters, expected at most {MAX_STOP_LENGTH}")
        if stop and not self.detokenize:
            raise ValueError(f"stop: {shown(self.stop)}, expected none without detokenize")
        self._check_token_ids("stop_token_ids", MAX_STOP_TOKEN_IDS)

    def _check_token_ids(self, field: str, most: int) -> None:
        ids: Any = getattr(self, field)
        if ids is None:
            return
        too_many = isinstance(ids, list) and len(ids) > most
        if not too_many and not (isinstance(ids, list) and are_integers(ids)):
            raise TypeError(f"{field}: {shown(ids)}, expected a list of integers")
        if too_many or min(ids, default=0) < 0:
            raise ValueError(f"{field}: {shown(ids)}, expected at most {most} ids of at least 0")

    def _check_constraints(self) -> None:
        self._check_token_ids("allowed_token_ids", MAX_ALLOWED_TOKEN_IDS)
        if self.allowed_token_ids == []:
            raise ValueError("allowed_token_ids: [], expected at least one id")
        bias: Any = {} if self.logit_bias is None else self.logit_bias
        too_many = isinstance(bias, dict) and len(bias) > MAX_LOGIT_BIAS
        if not too_many and not (isinstance(bias, dict) and are_integers(bias) and all(map(_is_number, bias.values()))):
            raise TypeError(f"logit_bias: {shown(bias)}, expected a dict of token ids to numbers")
        if too_many or min(bias, default=0) < 0:
            raise ValueError(f"logit_bias: {shown(bias)}, expected at most {MAX_LOGIT_BIAS} ids of at least 0")
        for token_id, value in bias.items():
            if not -MAX_BIAS <= value <= MAX_BIAS:
                raise ValueError(
                    f"logit_bias[{shown(token_id)}]: {shown(value)}, expected -{MAX_BIAS:g} to {MAX_BIAS:g}"
                )
        words: Any = [] if self.bad_words is None else self.bad_words
        too_many = isinstance(words, list) and len(words) > MAX_BAD_WORDS
        if not too_many and not (isinstance(words, list) and all(isinstance(word, str) for word in words)):
            raise TypeError(f"bad_words: {shown(words)}, expected a list of strings")
        if too_many or not all(word.strip() and len(word) <= MAX_BAD_WORD_LENGTH for word in words):
            raise ValueError(
                f"bad_words: {shown(words)}, expected at most {MAX_BAD_WORDS} words of at most "
                f"{MAX_BAD_WORD_LENGTH} characters, none blank"
            )


def are_integers(values: Iterable[object]) -> bool:
    """Whether all are integers, and none a bool. There can be hundreds of thousands: their types are few."""
    return all(issubclass(kind, int) and kind is not bool for kind in set(map(type, values)))


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
