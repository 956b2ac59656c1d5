"""The native executor's Python side: it chooses a level, lays out memory, loads weights, checks what C relies on."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..aligned import aligned_zeros
from ..constraints import CONSTRAINTS
from ..executor import BackendUnavailable, Executor, RunResult, StopReason, check_batch, ring_capacity
from ..placement import SHARE, Placement
from ..program import INSTRUCTION, Buffer, Program
from ..ring import ENTRY
from ..sequences import SAMPLING, SPAN, ExecutorLimits
from ..tiles import (
    ALIGNMENT,
    GROUP,
    NOT_FINITE,
    SUBGROUPS,
    TILE_N,
    TileFormat,
    checked_matrix,
    num_strips,
    round_up,
)
from . import _native

PRIVATE_ROWS = 4  # executor.c: rows that every worker prepares for itself

for _name, _dtype in (
    ("Instruction", INSTRUCTION),
    ("Share", SHARE),
    ("Span", SPAN),
    ("Sampling", SAMPLING),
    ("Constraints", CONSTRAINTS),
    ("Entry", ENTRY),
):
    if _native.STRUCT_SIZES[_name] != _dtype.itemsize:
        raise ImportError(f"{_name}: {_native.STRUCT_SIZES[_name]} bytes in C, {_dtype.itemsize} in numpy")


@cache  # asking the processor is slow in a virtual machine
def supported_levels() -> tuple[str, ...]:
    """The instruction-set levels that this processor and operating system run, lowest first."""
    return _native.supported_levels()


def choose_level(level: str | None) -> str:
    """``level``, else WAFERLINE_ISA, else the highest. Raises BackendUnavailable for one that is not there."""
    level = level or os.environ.get("WAFERLINE_ISA") or supported_levels()[-1]
    if level not in supported_levels():
        raise BackendUnavailable(
            f"WAFERLINE_ISA: {level!r}, expected one of {', '.join(supported_levels())} on this machine"
        )
    return level


def measure_read(num_workers: int, cpus: tuple[int, ...] | None, footprint: int, sweeps: int) -> float:
    """Seconds that ``num_workers`` threads take to read ``footprint`` bytes, ``sweeps`` times over, prefetched."""
    return _on_its_own_thread(_native.measure_read, choose_level(None), num_workers, cpus, footprint, sweeps)


def measure_peak(num_workers: int, cpus: tuple[int, ...] | None, format: TileFormat, macs: int, level: str) -> float:
    """Multiply-adds a second of ``num_workers`` threads, each doing ``macs`` of them on operands in registers, with the
    dot product that ``level`` has for weights of ``format``."""
    return _on_its_own_thread(_native.measure_peak, level, num_workers, cpus, format.code, macs)


def measure_barrier(num_workers: int, cpus: tuple[int, ...] | None, count: int) -> float:
    """Seconds of a barrier of ``num_workers`` threads, the mean of ``count`` with nothing to do between."""
    return _on_its_own_thread(_native.measure_barrier, num_workers, cpus, count)


def _on_its_own_thread(measure: Callable[..., float], *arguments: object) -> float:
    """What is measured pins its worker 0, which must not be whoever asks."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(measure, *arguments).result()


def level_kernels(level: str) -> list[tuple[str, int | None]]:
    """The kernels of a supported level: (operation, code of its weights or, for ``attend``, KV format, or None)."""
    return [(operation, None if code < 0 else code) for operation, code in _native.kernel_table(level)]


def pack_matrix(weight: NDArray[np.float32], format: TileFormat) -> NDArray[np.uint8]:
    """What ``tiles.pack_matrix`` gives for a quantised format, and its errors."""
    weight = np.ascontiguousarray(checked_matrix(weight), np.float32)
    n, k = weight.shape
    strips = np.empty((num_strips(n), format.strip_bytes(k)), np.uint8)
    if not _native.pack_strips(choose_level(None), format.code, weight, strips):
        raise ValueError(NOT_FINITE)
    return strips


class NativeRing:
    """The consumer's side of the C ring; see ``ring.Ring``."""

    def __init__(self, core: _native.Core, capacity: int) -> None:
        self._core = core
        self.capacity = capacity

    @property
    def free(self) -> int:
        return self.capacity - self._core.ring_waiting()

    def wait(self, timeout: float) -> bool:
        """Sleep until there is something to drain, at most ``timeout`` seconds; whether there is."""
        return self._core.ring_wait(timeout)

    def drain(self) -> NDArray[np.void]:
        """Take all waiting entries, oldest first: ENTRY [n], a copy."""
        return self._core.ring_drain()


class NativeExecutor(Executor):
    name = "native"

    def __init__(
        self,
        program: Program,
        placement: Placement,
        weights: Mapping[str, NDArray[Any]],
        limits: ExecutorLimits,
        level: str | None = None,
    ) -> None:
        super().__init__(program, placement, limits)
        self.level = choose_level(level)
        self._tensors = program.tensors
        self._check_formats()
        dims = self.dims
        if dims.head_dim > _native.LARGEST_HEAD_DIM:
            raise ValueError(f"head_dim: {dims.head_dim}, expected at most {_native.LARGEST_HEAD_DIM}")
        rows = limits.max_num_batched_tokens
        float_rows = {Buffer.LOGITS: self.logits}
        buffers = [
            float_rows.get(buffer, aligned_zeros((rows, dims.buffer_stride(buffer)), np.float32)) for buffer in Buffer
        ]
        capacity = ring_capacity(limits)
        private = [
            (
                *self._quantized_rows(PRIVATE_ROWS),
                aligned_zeros((PRIVATE_ROWS, dims.buffer_stride(Buffer.ACT)), np.float32),
            )
            for _ in range(placement.num_workers)
        ]
        self._core = _native.Core(
            self.level,
            astuple(dims),
            (*astuple(limits)[:-1], limits.max_blocks_per_seq),
            [(t.n, t.k, t.format.code, int(t.is_table), t.strip_bytes) for t in program.tensors],
            np.ascontiguousarray(placement.shares),
            placement.arena_bytes,
            placement.swept_bytes(program),
            placement.cpus,
            self.sequences,
            aligned_zeros(capacity, ENTRY),
            buffers,
            [self._quantized_rows(rows), *private],
            self.kv_format.code,
            self.kv_format.tile_bytes(dims.head_dim),
        )
        self.ring = NativeRing(self._core, capacity)
        self._load(weights)

    def _check_formats(self) -> None:
        codes = {code for operation, code in level_kernels(self.level) if operation == "matmul"}
        for tensor in self._tensors:
            if not tensor.is_table and tensor.format.code not in codes:
                raise ValueError(
                    f"program: {tensor.name} is in {tensor.format.name}, which {self.level} has no kernel for"
                )

    def _quantized_rows(self, rows: int) -> tuple[NDArray[Any], ...]:
        """Codes int8 [rows, K], scales float32 [rows, G] and sums int32 [rows, 4 G] for up to ``rows`` rows.

        The codes of one row begin an odd number of cache lines after those of the one before, which spreads the rows
        of a tile over a cache's sets; and there are rows to spare, up to which the last tile may reach.
        """
        columns = self.dims.buffer_stride(Buffer.ACT)
        stride = round_up(columns, ALIGNMENT) | ALIGNMENT
        num_groups = -(-columns // GROUP)
        codes = aligned_zeros((rows + rows // TILE_N + 1, stride), np.int8)
        scales, sums = (
            aligned_zeros((rows, num_groups), np.float32),
            aligned_zeros((rows, num_groups, SUBGROUPS), np.int32),
        )
        return codes, scales, sums

    def _load(self, weights: Mapping[str, NDArray[Any]]) -> None:
        for index, tensor in enumerate(self._tensors):
            array = weights[tensor.name]
            expected = (tensor.n, tensor.k) if tensor.is_table else (tensor.num_strips, tensor.strip_bytes)
            if array.shape != expected or array.dtype != (np.float32 if tensor.is_table else np.uint8):
                raise ValueError(f"weights[{tensor.name!r}]: {array.dtype} {array.shape}, expected {expected}")
            if tensor.is_table:
                padded = aligned_zeros((tensor.n, round_up(tensor.k, TILE_N)), np.float32)
                padded[:, : tensor.k] = array
                self._core.load_table(index, padded)
            else:
                self._core.load_strips(index, np.ascontiguousarray(array))

    def attach(self) -> None:
        self._core.attach()

    def read_seconds(self, sweeps: int) -> float:
        return self._core.read_seconds(sweeps)

    def run(self, program: Program, batch: NDArray[np.void], max_steps: int) -> RunResult:
        if program.tensors is not self._tensors:
            raise ValueError("program: its tensors are not those that this executor holds")
        check_batch(batch, max_steps, self.sequences, self.limits)
        profile, profile_shape = self.profile_ns, (len(program.instructions), 2)
        if profile is not None and (profile.shape != profile_shape or profile.dtype != np.int64):
            raise ValueError(f"profile_ns: {profile.dtype} {profile.shape}, expected int64 {profile_shape}")
        num_steps, reason, bad_slot, nanoseconds = self._core.run(
            program.instructions, np.ascontiguousarray(batch), max_steps, profile
        )
        if bad_slot >= 0:
            raise ValueError(f"batch: slot {bad_slot} has a token id outside 0 to {self.dims.vocab - 1}")
        return RunResult(num_steps, StopReason(reason), nanoseconds * 1e-9)

    def close(self) -> None:
        self._core.close()
