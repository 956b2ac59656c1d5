"""The scheduler: which rows the next step computes.

There is no prefill phase and no decode phase. Each sequence has tokens, and computed tokens that catch up with them; a
step gives every running sequence the rows it lacks, as far as the step has room: first those that lack a single row,
then, oldest first, chunks of those that lack more. What waits is admitted first come, first served, while there is a
slot and there are KV blocks for all its tokens. A sequence waits while one that runs is about to compute the block that
it would begin with.

Running sequences are in the order of their arrival, and each is older than any that waits. Where blocks run out the
youngest one is preempted: it gives up its blocks, goes to the front of the waiting ones, and is computed again later.
So the oldest always advances, and as a sequence is only taken that fits the whole KV cache alone, every one ends.

A schedule costs time for each sequence that it runs, and is made once in up to MAX_STEPS steps: sequences that only go
on sampling need no Python between their tokens.
"""

from __future__ import annotations

from collections import deque

from waferline_kernels.sequences import ExecutorLimits, SequenceTable

from ..fabric.cost import CostModel
from .kv_cache_manager import KVCacheManager, num_blocks
from .sequence import NO_SLOT, Sequence
from .step_builder import ScheduledStep, StepBuilder

MAX_STEPS = 32


class Scheduler:
    """Owns slots and KV blocks, and writes what the executor reads of a sequence: once when it is admitted, and its
    block table as it grows. Has no clock and no threads: a schedule follows from what was added and finished alone.
    """

    def __init__(
        self,
        limits: ExecutorLimits,
        table: SequenceTable,
        *,
        enable_prefix_caching: bool = True,
        cost_model: CostModel | None = None,
        itl_target_ms: float | None = None,
    ) -> None:
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.slots: list[Sequence | None] = [None] * limits.max_num_seqs
        self.kv_cache = KVCacheManager(limits, table, enable_prefix_caching)
        self.num_preemptions = 0
        self._limits = limits
        self._cost_model = cost_model
        self._itl_target_ms = itl_target_ms
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
        return len(held) / self._limits.num_kv_blocks

    def can_admit(self) -> bool:
        """Whether there are a slot and blocks for the first of the waiting sequences."""
        return bool(self.waiting and self._free_slots) and self.kv_cache.can_begin(self.waiting[0])

    def add(self, sequence: Sequence) -> None:
        """Queue ``sequence``. Raises ValueError for one that would not fit the KV cache even alone."""
        needed = num_blocks(sequence.max_num_tokens - 1)  # the last token is never computed
        if needed > self._limits.num_kv_blocks:
            raise ValueError(f"sequence: needs {needed} KV blocks, expected at most {self._limits.num_kv_blocks}")
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
        step = StepBuilder(self._limits)
        has_preempted = self._grow_tables()
        for sequence in self.running:
            if sequence.num_tokens - sequence.num_computed_tokens == 1:
                step.add(sequence)
        for sequence in self.running:
            if sequence.num_tokens - sequence.num_computed_tokens > 1:
                step.add(sequence)
        while not has_preempted and step.has_room and self.can_admit():
            if self.kv_cache.is_being_cached(self.waiting[0], self.running):
                break
            self._admit(self.waiting.popleft())
            step.add(self.running[-1])
        if not step.sequences:
            return None
        max_steps = 1
        if len(step.sequences) == len(self.running) and step.samples_all and not self.can_admit():
            max_steps = self._reserve_ahead(step.sequences)
        return step.build(max_steps)

    def update(self, step: ScheduledStep, num_steps: int, seconds: float = 0.0) -> None:
        """Record that ``step`` was taken ``num_steps`` times, in ``seconds``, and that its tokens have been appended."""
        if num_steps:
            for sequence, count in zip(step.sequences, step.batch["count"].tolist(), strict=True):
                sequence.num_computed_tokens += count + num_steps - 1
                self.kv_cache.cache_full_blocks(sequence)

    def _release_finished(self) -> None:
        if self._finished:
            self.running = [sequence for sequence in self.running if not sequence.is_finished]
            for sequence in self._finished:
                self._release(sequence)
            self._finished = []

    def _release(self, sequence: Sequence) -> None:
        self.kv_cache.release(sequence)
        self.slots[sequence.slot] = None
        self._free_slots.append(sequence.slot)
        sequence.slot = NO_SLOT

    def _admit(self, sequence: Sequence) -> None:
        """Let ``sequence``, which waited, run: in a slot, with blocks for all its tokens."""
        self.running.append(sequence)
        slot = sequence.slot = self._free_slots.pop()
        self.slots[slot] = sequence
        table = self._table
        table.tokens[slot, : sequence.num_tokens] = sequence.token_ids
        table.num_tokens[slot] = sequence.num_tokens
        table.sampling[slot] = sequence.sampling
        if sequence.request.constraints is not None:
            sequence.request.constraints.write(table, slot)
        table.stop_flags[slot] = 0
        self.kv_cache.begin(sequence)

    def _grow_tables(self) -> bool:
        """Give every running sequence, oldest first, blocks for all its tokens; whether that took a preemption."""
        before = self.num_preemptions
        at = 0
        while at < len(self.running):  # preemption takes from the end
            sequence = self.running[at]
            while sequence.is_running and not self.kv_cache.can_reserve(sequence, sequence.num_tokens):
                self._preempt(self.running.pop())
            if sequence.is_running:
                self.kv_cache.reserve(sequence, sequence.num_tokens)
            at += 1
        return self.num_preemptions > before

    def _preempt(self, sequence: Sequence) -> None:
        self._release(sequence)
        self.waiting.appendleft(sequence)
        self.num_preemptions += 1

    def _reserve_ahead(self, sequences: list[Sequence]) -> int:
        """Reserve blocks for as many further steps as the free ones allow; the number of steps in all."""
        max_steps = MAX_STEPS
        while max_steps > 1:
            ends = [min(s.num_tokens + max_steps, s.max_num_tokens) - 1 for s in sequences]
            needed = sum(max(0, num_blocks(end) - len(s.block_ids)) for s, end in zip(sequences, ends, strict=True))
            if needed <= self.kv_cache.block_pool.num_free:
                for sequence, end in zip(sequences, ends, strict=True):
                    self.kv_cache.reserve(sequence, end)
                break
            max_steps //= 2
        return max_steps
