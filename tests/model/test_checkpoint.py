"""Folders and their tensors: every float dtype, one file or shards, and one clear error for each thing amiss."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from helpers import write_arrays
from waferline.model.checkpoint import Checkpoint
from waferline.model.errors import ModelError
from waferline.model.load import load_model
from waferline.model.parallel import run_jobs
from waferline.model.tensor_file import Block, TensorFile, TensorInfo, to_float32, write_tensor_file

VALUES = np.array([[0.0, 1.0, -2.5], [1e-3, 65504.0, 3.140625]], np.float32)


@pytest.fixture
def folder(fixtures_dir: Path, tmp_path: Path) -> Path:
    """A copy of the f32 model, to be damaged."""
    return Path(shutil.copytree(fixtures_dir / "untied", tmp_path / "model"))


@pytest.fixture
def sharded(fixtures_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(fixtures_dir / "odd-sharded", tmp_path / "model"))


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_float_dtypes(tmp_path: Path, dtype: str) -> None:
    stored = {
        "F32": VALUES,
        "F16": VALUES.astype(np.float16),
        "BF16": (VALUES.view(np.uint32) >> 16).astype(np.uint16),
    }[dtype]
    write_arrays(
        tmp_path / "x",
        {},
        {"pad": TensorInfo("U8", (3,)), "x": TensorInfo(dtype, (2, 3))},
        {"pad": np.zeros(3, np.uint8), "x": stored},
    )
    expected = {
        "F32": VALUES,
        "F16": VALUES.astype(np.float16),
        "BF16": (VALUES.view(np.uint32) & 0xFFFF0000).view(np.float32),
    }
    found = to_float32(TensorFile(tmp_path / "x").view("x"))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected[dtype])


def test_written_files_are_safetensors_and_aligned(tmp_path: Path) -> None:
    tensors = {"b": TensorInfo("F32", (2, 3)), "a": TensorInfo("U8", (5,))}
    data = {"b": VALUES, "a": np.arange(5, dtype=np.uint8)}
    write_arrays(tmp_path / "x", {"key": "ü"}, tensors, data)
    found = load_file(tmp_path / "x")
    assert all((found[name] == data[name]).all() for name in data)
    assert TensorFile(tmp_path / "x").metadata == {"key": "ü"}
    header = int.from_bytes((tmp_path / "x").read_bytes()[:8], "little")
    assert (8 + header) % 64 == 0


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    infos = {"x": TensorInfo("F32", (2, 3))}
    with pytest.raises(ValueError, match=r"x: 20 bytes in blocks, expected F32 \[2, 3\]"):
        write_tensor_file(tmp_path / "x", dict, infos, {"x": [Block(20, lambda: VALUES)]}, run_jobs)
    with pytest.raises(ValueError, match="block: 20 bytes, expected 24"):
        write_tensor_file(tmp_path / "x", dict, infos, {"x": [Block(24, lambda: VALUES.reshape(-1)[:5])]}, run_jobs)
    lengths = iter((1, 100))
    with pytest.raises(ValueError, match=r"metadata: .* bytes of header, expected"):
        write_tensor_file(
            tmp_path / "x", lambda: {"key": "x" * next(lengths)}, infos, {"x": [Block(24, lambda: VALUES)]}, run_jobs
        )
    assert list(tmp_path.iterdir()) == []


def change_tensors(folder: Path, change: Callable[[dict[str, np.ndarray]], None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


NORM = "model.norm.weight"
Q_PROJ = "model.layers.1.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(Q_PROJ), rf"tensor '{Q_PROJ}' is missing, expected shape \[40, 40\]"),
        (lambda t: t.pop("lm_head.weight"), r"tensor 'lm_head.weight' is missing, expected shape \[131, 40\]"),
        (
            lambda t: t.update({Q_PROJ: np.zeros((40, 41), np.float32)}),
            rf"tensor '{Q_PROJ}' is F32 \[40, 41\], expected F32, F16, BF16 of shape \[40, 40\]",
        ),
        (lambda t: t.update({NORM: np.zeros((1, 40), np.float32)}), rf"tensor '{NORM}' is F32 \[1, 40\], .* \[40\]"),
        (lambda t: t.update({NORM: np.zeros(40, np.int8)}), rf"tensor '{NORM}' is I8 \[40\], expected F32, F16, BF16"),
        (
            lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": np.zeros(40, np.float32)}),
            "tensor 'model.layers.0.self_attn.q_proj.bias' is not one that this architecture has",
        ),
    ],
)
def test_tensors_that_do_not_fit(folder: Path, change: Callable[[dict[str, np.ndarray]], None], message: str) -> None:
    change_tensors(folder, change)
    with pytest.raises(ModelError, match=message):
        load_model(folder)


def test_stored_rotary_frequencies_are_passed_over(folder: Path) -> None:
    change_tensors(
        folder, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(5, np.float32)})
    )
    assert load_model(folder).weights["rope"].any()


@pytest.mark.parametrize("name", [NORM, Q_PROJ, "model.layers.0.mlp.up_proj.weight", "lm_head.weight"])
def test_a_value_that_is_not_finite_is_named_when_it_is_packed(folder: Path, name: str) -> None:
    change_tensors(folder, lambda t: t[name].flat.__setitem__(3, np.nan))
    model = load_model(folder)
    with pytest.raises(ModelError, match=f"{name}.*: weight: holds NaN or infinity"):
        dict(model.weights)


@pytest.mark.parametrize("keep", [0, 4, 100, 5000, -1])
def test_truncated_files(folder: Path, keep: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ModelError, match=r"model\.safetensors: not a readable safetensors file"):
        load_model(folder)


def test_a_file_that_is_no_safetensors(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"PK\x03\x04" * 100)
    with pytest.raises(ModelError, match="not a readable safetensors file"):
        load_model(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_missing_small_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ModelError, match=f"no {name}, expected a Hugging Face model folder"):
        load_model(folder)


def test_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"no model.safetensors and no model.safetensors.index.json"):
        load_model(folder)


def test_shards_hold_what_one_file_would(sharded: Path) -> None:
    checkpoint = Checkpoint(sharded)
    names = json.loads((sharded / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(names.values())) > 1
    assert len(checkpoint.paths) == 1 + len(set(names.values()))
    assert all(checkpoint.view(name).shape == checkpoint.info(name).shape for name in names)


def test_a_missing_shard(sharded: Path) -> None:
    (sharded / "model-00002-of-00005.safetensors").unlink()
    with pytest.raises(
        ModelError, match=r"model-00002-of-00005.safetensors: not a readable safetensors file: No such file"
    ):
        load_model(sharded)


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        (None, "weight_map: expected an object"),
        ({NORM: 3}, "weight_map: expected an object"),
        ({NORM: "../model.safetensors"}, "'../model.safetensors', expected a file of the same folder"),
        ({NORM: "weights"}, "'weights', expected a file of the same folder"),
        ({"absent": "model-00001-of-00005.safetensors"}, "no tensor 'absent', which model.safetensors.index.json says"),
    ],
)
def test_a_malformed_index(sharded: Path, weight_map: object, message: str) -> None:
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (sharded / "weights").mkdir()
    with pytest.raises(ModelError, match=message):
        load_model(sharded)
