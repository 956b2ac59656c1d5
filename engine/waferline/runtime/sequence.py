"""A sequence: one running completion, ``num_computed_tokens`` catching up with ``num_tokens``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..model.detokenizer import Detokenizer, NoText
from ..model.tokenizer import Tokenizer
from .messages import Delta, TokenLogprob
from .request import Request
from .stop_checker import StopChecker

if TYPE_CHECKING:
    from .speculation import Drafting
    from .waiting_queue import Lane

NO_SLOT = -1
NO_ROW = -1


class Sequence:
    """One completion of a request.

    Every token before ``num_computed_tokens`` has its keys and values in the sequence's KV blocks; every other still
    has to be computed, be it of the prompt, just sampled, or known from before the sequence was preempted. A sequence
    runs while it has a slot, waits while it has none, and is finished once it has a ``finish_reason``. While it has a
    ``decode_row`` it lacks a single row in every step, see DecodeBatch.

    ``block_hashes`` are those of its first full blocks, as far as they have been worked out; of its blocks the first
    ``num_cached_blocks`` can be found by others. ``num_cached_tokens`` is how many of the prompt's tokens it found
    when it was first admitted; None before.

    ``rank``, ``lane`` and ``charged_cost`` are the waiting queue's, which gives them when the sequence is added: its
    priority and number of arrival (what is less goes first, and is preempted last), where it queues, and how much of
    what it cost its tenant has been charged for.
    """

    rank: tuple[int, int]
    lane: Lane

    def __init__(self, request: Request, index: int, tokenizer: Tokenizer) -> None:
        self.request = request
        self.index = index
        self.sampling: NDArray[np.void] = request.sampling(index)  # SAMPLING []
        self.token_ids = list(request.prompt_token_ids)
        self.num_prompt_tokens = len(self.token_ids)
        self.max_num_tokens = self.num_prompt_tokens + request.max_tokens
        self.slot = NO_SLOT
        self.decode_row = NO_ROW
        self._num_computed_tokens = 0
        self.block_ids: list[int] = []
        self.block_hashes = list(request.prompt_block_hashes)
        self._prompt_array = request.prompt_array
        self.num_cached_blocks = 0
        self.num_cached_tokens: int | None = None
        self.finish_reason: str | None = None
        self.charged_cost = 0
        self.drafting: Drafting | None = None  # where it is speculated

        params = request.params
        self.detokenizer = (
            Detokenizer(tokenizer, request.prompt_token_ids, params.skip_special_tokens)
            if params.detokenize
            else NoText()
        )
        self.stop_checker = (
            StopChecker(params.stop_strings, params.include_stop_str_in_output) if params.stop_strings else None
        )

        self.gathered: list[Delta] | None = None if params.output_kind == "delta" else []
        """What is kept for the one delta at the completion's end, where that is wanted."""

        scores_prompt = params.prompt_logprobs is not None and index == 0
        self.prompt_logprobs: list[list[TokenLogprob]] | None = [[]] if scores_prompt else None
        """Of the prompt tokens scored so far, until they leave with the first token; the first has none."""

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_computed_tokens(self) -> int:
        return self._num_computed_tokens if self.decode_row == NO_ROW else len(self.token_ids) - 1

    @num_computed_tokens.setter
    def num_computed_tokens(self, count: int) -> None:
        self._num_computed_tokens = count

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def is_finished(self) -> bool:
        return self.finish_reason is not None

    @property
    def is_running(self) -> bool:
        return self.slot != NO_SLOT

    @property
    def may_skip_rows(self) -> bool:
        """Whether cached blocks can stand for rows: not while prompt tokens are still to be scored from their logits."""
        return self.prompt_logprobs is None or len(self.prompt_logprobs) == self.num_prompt_tokens

    def write_tokens(self, slot_tokens: NDArray[np.int32]) -> None:
        """Write all tokens to the beginning of a slot's, int32 [max_model_len]."""
        slot_tokens[: self.num_prompt_tokens] = self._prompt_array
        slot_tokens[self.num_prompt_tokens : self.num_tokens] = self.token_ids[self.num_prompt_tokens :]

    def num_logits(self, count: int) -> int:
        """How many of the next ``count`` rows, the last ones, need their logits.

        A row before a prompt token that is still to be scored does, and the last row of all, which is sampled. A prompt
        of 5 tokens in chunks of 3 needs 0 and 1; if it is scored, 3 and 2.
        """
        end = self.num_computed_tokens + count
        if self.prompt_logprobs is not None:
            first_unscored = len(self.prompt_logprobs)
            if first_unscored < self.num_prompt_tokens:
                return max(0, end - max(self.num_computed_tokens, first_unscored - 1))
        return int(end == self.num_tokens)
