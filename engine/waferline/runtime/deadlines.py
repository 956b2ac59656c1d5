"""When requests run out of time. Without a clock: whoever asks says what time it is."""

from __future__ import annotations

import heapq
import itertools

from .request import Request

MIN_TO_COMPACT = 64


class Deadlines:
    """The times, in nanoseconds of one monotonic clock, at which something may have to be done about a request.

    ``next_ns`` is the earliest of them, be it of a request that has ended since; None where there is none. Any thread
    may read it.
    """

    def __init__(self) -> None:
        self.next_ns: int | None = None
        self._heap: list[tuple[int, int, Request]] = []
        self._numbers = itertools.count()
        self._compact_at = MIN_TO_COMPACT

    def add(self, request: Request) -> None:
        """Remember the times of ``request``, where it has any."""
        for time_ns in (request.begin_by_ns, request.end_by_ns):
            if time_ns is not None:
                heapq.heappush(self._heap, (time_ns, next(self._numbers), request))
        self._update()

    def take_due(self, now_ns: int) -> list[Request]:
        """The requests, not ended yet, one of whose times has come by ``now_ns``, the earliest first."""
        if self.next_ns is None or now_ns < self.next_ns:
            return []
        due: dict[Request, None] = {}  # each once
        while self._heap and self._heap[0][0] <= now_ns:
            request = heapq.heappop(self._heap)[2]
            if not request.is_finished:
                due[request] = None
        self._update()
        return list(due)

    def _update(self) -> None:
        """Forget what has ended: at once where it comes first, the rest when it is half of all."""
        if len(self._heap) >= self._compact_at:
            self._heap = [entry for entry in self._heap if not entry[2].is_finished]
            heapq.heapify(self._heap)
            self._compact_at = max(MIN_TO_COMPACT, 2 * len(self._heap))
        while self._heap and self._heap[0][2].is_finished:
            heapq.heappop(self._heap)
        self.next_ns = self._heap[0][0] if self._heap else None
