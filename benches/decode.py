#!/usr/bin/env python3
"""Decode speed at batch 1 beside the limit that memory sets, both measured in this run.

    tokens/s  <=  bandwidth over the weights' footprint / bytes of weights swept (scales and padding included)

usage: python benches/decode.py MODEL [--dtype q8] [--threads 2] [--prompt-tokens 128] [--tokens 128] [--json]

The limit and the decoding are measured in turn, and each reported as its median, so that a machine whose speed drifts
does not flatter or blame either.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator

import numpy as np

from waferline.fabric.bandwidth import measure_bandwidth
from waferline.fabric.host import claim_cpus, probe_host
from waferline.fabric.placement import plan_placement
from waferline.model.load import Model, load_model
from waferline_kernels.executor import Executor, create_executor
from waferline_kernels.sequences import KV_BLOCK_SIZE, NO_LOGPROBS, SPAN, ExecutorLimits


def make_executor(model: Model, threads: int, max_model_len: int, cpus: tuple[int, ...] | None) -> Executor:
    """An executor of one greedy sequence that no token ends, all its blocks reserved; the caller is its worker 0."""
    blocks = -(-max_model_len // KV_BLOCK_SIZE)
    limits = ExecutorLimits(1, max_model_len, max_model_len, 1, blocks)
    executor = create_executor(model.program, plan_placement(model.program, threads, cpus), model.weights, limits)
    executor.attach()
    table = executor.sequences
    table.block_tables[0], table.num_blocks[0] = np.arange(blocks), blocks
    params = table.sampling[0]
    params["top_p"] = params["repetition_penalty"] = 1
    params["num_logprobs"] = params["num_prompt_logprobs"] = NO_LOGPROBS
    params["max_tokens"] = max_model_len
    return executor


def decode(executor: Executor, model: Model, prompt_tokens: int, tokens: int) -> Iterator[float]:
    """Prefill, then yield the seconds of one run of ``tokens`` steps."""
    table = executor.sequences
    table.tokens[0, :prompt_tokens] = np.arange(prompt_tokens) % model.config.vocab
    table.num_tokens[0] = prompt_tokens
    table.sampling[0]["num_prompt_tokens"] = prompt_tokens
    executor.run(model.program, np.array([(0, 0, prompt_tokens, 1)], SPAN), 1)
    executor.ring.drain()
    steps, seconds = 0, 0.0
    while steps < tokens:
        at = int(table.num_tokens[0]) - 1
        result = executor.run(model.program, np.array([(0, at, 1, 1)], SPAN), tokens - steps)
        executor.ring.drain()
        steps, seconds = steps + result.num_steps, seconds + result.seconds
    yield seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a model folder, a packed file, or demo")
    parser.add_argument("--dtype", default="q8")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    args = parser.parse_args()

    max_model_len = args.prompt_tokens + args.tokens + 2
    model = load_model(args.model, dtype=args.dtype, max_model_len=max_model_len)
    claim = claim_cpus(probe_host().cpus, args.threads)
    cpus = claim.cpus if claim else None
    executor = make_executor(model, args.threads, max_model_len, cpus)
    swept = model.program.swept_bytes
    seconds, bandwidths = [], []
    for _ in range(args.repeats):
        bandwidths.append(measure_bandwidth(swept, args.threads, cpus))
        seconds += decode(executor, model, args.prompt_tokens, args.tokens)
    executor.close()

    speed, bandwidth = args.tokens / statistics.median(seconds), statistics.median(bandwidths)
    figures = {
        "model": str(args.model),
        "dtype": args.dtype,
        "backend": f"{executor.name}/{executor.level}",
        "threads": args.threads,
        "prompt_tokens": args.prompt_tokens,
        "tokens": args.tokens,
        "bytes_per_token": swept,
        "tokens_per_second": round(speed, 1),
        "bandwidth_gb_per_second": round(bandwidth / 1e9, 2),
        "limit_tokens_per_second": round(bandwidth / swept, 1),
        "share_of_limit": round(speed * swept / bandwidth, 3),
    }
    if args.json:
        print(json.dumps(figures))
        return
    print(f"{args.model} {args.dtype}, {figures['backend']}, {args.threads} threads")
    print(f"{args.prompt_tokens} prompt tokens, then {args.tokens}, {args.repeats} times")
    print(f"swept a token   {swept / 1e6:10.2f} MB of weights")
    print(f"bandwidth       {bandwidth / 1e9:10.2f} GB/s over that footprint")
    print(f"limit           {bandwidth / swept:10.1f} tokens/s")
    print(f"decode          {speed:10.1f} tokens/s, {figures['share_of_limit']:.1%} of the limit")


if __name__ == "__main__":
    main()
