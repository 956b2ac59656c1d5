"""What 4 and 8 bits cost in llama.cpp's formats and in Waferline's: perplexity of one model on one text.

    python -m benches.peers.perplexity MODEL TEXT [--stories 50]

TEXT as in ``benches/quality.py``: stories that a line ``<|endoftext|>`` ends, each scored by itself from its token ids.
"pure": every matrix in the named type; otherwise llama.cpp gives the output matrix more bits. Each is held against the f32
of its own engine: perplexity above it with the standard error (``benches/quality.py``), and the mean KL divergence. At the
end Waferline's four bits are held against llama.cpp's, story by story.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from waferline.model.load import Model, load_model
from waferline.runtime.memory import choose_kv_dtype

from ..quality import (
    added_perplexity,
    load_calibrated,
    log_probabilities,
    log_softmax,
    make_executor,
    read_stories,
)
from .llama_cpp_peer import LlamaCppRunner, quantized
from .runner import Setup

LLAMA_CPP_FILES = (("F32", False), ("Q8_0", False), ("Q4_0", False), ("Q4_0", True))
BESIDE = ("llama.cpp Q4_0", ("waferline q4", "waferline q4 calibrated"))

# Log-probabilities of what follows each of the token ids but the last: float64 [tokens - 1, vocab].
LogProbabilities = Callable[[list[int]], NDArray[np.float64]]


def of_waferline(model: Model, context: int, threads: int) -> LogProbabilities:
    executor = make_executor(model, choose_kv_dtype("auto", model.dtype), context, threads)
    return lambda token_ids: np.concatenate(list(log_probabilities(model, executor, token_ids)))


def of_llama_cpp(setup: Setup, pure: bool) -> LogProbabilities:
    runner = LlamaCppRunner(setup, quantized(setup, pure))
    return lambda token_ids: log_softmax(runner.logits(token_ids)[:-1])


def compare(formats: dict[str, LogProbabilities], stories: list[list[int]]) -> dict[str, NDArray[np.float64]]:
    """Print what each of an engine's ``formats`` costs beside the first. Returns negative log-likelihoods [stories]."""
    tokens = np.array([len(token_ids) - 1 for token_ids in stories])
    losses = {name: np.zeros(len(stories)) for name in formats}
    divergences = dict.fromkeys(formats, 0.0)
    for story, token_ids in enumerate(stories):
        exact = None
        for name, logprobs_of in formats.items():
            logprobs = logprobs_of(token_ids)
            exact = logprobs if exact is None else exact
            losses[name][story] = -logprobs[np.arange(len(logprobs)), token_ids[1:]].sum()
            divergences[name] += float((np.exp(exact) * (exact - logprobs)).sum())
    [exact_losses, *_] = losses.values()
    for name, of_stories in losses.items():
        perplexity = math.exp(of_stories.sum() / tokens.sum())
        added = format_added(of_stories, exact_losses, tokens)
        print(f"{name:24} {perplexity:9.4f}  {added}  {divergences[name] / tokens.sum():.6f} nats", flush=True)
    return losses


def format_added(losses: NDArray[np.float64], exact: NDArray[np.float64], tokens: NDArray[np.int64]) -> str:
    added, error = added_perplexity(losses, exact, tokens)
    return f"{added:+.3f}% +- {error:.3f}"


def encoded(model: Model, stories: Iterable[str]) -> list[list[int]]:
    texts = [model.tokenizer.encode(story)[: model.max_model_len] for story in stories]
    return [token_ids for token_ids in texts if len(token_ids) > 1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--stories", type=int, default=50)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "waferline-peers")
    args = parser.parse_args()

    f32 = load_model(args.model, "f32")
    context = f32.max_model_len
    stories = encoded(f32, read_stories(args.text, args.stories))
    if not stories:
        parser.error(f"text: {args.text} holds no story of two tokens or more")
    tokens = np.array([len(token_ids) - 1 for token_ids in stories])
    print(f"{f32.name}: {tokens.sum()} tokens of {len(stories)} stories")

    models = {
        "waferline f32": f32,
        **{f"waferline {dtype}": load_model(args.model, dtype) for dtype in ("bf16", "q8", "q4")},
        "waferline q4 calibrated": load_calibrated(args.model, "q4", None),
    }
    formats = {name: of_waferline(model, context, args.threads) for name, model in models.items()}
    losses = compare(formats, stories)
    losses |= compare(
        {
            f"llama.cpp {variant}{' pure' if pure else ''}": of_llama_cpp(
                Setup(args.model, variant, args.threads, 1, context, args.cache), pure
            )
            for variant, pure in LLAMA_CPP_FILES
        },
        stories,
    )
    theirs, ours = BESIDE
    for name in ours:
        print(f"{name} beside {theirs}: {format_added(losses[name], losses[theirs], tokens)}")


if __name__ == "__main__":
    main()
