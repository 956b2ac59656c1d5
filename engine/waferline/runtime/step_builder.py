"""A step in the making: which rows of which sequences, within the executor's limits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from waferline_kernels.sequences import SPAN, ExecutorLimits

from .sequence import Sequence


@dataclass
class ScheduledStep:
    """What to run: ``batch`` (SPAN [n]) up to ``max_steps`` times, each time with the tokens just sampled."""

    batch: NDArray[np.void]
    max_steps: int
    sequences: list[Sequence]  # [n], of the batch's spans


class StepBuilder:
    """Collects the spans of one step within its limits."""

    def __init__(self, limits: ExecutorLimits) -> None:
        self.spans: list[tuple[int, int, int, int]] = []
        self.sequences: list[Sequence] = []
        self.samples_all = True  # whether each sequence's last row is in the step
        self._rows = limits.max_num_batched_tokens
        self._logits = limits.max_num_logits

    @property
    def has_room(self) -> bool:
        return self._rows > 0 and self._logits > 0

    def add(self, sequence: Sequence) -> None:
        """Add as many of the rows that ``sequence`` lacks as there is room for, maybe none."""
        start = sequence.num_computed_tokens
        count = min(sequence.num_tokens - start, self._rows)
        # Rows whose logits are needed come last, so that leaving rows away leaves away as many logits.
        count -= max(0, sequence.num_logits(count) - self._logits)
        if count <= 0:
            self.samples_all = False
            return
        num_logits = sequence.num_logits(count)
        self.spans.append((sequence.slot, start, count, num_logits))
        self.sequences.append(sequence)
        self.samples_all &= start + count == sequence.num_tokens
        self._rows -= count
        self._logits -= num_logits

    def build(self, max_steps: int) -> ScheduledStep:
        return ScheduledStep(np.array(self.spans, SPAN), max_steps, self.sequences)
