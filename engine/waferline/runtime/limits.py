"""What an engine is limited to: sequences, their length, a step's rows and KV blocks, checked against the model."""

from __future__ import annotations

from typing import Any

from waferline_kernels.kv_cache import KV_FORMATS
from waferline_kernels.sequences import KV_BLOCK_SIZE, ExecutorLimits

from ..model.load import Model
from .memory import available_memory, choose_kv_dtype, plan_kv_blocks

MAX_NUM_SEQS = 4096
MAX_NUM_BATCHED_TOKENS = 1 << 20
PROMPT_LOGITS = 64  # rows of a step that scored prompts may take, where there are fewer sequences


def plan_limits(
    model: Model,
    max_num_seqs: int,
    max_model_len: int | None,
    max_num_batched_tokens: int,
    kv_cache_memory: int | None,
    kv_dtype: str,
    num_speculative_tokens: int = 0,
) -> ExecutorLimits:
    """An executor's limits for ``model``; see EngineCore. Raises ValueError or TypeError for what cannot be met."""
    _check_integer("max_num_seqs", max_num_seqs, 1, MAX_NUM_SEQS)
    _check_integer("max_num_batched_tokens", max_num_batched_tokens, 1, MAX_NUM_BATCHED_TOKENS)
    if max_num_batched_tokens < max_num_seqs:
        raise ValueError(
            f"max_num_batched_tokens: {max_num_batched_tokens}, expected at least max_num_seqs ({max_num_seqs})"
        )
    if max_model_len is not None:
        _check_integer("max_model_len", max_model_len, 2, model.max_model_len)
    kv_dtype = choose_kv_dtype(kv_dtype, model.dtype)
    wanted_len = max_model_len or model.max_model_len
    # The table of angles will be as long as the context in force, and is little beside the keys and values of that.
    free_memory = max(0, available_memory() - model_bytes(model.limited_to(1)))
    dims = model.program.dims
    num_kv_blocks = plan_kv_blocks(dims, kv_dtype, max_num_seqs, wanted_len, kv_cache_memory, free_memory)
    capacity = num_kv_blocks * KV_BLOCK_SIZE
    if max_model_len is not None and max_model_len > capacity:
        raise ValueError(
            f"max_model_len: {max_model_len}, expected at most {capacity}, the tokens that a KV cache of "
            f"{num_kv_blocks * kv_block_bytes(model, kv_dtype)} bytes holds; a larger kv_cache_memory holds more"
        )
    return ExecutorLimits(
        max_num_seqs=max_num_seqs,
        max_model_len=min(wanted_len, capacity),
        max_num_batched_tokens=max_num_batched_tokens,
        max_num_logits=min(max_num_batched_tokens, max(max_num_seqs * (1 + num_speculative_tokens), PROMPT_LOGITS)),
        num_kv_blocks=num_kv_blocks,
        kv_dtype=kv_dtype,
    )


def model_bytes(model: Model) -> int:
    """Of all its weights, as a step reads them."""
    return sum(tensor.nbytes for tensor in model.program.tensors)


def kv_block_bytes(model: Model, kv_dtype: str) -> int:
    return model.program.dims.kv_block_bytes(KV_FORMATS[kv_dtype])


def _check_integer(field: str, value: Any, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{field}: {value!r}, expected an integer")
    if not low <= value <= high:
        raise ValueError(f"{field}: {value}, expected {low} to {high}")
