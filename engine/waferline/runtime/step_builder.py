"""A step in the making: which rows of which sequences, within the executor's limits and the time that there is."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from waferline_kernels.sequences import SPAN, ExecutorLimits

from ..fabric.cost import CostModel, StepShape
from .decode_batch import DecodeBatch
from .sequence import Sequence
from .stalls import Stalls

PREFILL_SHARE = 0.5  # of a step: what stalls leave to prefill, whatever they are, as far as that takes no longer than
FILLED_SHARE = 0.75  # of the target
LEAST_SHARE = 0.1  # of the time that decoding alone takes: what prefill gets even of a target that leaves less


@dataclass
class ScheduledStep:
    """What to run: ``batch`` (SPAN [n]) up to ``max_steps`` times, each time with the tokens just sampled. Its first
    ``num_decodes`` spans are of sequences that lacked a single row, the others are chunks of those that lacked more."""

    batch: NDArray[np.void]
    max_steps: int
    sequences: list[Sequence]  # [n], of the batch's spans
    num_decodes: int
    shape: StepShape  # of the first time
    num_drafts: list[int] = field(default_factory=list)  # [n], in the spans; empty where none were looked for

    @property
    def chunks(self) -> Iterable[tuple[Sequence, int]]:
        """The sequence and the rows of each chunk."""
        counts = self.batch["count"][self.num_decodes :].tolist()
        return zip(self.sequences[self.num_decodes :], counts, strict=True)


class LatencyTarget:
    """How long a step may take while streams wait for their next tokens: ``itl_ms``, less what ``stalls`` call for."""

    def __init__(self, cost_model: CostModel, itl_ms: float) -> None:
        self.stalls = Stalls(itl_ms)
        self._itl_ms = itl_ms
        self._cost_model = cost_model

    def budget_ms(self, alone_ms: float) -> float:
        """Of a step that would take ``alone_ms`` with the rows of such streams alone, and has others."""
        return max(self.stalls.planned_ms, self.least_budget_ms(alone_ms))

    def least_budget_ms(self, alone_ms: float) -> float:
        """The same, whatever stalls call for. Prefill gets a share even where the target or stalls leave it none: no
        prompt waits for ever, or so long that the streams meanwhile grow beyond the target by themselves."""
        shared_ms = min(alone_ms / (1 - PREFILL_SHARE), FILLED_SHARE * self._itl_ms)
        return max(shared_ms, (1 + LEAST_SHARE) * alone_ms)

    def predict_ms(self, shape: StepShape) -> float:
        return self._cost_model.predict_step_ms(*shape)


class StepBuilder:
    """Collects the rows of one step: those of ``decoding`` first, then chunks, as far as there is room and time."""

    def __init__(self, limits: ExecutorLimits, decoding: DecodeBatch, target: LatencyTarget | None) -> None:
        self.chunks: list[tuple[int, int, int, int]] = []  # spans
        self.sequences = decoding.sequences.copy()
        self.shape = decoding.shape
        self._decodes = decoding.spans.copy()
        self._rows = limits.max_num_batched_tokens - len(decoding)
        self._logits = limits.max_num_logits - len(decoding)
        self._target = target if len(decoding) else None  # nobody waits for the next token
        self._budget_ms = 0.0 if self._target is None else self._target.budget_ms(self._target.predict_ms(self.shape))
        self._is_out_of_time = False

    @property
    def has_room(self) -> bool:
        return self._rows > 0 and self._logits > 0 and not self._is_out_of_time

    def add(self, sequence: Sequence) -> None:
        """Add as many of the rows that ``sequence`` lacks as there is room and time for, maybe none."""
        start = sequence.num_computed_tokens
        count = min(sequence.num_tokens - start, self._rows)
        # Rows whose logits are needed come last, so that leaving rows away leaves away as many logits.
        count -= max(0, sequence.num_logits(count) - self._logits)
        if self._target is not None:
            count = self._rows_in_time(self._target, sequence, count)
        if count <= 0:
            return
        num_logits = sequence.num_logits(count)
        self.chunks.append((sequence.slot, start, count, num_logits))
        self.sequences.append(sequence)
        self.shape = self.shape.plus(StepShape.of_chunk(start, count, num_logits))
        self._rows -= count
        self._logits -= num_logits

    def _rows_in_time(self, target: LatencyTarget, sequence: Sequence, wanted: int) -> int:
        """How many of the rows ``wanted`` there is time for; at least one of the first chunk."""

        def predict_ms(count: int) -> float:
            chunk = StepShape.of_chunk(sequence.num_computed_tokens, count, sequence.num_logits(count))
            return target.predict_ms(self.shape.plus(chunk))

        count = bisect_right(range(1, wanted + 1), self._budget_ms, key=predict_ms)
        self._is_out_of_time = count < wanted
        return max(count, 0 if self.chunks else 1)

    def build(self, max_steps: int) -> ScheduledStep:
        count, batch = len(self._decodes), self._decodes
        if self.chunks:  # concatenating them would take four times as long
            batch = np.empty(count + len(self.chunks), SPAN)
            batch[:count] = self._decodes
            batch[count:] = self.chunks
        return ScheduledStep(batch, max_steps, self.sequences, count, self.shape)
