"""The bandwidth-by-footprint curve: what it says between its points, and where its points come from."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from waferline.fabric import bandwidth, curve
from waferline.fabric.curve import BandwidthCurve, measure_curve
from waferline_kernels.tiles import Q8

CURVE = BandwidthCurve((1 << 20, 1 << 22, 1 << 30), (200e9, 50e9, 25e9))


def test_points_and_ends() -> None:
    assert [CURVE.at(footprint) for footprint in CURVE.footprints] == [pytest.approx(b) for b in CURVE.bytes_per_second]
    assert CURVE.at(0) == CURVE.at(1) == 200e9
    assert CURVE.at(1 << 40) == 25e9
    assert CURVE.at(1 << 21) == pytest.approx(100e9)


@given(st.floats(1, 1e11), st.floats(1, 10))
def test_more_bytes_never_take_less_time(footprint: float, more: float) -> None:
    assert footprint * more / CURVE.at(footprint * more) >= footprint / CURVE.at(footprint) * (1 - 1e-9)


def test_a_curve_through_what_was_measured_now() -> None:
    curve = BandwidthCurve((1000, 4000), (8e9, 2e9)).through(2000, 2e9)
    assert curve.at(2000) == pytest.approx(2e9)
    assert (curve.at(1000), curve.at(9000)) == (pytest.approx(4e9), pytest.approx(1e9))


def test_measured_points_never_rise_with_the_footprint(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = {footprint: 100e9 / (index + 1) for index, footprint in enumerate(curve.FOOTPRINTS)}
    rates[curve.FOOTPRINTS[1]] = 1e9  # disturbed

    def read(footprint: int, threads: int, cpus: object, sweeps: int) -> float:
        return footprint * sweeps / rates[footprint]

    monkeypatch.setattr(curve, "read_seconds", read)
    found = measure_curve(2)
    assert found.footprints == curve.FOOTPRINTS
    assert found.bytes_per_second[:3] == pytest.approx((100e9, 100e9 / 3, 100e9 / 3))
    assert measure_curve(1, largest=1 << 20).footprints == curve.FOOTPRINTS[:3]
    assert measure_curve(1, largest=0).footprints == curve.FOOTPRINTS[:1]


@pytest.mark.parametrize("is_native", [True, False])
def test_limits_are_measured(monkeypatch: pytest.MonkeyPatch, is_native: bool) -> None:
    available: Callable[[], bool] = bandwidth.native.is_available
    if is_native and not available():
        pytest.skip("needs the native backend")
    monkeypatch.setattr(bandwidth.native, "is_available", lambda: is_native)
    assert bandwidth.read_seconds(1 << 16, 2, None, 3) > 0
    assert bandwidth.measure_peak(Q8, 2, None) > 0
    assert bandwidth.measure_barrier(2, None) > 0
