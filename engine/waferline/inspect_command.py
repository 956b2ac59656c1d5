"""``waferline inspect``: a model, the program it becomes, where its weights lie, and which backend would run it."""

from __future__ import annotations

from collections.abc import Iterator

from waferline_kernels import native
from waferline_kernels.executor import choose_backend
from waferline_kernels.program import Program

from .bench.batch import Batch, ZeroWeights, placed
from .fabric.cost import CostModel, StepShape
from .fabric.placement import plan_placement
from .fabric.report import report_lines, report_rows, residency_lines
from .fabric.residency import fill_cores, host_residency
from .fabric.spec import FABRICS, host_fabric_now, wse3
from .model.compile import compile_program, stored_tensors
from .model.dtypes import DTYPES
from .model.load import Model
from .runtime.memory import choose_kv_dtype

CONTEXT = 128  # tokens that the step reported on attends to, where the model has room for as many
MEASURED_STEPS = 16
BYTES_PER_READ = 1e8


def inspect_lines(model: Model, threads: int | None, fabric: str = "host") -> Iterator[str]:
    """The report, a line at a time. Raises ValueError or BackendUnavailable where the model could not be run so."""
    if fabric not in FABRICS:
        raise ValueError(f"fabric: {fabric!r}, expected one of {', '.join(FABRICS)}")
    config, program = model.config, model.program
    yield f"model      {model.name}: {model.path}"
    yield (
        f"shape      {config.layers} layers, hidden {config.hidden}, ffn {config.ffn}, vocabulary {config.vocab}, "
        f"{config.heads} heads of {config.head_dim}, {config.kv_heads} KV heads"
    )
    dtype = DTYPES[model.dtype].described({tensor.name.rpartition(".")[2] for tensor in program.tensors})
    yield f"weights    {dtype}, {sum(tensor.nbytes for tensor in stored_tensors(program.tensors)) / 1e6:.1f} MB"
    yield f"context    {model.max_model_len} tokens"
    yield from _host_lines(model, threads) if fabric == "host" else _wafer_lines(model)
    yield f"program    {len(program.instructions)} instructions"
    yield from _program_lines(program)


def _context_and_steps(model: Model) -> tuple[int, int]:
    """Tokens of a prompt, and steps after it: at least one of each, and no more than the model has positions for."""
    steps = max(1, min(MEASURED_STEPS, model.max_model_len // 2))
    return max(1, min(CONTEXT, model.max_model_len - steps - 1)), steps


def _host_lines(model: Model, threads: int | None) -> Iterator[str]:
    """Where the weights lie on this machine, and a step of one row: predicted, and measured over weights of zero."""
    context, steps = _context_and_steps(model)
    room = context + steps + 1  # angles for as many, be the model's more or fewer
    program = compile_program(model.config, DTYPES[model.dtype], room)
    placement = plan_placement(program, threads)
    backend = choose_backend()
    level = f"/{native.choose_level(None)}" if backend == "native" else ""
    yield f"backend    {backend}{level}, {placement.num_workers} thread{'s' if placement.num_workers > 1 else ''}"
    yield from residency_lines(program, placement)
    with placed(program, threads) as placement:
        weights, kv_dtype = ZeroWeights(program), choose_kv_dtype("auto", model.dtype)
        batch = Batch(program, weights, placement, size=1, max_model_len=room, max_rows=context, kv_dtype=kv_dtype)
        try:
            batch.prefill(context)
            step_seconds = batch.decode(steps)[0] / steps
            batch.rewind(context + 1)
            profile = batch.profile_decode(steps)
            bandwidth = batch.read_bandwidth(BYTES_PER_READ)
        finally:
            batch.close()
    host = host_fabric_now(placement.num_workers, placement.cpus, program.swept_bytes, bandwidth)
    where = host_residency(program, placement, host)
    costs = CostModel(program, where, host, kv_dtype)
    shape = StepShape.of(1, context + steps // 2, 1)
    yield f"step       of one row that attends to {shape.context_tokens} tokens"
    for line in report_lines(report_rows(program, costs.predict(shape), where, profile, step_seconds)):
        yield f"  {line}"


def _wafer_lines(model: Model) -> Iterator[str]:
    """The same on a wafer that this machine is not: where the weights would lie, and what a step is predicted to take."""
    program, (context, _), spec = model.program, _context_and_steps(model), wse3()
    where = fill_cores(program, spec)
    costs, shape = CostModel(program, where, spec, choose_kv_dtype("auto", model.dtype)), StepShape.of(1, context, 1)
    milliseconds = costs.predict_step_ms(1, context, 1)
    yield f"fabric     {spec.name}: {where.cores_used} of {spec.cores} cores filled, the rest for keys and values"
    yield f"step       of one row that attends to {context} tokens: {1e3 / milliseconds:.0f} tokens/s predicted"
    for line in report_lines(report_rows(program, costs.predict(shape), where)):
        yield f"  {line}"


def _program_lines(program: Program) -> Iterator[str]:
    """The instructions; those of layers after the first are only counted, for they are alike."""
    skipped = 0
    for line, instruction in zip(program.lines(), program.instructions, strict=True):
        if instruction["layer"] > 0:
            skipped += 1
            continue
        if skipped:
            yield f"  ... {skipped} more, of layers 1 to {program.dims.layers - 1}"
            skipped = 0
        yield f"  {line}"
