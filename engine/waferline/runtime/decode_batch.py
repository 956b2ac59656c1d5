"""The sequences that decode: what a step has of them is kept from step to step, as the executor reads it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from waferline_kernels.sequences import KV_BLOCK_SIZE, SPAN, SequenceTable

from ..fabric.cost import StepShape
from .sequence import NO_ROW, Sequence


class DecodeBatch:
    """The running sequences that lack a single row, that of the token sampled last. They are in every step, and so
    advance together.

    The executor counts their tokens in its table, and here they are taken from there all at once: nothing is done for a
    single one but when it joins, leaves, or fills a block. They are in no order; the last takes the place of one that
    leaves.
    """

    def __init__(self, max_num_seqs: int, table: SequenceTable) -> None:
        self.sequences: list[Sequence] = []
        self._table = table
        self._all_spans = np.zeros(max_num_seqs, SPAN)
        self._all_spans["count"] = self._all_spans["num_logits"] = 1
        self._all_limits = np.zeros(max_num_seqs, np.int32)  # [max_num_seqs]: tokens of each that are ever computed

    def __len__(self) -> int:
        return len(self.sequences)

    @property
    def spans(self) -> NDArray[np.void]:
        """SPAN [n], of ``sequences``; a view."""
        return self._all_spans[: len(self.sequences)]

    @property
    def shape(self) -> StepShape:
        """Of a step of nothing else."""
        count = len(self.sequences)
        context_tokens = int(self.spans["start"].sum()) + count
        return StepShape(count, context_tokens, count, context_tokens)

    def join(self, sequence: Sequence) -> None:
        row = sequence.decode_row = len(self.sequences)
        self.sequences.append(sequence)
        self._all_spans["slot"][row] = sequence.slot
        self._all_spans["start"][row] = sequence.num_tokens - 1
        self._all_limits[row] = sequence.max_num_tokens - 1  # its last token is never computed

    def leave(self, sequence: Sequence) -> None:
        row, last = sequence.decode_row, self.sequences.pop()
        if last is not sequence:
            self.sequences[row] = last
            self._all_spans[row] = self._all_spans[last.decode_row]
            self._all_limits[row] = self._all_limits[last.decode_row]
            last.decode_row = row
        sequence.decode_row = NO_ROW

    def advance(self) -> list[Sequence]:
        """Take over the tokens that have been sampled since; the sequences that have filled a block by it."""
        spans = self.spans
        now = self._table.num_tokens[spans["slot"]] - 1
        filled = np.flatnonzero(now // KV_BLOCK_SIZE > spans["start"] // KV_BLOCK_SIZE)
        spans["start"] = now
        return [self.sequences[row] for row in filled.tolist()]

    def lacking_blocks(self, num_steps: int) -> NDArray[np.int32]:
        """The blocks, int32 [n], that each lacks to take ``num_steps`` steps, or as many as it has left."""
        spans, limits = self.spans, self._all_limits[: len(self.sequences)]
        ends = np.minimum(spans["start"] + num_steps, limits)
        return np.maximum(-(-ends // KV_BLOCK_SIZE) - self._table.num_blocks[spans["slot"]], 0)
