"""Drafters: cheap guesses at the tokens that a sequence will go on with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from .sequence import Sequence

METHODS = ("ngram",)
MAX_SPECULATIVE_TOKENS = 64
MAX_PROMPT_LOOKUP = 32
DEFAULT_PROMPT_LOOKUP = 5  # vLLM's


class Drafter(Protocol):
    """Drafts for one sequence, whose tokens only ever grow in number."""

    def propose(self, token_ids: list[int], max_tokens: int) -> list[int]:
        """Up to ``max_tokens`` tokens, from the vocabulary, that may follow ``token_ids``; none where it has no idea."""


@dataclass(frozen=True)
class SpeculativeConfig:
    """How sequences are drafted for: up to ``num_speculative_tokens`` at a time, each by a drafter of its own."""

    num_speculative_tokens: int
    make_drafter: Callable[[Sequence], Drafter]


class NgramDrafter:
    """Prompt lookup (Saxena 2023): what followed the last time that the sequence read as it does now.

    The longest of its last ``prompt_lookup_max`` to ``prompt_lookup_min`` tokens that it had before count, and the last
    place where it had them. Where fewer tokens than are wanted follow there, the end is reached, and with it the
    beginning of the draft itself: of a loop the draft has further rounds.

    Each n-gram is put into an index once, so that looking one up costs the same however long the sequence is.

    >>> NgramDrafter(2, 1).propose([1, 2, 3, 1, 2], 5)
    [3, 1, 2, 3, 1]
    """

    def __init__(self, prompt_lookup_max: int, prompt_lookup_min: int) -> None:
        self._lengths = range(prompt_lookup_max, prompt_lookup_min - 1, -1)
        self._ends: dict[tuple[int, ...], int] = {}  # of an n-gram: where its last occurrence ends
        self._num_indexed = 0  # n-grams that end here or before are in `_ends`

    def propose(self, token_ids: list[int], max_tokens: int) -> list[int]:
        last = len(token_ids)
        for end in range(self._num_indexed + 1, last):  # the last one would find itself
            for length in self._lengths:
                if length <= end:
                    self._ends[tuple(token_ids[end - length : end])] = end
        self._num_indexed = max(self._num_indexed, last - 1)
        for length in self._lengths:
            before = self._ends.get(tuple(token_ids[-length:])) if length < last else None
            if before is not None:
                return [token_ids[before + at % (last - before)] for at in range(max_tokens)]
        return []


def read_speculative_config(config: Mapping[str, Any] | SpeculativeConfig | None) -> SpeculativeConfig | None:
    """What vLLM's ``speculative_config`` asks for, such as {"method": "ngram", "num_speculative_tokens": 4,
    "prompt_lookup_max": 4, "prompt_lookup_min": 2}; of the last two one stands for both, and both are 5 where neither is
    given. None: nothing is drafted.

    Raises TypeError or ValueError, naming the field, for one that there is not or that is out of range.
    """
    if config is None or isinstance(config, SpeculativeConfig):
        return config
    if not isinstance(config, Mapping):
        raise TypeError(f"speculative_config: {config!r}, expected a dictionary or None")
    given = dict(config)
    method = given.pop("method", None)
    if method not in METHODS:
        raise ValueError(f"speculative_config.method: {method!r}, expected one of {', '.join(METHODS)}")
    if "num_speculative_tokens" not in given:
        raise ValueError("speculative_config.num_speculative_tokens: missing, expected a number of tokens")
    num_tokens = _integer(given, "num_speculative_tokens", 1, MAX_SPECULATIVE_TOKENS)
    either = given.get("prompt_lookup_max", given.get("prompt_lookup_min", DEFAULT_PROMPT_LOOKUP))
    given.setdefault("prompt_lookup_max", either)
    given.setdefault("prompt_lookup_min", either)
    longest = _integer(given, "prompt_lookup_max", 1, MAX_PROMPT_LOOKUP)
    shortest = _integer(given, "prompt_lookup_min", 1, longest)
    if given:
        raise ValueError(
            f"speculative_config: {next(iter(given))!r}, expected method, num_speculative_tokens, prompt_lookup_max and "
            "prompt_lookup_min"
        )
    return SpeculativeConfig(num_tokens, partial(_ngram_drafter, longest, shortest))


def _ngram_drafter(longest: int, shortest: int, sequence: Sequence) -> NgramDrafter:
    return NgramDrafter(longest, shortest)


def _integer(given: dict[str, Any], field: str, low: int, high: int) -> int:
    value = given.pop(field)
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"speculative_config.{field}: {value!r}, expected an integer")
    if not low <= value <= high:
        raise ValueError(f"speculative_config.{field}: {value}, expected {low} to {high}")
    return value
