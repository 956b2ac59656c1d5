"""``waferline bench load``: packing, and from a packed file in the page cache to an engine that is ready.

Each load is a process of its own, so that the memory it is charged with is its own. The limits: a plain copy of the same
bytes by as many threads, from the mapped file to memory not touched before, for filling the arenas; the model's size for
anonymous memory.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from ..fabric.placement import check_threads
from ..model.load import load_model, pack_model
from ..serving.python_command import python_command
from .output import machine, print_json, print_table


def run(args: argparse.Namespace) -> None:
    """Measure and print. Raises ModelError for a model that cannot be packed or loaded, ValueError for numbers of threads
    that cannot be, RuntimeError where a load fails."""
    if args.threads is not None:
        check_threads(args.threads)
    source, is_packed = Path(args.model), Path(args.model).is_file()
    with nullcontext(source.parent) if is_packed else tempfile.TemporaryDirectory(prefix="waferline-") as folder:
        packed, pack_seconds = (source, None) if is_packed else _pack(args, Path(folder))
        model = load_model(packed, args.dtype)
        packed.read_bytes()  # into the page cache
        loads = [_load(packed, args.threads) for _ in range(args.repeats)]
        figures = {field: statistics.median(load[field] for load in loads) for field in loads[0]}
    result = {
        "model": args.model,
        "dtype": model.dtype,
        "pack_seconds": pack_seconds,
        **{field: round(value, 6) for field, value in figures.items()},
        "arena_fill_over_memcpy": round(figures["arena_fill_seconds"] / figures["memcpy_seconds"], 2),
        "anonymous_over_model": round(figures["anonymous_bytes"] / figures["model_bytes"], 2),
    }
    if args.json:
        print_json({"bench": "load", **machine(), **result})
        return
    print(f"{args.model} {model.dtype}, {figures['model_bytes'] / 1e6:.1f} MB, medians of {args.repeats}")
    rows = [
        ("LLM ready", f"{figures['ready_seconds']:.3f} s", ""),
        ("arenas filled", f"{figures['arena_fill_seconds']:.3f} s", f"{result['arena_fill_over_memcpy']} x memcpy"),
        ("memcpy", f"{figures['memcpy_seconds']:.3f} s", ""),
        ("anonymous memory", f"{figures['anonymous_bytes'] / 1e6:.1f} MB", f"{result['anonymous_over_model']} x model"),
    ]
    print_table(("", "", ""), [*([("pack", f"{pack_seconds:.3f} s", "")] if pack_seconds else []), *rows])


def _pack(args: argparse.Namespace, folder: Path) -> tuple[Path, float]:
    out = folder / "model.wafer"
    begin = time.perf_counter()
    pack_model(args.model, out, args.dtype)
    return out, round(time.perf_counter() - begin, 3)


def _load(packed: Path, threads: int | None) -> dict[str, float]:
    command = [*python_command(f"{__package__}.load_probe"), str(packed), json.dumps(threads)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"load: a process that loads {packed} ended with status {done.returncode}")
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures
