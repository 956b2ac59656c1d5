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

    def message(self, vocab: int, seed: int) -> GenerateRequest:
        """The request itself: a prompt of random tokens, greedy, of exactly as many output tokens as the trace has."""
        prompt = np.random.default_rng((seed, self.index)).integers(0, vocab, self.num_prompt_tokens).tolist()
        params = SamplingParams(
            temperature=0, max_tokens=self.num_output_tokens, ignore_eos=True, detokenize=False, seed=seed
        )
        return GenerateRequest(self.request_id, prompt, params)


def make_workload(
    trace: Iterable[TraceRequest], time_scale: float, cancel_share: float, seed: int
) -> list[TimedRequest]:
    """The requests of ``trace``, their times multiplied by ``time_scale``. Each is one of ``cancel_share`` (0 to 1) at
    random, whose client loses patience within as many seconds as its completion has tokens, divided by ten."""
    random = np.random.default_rng(seed)
    requests = []
    for index, traced in enumerate(trace):
        cancels, moment = random.random(2)
        patience = round(moment * traced.num_output_tokens * 1e8) if cancels < cancel_share else None
        arrival = round(traced.arrival_ns * time_scale)
        requests.append(
            TimedRequest(index, arrival, traced.num_prompt_tokens, traced.num_output_tokens, patience)
        )
    return requests
