"""Attention over each KV format: held to the reference, and every row's bits its own whatever it is computed with."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from helpers import FUSED_LEVELS, TARGETS, fill_slot
from programs import TINY, Weights, even_placement, make_executor, make_limits, random_program
from waferline_kernels.executor import Executor
from waferline_kernels.kv_cache import KV_BF16, KV_F32, KV_FORMATS, KV_INT8
from waferline_kernels.program import Dims, Op, Program
from waferline_kernels.sequences import SPAN
from waferline_kernels.tiles import F32

LENGTH = 278  # two chunks of native attention, the second not full, and its last block neither
MAX_MODEL_LEN = 288
SHAPES = [
    TINY,
    Dims(hidden=64, layers=1, heads=3, kv_heads=3, head_dim=64, ffn=16, vocab=40),
    Dims(hidden=36, layers=1, heads=7, kv_heads=1, head_dim=80, ffn=33, vocab=50),
    Dims(hidden=32, layers=1, heads=70, kv_heads=1, head_dim=2, ffn=16, vocab=20),
    Dims(hidden=16, layers=1, heads=3, kv_heads=1, head_dim=512, ffn=16, vocab=20),
]
NARROW = [  # one row of these has a path of its own but on base, one for each number of heads that share a KV head
    Dims(hidden=16, layers=1, heads=2, kv_heads=2, head_dim=6, ffn=16, vocab=30),
    Dims(hidden=16, layers=1, heads=4, kv_heads=2, head_dim=8, ffn=16, vocab=30),
    Dims(hidden=16, layers=1, heads=3, kv_heads=1, head_dim=16, ffn=16, vocab=30),
    Dims(hidden=16, layers=1, heads=4, kv_heads=1, head_dim=8, ffn=16, vocab=30),
]
TOLERANCE = {"f32": 2e-5, "bf16": 2e-3, "int8": 2e-2}  # where a sum's last bit moves a rounded key by one step


@pytest.fixture(params=TARGETS)
def target(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def make(target: str, model: tuple[Program, Weights], kv_dtype: str, threads: int = 1) -> Executor:
    limits = replace(make_limits(2, MAX_MODEL_LEN, 2 * MAX_MODEL_LEN, MAX_MODEL_LEN), kv_dtype=kv_dtype)
    return make_executor(target, model[0], even_placement(model[0], threads), model[1], limits)


def logits(
    target: str,
    model: tuple[Program, Weights],
    kv_dtype: str,
    chunks: tuple[int, ...] = (LENGTH,),
    threads: int = 1,
    has_neighbour: bool = False,
) -> np.ndarray:
    """Logits of every position of a sequence, computed in ``chunks``."""
    vocab = model[0].dims.vocab
    tokens = [(i * 11 + 3) % vocab for i in range(LENGTH)]
    executor, parts, start = make(target, model, kv_dtype, threads), [], 0
    try:
        for count in chunks:
            fill_slot(executor, 0, tokens[7:])
            fill_slot(executor, 1, tokens)
            batch = [(0, 0, LENGTH - 7, 0)] * has_neighbour + [(1, start, count, count)]
            executor.run(model[0], np.array(batch, SPAN), 1)
            executor.ring.drain()
            parts.append(executor.logits[:count, :vocab].copy())
            start += count
    finally:
        executor.close()
    return np.concatenate(parts)


@pytest.mark.parametrize("kv_dtype", KV_FORMATS)
@pytest.mark.parametrize("dims", SHAPES, ids=lambda d: f"{d.heads}x{d.kv_heads}x{d.head_dim}")
def test_attention_agrees_with_the_reference(target: str, dims: Dims, kv_dtype: str) -> None:
    """What amx multiplies in tile registers has weights rounded as values are, which adds little to what that costs."""
    model = random_program(dims, F32, max_model_len=MAX_MODEL_LEN)
    result, reference = logits(target, model, kv_dtype), logits("reference", model, kv_dtype)
    difference = np.abs(result - reference)
    if (target, kv_dtype) == ("native-amx", "bf16") and dims.head_dim >= 32:
        exact = logits("reference", model, "f32")
        assert np.abs(result - exact).mean() < 1.25 * np.abs(reference - exact).mean()
        assert difference.max() < 10 * TOLERANCE[kv_dtype]
    else:
        assert difference.max() < TOLERANCE[kv_dtype]
        assert difference.mean() < TOLERANCE[kv_dtype] / 20


@pytest.mark.parametrize("kv_dtype", KV_FORMATS)
@pytest.mark.parametrize("dims", SHAPES[:3] + NARROW, ids=lambda d: f"{d.heads}x{d.kv_heads}x{d.head_dim}")
def test_bits_depend_on_neither_threads_nor_chunks_nor_neighbours(target: str, dims: Dims, kv_dtype: str) -> None:
    model = random_program(dims, F32, max_model_len=MAX_MODEL_LEN)
    whole = logits(target, model, kv_dtype)
    for chunks, threads in (((1,) * 20 + (3, 17, 218, 20), 2), ((254, 1, 1, 1, 21), 3), ((37, 241), 1)):
        assert (logits(target, model, kv_dtype, chunks, threads, has_neighbour=True) == whole).all()


@pytest.mark.parametrize("kv_dtype", KV_FORMATS)
def test_a_token_that_is_not_finite_leaves_those_before_it_alone(target: str, kv_dtype: str) -> None:
    program, weights = random_program(TINY, F32, tied=False, max_model_len=MAX_MODEL_LEN)
    weights["embed"].view(np.float32).reshape(-1, TINY.hidden, 16)[0, 5:, 1] = np.nan  # token 1
    model, results = (program, weights), []
    for last in (0, 1):
        executor = make(target, model, kv_dtype)
        fill_slot(executor, 0, [*range(2, 41), *[last] * 10])
        executor.run(program, np.array([(0, 0, 49, 49)], SPAN), 1)
        results.append(executor.logits[:49, : TINY.vocab].copy())
        executor.close()
    assert (results[0][:39] == results[1][:39]).all()
    assert not np.isfinite(results[1][39:]).all()


@pytest.mark.skipif(not FUSED_LEVELS, reason="no native level with fused multiply-add")
@pytest.mark.parametrize("kv_dtype", KV_FORMATS)
def test_native_levels_with_fused_multiply_add_agree_to_the_bit(kv_dtype: str) -> None:
    """But amx over bf16, which has instructions of its own."""
    for dims in SHAPES:
        model = random_program(dims, F32, max_model_len=MAX_MODEL_LEN)
        levels = [level for level in FUSED_LEVELS if (kv_dtype, level) != ("bf16", "amx")]
        results = [logits(f"native-{level}", model, kv_dtype) for level in levels]
        assert all((result == results[0]).all() for result in results)


@pytest.mark.parametrize("kv_dtype", KV_FORMATS)
def test_contexts_of_32k_tokens(target: str, kv_dtype: str) -> None:
    """The last rows of a context of 32,768 tokens, whose other rows only write their keys and values."""
    length, last = 32768, 3
    dims = Dims(hidden=16, layers=1, heads=2, kv_heads=1, head_dim=4, ffn=4, vocab=40)
    program, weights = random_program(dims, F32, max_model_len=length + 1)
    writing = program.instructions[: program.instructions["op"].tolist().index(Op.ROTARY) + 1]
    limits = replace(make_limits(1, length + 1, length, last), kv_dtype=kv_dtype)
    results = []
    for name in ("reference", target):
        executor = make_executor(name, program, even_placement(program, 2), weights, limits)
        fill_slot(executor, 0, [i * i % 39 + i % 2 for i in range(length)])
        executor.run(Program(dims, program.tensors, writing), np.array([(0, 0, length - last, 0)], SPAN), 1)
        executor.run(program, np.array([(0, length - last, last, last)], SPAN), 1)
        results.append(executor.logits[:last, : dims.vocab].copy())
        executor.close()
    np.testing.assert_allclose(results[1], results[0], rtol=0, atol=TOLERANCE[kv_dtype])


def test_a_tile_is_as_large_as_its_parts() -> None:
    assert [format.tile_bytes(64) for format in KV_FORMATS.values()] == [8192, 4096, 2176]
    assert [format.tile_bytes(10) for format in KV_FORMATS.values()] == [1664, 832, 576]


def test_rounding_is_by_token_and_head() -> None:
    x = np.random.default_rng(0).standard_normal((5, 3, 20)).astype(np.float32)
    x[1, 2] *= 1e6
    x[2, 1] = 0
    assert (KV_F32.rounded(x) == x).all()
    for format, bound in ((KV_BF16, np.abs(x) * 2.0**-8), (KV_INT8, np.abs(x).max(axis=2, keepdims=True) / 253)):
        rounded = format.rounded(x)
        assert (np.abs(rounded - x) <= bound).all()
        assert (rounded[3:, :1] == format.rounded(x[3:, :1])).all()


def test_an_unknown_kv_dtype_is_refused(target: str) -> None:
    with pytest.raises(ValueError, match="kv_dtype: 'fp8', expected one of f32, bf16, int8"):
        make(target, random_program(TINY, F32, max_model_len=MAX_MODEL_LEN), "fp8")


def test_kv_heads_that_query_heads_do_not_share_evenly_are_refused() -> None:
    for kv_heads in (0, 2):
        with pytest.raises(ValueError, match=f"heads: 3, expected a multiple of kv_heads, {kv_heads}"):
            Dims(hidden=16, layers=1, heads=3, kv_heads=kv_heads, head_dim=4, ffn=4, vocab=40)
