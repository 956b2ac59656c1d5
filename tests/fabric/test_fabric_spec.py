"""FabricSpecs: the published wafer, and a host that is measured once and then remembered."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from waferline.fabric import spec
from waferline.fabric.curve import BandwidthCurve
from waferline.fabric.spec import Links, host_fabric, host_fabric_now, wse3
from waferline_kernels.tiles import FORMATS


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[int]]:
    """A host that need not be measured; how many threads each measuring was asked for."""
    calls: list[int] = []

    def measure_curve(threads: int, cpus: object, largest: int) -> BandwidthCurve:
        calls.append(threads)
        return BandwidthCurve((1024, 2048), (2e9, 1e9))

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(spec, "measure_curve", measure_curve)
    monkeypatch.setattr(spec, "measure_peak", lambda format, threads, cpus: 1e9 * format.bits)
    monkeypatch.setattr(spec, "measure_barrier", lambda threads, cpus: 2e-7)
    host_fabric.cache_clear()
    yield calls
    host_fabric.cache_clear()


def test_the_host_is_measured_once_for_each_number_of_threads(measured: list[int], tmp_path: Path) -> None:
    host = host_fabric(2)
    assert (host.name, host.cores, host.curve.at(1024), host.macs_per_second["q4"]) == ("host", 2, 2e9, 4e9)
    assert (host.links.barrier_of(2), host.links.barrier_of(1)) == (2e-7, 0)
    assert host_fabric(2) is host
    host_fabric.cache_clear()  # another process
    assert host_fabric(2) == host
    host_fabric(1)
    assert measured == [2, 1]
    assert len(list((tmp_path / "waferline").glob("fabric-*.json"))) == 2


def test_limits_of_a_run_are_of_that_run(measured: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    host_fabric(2)
    monkeypatch.setattr(spec, "measure_peak", lambda format, threads, cpus: 5e9)
    monkeypatch.setattr(spec, "measure_barrier", lambda threads, cpus: 3e-7)
    now = host_fabric_now(2, None, footprint=1024, bytes_per_second=1e9)
    assert (now.curve.at(1024), now.curve.at(2048), now.macs_per_second["q8"]) == (1e9, 0.5e9, 5e9)
    assert now.links.barrier_of(2) == 3e-7
    assert (host_fabric(2).curve.at(1024), host_fabric(2).links.barrier_of(2)) == (2e9, 2e-7)
    assert measured == [2]


@pytest.mark.parametrize(
    "content", [b"", b"[]", b'{"footprints":[1],"bytes_per_second":[],"macs_per_second":{}}', b"\xff"]
)
def test_a_damaged_file_is_measured_again(measured: list[int], tmp_path: Path, content: bytes) -> None:
    host_fabric(2)
    [path] = (tmp_path / "waferline").glob("fabric-*.json")
    path.write_bytes(content)
    host_fabric.cache_clear()
    assert host_fabric(2).curve.at(1024) == 2e9
    assert measured == [2, 2]
    assert path.read_bytes() != content


def test_a_cache_that_cannot_be_written_is_done_without(measured: list[int], tmp_path: Path) -> None:
    (tmp_path / "waferline").write_text("a file where the folder would be")
    assert host_fabric(2).cores == 2
    assert measured == [2]


def test_a_user_without_a_home_has_no_cache(measured: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", home)
    assert host_fabric(2).cores == 2
    assert measured == [2]


def test_the_wafer_s_published_figures() -> None:
    wafer = wse3()
    assert wafer.cores == 900_000
    assert wafer.curve.at(1) == wafer.curve.at(44e9) == 21e15
    assert wafer.levels[0].bytes_total == 44_000_000_000
    assert wafer.levels[0].bytes_per_core * wafer.cores <= 44_000_000_000
    assert set(wafer.macs_per_second) == set(FORMATS)


def test_a_barrier_grows_with_the_mesh() -> None:
    assert Links(hop_seconds=1e-9).barrier_of(100) == pytest.approx(20e-9)
    assert Links(barrier_seconds=1e-6, hop_seconds=1e-9).barrier_of(1) == 0
