"""What a model is: its sizes, and the table of architectures that says how a checkpoint names its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from waferline_kernels.program import Dims, TensorSpec

from .fields import Fields
from .rope import RopeScaling, parse_rope


@dataclass(frozen=True)
class Pair:
    """Tensors between which each channel may be rescaled, because all that lies between is linear in the channel.

    The rows of source ``part`` of the role ``made_by`` (or the gains of a norm) make the channels; the columns of the
    matrices ``read_by``, and nothing else, read them. A program has the pair if it has all of these roles.
    """

    made_by: str
    part: int
    read_by: tuple[str, ...]


@dataclass(frozen=True)
class Architecture:
    """How a family of models differs from a plain Llama: data, read by the config parser, the compiler and the packer.

    ``sources`` has, for each role of a program's tensors (the last word of its name), the checkpoint tensors that it is
    made of: several are joined by rows, gate and up strip by strip. ``pairs``: see Pair.
    """

    name: str
    qkv_bias: bool | None  # None: as the config's attention_bias says, which adds a bias to o too
    sources: Mapping[str, tuple[str, ...]] = field(repr=False)
    pairs: tuple[Pair, ...] = field(repr=False)

    def source_names(self, tensor: str) -> tuple[str, ...]:
        """Checkpoint names of a program's tensor: ``layers.3.o`` -> ``("model.layers.3.self_attn.o_proj.weight",)``."""
        layer, _, role = tensor.removeprefix("layers.").rpartition(".")
        return tuple(template.format(layer=layer) for template in self.sources[role])


_LAYER = "model.layers.{layer}."
_LLAMA_SOURCES = MappingProxyType(
    {
        "embed": ("model.embed_tokens.weight",),
        "input_norm": (_LAYER + "input_layernorm.weight",),
        "qkv": tuple(_LAYER + f"self_attn.{part}_proj.weight" for part in "qkv"),
        "qkv_bias": tuple(_LAYER + f"self_attn.{part}_proj.bias" for part in "qkv"),
        "q": (_LAYER + "self_attn.q_proj.weight",),
        "q_bias": (_LAYER + "self_attn.q_proj.bias",),
        "kv": tuple(_LAYER + f"self_attn.{part}_proj.weight" for part in "kv"),
        "kv_bias": tuple(_LAYER + f"self_attn.{part}_proj.bias" for part in "kv"),
        "o": (_LAYER + "self_attn.o_proj.weight",),
        "o_bias": (_LAYER + "self_attn.o_proj.bias",),
        "post_norm": (_LAYER + "post_attention_layernorm.weight",),
        "gate_up": (_LAYER + "mlp.gate_proj.weight", _LAYER + "mlp.up_proj.weight"),
        "down": (_LAYER + "mlp.down_proj.weight",),
        "norm": ("model.norm.weight",),
        "logits": ("lm_head.weight",),
    }
)

_LLAMA_PAIRS = (
    Pair("input_norm", 0, ("qkv",)),
    Pair("input_norm", 0, ("q", "kv")),
    Pair("qkv", 2, ("o",)),  # attention takes weighted means of v
    Pair("kv", 1, ("o",)),
    Pair("post_norm", 0, ("gate_up",)),
    Pair("gate_up", 1, ("down",)),  # silu(gate) * up
    Pair("norm", 0, ("logits",)),
)

ARCHITECTURES = {
    name: Architecture(name, qkv_bias, _LLAMA_SOURCES, _LLAMA_PAIRS)
    for name, qkv_bias in (("LlamaForCausalLM", None), ("Qwen2ForCausalLM", True))
}


@dataclass(frozen=True)
class ModelConfig:
    architecture: Architecture
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None
    max_position_embeddings: int
    tied: bool  # the output matrix is the embedding
    qkv_bias: bool
    o_bias: bool

    @property
    def dims(self) -> Dims:
        return Dims(self.hidden, self.layers, self.heads, self.kv_heads, self.head_dim, self.ffn, self.vocab)

    def checkpoint_parts(self, tensor: TensorSpec) -> dict[str, tuple[int, ...]]:
        """The checkpoint tensors that ``tensor`` is made of, in order: name -> shape."""
        role = "embed" if self.tied and tensor.name == "logits" else tensor.name
        names = self.architecture.source_names(role)
        rows = [tensor.k if tensor.is_table else tensor.n] * len(names)
        if tensor.name.removesuffix("_bias").endswith("kv"):
            rows = [self.heads * self.head_dim, self.kv_heads * self.head_dim, self.kv_heads * self.head_dim][
                -len(names) :
            ]
        return {name: (n,) if tensor.is_table else (n, tensor.k) for name, n in zip(names, rows, strict=True)}


def parse_config(config: Fields) -> ModelConfig:
    """The model that a ``config.json`` describes.

    Raises ModelError, naming the field, for what is missing, of a wrong type, inconsistent or not supported.
    """
    architecture = _architecture(config)
    hidden, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    kv_heads = config.integer("num_key_value_heads", heads)
    if heads % kv_heads:
        config.fail("num_key_value_heads", f"a divisor of num_attention_heads ({heads})")
    if "head_dim" not in config and hidden % heads:
        config.fail("num_attention_heads", f"a divisor of hidden_size ({hidden}) where head_dim is not given")
    head_dim = config.integer("head_dim", hidden // heads)
    if head_dim % 2:
        config.fail("head_dim", f"an even number (here: {head_dim})")
    _refuse_what_is_not_supported(config)
    attention_bias = config.boolean("attention_bias", False)
    rope_theta, rope_scaling = parse_rope(config)
    return ModelConfig(
        architecture=architecture,
        hidden=hidden,
        layers=config.integer("num_hidden_layers"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        ffn=config.integer("intermediate_size"),
        vocab=config.integer("vocab_size"),
        norm_eps=config.number("rms_norm_eps"),
        rope_theta=rope_theta,
        rope_scaling=rope_scaling,
        max_position_embeddings=config.integer("max_position_embeddings", low=2),  # a token, and what follows
        tied=config.boolean("tie_word_embeddings", False),
        qkv_bias=attention_bias if architecture.qkv_bias is None else architecture.qkv_bias,
        o_bias=attention_bias and architecture.qkv_bias is None,
    )


def _architecture(config: Fields) -> Architecture:
    names = config.raw("architectures")
    known = isinstance(names, list) and len(names) == 1 and isinstance(names[0], str) and names[0] in ARCHITECTURES
    if not known:
        config.fail("architectures", f"a list of one of {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[names[0]]


def _refuse_what_is_not_supported(config: Fields) -> None:
    if config.string("hidden_act", "silu") != "silu":
        config.fail("hidden_act", "'silu'")
    if config.boolean("mlp_bias", False):
        config.fail("mlp_bias", "false")
    if config.boolean("use_sliding_window", False):
        config.fail("use_sliding_window", "false: attention over a sliding window is not supported")
    layer_types = config.raw("layer_types")
    if layer_types is not None and not (
        isinstance(layer_types, list) and set(map(str, layer_types)) <= {"full_attention"}
    ):
        config.fail("layer_types", "'full_attention' in every layer")
    if "quantization_config" in config:
        config.fail("quantization_config", "none: a checkpoint in float32, float16 or bfloat16")
