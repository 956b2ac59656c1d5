"""The reference executor: every instruction in numpy, written for reading, and the oracle of every test."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .executor import StepwiseExecutor, empty_entries
from .placement import Placement
from .program import NO_TENSOR, Buffer, Epilogue, Op, Program, TensorSpec
from .ring import Finish
from .sampling import sample_token, score
from .sequences import KV_BLOCK_SIZE, NO_LOGPROBS, ExecutorLimits
from .tiles import (
    TILE_N,
    TileFormat,
    quantize_rows,
    strip_integers,
    strip_scales,
    unpack_matrix,
)

Array = NDArray[np.float32]


def rms_norm(x: Array, weight: Array, eps: np.float32) -> Array:
    """``x / sqrt(mean(x^2) + eps) * weight`` of each row; x [M, K], weight [K] (Zhang and Sennrich 2019)."""
    mean_square = (x * x).mean(axis=1, keepdims=True, dtype=np.float32)
    return x * (np.float32(1) / np.sqrt(mean_square + eps)) * weight


def silu(x: Array) -> Array:
    """``x * sigmoid(x)``, elementwise."""
    with np.errstate(over="ignore"):
        return (x / (np.float32(1) + np.exp(-x))).astype(np.float32, copy=False)


def matmul_quantized(
    codes: NDArray[np.int8], scales: Array, strips: NDArray[np.uint8], k: int, format: TileFormat
) -> Array:
    """The exact product: codes int8 [M, K], scales [M, G], strips of N columns -> float32 [M, 16 * num_strips].

    Group by group in ascending K: ``acc = acc + float(isum) * (weight scale * activation scale)``.
    """
    weight = strip_integers(strips, k, format)  # [N, K]
    weight_scales = strip_scales(strips, k, format)  # [N, G]
    acc = np.zeros((len(codes), len(weight)), np.float32)
    for g in range(format.num_groups(k)):
        part = slice(g * format.group, min((g + 1) * format.group, k))
        isum = codes[:, part].astype(np.float64) @ weight[:, part].T.astype(np.float64)  # exact: below 2**53
        acc = acc + isum.astype(np.float32) * (weight_scales[:, g] * scales[:, g : g + 1])
    return acc


def rotate(x: Array, cos: Array, sin: Array) -> Array:
    """Rotary embedding, halves convention; x [M, heads, head_dim], cos and sin [M, head_dim / 2] (Su et al. 2021)."""
    first, second = np.split(x, 2, axis=-1)
    cos, sin = cos[:, None], sin[:, None]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


class ReferenceExecutor(StepwiseExecutor):
    name = "reference"
    level = "numpy"

    def __init__(
        self, program: Program, placement: Placement, weights: Mapping[str, NDArray[Any]], limits: ExecutorLimits
    ) -> None:
        super().__init__(program, placement, limits)
        self._weights = [np.array(weights[tensor.name]) for tensor in program.tensors]
        d = self.dims
        kv_shape = (d.layers, limits.num_kv_blocks, KV_BLOCK_SIZE, d.kv_heads, d.head_dim)
        self._keys, self._values = np.zeros(kv_shape, np.float32), np.zeros(kv_shape, np.float32)
        self._instructions: dict[Op, Callable[[Program, np.void], None]] = {
            Op.EMBED: self._embed,
            Op.NORM: self._norm,
            Op.QUANTIZE: self._quantize,
            Op.MATMUL: self._matmul,
            Op.ROTARY: self._rotary,
            Op.ATTEND: self._attend,
            Op.LOGITS: self._matmul,
            Op.SAMPLE: self._sample,
        }

    def _step(self, program: Program, batch: NDArray[np.void]) -> NDArray[np.void]:
        self._batch = batch
        # One of each per row of the step.
        self._slots = np.repeat(batch["slot"], batch["count"])
        self._positions = np.concatenate([np.arange(s["start"], s["start"] + s["count"]) for s in batch])
        ends = batch["count"].cumsum()
        self._wanted = np.concatenate([np.arange(e - s["num_logits"], e) for s, e in zip(batch, ends, strict=True)])
        self._buffers: dict[Buffer, Any] = {}
        self._entries = empty_entries(0)
        for instruction in program.instructions:
            self._instructions[Op(instruction["op"])](program, instruction)
        return self._entries

    def _embed(self, program: Program, i: np.void) -> None:
        tensor, strips = program.tensors[i["weight"]], self._weights[i["weight"]]
        tokens = self.sequences.tokens[self._slots, self._positions]
        touched, where = np.unique(tokens // TILE_N, return_inverse=True)
        weight = unpack_matrix(strips[touched], len(touched) * TILE_N, tensor.k, tensor.format)
        self._buffers[Buffer.X] = weight[where * TILE_N + tokens % TILE_N]

    def _norm(self, program: Program, i: np.void) -> None:
        x = self._buffers[Buffer(i["src"])]
        if i["wanted_rows"]:
            x = x[self._wanted]
        normed = rms_norm(x, self._weights[i["weight"]][0], i["eps"])
        self._buffers[Buffer.ACT] = quantize_rows(normed, i["group"]) if i["group"] else normed

    def _quantize(self, program: Program, i: np.void) -> None:
        self._buffers[Buffer.ACT] = quantize_rows(self._buffers[Buffer(i["src"])], i["group"])

    def _matmul(self, program: Program, i: np.void) -> None:
        tensor, strips = program.tensors[i["weight"]], self._weights[i["weight"]]
        y = self.product(tensor, strips, self._buffers[Buffer(i["src"])])
        if i["bias"] != NO_TENSOR:
            y[:, : tensor.n] += self._weights[i["bias"]][0]
        if i["epilogue"] == Epilogue.SILU_MUL:
            pairs = y.reshape(len(y), -1, 2, TILE_N)
            y = (silu(pairs[:, :, 0]) * pairs[:, :, 1]).reshape(len(y), -1)
        y, dst = y[:, : tensor.n], Buffer(i["dst"])
        if i["dst_column"]:
            y = np.concatenate([self._buffers[dst], y], axis=1)
        self._buffers[dst] = self._buffers[Buffer.X] + y if i["epilogue"] == Epilogue.ADD else y

    def product(self, tensor: TensorSpec, strips: NDArray[np.uint8], source: Any) -> Array:
        """``source`` times ``strips``: float32 [M, 16 * num_strips]. ``source`` is float32 [M, K], or of a quantised tensor
        codes and scales."""
        if tensor.format.is_quantized:
            codes, scales = source
            return matmul_quantized(codes, scales, strips, tensor.k, tensor.format)
        y: Array = source @ unpack_matrix(strips, len(strips) * TILE_N, tensor.k, tensor.format).T
        return y

    def _rotary(self, program: Program, i: np.void) -> None:
        d, table = self.dims, self._weights[i["weight"]][self._positions]
        cos, sin = np.split(table, 2, axis=1)
        heads = self._buffers[Buffer.QKV].reshape(len(table), -1, d.head_dim)
        heads[:, : d.heads + d.kv_heads] = rotate(heads[:, : d.heads + d.kv_heads], cos, sin)
        blocks = self.sequences.block_tables[self._slots, self._positions // KV_BLOCK_SIZE]
        at = (i["layer"], blocks, self._positions % KV_BLOCK_SIZE)
        self._keys[at] = self.kv_format.rounded(heads[:, d.heads : d.heads + d.kv_heads])
        self._values[at] = self.kv_format.rounded(heads[:, d.heads + d.kv_heads :])

    def _attend(self, program: Program, i: np.void) -> None:
        d = self.dims
        queries = self._buffers[Buffer.QKV][:, : d.heads * d.head_dim]
        context = np.empty_like(queries)
        for row, (slot, position) in enumerate(zip(self._slots, self._positions, strict=True)):
            blocks = self.sequences.block_tables[slot, : position // KV_BLOCK_SIZE + 1]
            keys, values = (
                kv[i["layer"], blocks].reshape(-1, d.kv_heads, d.head_dim)[: position + 1]
                for kv in (self._keys, self._values)
            )
            q = queries[row].reshape(d.kv_heads, -1, d.head_dim)  # [kv_heads, heads of its group, head_dim]
            scores = np.einsum("hgd,thd->hgt", q, keys) * np.float32(d.head_dim**-0.5)
            weights = np.exp(scores - scores.max(axis=2, keepdims=True))
            weights /= weights.sum(axis=2, keepdims=True)
            context[row] = np.einsum("hgt,thd->hgd", weights, values).reshape(-1)
        self._buffers[Buffer.CTX] = context

    def _sample(self, program: Program, i: np.void) -> None:
        logits = self._buffers[Buffer.LOGITS]
        self.logits[: len(logits), : logits.shape[1]] = logits
        self._entries = empty_entries(len(logits))
        self._entries["time_ns"] = time.monotonic_ns()
        for row, entry in enumerate(self._entries):
            at = self._wanted[row]
            self._sample_row(logits[row], self._slots[at], self._positions[at] + 1, entry)

    def _sample_row(self, logits: Array, slot: int, position: int, entry: np.void) -> None:
        table, params = self.sequences, self.sequences.sampling[slot]
        entry["slot"], entry["position"] = slot, position
        if position < table.num_tokens[slot]:
            token, num_top = int(table.tokens[slot, position]), int(params["num_prompt_logprobs"])
            entry["is_prompt"] = 1
        else:
            token = sample_token(logits, table.rules(slot), table.tokens[slot, :position])
            num_top = int(params["num_logprobs"])
            entry["finish"] = self._finish(slot, position, token)
        entry["token"], entry["num_top"] = token, NO_LOGPROBS
        if num_top != NO_LOGPROBS:
            score(logits, token, num_top, entry)

    def _finish(self, slot: int, position: int, token: int) -> Finish:
        params = self.sequences.sampling[slot]
        num_output = position + 1 - params["num_prompt_tokens"]
        is_stop_id = token in params["stop_ids"][: params["num_stop_ids"]]
        if is_stop_id and num_output >= params["min_tokens"]:  # drawn before where no other token may be
            return Finish.STOP
        if num_output >= params["max_tokens"] or position + 1 >= self.limits.max_model_len:
            return Finish.LENGTH
        return Finish.NONE
