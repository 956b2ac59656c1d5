"""Which tokens a sequence may take: a sparse bias, a bitmask of allowed ids, and words that must not come out.

They are arrays with a row for each slot, as the rest of a sequence is (``sequences.SequenceTable``), so that the sampler
applies them at every step of a run without Python between them. A slot's rows are looked at only where its ``SAMPLING``
says that something is in them; a sequence without constraints never touches that memory.

A worked example: the words ``[[7], [5, 9]]`` ban token 7 always, and 9 after a completion that ends with 5.

>>> pack_bad_words([[7], [5, 9]])[:5].tolist()
[1, 7, 2, 5, 9]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_LOGIT_BIAS = 300  # biased tokens of a sequence
MAX_BAD_WORD_TOKENS = 1024  # of all its words: their tokens, and one more for each word
MASK_BITS = 32

CONSTRAINTS = np.dtype(
    [
        ("bias_ids", np.int32, (MAX_LOGIT_BIAS,)),
        ("bias_values", np.float32, (MAX_LOGIT_BIAS,)),
        ("bad_words", np.int32, (MAX_BAD_WORD_TOKENS,)),  # of each word how many tokens it has, then those tokens
    ]
)


def mask_words(vocab: int) -> int:
    """uint32 of a bitmask over the vocabulary."""
    return -(-vocab // MASK_BITS)


def pack_allowed_ids(token_ids: Sequence[int], vocab: int) -> NDArray[np.uint32]:
    """A bitmask, uint32 [mask_words(vocab)]: bit ``i % 32`` of word ``i // 32`` is set where token ``i`` is allowed."""
    allowed = np.zeros(mask_words(vocab) * MASK_BITS, bool)
    allowed[np.asarray(token_ids, np.int64)] = True
    return np.packbits(allowed, bitorder="little").view("<u4").astype(np.uint32)


def unpack_allowed_ids(mask: NDArray[np.uint32], vocab: int) -> NDArray[np.bool_]:
    """Whether each token is allowed, bool [vocab]."""
    return np.unpackbits(mask.astype("<u4").view(np.uint8), bitorder="little", count=vocab).astype(bool)


def pack_bad_words(words: Sequence[Sequence[int]]) -> NDArray[np.int32]:
    """The table of ``words``, none empty: int32 [MAX_BAD_WORD_TOKENS]. Raises ValueError where they do not fit."""
    flat = [entry for word in words for entry in (len(word), *word)]
    if len(flat) > MAX_BAD_WORD_TOKENS:
        raise ValueError(
            f"bad_words: {len(flat) - len(words)} tokens in {len(words)} sequences, each of which counts as one more, "
            f"expected at most {MAX_BAD_WORD_TOKENS} in all"
        )
    table = np.zeros(MAX_BAD_WORD_TOKENS, np.int32)
    table[: len(flat)] = flat
    return table


def pack_constraints(logit_bias: Mapping[int, float], bad_words: Sequence[Sequence[int]]) -> NDArray[Any]:
    """A slot's row, CONSTRAINTS []. Raises ValueError, as ``pack_bad_words`` does, for what does not fit."""
    row = np.zeros((), CONSTRAINTS)
    if len(logit_bias) > MAX_LOGIT_BIAS:
        raise ValueError(f"logit_bias: {len(logit_bias)} tokens, expected at most {MAX_LOGIT_BIAS}")
    row["bias_ids"][: len(logit_bias)] = list(logit_bias.keys())
    row["bias_values"][: len(logit_bias)] = list(logit_bias.values())
    row["bad_words"] = pack_bad_words(bad_words)
    return row
