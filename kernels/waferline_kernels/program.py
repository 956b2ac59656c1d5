"""The Program: what a step does, as a flat table of instructions over numbered tensors and buffers.

A program depends on the model alone; threads, cores and caches are the Placement's business. Every backend runs the
same table. For one layer of a Llama in q8 it reads::

    norm      x -> act      weight=layers.0.input_norm   group=128     (RMS norm, then quantise the row)
    matmul    act -> qkv    weight=layers.0.qkv          store
    rotary    qkv -> qkv    weight=rope                  layer=0      (rotate q and k, write k and v to the cache)
    attend    qkv -> ctx                                 layer=0
    quantize  ctx -> act                                 group=128
    matmul    act -> x      weight=layers.0.o            add
    norm      x -> act      weight=layers.0.post_norm    group=128
    matmul    act -> ffn    weight=layers.0.gate_up      silu_mul
    quantize  ffn -> act                                 group=128
    matmul    act -> x      weight=layers.0.down         add
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from .kv_cache import KvFormat
from .tiles import F32, TILE_N, TileFormat, num_strips, round_up


class Op(IntEnum):
    EMBED = 0  # dst[row] = weight[token of row]
    NORM = 1  # dst = rms_norm(src) * weight, quantised where group > 0
    QUANTIZE = 2  # dst = quantise(src)
    MATMUL = 3  # dst = epilogue(src @ weight.T + bias)
    ROTARY = 4  # rotate q and k of src in place, write k and v to the layer's KV blocks
    ATTEND = 5  # dst = softmax(q k / sqrt(head_dim)) v over the row's KV blocks
    LOGITS = 6  # matmul over the rows whose logits are wanted
    SAMPLE = 7  # logits -> token, for every row that ends its sequence


class Epilogue(IntEnum):
    STORE = 0  # dst = y
    ADD = 1  # dst = dst + y
    SILU_MUL = 2  # strips in pairs (gate, up): dst = silu(gate) * up


class Buffer(IntEnum):
    """Activations between instructions; float32 [rows, columns] except ACT, which holds int8 codes and scales too."""

    X = 0  # the residual stream
    ACT = 1  # the input of the next matmul
    QKV = 2
    CTX = 3  # attention's output
    FFN = 4
    LOGITS = 5


NO_TENSOR = -1

INSTRUCTION = np.dtype(
    [
        ("op", np.int32),
        ("epilogue", np.int32),
        ("src", np.int32),  # Buffer
        ("dst", np.int32),  # Buffer
        ("weight", np.int32),  # tensor id
        ("bias", np.int32),  # tensor id or NO_TENSOR
        ("layer", np.int32),
        ("k", np.int32),  # columns of src
        ("n", np.int32),  # columns of dst (before SILU_MUL: of each half)
        ("group", np.int32),  # activation group where the instruction quantises or reads codes, else 0
        ("wanted_rows", np.int32),  # 1: reads only the rows whose logits are wanted
        ("dst_column", np.int32),  # of dst, the first that a matmul writes; those before it were written before
        ("eps", np.float32),
    ]
)


@dataclass(frozen=True)
class TensorSpec:
    """A weight by its id's place in ``Program.tensors``.

    A matrix ``[n, k]`` lies in strips of its format; an ``interleaved`` one holds two ``[n, k]`` halves strip by strip
    (gate and up). A table is float32 ``[n, k]`` as it stands, without strips (a vector has ``n = 1``).
    """

    name: str
    n: int
    k: int
    format: TileFormat = F32
    interleaved: bool = False
    is_table: bool = False

    @property
    def num_strips(self) -> int:
        return 0 if self.is_table else num_strips(self.n) * (2 if self.interleaved else 1)

    @property
    def strip_bytes(self) -> int:
        return 0 if self.is_table else self.format.strip_bytes(self.k)

    @property
    def nbytes(self) -> int:
        return self.n * self.k * 4 if self.is_table else self.num_strips * self.strip_bytes


@dataclass(frozen=True)
class Dims:
    """Sizes that the KV cache and the buffers are made from. Raises ValueError where KV heads are not shared evenly."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int

    def __post_init__(self) -> None:
        if self.kv_heads < 1 or self.heads % self.kv_heads:
            raise ValueError(f"heads: {self.heads}, expected a multiple of kv_heads, {self.kv_heads}")

    @property
    def qkv(self) -> int:
        return (self.heads + 2 * self.kv_heads) * self.head_dim

    def kv_block_bytes(self, format: KvFormat) -> int:
        """Bytes of one KV block: its tiles over all layers and KV heads."""
        return self.layers * self.kv_heads * format.tile_bytes(self.head_dim)

    def buffer_columns(self, buffer: Buffer) -> int:
        """Columns of a buffer, without padding."""
        return {
            Buffer.X: self.hidden,
            Buffer.ACT: max(self.hidden, self.heads * self.head_dim, self.ffn),
            Buffer.QKV: self.qkv,
            Buffer.CTX: self.heads * self.head_dim,
            Buffer.FFN: self.ffn,
            Buffer.LOGITS: self.vocab,
        }[buffer]

    def buffer_stride(self, buffer: Buffer) -> int:
        """Float32 from one row to the next: columns padded to whole strips, so that strips are stored whole, also where
        those of k and v begin after q's; and to an odd number of cache lines, so that what a strip's rows are stored to is
        spread over a cache's sets."""
        if buffer == Buffer.QKV:
            queries = self.heads * self.head_dim
            return round_up(queries + round_up(self.qkv - queries, TILE_N), TILE_N) | TILE_N
        return round_up(self.buffer_columns(buffer), TILE_N) | TILE_N


@dataclass(frozen=True)
class Program:
    dims: Dims
    tensors: tuple[TensorSpec, ...]
    instructions: NDArray[np.void]  # INSTRUCTION [len]

    def tensor_id(self, name: str) -> int:
        for index, tensor in enumerate(self.tensors):
            if tensor.name == name:
                return index
        raise KeyError(name)

    @property
    def swept_bytes(self) -> int:
        """Weight bytes that one step reads: every matrix of a matmul (an embedding row is noise beside them)."""
        return sum(self.tensors[index].nbytes for index in self.swept_tensors)

    @property
    def swept_tensors(self) -> tuple[int, ...]:
        """Ids of the matrices of matmuls, in the order in which a step comes to them."""
        matmuls = np.isin(self.instructions["op"], (Op.MATMUL, Op.LOGITS))
        return tuple(dict.fromkeys(self.instructions["weight"][matmuls].tolist()))

    def lines(self) -> Iterable[str]:
        """The program for people, an instruction a line."""
        for i in self.instructions:
            op, words = Op(i["op"]), []
            if i["weight"] != NO_TENSOR:
                words.append(f"weight={self.tensors[i['weight']].name}")
            if i["bias"] != NO_TENSOR:
                words.append(f"bias={self.tensors[i['bias']].name}")
            if op in (Op.MATMUL, Op.LOGITS):
                words.append(Epilogue(i["epilogue"]).name.lower())
            if i["dst_column"]:
                words.append(f"column={i['dst_column']}")
            if op in (Op.ROTARY, Op.ATTEND):
                words.append(f"layer={i['layer']}")
            if op in (Op.NORM, Op.QUANTIZE) and i["group"]:
                words.append(f"group={i['group']}")
            route = f"{Buffer(i['src']).name.lower()} -> {Buffer(i['dst']).name.lower()}"
            yield f"{op.name.lower():9}{route:18}[{i['k']} -> {i['n']}]  {' '.join(words)}".rstrip()


class ProgramBuilder:
    """Collects tensors and instructions in execution order."""

    def __init__(self, dims: Dims) -> None:
        self._dims = dims
        self._tensors: list[TensorSpec] = []
        self._instructions: list[tuple[float, ...]] = []

    def __len__(self) -> int:
        return len(self._instructions)

    def tensor(self, spec: TensorSpec) -> int:
        self._tensors.append(spec)
        return len(self._tensors) - 1

    def emit(
        self,
        op: Op,
        src: Buffer,
        dst: Buffer,
        *,
        k: int,
        n: int,
        weight: int = NO_TENSOR,
        bias: int = NO_TENSOR,
        epilogue: Epilogue = Epilogue.STORE,
        layer: int = 0,
        group: int = 0,
        wanted_rows: bool = False,
        dst_column: int = 0,
        eps: float = 0.0,
    ) -> None:
        self._instructions.append(
            (op, epilogue, src, dst, weight, bias, layer, k, n, group, wanted_rows, dst_column, eps)
        )

    def build(self) -> Program:
        return Program(self._dims, tuple(self._tensors), np.array(self._instructions, INSTRUCTION))
