#!/usr/bin/env python3
"""What quantisation costs: perplexity of a dtype and KV dtype and of f32 on a text, and the mean KL divergence of the two.

    python benches/quality.py MODEL TEXT --dtype q8 --stories 50

The dtype may also be ``q4_0``: the f32 model with its matrices rounded as llama.cpp rounds them in a Q4_0 file, where the
output matrix has eight bits (``--pure`` leaves it four). Its activations stay in float32, which favours it a little. A
matrix whose K is no multiple of 32 is rounded too; llama.cpp leaves it in 16 bits.

TEXT is one file; `<|endoftext|>` on a line of its own ends each story. Every story is scored by itself: encoded with
the BOS token that the tokenizer gives it, cut to the model's context, each of its tokens but the first predicted from
those before it. Perplexity is exp of the mean negative log-likelihood over all those tokens; the divergence (nats) is
that of the dtype from f32, over the same positions. What stands behind "+-" is the standard error of the perplexity's
difference, stories taken to be drawn independently.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from waferline.fabric.placement import plan_placement
from waferline.model.load import Model, load_model, pack_model
from waferline.model.tensor_file import LazyWeights
from waferline.runtime.memory import choose_kv_dtype
from waferline_kernels.executor import Executor, create_executor
from waferline_kernels.program import TensorSpec
from waferline_kernels.sequences import KV_BLOCK_SIZE, NO_LOGPROBS, SPAN, ExecutorLimits
from waferline_kernels.tiles import interleave_strips, pack_matrix, unpack_matrix

STORY_END = "<|endoftext|>"
ROWS = 512  # of a step; bounds the logits held at once


def read_stories(path: Path, count: int) -> list[str]:
    stories = (story.strip() for story in path.read_text(encoding="utf-8").split(STORY_END))
    return [story for story in stories if story][:count]


def rounded(weight: NDArray[np.float32], bits: int) -> NDArray[np.float32]:
    """``weight`` [n, k] as llama.cpp's Q4_0 or Q8_0 keeps it: float16 scales for groups of 32 K."""
    n, k = weight.shape
    groups = np.zeros((n, -(-k // 32) * 32), np.float32)
    groups[:, :k] = weight
    groups = groups.reshape(n, -1, 32)
    extreme = np.take_along_axis(groups, np.abs(groups).argmax(axis=-1, keepdims=True), axis=-1)
    scale = extreme / np.float32(-8) if bits == 4 else np.abs(extreme) / np.float32(127)
    steps = groups / np.where(scale == 0, np.float32(np.inf), scale)
    codes = np.clip(np.floor(steps + np.float32(8.5)), 0, 15) - 8 if bits == 4 else np.rint(steps)
    values = codes * scale.astype(np.float16).astype(np.float32)
    return values.astype(np.float32).reshape(n, -1)[:, :k]


def load_q4_0(model: str, max_model_len: int | None, is_pure: bool) -> Model:
    """An f32 model whose matrices are rounded; the embedding too, where it is the output matrix."""
    loaded = load_model(model, "f32", max_model_len)

    def weights(spec: TensorSpec) -> NDArray[Any]:
        strips = loaded.weights[spec.name]
        if spec.is_table:
            return strips
        bits = 8 if spec.name == "logits" and not is_pure else 4
        halves = (strips[0::2], strips[1::2]) if spec.interleaved else (strips,)
        unpacked = (unpack_matrix(np.ascontiguousarray(half), spec.n, spec.k, spec.format) for half in halves)
        packed = [pack_matrix(rounded(half, bits), spec.format) for half in unpacked]
        return interleave_strips(*packed) if spec.interleaved else packed[0]

    return replace(
        loaded, dtype="q4_0", weights=LazyWeights({t.name: partial(weights, t) for t in loaded.program.tensors})
    )


def load_calibrated(model: str | Path, dtype: str, max_model_len: int | None) -> Model:
    """As `waferline pack --calibrate` packs it."""
    with tempfile.TemporaryDirectory(prefix="waferline-") as folder:  # the file is mapped, and stays until it is not
        pack_model(model, packed := Path(folder) / "model.wafer", dtype, calibrate=True)
        return load_model(packed, max_model_len=max_model_len)


def load_rounded(args: argparse.Namespace) -> Model:
    if args.dtype == "q4_0":
        return load_q4_0(args.model, args.max_model_len, args.pure)
    load = load_calibrated if args.calibrate else load_model
    return load(args.model, args.dtype, args.max_model_len)


def make_executor(model: Model, kv_dtype: str, context: int, threads: int | None) -> Executor:
    limits = ExecutorLimits(
        max_num_seqs=1,
        max_model_len=context,
        max_num_batched_tokens=ROWS,
        max_num_logits=ROWS,
        num_kv_blocks=-(-context // KV_BLOCK_SIZE),
        kv_dtype=kv_dtype,
    )
    executor = create_executor(model.program, plan_placement(model.program, threads), model.weights, limits)
    executor.sequences.block_tables[0] = np.arange(limits.num_kv_blocks)
    executor.sequences.num_blocks[0] = limits.num_kv_blocks
    params = executor.sequences.sampling[0]
    params["top_p"] = params["repetition_penalty"] = 1
    params["num_logprobs"] = params["num_prompt_logprobs"] = NO_LOGPROBS
    return executor


def log_probabilities(model: Model, executor: Executor, token_ids: list[int]) -> Iterator[NDArray[np.float64]]:
    """Log-probabilities of what follows each token but the last, a chunk of rows at a time: float64 [rows, vocab]."""
    table, count = executor.sequences, len(token_ids)
    table.tokens[0, :count], table.num_tokens[0] = token_ids, count
    for start in range(0, count - 1, ROWS):
        rows = min(ROWS, count - 1 - start)
        executor.run(model.program, np.array([(0, start, rows, rows)], SPAN), max_steps=1)
        executor.ring.drain()
        yield log_softmax(executor.logits[:rows, : model.config.vocab])


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Of each row: float64 [rows, vocab]."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def added_perplexity(
    losses: NDArray[np.float64], exact: NDArray[np.float64], tokens: NDArray[np.int64]
) -> tuple[float, float]:
    """How far the perplexity of ``losses`` (negative log-likelihoods [stories]) lies above that of ``exact``, and the
    standard error of that: both in percent. ``tokens`` [stories] were predicted."""
    stories = len(tokens)
    added = (losses - exact).sum() / tokens.sum()
    residuals = losses - exact - added * tokens
    variance = (residuals**2).sum() * stories / (stories - 1) if stories > 1 else math.nan
    return 100 * math.expm1(added), 100 * math.exp(added) * math.sqrt(variance) / int(tokens.sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("text", type=Path)
    parser.add_argument("--dtype", default="q8")
    parser.add_argument("--pure", action="store_true", help="with q4_0: the output matrix too in four bits")
    parser.add_argument("--calibrate", action="store_true", help="with q4: as `waferline pack --calibrate` packs it")
    parser.add_argument("--kv-dtype", default="auto")
    parser.add_argument("--stories", type=int, default=50)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--max-model-len", type=int, help="shorter than the model's context, to save time and memory")
    args = parser.parse_args()

    models = [load_model(args.model, "f32", args.max_model_len), load_rounded(args)]
    context = models[0].max_model_len
    kv_dtypes = ("f32", choose_kv_dtype(args.kv_dtype, args.dtype))
    executors = [
        make_executor(model, kv_dtype, context, args.threads) for model, kv_dtype in zip(models, kv_dtypes, strict=True)
    ]
    tokens: list[int] = []  # predicted, by story
    losses: list[list[float]] = []  # of f32 and of the other, by story
    divergence = 0.0
    for story in read_stories(args.text, args.stories):
        token_ids = models[0].tokenizer.encode(story)[:context]
        start = 1
        loss = [0.0, 0.0]
        for f32, other in zip(
            *(log_probabilities(m, e, token_ids) for m, e in zip(models, executors, strict=True)), strict=True
        ):
            targets = np.array(token_ids[start : start + len(f32)])
            start += len(f32)
            for side, logprobs in enumerate((f32, other)):
                loss[side] -= float(logprobs[np.arange(len(targets)), targets].sum())
            divergence += float((np.exp(f32) * (f32 - other)).sum())
        tokens.append(len(token_ids) - 1)
        losses.append(loss)
    for executor in executors:
        executor.close()

    num_tokens = sum(tokens)
    if not num_tokens:
        parser.error(f"text: {args.text} holds no story of two tokens or more")
    exact, rounded_losses = np.array(losses).T
    perplexities = [math.exp(side.sum() / num_tokens) for side in (exact, rounded_losses)]
    added, error = added_perplexity(rounded_losses, exact, np.array(tokens))
    print(f"model            {models[0].name}, {executors[0].name} {executors[0].level}")
    print(f"scored           {num_tokens} tokens of {args.stories} stories at most, in a context of {context}")
    print(f"perplexity f32   {perplexities[0]:.4f}")
    print(f"KV cache         {kv_dtypes[1]}, beside {kv_dtypes[0]}")
    print(f"perplexity {args.dtype:5} {perplexities[1]:.4f}  ({added:+.3f}% +- {error:.3f})")
    print(f"mean KL          {divergence / num_tokens:.6f} nats")


if __name__ == "__main__":
    main()
