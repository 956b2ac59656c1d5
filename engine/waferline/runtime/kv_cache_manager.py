"""The KV cache as the scheduler sees it: which blocks each sequence holds, and which of its tokens need no computing.

Full blocks are cached as they become computed, and a sequence begins with those that are cached of its tokens, be it a
conversation's next turn, a shared system prompt, another completion of the same prompt, or itself before it was
preempted. Its last token is always computed, for its logits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable

import numpy as np

from waferline_kernels.sequences import KV_BLOCK_SIZE, ExecutorLimits, SequenceTable

from .block_hash import extend_block_hashes
from .block_pool import BlockPool
from .sequence import Sequence


class KVCacheManager:
    """Owns the KV blocks, and writes the block tables that the executor reads."""

    def __init__(self, limits: ExecutorLimits, table: SequenceTable, enable_prefix_caching: bool) -> None:
        self.block_pool = BlockPool(limits.num_kv_blocks)
        self.enable_prefix_caching = enable_prefix_caching
        self.num_prefix_cache_queries = 0  # tokens
        self.num_prefix_cache_hits = 0  # tokens
        self._table = table

    def find_cached(self, sequence: Sequence) -> list[int]:
        """The blocks that waiting ``sequence`` would begin with."""
        return self.block_pool.find(self._reusable_hashes(sequence))

    def can_begin(self, sequence: Sequence, without: Collection[Sequence] = ()) -> bool:
        """Whether there are blocks for all tokens of waiting ``sequence``, or would be without some that run."""
        held = _held_by(without)
        num_shared = sum(
            self.block_pool.num_holders(cached) > held.get(cached, 0) for cached in self.find_cached(sequence)
        )
        return num_blocks(sequence.num_tokens) - num_shared <= self.block_pool.num_blocks - self.num_held(without)

    def is_being_cached(self, sequence: Sequence, prefilling: Iterable[Sequence]) -> bool:
        """Whether one of ``prefilling`` is about to compute the first block that waiting ``sequence`` lacks. One of a
        lower priority does not count: others may go before it."""
        hashes = self._reusable_hashes(sequence)
        missing = hashes[len(self.block_pool.find(hashes)) :]
        if not missing:
            return False
        return any(
            other.rank[0] <= sequence.rank[0] and missing[0] in other.block_hashes[other.num_cached_blocks :]
            for other in prefilling
        )

    def begin(self, sequence: Sequence) -> None:
        """Give ``sequence``, which has just got a slot, blocks for all its tokens: cached ones, then new ones."""
        cached = self.find_cached(sequence)
        self.block_pool.share(cached)
        self._extend_table(sequence, cached)
        sequence.num_cached_blocks = len(cached)
        sequence.num_computed_tokens = len(cached) * KV_BLOCK_SIZE
        if sequence.num_cached_tokens is None:  # not again after a preemption
            sequence.num_cached_tokens = sequence.num_computed_tokens
            if self._reads_cache(sequence):
                self.num_prefix_cache_queries += sequence.num_tokens
                self.num_prefix_cache_hits += sequence.num_computed_tokens
        self.reserve(sequence, sequence.num_tokens)

    def reserve(self, sequence: Sequence, num_tokens: int) -> None:
        """Extend the block table of ``sequence`` to ``num_tokens`` positions, for which there are free blocks."""
        lacking = num_blocks(num_tokens) - len(sequence.block_ids)
        if lacking > 0:
            self._extend_table(sequence, self.block_pool.allocate(lacking))

    def extend(self, sequences: list[Sequence], counts: list[int]) -> None:
        """Extend the block tables of ``sequences`` by so many blocks each, which are free."""
        new_ids = self.block_pool.allocate(sum(counts))
        slots = [sequence.slot for sequence in sequences]
        columns: list[int] = []
        at = 0
        for sequence, count in zip(sequences, counts, strict=True):
            held = len(sequence.block_ids)
            sequence.block_ids += new_ids[at : at + count]
            columns += range(held, held + count)
            at += count
        self._table.block_tables[np.repeat(slots, counts), columns] = new_ids
        self._table.num_blocks[slots] += np.array(counts, np.int32)

    def num_held(self, without: Iterable[Sequence]) -> int:
        """The blocks that others hold than ``without``, which have not released theirs yet."""
        pool = self.block_pool
        num_returning = sum(pool.num_holders(block_id) == count for block_id, count in _held_by(without).items())
        return pool.num_blocks - pool.num_free - num_returning

    def cache_full_blocks(self, sequence: Sequence) -> None:
        """Let others find the blocks of ``sequence`` that have become full; none with a token beyond its end."""
        num_full = min(sequence.num_computed_tokens, sequence.num_tokens) // KV_BLOCK_SIZE
        if self.enable_prefix_caching and num_full > sequence.num_cached_blocks:
            extend_block_hashes(sequence.block_hashes, sequence.token_ids, sequence.request.cache_salt, num_full)
            full = slice(sequence.num_cached_blocks, num_full)
            self.block_pool.cache(sequence.block_ids[full], sequence.block_hashes[full])
            sequence.num_cached_blocks = num_full

    def release(self, sequence: Sequence) -> None:
        """Take back the blocks of ``sequence``, none of whose tokens counts as computed then."""
        self.block_pool.free(reversed(sequence.block_ids))
        sequence.block_ids = []
        sequence.num_computed_tokens = sequence.num_cached_blocks = 0

    def _reads_cache(self, sequence: Sequence) -> bool:
        return self.enable_prefix_caching and sequence.may_skip_rows

    def _reusable_hashes(self, sequence: Sequence) -> list[bytes]:
        """Of the blocks that waiting ``sequence`` need not compute where they are cached. Its last token is not among
        them: its logits are needed."""
        count = (sequence.num_tokens - 1) // KV_BLOCK_SIZE if self._reads_cache(sequence) else 0
        return sequence.block_hashes[:count]

    def _extend_table(self, sequence: Sequence, block_ids: list[int]) -> None:
        held = len(sequence.block_ids)
        sequence.block_ids += block_ids
        self._table.block_tables[sequence.slot, held : len(sequence.block_ids)] = block_ids
        self._table.num_blocks[sequence.slot] = len(sequence.block_ids)


def _held_by(sequences: Iterable[Sequence]) -> Counter[int]:
    """How often they hold each block."""
    return Counter(block_id for sequence in sequences for block_id in sequence.block_ids)


def num_blocks(num_tokens: int) -> int:
    """Blocks that hold ``num_tokens`` tokens."""
    return -(-num_tokens // KV_BLOCK_SIZE)
