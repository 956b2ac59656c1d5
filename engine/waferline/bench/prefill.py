"""``waferline bench prefill``: a prompt's tokens a second, beside what the matmuls alone reach."""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import numpy as np

from waferline_kernels.program import Op, Program

from ..fabric.bandwidth import measure_peak
from ..fabric.cost import CostModel, StepShape
from ..fabric.report import report_lines, report_rows
from ..fabric.residency import host_residency
from ..fabric.spec import host_fabric
from ..model.load import Model, load_model
from ..runtime.memory import choose_kv_dtype
from .batch import Batch, placed
from .output import machine, print_json, print_table, share

TOKENS = 512  # of a prompt, where the model has room for as many


def run(args: argparse.Namespace) -> None:
    """Measure and print. Raises ModelError, ValueError or BackendUnavailable for what cannot be run."""
    model = load_model(args.model, args.dtype, args.tokens and args.tokens + 1)
    if args.tokens is None:
        args.tokens = max(1, min(TOKENS, model.max_model_len - 1))
    result, lines = measure(model.limited_to(args.tokens + 1), args)
    if args.json:
        print_json({"bench": "prefill", **machine(), **result})
        return
    print(f"{result['model']} {result['dtype']}, {result['backend']}/{result['level']}, threads: {result['threads']}")
    speeds = (result[f"{name}tmac_per_second"] for name in ("", "matmul_", "peak_"))
    whole, matmuls, peak = ("" if speed is None else f"{speed:.3f}" for speed in speeds)
    tokens, rate = str(result["tokens"]), f"{result['tokens_per_second']:.1f}"
    header = ("tokens", "tokens/s", "TMAC/s", "of matmuls", "share", "peak")
    print_table(header, [(tokens, rate, whole, matmuls, share(result["share_of_limit"]), peak)])
    print()
    print("\n".join(lines))


def measure(model: Model, args: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """The figures, and the lines of the residency report. The limit is the speed that the prompt would have if nothing
    but its matmuls took time; they are timed within prefills of their own, for reading the clock takes time too."""
    program, kv_dtype = model.program, choose_kv_dtype(args.kv_dtype, model.dtype)
    macs, is_matmul = matmul_macs(program, args.tokens), np.isin(program.instructions["op"], (Op.MATMUL, Op.LOGITS))
    with placed(program, args.threads) as placement:
        threads, cpus = placement.num_workers, placement.cpus
        batch = Batch(
            program,
            model.weights,
            placement,
            size=1,
            max_model_len=args.tokens + 1,
            max_rows=args.tokens,
            kv_dtype=kv_dtype,
        )
        try:
            seconds = [batch.prefill(args.tokens) for _ in range(args.repeats)]
            profile = batch.profile_prefill(args.tokens, args.repeats)
        finally:
            batch.close()
        peak = measure_peak(program.tensors[int(program.instructions["weight"][is_matmul][0])].format, threads, cpus)
    matmul_seconds = None if profile is None else float(profile[is_matmul].sum())
    took = statistics.median(seconds)
    fabric = host_fabric(threads, cpus)
    residency = host_residency(program, placement, fabric)
    shape = StepShape(args.tokens, args.tokens * (args.tokens + 1) // 2, 1, args.tokens)
    predictions = CostModel(program, residency, fabric, kv_dtype).predict(shape)
    rows = report_rows(program, predictions, residency, profile, took)
    result = {
        "model": model.name,
        "dtype": model.dtype,
        "backend": batch.executor.name,
        "level": batch.executor.level,
        "threads": threads,
        "tokens": args.tokens,
        "tokens_per_second": round(args.tokens / took, 1),
        "tmac_per_second": round(macs / took / 1e12, 4),
        "matmul_tmac_per_second": None if matmul_seconds is None else round(macs / matmul_seconds / 1e12, 4),
        "peak_tmac_per_second": round(peak / 1e12, 4),
        "share_of_limit": None if matmul_seconds is None else round(matmul_seconds / took, 3),
        "residency": [row.fields() for row in rows],
    }
    return result, list(report_lines(rows))


def matmul_macs(program: Program, rows: int) -> int:
    """Multiply-adds of the matmuls of a step of ``rows`` rows, of which one has its logits computed."""
    macs = 0
    for instruction in program.instructions:
        if instruction["op"] in (Op.MATMUL, Op.LOGITS):
            halves = 2 if program.tensors[instruction["weight"]].interleaved else 1
            counted = 1 if instruction["wanted_rows"] else rows
            macs += int(instruction["n"]) * int(instruction["k"]) * halves * counted
    return macs
