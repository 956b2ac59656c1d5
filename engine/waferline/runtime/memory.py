"""The KV budget: how many blocks an engine has, decided once at the start."""

from __future__ import annotations

import os
from pathlib import Path

from waferline_kernels.kv_cache import KV_FORMATS
from waferline_kernels.program import Dims
from waferline_kernels.sequences import KV_BLOCK_SIZE

KV_DTYPES = ("auto", *KV_FORMATS)
FREE_MEMORY_SHARE = 0.5
FALLBACK_MEMORY = 4 << 30  # bytes taken as free where the system does not tell


def choose_kv_dtype(kv_dtype: str, dtype: str) -> str:
    """The element type of the KV cache that ``kv_dtype`` asks for; "auto" is f32 beside weights in f32, else bf16.

    Raises ValueError for one that there is not.
    """
    if kv_dtype not in KV_DTYPES:
        raise ValueError(f"kv_dtype: {kv_dtype!r}, expected one of {', '.join(KV_DTYPES)}")
    if kv_dtype != "auto":
        return kv_dtype
    return "f32" if dtype == "f32" else "bf16"


def plan_kv_blocks(
    dims: Dims, kv_dtype: str, max_num_seqs: int, max_model_len: int, kv_cache_memory: int | None, free_memory: int
) -> int:
    """The number of KV blocks: what ``kv_cache_memory`` bytes hold, at most what all sequences at their longest use.

    Where no budget is given it is half of ``free_memory`` bytes. Raises ValueError for one that holds no block.

    A model of 30 layers with 3 KV heads of 64 keeps 30 * 3 * 16 * (64 + 64) * 2 = 368,640 bytes a block of 16 tokens in
    bf16: 1 GiB holds 2912 blocks, 46,592 tokens.
    """
    if kv_cache_memory is not None and (not isinstance(kv_cache_memory, int) or isinstance(kv_cache_memory, bool)):
        raise TypeError(f"kv_cache_memory: {kv_cache_memory!r}, expected a number of bytes or None")
    budget = int(free_memory * FREE_MEMORY_SHARE) if kv_cache_memory is None else kv_cache_memory
    block_bytes = dims.kv_block_bytes(KV_FORMATS[kv_dtype])
    affordable = budget // block_bytes
    if affordable < 1:
        raise ValueError(
            f"kv_cache_memory: {budget} bytes{' (half of the free memory)' if kv_cache_memory is None else ''}, "
            f"expected at least {block_bytes}, one block of {KV_BLOCK_SIZE} tokens"
        )
    return min(affordable, max_num_seqs * -(-max_model_len // KV_BLOCK_SIZE))


def available_memory(root: Path = Path("/")) -> int:
    """Bytes that this process can still take without swapping: the least of what the system and its cgroups leave.

    Reads /proc and /sys under ``root`` (Linux); elsewhere half of the physical memory.
    """
    limits = [_system_available(root), *_cgroup_available(root)]
    return max(0, min(limits))


def _system_available(root: Path) -> int:
    fields = _fields(root / "proc/meminfo")
    if "MemAvailable:" in fields:
        return fields["MemAvailable:"] * 1024
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, ValueError, OSError):
        return FALLBACK_MEMORY


def _cgroup_available(root: Path) -> list[int]:
    """What each cgroup around this process that has a limit leaves (v2 and v1)."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    left = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mount, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            mount, names = (
                root / "sys/fs/cgroup/memory",
                ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
            )
        else:
            continue
        inner = mount / path.strip("/")
        # Within a container the path can be the host's, and only the mount itself be there.
        for folder in (inner, *inner.parents):
            left += _left_in(folder, *names)
            if folder == mount:
                break
    return left


def _left_in(folder: Path, limit_name: str, usage_name: str, cache_name: str) -> list[int]:
    try:
        limit, usage = (folder / limit_name).read_text(), (folder / usage_name).read_text()
        # Pages of files that were read long ago count as used, but are given up first.
        return [int(limit) - int(usage) + _fields(folder / "memory.stat").get(cache_name, 0)]
    except (OSError, ValueError):  # not there, or "max"
        return []


def _fields(path: Path) -> dict[str, int]:
    """A file of lines ``name value ...``; empty where there is none."""
    try:
        lines = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {line[0]: int(line[1]) for line in lines if len(line) > 1 and line[1].isdigit()}
