"""Text that a model writes itself: what its activations are measured on where there is no other text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from waferline_kernels.executor import create_executor
from waferline_kernels.program import Program
from waferline_kernels.ring import Finish
from waferline_kernels.sequences import KV_BLOCK_SIZE, NO_LOGPROBS, SPAN, ExecutorLimits, SequenceTable

from ..fabric.placement import plan_placement

TEXTS_AT_ONCE = 16
SEED = 0


def sample_texts(
    program: Program,
    weights: Mapping[str, NDArray[Any]],
    first_token: int,
    end_tokens: tuple[int, ...],
    num_tokens: int,
    text_tokens: int,
) -> list[NDArray[np.int32]]:
    """Token ids of texts of at most ``text_tokens`` (2 or more), ``num_tokens`` in all: each ``first_token`` and what
    follows it, drawn from all of the vocabulary at temperature 1, to the first of ``end_tokens``.

    The same on every run of one backend and instruction-set level.
    """
    slots = np.arange(TEXTS_AT_ONCE)
    limits = ExecutorLimits(
        max_num_seqs=len(slots),
        max_model_len=text_tokens,
        max_num_batched_tokens=len(slots),
        max_num_logits=len(slots),
        num_kv_blocks=len(slots) * -(-text_tokens // KV_BLOCK_SIZE),
    )
    executor = create_executor(program, plan_placement(program), weights, limits)
    texts: list[NDArray[np.int32]] = []
    missing = num_tokens
    try:
        while missing > 0:
            _fill_slots(executor.sequences, first_token, end_tokens, len(texts))
            running = slots
            while len(running):
                batch = np.zeros(len(running), SPAN)
                batch["slot"], batch["start"] = running, executor.sequences.num_tokens[running] - 1
                batch["count"] = batch["num_logits"] = 1
                executor.run(program, batch, max_steps=text_tokens)
                entries = executor.ring.drain()
                running = np.setdiff1d(running, entries["slot"][entries["finish"] != Finish.NONE])
            for tokens, count in zip(executor.sequences.tokens, executor.sequences.num_tokens, strict=True):
                texts.append(tokens[: min(count, max(missing, 0))].copy())
                missing -= len(texts[-1])
    finally:
        executor.close()
    return [text for text in texts if len(text)]


def _fill_slots(table: SequenceTable, first_token: int, end_tokens: tuple[int, ...], first_index: int) -> None:
    """Make every slot a sequence of one token, with all its blocks; ``first_index`` is its random numbers'."""
    slots, text_tokens = table.tokens.shape
    table.tokens[:, 0], table.num_tokens[:] = first_token, 1
    table.block_tables[:] = np.arange(table.block_tables.size).reshape(table.block_tables.shape)
    table.num_blocks[:] = table.block_tables.shape[1]
    params = table.sampling
    params["temperature"] = params["top_p"] = params["repetition_penalty"] = 1
    params["num_logprobs"] = params["num_prompt_logprobs"] = NO_LOGPROBS
    params["num_prompt_tokens"], params["max_tokens"] = 1, text_tokens
    params["seed"], params["completion_index"] = SEED, np.arange(first_index, first_index + slots)
    params["num_stop_ids"], params["stop_ids"][:, : len(end_tokens)] = len(end_tokens), end_tokens
