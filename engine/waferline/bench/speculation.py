"""``waferline bench speculation``: decoding with drafts beside decoding without, one stream of tokens.

First with a scripted drafter: it knows the tokens, and gets a given share of them wrong, here and there, so that an
acceptance of 0.5 means what it does in the field (Leviathan et al. 2023): a draft token is right with probability 1/2,
given that those before it are. Of four drafts 0.94 are right then, on average; with whole drafts right or wrong it would
be 2. Which are wrong is drawn, how many is not: with a coin for each, luck would move the speedup of 100 tokens by 6%.
Then with prompt lookup, on a stream that goes round in a loop, being allowed a single token.

One engine at a time runs, plain and speculating in turn. Times are from the first token to the last, and all must give
the same tokens. Steps and drafts are those of the last repeat.
"""

from __future__ import annotations

import argparse
import queue
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ..model.load import Model, load_model
from ..runtime.drafter import SpeculativeConfig
from ..runtime.engine_core import EngineCore
from ..runtime.messages import Delta, EngineOutput, Finished, GenerateRequest, RequestError
from ..runtime.sampling_params import SamplingParams
from ..runtime.stats import EngineStats
from .output import machine, print_json, print_table

Config = Mapping[str, Any] | SpeculativeConfig
HEADER = ("drafts", "tokens/s", "plain", "speedup", "steps", "drafted", "accepted")


class ScriptedDrafter:
    """Proposes what follows in ``token_ids``, of which a share of ``1 - acceptance``, drawn at random, is wrong."""

    def __init__(self, token_ids: list[int], acceptance: float, vocab: int, seed: int) -> None:
        num_right = round(acceptance * len(token_ids))
        is_right = np.random.default_rng(seed).permutation(len(token_ids)) < num_right
        self._guesses = [
            token if right else (token + 1) % vocab for token, right in zip(token_ids, is_right, strict=True)
        ]

    def propose(self, token_ids: list[int], max_tokens: int) -> list[int]:
        return self._guesses[len(token_ids) : len(token_ids) + max_tokens]


@dataclass(frozen=True)
class Stream:
    """What a request gave."""

    token_ids: list[int]  # of the prompt too
    tokens_per_second: float
    stats: EngineStats


def run(args: argparse.Namespace) -> None:
    """Measure and print. Raises ModelError, ValueError or BackendUnavailable for what cannot be run."""
    if args.tokens < 2:
        raise ValueError(f"tokens: {args.tokens}, expected at least 2: the time is from the first to the last")
    model = load_model(args.model, args.dtype, args.prompt_tokens + args.tokens)
    drawn = SamplingParams(seed=0, max_tokens=args.tokens, ignore_eos=True)
    loop = SamplingParams(seed=0, max_tokens=args.tokens, ignore_eos=True, allowed_token_ids=[0])
    count = args.num_speculative_tokens
    ngram = {"method": "ngram", "num_speculative_tokens": count, "prompt_lookup_max": 4, "prompt_lookup_min": 2}
    cases = {f"{100 * share:.6g}% right": partial(scripted, model, count, share) for share in args.acceptance}
    results = [
        *measure(model, drawn, cases, args),
        *measure(model, loop, {"loop, prompt lookup": lambda token_ids, seed: ngram}, args),
    ]
    if args.json:
        print_json({"bench": "speculation", **machine(), "results": results})
        return
    first = results[0]
    print(f"{first['model']} {first['dtype']}, {first['backend']}/{first['level']}, threads: {first['threads']}")
    print(f"{args.tokens} tokens, up to {count} draft tokens, medians of {args.repeats}")
    print_table(HEADER, [_cells(result) for result in results])


def scripted(model: Model, count: int, acceptance: float, token_ids: list[int], seed: int) -> SpeculativeConfig:
    """Drafts of up to ``count`` of ``token_ids``."""
    drafter = ScriptedDrafter(token_ids, acceptance, model.program.dims.vocab, seed)
    return SpeculativeConfig(count, lambda sequence: drafter)


def measure(
    model: Model,
    params: SamplingParams,
    cases: Mapping[str, Callable[[list[int], int], Config]],
    args: argparse.Namespace,
) -> list[dict[str, Any]]:
    """The figures of each of ``cases``, which make a config from a stream's tokens and the number of the repeat."""
    streams: dict[str, list[tuple[Stream, Stream]]] = {name: [] for name in cases}
    for repeat in range(args.repeats):
        for name, make_config in cases.items():
            plain = stream(model, params, args, None)  # anew: machines are faster one minute than the next
            drafted = stream(model, params, args, make_config(plain.token_ids, repeat))
            if drafted.token_ids != plain.token_ids:
                raise RuntimeError(f"{name}: other tokens with drafts than without")
            streams[name].append((drafted, plain))
    return [_figures(model, name, pairs, args) for name, pairs in streams.items()]


def _figures(model: Model, name: str, pairs: list[tuple[Stream, Stream]], args: argparse.Namespace) -> dict[str, Any]:
    stats = pairs[-1][0].stats
    speeds = [(drafted.tokens_per_second, plain.tokens_per_second) for drafted, plain in pairs]
    with_drafts, without = (statistics.median(column) for column in zip(*speeds, strict=True))
    return {
        "drafts": name,
        "model": model.name,
        "dtype": model.dtype,
        "backend": stats.backend,
        "level": stats.level,
        "threads": stats.threads,
        "tokens": args.tokens,
        "num_speculative_tokens": args.num_speculative_tokens,
        "tokens_per_second": round(with_drafts, 1),
        "plain_tokens_per_second": round(without, 1),
        "speedup": round(statistics.median(fast / slow for fast, slow in speeds), 3),
        "steps": stats.steps_total,
        "draft_tokens": stats.spec_decode_num_draft_tokens_total,
        "accepted_tokens": stats.spec_decode_num_accepted_tokens_total,
    }


def stream(model: Model, params: SamplingParams, args: argparse.Namespace, config: Config | None) -> Stream:
    """One request on an engine of its own."""
    outputs: queue.SimpleQueue[list[EngineOutput]] = queue.SimpleQueue()
    core = EngineCore(
        model,
        threads=args.threads,
        max_num_seqs=1,
        max_model_len=args.prompt_tokens + args.tokens,
        speculative_config=config,
        on_output=outputs.put,
    )
    try:
        prompt = [token % model.program.dims.vocab for token in range(args.prompt_tokens)]
        core.add(GenerateRequest("", prompt, params))
        deltas: list[Delta] = []
        while True:
            for output in outputs.get():
                if isinstance(output, Delta):
                    deltas.append(output)
                elif isinstance(output, RequestError):
                    raise RuntimeError(output.message)
                elif isinstance(output, Finished):
                    seconds = 1e-9 * (deltas[-1].time_ns - deltas[0].time_ns)
                    tokens = [token_id for delta in deltas for token_id in delta.token_ids]
                    core.drain()  # its statistics count a step when the tokens are out
                    return Stream([*prompt, *tokens], (len(tokens) - 1) / seconds, core.stats())
    finally:
        core.close()


def _cells(result: dict[str, Any]) -> tuple[str, ...]:
    return (
        result["drafts"],
        f"{result['tokens_per_second']:.1f}",
        f"{result['plain_tokens_per_second']:.1f}",
        f"{result['speedup']:.2f}",
        str(result["steps"]),
        str(result["draft_tokens"]),
        str(result["accepted_tokens"]),
    )
