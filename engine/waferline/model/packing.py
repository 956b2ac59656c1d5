"""From checkpoint tensors to a program's tensors: joined, converted, rescaled and packed when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from waferline_kernels.packing import pack_matrix
from waferline_kernels.program import Program, TensorSpec
from waferline_kernels.tiles import TILE_N, interleave_strips, num_strips

from .checkpoint import Checkpoint
from .compile import ROPE, program_tensors, stored_tensors
from .dtypes import Dtype
from .errors import ModelError
from .parallel import run_jobs
from .progress import ProgressBar
from .rescaling import Rescaling, rescaled
from .rope import rotary_table
from .spec import ModelConfig
from .tensor_file import Block, LazyWeights, to_float32

VALUES_AT_ONCE = 1 << 17  # float32 temporaries of 512 KiB stay in a core's cache


def check_checkpoint(checkpoint: Checkpoint, config: ModelConfig, dtype: Dtype) -> None:
    """Raise ModelError unless ``checkpoint`` has the tensors that ``config`` says, and no others. To be called before a
    program is compiled: until then a config's sizes are nothing but its word, and may be absurd."""
    tensors = stored_tensors(program_tensors(config, dtype, max_model_len=1))
    checkpoint.check((part for spec in tensors for part in config.checkpoint_parts(spec).items()), config.tied)


def checkpoint_weights(checkpoint: Checkpoint, config: ModelConfig, program: Program) -> LazyWeights:
    """The weights of ``program`` by tensor name: strips for a matrix, float32 [n, k] for a table.

    The checkpoint has been checked by ``check_checkpoint``; values are checked when a tensor is asked for, which then is
    packed on every CPU, and raises ModelError.
    """
    packers = tensor_packers(checkpoint, config, program)
    bar = ProgressBar("packing", sum(packer.spec.nbytes for packer in packers.values()))
    return program_weights(config, program, {name: partial(packer.array, bar) for name, packer in packers.items()})


def program_weights(
    config: ModelConfig, program: Program, stored: Mapping[str, Callable[[], NDArray[Any]]]
) -> LazyWeights:
    """The weights of ``program``, in its order: those that ``stored`` makes, and the table of angles."""
    rope = program.tensors[program.tensor_id(ROPE)]
    table = partial(rotary_table, rope.k, config.rope_theta, config.rope_scaling, max_model_len=rope.n)
    return LazyWeights({spec.name: table if spec is rope else stored[spec.name] for spec in program.tensors})


def tensor_packers(checkpoint: Checkpoint, config: ModelConfig, program: Program) -> dict[str, TensorPacker]:
    """A packer for each of the program's tensors that the checkpoint has, which ``check_checkpoint`` has checked."""
    rescaling = Rescaling(checkpoint, config, program)
    return {
        spec.name: TensorPacker(checkpoint, spec, tuple(config.checkpoint_parts(spec)), rescaling)
        for spec in stored_tensors(program.tensors)
    }


class TensorPacker:
    """Makes the tensor ``spec`` of a program from the checkpoint's tensors ``names``, in blocks of a few strips each."""

    def __init__(self, checkpoint: Checkpoint, spec: TensorSpec, names: tuple[str, ...], rescaling: Rescaling) -> None:
        self.spec = spec
        self._checkpoint = checkpoint
        self._names = names
        self._rescaling = rescaling

    def blocks(self, bar: ProgressBar) -> list[Block]:
        """The parts of the tensor's bytes in their order; each may be made on any thread, and raises ModelError."""
        spec = self.spec
        if spec.is_table:
            return [Block(spec.nbytes, partial(self._made, bar, self._table))]
        strips_at_once = max(1, VALUES_AT_ONCE // spec.k // TILE_N) * (2 if spec.interleaved else 1)
        firsts = range(0, spec.num_strips, strips_at_once)
        ends = (min(first + strips_at_once, spec.num_strips) for first in firsts)
        return [
            Block((end - first) * spec.strip_bytes, partial(self._made, bar, partial(self._strips, first, end)))
            for first, end in zip(firsts, ends, strict=True)
        ]

    def array(self, bar: ProgressBar) -> NDArray[Any]:
        """The whole tensor, its blocks made in parallel: strips for a matrix, float32 [n, k] for a table."""
        blocks = self.blocks(bar)
        whole = np.empty(self.spec.nbytes, np.uint8)
        ends = np.cumsum([block.nbytes for block in blocks])

        def fill(end: int, block: Block) -> None:
            whole[end - block.nbytes : end] = block.make().reshape(-1).view(np.uint8)

        try:
            run_jobs(partial(fill, end, block) for end, block in zip(ends, blocks, strict=True))
        except BaseException:
            bar.close()
            raise
        return whole.view(np.float32)[None] if self.spec.is_table else whole.reshape(-1, self.spec.strip_bytes)

    def matrices(self) -> list[NDArray[np.float32]]:
        """What is packed: float32 [n, k]; of an interleaved tensor both halves."""
        parts: list[Iterable[int]] = [(0,), (1,)] if self.spec.interleaved else [range(len(self._names))]
        return [self._rows(part, 0, num_strips(self.spec.n)) for part in parts]

    def _made(self, bar: ProgressBar, make: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        try:
            made = make()
        except ValueError as error:
            raise ModelError(f"{self._checkpoint.folder}: {' + '.join(self._names)}: {error}") from None
        bar.advance(made.nbytes)
        return made

    def _table(self) -> NDArray[np.float32]:
        name, parts = self.spec.name, []
        for part, source in enumerate(self._names):
            rows = self._rescaling.rows(name, part)
            parts.append(to_float32(self._checkpoint.view(source)) * (np.float32(1) if rows is None else rows))
        table = np.concatenate(parts)[None]
        if not np.isfinite(table).all():
            raise ValueError("weight: holds NaN or infinity, expected finite numbers")
        return table

    def _strips(self, first: int, end: int) -> NDArray[np.uint8]:
        """Strips [first, end): uint8 [end - first, strip_bytes]."""
        spec = self.spec
        if spec.interleaved:
            gate, up = (pack_matrix(self._rows((part,), first // 2, end // 2), spec.format) for part in (0, 1))
            return interleave_strips(gate, up)
        return pack_matrix(self._rows(range(len(self._names)), first, end), spec.format)

    def _rows(self, parts: Iterable[int], first: int, end: int) -> NDArray[np.float32]:
        """The rows of strips [first, end) of the checkpoint's tensors ``parts`` joined by rows: float32 [rows, k]."""
        columns, blocks = self._rescaling.columns(self.spec.name), []
        begin, stop = first * TILE_N, end * TILE_N
        for part in parts:
            stored, rows = self._checkpoint.view(self._names[part]), self._rescaling.rows(self.spec.name, part)
            here = slice(max(begin, 0), max(stop, 0))
            if len(stored[here]):
                blocks.append(rescaled(to_float32(stored[here]), None if rows is None else rows[here], columns))
            begin, stop = begin - len(stored), stop - len(stored)
        return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
