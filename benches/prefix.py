#!/usr/bin/env python3
"""Time to first token of requests that share a system prompt, cold and with that prompt in the prefix cache.

usage: python benches/prefix.py MODEL [--dtype q8] [--threads 2] [--system-tokens 1000] [--requests 32] [--json]

Each request has tokens of its own after the shared ones. It is made twice, in turn: with a cache salt that nobody has
used, so that nothing of it is cached, and with the salt that all share. Both must give the same tokens and logprobs to
the bit. At last all come at once, with another new salt and then with prefix caching off.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import numpy as np

from waferline import LLM, SamplingParams
from waferline.runtime.messages import Delta

OWN_TOKENS = 20  # of each request, after the shared ones


def timed_stream(llm: LLM, prompt: list[int], params: SamplingParams, cache_salt: str) -> tuple[float, list[Delta]]:
    """Seconds to the first token, and all deltas without what differs from request to request."""
    begin = time.perf_counter()
    stream = llm.stream(prompt, params, cache_salt=cache_salt)
    deltas = [next(stream)]
    seconds = time.perf_counter() - begin
    deltas += stream
    for delta in deltas:
        delta.request_id, delta.time_ns = "", 0
    return seconds, deltas


def seconds_for_all(llm: LLM, prompts: list[list[int]], cache_salt: str) -> float:
    """Seconds until each of ``prompts``, all submitted at once, has its first token."""
    begin = time.perf_counter()
    llm.generate(prompts, SamplingParams(temperature=0, max_tokens=1), cache_salt=cache_salt)
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a model folder, a packed file, or demo")
    parser.add_argument("--dtype", default="q8")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--system-tokens", type=int, default=1000)
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    args = parser.parse_args()

    length = args.system_tokens + OWN_TOKENS
    options = {"dtype": args.dtype, "threads": args.threads, "max_model_len": length + args.tokens + 1}
    params = SamplingParams(temperature=0.8, seed=1, max_tokens=args.tokens, ignore_eos=True, logprobs=5)
    with LLM(args.model, **options) as llm:
        random = np.random.default_rng(0)
        ids = random.integers(1, 250, (args.requests, length))
        ids[:, : args.system_tokens] = ids[0, : args.system_tokens]
        prompts: list[list[int]] = ids.tolist()
        timed_stream(llm, prompts[0], params, "shared")
        cold, warm, num_different = [], [], 0
        for number, prompt in enumerate(prompts):
            cold_seconds, cold_deltas = timed_stream(llm, prompt, params, f"new {number}")
            warm_seconds, warm_deltas = timed_stream(llm, prompt, params, "shared")
            cold.append(cold_seconds)
            warm.append(warm_seconds)
            num_different += cold_deltas != warm_deltas
        at_once = seconds_for_all(llm, prompts, "new")
    with LLM(args.model, **options, enable_prefix_caching=False) as llm:
        at_once_without = seconds_for_all(llm, prompts, "new")

    figures = {
        "model": args.model,
        "dtype": args.dtype,
        "threads": args.threads,
        "system_tokens": args.system_tokens,
        "requests": args.requests,
        "ttft_cold_ms": round(1e3 * statistics.median(cold), 1),
        "ttft_warm_ms": round(1e3 * statistics.median(warm), 1),
        "warm_over_cold": round(statistics.median(warm) / statistics.median(cold), 3),
        "requests_with_other_tokens": num_different,
        "all_at_once_s": round(at_once, 2),
        "all_at_once_without_caching_s": round(at_once_without, 2),
    }
    if args.json:
        print(json.dumps(figures))
        return
    print(f"{args.model} {args.dtype}, {args.threads} threads")
    print(f"{args.requests} requests, {args.system_tokens} shared tokens and {OWN_TOKENS} of their own; medians")
    print(f"TTFT cold   {figures['ttft_cold_ms']:10.1f} ms")
    print(f"TTFT warm   {figures['ttft_warm_ms']:10.1f} ms, {figures['warm_over_cold']:.1%} of cold")
    print(f"different   {num_different:10} of {args.requests} requests, tokens and logprobs compared to the bit")
    print(f"all at once {at_once:10.2f} s to the last first token; without prefix caching {at_once_without:.2f} s")


if __name__ == "__main__":
    main()
