"""What 4 and 8 bits cost in llama.cpp's formats and in Waferline's: perplexity of one model on one text.

    python -m benches.peers.perplexity MODEL TEXT [--stories 50]

TEXT as in ``benches/quality.py``: stories that a line ``<|endoftext|>`` ends, each scored by itself from its token ids.
"pure": every matrix in the named type; otherwise llama.cpp gives the output matrix more bits.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from waferline.model.load import load_model
from waferline.runtime.memory import choose_kv_dtype

from ..quality import log_probabilities, make_executor, read_stories
from .llama_cpp_peer import LlamaCppRunner, quantized
from .runner import Setup

LLAMA_CPP_FILES = (("F32", False), ("Q8_0", False), ("Q4_0", False), ("Q4_0", True))
WAFERLINE_DTYPES = ("f32", "q8", "q4")

Score = Callable[[list[int]], float]  # the sum of negative log-likelihoods of all token ids but the first


def waferline_score(model_dir: Path, dtype: str, context: int, threads: int) -> Score:
    model = load_model(model_dir, dtype, context)
    executor = make_executor(model, choose_kv_dtype("auto", dtype), context, threads)

    def score(token_ids: list[int]) -> float:
        logprobs = np.concatenate(list(log_probabilities(model, executor, token_ids)))
        return _loss(logprobs, token_ids)

    return score


def llama_cpp_score(setup: Setup, pure: bool) -> Score:
    runner = LlamaCppRunner(setup, quantized(setup, pure))

    def score(token_ids: list[int]) -> float:
        logits = runner.logits(token_ids)[:-1].astype(np.float64)
        shifted = logits - logits.max(axis=1, keepdims=True)
        return _loss(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)), token_ids)

    return score


def _loss(logprobs: NDArray[np.float64], token_ids: list[int]) -> float:
    return -float(logprobs[np.arange(len(token_ids) - 1), token_ids[1:]].sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--stories", type=int, default=50)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "waferline-peers")
    args = parser.parse_args()

    model = load_model(args.model, "f32")
    context = model.max_model_len
    stories = [model.tokenizer.encode(story)[:context] for story in read_stories(args.text, args.stories)]
    num_tokens = sum(len(token_ids) - 1 for token_ids in stories)
    print(f"{model.name}: {num_tokens} tokens of {len(stories)} stories")

    def report(name: str, score: Score, exact: float | None) -> float:
        perplexity = math.exp(sum(map(score, stories)) / num_tokens)
        print(f"{name:22} {perplexity:9.4f}  {100 * (perplexity / (exact or perplexity) - 1):+.3f}%", flush=True)
        return perplexity

    exact = None
    for dtype in WAFERLINE_DTYPES:
        perplexity = report(f"waferline {dtype}", waferline_score(args.model, dtype, context, args.threads), exact)
        exact = exact or perplexity
    exact = None
    for variant, pure in LLAMA_CPP_FILES:
        setup = Setup(args.model, variant, args.threads, 1, context, args.cache)
        name = f"llama.cpp {variant}{' pure' if pure else ''}"
        perplexity = report(name, llama_cpp_score(setup, pure), exact)
        exact = exact or perplexity


if __name__ == "__main__":
    main()
