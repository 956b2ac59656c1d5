"""What sampling parameters take and refuse, before any model is known."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from waferline.runtime import sampling_params
from waferline.runtime.sampling_params import SamplingParams
from waferline_kernels import constraints, sequences


@pytest.mark.parametrize(
    "fields",
    [
        {"logit_bias": {}},
        {"logit_bias": {0: 1, 5: -100.0, 7: 100}},
        {"logit_bias": dict.fromkeys(range(300), 0.5)},
        {"allowed_token_ids": [0]},
        {"bad_words": []},
        {"bad_words": ["x" * 256] * 256},
        {"stop": [], "detokenize": False},
        {"truncate_prompt_tokens": 1},
        {"output_kind": "final_only"},
    ],
)
def test_these_are_taken(fields: dict[str, Any]) -> None:
    params = SamplingParams(**fields)
    assert {name: getattr(params, name) for name in fields} == fields


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"temperature": 1e7}, ValueError, r"temperature: 10000000.0, expected at least 0 and at most 1e\+06"),
        ({"temperature": 10**400}, ValueError, "temperature: 1000"),
        ({"temperature": float("nan")}, ValueError, "temperature: nan, expected at least 0"),
        ({"repetition_penalty": 0}, ValueError, "repetition_penalty: 0, expected at least 0.001 and at most 1000"),
        ({"repetition_penalty": 1e39}, ValueError, r"repetition_penalty: 1e\+39, expected"),
        ({"logit_bias": [1]}, TypeError, r"logit_bias: \[1\], expected a dict of token ids to numbers"),
        ({"logit_bias": {"5": 1.0}}, TypeError, "logit_bias: {'5': 1.0}, expected a dict"),
        ({"logit_bias": {True: 1.0}}, TypeError, "logit_bias: {True: 1.0}, expected a dict"),
        ({"logit_bias": {5: "1"}}, TypeError, "logit_bias: {5: '1'}, expected a dict"),
        ({"logit_bias": {-1: 1.0}}, ValueError, "logit_bias: {-1: 1.0}, expected at most 300 ids of at least 0"),
        ({"logit_bias": dict.fromkeys(range(301), 1)}, ValueError, r"\.\.\., expected at most 300 ids"),
        ({"logit_bias": {5: 100.5}}, ValueError, r"logit_bias\[5\]: 100.5, expected -100 to 100"),
        ({"logit_bias": {5: float("nan")}}, ValueError, r"logit_bias\[5\]: nan, expected -100 to 100"),
        ({"allowed_token_ids": 5}, TypeError, "allowed_token_ids: 5, expected a list of integers"),
        ({"allowed_token_ids": [5.0]}, TypeError, r"allowed_token_ids: \[5.0\], expected a list of integers"),
        ({"allowed_token_ids": [5, True]}, TypeError, r"allowed_token_ids: \[5, True\], expected a list of integers"),
        (
            {"stop_token_ids": [5, 10**30, -1]},
            ValueError,
            r"stop_token_ids: \[.*\], expected at most 60 ids of at least",
        ),
        # Length comes first: how many there are costs nothing to find out.
        ({"stop": ["a"] * 16 + [5]}, ValueError, "expected at most 16 strings"),
        ({"stop_token_ids": [1] * 60 + ["a"]}, ValueError, "expected at most 60 ids"),
        ({"logit_bias": dict.fromkeys([*range(300), "a"], 1)}, ValueError, "expected at most 300 ids"),
        ({"bad_words": ["a"] * 256 + [5]}, ValueError, "expected at most 256 words"),
        ({"allowed_token_ids": []}, ValueError, r"allowed_token_ids: \[\], expected at least one id"),
        ({"allowed_token_ids": [-1]}, ValueError, r"allowed_token_ids: \[-1\], expected at most 262144 ids"),
        ({"stop_token_ids": [-1]}, ValueError, r"stop_token_ids: \[-1\], expected at most 60 ids of at least 0"),
        ({"bad_words": "a"}, TypeError, "bad_words: 'a', expected a list of strings"),
        ({"bad_words": [5]}, TypeError, r"bad_words: \[5\], expected a list of strings"),
        ({"bad_words": [" "]}, ValueError, r"bad_words: \[' '\], expected at most 256 words of .*, none blank"),
        ({"bad_words": ["a"] * 257}, ValueError, "expected at most 256 words"),
        ({"bad_words": ["a" * 257]}, ValueError, "of at most 256 characters"),
        ({"include_stop_str_in_output": 1}, TypeError, "include_stop_str_in_output: 1, expected a bool"),
        ({"skip_special_tokens": None}, TypeError, "skip_special_tokens: None, expected a bool"),
        ({"detokenize": "no"}, TypeError, "detokenize: 'no', expected a bool"),
        ({"detokenize": False, "stop": "a"}, ValueError, "stop: 'a', expected none without detokenize"),
        ({"truncate_prompt_tokens": 0}, ValueError, "truncate_prompt_tokens: 0, expected 1 to"),
        ({"truncate_prompt_tokens": 1.0}, TypeError, "truncate_prompt_tokens: 1.0, expected an integer or None"),
        ({"output_kind": "cumulative"}, ValueError, "output_kind: 'cumulative', expected one of delta, final_only"),
        ({"output_kind": []}, ValueError, r"output_kind: \[\], expected one of delta, final_only"),
    ],
)
def test_these_are_refused_by_name(fields: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        SamplingParams(**fields)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("stop", ["a"] * 100_000),
        ("stop", [5] * 100_000),
        ("stop", {"a": "b" * 100_000}),
        ("stop_token_ids", list(range(100_000))),
        ("logit_bias", dict.fromkeys(range(100_000), 1)),
        ("bad_words", ["a"] * 100_000),
        ("bad_words", ["a" * 100_000]),
        ("output_kind", "x" * 100_000),
        ("detokenize", "x" * 100_000),
        ("temperature", "x" * 100_000),
        ("temperature", 10**10_000),
        ("n", [10**10_000]),
        ("seed", 10**10_000),
        ("stop_token_ids", [-(10**10_000)]),
        ("logit_bias", {10**10_000: 1000}),
    ],
    ids=itertools.count(),
)
def test_a_refusal_is_short_however_long_the_value(field: str, value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=rf"^{field}.*: .+, expected ") as refusal:
        SamplingParams(**{field: value})
    assert len(str(refusal.value)) < 400


def test_the_bounds_are_the_executor_s() -> None:
    assert sampling_params.MAX_LOGIT_BIAS == constraints.MAX_LOGIT_BIAS
    assert sampling_params.MAX_LOGPROBS == sequences.MAX_LOGPROBS
    assert sampling_params.MAX_STOP_TOKEN_IDS < sequences.MAX_STOP_IDS
