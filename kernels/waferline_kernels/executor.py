"""Executors: they run programs. One entry, ``run``; one interface, several backends.

``WAFERLINE_BACKEND`` (native, numba or reference) and, for the native one, ``WAFERLINE_ISA`` force a choice; a forced
backend that is not available fails loudly.
"""

from __future__ import annotations

import os
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .aligned import aligned_zeros
from .kv_cache import kv_format
from .placement import Placement, check_placement
from .program import Buffer, Dims, Op, Program
from .ring import ENTRY, Finish, Ring
from .sequences import KV_BLOCK_SIZE, SPAN, ExecutorLimits, SequenceTable

BACKENDS = ("native", "numba", "reference")
RING_STEPS = 16  # steps of the largest batch that the ring holds at least


class BackendUnavailable(RuntimeError):
    """A backend or instruction set was asked for that this machine or build does not have."""


class StopReason(Enum):
    """Why ``run`` returned; the values are shared with the native executor."""

    STEPS = 0  # max_steps taken, or a prefill chunk that samples nothing
    FINISHED = 1  # a sequence ended
    STOPPED = 2  # a stop flag was raised
    OUT_OF_BLOCKS = 3  # a sequence's next position has no reserved block
    WAKE = 4
    RING_FULL = 5


@dataclass(frozen=True)
class RunResult:
    num_steps: int
    reason: StopReason
    seconds: float  # spent in the steps


class Executor(ABC):
    """Holds the weights, the KV blocks and the sequence table; runs batches. Made by ``create_executor``.

    Whoever fills the sequence table sees to it that its block ids, token ids and sampling parameters are valid.
    """

    name: str
    level: str

    def __init__(self, program: Program, placement: Placement, limits: ExecutorLimits) -> None:
        self.dims: Dims = program.dims
        self.limits = limits
        self.kv_format = kv_format(limits.kv_dtype)
        self.placement = placement
        self.sequences = SequenceTable.allocate(limits, self.dims.vocab)
        self.ring: Any = Ring(ring_capacity(limits))
        self.profile_ns: NDArray[np.int64] | None = None
        """int64 [instructions, 2]: where set, the native backend's `run` adds to it the nanoseconds that worker 0 worked on
        each instruction and then waited at the barrier."""
        self.logits = aligned_zeros((limits.max_num_logits, self.dims.buffer_stride(Buffer.LOGITS)), np.float32)
        """float32 [max_num_logits, stride]: logits of the last step's wanted rows, in the batch's order."""

    @abstractmethod
    def run(self, program: Program, batch: NDArray[np.void], max_steps: int) -> RunResult:
        """Run ``program`` over ``batch`` (SPAN [n]) and then over each sampled token, ``max_steps`` steps at most.

        At least one step is taken unless the ring has no room for it. Each sampled token is appended to its slot and
        published in ``ring``, but for those that follow a wrong draft; the run ends with a step that has one. Raises
        ValueError for ``max_steps`` below 1 and for a batch that is malformed or beyond the limits; nothing has run
        then.
        """

    def attach(self) -> None:
        """Make the calling thread worker 0: it alone calls `run` from now on, pinned if the placement says so."""

    def read_seconds(self, sweeps: int) -> float | None:
        """Seconds of a plain prefetched read of the weights that a step of the executor's program sweeps, each worker its
        own (``Placement.swept_bytes``), ``sweeps`` times over; None where the backend has none."""
        return None

    def wake(self) -> None:
        """Make a ``run`` in progress return after the step at hand; callable from any thread."""
        self.sequences.wake[0] = 1

    def close(self) -> None:
        """Release threads and memory; the executor is not used after it."""


class StepwiseExecutor(Executor):
    """An executor whose loop over the steps is Python's; a backend provides the step."""

    @abstractmethod
    def _step(self, program: Program, batch: NDArray[np.void]) -> NDArray[np.void]:
        """Run ``program`` once over ``batch`` (SPAN [n]); the entries of all wanted rows (ENTRY [num_logits]). Sampled
        tokens are not appended: other rows may still need the drafts in their places."""

    def run(self, program: Program, batch: NDArray[np.void], max_steps: int) -> RunResult:
        check_batch(batch, max_steps, self.sequences, self.limits)
        if self.ring.free < int(batch["num_logits"].sum()):
            return RunResult(0, StopReason.RING_FULL, 0.0)
        begin = time.perf_counter()
        num_steps = 0
        while True:
            entries = append_sampled(batch, self._step(program, batch), self.sequences)
            self.ring.publish(entries)
            num_steps += 1
            reason = self._reason_to_return(batch, entries, num_steps, max_steps)
            if reason is not None:
                return RunResult(num_steps, reason, time.perf_counter() - begin)
            batch = next_batch(batch)

    def _reason_to_return(
        self, batch: NDArray[np.void], entries: NDArray[np.void], num_steps: int, max_steps: int
    ) -> StopReason | None:
        slots, table = batch["slot"], self.sequences
        if (entries["finish"] != Finish.NONE).any():
            return StopReason.FINISHED
        if table.stop_flags[slots].any():
            return StopReason.STOPPED
        if table.wake[0]:
            return StopReason.WAKE
        ends = batch["start"] + batch["count"]  # the next positions
        if num_steps == max_steps or (table.num_tokens[slots] != ends + 1).any():
            return StopReason.STEPS
        if (ends >= table.num_blocks[slots] * KV_BLOCK_SIZE).any():
            return StopReason.OUT_OF_BLOCKS
        if self.ring.free < len(batch):
            return StopReason.RING_FULL
        return None


def append_sampled(batch: NDArray[np.void], entries: NDArray[np.void], table: SequenceTable) -> NDArray[np.void]:
    """Append what was sampled to its sequences. ``entries`` (ENTRY [n]) are those of all wanted rows of ``batch``; the ones
    that count are returned: none after a draft that was not sampled, or after a sequence's end."""
    ends = batch["start"] + batch["count"]
    num_drafts = ends - table.num_tokens[batch["slot"]]
    if (num_drafts > 0).any():
        counts = np.ones(len(entries), bool)
        rows = batch["num_logits"].cumsum()  # the first entry that is not the span's any more
        for slot, end, row, drafts in zip(batch["slot"], ends, rows, num_drafts, strict=True):
            if drafts > 0:
                before = entries[row - 1 - drafts : row - 1]  # of the rows before each draft
                is_right = (before["token"] == table.tokens[slot, end - drafts : end]) & (
                    before["finish"] == Finish.NONE
                )
                counts[row - drafts : row] = np.logical_and.accumulate(is_right)
        entries = entries[counts]
    sampled = entries[entries["is_prompt"] == 0]
    table.tokens[sampled["slot"], sampled["position"]] = sampled["token"]
    table.num_tokens[sampled["slot"]] = sampled["position"] + 1  # of several the last one
    return entries


def ring_capacity(limits: ExecutorLimits) -> int:
    return max(RING_STEPS * limits.max_num_seqs, 2 * limits.max_num_logits)


def next_batch(batch: NDArray[np.void]) -> NDArray[np.void]:
    """The batch after ``batch``: of each sequence the row of the token just sampled."""
    following = np.empty(len(batch), SPAN)
    following["slot"] = batch["slot"]
    following["start"] = batch["start"] + batch["count"]
    following["count"] = following["num_logits"] = 1
    return following


def check_rotary_tables(program: Program, limits: ExecutorLimits) -> None:
    """Raise ValueError unless the program's rotary embeddings have angles for each position of a sequence."""
    rotary = program.instructions["op"] == Op.ROTARY
    for index in np.unique(program.instructions["weight"][rotary]):
        tensor = program.tensors[index]
        if tensor.n < limits.max_model_len:
            raise ValueError(
                f"limits.max_model_len: {limits.max_model_len}, expected at most {tensor.name}'s {tensor.n}"
            )


def check_batch(batch: NDArray[np.void], max_steps: int, table: SequenceTable, limits: ExecutorLimits) -> None:
    """Raise ValueError for a batch that does not fit the limits or the slots' tokens and blocks, naming the field."""

    def fail(field: str, value: object, allowed: str) -> None:
        raise ValueError(f"batch.{field}: {value}, expected {allowed}")

    if max_steps < 1:
        raise ValueError(f"max_steps: {max_steps}, expected at least 1")
    if batch.dtype != SPAN or batch.ndim != 1 or len(batch) == 0:
        fail("dtype", f"{batch.dtype} {batch.shape}", f"a vector of {SPAN} with at least one span")
    slot, start, count, num_logits = (
        batch[field].astype(np.int64) for field in ("slot", "start", "count", "num_logits")
    )
    if slot.min() < 0 or slot.max() >= limits.max_num_seqs:
        fail("slot", slot.tolist(), f"0 to {limits.max_num_seqs - 1}")
    if np.bincount(slot).max() > 1:
        fail("slot", slot.tolist(), "each sequence once")
    if count.min() < 1 or count.sum() > limits.max_num_batched_tokens:
        fail("count", count.tolist(), f"at least 1 each and {limits.max_num_batched_tokens} in all")
    if (num_logits < 0).any() or (num_logits > count).any() or num_logits.sum() > limits.max_num_logits:
        fail("num_logits", num_logits.tolist(), f"0 to count each and {limits.max_num_logits} in all")
    end = start + count
    num_drafts = np.maximum(end - table.num_tokens[slot], 0)
    if start.min() < 0 or ((num_drafts > 0) & (num_logits <= num_drafts)).any():
        within = f"rows within the {table.num_tokens[slot].tolist()} tokens of the slots"
        fail("start", start.tolist(), f"{within}, or with logits of all drafts and of the row before them")
    if (end > np.minimum(table.num_blocks[slot] * KV_BLOCK_SIZE, limits.max_model_len)).any():
        fail("start", start.tolist(), f"rows within the {table.num_blocks[slot].tolist()} reserved blocks of the slots")
    if ((num_logits > 0) & (num_drafts == 0) & (end == limits.max_model_len)).any():
        fail(
            "num_logits",
            num_logits.tolist(),
            f"0 where a slot's {limits.max_model_len} tokens leave no room for another",
        )


def choose_backend(backend: str | None = None) -> str:
    """The backend in force: ``backend``, else WAFERLINE_BACKEND, else native, else numba after a warning.

    Raises BackendUnavailable where one is asked for that is not there.
    """
    from . import native

    backend = backend or os.environ.get("WAFERLINE_BACKEND") or None
    if backend not in (None, *BACKENDS):
        raise BackendUnavailable(f"WAFERLINE_BACKEND: {backend!r}, expected one of {', '.join(BACKENDS)}")
    if backend == "native" and not native.is_available():
        raise BackendUnavailable(f"WAFERLINE_BACKEND: 'native', but {native.unavailable_reason()}")
    if backend is None and not native.is_available():
        message = f"waferline runs on its slower numba backend: {native.unavailable_reason()}"
        warnings.warn(message, RuntimeWarning, stacklevel=3)
        return "numba"
    return backend or "native"


def create_executor(
    program: Program,
    placement: Placement,
    weights: Mapping[str, NDArray[Any]],
    limits: ExecutorLimits,
    backend: str | None = None,
    level: str | None = None,
) -> Executor:
    """An executor of the wanted, forced or best available backend, loaded with ``weights``; see ``choose_backend``.

    ``weights`` has an array for each of the program's tensors by name: strips (uint8 [num_strips, strip_bytes]) for a
    matrix, float32 [n, k] for a table. They are copied; the mapping may read them lazily.

    ``level`` is the native backend's instruction set; WAFERLINE_ISA where it is None, and else the best.

    Raises ValueError for a placement, limits or weights that do not fit the program, and BackendUnavailable.
    """
    check_placement(program, placement)
    check_rotary_tables(program, limits)
    backend = choose_backend(backend)
    if backend == "native":
        from .native import NativeExecutor

        return NativeExecutor(program, placement, weights, limits, level)
    if backend == "numba":
        from .numba_backend import NumbaExecutor

        return NumbaExecutor(program, placement, weights, limits)
    from .reference import ReferenceExecutor

    return ReferenceExecutor(program, placement, weights, limits)


def empty_entries(count: int) -> NDArray[np.void]:
    return np.zeros(count, ENTRY)
