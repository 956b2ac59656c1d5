"""The bandwidth-by-footprint curve: what a sweep over so many bytes can reach, from the nearest cache out to DRAM."""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass

from .bandwidth import read_seconds

FOOTPRINTS = tuple(256 * 1024 << doubling for doubling in range(13))
"""256 KB to 1 GB; a doubling apart, for a cache's edge is no sharper than that."""
BYTES_PER_TIMING = 64e6
LARGE = 64 << 20  # bytes from which a footprint is timed once: touching its pages takes longer than reading them
SMALL_REPEATS = 5


@dataclass(frozen=True)
class BandwidthCurve:
    """Bytes a second of a plain prefetched read by all cores together, at ascending footprints (bytes).

    >>> curve = BandwidthCurve((1_000_000, 4_000_000), (200e9, 50e9))
    >>> round(curve.at(2_000_000) / 1e9), round(curve.at(1e9) / 1e9)
    (100, 50)
    """

    footprints: tuple[int, ...]
    bytes_per_second: tuple[float, ...]

    def at(self, footprint: float) -> float:
        """The bandwidth over ``footprint`` bytes: between two points a power law, beyond the ends that of the end."""
        above = bisect_left(self.footprints, footprint)
        if above == 0:
            return self.bytes_per_second[0]
        if above == len(self.footprints):
            return self.bytes_per_second[-1]
        low, high = self.footprints[above - 1], self.footprints[above]
        share = math.log(footprint / low) / math.log(high / low)
        return self.bytes_per_second[above - 1] ** (1 - share) * self.bytes_per_second[above] ** share

    def through(self, footprint: float, bytes_per_second: float) -> BandwidthCurve:
        """The curve of a machine that is as much faster or slower everywhere as one is with this at ``footprint``."""
        ratio = bytes_per_second / self.at(footprint)
        return BandwidthCurve(self.footprints, tuple(ratio * bandwidth for bandwidth in self.bytes_per_second))


def measure_curve(threads: int, cpus: tuple[int, ...] | None = None, largest: int = FOOTPRINTS[-1]) -> BandwidthCurve:
    """The curve of this machine, its points up to ``largest`` bytes, in a second or two; each the best of its timings."""
    footprints = tuple(footprint for footprint in FOOTPRINTS if footprint <= max(largest, FOOTPRINTS[0]))
    measured = [_bandwidth(footprint, threads, cpus) for footprint in footprints]
    # What a larger footprint reaches a smaller one does too; where it measured less, it was disturbed.
    return BandwidthCurve(footprints, tuple(max(measured[index:]) for index in range(len(measured))))


def _bandwidth(footprint: int, threads: int, cpus: tuple[int, ...] | None) -> float:
    sweeps = max(1, int(BYTES_PER_TIMING / footprint))
    repeats = 1 if footprint >= LARGE else SMALL_REPEATS
    return footprint * sweeps / min(read_seconds(footprint, threads, cpus, sweeps) for _ in range(repeats))
