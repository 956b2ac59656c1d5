"""What an executor knows of its sequences: shared arrays, a row for each slot, that a step reads and extends.

A sequence lives in a *slot*. Whoever schedules writes its tokens, block table and sampling parameters there once; a
batch then only names slots and positions, and a sampled token is appended where the next step finds it. So a step that
changes nothing but the tokens costs no copying, and native code can take many steps without Python between them.

A worked example, block size 16: a sequence of 18 tokens in slot 2 with ``block_tables[2, :2] = [7, 4]`` keeps the keys
and values of its position 17 in block 4, at offset 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .constraints import CONSTRAINTS, mask_words

KV_BLOCK_SIZE = 16  # tokens; the width of a vector of scores
MAX_STOP_IDS = 64
MAX_LOGPROBS = 20
NO_LOGPROBS = -1

SPAN = np.dtype(
    [
        ("slot", np.int32),
        ("start", np.int32),  # position of the first row
        ("count", np.int32),  # rows: positions start .. start + count - 1
        ("num_logits", np.int32),  # how many of the last rows have their logits computed
    ]
)
"""One sequence's share of a batch. A row whose next token is already in the slot is scored against it (prompt
logprobs); the last row of a sequence, whose next token is not, is sampled.

Rows from ``num_tokens`` on are *drafts*: guesses at the tokens to come, which lie in the slot's ``tokens`` beyond those it
has. Each of them, and the row before the first, is sampled as if the drafts up to it were the sequence's. The sampled
tokens count up to the first that is not the draft at its position; the rest was computed in vain.

A worked example: a slot has the tokens [5, 6, 7], keys and values of two, and behind them the drafts [8, 9]. The span
(slot, 2, 3, 3) samples what follows 7, 8 and 9. Of 8, 4, 3 the slot takes 8 and 4: the draft 9 was wrong, and with it
what follows it.
"""

SAMPLING = np.dtype(
    [
        ("temperature", np.float32),  # 0: greedy
        ("top_p", np.float32),
        ("min_p", np.float32),
        ("presence_penalty", np.float32),
        ("frequency_penalty", np.float32),
        ("repetition_penalty", np.float32),
        ("top_k", np.int32),  # 0: all
        ("num_logprobs", np.int32),  # best tokens reported beside the chosen one; NO_LOGPROBS: not even that one
        ("num_prompt_logprobs", np.int32),  # the same for prompt tokens
        ("num_prompt_tokens", np.int32),
        ("min_tokens", np.int32),  # completion tokens before which no stop id is sampled
        ("max_tokens", np.int32),  # completion tokens after which the sequence ends
        ("completion_index", np.int32),
        ("num_stop_ids", np.int32),
        # What of the slot's constraints is in use.
        ("has_allowed_ids", np.int32),
        ("num_bad_words", np.int32),
        ("num_logit_bias", np.int32),
        ("seed", np.uint64),
        ("stop_ids", np.int32, (MAX_STOP_IDS,)),
    ],
    align=True,
)


@dataclass(frozen=True)
class ExecutorLimits:
    """Sizes fixed when an executor is made; everything it allocates follows from them and the program."""

    max_num_seqs: int
    max_model_len: int  # tokens of a sequence, prompt and completion
    max_num_batched_tokens: int  # rows of a step
    max_num_logits: int  # rows of a step whose logits are computed
    num_kv_blocks: int
    kv_dtype: str = "f32"  # kv_cache.KV_FORMATS

    @property
    def max_blocks_per_seq(self) -> int:
        return -(-self.max_model_len // KV_BLOCK_SIZE)


class SamplingRules(NamedTuple):
    """A slot's rows of what says how its tokens are sampled, as views."""

    params: np.void  # SAMPLING []
    constraints: np.void  # CONSTRAINTS []
    allowed_ids: NDArray[np.uint32]  # [mask_words(vocab)]


@dataclass(frozen=True)
class SequenceTable:
    tokens: NDArray[np.int32]  # [max_num_seqs, max_model_len]; drafts, where there are any, after the sequence's own
    num_tokens: NDArray[np.int32]  # [max_num_seqs]; the executor raises it as it appends
    block_tables: NDArray[np.int32]  # [max_num_seqs, max_blocks_per_seq]
    num_blocks: NDArray[np.int32]  # [max_num_seqs]; blocks of the table that are reserved
    sampling: NDArray[np.void]  # SAMPLING [max_num_seqs]
    constraints: NDArray[np.void]  # CONSTRAINTS [max_num_seqs]; read where `sampling` says how much of it is in use
    allowed_ids: NDArray[np.uint32]  # [max_num_seqs, mask_words(vocab)]: a bit for each token; read where in use
    stop_flags: NDArray[np.int32]  # [max_num_seqs]; raised from any thread: the sequence takes no further step
    wake: NDArray[np.int32]  # [1]; raised from any thread: `run` returns after the step at hand

    @classmethod
    def allocate(cls, limits: ExecutorLimits, vocab: int) -> SequenceTable:
        seqs = limits.max_num_seqs
        return cls(
            tokens=np.zeros((seqs, limits.max_model_len), np.int32),
            num_tokens=np.zeros(seqs, np.int32),
            block_tables=np.zeros((seqs, limits.max_blocks_per_seq), np.int32),
            num_blocks=np.zeros(seqs, np.int32),
            sampling=np.zeros(seqs, SAMPLING),
            constraints=np.zeros(seqs, CONSTRAINTS),
            allowed_ids=np.zeros((seqs, mask_words(vocab)), np.uint32),
            stop_flags=np.zeros(seqs, np.int32),
            wake=np.zeros(1, np.int32),
        )

    def rules(self, slot: int) -> SamplingRules:
        return SamplingRules(self.sampling[slot], self.constraints[slot], self.allowed_ids[slot])
