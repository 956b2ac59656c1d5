"""What must hold of a scheduler's KV blocks between steps: none leaked, lost, or shared by mistake."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np
from scripted import ScriptedExecutor, kv_of

from waferline.runtime.block_hash import extend_block_hashes
from waferline.runtime.block_pool import BlockPool
from waferline.runtime.kv_cache_manager import num_blocks
from waferline.runtime.scheduler import Scheduler
from waferline.runtime.sequence import NO_ROW, Sequence
from waferline_kernels.sequences import KV_BLOCK_SIZE


def check_pool(pool: BlockPool, held: Iterable[int]) -> None:
    """``held`` names each block as often as it is held: every other one is free, and can be found or is blank."""
    holders = Counter(held)
    assert pool._num_holders == [holders[block_id] for block_id in range(pool.num_blocks)]
    assert sorted([*holders, *pool._blank, *pool._evictable]) == list(range(pool.num_blocks))
    hashes = dict(enumerate(pool._hashes))
    assert pool._cached == {block_hash: block_id for block_id, block_hash in hashes.items() if block_hash is not None}
    assert pool._evictable == {block_id: hashes[block_id] for block_id in pool._evictable}
    assert None not in pool._evictable.values()
    assert {hashes[block_id] for block_id in pool._blank} <= {None}


def check_blocks(scheduler: Scheduler) -> None:
    """The running sequences hold their blocks, each once, and share only what is full, computed and the same."""
    running, waiting, pool = scheduler.running, scheduler.waiting, scheduler.kv_cache.block_pool
    check_pool(pool, [block_id for sequence in running for block_id in sequence.block_ids])
    prefixes = {}
    for sequence in running:
        assert scheduler.slots[sequence.slot] is sequence
        assert len(set(sequence.block_ids)) == len(sequence.block_ids)
        table = scheduler._table.block_tables[sequence.slot, : len(sequence.block_ids)]
        assert table.tolist() == sequence.block_ids
        assert scheduler._table.num_blocks[sequence.slot] == len(sequence.block_ids)
        assert sequence.num_cached_blocks * KV_BLOCK_SIZE <= sequence.num_computed_tokens
        for at, block_id in enumerate(sequence.block_ids):
            if pool._num_holders[block_id] > 1:
                assert at < sequence.num_cached_blocks
                prefix = sequence.request.cache_salt, sequence.token_ids[: (at + 1) * KV_BLOCK_SIZE]
                assert prefixes.setdefault(block_id, prefix) == prefix
    assert not any(sequence.block_ids or sequence.is_running or sequence.num_cached_blocks for sequence in waiting)


def check_decode_batch(scheduler: Scheduler) -> None:
    """What is kept of the running sequences from step to step is what would be worked out afresh."""
    decoding, prefilling = scheduler._decoding, scheduler._prefilling
    assert {*decoding.sequences, *prefilling} == {*scheduler.running}
    assert len(decoding) + len(prefilling) == len(scheduler.running)
    assert prefilling == [sequence for sequence in scheduler.running if sequence in prefilling]
    for row, (sequence, span) in enumerate(zip(decoding.sequences, decoding.spans.tolist(), strict=True)):
        assert sequence.decode_row == row
        assert decoding._limits[row] == sequence.max_num_tokens - 1
        if not sequence.is_finished:
            assert scheduler._table.num_tokens[sequence.slot] == sequence.num_tokens
            assert span == (sequence.slot, sequence.num_computed_tokens, 1, 1)
            assert sequence.num_computed_tokens == sequence.num_tokens - 1
            if scheduler.kv_cache.enable_prefix_caching:
                assert sequence.num_cached_blocks == sequence.num_computed_tokens // KV_BLOCK_SIZE
    starts = decoding.spans["start"]
    assert decoding.shape == (len(starts), sum(starts + 1), len(starts), sum(starts + 1))
    for num_steps in (1, 20):
        ends = [
            min(start + num_steps, s.max_num_tokens - 1) for s, start in zip(decoding.sequences, starts, strict=True)
        ]
        lacking = [max(0, num_blocks(end) - len(s.block_ids)) for s, end in zip(decoding.sequences, ends, strict=True)]
        assert decoding.lacking_blocks(num_steps).tolist() == lacking
    assert all(sequence.decode_row == NO_ROW for sequence in [*prefilling, *scheduler.waiting])


def check_contents(scheduler: Scheduler, executor: ScriptedExecutor, all_sequences: Iterable[Sequence]) -> None:
    """Computed tokens are in their sequence's blocks, and each cached block holds the tokens of its hash.

    ``all_sequences``: all that ever ran.
    """
    for sequence in scheduler.running:
        count = min(sequence.num_computed_tokens, sequence.num_tokens)
        positions = np.arange(count)
        at = np.array(sequence.block_ids, int)[positions // KV_BLOCK_SIZE], positions % KV_BLOCK_SIZE
        assert (executor.kv[at] == kv_of(np.array(sequence.token_ids[:count], np.int32), positions)).all()
    contents = {}
    for sequence in all_sequences:
        hashes: list[bytes] = []
        count = sequence.num_tokens // KV_BLOCK_SIZE
        extend_block_hashes(hashes, sequence.token_ids, sequence.request.cache_salt, count)
        positions = np.arange(count * KV_BLOCK_SIZE)
        kv = kv_of(np.array(sequence.token_ids[: len(positions)], np.int32), positions)
        contents.update(zip(hashes, kv.reshape(count, KV_BLOCK_SIZE), strict=True))
    for block_hash, block_id in scheduler.kv_cache.block_pool._cached.items():
        assert (executor.kv[block_id] == contents[block_hash]).all()
