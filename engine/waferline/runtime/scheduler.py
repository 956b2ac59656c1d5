"""The scheduler: which rows the next step computes.

There is no prefill phase and no decode phase. Each sequence has tokens, and computed tokens that catch up with them; a
step gives every running sequence the rows it lacks: first all those that lack a single row, which are the streams that
wait for a token, then, by rank, chunks of those that lack more, as far as the step has room, and time where there
is a target for the time between two tokens. What waits is admitted in the waiting queue's order, while there is a slot
and there are KV blocks for all its tokens. A sequence waits while one that runs is about to compute the block that it
would begin with.

Running sequences are in the order of their rank: by priority, then by arrival. Where blocks run out the last of them is
preempted: it gives up its blocks, goes back to the queue as its tenant's first, and is computed again later. Where
something of a higher priority waits for a slot or for blocks, those of lower priorities are preempted for it, the last
one first; what is of its own priority never is, whatever its tenant.

Nothing can deadlock or run in circles. In every schedule the first of the running sequences advances, and only one of a
higher rank that comes to run can preempt it; so of the sequences that are run again and again, the first ends. When
none runs any more, whatever is first in the queue has all the blocks, and only sequences are taken that fit them alone.
Nor is one preempted without end: each time that takes a sequence of a higher rank, or itself, to need a block for a
token that it never had before, or one of a higher priority to arrive. Tokens are never lost, so a sequence is preempted
at most as often as those before it, and itself, have blocks in all, and as others of higher priorities come.

A schedule is made once in up to MAX_STEPS steps: sequences that only go on sampling need no Python between their tokens.
Nor does it cost time for each of them, but for what changes: see DecodeBatch. Where it is speculated, steps of nothing else
may have drafts as well, and are taken one at a time then: see Speculator.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Collection, Mapping
from itertools import takewhile

from waferline_kernels.sequences import ExecutorLimits, SequenceTable

from ..fabric.cost import CostModel, StepShape
from .decode_batch import DecodeBatch
from .drafter import SpeculativeConfig
from .kv_cache_manager import KVCacheManager, num_blocks
from .request import Request
from .sequence import NO_ROW, NO_SLOT, Sequence
from .speculation import Speculator
from .step_builder import LatencyTarget, ScheduledStep, StepBuilder
from .waiting_queue import WaitingQueue

MAX_STEPS = 128


class Scheduler:
    """Owns slots and KV blocks, and writes what the executor reads of a sequence: once when it is admitted, and its
    block table as it grows. Has no clock and no threads: a schedule follows from what was added and finished, and with
    ``itl_target_ms`` from what ``cost_model`` predicts, which learns from the seconds that steps are said to have taken.

    Raises ValueError for a target without a cost model, and for limits under which a step has no row for each sequence.
    """

    def __init__(
        self,
        limits: ExecutorLimits,
        table: SequenceTable,
        *,
        enable_prefix_caching: bool = True,
        cost_model: CostModel | None = None,
        itl_target_ms: float | None = None,
        tenant_weights: Mapping[str, float] | None = None,
        speculative_config: SpeculativeConfig | None = None,
    ) -> None:
        if limits.max_num_seqs > min(limits.max_num_batched_tokens, limits.max_num_logits):
            raise ValueError(
                f"max_num_seqs: {limits.max_num_seqs}, expected at most the rows ({limits.max_num_batched_tokens}) "
                f"and logits ({limits.max_num_logits}) of a step"
            )
        if itl_target_ms is not None and cost_model is None:
            raise ValueError(f"itl_target_ms: {itl_target_ms}, expected None without a cost model")
        self.waiting = WaitingQueue(tenant_weights)
        self.running: list[Sequence] = []  # by rank
        self.slots: list[Sequence | None] = [None] * limits.max_num_seqs
        self.kv_cache = KVCacheManager(limits, table, enable_prefix_caching)
        self.speculator = Speculator(speculative_config, limits, table) if speculative_config else None
        self.num_preemptions = 0
        self._limits = limits
        self._cost_model = cost_model
        self.target = LatencyTarget(cost_model, itl_target_ms) if cost_model and itl_target_ms else None
        self._decoding = DecodeBatch(limits.max_num_seqs, table)
        self._prefilling: list[Sequence] = []  # the other running ones, by rank
        self._table = table
        self._free_slots = list(reversed(range(limits.max_num_seqs)))
        self._finished: list[Sequence] = []
        self._begun: list[Request] = []

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
        return self.kv_cache.num_held(self._finished) / self._limits.num_kv_blocks

    def can_admit(self) -> bool:
        """Whether there are a slot and blocks for the first of the waiting sequences."""
        first = self.waiting.first
        return first is not None and bool(self._free_slots) and self.kv_cache.can_begin(first)

    @property
    def is_out_of_blocks(self) -> bool:
        """Whether there is a slot for the first of the waiting sequences, but not the blocks."""
        first = self.waiting.first
        return first is not None and bool(self._free_slots) and not self.kv_cache.can_begin(first)

    def add(self, sequence: Sequence) -> None:
        """Queue ``sequence``. Raises ValueError for one that would not fit the KV cache even alone."""
        needed = num_blocks(sequence.max_num_tokens - 1)  # the last token is never computed
        if needed > self._limits.num_kv_blocks:
            raise ValueError(f"sequence: needs {needed} KV blocks, expected at most {self._limits.num_kv_blocks}")
        self.waiting.add(sequence)

    def finish(self, sequence: Sequence, reason: str) -> None:
        """Let ``sequence`` take no further step. The run at hand may still use its slot and blocks: they return with
        the next schedule."""
        sequence.finish_reason = reason
        self.waiting.finish(sequence)
        if sequence.is_running:
            self._table.stop_flags[sequence.slot] = 1
            self._finished.append(sequence)

    def take_begun(self) -> list[Request]:
        """The requests of which something has been admitted for the first time since this was last asked."""
        begun, self._begun = self._begun, []
        return begun

    def schedule(self) -> ScheduledStep | None:
        """The next step, or None where no sequence is left. Not to be called while a step runs."""
        self._release_finished()
        has_preempted = self._grow_tables()
        if self._free_slots:
            self.waiting.settle()
        self._admit_urgent()
        step = StepBuilder(self._limits, self._decoding, self.target)
        for sequence in self._prefilling:
            step.add(sequence)
        while not has_preempted and step.has_room and self.can_admit():
            if self._first_is_being_cached():
                break
            step.add(self._admit_first())
        if not step.sequences:
            return None
        only_decodes = not self._prefilling and not self.can_admit()
        scheduled = step.build(self._reserve_ahead() if only_decodes else 1)
        if self.speculator is not None and only_decodes:
            self.speculator.plan(scheduled, self.target)
        return scheduled

    def update(
        self, step: ScheduledStep, num_steps: int, seconds: float = 0.0, gaps_ms: Collection[float] = ()
    ) -> None:
        """Record that ``step`` was taken ``num_steps`` times, in ``seconds``, and that its tokens have been appended.
        ``gaps_ms``: each time's milliseconds from when the step before it had ended."""
        if num_steps:
            self._learn(step, num_steps, seconds, gaps_ms)
            if self.speculator is not None and step.num_drafts:
                self.speculator.update(step, num_steps, seconds)
            for sequence in self._decoding.advance():
                self.kv_cache.cache_full_blocks(sequence)
            for sequence, count in step.chunks:
                sequence.num_computed_tokens += count
                self.kv_cache.cache_full_blocks(sequence)
                if sequence.num_computed_tokens == sequence.num_tokens - 1 and not sequence.is_finished:
                    self._prefilling.remove(sequence)
                    self._decoding.join(sequence)

    def _learn(self, step: ScheduledStep, num_steps: int, seconds: float, gaps_ms: Collection[float]) -> None:
        if self._cost_model is not None and seconds > 0:
            growth = step.num_decodes * (num_steps - 1) // 2  # of contexts, until the step in the middle
            shape = step.shape.plus(StepShape(0, growth, 0, growth))
            if self.target is not None and step.num_decodes:  # else nobody waited
                self.target.stalls.observe(self.target.predict_ms(shape), gaps_ms)
            num_rows, context_tokens, num_logits, kv_tokens = shape
            self._cost_model.observe(num_rows, context_tokens, num_logits, 1e3 * seconds / num_steps, kv_tokens)

    def _release_finished(self) -> None:
        if self._finished:
            for sequence in self._finished:
                self.running.remove(sequence)
                self._release(sequence)
            self._finished = []

    def _release(self, sequence: Sequence) -> None:
        if sequence.decode_row == NO_ROW:
            self._prefilling.remove(sequence)
        else:
            self._decoding.leave(sequence)
        self.kv_cache.release(sequence)
        self.slots[sequence.slot] = None
        self._free_slots.append(sequence.slot)
        sequence.slot = NO_SLOT

    def _first_is_being_cached(self) -> bool:
        first = self.waiting.first
        return first is not None and self.kv_cache.is_being_cached(first, self._prefilling)

    def _admit_urgent(self) -> None:
        """Let what waits run in the place of what is of a lower priority, the last in rank first."""
        while (first := self.waiting.first) is not None and not self._first_is_being_cached():
            lower = [*takewhile(lambda running: running.rank[0] > first.rank[0], reversed(self.running))]
            if not lower or not self.kv_cache.can_begin(first, lower):
                return
            while not self.can_admit():
                self._preempt(self.running.pop())
            self._admit_first()

    def _admit_first(self) -> Sequence:
        """Let the first that waits run: in a slot, with blocks for all its tokens."""
        sequence = self.waiting.pop()
        if not sequence.request.has_begun:
            self._begun.append(sequence.request)
        insort(self.running, sequence, key=_rank)
        insort(self._prefilling, sequence, key=_rank)
        slot = sequence.slot = self._free_slots.pop()
        self.slots[slot] = sequence
        table = self._table
        sequence.write_tokens(table.tokens[slot])
        table.num_tokens[slot] = sequence.num_tokens
        table.sampling[slot] = sequence.sampling
        if sequence.request.constraints is not None:
            sequence.request.constraints.write(table, slot)
        table.stop_flags[slot] = 0
        self.kv_cache.begin(sequence)
        self.waiting.charge(sequence)
        return sequence

    def _grow_tables(self) -> bool:
        """Give every sequence that decodes, by rank, a block for its next row; whether that took a preemption. One
        that lacks more rows has had blocks for all of them since it was admitted."""
        before = self.num_preemptions
        rows = self._decoding.lacking_blocks(1).nonzero()[0].tolist()
        if not rows:
            return False
        lacking = {self._decoding.sequences[row] for row in rows}
        for sequence in [sequence for sequence in self.running if sequence in lacking]:
            while sequence.is_running and not self.kv_cache.block_pool.num_free:
                self._preempt(self.running.pop())
            if sequence.is_running:
                self.kv_cache.reserve(sequence, sequence.num_tokens)
        return self.num_preemptions > before

    def _preempt(self, sequence: Sequence) -> None:
        self._release(sequence)
        self.waiting.put_back(sequence)
        self.num_preemptions += 1

    def _reserve_ahead(self) -> int:
        """Reserve blocks for as many further steps as the free ones allow; the number of steps in all."""
        max_steps = MAX_STEPS
        while max_steps > 1:
            lacking = self._decoding.lacking_blocks(max_steps)
            if lacking.sum() <= self.kv_cache.block_pool.num_free:
                rows = lacking.nonzero()[0]
                if len(rows):
                    sequences = [self._decoding.sequences[row] for row in rows.tolist()]
                    self.kv_cache.extend(sequences, lacking[rows].tolist())
                break
            max_steps //= 2
        return max_steps


def _rank(sequence: Sequence) -> tuple[int, int]:
    return sequence.rank
