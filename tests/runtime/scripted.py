"""An executor without a model: its tokens follow from what a sequence's KV blocks hold, so that a block that is shared,
lost or not computed again changes them."""

from __future__ import annotations

from collections.abc import Collection
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from waferline.bench.speculation import ScriptedDrafter
from waferline.runtime.drafter import SpeculativeConfig
from waferline.runtime.request import Request
from waferline.runtime.sampling_params import SamplingParams
from waferline.runtime.scheduler import MAX_STEPS
from waferline.runtime.sequence import Sequence
from waferline_kernels.executor import StepwiseExecutor, empty_entries
from waferline_kernels.placement import Placement
from waferline_kernels.program import Dims
from waferline_kernels.ring import Finish, Ring
from waferline_kernels.sequences import KV_BLOCK_SIZE, ExecutorLimits

VOCAB = 50
DIMS = Dims(hidden=4, layers=1, heads=1, kv_heads=1, head_dim=4, ffn=4, vocab=VOCAB)


class ScriptedExecutor(StepwiseExecutor):
    name = "scripted"
    level = "none"

    def __init__(self, limits: ExecutorLimits) -> None:
        program: Any = SimpleNamespace(dims=DIMS)
        super().__init__(program, Placement(np.zeros(0), (0,)), limits)
        self.ring = Ring(2 * MAX_STEPS * limits.max_num_seqs + 2 * limits.max_num_logits)
        self.kv = np.zeros((limits.num_kv_blocks, KV_BLOCK_SIZE), np.int64)
        self.time_ns = 0

    def _step(self, program: Any, batch: NDArray[np.void]) -> NDArray[np.void]:
        table, entries = self.sequences, []
        for slot, start, count, num_logits in batch.tolist():
            positions = np.arange(start + count)
            at = (table.block_tables[slot, positions // KV_BLOCK_SIZE], positions % KV_BLOCK_SIZE)
            computed = positions[start:]
            self.kv[at[0][start:], at[1][start:]] = kv_of(table.tokens[slot, computed], computed)
            sums = self.kv[at].cumsum().tolist()
            for end in range(start + count - num_logits + 1, start + count + 1):
                entries.append(self._entry(slot, end, sums[end - 1]))
        published = empty_entries(len(entries))
        for row, fields in zip(published, entries, strict=True):
            row["num_top"] = -1
            row["time_ns"] = self.time_ns
            for name, value in fields.items():
                row[name] = value
        return published

    def _entry(self, slot: int, position: int, context: int) -> dict[str, int]:
        table, params = self.sequences, self.sequences.sampling[slot]
        if position < table.num_tokens[slot]:
            return {"slot": slot, "position": position, "token": table.tokens[slot, position], "is_prompt": 1}
        token = next_token(context, position, int(params["seed"] + params["completion_index"]))
        finish = Finish.NONE
        if position + 1 - params["num_prompt_tokens"] >= params["max_tokens"]:
            finish = Finish.LENGTH
        if token in params["stop_ids"][: params["num_stop_ids"]]:
            finish = Finish.STOP
        return {"slot": slot, "position": position, "token": token, "finish": finish}


class FakeCosts:
    """A cost model by which a step takes ``row_ms`` for each row, ``context_ms`` for each token that one attends to, and
    ``logits_ms`` for each row whose logits are computed; keeps what it is told."""

    def __init__(self, row_ms: float, context_ms: float = 0.0, logits_ms: float = 0.0) -> None:
        self.row_ms, self.context_ms, self.logits_ms = row_ms, context_ms, logits_ms
        self.observed: list[tuple[float, ...]] = []

    def predict_step_ms(
        self, num_rows: int, context_tokens: int, num_logits_rows: int, kv_tokens: int | None = None
    ) -> float:
        return 1 + self.row_ms * num_rows + self.context_ms * context_tokens + self.logits_ms * num_logits_rows

    def observe(self, *figures: float) -> None:
        self.observed.append(figures)


def kv_of(tokens: NDArray[np.int32], positions: NDArray[np.int64]) -> NDArray[np.int64]:
    """What stands for the keys and values of ``tokens`` at ``positions``; never 0, which is a block's first content."""
    return (tokens + 1) * (positions + 1)


def next_token(context: int, position: int, seed: int) -> int:
    return (context * 31 + position * 7 + seed) % VOCAB


def expected_tokens(prompt: list[int], max_tokens: int, seed: int, stop_ids: Collection[int] = ()) -> list[int]:
    """What the executor gives after ``prompt``, worked out without blocks or slots."""
    tokens = list(prompt)
    while len(tokens) < len(prompt) + max_tokens:
        context = sum((token + 1) * (at + 1) for at, token in enumerate(tokens))
        tokens.append(next_token(context, len(tokens), seed))
        if tokens[-1] in stop_ids:
            break
    return tokens[len(prompt) :]


def scripted_drafts(count: int, acceptance: float) -> SpeculativeConfig:
    """Drafts of up to ``count`` tokens, what the executor gives but for a share of ``1 - acceptance``."""

    def make_drafter(sequence: Sequence) -> ScriptedDrafter:
        request = sequence.request
        tokens = expected_tokens(request.prompt_token_ids, request.max_tokens, request.seed + sequence.index)
        return ScriptedDrafter([*request.prompt_token_ids, *tokens], acceptance, VOCAB, request.seed)

    return SpeculativeConfig(count, make_drafter)


class LetterTokenizer:
    """Token 0 is "a", and so on."""

    def is_silent(self, token_id: int, skip_special_tokens: bool = True) -> bool:
        return False

    def token_bytes(self, token_id: int, begins_text: bool = False) -> bytes:
        return self.token_text(token_id).encode()

    def whole_text(self, token_id: int) -> str:
        return self.token_text(token_id)

    def token_text(self, token_id: int) -> str:
        return chr(ord("a") + token_id)


def make_request(
    prompt: list[int],
    max_tokens: int,
    seed: int = 0,
    name: str = "r",
    *,
    n: int = 1,
    prompt_logprobs: int | None = None,
    stop: str | None = None,
    stop_ids: tuple[int, ...] = (),
    **options: Any,
) -> Request:
    """``options``: of RequestOptions."""
    params = SamplingParams(n=n, max_tokens=max_tokens, stop=stop, prompt_logprobs=prompt_logprobs)
    request = Request(name, prompt, params, seed, max_tokens, list(stop_ids), frozenset(stop_ids), **options)
    tokenizer: Any = LetterTokenizer()
    request.sequences = [Sequence(request, index, tokenizer) for index in range(n)]
    return request


def make_sequence(prompt: list[int], max_tokens: int, seed: int = 0, name: str = "r", **options: Any) -> Sequence:
    return make_request(prompt, max_tokens, seed, name, **options).sequences[0]
