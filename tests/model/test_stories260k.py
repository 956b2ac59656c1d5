"""A trained model's greedy continuation, token for token, and what q8 costs it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from helpers import run_logits, run_tokens
from waferline.model.load import load_model


@pytest.mark.parametrize("threads", [1, 2])
def test_greedy_tokens_equal_the_reference(shared_dir: Path, target: str, threads: int) -> None:
    folder = shared_dir / "models" / "stories260K"
    reference = json.loads((folder / "greedy_reference.json").read_text())
    model = load_model(folder, dtype="f32")
    assert model.bos_token_id == reference["prompt_ids"][0]
    assert model.tokenizer.encode("") == reference["prompt_ids"]
    assert run_tokens(model, reference["prompt_ids"], 256, target, threads) == reference["greedy_ids"]


@pytest.mark.parametrize(("dtype", "allowed"), [("q8", 1.02), ("q4", 1.04)])  # 1.044 with k and v in four bits
def test_what_quantisation_costs_of_perplexity(shared_dir: Path, target: str, dtype: str, allowed: float) -> None:
    folder = shared_dir / "models" / "stories260K"
    text = (shared_dir / "corpora" / "tinystories_1000" / "tinystories_1000.txt").read_text()
    losses = []
    for compared in ("f32", dtype):
        model = load_model(folder, compared)
        token_ids = model.tokenizer.encode(text.split("<|endoftext|>")[0].strip())
        logits = run_logits(model, token_ids, target)[:-1].astype(np.float64)
        logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        losses.append(-logprobs[np.arange(len(logprobs)), token_ids[1:]].mean())
    assert losses[1] < losses[0] + np.log(allowed)
