"""FabricSpec: a machine as the cost model sees it. `host` is probed, `wse3` carries its maker's figures."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import msgspec

from waferline_kernels import native
from waferline_kernels.tiles import FORMATS

from .bandwidth import USUAL_BARRIER_SECONDS, measure_barrier, measure_peak
from .curve import FOOTPRINTS, BandwidthCurve, measure_curve
from .host import CacheLevel, probe_host

FABRICS = ("host", "wse3")
PROBE_VERSION = 2  # raised when other kernels make a host's measured figures stale
MEMORY_SHARE = 1 / 8  # of the machine's memory, that the largest footprint may take

# What each thread of a usual machine reaches: bytes a second from its own cache and from memory, multiply-adds a second.
USUAL_CURVE = BandwidthCurve((1 << 20, 64 << 20), (50e9, 10e9))
USUAL_MACS = 50e9


@dataclass(frozen=True)
class Links:
    """How cores meet: a fixed time, and one for each hop of a square mesh crossed there and back."""

    barrier_seconds: float = 0.0
    hop_seconds: float = 0.0

    def barrier_of(self, cores: int) -> float:
        """Seconds that a barrier of ``cores`` cores, as near each other as may be, takes; one core waits for nobody."""
        return self.barrier_seconds + 2 * cores**0.5 * self.hop_seconds if cores > 1 else 0.0


@dataclass(frozen=True)
class FabricSpec:
    """``curve``: the bandwidth of all ``cores`` together. ``macs_per_second``: theirs, by the name of the weights' format.
    ``levels``: nearest first."""

    name: str
    cores: int
    levels: tuple[CacheLevel, ...]
    curve: BandwidthCurve
    macs_per_second: Mapping[str, float]
    links: Links


def wse3() -> FabricSpec:
    """Cerebras's WSE-3 (Hot Chips 2024): 900,000 cores, 44 GB of SRAM, 21 PB/s, 125 PFLOPS.

    The published peak counts zeros that are skipped, eight times what dense work reaches. A hop takes a cycle of 1.1 GHz,
    the clock published for the WSE-2 (Lie, IEEE Micro 2023).
    """
    cores, sram = 900_000, 44_000_000_000
    dense_macs = 125e15 / 8 / 2
    return FabricSpec(
        name="wse3",
        cores=cores,
        levels=(CacheLevel("SRAM", sram // cores, sram),),
        curve=BandwidthCurve((sram,), (21e15,)),
        macs_per_second=dict.fromkeys(FORMATS, dense_macs),
        links=Links(hop_seconds=1 / 1.1e9),
    )


@functools.cache
def host_fabric(threads: int, cpus: tuple[int, ...] | None = None) -> FabricSpec:
    """This machine, used by ``threads`` threads. It is measured where no earlier process of this user has done so: a
    second or two, and the figures are kept in the user's cache directory."""
    return _host_spec(threads, _read_probe(threads) or _measure(threads, cpus))


def host_fabric_now(
    threads: int, cpus: tuple[int, ...] | None, footprint: float, bytes_per_second: float
) -> FabricSpec:
    """``host_fabric`` as fast as the machine is in this run, for limits that figures of this run are held against: its
    curve goes through the bandwidth measured over ``footprint`` bytes, its peaks and barrier are measured now."""
    kept = host_fabric(threads, cpus)
    curve = kept.curve.through(footprint, bytes_per_second)
    links = replace(kept.links, barrier_seconds=measure_barrier(threads, cpus))
    return replace(kept, curve=curve, macs_per_second=_measured_peaks(threads, cpus), links=links)


@functools.cache
def known_host_fabric(threads: int) -> FabricSpec:
    """This machine as far as it is known without measuring it now: as it was measured once, or else as usual machines
    are. A CostModel that learns from steps needs no better to begin with."""
    probe = _read_probe(threads)
    return _host_spec(threads, _usual_probe(threads) if probe is None else probe)


class _Probe(msgspec.Struct):
    """What is measured of a host, and kept."""

    footprints: tuple[int, ...]
    bytes_per_second: tuple[float, ...]
    macs_per_second: dict[str, float]
    barrier_seconds: float


def _host_spec(threads: int, probe: _Probe) -> FabricSpec:
    return FabricSpec(
        name="host",
        cores=threads,
        levels=probe_host().caches,
        curve=BandwidthCurve(probe.footprints, probe.bytes_per_second),
        macs_per_second=probe.macs_per_second,
        links=Links(barrier_seconds=probe.barrier_seconds),
    )


def _usual_probe(threads: int) -> _Probe:
    macs = dict.fromkeys(FORMATS, threads * USUAL_MACS)
    bandwidths = tuple(threads * bandwidth for bandwidth in USUAL_CURVE.bytes_per_second)
    return _Probe(USUAL_CURVE.footprints, bandwidths, macs, USUAL_BARRIER_SECONDS)


def _measure(threads: int, cpus: tuple[int, ...] | None) -> _Probe:
    curve = measure_curve(threads, cpus, int(_physical_memory() * MEMORY_SHARE))
    peaks, barrier = _measured_peaks(threads, cpus), measure_barrier(threads, cpus)
    probe = _Probe(curve.footprints, curve.bytes_per_second, peaks, barrier)
    with contextlib.suppress(OSError, RuntimeError):  # a cache that cannot be written, or has no place, is done without
        path = _probe_path(threads)
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_suffix(f".{os.getpid()}")
        scratch.write_bytes(msgspec.json.encode(probe))
        scratch.replace(path)
    return probe


def _measured_peaks(threads: int, cpus: tuple[int, ...] | None) -> dict[str, float]:
    return {name: measure_peak(format, threads, cpus) for name, format in FORMATS.items()}


def _read_probe(threads: int) -> _Probe | None:
    try:
        probe = msgspec.json.decode(_probe_path(threads).read_bytes(), type=_Probe)
    except (OSError, RuntimeError, msgspec.DecodeError):  # RuntimeError: nobody's home directory is known
        return None
    rates = (*probe.bytes_per_second, *probe.macs_per_second.values())
    is_whole = (
        len(probe.footprints) == len(probe.bytes_per_second) > 0 and probe.macs_per_second.keys() == FORMATS.keys()
    )
    return probe if is_whole and min(rates) > 0 else None


def _probe_path(threads: int) -> Path:
    """One file for each host, number of threads and way of measuring."""
    key = {
        "version": PROBE_VERSION,
        "host": platform.node(),
        "processor": processor_name(),
        "caches": [asdict(level) for level in probe_host().caches],
        "threads": threads,
        "level": native.choose_level(None) if native.is_available() else "numpy",
    }
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "waferline" / f"fabric-{digest}.json"


def processor_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


def _physical_memory() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return int(FOOTPRINTS[-1] / MEMORY_SHARE)
