"""Running a program without an engine: slots filled and batches made by hand, on each backend and level."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from waferline.fabric.placement import plan_placement
from waferline.model.load import Model
from waferline.model.parallel import run_jobs
from waferline.model.tensor_file import TensorInfo, array_block, write_tensor_file
from waferline_kernels import native
from waferline_kernels.constraints import pack_allowed_ids, pack_constraints
from waferline_kernels.executor import Executor, StopReason, create_executor
from waferline_kernels.sequences import KV_BLOCK_SIZE, NO_LOGPROBS, SPAN, ExecutorLimits

LEVELS = native.supported_levels() if native.is_available() else ()
FUSED_LEVELS = LEVELS[1:]
"""Those with fused multiply-add: all but base."""
TARGETS = [*(f"native-{level}" for level in LEVELS), "numba"]
"""Everything that is held to the reference: each instruction-set level of this machine, and numba."""
DEFAULT_TARGET = f"native-{LEVELS[-1]}" if LEVELS else "numba"


def backend_and_level(target: str) -> tuple[str, str | None]:
    """What to ask create_executor for: ("native", "avx2") of "native-avx2", ("numba", None) of "numba"."""
    backend, _, level = target.partition("-")
    return backend, level or None


def make_executor(model: Model, max_model_len: int, num_logits: int, target: str, threads: int) -> Executor:
    """An executor of ``model`` for one sequence of at most ``max_model_len`` tokens."""
    limits = ExecutorLimits(
        max_num_seqs=1,
        max_model_len=max_model_len,
        max_num_batched_tokens=max_model_len,
        max_num_logits=num_logits,
        num_kv_blocks=-(-max_model_len // KV_BLOCK_SIZE),
    )
    placement = plan_placement(model.program, threads)
    return create_executor(model.program, placement, model.weights, limits, *backend_and_level(target))


def fill_slot(executor: Executor, slot: int, tokens: Sequence[int], **sampling: Any) -> None:
    """Make ``tokens`` the slot's sequence, with all blocks it can need; greedy unless ``sampling`` says otherwise."""
    table, per_slot = executor.sequences, executor.limits.max_blocks_per_seq
    table.tokens[slot, : len(tokens)] = tokens
    table.num_tokens[slot] = len(tokens)
    # Descending, so that a kernel that ignores the table is found out.
    table.block_tables[slot] = np.arange((slot + 1) * per_slot, slot * per_slot, -1) - 1
    table.num_blocks[slot] = per_slot
    params = {
        "temperature": 0.0,
        "top_p": 1.0,
        "repetition_penalty": 1.0,
        "num_logprobs": NO_LOGPROBS,
        "num_prompt_logprobs": NO_LOGPROBS,
        "num_prompt_tokens": len(tokens),
        "max_tokens": executor.limits.max_model_len,
    } | sampling
    stop_ids, logit_bias = params.pop("stop_ids", ()), params.pop("logit_bias", {})
    bad_words, allowed_ids = params.pop("bad_words", ()), params.pop("allowed_ids", None)
    table.sampling[slot] = np.zeros((), table.sampling.dtype)
    row = table.sampling[slot]
    for field, value in params.items():
        row[field] = value
    row["num_stop_ids"] = len(stop_ids)
    row["stop_ids"][: len(stop_ids)] = stop_ids
    row["num_logit_bias"], row["num_bad_words"] = len(logit_bias), len(bad_words)
    row["has_allowed_ids"] = allowed_ids is not None
    table.constraints[slot] = pack_constraints(logit_bias, bad_words)
    # What is not in use must not be looked at.
    table.allowed_ids[slot] = 0 if allowed_ids is None else pack_allowed_ids(allowed_ids, executor.dims.vocab)


def run_logits(model: Model, token_ids: Sequence[int], target: str, threads: int = 1) -> NDArray[np.float32]:
    """Logits of every position of ``token_ids``, in one step: float32 [len, vocab]."""
    count = len(token_ids)
    executor = make_executor(model, count + 1, count, target, threads)
    try:
        fill_slot(executor, 0, token_ids)
        executor.run(model.program, np.array([(0, 0, count, count)], SPAN), max_steps=1)
        return executor.logits[:count, : model.config.vocab].copy()
    finally:
        executor.close()


def run_tokens(
    model: Model, token_ids: Sequence[int], max_tokens: int, target: str, threads: int = 1, **sampling: Any
) -> list[int]:
    """Up to ``max_tokens`` tokens after ``token_ids``, to the model's end token: many-step runs, and the ring."""
    executor = make_executor(model, len(token_ids) + max_tokens, 1, target, threads)
    try:
        fill_slot(executor, 0, token_ids, max_tokens=max_tokens, stop_ids=model.eos_token_ids, **sampling)
        batch, tokens = np.array([(0, 0, len(token_ids), 1)], SPAN), []
        while True:
            reason = executor.run(model.program, batch, max_tokens).reason
            entries = executor.ring.drain()
            tokens += entries["token"].tolist()
            if reason is StopReason.FINISHED:
                return tokens
            batch = np.array([(0, len(token_ids) + len(tokens) - 1, 1, 1)], SPAN)
    finally:
        executor.close()


def write_arrays(
    path: Path, metadata: Mapping[str, str], infos: Mapping[str, TensorInfo], arrays: Mapping[str, NDArray[Any]]
) -> None:
    """Write a safetensors file of ``arrays``."""
    blocks = {name: [array_block(array)] for name, array in arrays.items()}
    write_tensor_file(path, lambda: metadata, infos, blocks, run_jobs)
