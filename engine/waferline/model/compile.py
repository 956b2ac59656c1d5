"""The compiler: a model's config becomes the program that every backend runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from waferline_kernels.program import NO_TENSOR, Buffer, Epilogue, Op, Program, ProgramBuilder, TensorSpec

from .dtypes import Dtype
from .spec import ModelConfig

ROPE = "rope"  # the table of angles


def compile_program(config: ModelConfig, dtype: Dtype, max_model_len: int) -> Program:
    """The program of a step, its matrices in the formats of ``dtype`` and its rotary table for ``max_model_len`` positions.

    Float formats take their activations as they are; quantised ones have each matmul's input quantised before it.
    """
    return _Compiler(config, dtype, max_model_len).program()


def attention_inputs(config: ModelConfig, dtype: Dtype) -> dict[str, int]:
    """The matrices that make queries, keys and values, by role: their columns, in the order in which ``Buffer.QKV`` has
    them. One matrix, but where ``dtype`` names a format for k and v, and query heads share them, two."""
    queries = config.heads * config.head_dim
    if config.kv_heads == config.heads or "kv" not in dtype.overrides:
        return {"qkv": config.dims.qkv}
    return {"q": queries, "kv": config.dims.qkv - queries}


def program_tensors(config: ModelConfig, dtype: Dtype, max_model_len: int) -> Iterator[TensorSpec]:
    """The tensors in the order in which a step reads them. A tied embedding is gathered from ``logits``."""
    hidden, ffn, context = config.hidden, config.ffn, config.heads * config.head_dim

    def table(name: str, k: int, n: int = 1) -> TensorSpec:
        return TensorSpec(name, n, k, is_table=True)

    def matrix(name: str, n: int, k: int, interleaved: bool = False) -> TensorSpec:
        return TensorSpec(name, n, k, dtype.format_of(name.rpartition(".")[2]), interleaved)

    if not config.tied:
        yield matrix("embed", config.vocab, hidden)
    yield table(ROPE, config.head_dim, max_model_len)
    for layer in range(config.layers):
        at = f"layers.{layer}."
        yield table(at + "input_norm", hidden)
        for role, columns in attention_inputs(config, dtype).items():
            yield matrix(at + role, columns, hidden)
            if config.qkv_bias:
                yield table(f"{at}{role}_bias", columns)
        yield matrix(at + "o", hidden, context)
        if config.o_bias:
            yield table(at + "o_bias", hidden)
        yield table(at + "post_norm", hidden)
        yield matrix(at + "gate_up", ffn, hidden, interleaved=True)
        yield matrix(at + "down", hidden, ffn)
    yield table("norm", hidden)
    yield matrix("logits", config.vocab, hidden)


def stored_tensors(tensors: Iterable[TensorSpec]) -> Iterator[TensorSpec]:
    """Those that a model's files hold: all but the table of angles, which is computed. One by one, as
    ``program_tensors`` has them: an unchecked config may have any number of layers."""
    return (spec for spec in tensors if spec.name != ROPE)


class _Compiler:
    """Emits the instructions of one program over tensors that are declared first."""

    def __init__(self, config: ModelConfig, dtype: Dtype, max_model_len: int) -> None:
        self._config = config
        self._attention_inputs = attention_inputs(config, dtype)
        self._layer = 0  # what instructions are emitted for
        self._builder = ProgramBuilder(config.dims)
        self._specs = {spec.name: spec for spec in program_tensors(config, dtype, max_model_len)}
        self._ids = {name: self._builder.tensor(spec) for name, spec in self._specs.items()}

    def program(self) -> Program:
        config, emit = self._config, self._builder.emit
        embedding = self._ids["logits" if config.tied else "embed"]
        emit(Op.EMBED, Buffer.X, Buffer.X, weight=embedding, k=config.hidden, n=config.hidden)
        for self._layer in range(config.layers):
            self._attention(f"layers.{self._layer}.")
            self._feed_forward(f"layers.{self._layer}.")
        self._layer = 0
        self._norm("norm", "logits", wanted_rows=True)
        self._matmul("logits", Buffer.ACT, Buffer.LOGITS, op=Op.LOGITS)
        emit(Op.SAMPLE, Buffer.LOGITS, Buffer.LOGITS, k=config.vocab, n=config.vocab)
        return self._builder.build()

    def _attention(self, at: str) -> None:
        dims, emit, layer = self._config.dims, self._builder.emit, self._layer
        context = dims.heads * dims.head_dim
        self._norm(at + "input_norm", at + next(iter(self._attention_inputs)))
        column = 0
        for role, columns in self._attention_inputs.items():
            self._matmul(at + role, Buffer.ACT, Buffer.QKV, dst_column=column)
            column += columns
        emit(Op.ROTARY, Buffer.QKV, Buffer.QKV, weight=self._ids[ROPE], layer=layer, k=dims.qkv, n=dims.qkv)
        emit(Op.ATTEND, Buffer.QKV, Buffer.CTX, layer=layer, k=dims.qkv, n=context)
        self._matmul(at + "o", self._quantized(Buffer.CTX, at + "o"), Buffer.X, Epilogue.ADD)

    def _feed_forward(self, at: str) -> None:
        self._norm(at + "post_norm", at + "gate_up")
        self._matmul(at + "gate_up", Buffer.ACT, Buffer.FFN, Epilogue.SILU_MUL)
        self._matmul(at + "down", self._quantized(Buffer.FFN, at + "down"), Buffer.X, Epilogue.ADD)

    def _norm(self, name: str, reader: str, wanted_rows: bool = False) -> None:
        hidden = self._config.hidden
        self._builder.emit(
            Op.NORM,
            Buffer.X,
            Buffer.ACT,
            weight=self._ids[name],
            layer=self._layer,
            k=hidden,
            n=hidden,
            group=self._specs[reader].format.group,
            wanted_rows=wanted_rows,
            eps=self._config.norm_eps,
        )

    def _quantized(self, src: Buffer, reader: str) -> Buffer:
        """The buffer from which the matmul of ``reader`` reads ``src``: its codes where the weights are quantised."""
        k, group = self._specs[reader].k, self._specs[reader].format.group
        if not group:
            return src
        self._builder.emit(Op.QUANTIZE, src, Buffer.ACT, layer=self._layer, k=k, n=k, group=group)
        return Buffer.ACT

    def _matmul(
        self,
        name: str,
        src: Buffer,
        dst: Buffer,
        epilogue: Epilogue = Epilogue.STORE,
        op: Op = Op.MATMUL,
        dst_column: int = 0,
    ) -> None:
        spec = self._specs[name]
        self._builder.emit(
            op,
            src,
            dst,
            weight=self._ids[name],
            bias=self._ids.get(f"{name}_bias", NO_TENSOR),
            epilogue=epilogue,
            layer=self._layer,
            k=spec.k,
            n=spec.n,
            group=spec.format.group,
            wanted_rows=op is Op.LOGITS,
            dst_column=dst_column,
        )
