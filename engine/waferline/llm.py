"""The embedded API: LLM for plain Python, AsyncLLM for asyncio; both thin over an EngineCore in this process."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import queue
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import msgspec

from .model.load import load_model
from .model.tokenizer import Tokenizer
from .runtime.engine_core import EngineCore
from .runtime.errors import DUPLICATE_ID, RequestFailed
from .runtime.messages import Delta, EngineOutput, Finished, GenerateRequest, RequestError
from .runtime.outputs import RequestCollector, RequestOutput, result_of_prompt
from .runtime.prompts import Prompt, Prompts, is_slow_to_tokenize, pair_prompts
from .runtime.sampling_params import SamplingParams

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .runtime.request_options import RequestOptions

Sink = Callable[[list[EngineOutput]], None]


class _EmbeddedEngine:
    """What both have in common: an EngineCore, and a sink for each request's messages."""

    def __init__(
        self,
        model: str | Path = "demo",
        *,
        dtype: str | None = None,
        threads: int | None = None,
        max_model_len: int | None = None,
        max_num_seqs: int = 16,
        max_num_batched_tokens: int = 512,
        kv_cache_memory: int | None = None,
        kv_dtype: str = "auto",
        enable_prefix_caching: bool = True,
        itl_target_ms: float | None = None,
        max_waiting_requests: int | None = None,
        max_waiting_tokens: int | None = None,
        max_ttft_ms: float | None = None,
        tenant_weights: dict[str, float] | None = None,
        speculative_config: Mapping[str, Any] | None = None,
    ) -> None:
        """Load ``model``: "demo", a Hugging Face folder or a packed file.

        ``dtype``: of the weights, "q4", "q8", "bf16" or "f32"; None: "q8", or what a packed file has. ``threads``: None
        leaves it to the model's size and the machine. ``max_model_len``: tokens of a sequence, prompt and completion;
        None: as many as the model was made for and the KV cache holds. ``max_num_seqs``: completions that run at once;
        more wait. ``max_num_batched_tokens``: rows of a step. ``kv_cache_memory``: bytes; None: half of the free
        memory, and no more than can be used. ``kv_dtype``: "f32", "bf16", "int8", or "auto", which
        is f32 beside weights in f32 and else bf16.
        ``enable_prefix_caching``: keep the keys and values of prompts and completions for others that begin alike.
        ``itl_target_ms``: how many milliseconds apart the tokens of a stream may be where prompts are computed beside it.
        They are cut into chunks that take no longer, by prediction, and wait longer for their first tokens; where decoding
        alone takes as long, they still get a tenth of the time. None: prompts are computed as fast as can be.
        ``max_waiting_requests``, ``max_waiting_tokens``: completions, and tokens of their prompts, that may wait;
        ``max_ttft_ms``: the longest time to first token that is accepted. A request beyond them fails at once, code
        "overloaded"; None: no limit. ``tenant_weights``: the shares of tenants, by name; 1 for those not named.
        ``speculative_config``: draft tokens and verify several in one step, such as {"method": "ngram",
        "num_speculative_tokens": 4, "prompt_lookup_max": 4, "prompt_lookup_min": 2}, with the same output; None: do not.

        Raises ModelError, ValueError or TypeError, naming what is wrong.
        """
        self._sinks: dict[str, Sink] = {}
        # AsyncLLM's streams: the caller's id -> the engine's, None once aborted.
        self._named: dict[str, str | None] = {}
        self._core = EngineCore(
            load_model(model, dtype, max_model_len),
            threads=threads,
            max_num_seqs=max_num_seqs,
            max_model_len=max_model_len,
            max_num_batched_tokens=max_num_batched_tokens,
            kv_cache_memory=kv_cache_memory,
            kv_dtype=kv_dtype,
            enable_prefix_caching=enable_prefix_caching,
            itl_target_ms=itl_target_ms,
            max_waiting_requests=max_waiting_requests,
            max_waiting_tokens=max_waiting_tokens,
            max_ttft_ms=max_ttft_ms,
            tenant_weights=tenant_weights,
            speculative_config=speculative_config,
            on_output=partial(_route, self._sinks),
        )
        self._finalizer = weakref.finalize(self, self._core.close)  # at exit too
        self._numbers = itertools.count()

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's: ``encode`` gives a text's token ids, ``decode`` the text of ids."""
        return self._core.model.tokenizer

    def stats(self) -> dict[str, Any]:
        """Counters and gauges of the engine, in vLLM's names; see ``EngineStats``."""
        stats: dict[str, Any] = msgspec.to_builtins(self._core.stats())
        return stats

    def close(self) -> None:
        """End every request and release threads and memory. May be called more than once."""
        self._finalizer()

    def _submit(
        self,
        request_id: str,
        prompt: Prompt,
        params: SamplingParams,
        options: RequestOptions,
        sink: Sink,
        arrival_ns: int | None = None,
    ) -> None:
        """``request_id``: a new one of ``_new_id``, for the messages of one that was aborted may be on their way.
        ``arrival_ns``: when it was asked for, where that is not now."""
        message = GenerateRequest(request_id, prompt, params, **options, arrival_ns=arrival_ns)
        self._sinks[request_id] = sink
        self._core.add(message)

    def _withdraw(self, request_id: str) -> None:
        """Let go of a request; one that has not ended is aborted."""
        if self._sinks.pop(request_id, None) is not None:
            self._core.abort(request_id)

    def _new_id(self) -> str:
        names = (f"request-{number}" for number in self._numbers)
        return next(name for name in names if name not in self._named)

    def _submit_all(
        self,
        collectors: list[RequestCollector],
        pairs: list[tuple[Prompt, SamplingParams]],
        options: RequestOptions,
        on_done: Callable[[int], None],
        arrival_ns: int | None = None,
    ) -> None:
        """Submit a prompt with its parameters for each of ``collectors``; ``on_done`` is told, from the engine's threads,
        the index of each that has ended."""
        for index, (collector, (prompt, params)) in enumerate(zip(collectors, pairs, strict=True)):
            sink = partial(_collect, collector, partial(on_done, index))
            self._submit(collector.request_id, prompt, params, options, sink, arrival_ns)

    def _withdraw_all(self, collectors: list[RequestCollector]) -> None:
        for collector in collectors:
            self._withdraw(collector.request_id)


class LLM(_EmbeddedEngine):
    """A model in this process.

    >>> with LLM("demo") as llm:                                            # doctest: +SKIP
    ...     print(llm.generate("Once upon a time")[0].outputs[0].text)
    """

    def generate(
        self,
        prompts: Prompts,
        sampling_params: SamplingParams | list[SamplingParams] | None = None,
        **options: Unpack[RequestOptions],
    ) -> list[RequestOutput]:
        """Complete one prompt or a list of them; the outputs, in the order of the prompts.

        A prompt is a string or a list of token ids. ``sampling_params``: one for all prompts or one for each.
        ``options``: ``cache_salt``, ``priority``, ``tenant``, ``deadline_ms`` and ``queue_timeout_ms``, see
        RequestOptions. Raises RequestFailed, naming the prompt's index, where one fails; the others are aborted then,
        as they are by Ctrl-C. Raises TypeError or ValueError for prompts and parameters that do not pair.
        """
        done: queue.SimpleQueue[int] = queue.SimpleQueue()
        pairs = pair_prompts(prompts, sampling_params)
        collectors = [RequestCollector(self._new_id(), *pair) for pair in pairs]
        try:
            self._submit_all(collectors, pairs, options, done.put)
            outputs: dict[int, RequestOutput] = {}
            while len(outputs) < len(collectors):
                index = done.get()
                outputs[index] = result_of_prompt(collectors[index], index)
            return [outputs[index] for index in range(len(collectors))]
        finally:
            self._withdraw_all(collectors)

    def stream(
        self, prompt: Prompt, sampling_params: SamplingParams | None = None, **options: Unpack[RequestOptions]
    ) -> Iterator[Delta]:
        """The tokens of one prompt's completions, each as it is generated.

        The request begins with the first delta asked for. Closing the iterator before its end aborts it. Raises
        RequestFailed where the request fails, and TypeError for parameters that are none.
        """
        [(prompt, params)] = pair_prompts([prompt], sampling_params)
        handed_over: queue.SimpleQueue[list[EngineOutput]] = queue.SimpleQueue()
        request_id = self._new_id()
        try:
            self._submit(request_id, prompt, params, options, handed_over.put)
            while True:
                self._core.check_process()
                for message in handed_over.get():
                    if isinstance(message, Delta):
                        yield message
                    elif is_last(message):
                        return
        finally:
            self._withdraw(request_id)

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class AsyncLLM(_EmbeddedEngine):
    """A model in this process, for asyncio: tokens are handed to the event loop as they are generated.

    >>> async with AsyncLLM("demo") as llm:                                 # doctest: +SKIP
    ...     async for delta in llm.stream("Once upon a time"):
    ...         print(delta.text, end="", flush=True)
    """

    async def generate(
        self,
        prompts: Prompts,
        sampling_params: SamplingParams | list[SamplingParams] | None = None,
        **options: Unpack[RequestOptions],
    ) -> list[RequestOutput]:
        """As ``LLM.generate``; cancelling the task aborts the requests."""
        arrival_ns = time.monotonic_ns()
        loop, done = asyncio.get_running_loop(), asyncio.Queue[int]()
        pairs = pair_prompts(prompts, sampling_params)
        collectors = [RequestCollector(self._new_id(), *pair) for pair in pairs]
        try:
            tokenized = await self._tokenized([prompt for prompt, _ in pairs])
            pairs = [(prompt, params) for prompt, (_, params) in zip(tokenized, pairs, strict=True)]
            self._submit_all(collectors, pairs, options, partial(_post, loop, done), arrival_ns)
            outputs: dict[int, RequestOutput] = {}
            while len(outputs) < len(collectors):
                index = await done.get()
                outputs[index] = result_of_prompt(collectors[index], index)
            return [outputs[index] for index in range(len(collectors))]
        finally:
            self._withdraw_all(collectors)

    async def stream(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        request_id: str | None = None,
        **options: Unpack[RequestOptions],
    ) -> AsyncIterator[Delta]:
        """As ``LLM.stream``. ``request_id`` is what ``abort`` takes; one is made up where it is not given."""
        arrival_ns = time.monotonic_ns()
        [(prompt, params)] = pair_prompts([prompt], sampling_params)
        engine_id = self._new_id()
        request_id = engine_id if request_id is None else request_id
        if request_id in self._named:
            raise RequestFailed(DUPLICATE_ID, f"request_id: {request_id!r} is in use, expected a new one")
        loop, handed_over = asyncio.get_running_loop(), asyncio.Queue[list[EngineOutput]]()
        self._named[request_id] = engine_id
        try:
            [prompt] = await self._tokenized([prompt])
            if self._is_aborted(request_id):
                return
            self._submit(engine_id, prompt, params, options, partial(_post, loop, handed_over), arrival_ns)
            while True:
                self._core.check_process()
                for message in await handed_over.get():
                    if self._is_aborted(request_id):
                        return
                    if isinstance(message, Delta):
                        message.request_id = request_id
                        yield message
                    elif is_last(message):
                        return
        finally:
            del self._named[request_id]
            self._withdraw(engine_id)

    def _is_aborted(self, request_id: str) -> bool:
        return self._named[request_id] is None

    async def _tokenized(self, prompts: list[Prompt]) -> list[Prompt]:
        """The prompts with token ids for texts, made on another thread where it takes long: the event loop goes on."""
        if not is_slow_to_tokenize(*prompts):
            return prompts
        return await asyncio.to_thread(lambda: [self._token_ids(prompt) for prompt in prompts])

    def _token_ids(self, prompt: Prompt) -> Prompt:
        """What has none is left as it is, for its request to fail by it."""
        try:
            return self.tokenizer.encode(prompt) or prompt if isinstance(prompt, str) else prompt
        except ValueError:
            return prompt

    async def abort(self, request_id: str) -> None:
        """End a stream now: it has no further deltas. Nothing happens where there is none of that id."""
        engine_id = self._named.get(request_id)
        if engine_id is not None:
            self._named[request_id] = None
            self._core.abort(engine_id)

    async def __aenter__(self) -> AsyncLLM:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.close)


def is_last(message: EngineOutput) -> bool:
    """Whether a request ends with ``message``. Raises RequestFailed where it ends badly."""
    if isinstance(message, RequestError):
        raise RequestFailed(message.code, message.message, message.retry_after_ms)
    return isinstance(message, Finished)


def _route(sinks: dict[str, Sink], outputs: list[EngineOutput]) -> None:
    """Hand each request its own of ``outputs`` at once: waking its reader costs more than a token does."""
    by_request: dict[str, list[EngineOutput]] = {}
    for output in outputs:
        by_request.setdefault(output.request_id, []).append(output)
    for request_id, own in by_request.items():
        sink = sinks.get(request_id)
        if sink is not None:
            sink(own)


def _collect(collector: RequestCollector, on_done: Callable[[], None], outputs: list[EngineOutput]) -> None:
    for output in outputs:
        collector.add(output)
    if collector.is_done:
        on_done()


def _post(loop: asyncio.AbstractEventLoop, handed_over: asyncio.Queue[Any], item: Any) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to be told
        loop.call_soon_threadsafe(handed_over.put_nowait, item)
