"""Tiny models of every kind against the logits that transformers computed for them (fixtures/make_golden.py)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from helpers import run_logits
from waferline.model.dtypes import DTYPES, Dtype
from waferline.model.load import load_model, pack_model
from waferline_kernels.tiles import Q8

MODELS = ["untied", "tied", "llama3-rope", "linear-rope", "odd-sharded", "qwen2"]


def golden(folder: Path) -> tuple[list[int], NDArray[np.float32]]:
    with np.load(folder / "golden.npz") as arrays:
        return arrays["token_ids"].tolist(), arrays["logits"]


@pytest.mark.parametrize("name", MODELS)
def test_f32_logits_equal_those_of_transformers(fixtures_dir: Path, name: str, target: str) -> None:
    token_ids, expected = golden(fixtures_dir / name)
    logits = run_logits(load_model(fixtures_dir / name, dtype="f32"), token_ids, target)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", MODELS)
def test_q8_logits_are_near(fixtures_dir: Path, name: str, target: str) -> None:
    token_ids, expected = golden(fixtures_dir / name)
    logits = run_logits(load_model(fixtures_dir / name), token_ids, target)
    assert np.abs(logits - expected).mean() < 0.04 * expected.std()


@pytest.mark.parametrize("name", ["odd-sharded", "qwen2"])
def test_k_and_v_in_a_matrix_of_their_own_change_no_bit(
    fixtures_dir: Path, name: str, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first's keys do not begin at a whole strip of the activations."""
    monkeypatch.setitem(DTYPES, "split", Dtype("split", Q8, {"kv": Q8}))
    token_ids, _ = golden(fixtures_dir / name)
    joined, split = (load_model(fixtures_dir / name, dtype) for dtype in ("q8", "split"))
    assert len(split.program.instructions) == len(joined.program.instructions) + joined.config.layers
    assert (run_logits(split, token_ids, target) == run_logits(joined, token_ids, target)).all()


@pytest.mark.parametrize("name", ["untied", "odd-sharded", "qwen2"])
@pytest.mark.parametrize("dtype", ["q8", "q4", "f32"])
def test_a_packed_model_has_the_same_logits(fixtures_dir: Path, tmp_path: Path, name: str, dtype: str) -> None:
    pack_model(fixtures_dir / name, tmp_path / "packed", dtype)
    token_ids, _ = golden(fixtures_dir / name)
    from_folder, from_file = load_model(fixtures_dir / name, dtype), load_model(tmp_path / "packed")
    assert (run_logits(from_folder, token_ids, "reference") == run_logits(from_file, token_ids, "reference")).all()
