"""A cost model that has learnt from measured steps of several shapes, over weights of zero."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

import numpy as np

from waferline_kernels.sequences import SPAN

from ..fabric.cost import CostModel
from ..fabric.residency import host_residency
from ..fabric.spec import host_fabric
from ..model.load import Model
from .batch import Batch, ZeroWeights, placed

SHAPES = ((1, 1, 100), (4, 1, 600), (16, 1, 400), (16, 1, 1200), (1, 512, 0), (1, 512, 800), (4, 64, 300), (16, 8, 500))
"""Of steps: sequences, rows of each, and tokens before them. Decoding, prompts, and what lies between."""
REPEATS = 3
ROUNDS = 20  # in which the model is shown all of them


@dataclass(frozen=True)
class MeasuredStep:
    num_rows: int
    context_tokens: int
    num_logits_rows: int
    kv_tokens: int
    measured_ms: float

    def predict_ms(self, cost_model: CostModel) -> float:
        return cost_model.predict_step_ms(self.num_rows, self.context_tokens, self.num_logits_rows, self.kv_tokens)

    def show(self, cost_model: CostModel) -> None:
        cost_model.observe(self.num_rows, self.context_tokens, self.num_logits_rows, self.measured_ms, self.kv_tokens)


def calibrated_cost_model(model: Model, threads: int | None, kv_dtype: str) -> CostModel:
    """What steps of ``model`` take on this machine. Some are measured, in a few seconds."""
    with placed(model.program, threads) as placement:
        fabric = host_fabric(placement.num_workers, placement.cpus)
        cost_model = CostModel(model.program, host_residency(model.program, placement, fabric), fabric, kv_dtype)
        shapes = [(n, min(rows, model.max_model_len // 2), context) for n, rows, context in SHAPES]
        shapes = [shape for shape in shapes if shape[1] + shape[2] < model.max_model_len]
        room = max(rows + context for _, rows, context in shapes) + 1
        batch = Batch(
            model.program,
            ZeroWeights(model.program),
            placement,
            size=max(count for count, _, _ in shapes),
            max_model_len=room,
            kv_dtype=kv_dtype,
        )
        try:
            steps = [_measure(batch, *shape) for shape in shapes]
        finally:
            batch.close()
    for _ in range(ROUNDS):
        for step in steps:
            step.show(cost_model)
    return cost_model


def _measure(batch: Batch, count: int, rows: int, context: int) -> MeasuredStep:
    spans = np.array([(slot, context, rows, 1) for slot in range(count)], SPAN)
    seconds = []
    for _ in range(1 + REPEATS):
        batch.rewind(context + rows)
        seconds.append(batch.executor.run(batch.program, spans, 1).seconds)
        batch.executor.ring.drain()
    context_tokens = count * (rows * context + rows * (rows + 1) // 2)
    milliseconds = statistics.median(seconds[1:]) * 1e3
    return MeasuredStep(count * rows, context_tokens, count, count * (context + rows), milliseconds)
