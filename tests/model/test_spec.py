"""Configs: what is read, and one clear error for what is not supported."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from waferline.model.errors import ModelError
from waferline.model.fields import Fields
from waferline.model.rope import RopeScaling
from waferline.model.spec import ModelConfig, parse_config

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "intermediate_size": 172,
    "vocab_size": 512,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
ABSENT = object()


def parse(**changes: Any) -> ModelConfig:
    values = {name: value for name, value in (LLAMA | changes).items() if value is not ABSENT}
    return parse_config(Fields.parse(json.dumps(values).encode(), "config.json"))


def test_defaults() -> None:
    config = parse(num_key_value_heads=ABSENT)
    assert (config.kv_heads, config.head_dim, config.rope_theta, config.rope_scaling) == (8, 8, 10000.0, None)
    assert (config.tied, config.qkv_bias, config.o_bias) == (False, False, False)


def test_null_counts_as_absent() -> None:
    config = parse(head_dim=None, rope_scaling=None, num_key_value_heads=None)
    assert (config.head_dim, config.kv_heads, config.rope_scaling) == (8, 8, None)


def test_head_dim_need_not_divide_hidden() -> None:
    assert parse(head_dim=80, hidden_size=50, num_attention_heads=12).dims.qkv == (12 + 2 * 4) * 80


def test_biases() -> None:
    with_bias = parse(attention_bias=True)
    assert with_bias.qkv_bias
    assert with_bias.o_bias
    # Configs of Qwen2 may carry attention_bias, which its models do not heed.
    qwen2 = parse(architectures=["Qwen2ForCausalLM"], attention_bias=False, use_sliding_window=False)
    assert qwen2.qkv_bias
    assert not qwen2.o_bias


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_theta": 5e5, "rope_scaling": LLAMA3},
        {"rope_parameters": LLAMA3 | {"rope_theta": 5e5}},
        {"rope_theta": 5e5, "rope_parameters": LLAMA3},
        {"rope_theta": 5e5, "rope_parameters": LLAMA3 | {"rope_theta": 5e5}, "rope_scaling": LLAMA3},
    ],
)
def test_rotary_parameters_old_and_new(changes: dict[str, Any]) -> None:
    config = parse(**changes)
    assert config.rope_theta == 5e5
    assert config.rope_scaling == RopeScaling("llama3", 8.0, 1.0, 4.0, 8192)


def test_linear_scaling_and_the_old_name_of_its_type() -> None:
    assert parse(rope_scaling={"type": "linear", "factor": 2}).rope_scaling == RopeScaling("linear", 2.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "architectures: .*GPT2.*LlamaForCausalLM, Qwen2ForCausalLM"),
        ({"architectures": ABSENT}, "architectures: missing"),
        ({"architectures": [["LlamaForCausalLM"]]}, "architectures: .*expected a list"),
        ({"hidden_size": ABSENT}, "hidden_size: missing, expected an integer of at least 1"),
        ({"hidden_size": "64"}, "hidden_size: '64', expected an integer"),
        ({"num_hidden_layers": 0}, "num_hidden_layers: 0, expected"),
        ({"max_position_embeddings": 1}, "max_position_embeddings: 1, expected an integer of at least 2"),
        ({"vocab_size": True}, "vocab_size: True, expected an integer"),
        ({"rms_norm_eps": "tiny"}, "rms_norm_eps: 'tiny', expected a number"),
        ({"rms_norm_eps": -1.0}, "rms_norm_eps: -1.0, expected a number from 1e-30 to 1e"),
        ({"num_key_value_heads": 3}, r"num_key_value_heads: 3, expected a divisor of num_attention_heads \(8\)"),
        ({"num_attention_heads": 12}, "num_attention_heads: 12, expected a divisor of hidden_size"),
        ({"head_dim": 7}, "head_dim: 7, expected an even number"),
        ({"hidden_act": "gelu"}, "hidden_act: 'gelu', expected 'silu'"),
        ({"mlp_bias": True}, "mlp_bias: True, expected false"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings: 1, expected true or false"),
        ({"use_sliding_window": True}, "use_sliding_window: True"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ({"layer_types": 3}, "layer_types: 3"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope_scaling: rope_type: 'yarn', expected one of"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_scaling: type: 'dynamic', expected one of"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling: factor: missing"),
        ({"rope_scaling": LLAMA3 | {"high_freq_factor": 1.0}}, "high_freq_factor: 1.0, expected a number above"),
        ({"rope_scaling": "linear"}, "rope_scaling: 'linear', expected an object"),
        (
            {"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"rope_type": "yarn", "factor": 2.0}},
            "rope_scaling: rope_type: 'yarn', expected one of",
        ),
        (
            {"rope_parameters": {"rope_theta": 5e5}, "rope_scaling": {"type": "linear", "factor": 2.0}},
            "rope_scaling: .*'linear'.*, expected what rope_parameters says: .*500000.0",
        ),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor: 0.5, expected 1"),
    ],
)
def test_one_error_that_names_the_field(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=f"config.json: .*{message}"):
        parse(**changes)


@pytest.mark.parametrize("data", [b"", b"{", b"[1]", b"\xff\xfe", b'"text"', b'{"a": "\\ud800"}'])
def test_not_a_json_object(data: bytes) -> None:
    with pytest.raises(ModelError, match=r"config\.json: (not valid JSON|holds)"):
        Fields.parse(data, "config.json")


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["", "silu", "8"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["factor", "rope_type", "type"]), inner, max_size=3)
    ),
    max_leaves=5,
)


@given(
    st.dictionaries(
        st.sampled_from([*LLAMA, "head_dim", "rope_scaling", "rope_theta", "layer_types", "hidden_act"]),
        _JSON,
        max_size=3,
    )
)
def test_any_value_gives_a_config_or_a_model_error(changes: dict[str, Any]) -> None:
    try:
        config = parse(**changes)
    except ModelError:
        return
    assert config.heads % config.kv_heads == config.head_dim % 2 == 0
