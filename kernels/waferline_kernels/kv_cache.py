"""The KV cache's formats: what a KV tile holds, and what rounding a key or value undergoes when it is written.

A KV tile is what one (layer, block, KV head) keeps: the keys and values of 16 tokens, one element type throughout. Keys
are transposed, so that the sixteen scores of a block are one vector; rows of values are padded to whole vectors
(``stride`` = head_dim rounded up to 16)::

    f32         keys    [head_dim][16 tokens]
                values  [16 tokens][stride]
    bf16        keys    [head_dim / 2][16 tokens][2]
                values  [stride / 16][16 tokens / 2][16][2]
    int8        keys    [head_dim / 4][16 tokens][4]   codes as in a q8 tile: round(x / scale)
                values  [16 tokens / 4][stride][4]     the same
                scales  float32 [16 tokens]            of the keys, max |x| / 127
                scales  float32 [16 tokens]            of the values

Tokens lie side by side by twos and fours. A column of bf16's values, 16 elements of all tokens, is a run of its own: two
columns are what a tile register of amx holds.

A scale belongs to one token and head alone, so a row's result depends on no other row; and a token's own key and value
are read back rounded too, so nothing depends on how rows are cut into steps.

A worked example, head_dim 64: a tile is 8192 bytes in f32, 4096 in bf16, 64 * 16 + 16 * 64 + 2 * 64 = 2176 in int8,
where the key element d of token t is the byte ``d // 4 * 64 + t * 4 + d % 4``. The head size is even.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .sequences import KV_BLOCK_SIZE
from .tiles import TILE_N, bfloat16_bits, bfloat16_to_float32, quantize_rows, round_up


@dataclass(frozen=True)
class KvFormat:
    name: str
    code: int  # waferline.h

    def tile_bytes(self, head_dim: int) -> int:
        """Bytes of a KV tile of heads of ``head_dim``."""
        stride = round_up(head_dim, TILE_N)
        if self == KV_INT8:
            return KV_BLOCK_SIZE * (round_up(head_dim, 4) + stride) + 2 * KV_BLOCK_SIZE * 4
        return KV_BLOCK_SIZE * (head_dim + stride) * (4 if self == KV_F32 else 2)

    def rounded(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """What is read back of keys or values ``x`` (float32 [..., head_dim])."""
        if self == KV_F32:
            return x
        if self == KV_BF16:
            return bfloat16_to_float32(bfloat16_bits(x))
        codes, scales = quantize_rows(x.reshape(-1, x.shape[-1]), x.shape[-1])
        return (codes * scales).reshape(x.shape)


KV_F32, KV_BF16, KV_INT8 = KvFormat("f32", 0), KvFormat("bf16", 1), KvFormat("int8", 2)
KV_FORMATS = {format.name: format for format in (KV_F32, KV_BF16, KV_INT8)}


def kv_format(kv_dtype: str) -> KvFormat:
    """The format of that name. Raises ValueError for one that there is not."""
    if kv_dtype not in KV_FORMATS:
        raise ValueError(f"kv_dtype: {kv_dtype!r}, expected one of {', '.join(KV_FORMATS)}")
    return KV_FORMATS[kv_dtype]
