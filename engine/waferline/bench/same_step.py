"""One and the same step again and again: what of a p99 is the machine's, and not the scheduler's."""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np
from numpy.typing import NDArray

from waferline_kernels.sequences import SPAN

from ..model.load import Model
from ..runtime.stalls import PLANNED_SHARE
from .batch import MAX_ROWS, Batch, ZeroWeights, placed

REPEATS = 300
TRIALS = 5  # of each of two sizes, from whose medians the size wanted follows


def repeat_step(
    model: Model, threads: int | None, kv_dtype: str, streams: int, context: int, prompt_tokens: int, target_ms: float
) -> NDArray[np.float64]:
    """Milliseconds of each of REPEATS steps, float64 [n], all alike: a row of each of ``streams`` sequences of ``context``
    tokens, and so many rows from the middle of a prompt that it takes as long as is planned with for ``target_ms``."""
    middle = prompt_tokens // 2
    most = min(MAX_ROWS - streams, model.max_model_len - middle - 1)
    with placed(model.program, threads) as placement:
        batch = Batch(
            model.program,
            ZeroWeights(model.program),
            placement,
            size=streams + 1,
            max_model_len=max(context, middle + most) + 1,
            kv_dtype=kv_dtype,
        )
        try:
            few, many = (statistics.median(_step(batch, context, middle, n) for _ in range(TRIALS)) for n in (1, most))
            share = (PLANNED_SHARE * target_ms - few) / (many - few) if many > few else 0.0
            count = round(1 + min(max(share, 0.0), 1.0) * (most - 1))
            return np.array([_step(batch, context, middle, count) for _ in range(REPEATS)])
        finally:
            batch.close()


def _step(batch: Batch, context: int, middle: int, count: int) -> float:
    spans: list[tuple[Any, ...]] = [(slot, context - 1, 1, 1) for slot in range(batch.size - 1)]
    spans.append((batch.size - 1, middle, count, 0))
    num_tokens = batch.executor.sequences.num_tokens
    num_tokens[: batch.size] = context
    num_tokens[batch.size - 1] = middle + count + 1
    seconds = batch.executor.run(batch.program, np.array(spans, SPAN), 1).seconds
    batch.executor.ring.drain()
    return 1e3 * seconds
