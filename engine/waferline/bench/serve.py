"""``waferline bench serve``: one stream's tokens a second by each way that they can leave the engine.

``Executor.run`` is the steps alone, and what the others are held against. ``LLM.stream`` hands each token to Python in the
engine's process. ``Client.stream`` reads them from a server: this process, the server's and the engine's share the CPUs
with the engine's threads. Each way is opened, used once unmeasured and once measured, and closed, in turn with the
others, and given as the median.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from typing import Any

from ..demo_command import percentile, running_server
from ..llm import LLM
from ..model.load import load_model
from ..runtime.memory import choose_kv_dtype
from ..runtime.sampling_params import SamplingParams
from ..serving.client import Client
from .batch import Batch, placed
from .output import PERCENTILES, machine, print_json, print_table, share

Stream = Callable[[], list[float]]
"""Decodes once; the seconds at which the first token's step ended, and then at which each further token came."""


def run(args: argparse.Namespace) -> None:
    """Measure and print. Raises ModelError, ValueError or BackendUnavailable for what cannot be run."""
    model = load_model(args.model, args.dtype)
    longest = min(model.max_model_len - 3, model.config.vocab)  # of tokens that are all different
    if not 1 <= args.prompt_tokens <= longest:
        raise ValueError(f"prompt_tokens: {args.prompt_tokens}, expected 1 to {longest}")
    room = model.max_model_len - args.prompt_tokens - 1
    if not 2 <= args.tokens <= room:
        allowed = f"expected 2 to {room} after {args.prompt_tokens} prompt tokens"
        raise ValueError(f"tokens: {args.tokens}, {allowed}")
    results = [row for threads in args.threads or (None,) for row in measure(args, threads)]
    if args.json:
        print_json({"bench": "serve", **machine(), "results": results})
        return
    first = results[0]
    print(f"{first['model']} {first['dtype']}, {args.prompt_tokens} prompt tokens, then {args.tokens}")
    header = ("one stream by", "threads", "tokens/s", "of the first", *(f"ITL p{p} ms" for p in PERCENTILES))
    print_table(header, map(_cells, results))


def measure(args: argparse.Namespace, threads: int | None) -> list[dict[str, Any]]:
    """The figures of each way, with ``threads`` workers."""
    gaps: dict[str, list[list[float]]] = {name: [] for name in WAYS}
    for _ in range(args.repeats):
        for name, open_way in WAYS.items():
            with open_way(args, threads) as stream:
                stream()
                gaps[name].append([later - earlier for earlier, later in pairwise(stream())])
    model = load_model(args.model, args.dtype)
    speeds = {name: statistics.median(len(run) / sum(run) for run in runs) for name, runs in gaps.items()}
    return [
        {
            "model": model.name,
            "dtype": model.dtype,
            "way": name,
            "threads": threads,
            "tokens_per_second": round(speed, 1),
            "share_of_run": round(speed / next(iter(speeds.values())), 3),
            **{
                f"itl_p{p}_ms": round(percentile(sorted(gap for run in gaps[name] for gap in run), p) * 1e3, 4)
                for p in PERCENTILES
            },
        }
        for name, speed in speeds.items()
    ]


@contextmanager
def by_run(args: argparse.Namespace, threads: int | None) -> Iterator[Stream]:
    length = args.prompt_tokens + args.tokens + 1
    model = load_model(args.model, args.dtype, length)
    kv_dtype = choose_kv_dtype("auto", model.dtype)
    with placed(model.program, threads) as placement:
        batch = Batch(model.program, model.weights, placement, size=1, max_model_len=length, kv_dtype=kv_dtype)
        try:
            batch.prefill(args.prompt_tokens)

            def decode() -> list[float]:
                batch.rewind(args.prompt_tokens + 1)
                return (batch.decode(args.tokens - 1)[1] * 1e-9).tolist()  # the prompt's last row gave the first

            yield decode
        finally:
            batch.close()


@contextmanager
def by_llm(args: argparse.Namespace, threads: int | None) -> Iterator[Stream]:
    with LLM(args.model, dtype=args.dtype, threads=threads) as llm:
        yield partial(_arrivals, llm, args)


@contextmanager
def by_client(args: argparse.Namespace, threads: int | None) -> Iterator[Stream]:
    options = {"--dtype": args.dtype, "--threads": threads}
    given = (str(part) for name, value in options.items() if value is not None for part in (name, value))
    with running_server(args.model, *given) as address, Client(address) as client:
        yield partial(_arrivals, client, args)


WAYS = {"Executor.run": by_run, "LLM.stream": by_llm, "Client.stream": by_client}


def _arrivals(source: LLM | Client, args: argparse.Namespace) -> list[float]:
    """Of a greedy completion; its prompt is cached but for the first time."""
    params = SamplingParams(temperature=0, max_tokens=args.tokens, ignore_eos=True)
    stream = source.stream(list(range(args.prompt_tokens)), params)
    return [next(stream).time_ns * 1e-9, *(time.monotonic() for _ in stream)]


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        row["way"],
        "" if row["threads"] is None else str(row["threads"]),
        f"{row['tokens_per_second']:.0f}",
        share(row["share_of_run"]),
        *(f"{row[f'itl_p{p}_ms']:.3f}" for p in PERCENTILES),
    )
