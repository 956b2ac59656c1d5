"""load_model: its arguments, and where BOS and EOS come from."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import outliers
import pytest
from safetensors.numpy import load_file

from waferline.model import load
from waferline.model.errors import ModelError
from waferline.model.load import load_model, pack_model
from waferline_kernels.tiles import FORMATS, unpack_matrix


@pytest.fixture
def folder(fixtures_dir: Path, tmp_path: Path) -> Path:
    """A copy of the tied model (vocabulary 131; BOS 129, EOS 130), to be changed."""
    return Path(shutil.copytree(fixtures_dir / "tied", tmp_path / "model"))


def edit(path: Path, **changes: Any) -> None:
    values = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(values | changes))


def test_a_folder(fixtures_dir: Path) -> None:
    model = load_model(fixtures_dir / "tied")
    assert (model.name, model.path, model.dtype) == ("tied", fixtures_dir / "tied", "q8")
    assert (model.bos_token_id, model.eos_token_ids, model.max_model_len) == (129, (130,), 256)
    assert [tensor.name for tensor in model.program.tensors] == list(model.weights)


def test_rows_of_q_k_v_are_joined_and_gate_and_up_interleaved(fixtures_dir: Path) -> None:
    model, stored = load_model(fixtures_dir / "untied", "f32"), load_file(fixtures_dir / "untied" / "model.safetensors")
    strips = model.weights["layers.0.gate_up"]
    gate, up = (unpack_matrix(np.ascontiguousarray(strips[half::2]), 52, 40, FORMATS["f32"]) for half in (0, 1))
    np.testing.assert_array_equal(gate, stored["model.layers.0.mlp.gate_proj.weight"])
    np.testing.assert_array_equal(up, stored["model.layers.0.mlp.up_proj.weight"])
    qkv = unpack_matrix(model.weights["layers.0.qkv"], 80, 40, FORMATS["f32"])
    parts = [stored[f"model.layers.0.self_attn.{part}_proj.weight"] for part in "qkv"]
    np.testing.assert_array_equal(qkv, np.concatenate(parts))


def test_max_model_len(fixtures_dir: Path) -> None:
    assert load_model(fixtures_dir / "tied", max_model_len=100).weights["rope"].shape == (100, 8)
    for wrong in (0, -1, 257, True, "100", 1.5):
        with pytest.raises(ModelError, match=r"max_model_len: .*, expected 2 to 256"):
            load_model(fixtures_dir / "tied", max_model_len=wrong)  # type: ignore[arg-type]


def test_wrong_arguments(fixtures_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="dtype: 'int4', expected one of bf16, f32, q4, q8"):
        load_model(fixtures_dir / "tied", dtype="int4")
    with pytest.raises(
        ModelError, match="model: 'no-such-model', expected 'demo', a Hugging Face folder or a packed file"
    ):
        load_model("no-such-model")
    pack_model(fixtures_dir / "tied", tmp_path / "packed", "q8")
    with pytest.raises(ModelError, match=r"dtype: 'f32', expected 'q8', in which .* is packed"):
        load_model(tmp_path / "packed", dtype="f32")
    assert load_model(tmp_path / "packed", dtype="q8").dtype == "q8"


def test_end_tokens_come_from_the_first_file_that_has_them(folder: Path) -> None:
    edit(folder / "generation_config.json", eos_token_id=[7, 3, 7, 7, 7], bos_token_id=None)
    edit(folder / "config.json", eos_token_id=5, bos_token_id=6)
    edit(folder / "tokenizer_config.json", eos_token={"content": "<|eos|>"}, bos_token="<|bos|>")
    model = load_model(folder)
    assert (model.bos_token_id, model.eos_token_ids) == (6, (7, 3))
    (folder / "generation_config.json").unlink()
    assert load_model(folder).eos_token_ids == (5,)
    edit(folder / "config.json", eos_token_id=None, bos_token_id=None)
    model = load_model(folder)
    assert (model.bos_token_id, model.eos_token_ids) == (129, (130,))
    (folder / "tokenizer_config.json").unlink()
    model = load_model(folder)
    assert (model.bos_token_id, model.eos_token_ids) == (None, ())


@pytest.mark.parametrize("value", [131, -1, "2", [1, None], [1, 2, 3, 4, 5], True, [{}]])
def test_end_tokens_that_are_no_ids_of_the_vocabulary(folder: Path, value: object) -> None:
    edit(folder / "generation_config.json", eos_token_id=value)
    with pytest.raises(ModelError, match=r"eos_token_id: .*, expected an id or a list of at most 4, from 0 to 130"):
        load_model(folder)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json"])
def test_invalid_json(folder: Path, name: str) -> None:
    (folder / name).write_text("{not json")
    with pytest.raises(ModelError, match=f"{name}: not valid JSON"):
        load_model(folder)


@pytest.mark.parametrize(
    "field", ["num_hidden_layers", "hidden_size", "num_key_value_heads", "head_dim", "intermediate_size", "vocab_size"]
)
def test_absurd_sizes_are_held_to_the_tensors_before_a_program_is_compiled(
    folder: Path, monkeypatch: pytest.MonkeyPatch, field: str
) -> None:
    monkeypatch.setattr(load, "compile_program", lambda *arguments: pytest.fail("compiled first"))
    edit(folder / "config.json", num_attention_heads=2**30, **{field: 2**30})
    with pytest.raises(ModelError, match=r"tensor '.*' is .*, expected"):
        load_model(folder)


def test_a_model_for_shorter_sequences_has_a_shorter_table_of_angles(folder: Path) -> None:
    model = load_model(folder)
    short = model.limited_to(9)
    assert short.max_model_len == 9
    assert short.weights["rope"].shape == (9, 8)
    np.testing.assert_array_equal(short.weights["rope"], model.weights["rope"][:9])
    for spec in short.program.tensors:
        assert short.weights[spec.name].nbytes == spec.nbytes
    assert model.limited_to(256) is model.limited_to(300) is model


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs Linux's account of a process's memory")
def test_a_packed_model_is_in_memory_once(tmp_path: Path) -> None:
    """Anonymous memory grows by the arenas, and not by another copy; the file's pages are the page cache's."""
    tensors = {
        "model.embed_tokens.weight": (32768, 256),
        "model.norm.weight": (256,),
        **{f"model.layers.0.{norm}_layernorm.weight": (256,) for norm in ("input", "post_attention")},
        **{f"model.layers.0.self_attn.{part}_proj.weight": (256, 256) for part in "qkvo"},
        **{f"model.layers.0.mlp.{part}_proj.weight": (32768, 256) for part in ("gate", "up")},
        "model.layers.0.mlp.down_proj.weight": (256, 32768),
    }
    rng, source = np.random.default_rng(0), Path(__file__).parents[1] / "fixtures" / "tied"
    folder = outliers.write_model(
        source,
        tmp_path / "model",
        {name: rng.standard_normal(shape, np.float32) for name, shape in tensors.items()},
        vocab_size=32768,
        hidden_size=256,
        intermediate_size=32768,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=64,
    )
    pack_model(folder, tmp_path / "packed", "q8")
    code = f"""
from pathlib import Path
import numpy as np
from waferline import LLM
def anonymous():
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon:"))
LLM("demo", kv_cache_memory=1 << 20).close()
before = anonymous()
llm = LLM({str(tmp_path / "packed")!r}, threads=2, kv_cache_memory=1 << 20, max_num_seqs=1, max_num_batched_tokens=1)
print((anonymous() - before) / llm.stats()["model_bytes"])
llm.close()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 1.3, done.stdout
