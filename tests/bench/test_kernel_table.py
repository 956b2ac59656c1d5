"""The kernel table: whole, and each kernel in it held to the reference. No figure of speed is looked at."""

from __future__ import annotations

import pytest

from helpers import LEVELS
from waferline.bench.kernels import footprints_of
from waferline.bench.probes import columns_of, kernel_error, timed_attention, timed_matmul
from waferline.fabric.host import CacheLevel, Host
from waferline.fabric.placement import plan_placement
from waferline_kernels.kernel_table import Kernel, kernel_table
from waferline_kernels.kv_cache import KV_BF16, KV_FORMATS, KV_INT8
from waferline_kernels.tiles import BF16, FORMATS, Q8

TABLE = kernel_table()
ROUNDING = {KV_BF16: 2e-3, KV_INT8: 1e-2}  # of keys and values, where a sum's last bit moves one by a step


@pytest.mark.parametrize("kernel", TABLE, ids=lambda kernel: kernel.name)
def test_each_kernel_in_the_table_is_held_to_the_reference(kernel: Kernel) -> None:
    is_exact = kernel.operation in ("quantize", "argmax") or (kernel.format is not None and kernel.format.is_quantized)
    error = kernel_error(kernel)
    splits_activations = kernel.format is BF16 and kernel.target == "amx"
    bound = 1e-5 if splits_activations else ROUNDING.get(kernel.kv_format, 2e-6)
    assert error == 0 if is_exact else 0 <= error < bound


def test_the_table_has_every_format_on_every_level() -> None:
    for target in (*LEVELS, "numba"):
        mine = {kernel.format.name for kernel in TABLE if kernel.target == target and kernel.format}
        assert mine == set(FORMATS)
        keys = {kernel.kv_format.name for kernel in TABLE if kernel.target == target and kernel.kv_format}
        assert keys == set(KV_FORMATS)
    assert len({kernel.name for kernel in TABLE}) == len(TABLE)
    assert "matmul_q8_64x16_numba" in {kernel.name for kernel in TABLE}


def test_a_timed_probe_sweeps_what_it_says() -> None:
    columns = columns_of(Q8, 256, 1 << 20, 2)
    probe = timed_matmul(Q8, 256, columns, footprint=1 << 20, read_bytes=4 << 20)
    assert probe.program.swept_bytes == probe.bytes
    assert (
        plan_placement(probe.program, 2).swept_bytes(probe.program) == (probe.bytes // 2,) * 2
    )  # without the embedding
    assert 0.9 * 2**20 < probe.bytes < 1.1 * 2**20
    assert probe.macs == sum(spec.n * spec.k for spec in probe.program.tensors if spec.name.startswith("matrix"))
    matmuls = len(probe.program.instructions) - len(probe.before.instructions)
    assert matmuls * probe.bytes == probe.sweeps * probe.bytes * (len(probe.weights) - 1)
    assert probe.sweeps == 4
    attention = timed_attention(KV_BF16, sweeps=3, context=64)
    assert len(attention.program.instructions) - len(attention.before.instructions) == 3
    assert attention.bytes == 4 * attention.program.dims.kv_block_bytes(KV_BF16)
    assert attention.macs_of(2) == 2 * attention.program.dims.heads * attention.program.dims.head_dim * (64 + 63)


def test_footprints_lie_between_the_caches() -> None:
    caches = (
        CacheLevel("L1", 32 << 10, 64 << 10),
        CacheLevel("L2", 1 << 20, 2 << 20),
        CacheLevel("L3", 16 << 20, 32 << 20),
    )
    found = {footprint.level: footprint.bytes for footprint in footprints_of(Host((0, 1), caches))}
    assert found == {"L2": 1 << 20, "L3": 8 << 20, "DRAM": 256 << 20}
    assert [footprint.level for footprint in footprints_of(Host((0,), ()))] == ["DRAM"]
