"""The scheduler: which rows the next step computes.

There is no prefill phase and no decode phase. Each sequence has tokens, and computed tokens that catch up with them; a
step gives every running sequence the rows it lacks, as far as the step has room: first those that lack a single row,
then, oldest first, chunks of those that lack more. What waits is admitted first come, first served, while there is a
slot and there are KV blocks for all its tokens.

Full blocks are cached as they become computed, and a sequence begins with those that are cached of its tokens, be it a
conversation's next turn, a shared system prompt, another completion of the same prompt, or itself before it was
preempted. Its last token is always computed, for its logits. A sequence waits while one that runs is about to compute
the block that it would begin with.

Running sequences are in the order of their arrival, and each is older than any that waits. Where blocks run out the
youngest one is preempted: it gives up its blocks, goes to the front of the waiting ones, and is computed again later.
So the oldest always advances, and as a sequence is only taken that fits the whole KV cache alone, every one ends.

A schedule costs time for each sequence that it runs, and is made once in up to MAX_STEPS steps: sequences that only go
on sampling need no Python between their tokens.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from waferline_kernels.sequences import KV_BLOCK_SIZE, SPAN, ExecutorLimits, SequenceTable

from .block_hash import extend_block_hashes
from .block_pool import BlockPool
from .sequence import NO_SLOT, Sequence

MAX_STEPS = 32


@dataclass
class ScheduledStep:
    """What to run: ``batch`` (SPAN [n]) up to ``max_steps`` times, each time with the tokens just sampled."""

    batch: NDArray[np.void]
    max_steps: int
    sequences: list[Sequence]  # [n], of the batch's spans


class Scheduler:
    """Owns slots and KV blocks, and writes what the executor reads of a sequence: once when it is admitted, and its
    block table as it grows. Has no clock and no threads: a schedule follows from what was added and finished alone.
    """

    def __init__(self, limits: ExecutorLimits, table: SequenceTable, *, enable_prefix_caching: bool = True) -> None:
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.slots: list[Sequence | None] = [None] * limits.max_num_seqs
        self.block_pool = BlockPool(limits.num_kv_blocks)
        self.num_preemptions = 0
        self.num_prefix_cache_queries = 0  # tokens
        self.num_prefix_cache_hits = 0  # tokens
        self._enable_prefix_caching = enable_prefix_caching
        self._limits = limits
        self._table = table
        self._free_slots = list(reversed(range(limits.max_num_seqs)))
        self._finished: list[Sequence] = []

    @property
    def has_work(self) -> bool:
        """Whether ``schedule`` has anything to do: rows to find, or slots and blocks to take back."""
        return bool(self.waiting or self.running)

    @property
    def num_running(self) -> int:
        return len(self.running) - len(self._finished)

    @property
    def kv_cache_usage(self) -> float:
        """The share of KV blocks, 0 to 1, that sequences hold which are not finished."""
        held = {block_id for sequence in self.running if not sequence.is_finished for block_id in sequence.block_ids}
        return len(held) / self.block_pool.num_blocks

    def can_admit(self) -> bool:
        """Whether there are a slot and blocks for the first of the waiting sequences."""
        if not (self.waiting and self._free_slots):
            return False
        sequence = self.waiting[0]
        cached = self.block_pool.find(self._reusable_hashes(sequence))
        return self.block_pool.can_allocate(num_blocks(sequence.num_tokens) - len(cached), cached)

    def add(self, sequence: Sequence) -> None:
        """Queue ``sequence``. Raises ValueError for one that would not fit the KV cache even alone."""
        needed = num_blocks(sequence.max_num_tokens - 1)  # the last token is never computed
        if needed > self.block_pool.num_blocks:
            raise ValueError(f"sequence: needs {needed} KV blocks, expected at most {self.block_pool.num_blocks}")
        self.waiting.append(sequence)

    def finish(self, sequence: Sequence, reason: str) -> None:
        """Let ``sequence`` take no further step. The run at hand may still use its slot and blocks: they return with
        the next schedule."""
        sequence.finish_reason = reason
        if sequence.is_running:
            self._table.stop_flags[sequence.slot] = 1
            self._finished.append(sequence)
        else:
            self.waiting.remove(sequence)

    def schedule(self) -> ScheduledStep | None:
        """The next step, or None where no sequence is left. Not to be called while a step runs."""
        self._release_finished()
        step = _StepBuilder(self._limits)
        has_preempted = self._grow_tables()
        for sequence in self.running:
            if sequence.num_tokens - sequence.num_computed_tokens == 1:
                step.add(sequence)
        for sequence in self.running:
            if sequence.num_tokens - sequence.num_computed_tokens > 1:
                step.add(sequence)
        while not has_preempted and step.has_room and self.can_admit() and not self._is_being_cached(self.waiting[0]):
            self._admit(self.waiting[0])
            step.add(self.running[-1])
        if not step.sequences:
            return None
        max_steps = 1
        if len(step.sequences) == len(self.running) and step.samples_all and not self.can_admit():
            max_steps = self._reserve_ahead(step)
        return ScheduledStep(np.array(step.spans, SPAN), max_steps, step.sequences)

    def update(self, step: ScheduledStep, num_steps: int) -> None:
        """Record that ``step`` was taken ``num_steps`` times, and that its tokens have been appended."""
        if num_steps:
            for sequence, count in zip(step.sequences, step.batch["count"].tolist(), strict=True):
                sequence.num_computed_tokens += count + num_steps - 1
                if self._enable_prefix_caching:
                    self._cache_blocks(sequence)

    def _cache_blocks(self, sequence: Sequence) -> None:
        """Let others find the blocks of ``sequence`` that have become full; none with a token beyond its end."""
        num_full = min(sequence.num_computed_tokens, sequence.num_tokens) // KV_BLOCK_SIZE
        if num_full > sequence.num_cached_blocks:
            extend_block_hashes(sequence.block_hashes, sequence.token_ids, sequence.request.cache_salt, num_full)
            for at in range(sequence.num_cached_blocks, num_full):
                self.block_pool.cache(sequence.block_ids[at], sequence.block_hashes[at])
            sequence.num_cached_blocks = num_full

    def _reads_cache(self, sequence: Sequence) -> bool:
        return self._enable_prefix_caching and sequence.may_skip_rows

    def _reusable_hashes(self, sequence: Sequence) -> list[bytes]:
        """Of the blocks that waiting ``sequence`` need not compute where they are cached. Its last token is not among
        them: its logits are needed."""
        count = (sequence.num_tokens - 1) // KV_BLOCK_SIZE if self._reads_cache(sequence) else 0
        return sequence.block_hashes[:count]

    def _is_being_cached(self, sequence: Sequence) -> bool:
        """Whether a running sequence is about to compute the first block that waiting ``sequence`` lacks."""
        hashes = self._reusable_hashes(sequence)
        missing = hashes[len(self.block_pool.find(hashes)) :]
        if not missing:
            return False
        return any(missing[0] in other.block_hashes[other.num_cached_blocks :] for other in self.running)

    def _release_finished(self) -> None:
        if self._finished:
            self.running = [sequence for sequence in self.running if not sequence.is_finished]
            for sequence in self._finished:
                self._release(sequence)
            self._finished = []

    def _release(self, sequence: Sequence) -> None:
        self.block_pool.free(reversed(sequence.block_ids))
        self.slots[sequence.slot] = None
        self._free_slots.append(sequence.slot)
        sequence.block_ids, sequence.slot = [], NO_SLOT
        sequence.num_computed_tokens = sequence.num_cached_blocks = 0

    def _admit(self, sequence: Sequence) -> None:
        """Move the first waiting ``sequence`` to a slot, with blocks for all its tokens: cached ones, then new ones."""
        self.running.append(self.waiting.popleft())
        slot = sequence.slot = self._free_slots.pop()
        self.slots[slot] = sequence
        table = self._table
        table.tokens[slot, : sequence.num_tokens] = sequence.token_ids
        table.num_tokens[slot] = sequence.num_tokens
        table.sampling[slot] = sequence.sampling
        if sequence.request.constraints is not None:
            sequence.request.constraints.write(table, slot)
        table.stop_flags[slot] = 0
        self._begin_with_cached_blocks(sequence)
        self._reserve(sequence, sequence.num_tokens)

    def _begin_with_cached_blocks(self, sequence: Sequence) -> None:
        cached = self.block_pool.find(self._reusable_hashes(sequence))
        self.block_pool.share(cached)
        self._extend_table(sequence, cached)
        sequence.num_cached_blocks = len(cached)
        sequence.num_computed_tokens = len(cached) * KV_BLOCK_SIZE
        if sequence.num_cached_tokens is None:  # not again after a preemption
            sequence.num_cached_tokens = sequence.num_computed_tokens
            if self._reads_cache(sequence):
                self.num_prefix_cache_queries += sequence.num_tokens
                self.num_prefix_cache_hits += sequence.num_computed_tokens

    def _grow_tables(self) -> bool:
        """Give every running sequence, oldest first, blocks for all its tokens; whether that took a preemption."""
        before = self.num_preemptions
        at = 0
        while at < len(self.running):  # preemption takes from the end
            sequence = self.running[at]
            needed = num_blocks(sequence.num_tokens) - len(sequence.block_ids)
            while needed > self.block_pool.num_free and sequence.is_running:
                self._preempt(self.running.pop())
            if sequence.is_running:
                self._reserve(sequence, sequence.num_tokens)
            at += 1
        return self.num_preemptions > before

    def _preempt(self, sequence: Sequence) -> None:
        self._release(sequence)
        self.waiting.appendleft(sequence)
        self.num_preemptions += 1

    def _reserve_ahead(self, step: _StepBuilder) -> int:
        """Reserve blocks for as many further steps as the free ones allow; the number of steps in all."""
        max_steps = MAX_STEPS
        while max_steps > 1:
            ends = [min(s.num_tokens + max_steps, s.max_num_tokens) - 1 for s in step.sequences]
            needed = sum(
                max(0, num_blocks(end) - len(s.block_ids)) for s, end in zip(step.sequences, ends, strict=True)
            )
            if needed <= self.block_pool.num_free:
                for sequence, end in zip(step.sequences, ends, strict=True):
                    self._reserve(sequence, end)
                break
            max_steps //= 2
        return max_steps

    def _reserve(self, sequence: Sequence, num_tokens: int) -> None:
        """Extend the block table of ``sequence`` to ``num_tokens`` positions, for which there are free blocks."""
        lacking = num_blocks(num_tokens) - len(sequence.block_ids)
        if lacking > 0:
            self._extend_table(sequence, self.block_pool.allocate(lacking))

    def _extend_table(self, sequence: Sequence, block_ids: list[int]) -> None:
        held = len(sequence.block_ids)
        sequence.block_ids += block_ids
        self._table.block_tables[sequence.slot, held : len(sequence.block_ids)] = block_ids
        self._table.num_blocks[sequence.slot] = len(sequence.block_ids)


class _StepBuilder:
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


def num_blocks(num_tokens: int) -> int:
    """Blocks that hold ``num_tokens`` tokens."""
    return -(-num_tokens // KV_BLOCK_SIZE)
