"""``waferline bench interference``: what a long prompt does to the streams beside which it arrives.

Some streams decode; then a prompt is submitted, computed chunk by chunk beside them, and gives its first token. The times
between two tokens of a stream (ITL) are told apart: before the prompt came, during (any part of it between its
submission and its first token), and after. Each is taken by two clocks: when the token's step had ended
(``Delta.time_ns``), and when the token arrived at the engine's caller, in the same process. What the streams are spared
the prompt has to wait: its time to first token (TTFT) stands beside them.

The target ``auto`` is just above the p99 of the same streams when nothing disturbs them, over ``undisturbed_tokens``
tokens of each: as they grow they slow down by themselves, and a target below what they then reach cannot be met.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..model.load import Model, load_model
from ..runtime.engine_core import EngineCore
from ..runtime.messages import Delta, EngineOutput, Finished, GenerateRequest, RequestError
from ..runtime.sampling_params import SamplingParams
from .output import machine, print_json, print_table

PROMPT_TOKENS = 4000  # of the long prompt, where the model has room for as many
STREAM_PROMPT_TOKENS = 64
UNCOUNTED_TOKENS = 16  # of each stream, the first
AUTO_TARGET = 1.05  # times the p99 of streams that nothing disturbs
PHASES = ("before", "during", "after")
CLOCKS = ("step", "arrival")
FIGURES = ("p50", "p99", "worst")


def run(args: argparse.Namespace) -> None:
    """Measure and print. Raises ModelError, ValueError or BackendUnavailable for what cannot be run."""
    model = load_model(args.model, args.dtype)
    if args.prompt_tokens is None:
        args.prompt_tokens = min(PROMPT_TOKENS, model.max_model_len - 1)
    results = [measure(model, args, None)]
    for wanted in args.itl_target_ms:
        target = AUTO_TARGET * undisturbed_p99(model, args) if wanted == "auto" else float(wanted)
        results.append(measure(model, args, float(f"{target:.3g}")))
    if args.json:
        print_json({"bench": "interference", **machine(), "results": results})
        return
    first = results[0]
    print(f"{first['model']} {first['dtype']}, {first['backend']}/{first['level']}, threads: {first['threads']}")
    print(f"{args.streams} streams; a prompt of {args.prompt_tokens} tokens comes {args.repeats} times; milliseconds")
    figures = [f"{figure} {clock}" for clock in CLOCKS for figure in FIGURES]
    print_table(("target", "ITL", *figures, "TTFT"), [row for result in results for row in _rows(result)])


def measure(model: Model, args: argparse.Namespace, target_ms: float | None) -> dict[str, Any]:
    """The figures of all repeats with one target."""
    with engine(model, args, target_ms) as (core, log):
        repeats = [disturb(core, log, args, f"{repeat}.") for repeat in range(args.repeats)]
        stats = core.stats()
    gaps = {phase: np.concatenate([gaps[phase] for _, gaps in repeats]) for phase in PHASES}
    return {
        "model": model.name,
        "dtype": model.dtype,
        "backend": stats.backend,
        "level": stats.level,
        "threads": stats.threads,
        "streams": args.streams,
        "prompt_tokens": args.prompt_tokens,
        "itl_target_ms": target_ms,
        "ttft_ms": round(float(np.median([ttft_ms for ttft_ms, _ in repeats])), 1),
        "itl": {phase: {clock: _summary(gaps[phase][:, at]) for at, clock in enumerate(CLOCKS)} for phase in PHASES},
    }


def disturb(core: EngineCore, log: Log, args: argparse.Namespace, prefix: str) -> tuple[float, dict[str, Any]]:
    """Let a prompt arrive beside streams: its TTFT in milliseconds, and the gaps of the streams, float64 [n, CLOCKS], in
    milliseconds by phase."""
    streams = [f"{prefix}{number}" for number in range(args.streams)]
    for name in streams:
        core.add(request(core.model, name, STREAM_PROMPT_TOKENS, None))
    log.wait_for(streams, UNCOUNTED_TOKENS + args.tokens)
    long = f"{prefix}long"
    message = request(core.model, long, args.prompt_tokens, 1)
    begin = time.monotonic_ns()
    core.add(message)
    log.wait_for([long], 1)
    end = int(log.times(long)[0, 1])
    so_far = max(len(log.times(name)) for name in streams)
    log.wait_for(streams, so_far + args.tokens)
    for name in streams:
        core.abort(name)
    log.wait_for_end(streams)
    gaps: dict[str, list[NDArray[np.float64]]] = {phase: [] for phase in PHASES}
    for name in streams:
        times = log.times(name)[UNCOUNTED_TOKENS:]
        is_before, is_after = times[1:, 1] <= begin, times[:-1, 1] >= end
        own = np.diff(times, axis=0) * 1e-6
        for phase, members in zip(PHASES, (is_before, ~is_before & ~is_after, is_after), strict=True):
            gaps[phase].append(own[members])
    return (end - begin) * 1e-6, {phase: np.concatenate(parts) for phase, parts in gaps.items()}


def undisturbed_p99(model: Model, args: argparse.Namespace) -> float:
    """Milliseconds between two tokens of the streams alone. Raises ValueError where there are no two that count."""
    with engine(model, args, None) as (core, log):
        streams = [str(number) for number in range(args.streams)]
        for name in streams:
            core.add(request(model, name, STREAM_PROMPT_TOKENS, UNCOUNTED_TOKENS + args.undisturbed_tokens))
        log.wait_for_end(streams)
    gaps = np.concatenate([np.diff(log.times(name)[UNCOUNTED_TOKENS:, 0]) * 1e-6 for name in streams])
    if not len(gaps):
        room = STREAM_PROMPT_TOKENS + UNCOUNTED_TOKENS + 2
        raise ValueError(
            f"undisturbed_tokens: {args.undisturbed_tokens}, expected at least 2, and a model with room for {room} tokens"
        )
    return float(np.percentile(gaps, 99, method="inverted_cdf"))


@contextmanager
def engine(model: Model, args: argparse.Namespace, target_ms: float | None) -> Iterator[tuple[EngineCore, Log]]:
    log = Log()
    core = EngineCore(
        model,
        threads=args.threads,
        max_num_seqs=args.streams + 1,
        kv_dtype=args.kv_dtype,
        itl_target_ms=target_ms,
        on_output=log.record,
    )
    try:
        yield core, log
    finally:
        core.close()


def request(model: Model, name: str, prompt_tokens: int, max_tokens: int | None) -> GenerateRequest:
    """A request of random tokens, nothing of which is cached; with None for ``max_tokens`` it ends where it is aborted."""
    seed = int.from_bytes(name.encode(), "little")
    prompt = np.random.default_rng(seed).integers(model.program.dims.vocab, size=prompt_tokens).tolist()
    params = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)
    return GenerateRequest(name, prompt, params, cache_salt=name)


class Log:
    """When the tokens of each request came; nanoseconds."""

    def __init__(self) -> None:
        self._times: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
        self._ended: set[str] = set()
        self._error: str | None = None
        self._changed = threading.Condition()

    def record(self, outputs: list[EngineOutput]) -> None:
        """What an engine gives."""
        now = time.monotonic_ns()
        with self._changed:
            for output in outputs:
                if isinstance(output, Delta):
                    self._times[output.request_id].append((output.time_ns, now))
                elif isinstance(output, Finished):
                    self._ended.add(output.request_id)
                elif isinstance(output, RequestError):
                    self._error = output.message
            self._changed.notify_all()

    def times(self, name: str) -> NDArray[np.int64]:
        """int64 [tokens, CLOCKS]."""
        with self._changed:
            return np.array(self._times[name], np.int64).reshape(-1, len(CLOCKS))

    def wait_for(self, names: list[str], tokens: int) -> None:
        """Wait until each of these requests has ``tokens`` tokens, or has ended. Raises RuntimeError where one fails."""
        self._wait(names, lambda name: name in self._ended or len(self._times[name]) >= tokens)

    def wait_for_end(self, names: list[str]) -> None:
        self._wait(names, lambda name: name in self._ended)

    def _wait(self, names: list[str], is_done: Callable[[str], bool]) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._error is not None or all(map(is_done, names)))
            if self._error is not None:
                raise RuntimeError(self._error)


def _summary(gaps: NDArray[np.float64]) -> dict[str, Any]:
    """Of the gaps of one phase by one clock, in milliseconds; None where there are none."""
    if not len(gaps):
        return {"gaps": 0, **dict.fromkeys(FIGURES)}
    values = (*np.percentile(gaps, (50, 99), method="inverted_cdf"), gaps.max())
    return {"gaps": len(gaps), **{name: round(float(value), 3) for name, value in zip(FIGURES, values, strict=True)}}


def _rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    target = "none" if result["itl_target_ms"] is None else f"{result['itl_target_ms']:.1f}"
    rows = []
    for phase in PHASES:
        values = [result["itl"][phase][clock][figure] for clock in CLOCKS for figure in FIGURES]
        cells = ["" if value is None else f"{value:.2f}" for value in values]
        rows.append((target, phase, *cells, f"{result['ttft_ms']:.0f}" if phase == "during" else ""))
    return rows
