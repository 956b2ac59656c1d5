"""Programs, instruction by instruction."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from waferline.model.compile import compile_program
from waferline.model.dtypes import DTYPES
from waferline.model.fields import Fields
from waferline.model.spec import ModelConfig, parse_config
from waferline_kernels.program import NO_TENSOR, Op, Program

MAX_MODEL_LEN = 128


def config_of(folder: Path) -> ModelConfig:
    return parse_config(Fields.parse((folder / "config.json").read_bytes(), "config.json"))


def table_of(program: Program) -> list[str]:
    return [" ".join(line.replace("[", " [").split()) for line in program.lines()]


def test_a_q8_program(fixtures_dir: Path) -> None:
    program = compile_program(config_of(fixtures_dir / "qwen2"), DTYPES["q8"], MAX_MODEL_LEN)
    layer = [
        "norm x -> act [48 -> 48] weight=layers.1.input_norm group=128",
        "matmul act -> qkv [48 -> 80] weight=layers.1.qkv bias=layers.1.qkv_bias store",
        "rotary qkv -> qkv [80 -> 80] weight=rope layer=1",
        "attend qkv -> ctx [80 -> 48] layer=1",
        "quantize ctx -> act [48 -> 48] group=128",
        "matmul act -> x [48 -> 48] weight=layers.1.o add",
        "norm x -> act [48 -> 48] weight=layers.1.post_norm group=128",
        "matmul act -> ffn [48 -> 64] weight=layers.1.gate_up silu_mul",
        "quantize ffn -> act [64 -> 64] group=128",
        "matmul act -> x [64 -> 48] weight=layers.1.down add",
    ]
    table = table_of(program)
    assert table[0] == "embed x -> x [48 -> 48] weight=logits"
    assert table[11:21] == layer
    assert table[21:] == [
        "norm x -> act [48 -> 48] weight=norm group=128",
        "logits act -> logits [48 -> 259] weight=logits store",
        "sample logits -> logits [259 -> 259]",
    ]
    wanted = [Op(i["op"]) for i in program.instructions if i["wanted_rows"]]
    assert wanted == [Op.NORM, Op.LOGITS]


def test_an_f32_program_quantises_nothing(fixtures_dir: Path) -> None:
    program = compile_program(config_of(fixtures_dir / "odd-sharded"), DTYPES["f32"], MAX_MODEL_LEN)
    assert table_of(program)[:9] == [
        "embed x -> x [50 -> 50] weight=embed",
        "norm x -> act [50 -> 50] weight=layers.0.input_norm",
        "matmul act -> qkv [50 -> 120] weight=layers.0.qkv bias=layers.0.qkv_bias store",
        "rotary qkv -> qkv [120 -> 120] weight=rope layer=0",
        "attend qkv -> ctx [120 -> 60] layer=0",
        "matmul ctx -> x [60 -> 50] weight=layers.0.o bias=layers.0.o_bias add",
        "norm x -> act [50 -> 50] weight=layers.0.post_norm",
        "matmul act -> ffn [50 -> 37] weight=layers.0.gate_up silu_mul",
        "matmul ffn -> x [37 -> 50] weight=layers.0.down add",
    ]
    assert not program.instructions["group"].any()


@pytest.mark.parametrize("name", ["untied", "tied", "odd-sharded", "qwen2"])
@pytest.mark.parametrize("dtype", ["q8", "q4", "f32"])
def test_tensors_stand_in_the_order_of_use(fixtures_dir: Path, name: str, dtype: str) -> None:
    config = config_of(fixtures_dir / name)
    program = compile_program(config, DTYPES[dtype], MAX_MODEL_LEN)
    # A tied embedding is gathered from the output matrix, which lies where it is swept.
    instructions = [i for i in program.instructions if not (config.tied and i["op"] == Op.EMBED)]
    used = dict.fromkeys(int(i[operand]) for i in instructions for operand in ("weight", "bias"))
    assert set(used) - {NO_TENSOR} == set(range(len(program.tensors)))
    order = [i for i in used if i not in (NO_TENSOR, program.tensor_id("rope"))]
    assert order == sorted(order)


def test_the_rotary_table_alone_depends_on_max_model_len(fixtures_dir: Path) -> None:
    config = config_of(fixtures_dir / "untied")
    short, long = (compile_program(config, DTYPES["q8"], length) for length in (16, 256))
    assert (short.instructions == long.instructions).all()
    assert [a.name for a, b in zip(short.tensors, long.tensors, strict=True) if a != b] == ["rope"]
    assert (long.tensors[long.tensor_id("rope")].n, long.tensors[long.tensor_id("rope")].k) == (256, config.head_dim)


def test_overrides_hold_for_their_matrices_alone(fixtures_dir: Path) -> None:
    program = compile_program(config_of(fixtures_dir / "qwen2"), DTYPES["q4"], MAX_MODEL_LEN)
    formats = {tensor.name: tensor.format.name for tensor in program.tensors if not tensor.is_table}
    assert {name for name, format in formats.items() if format == "q8"} == {"layers.0.kv", "layers.1.kv", "logits"}
    assert set(formats.values()) == {"q4", "q8"}
    assert table_of(program)[13:15] == [
        "matmul act -> qkv [48 -> 48] weight=layers.1.q bias=layers.1.q_bias store",
        "matmul act -> qkv [48 -> 32] weight=layers.1.kv bias=layers.1.kv_bias store column=48",
    ]


def test_k_and_v_that_are_not_shared_stay_with_q(fixtures_dir: Path) -> None:
    config = config_of(fixtures_dir / "untied")
    program = compile_program(replace(config, kv_heads=config.heads), DTYPES["q4"], MAX_MODEL_LEN)
    assert [tensor.name for tensor in program.tensors if tensor.format.name == "q8"] == ["logits"]
    assert "layers.0.qkv" in {tensor.name for tensor in program.tensors}


def test_a_dtype_is_described_by_the_overrides_that_a_model_has() -> None:
    assert DTYPES["q4"].described({"qkv", "logits"}) == "q4 (logits: q8)"
    assert DTYPES["q4"].described({"q", "kv", "logits"}) == "q4 (kv: q8, logits: q8)"
    assert DTYPES["q8"].described({"kv", "logits"}) == "q8"
