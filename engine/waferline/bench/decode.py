"""``waferline bench decode``: tokens a second beside the limit that memory sets.

    tokens/s  <=  batch * bandwidth over what a step sweeps / bytes that it sweeps (weights with scales, keys and values)

Decoding and a plain prefetched read of the same weights where they lie are measured in turn, and each is given as its
median, so that a machine whose speed drifts neither flatters nor blames either.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import numpy as np

from waferline_kernels.kv_cache import kv_format
from waferline_kernels.sequences import KV_BLOCK_SIZE

from ..fabric.cost import CostModel, StepShape
from ..fabric.report import report_lines, report_rows
from ..fabric.residency import host_residency
from ..fabric.spec import host_fabric_now
from ..model.load import Model, load_model
from ..runtime.memory import choose_kv_dtype
from .batch import Batch, placed
from .output import PERCENTILES, machine, print_json, print_table, share
from .streams import percentiles

BYTES_PER_READ = 1e9
PROFILED_TOKENS = 8


def run(args: argparse.Namespace) -> None:
    """Measure and print. Raises ModelError, ValueError or BackendUnavailable for what cannot be run."""
    model = load_model(args.model, args.dtype, args.prompt_tokens + args.tokens + 2)
    results = [measure(model, size, args) for size in args.batch]
    if args.json:
        print_json({"bench": "decode", **machine(), "results": [result for result, _ in results]})
        return
    first = results[0][0]
    print(f"{first['model']} {first['dtype']}, {first['backend']}/{first['level']}, threads: {first['threads']}")
    print(f"{args.prompt_tokens} prompt tokens, then {args.tokens}, medians of {args.repeats}")
    header = ("batch", "tokens/s", "limit", "share", "GB/s", "MB a token", *(f"ITL p{p} ms" for p in PERCENTILES))
    print_table(header, [_cells(result) for result, _ in results])
    for result, lines in results:
        print(f"\na step of {result['batch']}")
        print("\n".join(lines))


def measure(model: Model, size: int, args: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """The figures of a batch of ``size`` sequences, and the lines of its residency report."""
    program, prompt = model.program, args.prompt_tokens
    kv_dtype = choose_kv_dtype(args.kv_dtype, model.dtype)
    with placed(program, args.threads) as placement:
        threads, cpus = placement.num_workers, placement.cpus
        batch = Batch(
            program, model.weights, placement, size=size, max_model_len=prompt + args.tokens + 2, kv_dtype=kv_dtype
        )
        try:
            batch.prefill(prompt)
            kv_tokens = size * (prompt + 1 + (args.tokens - 1) // 2)  # of the step in the middle
            kv_bytes = round(kv_tokens * program.dims.kv_block_bytes(kv_format(kv_dtype)) / KV_BLOCK_SIZE)
            swept = program.swept_bytes + kv_bytes
            seconds, bandwidths, gaps = [], [], []
            for _ in range(args.repeats):
                bandwidths.append(batch.read_bandwidth(BYTES_PER_READ))
                batch.rewind(prompt + 1)
                took, times = batch.decode(args.tokens)
                seconds.append(took)
                gaps += np.diff(times).tolist()
            batch.rewind(prompt + 1)
            profile = batch.profile_decode(min(args.tokens, PROFILED_TOKENS))
        finally:
            batch.close()
    step_seconds, bandwidth = statistics.median(seconds) / args.tokens, statistics.median(bandwidths)
    fabric = host_fabric_now(threads, cpus, program.swept_bytes, bandwidth)
    residency = host_residency(program, placement, fabric)
    shape = StepShape(size, kv_tokens, size, kv_tokens)
    predictions = CostModel(program, residency, fabric, kv_dtype).predict(shape)
    rows = report_rows(program, predictions, residency, profile, step_seconds)
    speed = size / step_seconds
    limit = size * bandwidth / swept
    step = rows[-1]
    result = {
        "model": model.name,
        "dtype": model.dtype,
        "backend": batch.executor.name,
        "level": batch.executor.level,
        "threads": threads,
        "batch": size,
        "prompt_tokens": prompt,
        "tokens": args.tokens,
        "tokens_per_second": round(speed, 1),
        "limit_tokens_per_second": round(limit, 1),
        "share_of_limit": round(speed / limit, 3),
        "bandwidth_gb_per_second": round(bandwidth / 1e9, 2),
        "weight_bytes_per_step": program.swept_bytes,
        "kv_dtype": kv_dtype,
        "kv_bytes_per_step": kv_bytes,
        "bytes_per_token": round(swept / size),
        **percentiles("itl", gaps),
        "barrier_share": step.waited / step.measured if step.waited and step.measured else None,
        "residency": [row.fields() for row in rows],
    }
    return result, list(report_lines(rows))


def _cells(result: dict[str, Any]) -> tuple[str, ...]:
    return (
        str(result["batch"]),
        f"{result['tokens_per_second']:.1f}",
        f"{result['limit_tokens_per_second']:.1f}",
        share(result["share_of_limit"]),
        f"{result['bandwidth_gb_per_second']:.1f}",
        f"{result['bytes_per_token'] / 1e6:.2f}",
        *("" if gap is None else f"{gap:.3f}" for gap in (result[f"itl_p{p}_ms"] for p in PERCENTILES)),
    )
