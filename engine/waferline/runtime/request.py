"""A request as it is admitted: checked against the model, tokenised, its defaults filled in."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from waferline_kernels.sequences import KV_BLOCK_SIZE, NO_LOGPROBS, SAMPLING

from ..model.load import Model
from .block_hash import extend_block_hashes
from .constraints import Constraints, pack_request_constraints
from .errors import INVALID_REQUEST, PROMPT_TOO_LONG, RequestFailed, shown
from .messages import GenerateRequest
from .request_options import begin_limit, check_request_options, options_of
from .sampling_params import SamplingParams, are_integers

if TYPE_CHECKING:
    from .sequence import Sequence

MIN_TEMPERATURE = 1e-5  # below it, as in vLLM, sampling is greedy: logits divided by less would overflow


@dataclass(eq=False)
class Request:
    """``stop_ids`` end a completion; those of them that are the model's own, ``eos_ids``, give no stop reason."""

    request_id: str
    prompt_token_ids: list[int]
    params: SamplingParams
    seed: int
    max_tokens: int  # of a completion; no more than the context has room for
    stop_ids: list[int]
    eos_ids: frozenset[int]
    constraints: Constraints | None = None
    cache_salt: str | None = None
    priority: int = 0  # the lower, the earlier
    tenant: str | None = None
    deadline_ms: int | None = None
    queue_timeout_ms: int | None = None
    arrival_ns: int = 0  # CLOCK_MONOTONIC when it was asked for
    entry_ns: int = 0  # when the engine took it up
    predicted_ttft_ms: float = 0.0  # when it was admitted, on average; 0 where nothing asks for it
    sequences: list[Sequence] = field(default_factory=list)  # one for each completion, by index

    @property
    def num_output_tokens(self) -> int:
        return sum(sequence.num_output_tokens for sequence in self.sequences)

    @property
    def has_begun(self) -> bool:
        """Whether one of its completions has had a slot."""
        return any(sequence.num_cached_tokens is not None for sequence in self.sequences)

    @property
    def is_finished(self) -> bool:
        return all(sequence.is_finished for sequence in self.sequences)

    @property
    def end_by_ns(self) -> int | None:
        """When what it has by then is all."""
        return None if self.deadline_ms is None else self.arrival_ns + self.deadline_ms * 1_000_000

    @property
    def begin_by_ns(self) -> int | None:
        """When it is given up if it has not begun."""
        limit = begin_limit(self)
        return None if limit is None else limit.time_ns(self.arrival_ns)

    @property
    def num_cached_tokens(self) -> int:
        """Tokens of the prompt that the first completion found cached."""
        return self.sequences[0].num_cached_tokens or 0

    @cached_property
    def prompt_array(self) -> NDArray[np.int32]:
        """``prompt_token_ids``, int32 [n], which a slot's tokens are written from at a fiftieth of a list's cost."""
        return np.array(self.prompt_token_ids, np.int32)

    @cached_property
    def prompt_block_hashes(self) -> list[bytes]:
        """Of the prompt's full blocks; worked out once for all completions."""
        hashes: list[bytes] = []
        extend_block_hashes(hashes, self.prompt_token_ids, self.cache_salt, len(self.prompt_token_ids) // KV_BLOCK_SIZE)
        return hashes

    def sampling(self, completion_index: int) -> NDArray[np.void]:
        """What the executor has to know, SAMPLING []. Prompt tokens are scored once, for the first completion."""
        params = self.params
        scores_prompt = params.prompt_logprobs is not None and completion_index == 0
        row = np.zeros((), SAMPLING)
        for name in ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty"):
            row[name] = getattr(params, name)
        if params.temperature < MIN_TEMPERATURE:
            row["temperature"] = 0
        row["top_k"] = max(0, params.top_k)
        row["num_logprobs"] = NO_LOGPROBS if params.logprobs is None else params.logprobs
        row["num_prompt_logprobs"] = params.prompt_logprobs if scores_prompt else NO_LOGPROBS
        row["num_prompt_tokens"] = len(self.prompt_token_ids)
        row["min_tokens"] = params.min_tokens
        row["max_tokens"] = self.max_tokens
        row["completion_index"] = completion_index
        row["num_stop_ids"] = len(self.stop_ids)
        row["seed"] = self.seed
        row["stop_ids"][: len(self.stop_ids)] = self.stop_ids
        if self.constraints is not None:
            row["has_allowed_ids"] = self.constraints.allowed_ids is not None
            row["num_bad_words"] = self.constraints.num_bad_words
            row["num_logit_bias"] = self.constraints.num_logit_bias
        return row


def admit_request(message: GenerateRequest, model: Model, max_model_len: int, now_ns: int = 0) -> Request:
    """The request that ``message`` asks for. Raises RequestFailed for one that ``model`` cannot run, or that is out of time
    at ``now_ns`` of the clock of its arrival."""
    vocab = model.program.dims.vocab
    params = _checked_params(message.params)
    options = options_of(message)
    check_request_options(options)
    arrival_ns = now_ns if message.arrival_ns is None else message.arrival_ns
    limit = begin_limit(message)
    if limit is not None and limit.time_ns(arrival_ns) <= now_ns:
        raise limit.failure()
    prompt_token_ids = _prompt_token_ids(message.prompt, model)
    given = prompt_token_ids
    if params.truncate_prompt_tokens is not None:
        prompt_token_ids = prompt_token_ids[-params.truncate_prompt_tokens :]
    if len(prompt_token_ids) + 1 > max_model_len:
        raise RequestFailed(
            PROMPT_TOO_LONG,
            f"prompt: {len(prompt_token_ids)} tokens, expected at most {max_model_len - 1}, "
            f"which leaves room for one more in a max_model_len of {max_model_len}",
        )
    # Of a text's too: a tokenizer can have more tokens than the model was made for.
    _check_token_ids("prompt", given, vocab)
    for name in ("stop_token_ids", "allowed_token_ids", "logit_bias"):
        _check_token_ids(name, list(getattr(params, name) or ()), vocab)
    try:
        constraints = pack_request_constraints(params, model.tokenizer, vocab)
    except ValueError as error:
        raise RequestFailed(INVALID_REQUEST, str(error)) from None
    eos_ids = () if params.ignore_eos else model.eos_token_ids
    room = max_model_len - len(prompt_token_ids)
    return Request(
        request_id=message.request_id,
        prompt_token_ids=prompt_token_ids,
        params=params,
        seed=secrets.randbits(63) if params.seed is None else params.seed,
        max_tokens=room if params.max_tokens is None else min(room, params.max_tokens),
        stop_ids=list(dict.fromkeys([*eos_ids, *(params.stop_token_ids or ())])),
        eos_ids=frozenset(eos_ids),
        constraints=constraints,
        arrival_ns=arrival_ns,
        entry_ns=now_ns,
        **options,
    )


def _checked_params(params: Any) -> SamplingParams:
    """A copy of ``params``, checked again: a field may have been assigned since they were made."""
    if not isinstance(params, SamplingParams):
        raise RequestFailed(INVALID_REQUEST, f"sampling_params: {shown(params)}, expected SamplingParams")
    try:
        return msgspec.structs.replace(params)
    except (TypeError, ValueError) as error:
        raise RequestFailed(INVALID_REQUEST, str(error)) from None


def _prompt_token_ids(prompt: Any, model: Model) -> list[int]:
    """The ids of ``prompt``, which are checked when it is known that they are not too many."""
    if not isinstance(prompt, str | list):
        raise RequestFailed(INVALID_REQUEST, f"prompt: {shown(prompt)}, expected a string or a list of token ids")
    if not prompt:
        raise RequestFailed(INVALID_REQUEST, f"prompt: {shown(prompt)}, expected at least one character or token id")
    if isinstance(prompt, list):
        return list(prompt)
    try:
        token_ids = model.tokenizer.encode(prompt)
    except ValueError as error:
        raise RequestFailed(INVALID_REQUEST, f"prompt: {error}") from None
    if not token_ids:
        raise RequestFailed(INVALID_REQUEST, f"prompt: {shown(prompt)} has no tokens, expected at least one")
    return token_ids


def _check_token_ids(field: str, token_ids: list[Any], vocab: int) -> None:
    if are_integers(token_ids) and min(token_ids, default=0) >= 0 and max(token_ids, default=0) < vocab:
        return
    for token_id in token_ids:
        if not are_integers([token_id]):
            raise RequestFailed(INVALID_REQUEST, f"{field}: {shown(token_id)}, expected token ids (integers)")
        if not 0 <= token_id < vocab:
            raise RequestFailed(
                INVALID_REQUEST, f"{field}: {shown(token_id)}, expected token ids from 0 to {vocab - 1}"
            )
