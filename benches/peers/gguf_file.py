"""A Hugging Face Llama folder as a GGUF file, for llama.cpp: float32, without a tokenizer, for token ids are all it gets.

llama.cpp rotates neighbouring pairs (x0, x1) where the folder's layout rotates halves (x0, x[d/2]), so the rows of q and k
are interleaved. Of a head of 4 rows:

    in the folder   r0 r1 i0 i1        in the file   r0 i0 r1 i1
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from waferline.model.checkpoint import Checkpoint
from waferline.model.tensor_file import to_float32

from .runner import Absent, read_config

LAYER_TENSORS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(folder: Path, path: Path) -> None:
    """Write ``folder``'s model to ``path``. Raises Absent for an architecture that this does not convert."""
    config = read_config(folder)
    if config["model_type"] != "llama" or config.get("rope_scaling"):
        raise Absent(f"the GGUF writer here knows Llama without rope scaling, not {config['model_type']!r} with it")
    writer = gguf.GGUFWriter(path, "llama")
    write_config(writer, config)
    for name, values in tensors(folder, config):
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_config(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("none")
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])


def tensors(folder: Path, config: dict[str, Any]) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Every tensor by its name in the file, float32 [rows, columns] or [columns]."""
    checkpoint = Checkpoint(folder)

    def read(name: str) -> NDArray[np.float32]:
        return to_float32(checkpoint.view(f"{name}.weight"))

    yield "token_embd.weight", read("model.embed_tokens")
    yield "output_norm.weight", read("model.norm")
    if not config.get("tie_word_embeddings"):
        yield "output.weight", read("lm_head")
    num_heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    for layer in range(config["num_hidden_layers"]):
        for theirs, ours in LAYER_TENSORS.items():
            values = read(f"model.layers.{layer}.{theirs}")
            if ours in num_heads:
                values = interleave_halves(values, num_heads[ours])
            yield f"blk.{layer}.{ours}.weight", values


def interleave_halves(weight: NDArray[np.float32], num_heads: int) -> NDArray[np.float32]:
    """The rows of ``weight`` [num_heads * head_dim, k] for a rotation of neighbours instead of halves."""
    rows, k = weight.shape
    halves = weight.reshape(num_heads, 2, rows // num_heads // 2, k)
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows, k))
