"""Packed files: the same weights as the folder, the same bytes each time, and one clear error for what is amiss."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest

from helpers import write_arrays
from waferline.model import load
from waferline.model.errors import ModelError
from waferline.model.load import load_model, pack_model
from waferline.model.parallel import run_jobs
from waferline.model.tensor_file import TensorFile, TensorInfo, array_block, write_tensor_file

MODELS = ["untied", "tied", "odd-sharded", "qwen2"]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", ["q8", "f32"])
def test_a_packed_file_is_the_folder(fixtures_dir: Path, tmp_path: Path, name: str, dtype: str) -> None:
    pack_model(fixtures_dir / name, tmp_path / "packed", dtype)
    folder, packed = load_model(fixtures_dir / name, dtype, 100), load_model(tmp_path / "packed", max_model_len=100)
    assert packed.dtype == dtype
    assert packed.config == folder.config
    assert packed.program.tensors == folder.program.tensors
    assert (packed.program.instructions == folder.program.instructions).all()
    assert (packed.bos_token_id, packed.eos_token_ids) == (folder.bos_token_id, folder.eos_token_ids)
    assert packed.tokenizer.encode("Hello, you!") == folder.tokenizer.encode("Hello, you!")
    assert list(packed.weights) == list(folder.weights) == [tensor.name for tensor in folder.program.tensors]
    for tensor in folder.program.tensors:
        array = packed.weights[tensor.name]
        shape = (tensor.n, tensor.k) if tensor.is_table else (tensor.num_strips, tensor.strip_bytes)
        assert (array.shape, array.dtype) == (shape, np.float32 if tensor.is_table else np.uint8)
        np.testing.assert_array_equal(array, folder.weights[tensor.name])


def test_loading_maps_the_file(fixtures_dir: Path, tmp_path: Path) -> None:
    pack_model(fixtures_dir / "tied", tmp_path / "packed")
    weights = load_model(tmp_path / "packed").weights
    for name in ("layers.0.qkv", "layers.1.gate_up", "logits"):
        assert not weights[name].flags.owndata
        assert not weights[name].flags.writeable
        assert weights[name].ctypes.data % 64 == 0


def test_the_same_sources_give_the_same_bytes(fixtures_dir: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        pack_model(fixtures_dir / "odd-sharded", tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_of_two_written_at_once_the_last_to_be_complete_stays_whole(tmp_path: Path) -> None:
    path, infos = tmp_path / "packed", {"a": TensorInfo("U8", (64,))}
    first, second = (np.full(64, value, np.uint8) for value in (1, 2))

    def write_another_meanwhile(jobs: Iterable[Callable[[], None]]) -> None:
        write_arrays(path, {}, infos, {"a": second})
        assert (TensorFile(path).view("a") == second).all()
        run_jobs(jobs)

    write_tensor_file(path, dict, infos, {"a": [array_block(first)]}, write_another_meanwhile)
    assert (TensorFile(path).view("a") == first).all()
    assert list(tmp_path.iterdir()) == [path]


def test_the_metadata_names_the_sources(fixtures_dir: Path, tmp_path: Path) -> None:
    pack_model(fixtures_dir / "odd-sharded", tmp_path / "packed")
    metadata = TensorFile(tmp_path / "packed").metadata
    assert (metadata["format"], metadata["format_version"], metadata["dtype"]) == ("waferline-packed", "2", "q8")
    files = [p for p in (fixtures_dir / "odd-sharded").iterdir() if p.name != "golden.npz"]
    assert json.loads(metadata["sources"]) == {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def rewrite(path: Path, metadata: dict[str, str] | None = None, drop: str = "", **tensors: np.ndarray) -> None:
    """Write ``path`` again with some of its metadata and tensors changed or dropped."""
    file = TensorFile(path)
    data = {name: file.view(name).copy() for name in file.tensors if name != drop} | tensors
    names = {np.dtype(np.uint8): "U8", np.dtype(np.float32): "F32"}
    infos = {name: TensorInfo(names[array.dtype], array.shape) for name, array in data.items()}
    write_arrays(path, file.metadata | (metadata or {}), infos, data)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"format": "pt"}, "format: 'pt', expected waferline-packed; for a checkpoint give the folder"),
        ({"format_version": "1"}, "format_version: '1', expected 2; pack the model again"),
        ({"dtype": "q3"}, "dtype: 'q3', expected f32 or bf16 or q8 or q4"),
        ({"group": "32"}, "group: '32', expected 128"),
        ({"overrides": '{"logits": "q4"}'}, r"overrides: .*q4.*, expected {}; pack the model again"),
    ],
)
def test_another_format(fixtures_dir: Path, tmp_path: Path, metadata: dict[str, str], message: str) -> None:
    pack_model(fixtures_dir / "tied", tmp_path / "packed")
    rewrite(tmp_path / "packed", metadata)
    with pytest.raises(ModelError, match=message):
        load_model(tmp_path / "packed")


@pytest.mark.parametrize("name", ["layers.1.o", "norm", "logits"])
def test_tensors_that_do_not_fit(fixtures_dir: Path, tmp_path: Path, name: str) -> None:
    pack_model(fixtures_dir / "tied", tmp_path / "packed")
    rewrite(tmp_path / "packed", **{name: np.zeros((1, 64), np.uint8)})
    with pytest.raises(ModelError, match=rf"tensor '{name}' is U8 \[1, 64\], expected (U8|F32) \["):
        load_model(tmp_path / "packed")
    rewrite(tmp_path / "packed", drop=name)
    with pytest.raises(ModelError, match=f"tensor '{name}' is missing, expected"):
        load_model(tmp_path / "packed")


def test_other_tensors(fixtures_dir: Path, tmp_path: Path) -> None:
    pack_model(fixtures_dir / "tied", tmp_path / "packed")
    rewrite(tmp_path / "packed", more=np.zeros((1, 64), np.uint8))
    with pytest.raises(ModelError, match="tensor 'more' is not one that this model has"):
        load_model(tmp_path / "packed")
    rewrite(tmp_path / "packed", drop="config.json")
    with pytest.raises(ModelError, match=r"config\.json is missing, expected the file's bytes"):
        load_model(tmp_path / "packed")


def test_a_config_of_absurd_sizes_is_held_to_the_tensors_before_a_program_is_compiled(
    fixtures_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack_model(fixtures_dir / "tied", tmp_path / "packed")
    config = json.loads((fixtures_dir / "tied" / "config.json").read_text()) | {"num_hidden_layers": 2**30}
    rewrite(tmp_path / "packed", **{"config.json": np.frombuffer(json.dumps(config).encode(), np.uint8)})
    monkeypatch.setattr(load, "compile_program", lambda *arguments: pytest.fail("compiled first"))
    with pytest.raises(ModelError, match=r"tensor 'layers\.2\.input_norm' is missing, expected"):
        load_model(tmp_path / "packed")


def test_a_truncated_file(fixtures_dir: Path, tmp_path: Path) -> None:
    pack_model(fixtures_dir / "tied", tmp_path / "packed")
    (tmp_path / "packed").write_bytes((tmp_path / "packed").read_bytes()[:-100])
    with pytest.raises(ModelError, match="packed: not a readable safetensors file"):
        load_model(tmp_path / "packed")


def test_a_checkpoint_file_is_not_a_packed_one(fixtures_dir: Path) -> None:
    with pytest.raises(ModelError, match="format: 'pt', expected waferline-packed; for a checkpoint give the folder"):
        load_model(fixtures_dir / "tied" / "model.safetensors")


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("tied", ("model.safetensors", "config.json", "tokenizer_config.json", "model.safetensors.index.json")),
        ("odd-sharded", ("model-00001-of-00005.safetensors", "model.safetensors.index.json", "model.safetensors")),
    ],
)
def test_a_model_is_not_packed_over_itself(
    fixtures_dir: Path, tmp_path: Path, name: str, files: tuple[str, ...]
) -> None:
    folder, link = shutil.copytree(fixtures_dir / name, tmp_path / "model"), tmp_path / "link"
    link.symlink_to(folder)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    for file in files:
        with pytest.raises(ModelError, match=f"out: '{link}/{file}', expected another file than the model's own"):
            pack_model(folder, link / file)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    pack_model(folder, folder / "model.wafer")  # a file of its own beside them


def test_an_out_that_cannot_be_written_is_refused_before_anything_is_computed(
    fixtures_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "calibrated_strips", lambda *arguments: pytest.fail("calibrated first"))
    (tmp_path / "file").touch()
    for out in (tmp_path, tmp_path / "absent" / "packed", tmp_path / "file" / "packed"):
        with pytest.raises(ModelError, match=f"out: '{out}', expected a file in a folder that is there"):
            pack_model(fixtures_dir / "tied", out, "q4", calibrate=True)


def test_what_cannot_be_packed(fixtures_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="dtype: 'q3', expected one of bf16, f32, q4, q8"):
        pack_model(fixtures_dir / "tied", tmp_path / "packed", "q3")
    pack_model(fixtures_dir / "tied", tmp_path / "packed")
    with pytest.raises(ModelError, match="expected 'demo' or a Hugging Face folder"):
        pack_model(tmp_path / "packed", tmp_path / "again")
    folder = shutil.copytree(fixtures_dir / "tied", tmp_path / "folder")
    for content, message in (("{broken", "generation_config.json"), ('{"eos_token_id": 9999}', "eos_token_id")):
        (folder / "generation_config.json").write_text(content)
        with pytest.raises(ModelError, match=message):
            pack_model(folder, tmp_path / "never")
    assert not (tmp_path / "never").exists()
