"""The numba executor's Python side: checks, loads the weights, begins each step."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..executor import RunResult, StepwiseExecutor
from ..placement import Placement
from ..program import Program, TensorSpec
from ..ring import ENTRY
from ..sequences import ExecutorLimits
from ..tiles import TILE_N
from .jit import HOST_CPU
from .memory import MAX_INSTRUCTIONS, allocate, load_strips, load_table, logits_of
from .state import FORMATS
from .step import NO_SLOT, RUN, run_worker
from .team import NO_DESCRIPTOR, Team, pin_thread


class NumbaExecutor(StepwiseExecutor):
    """Runs programs with kernels that numba compiles for this machine; ``level`` is the processor's name in LLVM.

    The first executor on a machine takes numba about a minute to compile for; later ones find the code in its cache.
    """

    name = "numba"
    level = HOST_CPU

    def __init__(
        self, program: Program, placement: Placement, weights: Mapping[str, NDArray[Any]], limits: ExecutorLimits
    ) -> None:
        super().__init__(program, placement, limits)
        self._tensors = program.tensors
        for tensor in program.tensors:
            _check_format(tensor)
        self._state = allocate(program, placement, limits, self.sequences)
        self.logits = logits_of(self._state)
        self._team = Team(placement.num_workers, placement.cpus, self._state)
        try:
            for index, tensor in enumerate(program.tensors):
                self._load(index, tensor, weights[tensor.name])
        except BaseException:
            self._team.close()
            raise
        self._team.finish_loading()

    def _load(self, index: int, tensor: TensorSpec, array: NDArray[Any]) -> None:
        expected = (tensor.n, tensor.k) if tensor.is_table else (tensor.num_strips, tensor.strip_bytes)
        if array.shape != expected or array.dtype != (np.float32 if tensor.is_table else np.uint8):
            raise ValueError(f"weights[{tensor.name!r}]: {array.dtype} {array.shape}, expected {expected}")
        if tensor.is_table:
            load_table(self._state, index, array)
        else:
            self._team.load(partial(load_strips, self._state, index, strips=array))

    def attach(self) -> None:
        if self.placement.cpus:
            pin_thread(self.placement.cpus[0])

    def run(self, program: Program, batch: NDArray[np.void], max_steps: int) -> RunResult:
        if program.tensors is not self._tensors:
            raise ValueError("program: its tensors are not those that this executor holds")
        if len(program.instructions) > MAX_INSTRUCTIONS:
            raise ValueError(f"program: {len(program.instructions)} instructions, expected at most {MAX_INSTRUCTIONS}")
        try:
            return super().run(program, batch, max_steps)
        finally:
            self._team.rest()

    def _step(self, program: Program, batch: NDArray[np.void]) -> NDArray[np.void]:
        state = self._state
        state.instructions[: len(program.instructions)] = program.instructions
        state.spans[: len(batch)] = batch
        step, entries = state.step[0], state.entries[: int(batch["num_logits"].sum())]
        step["num_instructions"], step["num_spans"] = len(program.instructions), len(batch)
        entries[...] = np.zeros((), ENTRY)
        self._team.wake()
        slot = run_worker(0, RUN, NO_DESCRIPTOR, *state)
        if slot != NO_SLOT:
            raise ValueError(f"batch: slot {slot} has a token id outside 0 to {self.dims.vocab - 1}")
        entries["time_ns"] = time.monotonic_ns()
        return entries

    def close(self) -> None:
        self._team.close()


def _check_format(tensor: TensorSpec) -> None:
    if tensor.format not in FORMATS or tensor.format.group % TILE_N:
        allowed = ", ".join(format.name for format in FORMATS)
        raise ValueError(f"program: {tensor.name} is in format {tensor.format.name}, expected one of {allowed}")
