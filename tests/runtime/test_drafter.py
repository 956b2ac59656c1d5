"""Drafters: prompt lookup against a plain search, and what a speculative config may be."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from waferline.runtime.drafter import NgramDrafter, SpeculativeConfig, read_speculative_config


def search(token_ids: list[int], longest: int, shortest: int, max_tokens: int) -> list[int]:
    """What ``NgramDrafter`` proposes, without an index."""
    for length in range(longest, shortest - 1, -1):
        for end in range(len(token_ids) - 1, length - 1, -1):
            if token_ids[end - length : end] == token_ids[-length:]:
                text = list(token_ids)
                while len(text) < len(token_ids) + max_tokens:
                    text.append(text[end + len(text) - len(token_ids)])
                return text[len(token_ids) :]
    return []


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=60),
    st.integers(1, 5),
    st.integers(0, 4),
    st.lists(st.integers(1, 60), max_size=8),
    st.integers(0, 9),
)
def test_prompt_lookup_is_a_search(
    token_ids: list[int], shortest: int, more: int, lengths: list[int], max_tokens: int
) -> None:
    drafter = NgramDrafter(shortest + more, shortest)
    for length in sorted({min(length, len(token_ids)) for length in lengths}):
        expected = search(token_ids[:length], shortest + more, shortest, max_tokens)
        assert drafter.propose(token_ids[:length], max_tokens) == expected


@pytest.mark.parametrize(
    ("token_ids", "expected"),
    [
        ([1, 2, 3, 1, 2], [3, 1, 2, 3, 1]),  # a loop goes on
        ([7, 7, 7], [7, 7, 7, 7, 7]),
        ([1, 2, 3, 9, 2, 4, 1, 2], [3, 9, 2, 4, 1]),  # the longer match, though it is the earlier one
        ([5, 2, 3, 6, 2, 4, 1, 2], [4, 1, 2, 4, 1]),  # of equal ones the last
        ([1, 2, 3], []),
        ([1], []),
    ],
)
def test_prompt_lookup_by_example(token_ids: list[int], expected: list[int]) -> None:
    assert NgramDrafter(2, 1).propose(token_ids, 5) == expected


def test_asking_twice_finds_the_same() -> None:
    drafter = NgramDrafter(3, 1)
    assert drafter.propose([1, 2, 1], 2) == drafter.propose([1, 2, 1], 2) == [2, 1]


@pytest.mark.parametrize(
    ("given", "lengths"),
    [
        ({"prompt_lookup_max": 4, "prompt_lookup_min": 2}, (4, 2)),
        ({"prompt_lookup_max": 3}, (3, 3)),
        ({"prompt_lookup_min": 2}, (2, 2)),
        ({}, (5, 5)),
    ],
)
def test_a_config_is_vllm_s(given: dict[str, int], lengths: tuple[int, int]) -> None:
    config = read_speculative_config({"method": "ngram", "num_speculative_tokens": 3, **given})
    assert config is not None
    assert config.num_speculative_tokens == 3
    sequence: Any = None
    drafter = config.make_drafter(sequence)
    assert isinstance(drafter, NgramDrafter)
    assert (max(drafter._lengths), min(drafter._lengths)) == lengths
    assert config.make_drafter(sequence) is not drafter


def test_no_config_and_one_that_is_ready_are_left_alone() -> None:
    config = SpeculativeConfig(2, lambda sequence: NgramDrafter(1, 1))
    assert read_speculative_config(config) is config
    assert read_speculative_config(None) is None


NGRAM = {"method": "ngram", "num_speculative_tokens": 4}


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ("ngram", TypeError, "speculative_config: 'ngram', expected a dictionary or None"),
        ({}, ValueError, "speculative_config.method: None, expected one of ngram"),
        ({"method": "eagle"}, ValueError, "speculative_config.method: 'eagle', expected one of ngram"),
        ({"method": "ngram"}, ValueError, "speculative_config.num_speculative_tokens: missing"),
        (NGRAM | {"num_speculative_tokens": 0}, ValueError, "num_speculative_tokens: 0, expected 1 to 64"),
        (NGRAM | {"num_speculative_tokens": True}, TypeError, "num_speculative_tokens: True, expected an integer"),
        (NGRAM | {"prompt_lookup_max": 33}, ValueError, "prompt_lookup_max: 33, expected 1 to 32"),
        (NGRAM | {"prompt_lookup_max": 2, "prompt_lookup_min": 3}, ValueError, "prompt_lookup_min: 3, expected 1 to 2"),
        (NGRAM | {"prompt_lookup_min": "2"}, TypeError, "prompt_lookup_max: '2', expected an integer"),
        (NGRAM | {"model": "tiny"}, ValueError, "speculative_config: 'model', expected method, num_speculative_tokens"),
    ],
)
def test_what_is_no_config_is_refused(config: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        read_speculative_config(config)
