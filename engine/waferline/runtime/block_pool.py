"""The block pool: which KV blocks are free."""

from __future__ import annotations

from collections.abc import Iterable


class BlockPool:
    """Hands out the ids of KV blocks, 0 to ``num_blocks - 1``, and takes them back.

    The block returned last is handed out first: what it held is the likeliest to be in a cache.

    >>> pool = BlockPool(3)
    >>> pool.allocate(2)
    [0, 1]
    >>> pool.free([0])
    >>> pool.num_free
    2
    """

    def __init__(self, num_blocks: int) -> None:
        if num_blocks < 1:
            raise ValueError(f"num_blocks: {num_blocks}, expected at least 1")
        self.num_blocks = num_blocks
        self._free = list(reversed(range(num_blocks)))
        self._is_allocated = bytearray(num_blocks)

    @property
    def num_free(self) -> int:
        return len(self._free)

    def allocate(self, count: int) -> list[int]:
        """The ids of ``count`` blocks, now allocated. Raises ValueError where fewer are free; none is taken then."""
        if not 0 <= count <= self.num_free:
            raise ValueError(f"count: {count}, expected 0 to {self.num_free}, the blocks that are free")
        block_ids = [self._free.pop() for _ in range(count)]
        for block_id in block_ids:
            self._is_allocated[block_id] = 1
        return block_ids

    def free(self, block_ids: Iterable[int]) -> None:
        """Take back blocks. Raises ValueError for one that is not allocated."""
        for block_id in block_ids:
            if not (0 <= block_id < self.num_blocks and self._is_allocated[block_id]):
                raise ValueError(f"block_ids: {block_id} is not allocated")
            self._is_allocated[block_id] = 0
            self._free.append(block_id)
