"""Stalls: plans stay within their bounds, hold where a machine that stops at times lets them, and come back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from waferline.runtime.stalls import PLANNED_SHARE, TOLERANCE, Stalls

TARGET_MS = 40.0
MOST_MS = PLANNED_SHARE * TARGET_MS
TIMES = st.floats(0.0, 1e4)


class Machine:
    """Steps take as long as they are planned, or ``least_ms``, and stalls that come ``rate`` times a second, of random
    lengths."""

    def __init__(self, rate: float, longest_ms: float, least_ms: float, seed: int) -> None:
        self.stalls = Stalls(TARGET_MS)
        self.rate, self.longest_ms, self.least_ms = rate, longest_ms, least_ms
        self._random = np.random.default_rng(seed)

    def run(self, seconds: float) -> float:
        """The share of steps that are late."""
        left_ms, gaps = seconds * 1e3, []
        while left_ms > 0:
            planned = max(self.stalls.planned_ms, self.least_ms)
            num_stalls = self._random.poisson(self.rate * planned * 1e-3)
            gaps.append(planned + float(self._random.uniform(0, self.longest_ms, num_stalls).sum()))
            self.stalls.observe(planned, gaps[-1:])
            left_ms -= gaps[-1]
        return float(np.mean(np.array(gaps) > TOLERANCE * TARGET_MS))


@given(st.floats(0.01, 1e4), st.lists(st.tuples(TIMES, st.lists(TIMES, max_size=32)), max_size=20))
def test_a_plan_is_at_most_its_share_of_the_target_and_never_negative(
    target_ms: float, runs: list[tuple[float, list[float]]]
) -> None:
    stalls = Stalls(target_ms)
    for predicted_ms, gaps_ms in runs:
        stalls.observe(predicted_ms, gaps_ms)
        assert 0 <= stalls.planned_ms <= PLANNED_SHARE * target_ms


@given(st.lists(st.tuples(TIMES, st.floats(0.0, 1.0), st.integers(1, 32)), max_size=40))
def test_steps_as_predicted_or_nearly_leave_the_plan_as_it_is(runs: list[tuple[float, float, int]]) -> None:
    """What lies between the longest plan and what is late is room for all of it."""
    stalls = Stalls(TARGET_MS)
    for predicted_ms, share, count in runs:
        stalls.observe(predicted_ms, [predicted_ms + share * 0.99 * (TOLERANCE - PLANNED_SHARE) * TARGET_MS] * count)
        assert stalls.planned_ms == MOST_MS


@settings(max_examples=20)
@given(st.floats(0.0, 4.0), st.floats(5.0, 25.0), st.integers(0, 10**6))
def test_hardly_any_step_is_late_where_stalls_leave_room(rate: float, longest_ms: float, seed: int) -> None:
    machine = Machine(rate, longest_ms, 11.0, seed)
    machine.run(10)
    assert machine.run(100) < 0.01


@settings(max_examples=10)
@given(st.floats(1.0, 5.0), st.floats(30.0, 60.0), st.integers(0, 10**6))
def test_when_stalls_cease_the_plan_comes_back(rate: float, longest_ms: float, seed: int) -> None:
    machine = Machine(rate, longest_ms, 11.0, seed)
    machine.run(30)
    assert machine.stalls.planned_ms < 0.8 * MOST_MS
    machine.rate = 0
    machine.run(100)
    assert machine.stalls.planned_ms == MOST_MS


def test_short_steps_in_time_say_less_of_long_ones() -> None:
    plans = []
    for predicted_ms in (MOST_MS / 4, MOST_MS):
        stalls = Stalls(TARGET_MS)
        stalls.observe(predicted_ms, [predicted_ms] * round(20e3 / predicted_ms))
        stalls.observe(predicted_ms, [predicted_ms + 20.0] * 2)
        stalls.observe(predicted_ms, [predicted_ms] * round(6e3 / predicted_ms))
        plans.append(stalls.planned_ms)
    assert plans[0] < plans[1]


def test_a_single_stall_changes_nothing() -> None:
    stalls = Stalls(TARGET_MS)
    stalls.observe(10.0, [10.0, 500.0, 10.0])
    assert stalls.planned_ms == MOST_MS


def test_a_machine_that_stalls_all_the_time_leaves_no_plan() -> None:
    stalls = Stalls(TARGET_MS)
    stalls.observe(10.0, [100.0] * 100)
    assert stalls.planned_ms == 0


def test_the_worked_example() -> None:
    stalls = Stalls(TARGET_MS)
    stalls.observe(10.0, [10.0] * 1000)  # twelve seconds with those to begin with, of which little is forgotten
    stalls._running_ms = 12e3
    stalls.observe(0.0, [20.0] * 5)
    assert stalls.planned_ms == pytest.approx(24.0)
