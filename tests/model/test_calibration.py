"""Calibration: other codes in q4 matrices and nothing else, the same each time, and a model nearer to its weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from helpers import DEFAULT_TARGET, run_logits
from waferline.demo import MODEL_DIR
from waferline.demo.grammar import write_story
from waferline.model import calibration
from waferline.model.errors import ModelError
from waferline.model.load import Model, load_model, pack_model
from waferline.model.self_text import TEXTS_AT_ONCE, sample_texts
from waferline.model.tensor_file import TensorFile
from waferline_kernels.tiles import Q4, q4_steps

MODELS = ["untied", "tied", "odd-sharded", "qwen2"]
UNSEEN_STORIES = range(1_500_000_000, 1_500_000_004)


@pytest.fixture
def few_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "NUM_TOKENS", 300)


@pytest.mark.usefixtures("few_tokens")
@pytest.mark.parametrize("name", MODELS)
def test_the_codes_of_q4_matmuls_change_and_nothing_else(fixtures_dir: Path, tmp_path: Path, name: str) -> None:
    pack_model(fixtures_dir / name, tmp_path / "packed", "q4", calibrate=True)
    plain, packed = load_model(fixtures_dir / name, "q4"), load_model(tmp_path / "packed")
    for tensor in plain.program.tensors:
        before, after = plain.weights[tensor.name], packed.weights[tensor.name]
        is_rounded = tensor.format is Q4 and tensor.name != "embed"
        assert (before != after).any() == is_rounded, tensor.name
        if is_rounded:
            np.testing.assert_array_equal(q4_steps(after, tensor.k), q4_steps(before, tensor.k))


@pytest.mark.usefixtures("few_tokens")
def test_the_same_bytes_each_time(fixtures_dir: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        pack_model(fixtures_dir / "odd-sharded", tmp_path / name, "q4", calibrate=True)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert TensorFile(tmp_path / "a").metadata["calibration"] == "gptq, 8192 tokens"


@pytest.fixture(scope="module")
def calibrated_demo(tmp_path_factory: pytest.TempPathFactory) -> Model:
    packed = tmp_path_factory.mktemp("calibrated") / "demo"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration, "NUM_TOKENS", 1024)
        pack_model("demo", packed, "q4", calibrate=True)
    return load_model(packed)


def test_logits_are_nearer_to_those_of_the_weights(calibrated_demo: Model) -> None:
    exact, plain = (load_model("demo", dtype) for dtype in ("f32", "q4"))

    def log_probabilities(model: Model, story: str) -> np.ndarray:
        logits = run_logits(model, model.tokenizer.encode(story), DEFAULT_TARGET).astype(np.float64)
        shifted = logits - logits.max(axis=1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))

    divergences = []
    for seed in UNSEEN_STORIES:
        story = write_story(seed)
        wanted = log_probabilities(exact, story)
        divergences.append(
            [(np.exp(wanted) * (wanted - log_probabilities(model, story))).sum() for model in (plain, calibrated_demo)]
        )
    before, after = np.sum(divergences, axis=0)
    assert after < 0.85 * before


def test_every_backend_reads_it(calibrated_demo: Model, target: str) -> None:
    tokens = calibrated_demo.tokenizer.encode("Once upon a time")
    expected = run_logits(calibrated_demo, tokens, "reference")
    np.testing.assert_allclose(run_logits(calibrated_demo, tokens, target), expected, rtol=1e-3, atol=1e-3)


def test_texts_that_a_model_writes() -> None:
    model = load_model("demo", "q4")
    [end_token] = model.eos_token_ids
    texts = [
        sample_texts(model.program, model.weights, 0, model.eos_token_ids, num_tokens, 40)
        for num_tokens in (TEXTS_AT_ONCE * 40 + 50, TEXTS_AT_ONCE * 40 + 50, 7)
    ]
    assert [sum(map(len, some)) for some in texts] == [TEXTS_AT_ONCE * 40 + 50] * 2 + [7]
    for text, again in zip(texts[0], texts[1], strict=True):
        np.testing.assert_array_equal(text, again)
    assert len({text.tobytes() for text in texts[0]}) == len(texts[0])
    assert all(text[0] == 0 and end_token not in text[:-1] and len(text) <= 40 for text in texts[0])
    np.testing.assert_array_equal(texts[2][0], texts[0][0][:7])


@pytest.mark.parametrize("dtype", [None, "q8", "bf16", "f32"])
def test_what_cannot_be_calibrated(tmp_path: Path, dtype: str | None) -> None:
    with pytest.raises(ModelError, match=rf"calibrate: given with dtype '{dtype or 'q8'}', expected dtype 'q4'"):
        pack_model(MODEL_DIR, tmp_path / "packed", dtype, calibrate=True)
    assert not (tmp_path / "packed").exists()
