from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from waferline.runtime.block_pool import BlockPool


class BlockPoolMachine(RuleBasedStateMachine):
    @initialize(num_blocks=st.integers(1, 20))
    def start(self, num_blocks: int) -> None:
        self.pool = BlockPool(num_blocks)
        self.held: set[int] = set()

    @rule(count=st.integers(-1, 22))
    def allocate(self, count: int) -> None:
        if not 0 <= count <= self.pool.num_free:
            with pytest.raises(ValueError, match="count"):
                self.pool.allocate(count)
            return
        block_ids = self.pool.allocate(count)
        assert len(set(block_ids)) == count
        assert not self.held & set(block_ids)
        self.held |= set(block_ids)

    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        block_ids = data.draw(st.lists(st.sampled_from(sorted(self.held)), unique=True)) if self.held else []
        self.pool.free(block_ids)
        self.held -= set(block_ids)

    @rule(block_id=st.integers(-1, 21))
    def free_what_is_not_allocated(self, block_id: int) -> None:
        if block_id not in self.held:
            with pytest.raises(ValueError, match=f"block_ids: {block_id} is not allocated"):
                self.pool.free([block_id])

    @invariant()
    def blocks_are_free_or_held(self) -> None:
        assert self.pool.num_free == self.pool.num_blocks - len(self.held)
        assert all(0 <= block_id < self.pool.num_blocks for block_id in self.held)


BlockPoolMachine.TestCase.settings = settings(max_examples=50, deadline=None)
TestBlockPool = BlockPoolMachine.TestCase


def test_a_pool_has_blocks() -> None:
    with pytest.raises(ValueError, match="num_blocks: 0, expected at least 1"):
        BlockPool(0)


def test_the_block_returned_last_is_handed_out_first() -> None:
    pool = BlockPool(4)
    assert pool.allocate(3) == [0, 1, 2]
    pool.free([1])
    assert pool.allocate(2) == [1, 3]
