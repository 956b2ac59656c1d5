"""Stalls: how long a step may be planned to take so that hardly any token is late, although the machine stops at times.

Tokens come later than their step was predicted to end: a virtual machine's host takes a core away for some milliseconds,
another process runs, Python is busy, a prediction is wrong. Such *excesses* come at a rate for each second of running, so
a step that is planned for d ms ends beyond TOLERANCE times the target t with a chance of about

    d * rate(TOLERANCE * t - d)        rate(x): excesses longer than x, for each millisecond

which falls as d does, for two reasons: there is more room for an excess, and less time for one to come. The longest d is
planned with for which it is at most LATE_SHARE, and never more than PLANNED_SHARE of the target, which leaves room for
what lies between any two steps.

Where t = 40, an excess of more than 16 ms is what can make a step late that is planned for 28 ms. Let there be 5 of 20 ms
in the last ten seconds: their rate is less by one, 4 in 10 + 2 seconds, so steps of 28 ms would be late in 0.9% of cases;
those of 24 have room for 20 ms, and are planned.

A larger PLANNED_SHARE gains little: where 8 streams of a 135M model decode for 8 ms, prefill has 20 ms of 28, and 28 of 36,
which is 9% more of the time. But then the first stalls make steps late before any are known.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import numpy as np

PLANNED_SHARE = 0.7  # of a target, at most
TOLERANCE = 1.1  # times a target: later than that is late
LATE_SHARE = 0.001  # of steps may be late: a tenth of what a p99 allows, as rates are estimates, of what changes
NUM_PLANS = 35  # that are weighed up, from PLANNED_SHARE of the target downwards
MEMORY_MS = 20e3  # of running, after which what was seen counts 1/e
FIRST_MS = 2e3  # of running without excess, to begin with


class Stalls:
    """The excesses of late. Has no clock: what it plans follows from the times that it is told of. A few microseconds for
    either."""

    def __init__(self, itl_target_ms: float) -> None:
        self._width = PLANNED_SHARE * itl_target_ms / NUM_PLANS
        self._plans_ms = PLANNED_SHARE * itl_target_ms - self._width * np.arange(NUM_PLANS)  # [n], descending
        self._least_excess_ms = (TOLERANCE - PLANNED_SHARE) * itl_target_ms
        self._num_late = np.zeros(NUM_PLANS)  # [n], excesses that would have made a step of each plan late
        self._running_ms = FIRST_MS

    def observe(self, predicted_ms: float, gaps_ms: Collection[float]) -> None:
        """Learn from steps in a row that were predicted to take ``predicted_ms`` each: streams waited ``gaps_ms`` for their
        tokens. That short steps are not late says less of long ones, whose predictions are wrong by more: their time
        counts for less."""
        total_ms = sum(gaps_ms)
        forgetting = math.exp(-total_ms / MEMORY_MS)
        self._running_ms = self._running_ms * forgetting + total_ms * min(1.0, predicted_ms / float(self._plans_ms[0]))
        self._num_late *= forgetting
        for gap_ms in gaps_ms:
            excess_ms = gap_ms - predicted_ms - self._least_excess_ms
            if excess_ms > 0:
                self._num_late[: math.ceil(excess_ms / self._width)] += 1

    @property
    def planned_ms(self) -> float:
        """The longest time that a step may be planned for; 0 where none is short enough. One excess alone says nothing of
        how often they come, so one less is counted than there were."""
        rates = np.maximum(self._num_late - 1, 0) / self._running_ms
        is_held = self._plans_ms * rates <= LATE_SHARE
        return float(self._plans_ms[is_held.argmax()]) if is_held.any() else 0.0
