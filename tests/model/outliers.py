"""Models that compute the same function, but with channels of outlying magnitude. They are dictionaries of float32
checkpoint tensors, as ``read_model`` gives them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from waferline.model.checkpoint import Checkpoint
from waferline.model.tensor_file import to_float32

Tensors = dict[str, np.ndarray]
LAYER = "model.layers.{}."


def read_model(folder: Path) -> tuple[dict[str, int], Tensors]:
    """A folder's config and its tensors in float32."""
    checkpoint, config = Checkpoint(folder), json.loads((folder / "config.json").read_text())
    return config, {name: to_float32(checkpoint.view(name)) for name in checkpoint.names()}


def write_model(source: Path, out: Path, tensors: Tensors, **changes: object) -> Path:
    """Write ``tensors`` as a folder with the small files of ``source``, its config changed."""
    out.mkdir()
    for file in source.glob("*.json"):
        if not file.name.endswith(".index.json"):
            shutil.copyfile(file, out / file.name)
    config = json.loads((source / "config.json").read_text()) | changes
    (out / "config.json").write_text(json.dumps(config))
    save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, out / "model.safetensors")
    return out


def pick(channels: int, rng: np.random.Generator) -> np.ndarray:
    return rng.choice(channels, max(1, channels // 50), replace=False)


def in_norms(config: dict[str, int], tensors: Tensors, factor: float) -> Tensors:
    """Norm gains times ``factor`` in some channels. Rescaling removes them."""
    tensors, rng = dict(tensors), np.random.default_rng(1)
    for layer in range(config["num_hidden_layers"]):
        at = LAYER.format(layer)
        attention = [f"self_attn.{part}_proj" for part in "qkv"]
        for norm, readers in (("input", attention), ("post_attention", ["mlp.gate_proj", "mlp.up_proj"])):
            scale = np.ones(config["hidden_size"], np.float32)
            scale[pick(len(scale), rng)] = factor
            tensors[f"{at}{norm}_layernorm.weight"] = tensors[f"{at}{norm}_layernorm.weight"] * scale
            for reader in readers:
                tensors[f"{at}{reader}.weight"] = tensors[f"{at}{reader}.weight"] / scale
    return tensors


def between_up_and_down(config: dict[str, int], tensors: Tensors, factor: float) -> Tensors:
    """Rescaling removes them."""
    tensors, rng = dict(tensors), np.random.default_rng(2)
    for layer in range(config["num_hidden_layers"]):
        up, down = (f"{LAYER.format(layer)}mlp.{part}_proj.weight" for part in ("up", "down"))
        scale = np.ones(config["intermediate_size"], np.float32)
        scale[pick(len(scale), rng)] = factor
        tensors[up], tensors[down] = tensors[up] * scale[:, None], tensors[down] / scale
    return tensors


def between_v_and_o(config: dict[str, int], tensors: Tensors, factor: float) -> Tensors:
    """Rescaling removes them."""
    tensors, rng = dict(tensors), np.random.default_rng(3)
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config["head_dim"]
    for layer in range(config["num_hidden_layers"]):
        v, o = (f"{LAYER.format(layer)}self_attn.{part}_proj.weight" for part in "vo")
        bias = v.replace("weight", "bias")
        scale = np.ones((kv_heads, head_dim), np.float32)
        scale.reshape(-1)[pick(scale.size, rng)] = factor
        tensors[v] = tensors[v] * scale.reshape(-1, 1)
        if bias in tensors:
            tensors[bias] = tensors[bias] * scale.reshape(-1)
        tensors[o] = tensors[o] / np.repeat(scale, heads // kv_heads, axis=0).reshape(-1)
    return tensors


def in_the_residual_stream(config: dict[str, int], tensors: Tensors) -> Tensors:
    """The residual stream rotated so that its strongest direction is one channel. Rescaling does not
    remove that. Gains are folded, for a rotation does not commute with them, and so the output matrix is no longer tied."""
    tensors, layers = dict(tensors), range(config["num_hidden_layers"])
    embedding = tensors["model.embed_tokens.weight"]
    written = [
        tensors[f"{LAYER.format(i)}{name}.weight"].T for i in layers for name in ("self_attn.o_proj", "mlp.down_proj")
    ]
    strongest = np.linalg.eigh(sum(x.astype(np.float64).T @ x for x in (embedding, *written)))[1][:, -1]
    mirror = strongest - np.eye(len(strongest))[3]
    mirror /= np.linalg.norm(mirror)
    turn = (np.eye(len(mirror)) - 2 * np.outer(mirror, mirror)).astype(np.float32)
    readers = {
        f"{LAYER.format(i)}{name}.weight": f"{LAYER.format(i)}{norm}_layernorm.weight"
        for i in layers
        for norm, names in (
            ("input", [f"self_attn.{part}_proj" for part in "qkv"]),
            ("post_attention", ["mlp.gate_proj", "mlp.up_proj"]),
        )
        for name in names
    }
    tensors["lm_head.weight"] = tensors.get("lm_head.weight", embedding)
    for reader, norm in (readers | {"lm_head.weight": "model.norm.weight"}).items():
        tensors[reader] = (tensors[reader] * tensors[norm]) @ turn
    for norm in {*readers.values(), "model.norm.weight"}:
        tensors[norm] = np.ones_like(tensors[norm])
    tensors["model.embed_tokens.weight"] = embedding @ turn
    for i in layers:
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            tensors[f"{LAYER.format(i)}{name}.weight"] = turn @ tensors[f"{LAYER.format(i)}{name}.weight"]
    return tensors
