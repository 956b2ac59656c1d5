"""Each kernel of the table under pytest-benchmark, one row at a time: ``pytest benches`` (with the extra ``bench``).

``waferline bench kernels`` measures more, and beside the machine's limits; this is for comparing two states of a kernel:
``pytest benches --benchmark-save before``, then ``--benchmark-compare``.
"""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from waferline.bench.batch import placed
from waferline.bench.kernels import CONTEXT, probe_batch, step_seconds
from waferline.bench.probes import columns_of, timed_attention, timed_matmul, timed_rows
from waferline_kernels.kernel_table import Kernel, kernel_table

THREADS = 1
K, FOOTPRINT = 2048, 1 << 20  # in the L2 of one core
SWEEPS = 32


@pytest.mark.parametrize("kernel", kernel_table(), ids=lambda kernel: kernel.name)
def test_kernel(benchmark: BenchmarkFixture, kernel: Kernel) -> None:
    if kernel.kv_format:
        probe = timed_attention(kernel.kv_format, SWEEPS, CONTEXT)
    elif kernel.format:
        columns = columns_of(kernel.format, K, FOOTPRINT, THREADS)
        probe = timed_matmul(kernel.format, K, columns, FOOTPRINT, SWEEPS * FOOTPRINT)
    else:
        probe = timed_rows(kernel.operation, SWEEPS)
    with placed(probe.program, THREADS) as placement:
        batch = probe_batch(kernel, probe, placement, 1)
        try:
            benchmark(step_seconds, batch, probe.program, 1)
        finally:
            batch.close()
    if benchmark.stats is not None:  # with --benchmark-disable there are none
        benchmark.extra_info["gb_per_second"] = probe.sweeps * probe.bytes / benchmark.stats.stats.median / 1e9
