"""A request's logit bias, allowed ids and bad words, from sampling parameters to what the executor's sampler reads."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from waferline_kernels.constraints import pack_allowed_ids, pack_constraints
from waferline_kernels.sequences import SequenceTable

from ..model.tokenizer import Tokenizer
from .sampling_params import SamplingParams


@dataclass(frozen=True)
class Constraints:
    """The same for every completion of a request; packed once, then copied to each slot that one of them gets."""

    row: NDArray[np.void]  # CONSTRAINTS []
    num_logit_bias: int
    num_bad_words: int
    allowed_ids: NDArray[np.uint32] | None  # [mask_words(vocab)]; None: all are allowed

    def write(self, table: SequenceTable, slot: int) -> None:
        table.constraints[slot] = self.row
        if self.allowed_ids is not None:
            table.allowed_ids[slot] = self.allowed_ids


def pack_request_constraints(params: SamplingParams, tokenizer: Tokenizer, vocab: int) -> Constraints | None:
    """What ``params``, whose token ids are those of the vocabulary, ask for; None where that is nothing.

    Raises ValueError for bad words that are none or that have more tokens than the sampler has room for.
    """
    if not params.logit_bias and params.allowed_token_ids is None and not params.bad_words:
        return None
    bad_words = bad_word_tokens(params.bad_words or (), tokenizer, vocab)
    logit_bias = params.logit_bias or {}
    allowed = params.allowed_token_ids
    return Constraints(
        row=pack_constraints(logit_bias, bad_words),
        num_logit_bias=len(logit_bias),
        num_bad_words=len(bad_words),
        allowed_ids=None if allowed is None else pack_allowed_ids(allowed, vocab),
    )


def bad_word_tokens(words: Iterable[str], tokenizer: Tokenizer, vocab: int) -> list[tuple[int, ...]]:
    """The token sequences that are ``words``, each as it is at the beginning of a text and after a space (as in vLLM, but
    that the second form counts whatever its length). Raises ValueError for a word that has no tokens or is not Unicode.
    """
    sequences: dict[tuple[int, ...], None] = {}
    for word in words:
        try:
            forms = tokenizer.encode_word(word)
        except ValueError as error:
            raise ValueError(f"bad_words: {error}") from None
        if () in forms:
            raise ValueError(f"bad_words: {word!r} has no tokens, expected at least one")
        sequences |= dict.fromkeys(form for form in forms if max(form) < vocab)  # the model can make no others
    return list(sequences)
