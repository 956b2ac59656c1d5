"""The block pool: which KV blocks are free, which are shared, and which hold what may be asked for again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable


class BlockPool:
    """Hands out the ids of KV blocks, 0 to ``num_blocks - 1``, counts who holds each, and takes them back.

    A full block whose content is known by a hash is *cached*: others may ``share`` it, and when nobody holds it any
    more it keeps its content until it is needed for another. So a free block is either *blank*, and the one returned
    last is handed out first, being the likeliest in the processor's caches; or *evictable*, and where no blank one is
    left the one that was returned longest ago is handed out, and its hash forgotten.

    >>> pool = BlockPool(3)
    >>> pool.allocate(2)
    [0, 1]
    >>> pool.cache([0], [b"once upon a time"])
    >>> pool.free([0, 1])
    >>> pool.num_free
    3
    >>> pool.find([b"once upon a time", b"there was"])
    [0]
    >>> pool.share([0])
    >>> pool.num_free
    2
    """

    def __init__(self, num_blocks: int) -> None:
        if num_blocks < 1:
            raise ValueError(f"num_blocks: {num_blocks}, expected at least 1")
        self.num_blocks = num_blocks
        self._num_holders = [0] * num_blocks
        self._hashes: list[bytes | None] = [None] * num_blocks  # of what is cached
        self._cached: dict[bytes, int] = {}  # hash -> block
        self._blank = list(reversed(range(num_blocks)))
        self._evictable: OrderedDict[int, bytes] = OrderedDict()  # block -> hash, the one returned longest ago first

    @property
    def num_free(self) -> int:
        return len(self._blank) + len(self._evictable)

    def num_holders(self, block_id: int) -> int:
        return self._num_holders[block_id]

    def allocate(self, count: int) -> list[int]:
        """The ids of ``count`` blocks, now held once. Raises ValueError where fewer are free; none is taken then."""
        if not 0 <= count <= self.num_free:
            raise ValueError(f"count: {count}, expected 0 to {self.num_free}, the blocks that are free")
        block_ids = [self._blank.pop() if self._blank else self._evict() for _ in range(count)]
        for block_id in block_ids:
            self._num_holders[block_id] = 1
        return block_ids

    def find(self, hashes: Iterable[bytes]) -> list[int]:
        """The cached blocks of the first ``hashes``, up to the first that has none. Nobody holds them yet for it."""
        block_ids = []
        for block_hash in hashes:
            block_id = self._cached.get(block_hash)
            if block_id is None:
                break
            block_ids.append(block_id)
        return block_ids

    def share(self, block_ids: Iterable[int]) -> None:
        """Hold cached blocks once more. Raises ValueError for one that is not cached."""
        for block_id in block_ids:
            if self._hashes[block_id] is None:
                raise ValueError(f"block_ids: {block_id} is not cached")
            self._num_holders[block_id] += 1
            self._evictable.pop(block_id, None)

    def cache(self, block_ids: Iterable[int], hashes: Iterable[bytes]) -> None:
        """Let blocks that are held be found by their hashes, but those of which another one has the same content already.
        They are full and computed, and never written again. Raises ValueError for one that is not held."""
        num_holders, contents, cached = self._num_holders, self._hashes, self._cached
        for block_id, block_hash in zip(block_ids, hashes, strict=True):
            if not (0 <= block_id < self.num_blocks and num_holders[block_id]):
                raise _not_held(block_id)
            if block_hash not in cached and contents[block_id] is None:
                cached[block_hash] = block_id
                contents[block_id] = block_hash

    def free(self, block_ids: Iterable[int]) -> None:
        """Let go of blocks, each held once less. Raises ValueError for one that is not held.

        A sequence returns its last block first, so that the end of what it has cached is evicted before the beginning,
        without which the end cannot be found.
        """
        num_holders, contents = self._num_holders, self._hashes
        for block_id in block_ids:
            if not (0 <= block_id < self.num_blocks and num_holders[block_id]):
                raise _not_held(block_id)
            num_holders[block_id] -= 1
            if num_holders[block_id] == 0:
                block_hash = contents[block_id]
                if block_hash is None:
                    self._blank.append(block_id)
                else:
                    self._evictable[block_id] = block_hash

    def _evict(self) -> int:
        block_id, block_hash = self._evictable.popitem(last=False)
        self._hashes[block_id] = None
        del self._cached[block_hash]
        return block_id


def _not_held(block_id: int) -> ValueError:
    return ValueError(f"block_ids: {block_id} is not allocated")
