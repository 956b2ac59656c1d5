"""The plain messages across the EngineCore's boundary, whether it lives in this process or in another.

In: ``GenerateRequest`` and ``abort(request_id)``. Out, for each request: one ``Accepted`` or one ``RequestError``; then
``Delta``s, one for each token of each completion; then one ``Finished``. A request that fails after it was accepted
ends with a ``RequestError`` instead, and one that is aborted before with a ``Finished`` alone. After either, nothing more.
"""

from __future__ import annotations

import msgspec

from .sampling_params import SamplingParams


class GenerateRequest(msgspec.Struct, tag="generate"):
    request_id: str
    prompt: str | list[int]
    params: SamplingParams
    # See RequestOptions.
    cache_salt: str | None = None
    priority: int = 0
    tenant: str | None = None
    deadline_ms: int | None = None
    queue_timeout_ms: int | None = None
    arrival_ns: int | None = None  # CLOCK_MONOTONIC when it was asked for, of which those times count; None: now


class Accepted(msgspec.Struct, tag="accepted"):
    request_id: str
    prompt_token_ids: list[int]
    seed: int
    """The seed in force: the request's own, or the one drawn for it."""


class TokenLogprob(msgspec.Struct, array_like=True):
    """One token's place in the distribution of the raw logits; ``rank`` is 1 for the most likely."""

    token_id: int
    logprob: float
    rank: int
    decoded_token: str


class Delta(msgspec.Struct, tag="delta", omit_defaults=True, gc=False):
    """One token of one completion; all of its tokens, at its end, where ``output_kind`` is "final_only"; none where a
    cancellation or a deadline lets out text that was held back.

    ``text`` is what the token adds: empty while a character is incomplete, or while it could be the beginning of a stop
    string. ``prompt_logprobs`` come with the first delta of completion 0: a list for each prompt token, the first one
    empty. ``logprobs`` lists the chosen token first, then the most likely ones; of several tokens one after the other,
    as many for each.
    """

    request_id: str
    index: int
    token_ids: list[int]
    text: str
    finish_reason: str | None = None  # "stop" or "length", on a completion's last token
    stop_reason: int | str | None = None  # the stop id or string that ended it; None for the end-of-sequence token
    logprobs: list[TokenLogprob] | None = None
    prompt_logprobs: list[list[TokenLogprob]] | None = None
    time_ns: int = 0  # CLOCK_MONOTONIC when the token's step ended


class Finished(msgspec.Struct, tag="finished"):
    request_id: str
    finish_reasons: list[str]  # of each completion: "stop", "length", "abort" if cancelled, "deadline" if out of time
    num_prompt_tokens: int
    num_output_tokens: int
    num_cached_tokens: int = 0  # of the prompt: those that were cached when the request began


class RequestError(msgspec.Struct, tag="error"):
    request_id: str
    code: str  # one of errors.CODES
    message: str
    retry_after_ms: int | None = None  # where the same request is expected to be taken later


EngineOutput = Accepted | Delta | Finished | RequestError
