from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from invariants import check_pool

from waferline.runtime.block_pool import BlockPool

HASHES = [bytes([number]) for number in range(12)]


class BlockPoolMachine(RuleBasedStateMachine):
    @initialize(num_blocks=st.integers(1, 20))
    def start(self, num_blocks: int) -> None:
        self.pool = BlockPool(num_blocks)
        self.held: Counter[int] = Counter()
        self.contents: dict[int, bytes] = {}  # of the blocks that can be found, or could until they were evicted

    @rule(count=st.integers(-1, 22))
    def allocate(self, count: int) -> None:
        if not 0 <= count <= self.pool.num_free:
            with pytest.raises(ValueError, match="count"):
                self.pool.allocate(count)
            return
        num_blank = self.pool.num_free - sum(not self.held[block_id] for block_id in self.contents)
        block_ids = self.pool.allocate(count)
        assert len(set(block_ids)) == count
        assert not self.held.keys() & set(block_ids)
        evicted = [block_id for block_id in block_ids if self.contents.pop(block_id, None)]
        assert len(evicted) == max(0, count - num_blank), "blank ones first"
        self.held.update(block_ids)

    @rule(data=st.data(), block_hash=st.sampled_from(HASHES))
    def cache(self, data: st.DataObject, block_hash: bytes) -> None:
        if self.held:
            block_id = data.draw(st.sampled_from(sorted(self.held)))
            self.pool.cache([block_id], [block_hash])
            if block_hash not in self.contents.values():
                self.contents.setdefault(block_id, block_hash)

    @rule(hashes=st.lists(st.sampled_from(HASHES), unique=True, max_size=4))
    def share(self, hashes: list[bytes]) -> None:
        found = self.pool.find(hashes)
        assert [self.contents[block_id] for block_id in found] == hashes[: len(found)]
        assert len(found) == len(hashes) or hashes[len(found)] not in self.contents.values()
        self.pool.share(found)
        self.held.update(found)

    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        block_ids = data.draw(st.lists(st.sampled_from(sorted(self.held)), unique=True)) if self.held else []
        self.pool.free(block_ids)
        self.held -= Counter(block_ids)

    @rule(block_id=st.integers(-1, 21))
    def use_what_is_not_allocated(self, block_id: int) -> None:
        if block_id not in self.held:
            with pytest.raises(ValueError, match=f"block_ids: {block_id} is not allocated"):
                self.pool.free([block_id])
            with pytest.raises(ValueError, match=f"block_ids: {block_id} is not allocated"):
                self.pool.cache([block_id], HASHES[:1])

    @invariant()
    def no_block_is_lost(self) -> None:
        check_pool(self.pool, self.held.elements())
        assert self.pool.num_free == self.pool.num_blocks - len(self.held)
        assert self.pool._cached == {block_hash: block_id for block_id, block_hash in self.contents.items()}


BlockPoolMachine.TestCase.settings = settings(max_examples=50, deadline=None)
TestBlockPool = BlockPoolMachine.TestCase


def test_a_pool_has_blocks() -> None:
    with pytest.raises(ValueError, match="num_blocks: 0, expected at least 1"):
        BlockPool(0)


def test_the_blank_block_returned_last_is_handed_out_first() -> None:
    pool = BlockPool(4)
    assert pool.allocate(3) == [0, 1, 2]
    pool.free([1])
    assert pool.allocate(2) == [1, 3]


def test_the_cached_block_that_was_returned_longest_ago_is_evicted_first() -> None:
    pool = BlockPool(3)
    for block_id in pool.allocate(3):
        pool.cache([block_id], [HASHES[block_id]])
    pool.free([2, 0, 1])
    pool.share([2])
    pool.free([2])
    assert pool.allocate(2) == [0, 1]
    assert pool.find([HASHES[0]]) == []
    assert pool.find([HASHES[2]]) == [2]


def test_what_is_not_cached_cannot_be_shared() -> None:
    pool = BlockPool(2)
    pool.allocate(1)
    with pytest.raises(ValueError, match="block_ids: 0 is not cached"):
        pool.share([0])
