"""Whether the engines compute the same model: greedy tokens beside Waferline's in float32."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .process import PeerProcess
from .registry import EXACT_VARIANTS, PEERS
from .runner import Absent, Setup

PROMPT = (1, 5, 9)  # token ids that every vocabulary has
TOKENS = 64


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences begin with in common."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(one), len(other)))


def print_agreement(model: Path, engines: Sequence[str], threads: int, cache: Path) -> None:
    """Print, for each engine unquantised and in its variants, how many first tokens are those of Waferline in float32."""
    reference = _greedy("waferline", EXACT_VARIANTS["waferline"], model, threads, cache)
    print(f"{model.resolve().name}: of {TOKENS} greedy tokens, the first that are waferline f32's")
    for engine in engines:
        for variant in dict.fromkeys((EXACT_VARIANTS[engine], *PEERS[engine])):
            try:
                tokens = _greedy(engine, variant, model, threads, cache)
                print(f"{engine:12} {variant:10} {common_prefix(reference, tokens):4}", flush=True)
            except Absent as reason:
                print(f"{engine:12} {variant:10} absent: {reason}", flush=True)


def _greedy(engine: str, variant: str, model: Path, threads: int, cache: Path) -> list[int]:
    setup = Setup(model, variant, threads, max_batch=1, max_model_len=len(PROMPT) + TOKENS, cache=cache)
    process = PeerProcess(engine, setup, cache / f"{engine}-{variant}.log")
    try:
        tokens: list[int] = process.ask("greedy", PROMPT, TOKENS)
        return tokens
    finally:
        process.close()
