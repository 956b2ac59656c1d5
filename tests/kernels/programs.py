"""Small random programs, and the placements and limits to run them with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from helpers import backend_and_level
from waferline_kernels.executor import Executor, create_executor
from waferline_kernels.placement import SHARE, Placement
from waferline_kernels.program import Buffer, Dims, Epilogue, Op, Program, ProgramBuilder, TensorSpec
from waferline_kernels.sequences import KV_BLOCK_SIZE, ExecutorLimits
from waferline_kernels.tiles import ALIGNMENT, F32, TileFormat, interleave_strips, pack_matrix, round_up

Weights = dict[str, NDArray[Any]]

TINY = Dims(hidden=40, layers=2, heads=6, kv_heads=2, head_dim=10, ffn=52, vocab=131)


def make_executor(
    target: str, program: Program, placement: Placement, weights: Mapping[str, NDArray[Any]], limits: ExecutorLimits
) -> Executor:
    """An executor of one of TARGETS, or of "reference"."""
    return create_executor(program, placement, weights, limits, *backend_and_level(target))


def even_placement(program: Program, threads: int) -> Placement:
    """Every matrix's strips shared evenly, pairs of interleaved strips kept together."""
    shares = np.zeros((len(program.tensors), threads), SHARE)
    used = [0] * threads
    for index, tensor in enumerate(program.tensors):
        unit = 2 if tensor.interleaved else 1
        for worker in range(threads):
            first, end = (tensor.num_strips // unit * (worker + side) // threads * unit for side in (0, 1))
            shares[index, worker] = (first, end - first, used[worker])
            used[worker] += round_up((end - first) * tensor.strip_bytes, ALIGNMENT)
    return Placement(shares, tuple(used))


def make_limits(
    max_num_seqs: int = 4, max_model_len: int = 64, max_num_batched_tokens: int = 64, max_num_logits: int = 64
) -> ExecutorLimits:
    """Limits with a KV block for every token that could be."""
    blocks = max_num_seqs * -(-max_model_len // KV_BLOCK_SIZE)
    return ExecutorLimits(max_num_seqs, max_model_len, max_num_batched_tokens, max_num_logits, blocks)


def random_program(
    dims: Dims, format: TileFormat, tied: bool = True, bias: bool = False, seed: int = 0, max_model_len: int = 64
) -> tuple[Program, Weights]:
    """A Llama-like program of random weights."""
    rng = np.random.default_rng(seed)
    build, weights = ProgramBuilder(dims), Weights()
    context = dims.heads * dims.head_dim

    def matrix(name: str, n: int, k: int, interleaved: bool = False) -> int:
        halves = [
            pack_matrix((rng.standard_normal((n, k)) / np.sqrt(k)).astype(np.float32), format)
            for _ in range(2 if interleaved else 1)
        ]
        weights[name] = interleave_strips(*halves) if interleaved else halves[0]
        return build.tensor(TensorSpec(name, n, k, format, interleaved))

    def table(name: str, values: NDArray[Any]) -> int:
        weights[name] = values.astype(np.float32)
        return build.tensor(TensorSpec(name, *values.shape, is_table=True))

    def norm(name: str, wanted_rows: bool = False) -> None:
        gain = table(name, 1 + rng.standard_normal((1, dims.hidden)) / 4)
        group = format.group
        build.emit(
            Op.NORM,
            Buffer.X,
            Buffer.ACT,
            weight=gain,
            k=dims.hidden,
            n=dims.hidden,
            group=group,
            wanted_rows=wanted_rows,
            eps=1e-5,
        )

    def quantized(src: Buffer, k: int) -> Buffer:
        if not format.is_quantized:
            return src
        build.emit(Op.QUANTIZE, src, Buffer.ACT, k=k, n=k, group=format.group)
        return Buffer.ACT

    def matmul(weight: int, src: Buffer, dst: Buffer, k: int, n: int, epilogue: Epilogue, bias: int = -1) -> None:
        build.emit(Op.MATMUL, src, dst, weight=weight, bias=bias, epilogue=epilogue, k=k, n=n, group=format.group)

    output = matrix("logits", dims.vocab, dims.hidden)
    embedding = output if tied else matrix("embed", dims.vocab, dims.hidden)
    angles = np.arange(max_model_len)[:, None] * 100.0 ** (-np.arange(dims.head_dim // 2) / dims.head_dim)
    rope = table("rope", np.concatenate([np.cos(angles), np.sin(angles)], axis=1))
    build.emit(Op.EMBED, Buffer.X, Buffer.X, weight=embedding, k=dims.hidden, n=dims.hidden)
    for layer in range(dims.layers):
        at = f"layers.{layer}."
        norm(at + "input_norm")
        qkv_bias = table(at + "qkv_bias", rng.standard_normal((1, dims.qkv)) / 4) if bias else -1
        qkv = matrix(at + "qkv", dims.qkv, dims.hidden)
        matmul(qkv, Buffer.ACT, Buffer.QKV, dims.hidden, dims.qkv, Epilogue.STORE, qkv_bias)
        build.emit(Op.ROTARY, Buffer.QKV, Buffer.QKV, weight=rope, layer=layer, k=dims.qkv, n=dims.qkv)
        build.emit(Op.ATTEND, Buffer.QKV, Buffer.CTX, layer=layer, k=dims.qkv, n=context)
        o = matrix(at + "o", dims.hidden, context)
        matmul(o, quantized(Buffer.CTX, context), Buffer.X, context, dims.hidden, Epilogue.ADD)
        norm(at + "post_norm")
        gate_up = matrix(at + "gate_up", dims.ffn, dims.hidden, interleaved=True)
        matmul(gate_up, Buffer.ACT, Buffer.FFN, dims.hidden, dims.ffn, Epilogue.SILU_MUL)
        down = matrix(at + "down", dims.hidden, dims.ffn)
        matmul(down, quantized(Buffer.FFN, dims.ffn), Buffer.X, dims.ffn, dims.hidden, Epilogue.ADD)
    norm("norm", wanted_rows=True)
    k, n = dims.hidden, dims.vocab
    build.emit(Op.LOGITS, Buffer.ACT, Buffer.LOGITS, weight=output, k=k, n=n, group=format.group, wanted_rows=True)
    build.emit(Op.SAMPLE, Buffer.LOGITS, Buffer.LOGITS, k=n, n=n)
    return build.build(), weights


def matmul_program(n: int, k: int, format: TileFormat, seed: int = 0) -> tuple[Program, Weights]:
    """embed (float32, so exact) -> quantise -> one matrix of the format: its product is the step's logits."""
    rng = np.random.default_rng(seed)
    dims = Dims(hidden=k, layers=1, heads=1, kv_heads=1, head_dim=2, ffn=1, vocab=n)
    build = ProgramBuilder(dims)
    embedding = build.tensor(TensorSpec("embed", n, k, F32))
    matrix = build.tensor(TensorSpec("matrix", n, k, format))
    weights: Weights = {
        "embed": pack_matrix(rng.standard_normal((n, k)).astype(np.float32), F32),
        "matrix": pack_matrix(rng.standard_normal((n, k)).astype(np.float32), format),
    }
    build.emit(Op.EMBED, Buffer.X, Buffer.X, weight=embedding, k=k, n=k)
    if format.is_quantized:
        build.emit(Op.QUANTIZE, Buffer.X, Buffer.ACT, k=k, n=k, group=format.group)
    src = Buffer.ACT if format.is_quantized else Buffer.X
    build.emit(Op.LOGITS, src, Buffer.LOGITS, weight=matrix, k=k, n=n, group=format.group, wanted_rows=True)
    build.emit(Op.SAMPLE, Buffer.LOGITS, Buffer.LOGITS, k=n, n=n)
    return build.build(), weights
