"""What a caller gets: RequestOutput and CompletionOutput in vLLM's words, and the collector that makes them."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from .errors import RequestFailed
from .messages import Accepted, Delta, EngineOutput, Finished, RequestError, TokenLogprob
from .sampling_params import SamplingParams


@dataclass
class Logprob:
    """``rank`` is 1 for the most likely token of the position."""

    logprob: float
    rank: int
    decoded_token: str


@dataclass
class CompletionOutput:
    """One completion of a prompt; ``index`` counts them from 0."""

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None  # of the tokens; None unless logprobs were asked for
    logprobs: list[dict[int, Logprob]] | None  # for each token: token id -> logprob, the chosen token first
    finish_reason: str | None = None  # "stop", "length", "abort" or "deadline"; None while it is generated
    stop_reason: int | str | None = None  # the stop id or string that ended it; None for the end-of-sequence token


@dataclass
class RequestOutput:
    """All completions of one prompt; ``finished`` is False while any of them goes on."""

    request_id: str
    prompt: str | None  # None where the prompt was token ids
    prompt_token_ids: list[int]
    prompt_logprobs: list[dict[int, Logprob] | None] | None  # for each prompt token; the first has None
    outputs: list[CompletionOutput]  # by index
    finished: bool
    seed: int | None = None  # the seed in force; None before the request is accepted
    num_cached_tokens: int | None = None  # prompt tokens that were cached already; None before the request has ended


@dataclass
class _Completion:
    token_ids: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    logprobs: list[dict[int, Logprob]] = field(default_factory=list)
    cumulative_logprob: float = 0.0
    finish_reason: str | None = None
    stop_reason: int | str | None = None


class RequestCollector:
    """Gathers the messages of one request.

    >>> collector = RequestCollector("r", "Hi", SamplingParams())
    >>> collector.add(Accepted("r", [5], seed=1))
    >>> collector.add(Delta("r", 0, [7], " there", finish_reason="length"))
    >>> collector.add(Finished("r", ["length"], 1, 1))
    >>> collector.is_done, collector.result().outputs[0].text
    (True, ' there')
    """

    def __init__(self, request_id: str, prompt: str | list[int], params: SamplingParams) -> None:
        self.request_id = request_id
        self._prompt = prompt
        self._has_logprobs = params.logprobs is not None
        self._prompt_token_ids = [] if isinstance(prompt, str) else prompt
        self._prompt_logprobs: list[dict[int, Logprob] | None] | None = None
        self._seed: int | None = None
        self._num_cached_tokens: int | None = None
        self._completions: defaultdict[int, _Completion] = defaultdict(_Completion)  # by index
        self._error: RequestFailed | None = None
        self.is_done = False
        """Whether the request has ended, well or not."""

    @property
    def num_completions(self) -> int:
        return len(self._completions)

    def add(self, output: EngineOutput) -> None:
        """Take the request's next message."""
        match output:
            case Delta():
                self._add_delta(output)
            case Accepted():
                self._prompt_token_ids, self._seed = output.prompt_token_ids, output.seed
            case Finished():
                for index, reason in enumerate(output.finish_reasons):
                    self._completions[index].finish_reason = reason
                self._num_cached_tokens = output.num_cached_tokens
                self.is_done = True
            case RequestError():
                self._error = RequestFailed(output.code, output.message, output.retry_after_ms)
                self.is_done = True

    def _add_delta(self, delta: Delta) -> None:
        completion = self._completions[delta.index]
        completion.token_ids += delta.token_ids
        completion.texts.append(delta.text)
        if delta.logprobs is not None:
            each = len(delta.logprobs) // len(delta.token_ids)
            for at in range(0, len(delta.logprobs), each):
                completion.logprobs.append(_by_token_id(delta.logprobs[at : at + each]))
                completion.cumulative_logprob += delta.logprobs[at].logprob
        if delta.prompt_logprobs is not None:
            self._prompt_logprobs = [_by_token_id(logprobs) or None for logprobs in delta.prompt_logprobs]
        if delta.finish_reason is not None:
            completion.finish_reason, completion.stop_reason = delta.finish_reason, delta.stop_reason

    def result(self) -> RequestOutput:
        """All that has come so far. Raises RequestFailed for a request that failed."""
        if self._error is not None:
            raise self._error
        return RequestOutput(
            request_id=self.request_id,
            prompt=self._prompt if isinstance(self._prompt, str) else None,
            prompt_token_ids=self._prompt_token_ids,
            prompt_logprobs=self._prompt_logprobs,
            outputs=[
                CompletionOutput(
                    index=index,
                    text="".join(completion.texts),
                    token_ids=list(completion.token_ids),
                    cumulative_logprob=completion.cumulative_logprob if self._has_logprobs else None,
                    logprobs=list(completion.logprobs) if self._has_logprobs else None,
                    finish_reason=completion.finish_reason,
                    stop_reason=completion.stop_reason,
                )
                for index, completion in sorted(self._completions.items())
            ],
            finished=self.is_done,
            seed=self._seed,
            num_cached_tokens=self._num_cached_tokens,
        )


def result_of_prompt(collector: RequestCollector, index: int) -> RequestOutput:
    """The result for ``prompts[index]``. Raises RequestFailed, naming the prompt, where it failed."""
    try:
        return collector.result()
    except RequestFailed as error:
        raise RequestFailed(error.code, f"prompts[{index}]: {error.message}", error.retry_after_ms) from None


def _by_token_id(logprobs: list[TokenLogprob]) -> dict[int, Logprob]:
    """token id -> Logprob, in order; the first mention of a token counts."""
    entries: dict[int, Logprob] = {}
    for token in logprobs:
        entries.setdefault(token.token_id, Logprob(token.logprob, token.rank, token.decoded_token))
    return entries
