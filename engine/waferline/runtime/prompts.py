"""Prompts and their parameters as callers give them."""

from __future__ import annotations

from typing import Any

from .errors import shown
from .sampling_params import SamplingParams

Prompt = str | list[int]
Prompts = Prompt | list[str] | list[list[int]] | list[Prompt]

LONG_PROMPT = 1 << 14  # characters
MANY_TOKEN_IDS = 1 << 16


def is_slow_to_tokenize(*prompts: Prompt) -> bool:
    """Whether ``prompts`` take a tokenizer some milliseconds, for which nobody else should wait."""
    return sum(len(prompt) for prompt in prompts if isinstance(prompt, str)) >= LONG_PROMPT


def is_slow_to_admit(prompt: Prompt, params: SamplingParams) -> bool:
    """Whether tokenising ``prompt``, or checking all the ids in a request, takes some milliseconds."""
    num_ids = len(params.allowed_token_ids or ()) + (len(prompt) if isinstance(prompt, list) else 0)
    return is_slow_to_tokenize(prompt) or num_ids >= MANY_TOKEN_IDS


def pair_prompts(
    prompts: Prompts, sampling_params: SamplingParams | list[SamplingParams] | None
) -> list[tuple[Prompt, SamplingParams]]:
    """Each prompt with its parameters. Raises TypeError or ValueError for what does not pair."""
    if not isinstance(prompts, str | list):
        raise TypeError(f"prompts: {shown(prompts)}, expected a string, a list of token ids, or a list of such prompts")
    all_prompts: Any = prompts
    if isinstance(prompts, str) or (prompts and isinstance(prompts[0], int)):
        all_prompts = [prompts]
    all_params: Any = SamplingParams() if sampling_params is None else sampling_params
    if not isinstance(all_params, list):
        all_params = [all_params] * len(all_prompts)
    if len(all_params) != len(all_prompts):
        raise ValueError(
            f"sampling_params: {len(all_params)} of them, expected one, or one for each of {len(all_prompts)} prompts"
        )
    for params in all_params:
        if not isinstance(params, SamplingParams):
            raise TypeError(f"sampling_params: {shown(params)}, expected SamplingParams")
    return list(zip(all_prompts, all_params, strict=True))
