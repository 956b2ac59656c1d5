"""Hashes by which full KV blocks are found again.

The keys and values of a block follow from its tokens and from all before them, so a block's hash is chained: of the
hash of the block before it, and of its own token ids. The first one is chained to its cache salt, so that blocks of
different salts never meet. It is blake2b with 128 bits: nobody finds two prompts of one hash, and no block has to keep
its tokens to be compared.
"""

from __future__ import annotations

from hashlib import blake2b
from struct import Struct

from waferline_kernels.sequences import KV_BLOCK_SIZE

DIGEST_BYTES = 16
_EMPTY = blake2b(digest_size=DIGEST_BYTES)  # copying it takes two thirds of what making one does
_pack_ids = Struct(f"={KV_BLOCK_SIZE}i").pack


def extend_block_hashes(hashes: list[bytes], token_ids: list[int], cache_salt: str | None, num_blocks: int) -> None:
    """Extend ``hashes``, of the first blocks of ``token_ids``, to its first ``num_blocks`` blocks, each a full one.

    >>> long, short = [], []
    >>> extend_block_hashes(long, list(range(40)), None, 2)
    >>> extend_block_hashes(short, list(range(16)), None, 1)
    >>> len(long), long[0] == short[0]
    (2, True)
    """
    parent = hashes[-1] if hashes else _root(cache_salt)
    for start in range(len(hashes) * KV_BLOCK_SIZE, num_blocks * KV_BLOCK_SIZE, KV_BLOCK_SIZE):
        block = _EMPTY.copy()
        block.update(parent + _pack_ids(*token_ids[start : start + KV_BLOCK_SIZE]))
        parent = block.digest()
        hashes.append(parent)


def _root(cache_salt: str | None) -> bytes:
    """What stands for a parent before the first block; ``person`` keeps a salt from being taken for a block."""
    return blake2b((cache_salt or "").encode(), digest_size=DIGEST_BYTES, person=b"cache salt").digest()
