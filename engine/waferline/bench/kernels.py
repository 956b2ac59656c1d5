"""``waferline bench kernels``: every kernel in the kernel table beside what the machine allows, and its error.

A matmul of one row is held against a plain prefetched read of its weights where they lie, one of many rows against the peak
of its level's dot product, both measured in turn with it; the larger of the two shares is the one that counts. So is
attention over each format of the KV cache, at a long context; there, and for rows, the read is over as many bytes.

The parts of sampling are timed as what they are most of: ``max`` and ``exp_sum`` as the drawing of a token, ``argmax`` as
the choice of the largest logit after rules were applied; both begin with a copy of the logits.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from waferline_kernels.kernel_table import Kernel, kernel_table
from waferline_kernels.placement import Placement
from waferline_kernels.program import Program, TensorSpec
from waferline_kernels.sequences import SPAN
from waferline_kernels.tiles import BF16, F32, Q8, TILE_N

from ..fabric.bandwidth import measure_peak, read_seconds
from ..fabric.host import Host, probe_host
from ..fabric.placement import check_threads
from ..fabric.residency import DRAM, resident_level
from .batch import Batch, placed
from .output import machine, print_json, print_table, rounded, share
from .probes import SAMPLING, TimedProbe, columns_of, kernel_error, timed_attention, timed_matmul, timed_rows

BYTES_PER_READ = 100e6
LEAST_DRAM_BYTES, MOST_DRAM_BYTES = 256 << 20, 1 << 30  # of twice its size a cache of 32 MB still serves half
MANY_ROWS = 32  # beyond, where the weights lie no longer shows: they are left in one place
ROW_SWEEPS = 32  # of an operation without weights
CONTEXT, CONTEXT_SWEEPS = 8192, 4  # tokens that the last row attends to (all rows, where they are more), and how often
PEAKS = {"f32": F32, "bf16": BF16, "int8": Q8}  # the weights that are multiplied as a KV format is


@dataclass(frozen=True)
class Footprint:
    level: str
    bytes: int


@dataclass(frozen=True)
class Measured:
    """``bandwidth`` and ``peak``: what was measured beside it, bytes and multiply-adds a second. ``seconds``: None where a
    step with the operation took no longer than one without."""

    kernel: Kernel
    rows: int
    columns: int | None  # of each matrix of a matmul
    level: str
    bytes: int  # swept: weights, keys and values, or else the rows themselves
    macs: int  # of all rows
    seconds: float | None
    bandwidth: float
    peak: float
    error: float

    def rate(self, amount: float) -> float | None:
        """``amount`` over the seconds."""
        return None if self.seconds is None else amount / self.seconds

    def fields(self) -> dict[str, Any]:
        return {
            "kernel": self.kernel.name,
            "operation": self.kernel.operation,
            "dtype": self.kernel.format.name if self.kernel.format else None,
            "kv_dtype": self.kernel.kv_format.name if self.kernel.kv_format else None,
            "tile": self.kernel.tile or None,
            "target": self.kernel.target,
            "rows": self.rows,
            "n": self.columns,
            "level": self.level,
            "bytes": self.bytes,
            "microseconds": None if self.seconds is None else round(self.seconds * 1e6, 3),
            "gb_per_second": rounded(self.rate(self.bytes / 1e9), 3),
            "bandwidth_gb_per_second": round(self.bandwidth / 1e9, 2),
            "tmac_per_second": rounded(self.rate(self.macs / 1e12), 5),
            "peak_tmac_per_second": round(self.peak / 1e12, 4),
            "share_of_limit": rounded(self.rate(max(self.bytes / self.bandwidth, self.macs / self.peak)), 3),
            "error": self.error,
        }

    def cells(self) -> tuple[str, ...]:
        gigabytes, tmacs = self.rate(self.bytes / 1e9), self.rate(self.macs / 1e12) if self.macs else None
        return (
            self.kernel.name,
            str(self.rows),
            "" if self.columns is None else str(self.columns),
            f"{self.level} {self.bytes / 1e6:.3g} MB",
            "" if gigabytes is None else f"{gigabytes:.1f}",
            share(self.rate(self.bytes / self.bandwidth)),
            "" if tmacs is None else f"{tmacs:.4f}",
            share(self.rate(self.macs / self.peak)) if self.macs else "",
            f"{self.error:.1e}" if self.error else "0",
        )


def run(args: argparse.Namespace) -> None:
    """Measure and print. Raises ValueError where no kernel is left to measure, and for threads out of range."""
    kernels = [kernel for kernel in kernel_table() if args.only in kernel.name]
    if not kernels:
        names = ", ".join(kernel.name for kernel in kernel_table())
        raise ValueError(f"only: {args.only!r}, expected a part of one of {names}")
    threads = len(probe_host().cpus) if args.threads is None else args.threads
    check_threads(threads)
    shape = (args.k, args.n)
    results = [result for kernel in kernels for result in measure(kernel, args.rows, *shape, threads, args.repeats)]
    if args.json:
        fields = [result.fields() for result in results]
        print_json({"bench": "kernels", **machine(), "threads": threads, "k": args.k, "results": fields})
        return
    print(f"threads: {threads}, K {args.k}, medians of {args.repeats}")
    header = ("kernel", "rows", "N", "bytes", "GB/s", "of bandwidth", "TMAC/s", "of peak", "error")
    print_table(header, [result.cells() for result in results])


def measure(
    kernel: Kernel, rows: tuple[int, ...], k: int, n: int | None, threads: int, repeats: int
) -> Iterator[Measured]:
    """The kernel's figures: a matmul for each number of rows and each level that its weights can lie in."""
    error = kernel_error(kernel)
    if kernel.kv_format:
        probe = timed_attention(kernel.kv_format, CONTEXT_SWEEPS, max(CONTEXT, *rows))
        level = resident_level(probe_host().caches, probe.bytes // threads, probe.bytes)
        yield from _timings(kernel, probe, rows, level, error, threads, repeats)
        return
    if kernel.format is None:
        few = tuple(count for count in rows if count == 1 or kernel.operation not in SAMPLING)
        probe = timed_rows(kernel.operation, ROW_SWEEPS)
        level = "sampling" if kernel.operation in SAMPLING else ""
        yield from _timings(kernel, probe, few, level, error, threads, repeats)
        return
    matrix_bytes = 0 if n is None else TensorSpec("", n, k, kernel.format).nbytes
    *nearer, dram = footprints_of(probe_host())
    footprints = [*(footprint for footprint in nearer if footprint.bytes >= matrix_bytes), dram]
    for footprint in footprints:
        fitting = tuple(count for count in rows if count <= MANY_ROWS or footprint == footprints[len(footprints) // 2])
        columns = columns_of(kernel.format, k, footprint.bytes, threads) if n is None else n
        probe = timed_matmul(kernel.format, k, columns, footprint.bytes, BYTES_PER_READ)
        yield from _timings(kernel, probe, fitting, footprint.level, error, threads, repeats, columns)


def footprints_of(host: Host) -> tuple[Footprint, ...]:
    """Bytes that stay in L2, in L3 though not in L2, and in neither; fewer where the machine does not tell its caches."""
    caches = {cache.name: cache.bytes_total for cache in host.caches}
    found = []
    if "L2" in caches:
        found.append(Footprint("L2", caches["L2"] // 2))
    if "L3" in caches:
        found.append(Footprint("L3", min(4 * caches.get("L2", caches["L3"]), caches["L3"] // 2)))
    largest = max(caches.values(), default=MOST_DRAM_BYTES)
    return (*found, Footprint(DRAM, min(max(2 * largest, LEAST_DRAM_BYTES), MOST_DRAM_BYTES)))


def _timings(
    kernel: Kernel,
    probe: TimedProbe,
    rows: tuple[int, ...],
    level: str,
    error: float,
    threads: int,
    repeats: int,
    columns: int | None = None,
) -> Iterator[Measured]:
    """Times of the probe, in turn with the limits that hold for it."""
    if not rows:
        return
    has_operands = kernel.format is not None or kernel.kv_format is not None
    peak_format = PEAKS[kernel.kv_format.name] if kernel.kv_format else kernel.format or F32
    with placed(probe.program, threads) as placement:
        cpus = placement.cpus
        batch = probe_batch(kernel, probe, placement, max(rows))
        try:
            for count in rows:
                seconds, bandwidths, peaks = [], [], []
                nbytes = probe.bytes if has_operands else probe.bytes * count
                sweeps = max(1, round(BYTES_PER_READ / nbytes))
                for _ in range(repeats):
                    if kernel.format is not None:
                        bandwidths.append(batch.read_bandwidth(BYTES_PER_READ))
                    else:
                        bandwidths.append(nbytes * sweeps / read_seconds(nbytes, threads, cpus, sweeps))
                    peaks.append(measure_peak(peak_format, threads, cpus, kernel.level))
                    step_seconds(batch, probe.program, count)  # once unmeasured, into the caches, as the read is
                    whole = step_seconds(batch, probe.program, count)
                    seconds.append(whole - step_seconds(batch, probe.before, count))
                took = statistics.median(seconds)
                yield Measured(
                    kernel=kernel,
                    rows=count,
                    columns=columns,
                    level=level,
                    bytes=nbytes,
                    macs=probe.macs_of(count),
                    seconds=took / probe.sweeps if took > 0 else None,
                    bandwidth=statistics.median(bandwidths),
                    peak=statistics.median(peaks),
                    error=error,
                )
        finally:
            batch.close()


def probe_batch(kernel: Kernel, probe: TimedProbe, placement: Placement, most_rows: int) -> Batch:
    """A sequence to run ``probe`` on with ``kernel``, in steps of up to ``most_rows`` rows; keys and values are there."""
    context, most_rows = max(CONTEXT, most_rows), max(MANY_ROWS, most_rows)
    batch = Batch(
        probe.program,
        probe.weights,
        placement,
        size=1,
        max_model_len=context + 1,
        max_rows=most_rows,
        kv_dtype=kernel.kv_format.name if kernel.kv_format else "f32",
        backend=kernel.backend,
        level=kernel.level,
    )
    sampling = batch.executor.sequences.sampling[0]
    sampling["temperature"] = kernel.operation != "argmax"
    sampling["min_tokens"] = np.iinfo(np.int32).max  # a rule: without any, logits are searched as they are made
    for start in range(0, context if kernel.kv_format else 0, most_rows):
        rows = min(most_rows, context - start)
        batch.rewind(start + rows)
        batch.executor.run(probe.before, np.array([(0, start, rows, 0)], SPAN), 1)
    return batch


def step_seconds(batch: Batch, program: Program, rows: int) -> float:
    """Of one step over the last ``rows`` tokens of a batch of ``probe_batch``; a logits row where it samples."""
    end = batch.executor.limits.max_model_len - 1
    batch.rewind(end)
    samples = int(program is batch.program and program.dims.vocab > TILE_N)
    seconds = batch.executor.run(program, np.array([(0, end - rows, rows, samples)], SPAN), 1).seconds
    batch.executor.ring.drain()
    return seconds
