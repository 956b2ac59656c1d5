"""From the ring's entries to deltas: detokenise, look for stop strings, attach logprobs, end what ends."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from waferline_kernels.ring import Finish
from waferline_kernels.sequences import NO_LOGPROBS

from ..model.tokenizer import Tokenizer
from .messages import Delta, TokenLogprob
from .sequence import Sequence

# One conversion of these takes every number a token without logprobs needs.
FIELDS = ["slot", "position", "token", "is_prompt", "finish", "num_top", "time_ns"]


def unpack_entries(entries: NDArray[np.void]) -> list[tuple[int, ...]]:
    """Each of ``entries`` (ENTRY [n]) as a tuple of FIELDS."""
    rows: list[tuple[int, ...]] = entries[FIELDS].tolist()
    return rows


def append_token(
    sequence: Sequence, token: int, finish: int, time_ns: int, logprobs: list[TokenLogprob] | None
) -> Delta:
    """Append a sampled ``token`` to ``sequence``; the delta that tells of it, with a finish reason if it is the last.

    A stop id's own text is part of the completion only where ``include_stop_str_in_output`` says so.
    """
    request = sequence.request
    sequence.token_ids.append(token)
    stop_reason: int | str | None = None
    finish_reason: str | None = None
    if finish == Finish.STOP:
        text = sequence.detokenizer.step(token) if request.params.include_stop_str_in_output else ""
        text += sequence.detokenizer.flush()
        finish_reason = "stop"
        stop_reason = None if token in request.eos_ids else token
    else:
        text = sequence.detokenizer.step(token)
        if finish == Finish.LENGTH:
            text += sequence.detokenizer.flush()
            finish_reason = "length"
    checker = sequence.stop_checker
    if checker is not None:
        text = checker.feed(text, sequence.num_output_tokens > request.params.min_tokens)
        if finish_reason != "stop" and checker.matched is not None:
            finish_reason, stop_reason = "stop", checker.matched
        elif finish_reason is not None:
            text += checker.flush()
    delta = Delta(
        request.request_id, sequence.index, [token], text, finish_reason, stop_reason, logprobs, None, time_ns
    )
    if sequence.prompt_logprobs is not None and sequence.num_output_tokens == 1:
        delta.prompt_logprobs = sequence.prompt_logprobs
    return delta


def held_back(sequence: Sequence, time_ns: int) -> Delta | None:
    """What a completion that is ended from outside has kept of its text, as a delta without a token; None for nothing."""
    text = sequence.detokenizer.flush()
    if sequence.stop_checker is not None:
        text = sequence.stop_checker.feed(text, may_stop=False) + sequence.stop_checker.flush()
    return Delta(sequence.request.request_id, sequence.index, [], text, time_ns=time_ns) if text else None


def join_deltas(deltas: list[Delta]) -> Delta:
    """One delta that says all that ``deltas`` say, which are those of one completion in order."""
    first, last = deltas[0], deltas[-1]
    return Delta(
        first.request_id,
        first.index,
        [token_id for delta in deltas for token_id in delta.token_ids],
        "".join(delta.text for delta in deltas),
        last.finish_reason,
        last.stop_reason,
        None if first.logprobs is None else [logprob for delta in deltas for logprob in delta.logprobs or ()],
        first.prompt_logprobs,
        last.time_ns,
    )


def append_prompt_logprobs(sequence: Sequence, position: int, logprobs: list[TokenLogprob] | None) -> None:
    """Record the logprobs of the prompt token at ``position``; those that are known already are left as they are."""
    known = sequence.prompt_logprobs
    if known is not None and logprobs is not None and position == len(known) < sequence.num_prompt_tokens:
        known.append(logprobs)


def token_logprobs(entry: np.void, tokenizer: Tokenizer) -> list[TokenLogprob] | None:
    """The logprobs of one ``entry`` (ENTRY []): the chosen token first, then the most likely ones."""
    count = int(entry["num_top"])
    if count == NO_LOGPROBS:
        return None

    def logprob(token_id: Any, value: Any, rank: int) -> TokenLogprob:
        return TokenLogprob(int(token_id), float(value), rank, tokenizer.token_text(int(token_id)))

    top = zip(entry["top_ids"][:count], entry["top_logprobs"][:count], strict=True)
    return [
        logprob(entry["token"], entry["logprob"], int(entry["rank"])),
        *(logprob(token_id, value, rank) for rank, (token_id, value) in enumerate(top, start=1)),
    ]
