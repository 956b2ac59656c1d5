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
        self._slots, self._starts = self._all_spans["slot"], self._all_spans["start"]  # views, [max_num_seqs]
        self._limits = np.zeros(max_num_seqs, np.int32)  # [max_num_seqs]: tokens of each that are ever computed

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
        context_tokens = int(self._starts[:count].sum()) + count
        return StepShape(count, context_tokens, count, context_tokens)

    def join(self, sequence: Sequence) -> None:
        row = sequence.decode_row = len(self.sequences)
        self.sequences.append(sequence)
        self._slots[row] = sequence.slot
        self._starts[row] = sequence.num_tokens - 1
        self._limits[row] = sequence.max_num_tokens - 1  # its last token is never computed

    def leave(self, sequence: Sequence) -> None:
        row, last = sequence.decode_row, self.sequences.pop()
        if last is not sequence:
            self.sequences[row] = last
            self._all_spans[row] = self._all_spans[last.decode_row]
            self._limits[row] = self._limits[last.decode_row]
            last.decode_row = row
        sequence.decode_row = NO_ROW

    def advance(self) -> list[Sequence]:
        """Take over the tokens that have been sampled since; the sequences that have filled a block by it."""
        count = len(self.sequences)
        before = self._starts[:count]
        now = self._table.num_tokens[self._slots[:count]] - 1
        filled = (now // KV_BLOCK_SIZE - before // KV_BLOCK_SIZE).nonzero()[0]
        before[:] = now
        return [self.sequences[row] for row in filled.tolist()]

    def lacking_blocks(self, num_steps: int) -> NDArray[np.int32]:
        """The blocks, int32 [n], that each lacks to take ``num_steps`` steps, or as many as it has left."""
        count = len(self.sequences)
        lacking = np.minimum(self._starts[:count] + num_steps, self._limits[:count])
        lacking += KV_BLOCK_SIZE - 1
        lacking //= KV_BLOCK_SIZE
        lacking -= self._table.num_blocks[self._slots[:count]]
        return np.maximum(lacking, 0, out=lacking)
