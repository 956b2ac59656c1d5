"""Logits in f32 against transformers itself, where it is installed: a trained model, and real shapes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from helpers import DEFAULT_TARGET, run_logits
from waferline.model.load import load_model

torch = pytest.importorskip("torch", reason="needs PyTorch as the reference")
transformers = pytest.importorskip("transformers", reason="needs transformers as the reference")

PROMPTS = [
    "Once upon a time",
    "Lily and Tom went to the park. They saw a big, red",
    '"Look, Mom!" said Ben. "I can fly!"',
    "One day, a cat named Max found a small box.\n\nHe",
    "The dragon was sad because his café had no müsli 🐉",
]
TOLERANCE = {"rtol": 0, "atol": 1e-3}


def reference_model(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def reference_logits(model: Any, token_ids: list[int]) -> NDArray[np.float32]:
    with torch.no_grad():
        logits: NDArray[np.float32] = model(torch.tensor([token_ids])).logits[0].numpy()
    return logits


def test_a_trained_model(shared_dir: Path, target: str) -> None:
    folder = shared_dir / "models" / "stories260K"
    model, reference = load_model(folder, dtype="f32"), reference_model(folder)
    for prompt in PROMPTS:
        token_ids = model.tokenizer.encode(prompt)
        np.testing.assert_allclose(
            run_logits(model, token_ids, target), reference_logits(reference, token_ids), **TOLERANCE
        )


@pytest.mark.parametrize(
    ("shape", "layers"),
    [
        ("tiny-260k", 5),
        ("stories-15m", 2),
        ("smollm2-135m", 2),
        pytest.param("qwen2.5-0.5b", 2, marks=pytest.mark.large),
        pytest.param("llama-3.2-1b", 1, marks=pytest.mark.large),
    ],
)
def test_a_real_shape(shared_dir: Path, tmp_path: Path, shape: str, layers: int) -> None:
    script = shared_dir / "tools" / "make_model.py"
    subprocess.run([sys.executable, script, shape, tmp_path, "--layers", str(layers)], check=True)
    model = load_model(tmp_path, dtype="f32", max_model_len=128)
    token_ids = np.random.default_rng(0).integers(model.config.vocab, size=20).tolist()
    expected = reference_logits(reference_model(tmp_path), token_ids)
    np.testing.assert_allclose(run_logits(model, token_ids, DEFAULT_TARGET), expected, **TOLERANCE)
