"""Rescaling: the same function, and outliers that are gone from what is packed or, honestly, are not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import outliers
import pytest
from numpy.typing import NDArray

from helpers import DEFAULT_TARGET, run_logits
from waferline.demo import MODEL_DIR
from waferline.demo.grammar import write_story
from waferline.model.checkpoint import Checkpoint
from waferline.model.load import load_model
from waferline.model.rescaling import Rescaling, channel_sizes
from waferline_kernels.tiles import FORMATS, pack_matrix

MODELS = ["untied", "tied", "odd-sharded", "qwen2"]
UNSEEN_STORIES = range(1_500_000_000, 1_500_000_004)
MOST_DIVERGENCE = 1e-4  # nats; without rescaling outliers cost twice to ten times as much


def rescaling_of(folder: Path, dtype: str = "q8") -> Rescaling:
    model = load_model(folder, dtype)
    return Rescaling(Checkpoint(folder), model.config, model.program)


@pytest.mark.parametrize("name", MODELS)
def test_what_columns_lose_channels_gain(fixtures_dir: Path, name: str) -> None:
    config = load_model(fixtures_dir / name).config
    rescaling = rescaling_of(fixtures_dir / name)

    def undo(made_by: str, part: int, read_by: str) -> NDArray[np.float32]:
        rows, columns = rescaling.rows(made_by, part), rescaling.columns(read_by)
        assert rows is not None
        assert columns is not None
        if read_by.endswith(".o"):
            by_head = rows.reshape(config.kv_heads, config.head_dim)
            rows = np.repeat(by_head, config.heads // config.kv_heads, axis=0).reshape(-1)
        return rows * columns

    for layer in range(config.layers):
        at = f"layers.{layer}."
        pairs = [("input_norm", 0, "qkv"), ("qkv", 2, "o"), ("post_norm", 0, "gate_up"), ("gate_up", 1, "down")]
        for made_by, part, read_by in [*pairs, ("qkv_bias", 2, "o")]:
            np.testing.assert_allclose(undo(at + made_by, part, at + read_by), 1, rtol=1e-6)
        assert all(rescaling.rows(*part) is None for part in ((at + "gate_up", 0), (at + "qkv", 0), (at + "o", 0)))
    if config.tied:  # the output matrix's rows are embeddings too
        assert rescaling.rows("norm", 0) is rescaling.columns("logits") is None
    else:
        np.testing.assert_allclose(undo("norm", 0, "logits"), 1, rtol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_what_is_packed_is_rescaled(fixtures_dir: Path, name: str) -> None:
    model, (_, stored) = load_model(fixtures_dir / name), outliers.read_model(fixtures_dir / name)
    rescaling = rescaling_of(fixtures_dir / name)
    down = stored["model.layers.0.mlp.down_proj.weight"] * rescaling.columns("layers.0.down")
    np.testing.assert_allclose(np.sqrt((down**2).mean(axis=0)), 1, rtol=1e-5)
    np.testing.assert_array_equal(model.weights["layers.0.down"], pack_matrix(down, FORMATS["q8"]))
    gain = stored["model.layers.1.input_layernorm.weight"] * rescaling.rows("layers.1.input_norm", 0)
    np.testing.assert_array_equal(model.weights["layers.1.input_norm"][0], gain)


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_float_formats_stay_as_they_are(fixtures_dir: Path, dtype: str) -> None:
    rescaling = rescaling_of(fixtures_dir / "qwen2", dtype)
    for tensor in load_model(fixtures_dir / "qwen2", dtype).program.tensors:
        assert rescaling.columns(tensor.name) is None
        assert all(rescaling.rows(tensor.name, part) is None for part in range(3))


def test_the_worked_example_and_columns_of_no_size() -> None:
    stored = np.array([[0.25, 0, np.nan, np.inf, 1e-36], [0.25, 0, 1, 1, 1e-36]], np.float32)
    np.testing.assert_array_equal(channel_sizes([(stored, None)], np.arange(5)), np.float32([0.25, 1, 1, 1, 1]))
    shared = channel_sizes([(np.array([[1, 7]], np.float32), None)], np.array([0, 0]))
    np.testing.assert_array_equal(shared, np.float32([5]))
    scaled = channel_sizes([(np.array([[2], [8]], np.float32), np.float32([4, 1]))], np.array([0]))
    np.testing.assert_array_equal(scaled, np.float32([8]))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", ["q8", "q4"])
def test_outliers_of_powers_of_two_leave_no_trace(fixtures_dir: Path, tmp_path: Path, name: str, dtype: str) -> None:
    """Those that norms' gains have, those between up and down and between v and o: every packed byte is the same."""
    config, tensors = outliers.read_model(fixtures_dir / name)
    for make in (outliers.in_norms, outliers.between_up_and_down, outliers.between_v_and_o):
        tensors = make(config, tensors, 32.0)
    folder = outliers.write_model(fixtures_dir / name, tmp_path / "outliers", tensors)
    plain, changed = load_model(fixtures_dir / name, dtype), load_model(folder, dtype)
    for tensor in plain.program.tensors:
        np.testing.assert_array_equal(changed.weights[tensor.name], plain.weights[tensor.name], tensor.name)


class Unseen:
    """Log-probabilities of what follows each token of unseen stories, and of the tokens that do."""

    def __init__(self, folder: Path, dtype: str) -> None:
        model, rows, of_targets = load_model(folder, dtype), [], []
        for seed in UNSEEN_STORIES:
            token_ids = model.tokenizer.encode(write_story(seed))
            logits = run_logits(model, token_ids, DEFAULT_TARGET)[:-1].astype(np.float64)
            rows.append(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))
            of_targets.append(rows[-1][np.arange(len(logits)), token_ids[1:]])
        self.logprobs = np.concatenate(rows)
        self.perplexity = float(np.exp(-np.concatenate(of_targets).mean()))

    def divergence(self, exact: Unseen) -> float:
        """Mean KL divergence of ``exact`` from these, nats."""
        return float((np.exp(exact.logprobs) * (exact.logprobs - self.logprobs)).sum(axis=1).mean())


@pytest.fixture(scope="module")
def exact() -> Unseen:
    return Unseen(MODEL_DIR, "f32")


MAKE = {
    "norms, rescaling removes them": outliers.in_norms,
    "up and down, rescaling removes them": outliers.between_up_and_down,
    "v and o, rescaling removes them": outliers.between_v_and_o,
}


@pytest.mark.parametrize("where", ["nowhere", *MAKE, "residual stream, nothing removes them"])
def test_what_q8_costs_with_outliers(tmp_path: Path, exact: Unseen, where: str) -> None:
    config, tensors = outliers.read_model(MODEL_DIR)
    if where in MAKE:
        tensors = MAKE[where](config, tensors, 40.0)
    elif where != "nowhere":
        tensors = outliers.in_the_residual_stream(config, tensors)
    is_tied = "lm_head.weight" not in tensors
    folder = outliers.write_model(MODEL_DIR, tmp_path / "model", tensors, tie_word_embeddings=is_tied)
    assert Unseen(folder, "f32").perplexity == pytest.approx(exact.perplexity, rel=1e-4)
    q8 = Unseen(folder, "q8")
    assert q8.perplexity < (1.01 if where == "nowhere" else 1.02) * exact.perplexity
    assert q8.divergence(exact) < MOST_DIVERGENCE


def test_what_q8_costs_after_the_shared_tool_for_outliers(shared_dir: Path, tmp_path: Path, exact: Unseen) -> None:
    tool = shared_dir / "tools" / "add_outliers.py"
    if not tool.is_file():
        pytest.skip(f"needs the tool that adds outliers, which is not at {tool}")
    plain = outliers.write_model(MODEL_DIR, tmp_path / "plain", outliers.read_model(MODEL_DIR)[1])
    subprocess.run([sys.executable, tool, plain, tmp_path / "outliers"], check=True)
    q8 = Unseen(tmp_path / "outliers", "q8")
    assert q8.perplexity < 1.02 * exact.perplexity
    assert q8.divergence(exact) < MOST_DIVERGENCE
