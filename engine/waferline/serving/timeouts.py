"""Seconds as ZeroMQ takes them."""

from __future__ import annotations

import math

LONGEST_S = 3600.0  # of one poll; its caller looks at the clock again


def poll_ms(seconds: float) -> int:
    """``seconds`` in milliseconds, rounded up, and at most an hour of them: ZeroMQ's are 32 bits."""
    return math.ceil(min(seconds, LONGEST_S) * 1000)
