"""The host as a fabric: the cores this process may use and the caches they have."""

from __future__ import annotations

import math
import os
import re
import reprlib
import socket
import weakref
from dataclasses import dataclass
from pathlib import Path

_CPU_ROOT = Path("/sys/devices/system/cpu")
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


@dataclass(frozen=True)
class CacheLevel:
    name: str  # "L2"
    bytes_per_core: int  # a private cache, or a core's share of one that several cores share
    bytes_total: int  # over the cores that this process may use


@dataclass(frozen=True)
class Host:
    """``cpus``: the CPUs this process may run on. ``caches``: data caches, nearest first; empty where unknown."""

    cpus: tuple[int, ...]
    caches: tuple[CacheLevel, ...]


def probe_host() -> Host:
    """What the operating system tells of this process's CPUs and their caches (elsewhere than on Linux a count)."""
    cpus = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    return Host(tuple(sorted(cpus)), _caches(tuple(sorted(cpus))))


def _caches(cpus: tuple[int, ...]) -> tuple[CacheLevel, ...]:
    sizes: dict[int, dict[str, int]] = {}  # level -> the CPUs that share one -> bytes
    for cpu in cpus:
        for index in sorted((_CPU_ROOT / f"cpu{cpu}" / "cache").glob("index*")):
            try:
                kind, level = _read(index / "type"), int(_read(index / "level"))
                shared_by, size = _read(index / "shared_cpu_list"), parse_size(_read(index / "size"))
            except (OSError, ValueError):
                continue
            if kind in ("Data", "Unified"):
                sizes.setdefault(level, {})[shared_by] = size
    return tuple(
        CacheLevel(f"L{level}", sum(caches.values()) // len(cpus), sum(caches.values()))
        for level, caches in sorted(sizes.items())
    )


def _read(path: Path) -> str:
    return path.read_text().strip()


def parse_size(text: str) -> int:
    """Bytes of a size such as ``"32K"``, ``"1.5 GiB"`` or ``"4096"``. Raises ValueError for anything else."""
    match = re.fullmatch(r"([0-9]+\.?[0-9]*|\.[0-9]+)\s*([KMG]?)(?:i?B)?", text.strip(), re.IGNORECASE | re.ASCII)
    size = float(match[1]) * _UNITS.get(match[2].upper(), 1) if match else math.inf
    if not size < 2**63:
        raise ValueError(
            f"size: {reprlib.repr(text)}, expected a number of bytes below 2**63 such as 1048576, 512M or 2GiB"
        )
    return int(size)


class CpuClaim:
    """CPUs that this engine pins its workers to, so that two engines on a machine do not pin to the same ones.

    A claim is an abstract Unix socket for each CPU (Linux): the kernel drops it with the process, whatever ends it. A
    forked child, which has no engine, has no claim either.
    """

    def __init__(self, cpus: tuple[int, ...], sockets: list[socket.socket]) -> None:
        self.cpus = cpus
        self._sockets = sockets
        _claims.add(self)

    def release(self) -> None:
        for claimed in self._sockets:
            claimed.close()
        self._sockets = []


_claims: weakref.WeakSet[CpuClaim] = weakref.WeakSet()


def _release_all() -> None:
    for claim in list(_claims):
        claim.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_release_all)


def claim_cpus(candidates: tuple[int, ...], count: int) -> CpuClaim | None:
    """Claim ``count`` of the candidates that no other engine holds; None where there are not as many, or no such means.

    ``WAFERLINE_PIN=0`` turns pinning off.
    """
    if os.environ.get("WAFERLINE_PIN") == "0" or not hasattr(os, "sched_setaffinity"):
        return None
    claim = CpuClaim((), [])
    for cpu in candidates:
        if len(claim.cpus) == count:
            break
        name = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            name.bind(f"\0waferline-cpu-{cpu}")
        except OSError:
            name.close()
            continue
        claim.cpus += (cpu,)
        claim._sockets.append(name)
    if len(claim.cpus) == count:
        return claim
    claim.release()
    return None
