"""The residency report: where a model's bytes lie, and what each kind of instruction takes beside what it could."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from waferline_kernels.kv_cache import KV_FORMATS
from waferline_kernels.placement import Placement
from waferline_kernels.program import Op, Program

from .cost import Prediction
from .host import probe_host
from .residency import Residency, resident_level

MB = 1e6


@dataclass(frozen=True)
class ReportRow:
    """One kind of instruction, over all layers of one step; seconds. What was not measured is None."""

    kind: str
    count: int
    bytes: float  # swept: weights, keys and values
    level: str  # where they stay; "" for an instruction that sweeps none
    limit: float  # the longer of its bytes over the bandwidth and its multiply-adds over the peak
    predicted: float
    measured: float | None  # working and waiting
    waited: float | None  # at the barrier, of that

    @property
    def share_of_limit(self) -> float | None:
        return self.limit / self.measured if self.measured and self.bytes else None

    def fields(self) -> dict[str, object]:
        """For JSON: microseconds, bytes and shares."""
        return {
            "kind": self.kind,
            "count": self.count,
            "bytes": round(self.bytes),
            "level": self.level,
            "predicted_us": round(self.predicted * 1e6, 2),
            "measured_us": None if self.measured is None else round(self.measured * 1e6, 2),
            "barrier_us": None if self.waited is None else round(self.waited * 1e6, 2),
            "share_of_limit": None if self.share_of_limit is None else round(self.share_of_limit, 3),
        }


def report_rows(
    program: Program,
    predictions: Sequence[Prediction],
    residency: Residency,
    measured: NDArray[np.float64] | None = None,
    step_seconds: float | None = None,
) -> list[ReportRow]:
    """A row for each kind of instruction, in execution order, and one for the whole step.

    ``measured`` is float64 [instructions, 2]: the seconds of one step that a worker worked on each, and then waited.
    Where it is not known the step may still be: ``step_seconds``.
    """
    kinds = [instruction_kind(program, instruction) for instruction in program.instructions]
    groups = {kind: [i for i, other in enumerate(kinds) if other == kind] for kind in dict.fromkeys(kinds)}
    rows = [_row(kind, members, predictions, residency, measured) for kind, members in groups.items()]
    step = _row("step", list(range(len(kinds))), predictions, residency, measured)
    return [*rows, step if measured is not None else replace(step, measured=step_seconds)]


def _row(
    kind: str,
    members: list[int],
    predictions: Sequence[Prediction],
    residency: Residency,
    measured: NDArray[np.float64] | None,
) -> ReportRow:
    mine = [predictions[index] for index in members]
    swept = sum(prediction.bytes for prediction in mine)
    return ReportRow(
        kind=kind,
        count=len(members),
        bytes=swept,
        level=residency.level if swept else "",
        limit=sum(max(prediction.sweep, prediction.compute) for prediction in mine),
        predicted=sum(prediction.seconds for prediction in mine),
        measured=None if measured is None else float(measured[members].sum()),
        waited=None if measured is None else float(measured[members, 1].sum()),
    )


def instruction_kind(program: Program, instruction: np.void) -> str:
    """What instructions of all layers have in common: the operation and, of a matmul, the matrix's name in its layer."""
    op = Op(instruction["op"])
    if op is Op.MATMUL:
        return f"matmul {program.tensors[instruction['weight']].name.rpartition('.')[2]}"
    return op.name.lower()


def report_lines(rows: Iterable[ReportRow]) -> Iterator[str]:
    """The report as a table; figures that were not measured are left out."""
    rows = list(rows)
    measured_columns = f"{'measured':>12}{'barrier':>9}{'of limit':>10}" if any(row.measured for row in rows) else ""
    yield f"{'instruction':16}{'count':>6}{'MB':>11}  {'level':6}{'predicted':>12}{measured_columns}"
    for row in rows:
        size = f"{row.bytes / MB:.2f}" if row.bytes else ""
        measured = "" if row.measured is None else f"{row.measured * 1e6:.1f} us"
        barrier = f"{row.waited / row.measured:.1%}" if row.measured and row.waited is not None else ""
        share = "" if row.share_of_limit is None else f"{row.share_of_limit:.1%}"
        yield (
            f"{row.kind:16}{row.count:>6}{size:>11}  {row.level:6}{row.predicted * 1e6:>9.1f} us"
            f"{measured:>12}{barrier:>9}{share:>10}"
        ).rstrip()


def residency(program: Program, placement: Placement) -> str:
    """One line: the bytes a step sweeps, and where they stay.

    >>> residency(program, placement)
    '2.6 MB of weights a step, 1.3 MB per core over 2 cores, resident in L3'
    """
    largest, total = max(placement.swept_bytes(program)), program.swept_bytes
    cores = placement.num_workers
    share = f", {largest / MB:.1f} MB per core over {cores} cores" if cores > 1 else " on one core"
    level = resident_level(probe_host().caches, largest, total)
    return f"{total / MB:.1f} MB of weights a step{share}, resident in {level}"


def residency_lines(program: Program, placement: Placement) -> Iterator[str]:
    """The caches, each core's arena, and what a KV block takes."""
    host = probe_host()
    caches = ", ".join(f"{c.name} {c.bytes_total / MB:.1f} MB" for c in host.caches) or "unknown"
    yield f"cores      {len(host.cpus)} available; data caches over them: {caches}"
    yield f"sweep      {residency(program, placement)}"
    for worker, size in enumerate(placement.arena_bytes):
        strips = int(placement.shares["count"][:, worker].sum())
        yield f"worker {worker}   {size / MB:.1f} MB, {strips} strips"
    blocks = ", ".join(f"{program.dims.kv_block_bytes(format)} in {name}" for name, format in KV_FORMATS.items())
    yield f"KV cache   bytes a block of 16 tokens: {blocks}"
