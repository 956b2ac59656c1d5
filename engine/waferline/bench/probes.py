"""Programs of one operation, by which tests hold a kernel to the reference and benchmarks time it.

Both run through an executor, as a model would, so what is tested and measured is what dispatch chooses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from waferline_kernels.kernel_table import Kernel
from waferline_kernels.kv_cache import KvFormat
from waferline_kernels.program import Buffer, Dims, Epilogue, Op, Program, ProgramBuilder, TensorSpec
from waferline_kernels.sequences import KV_BLOCK_SIZE, SPAN
from waferline_kernels.tiles import F32, Q8, TILE_N, TileFormat, pack_matrix

from ..fabric.placement import plan_placement
from .batch import Batch

CHECKED_ROWS = 65  # beyond what any kernel takes together, f32's 64 rows being the most
SAMPLED_ROWS = 9
CHECK_DIMS = Dims(hidden=160, layers=1, heads=5, kv_heads=1, head_dim=32, ffn=1, vocab=160)
TIMED_DIMS = Dims(hidden=2048, layers=1, heads=32, kv_heads=8, head_dim=64, ffn=1, vocab=32768)
SAMPLING = ("max", "argmax", "exp_sum")  # parts of it: greedily by argmax alone, else by the two others
MATRIX_BYTES = 2 << 20  # of one of the matrices that make up a footprint, nearly, where their columns are not given
PACKED_COLUMNS = 64  # of a timed matrix, repeated: packing millions of weights would take longer than timing them

Weights = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class TimedProbe:
    """``program`` does ``before`` and then the operation in question, ``sweeps`` times over. Each time it does ``macs``
    multiply-adds for its last row, ``fewer`` less for each row before, and sweeps ``bytes`` of weights, keys and values,
    or else ``bytes`` of each row."""

    program: Program
    before: Program
    weights: Weights
    sweeps: int
    bytes: int
    macs: int
    fewer: int = 0

    def macs_of(self, rows: int) -> int:
        return rows * self.macs - rows * (rows - 1) // 2 * self.fewer


class _Builder:
    """A program that embeds random rows, and whatever follows."""

    def __init__(self, dims: Dims, seed: int = 0) -> None:
        self.build = ProgramBuilder(dims)
        self.dims = dims
        self.weights: dict[str, NDArray[Any]] = {}
        self._rng = np.random.default_rng(seed)

    def matrix(self, name: str, n: int, k: int, format: TileFormat, values: NDArray[np.float32] | None = None) -> int:
        if values is None:
            values = (self._rng.standard_normal((min(n, PACKED_COLUMNS), k)) / np.sqrt(k)).astype(np.float32)
        strips = pack_matrix(values, format)
        spec = TensorSpec(name, n, k, format)
        self.weights[name] = np.resize(strips, (spec.num_strips, spec.strip_bytes))
        return self.build.tensor(spec)

    def table(self, name: str, values: NDArray[Any]) -> int:
        self.weights[name] = values.astype(np.float32)
        n, k = values.shape
        return self.build.tensor(TensorSpec(name, n, k, is_table=True))

    def embed(self) -> None:
        dims = self.dims
        embedding = self.matrix("embed", dims.vocab, dims.hidden, F32)
        self.build.emit(Op.EMBED, Buffer.X, Buffer.X, weight=embedding, k=dims.hidden, n=dims.hidden)

    def quantize(self, group: int) -> None:
        k = self.dims.hidden
        self.build.emit(Op.QUANTIZE, Buffer.X, Buffer.ACT, k=k, n=k, group=group)

    def norm(self, gain: int) -> None:
        k = self.dims.hidden
        self.build.emit(Op.NORM, Buffer.X, Buffer.ACT, weight=gain, k=k, n=k, eps=1e-5)

    def project_and_rotate(self, max_model_len: int) -> None:
        dims = self.dims
        qkv = self.matrix("qkv", dims.qkv, dims.hidden, F32)
        self.build.emit(Op.MATMUL, Buffer.X, Buffer.QKV, weight=qkv, k=dims.hidden, n=dims.qkv)
        angles = np.arange(max_model_len)[:, None] * 100.0 ** (-np.arange(dims.head_dim // 2) / dims.head_dim)
        rope = self.table("rope", np.concatenate([np.cos(angles), np.sin(angles)], axis=1))
        self.build.emit(Op.ROTARY, Buffer.QKV, Buffer.QKV, weight=rope, k=dims.qkv, n=dims.qkv)

    def attend(self) -> None:
        dims = self.dims
        self.build.emit(Op.ATTEND, Buffer.QKV, Buffer.CTX, k=dims.qkv, n=dims.heads * dims.head_dim)

    def logits(self, weight: int, src: Buffer, format: TileFormat) -> None:
        k, n = self.dims.hidden, self.dims.vocab
        self.build.emit(Op.LOGITS, src, Buffer.LOGITS, weight=weight, k=k, n=n, group=format.group, wanted_rows=True)

    def sample(self) -> None:
        self.build.emit(Op.SAMPLE, Buffer.LOGITS, Buffer.LOGITS, k=self.dims.vocab, n=self.dims.vocab)


def check_probe(kernel: Kernel) -> tuple[Program, Weights]:
    """A small program that ends in what the kernel makes: as logits, through a matrix of ones where need be."""
    dims, operation = CHECK_DIMS, kernel.operation
    maker = _Builder(dims)
    maker.embed()
    identity = np.eye(dims.hidden, dtype=np.float32)
    if kernel.format:
        src = Buffer.ACT if kernel.format.is_quantized else Buffer.X
        if kernel.format.is_quantized:
            maker.quantize(kernel.format.group)
        maker.logits(maker.matrix("matrix", dims.vocab, dims.hidden, kernel.format), src, kernel.format)
    elif operation == "rms_norm":
        maker.norm(maker.table("gain", np.linspace(-1, 2, dims.hidden)[None]))
        maker.logits(maker.matrix("identity", dims.vocab, dims.hidden, F32, identity), Buffer.ACT, F32)
    elif operation == "quantize":
        maker.quantize(Q8.group)
        maker.logits(maker.matrix("identity", dims.vocab, dims.hidden, Q8, identity), Buffer.ACT, Q8)
    elif operation == "attend":
        maker.project_and_rotate(CHECKED_ROWS + 1)
        maker.attend()
        maker.logits(maker.matrix("identity", dims.vocab, dims.hidden, F32, identity), Buffer.CTX, F32)
    else:  # the parts of sampling
        maker.logits(maker.matrix("matrix", dims.vocab, dims.hidden, F32), Buffer.X, F32)
    maker.sample()
    return maker.build.build(), maker.weights


def kernel_error(kernel: Kernel) -> float:
    """How far the kernel's results are from the reference's: the largest difference over the largest magnitude; of
    ``argmax`` the share of tokens that differ."""
    program, weights = check_probe(kernel)
    mine = _results(kernel, program, weights, kernel.backend, kernel.level)
    reference = _results(kernel, program, weights, "reference", None)
    if kernel.operation == "argmax":
        return float((mine != reference).mean())
    return float(np.abs(mine - reference).max() / np.abs(reference).max())


def _results(
    kernel: Kernel, program: Program, weights: Weights, backend: str, level: str | None
) -> NDArray[np.float64]:
    rows = SAMPLED_ROWS if kernel.operation in SAMPLING else CHECKED_ROWS
    batch = Batch(
        program,
        weights,
        plan_placement(program, 1),
        size=1,
        max_model_len=rows + 1,
        max_rows=rows,
        max_logits=rows,
        kv_dtype=kernel.kv_format.name if kernel.kv_format else "f32",
        backend=backend,
        level=level,
    )
    try:
        table = batch.executor.sequences
        table.sampling[0]["num_prompt_logprobs"] = table.sampling[0]["num_logprobs"] = 0
        results = []
        for row in range(rows) if kernel.operation in SAMPLING else (rows - 1,):
            table.tokens[0, :rows] = np.arange(rows) * 7 % program.dims.vocab
            table.num_tokens[0] = row + 1
            batch.executor.run(program, np.array([(0, 0, row + 1, row + 1)], SPAN), 1)
            results.append(batch.executor.ring.drain()[-1])
        if kernel.operation == "argmax":
            return np.array([entry["token"] for entry in results], np.float64)
        if kernel.operation == "exp_sum":
            return np.array([entry["logprob"] for entry in results], np.float64)
        return batch.executor.logits[:rows, : program.dims.vocab].astype(np.float64)
    finally:
        batch.close()


def timed_matmul(format: TileFormat, k: int, n: int, footprint: int, read_bytes: float) -> TimedProbe:
    """Matmuls of rows of ``k`` with matrices of ``n`` columns, of about ``footprint`` bytes in all, swept until
    ``read_bytes`` are read."""
    maker = _Builder(Dims(hidden=k, layers=1, heads=1, kv_heads=1, head_dim=2, ffn=n, vocab=TILE_N))
    maker.embed()
    if format.is_quantized:
        maker.quantize(format.group)
    first = maker.matrix("matrix 0", n, k, format)
    nbytes = maker.weights["matrix 0"].nbytes
    count = max(1, round(footprint / nbytes))
    ids = [first]
    for index in range(1, count):
        maker.weights[f"matrix {index}"] = maker.weights["matrix 0"]
        ids.append(maker.build.tensor(TensorSpec(f"matrix {index}", n, k, format)))
    sweeps = max(1, round(read_bytes / (count * nbytes)))
    src = Buffer.ACT if format.is_quantized else Buffer.X
    before = len(maker.build)
    for weight in ids * sweeps:
        maker.build.emit(
            Op.MATMUL, src, Buffer.FFN, weight=weight, epilogue=Epilogue.STORE, k=k, n=n, group=format.group
        )
    return _timed(maker, before, sweeps, count * nbytes, count * n * k)


def columns_of(format: TileFormat, k: int, footprint: int, threads: int) -> int:
    """Columns of matrices of ``k`` rows that a footprint is to be made up of: as many as ``threads`` share evenly."""
    unit, column_bytes = TILE_N * threads, format.strip_bytes(k) / TILE_N
    return max(1, round(min(MATRIX_BYTES, footprint) / column_bytes / unit)) * unit


def timed_attention(kv_format: KvFormat, sweeps: int, context: int) -> TimedProbe:
    """``sweeps`` times attention of rows of which the last one attends to ``context`` tokens."""
    dims = replace(TIMED_DIMS, hidden=TILE_N, vocab=TILE_N)
    maker = _Builder(dims)
    maker.embed()
    maker.project_and_rotate(context + 1)  # a sequence has room for one more
    before = len(maker.build)
    for _ in range(sweeps):
        maker.attend()
    macs = 2 * dims.heads * dims.head_dim  # of a token
    nbytes = context * dims.kv_block_bytes(kv_format) // KV_BLOCK_SIZE
    return replace(_timed(maker, before, sweeps, nbytes, macs * context), fewer=macs)


def timed_rows(operation: str, sweeps: int) -> TimedProbe:
    """``sweeps`` times an operation that reads nothing but rows."""
    dims = TIMED_DIMS if operation in SAMPLING else replace(TIMED_DIMS, vocab=TILE_N)
    maker = _Builder(dims)
    maker.embed()
    gain = maker.table("gain", np.ones((1, dims.hidden), np.float32))
    before = len(maker.build)
    for _ in range(sweeps):
        if operation == "rms_norm":
            maker.norm(gain)
        elif operation == "quantize":
            maker.quantize(Q8.group)
        else:
            maker.sample()
    floats = {"rms_norm": 2 * dims.hidden, "quantize": dims.hidden}.get(operation, dims.vocab)
    return _timed(maker, before, sweeps, 4 * floats, 0)


def _timed(maker: _Builder, before: int, sweeps: int, nbytes: int, macs: int) -> TimedProbe:
    program = maker.build.build()
    prefix = replace(program, instructions=program.instructions[:before])
    return TimedProbe(program, prefix, maker.weights, sweeps, nbytes, macs)
