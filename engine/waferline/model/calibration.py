"""Calibration: q4 codes rounded so that matmuls lose least on inputs that the model has, not each code by itself.

The inputs are those of ``NUM_TOKENS`` tokens that the model, packed without calibration, writes itself: no text has to be
had or shipped. They run through the program once, all at the same time, a matmul after the other. As a q4 matrix is reached
its inputs are summed up to a Hessian, its codes are rounded again (``waferline_kernels/gptq.py``), and what comes after it
gets its inputs from what has been rounded. So each matrix is rounded for its inputs as they are: normed, rescaled and in
int8; and no more than one Hessian is held. Scales, subscales and matrices in q8 stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from waferline_kernels.gptq import error_feedback, round_with_feedback
from waferline_kernels.program import Buffer, Op, Program, TensorSpec
from waferline_kernels.reference import ReferenceExecutor
from waferline_kernels.sequences import KV_BLOCK_SIZE, SPAN, ExecutorLimits
from waferline_kernels.tiles import GROUP, Q4, TILE_N, unpack_matrix

from ..fabric.placement import plan_placement
from .errors import ModelError
from .packing import TensorPacker
from .progress import ProgressBar
from .self_text import sample_texts

NUM_TOKENS = 8192
TEXT_TOKENS = 512  # of a text at most
CALIBRATION = f"gptq, {NUM_TOKENS} tokens"  # in a packed file's metadata


def calibrated_strips(
    program: Program,
    weights: Mapping[str, NDArray[Any]],
    packers: Mapping[str, TensorPacker],
    first_token: int,
    end_tokens: tuple[int, ...],
    text_tokens: int,
) -> dict[str, NDArray[np.uint8]]:
    """The strips of the program's q4 matrices, rounded again, by tensor. ``packers`` made ``weights``; texts are up to
    ``text_tokens`` long."""
    arrays = dict(weights.items())  # packed once for both executors
    matmuls = program.instructions["op"] == Op.MATMUL
    rounded = [program.tensors[index] for index in program.instructions["weight"][matmuls]]
    bar = ProgressBar("calibrating", sum(tensor.nbytes for tensor in rounded if tensor.format is Q4))
    bar.advance(0)
    try:
        texts = sample_texts(program, arrays, first_token, end_tokens, NUM_TOKENS, text_tokens)
        layers = replace(program, instructions=program.instructions[: np.flatnonzero(matmuls)[-1] + 1])
        calibrator = Calibrator(layers, arrays, packers, texts, bar)
        calibrator.run(layers, calibrator.batch, max_steps=1)
    finally:
        bar.close()
    return calibrator.strips


class Calibrator(ReferenceExecutor):
    """An executor that rounds each q4 matrix again when it gets there, for the inputs that it then has.

    ``batch`` is one step over all tokens of ``texts``; ``strips`` has what was rounded, by tensor.
    """

    def __init__(
        self,
        program: Program,
        weights: Mapping[str, NDArray[Any]],
        packers: Mapping[str, TensorPacker],
        texts: list[NDArray[np.int32]],
        bar: ProgressBar,
    ) -> None:
        lengths = [len(text) for text in texts]
        blocks = -(-max(lengths) // KV_BLOCK_SIZE)
        limits = ExecutorLimits(
            max_num_seqs=len(texts),
            max_model_len=max(lengths),
            max_num_batched_tokens=sum(lengths),
            max_num_logits=1,
            num_kv_blocks=len(texts) * blocks,
        )
        super().__init__(program, plan_placement(program, threads=1), weights, limits)
        self._packers, self._bar = packers, bar
        self.strips: dict[str, NDArray[np.uint8]] = {}
        table = self.sequences
        for slot, text in enumerate(texts):
            table.tokens[slot, : len(text)] = text
        table.num_tokens[:], table.num_blocks[:] = lengths, blocks
        table.block_tables[:] = np.arange(len(texts) * blocks).reshape(len(texts), blocks)
        self.batch = np.array([(slot, 0, count, 0) for slot, count in enumerate(lengths)], SPAN)

    def product(self, tensor: TensorSpec, strips: NDArray[np.uint8], source: Any) -> NDArray[np.float32]:
        codes, scales = source
        x = codes * np.repeat(scales, GROUP, axis=1)[:, : tensor.k]  # [M, K], as the matmul takes it
        if tensor.format is Q4:
            try:
                feedback = error_feedback(x.T @ x)
            except ValueError as error:
                raise ModelError(f"calibrate: inputs of {tensor.name}: {error}") from None
            matrices = self._packers[tensor.name].matrices()
            for half, weight in enumerate(matrices):
                part = slice(half, None, len(matrices))
                strips[part] = round_with_feedback(strips[part], weight, feedback)
            self.strips[tensor.name] = strips
            self._bar.advance(tensor.nbytes)
        return x @ unpack_matrix(strips, len(strips) * TILE_N, tensor.k, tensor.format).T

    def _attend(self, program: Program, i: np.void) -> None:
        # All rows of a text at once: hundreds of times fewer products than row by row, which would keep each row's bits.
        d = self.dims
        queries = self._buffers[Buffer.QKV][:, : d.heads * d.head_dim]
        context, first = np.empty_like(queries), 0
        for slot, start, count, _ in self._batch:
            rows, end = slice(first, first + count), start + count
            blocks = self.sequences.block_tables[slot, : -(-end // KV_BLOCK_SIZE)]
            keys, values = (  # [kv_heads, 1, positions, head_dim]
                kv[i["layer"], blocks].reshape(-1, d.kv_heads, d.head_dim)[:end].swapaxes(0, 1)[:, None]
                for kv in (self._keys, self._values)
            )
            # [kv_heads, heads of its group, rows, head_dim]
            q = queries[rows].reshape(count, d.kv_heads, -1, d.head_dim).transpose(1, 2, 0, 3)
            scores = q @ keys.swapaxes(2, 3) * np.float32(d.head_dim**-0.5)
            scores[..., np.arange(end) > np.arange(start, end)[:, None]] = -np.inf
            weights = np.exp(scores - scores.max(axis=3, keepdims=True))
            weights /= weights.sum(axis=3, keepdims=True)
            context[rows] = (weights @ values).transpose(2, 0, 1, 3).reshape(count, -1)
            first += count
        self._buffers[Buffer.CTX] = context
