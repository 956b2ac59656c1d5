"""``waferline bench prefill``: a prompt's tokens a second, beside what the matmuls alone reach."""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace
from typing import Any

import numpy as np

from waferline_kernels.executor import BackendUnavailable, choose_backend
from waferline_kernels.program import Op, Program

from ..fabric.cost import CostModel, StepShape
from ..fabric.report import report_lines, report_rows
from ..fabric.residency import host_residency
from ..fabric.spec import host_fabric_now
from ..model.load import Model, load_model
from ..runtime.memory import choose_kv_dtype
from .batch import Batch, placed
from .output import machine, print_json, print_table, share

BYTES_PER_READ = 1e8
TOKENS = 512  # of a prompt, where the model has room for as many


def run(args: argparse.Namespace) -> None:
    """Measure and print. Raises ModelError, ValueError or BackendUnavailable for what cannot be run."""
    if choose_backend() == "reference":
        raise BackendUnavailable("WAFERLINE_BACKEND: 'reference', expected native or numba, which run matmuls alone")
    model = load_model(args.model, args.dtype, args.tokens and args.tokens + 1)
    if args.tokens is None:
        args.tokens = max(1, min(TOKENS, model.max_model_len - 1))
    result, lines = measure(model.limited_to(args.tokens + 1), args)
    if args.json:
        print_json({"bench": "prefill", **machine(), **result})
        return
    print(f"{result['model']} {result['dtype']}, {result['backend']}/{result['level']}, threads: {result['threads']}")
    speeds = (result[f"{name}tmac_per_second"] for name in ("", "matmul_", "peak_"))
    whole, matmuls, peak = (f"{speed:.3f}" for speed in speeds)
    tokens, rate = str(result["tokens"]), f"{result['tokens_per_second']:.1f}"
    header = ("tokens", "tokens/s", "TMAC/s", "of matmuls", "share", "peak")
    print_table(header, [(tokens, rate, whole, matmuls, share(result["share_of_limit"]), peak)])
    print()
    print("\n".join(lines))


def measure(model: Model, args: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """The figures, and the lines of the residency report. The limit is the speed of the prompt's matmuls alone: of a
    program that has nothing else, measured in turn with the whole one."""
    program, kv_dtype = model.program, choose_kv_dtype(args.kv_dtype, model.dtype)
    matmuls, macs = matmuls_alone(program), matmul_macs(program, args.tokens)
    swept_format = program.tensors[program.swept_tensors[0]].format
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
            seconds, matmul_seconds, bandwidths = [], [], []
            for _ in range(args.repeats):
                seconds.append(batch.prefill(args.tokens))
                matmul_seconds.append(batch.prefill(args.tokens, matmuls))
                bandwidths.append(batch.read_bandwidth(BYTES_PER_READ))
            profile = batch.profile_prefill(args.tokens, args.repeats)
        finally:
            batch.close()
    took, matmuls_took = statistics.median(seconds), statistics.median(matmul_seconds)
    fabric = host_fabric_now(threads, cpus, program.swept_bytes, statistics.median(bandwidths))
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
        "matmul_tmac_per_second": round(macs / matmuls_took / 1e12, 4),
        "peak_tmac_per_second": round(fabric.macs_per_second[swept_format.name] / 1e12, 4),
        "share_of_limit": round(matmuls_took / took, 3),
        "residency": [row.fields() for row in rows],
    }
    return result, list(report_lines(rows))


def matmuls_alone(program: Program) -> Program:
    """``program`` without what is not a matmul, but for the sampling that its step must end in."""
    is_kept = np.isin(program.instructions["op"], (Op.MATMUL, Op.LOGITS, Op.SAMPLE))
    return replace(program, instructions=program.instructions[is_kept])


def matmul_macs(program: Program, rows: int) -> int:
    """Multiply-adds of the matmuls of a step of ``rows`` rows, of which one has its logits computed."""
    macs = 0
    for instruction in program.instructions:
        if instruction["op"] in (Op.MATMUL, Op.LOGITS):
            halves = 2 if program.tensors[instruction["weight"]].interleaved else 1
            counted = 1 if instruction["wanted_rows"] else rows
            macs += int(instruction["n"]) * int(instruction["k"]) * halves * counted
    return macs
