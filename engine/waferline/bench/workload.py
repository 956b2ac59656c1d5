"""A workload: the requests of a trace, with times, prompts and clients that lose patience; the same for the same seed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ..runtime.messages import GenerateRequest
from ..runtime.sampling_params import SamplingParams
from .trace import TraceRequest


@dataclass(frozen=True)
class TimedRequest:
    """One request, ``arrival_ns`` after the beginning. Its client aborts it ``patience_ns`` after that, if ever."""

    index: int
    arrival_ns: int
    num_prompt_tokens: int
    num_output_tokens: int
    patience_ns: int | None

    @property
    def request_id(self) -> str:
        return f"request-{self.index}"

    def message(self, vocab: int, seed: int, queue_timeout_ms: int | None) -> GenerateRequest:
        """The request itself: a prompt of random tokens, greedy, of exactly as many output tokens as the trace has."""
        prompt = np.random.default_rng((seed, self.index)).integers(0, vocab, self.num_prompt_tokens).tolist()
        params = SamplingParams(
            temperature=0, max_tokens=self.num_output_tokens, ignore_eos=True, detokenize=False, seed=seed
        )
        return GenerateRequest(self.request_id, prompt, params, queue_timeout_ms=queue_timeout_ms)


def make_workload(
    trace: Iterable[TraceRequest],
    time_scale: float,
    seed: int,
    cancel_share: float = 0.0,
    ttft_limit_ns: int = 0,
    itl_limit_ns: int = 0,
) -> list[TimedRequest]:
    """The requests of ``trace``, their times multiplied by ``time_scale``. Clients of a share of them, ``cancel_share``
    (0 to 1), lose patience, at any time before their last token is due by the limits."""
    random = np.random.default_rng(seed)
    requests = []
    for index, traced in enumerate(trace):
        cancels, moment = random.random(2)
        due_ns = ttft_limit_ns + traced.num_output_tokens * itl_limit_ns
        patience = round(moment * due_ns) if cancels < cancel_share else None
        arrival = round(traced.arrival_ns * time_scale)
        requests.append(TimedRequest(index, arrival, traced.num_prompt_tokens, traced.num_output_tokens, patience))
    return requests
