"""``waferline inspect``: a model, the program it becomes, where its weights lie, and which backend would run it."""

from __future__ import annotations

from collections.abc import Iterator

from waferline_kernels import native
from waferline_kernels.executor import choose_backend
from waferline_kernels.program import Program

from .fabric.placement import plan_placement
from .fabric.report import residency_lines
from .model.load import Model


def inspect_lines(model: Model, threads: int | None) -> Iterator[str]:
    """The report, a line at a time. Raises ValueError or BackendUnavailable where the model could not be run so."""
    config, program = model.config, model.program
    placement = plan_placement(program, threads)
    backend = choose_backend()
    level = f"/{native.choose_level(None)}" if backend == "native" else ""
    yield f"model      {model.name}: {model.path}"
    yield (
        f"shape      {config.layers} layers, hidden {config.hidden}, ffn {config.ffn}, vocabulary {config.vocab}, "
        f"{config.heads} heads of {config.head_dim}, {config.kv_heads} KV heads"
    )
    yield f"weights    {model.dtype}, {sum(tensor.nbytes for tensor in program.tensors) / 1e6:.1f} MB"
    yield f"context    {model.max_model_len} tokens"
    yield f"backend    {backend}{level}, {placement.num_workers} thread{'s' if placement.num_workers > 1 else ''}"
    yield from residency_lines(program, placement)
    yield f"program    {len(program.instructions)} instructions"
    yield from _program_lines(program)


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
