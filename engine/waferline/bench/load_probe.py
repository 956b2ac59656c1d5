"""Loads a packed file in a fresh process and prints what that took, as JSON: see ``load``."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from ..llm import LLM
from ..model.load import load_model
from .batch import Batch, placed

KV_CACHE_BYTES = 64 << 20  # small beside a model, so that what is measured is the model


def main(packed: str, threads: int | None) -> None:
    begin = time.perf_counter()
    llm = LLM(packed, threads=threads, max_num_seqs=1, max_num_batched_tokens=64, kv_cache_memory=KV_CACHE_BYTES)
    ready = time.perf_counter() - begin
    anonymous = _anonymous_bytes()
    llm.close()

    model = load_model(packed)
    matrices = [model.weights[spec.name] for spec in model.program.tensors if not spec.is_table]
    begin = time.perf_counter()
    copies = [matrix.copy() for matrix in matrices]  # all kept: memory given back would be touched already
    memcpy = time.perf_counter() - begin
    del copies
    with placed(model.program, threads) as placement:
        begin = time.perf_counter()
        batch = Batch(model.program, model.weights, placement, size=1, max_model_len=1, max_rows=1)
        fill = time.perf_counter() - begin
        batch.close()
    figures = {
        "ready_seconds": ready,
        "arena_fill_seconds": fill,
        "memcpy_seconds": memcpy,
        "anonymous_bytes": anonymous,
        "model_bytes": sum(spec.nbytes for spec in model.program.tensors),
    }
    print(json.dumps(figures))


def _anonymous_bytes() -> int:
    """The process's anonymous memory (Linux); elsewhere 0."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:")), 0)


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
