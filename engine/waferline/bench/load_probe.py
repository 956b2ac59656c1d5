"""Loads a packed file in a fresh process and prints what that took, as JSON: see ``load``."""

from __future__ import annotations

import json
import mmap
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from waferline_kernels.aligned import aligned_zeros
from waferline_kernels.placement import Placement

from ..llm import LLM
from ..model.load import Model, load_model
from .batch import Batch, placed

KV_CACHE_BYTES = 64 << 20  # small beside a model, so that what is measured is the model


def main() -> None:
    packed, threads = sys.argv[1], json.loads(sys.argv[2])
    begin = time.perf_counter()
    llm = LLM(packed, threads=threads, max_num_seqs=1, max_num_batched_tokens=64, kv_cache_memory=KV_CACHE_BYTES)
    ready = time.perf_counter() - begin
    anonymous, model_bytes = _anonymous_bytes(), llm.stats()["model_bytes"]
    llm.close()

    model = load_model(packed).limited_to(1)  # angles are computed, not copied
    with placed(model.program, threads) as placement:
        copy_seconds(model, placement)  # once unmeasured: the first time a virtual machine's host has to find memory
        memcpy = copy_seconds(model, placement)
        begin = time.perf_counter()
        batch = Batch(model.program, model.weights, placement, size=1, max_model_len=1, max_rows=1)
        fill = time.perf_counter() - begin
        batch.close()
    figures = {
        "ready_seconds": ready,
        "arena_fill_seconds": fill,
        "memcpy_seconds": memcpy,
        "anonymous_bytes": anonymous,
        "model_bytes": model_bytes,
    }
    print(json.dumps(figures))


def copy_seconds(model: Model, placement: Placement) -> float:
    """Seconds of a plain copy of all matrices: a thread for each worker copies the worker's strips into memory like its
    arena, not touched before. The mapped file's pages are there already."""
    matrices = [(at, model.weights[spec.name]) for at, spec in enumerate(model.program.tensors) if not spec.is_table]
    for _, matrix in matrices:
        matrix.reshape(-1)[:: mmap.PAGESIZE].max()
    arenas = [aligned_zeros(nbytes, np.uint8) for nbytes in placement.arena_bytes]

    def fill(worker: int) -> None:
        for at, matrix in matrices:
            first, count, offset = placement.shares[at, worker].tolist()
            strips = matrix[first : first + count].reshape(-1)
            arenas[worker][offset : offset + len(strips)] = strips

    with ThreadPoolExecutor(placement.num_workers) as pool:
        begin = time.perf_counter()
        list(pool.map(fill, range(placement.num_workers)))
        return time.perf_counter() - begin


def _anonymous_bytes() -> int:
    """The process's anonymous memory (Linux); elsewhere 0."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:")), 0)
