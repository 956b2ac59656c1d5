"""What waits for its turn: by priority, then in fair shares between tenants, then first come, first served.

A lower ``priority`` goes first, always. Within one priority the tenant goes next that has been served least. That is
the Virtual Token Counter of Sheng et al. ("Fairness in Serving Large Language Models", OSDI 2024): each tenant has a
counter of what was computed for it, a prompt token counting PROMPT_TOKEN_COST and an output token OUTPUT_TOKEN_COST,
over the tenant's weight; prompt tokens that were cached cost nothing, and what is computed again after a preemption
costs nothing again. A tenant with nothing waiting gathers no credit: when it comes back, its counter is lifted to the
smallest of those that wait. While two tenants both have something waiting, what they are served, over their weights,
differs by no more than a bound that does not grow with time.

A worked example, two tenants of weight 1: "a" has had 100 prompt tokens computed, "b" nothing; both wait. b's counter
is 0, so b's first sequence is next; with 10 prompt tokens and 50 output tokens it costs 110, and then it is a's turn.

A sequence that was preempted comes back to the front of its tenant's: all that the tenant has waiting is younger. What
is to be done for one sequence takes logarithmic time, the removal of one from the middle included.
"""

from __future__ import annotations

import heapq
import itertools
import math
from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

from .sequence import Sequence

PROMPT_TOKEN_COST = 1
OUTPUT_TOKEN_COST = 2
MIN_LANES_TO_SWEEP = 16


class Lane:
    """What one tenant has at one priority."""

    __slots__ = ("counter", "is_in_heap", "level", "num_alive", "num_tokens", "turn", "waiting", "weight")

    def __init__(self, level: Level, weight: float) -> None:
        self.level = level
        self.weight = weight
        self.counter = 0.0  # what was computed, over the weight
        self.waiting: OrderedDict[Sequence, None] = OrderedDict()
        self.num_tokens = 0  # of those that wait
        self.num_alive = 0  # sequences that wait or run
        self.turn = 0  # when it last began to wait: of equal counters the earlier goes first
        self.is_in_heap = False


class Level:
    """The lanes of one priority."""

    def __init__(self, priority: int) -> None:
        self.priority = priority
        self.lanes: dict[str | None, Lane] = {}
        self.num_waiting = 0
        self.num_tokens = 0  # of those that wait
        self.num_alive = 0
        self._heap: list[tuple[float, int, Lane]] = []  # each lane once at most, with a key that is not above its own
        self.last_served: Lane | None = None
        self._sweep_at = MIN_LANES_TO_SWEEP

    def lane(self, tenant: str | None, weight: float) -> Lane:
        lane = self.lanes.get(tenant)
        if lane is None:
            if len(self.lanes) >= self._sweep_at:
                self._forget_idle_lanes()
                self._sweep_at = max(MIN_LANES_TO_SWEEP, 2 * len(self.lanes))
            lane = self.lanes[tenant] = Lane(self, weight)
        return lane

    def first(self) -> Lane | None:
        """The lane whose turn it is, of those where something waits."""
        heap = self._heap
        while heap:
            counter, turn, lane = heap[0]
            if not lane.waiting:
                heapq.heappop(heap)
                lane.is_in_heap = False
            elif (counter, turn) != (lane.counter, lane.turn):
                heapq.heapreplace(heap, (lane.counter, lane.turn, lane))
            else:
                return lane
        return None

    def starting_counter(self, lane: Lane) -> float:
        """The counter of ``lane`` once it waits: idleness earns no credit, and no debt is forgiven."""
        reference = self.first() or self.last_served
        return lane.counter if lane.waiting or reference is None else max(lane.counter, reference.counter)

    def push(self, lane: Lane, sequence: Sequence, turn: int) -> None:
        if not lane.waiting:
            lane.turn = turn
        if not lane.is_in_heap:
            heapq.heappush(self._heap, (lane.counter, lane.turn, lane))
            lane.is_in_heap = True
        lane.waiting[sequence] = None
        lane.num_tokens += sequence.num_tokens
        self.num_tokens += sequence.num_tokens
        self.num_waiting += 1

    def remove(self, lane: Lane, sequence: Sequence) -> None:
        del lane.waiting[sequence]
        lane.num_tokens -= sequence.num_tokens
        self.num_tokens -= sequence.num_tokens
        self.num_waiting -= 1

    def _forget_idle_lanes(self) -> None:
        """Forget the lanes that would be lifted anyway, so that names nobody uses any more take no memory."""
        reference = self.first() or self.last_served
        floor = 0.0 if reference is None else reference.counter
        self.lanes = {
            tenant: lane
            for tenant, lane in self.lanes.items()
            if lane.num_alive or lane.is_in_heap or lane.counter > floor
        }


def check_tenant_weights(weights: Any) -> None:
    """Raise TypeError or ValueError for what is neither None nor a dict of names and positive numbers."""
    if weights is None:
        return
    if not isinstance(weights, dict) or not all(isinstance(tenant, str) for tenant in weights):
        raise TypeError(f"tenant_weights: {weights!r}, expected a dict from the tenants' names to their weights")
    for tenant, weight in weights.items():
        if not isinstance(weight, int | float) or isinstance(weight, bool) or not 0 < weight < math.inf:
            raise ValueError(f"tenant_weights: {tenant!r}: {weight!r}, expected a number above 0")


class WaitingQueue:
    """The sequences that wait, in the order in which they are to run; and what each tenant has been served.

    ``tenant_weights``: the shares of tenants; one that is not named has 1. The queue is told of every sequence from its
    arrival (``add``) to its end (``finish``), wherever it is in between.
    """

    def __init__(self, tenant_weights: Mapping[str, float] | None = None) -> None:
        self.num_tokens = 0  # of the sequences that wait
        self._weights = dict(tenant_weights or {})
        self._levels: dict[int, Level] = {}
        self._priorities: list[int] = []  # of the levels where something waits, sorted
        self._taken: dict[Sequence, None] = {}  # those that run
        self._num_waiting = 0
        self._num_lanes_alive = 0
        self._numbers = itertools.count()

    def __len__(self) -> int:
        return self._num_waiting

    def __iter__(self) -> Iterator[Sequence]:
        """All that wait: by priority, then by tenant, then in order. Not the order in which they will run."""
        for priority in self._priorities:
            for lane in self._levels[priority].lanes.values():
                yield from lane.waiting

    def oldest(self) -> Iterator[Sequence]:
        """The first of each tenant's at each priority: the one that has waited longest is among them."""
        for priority in self._priorities:
            for lane in self._levels[priority].lanes.values():
                if lane.waiting:
                    yield next(iter(lane.waiting))

    @property
    def first(self) -> Sequence | None:
        """Whose turn it is."""
        if not self._priorities:
            return None
        lane = self._levels[self._priorities[0]].first()
        return None if lane is None else next(iter(lane.waiting))

    def add(self, sequence: Sequence) -> None:
        """Queue a new ``sequence``, as its tenant's last of its priority. Gives it its ``rank``."""
        priority, tenant = sequence.request.priority, sequence.request.tenant
        level = self._levels.get(priority)
        if level is None:
            level = self._levels[priority] = Level(priority)
        lane = sequence.lane = level.lane(tenant, self._weight(tenant))
        if not lane.waiting:
            self.settle()
        lane.counter = level.starting_counter(lane)
        sequence.rank = (priority, next(self._numbers))
        self._num_lanes_alive += lane.num_alive == 0
        lane.num_alive += 1
        level.num_alive += 1
        self._push(lane, sequence)

    def put_back(self, sequence: Sequence) -> None:
        """Queue ``sequence`` again, which was preempted, as its tenant's first of its priority."""
        lane = sequence.lane
        self.charge(sequence)
        self._taken.pop(sequence, None)
        self._push(lane, sequence)
        lane.waiting.move_to_end(sequence, last=False)

    def pop(self) -> Sequence:
        """Take the first. Raises IndexError where nothing waits."""
        sequence = self.first
        if sequence is None:
            raise IndexError("nothing waits")
        self._remove(sequence)
        self._taken[sequence] = None
        sequence.lane.level.last_served = sequence.lane
        return sequence

    def finish(self, sequence: Sequence) -> None:
        """Forget ``sequence``, which has ended, whether it waits or runs."""
        lane = sequence.lane
        self.charge(sequence)
        if sequence in lane.waiting:
            self._remove(sequence)
        self._taken.pop(sequence, None)
        lane.num_alive -= 1
        lane.level.num_alive -= 1
        self._num_lanes_alive -= lane.num_alive == 0
        if lane.level.num_alive == 0:  # nobody is owed anything any more
            del self._levels[lane.level.priority]

    def charge(self, sequence: Sequence) -> None:
        """Count what has been computed of ``sequence``, where it has begun, since it was last charged."""
        if sequence.num_cached_tokens is not None:
            cost = PROMPT_TOKEN_COST * (sequence.num_prompt_tokens - sequence.num_cached_tokens)
            cost += OUTPUT_TOKEN_COST * sequence.num_output_tokens
            sequence.lane.counter += (cost - sequence.charged_cost) / sequence.lane.weight
            sequence.charged_cost = cost

    def settle(self) -> None:
        """Bring the counters up to what has been computed. To be called before the first is asked for, where several
        tenants are here; else it can wait, since what a sequence has cost is known to its end."""
        if self._num_lanes_alive > 1:
            for sequence in self._taken:
                self.charge(sequence)

    def ahead_of(
        self, priority: int, tenant: str | None, num_tokens: int, num_output_tokens: float
    ) -> tuple[float, float]:
        """Of the sequences that wait, and of their tokens, about how many would go before a request of ``num_tokens``
        prompt tokens. ``num_output_tokens``: of a completion, on average.

        Everything of a higher priority does, and all that its own tenant has waiting; of another tenant's, as much as
        that is to be served before its counter reaches what the request's own tenant's will be by then.
        """
        num_sequences = num_all_tokens = 0.0
        for before in itertools.takewhile(lambda other: other < priority, self._priorities):
            num_sequences += self._levels[before].num_waiting
            num_all_tokens += self._levels[before].num_tokens
        level = self._levels.get(priority)
        if level is None:
            return num_sequences, num_all_tokens
        own = level.lanes.get(tenant) or Lane(level, self._weight(tenant))
        cost = _waiting_cost(own, num_output_tokens) + PROMPT_TOKEN_COST * num_tokens
        own_end = level.starting_counter(own) + cost / own.weight
        for lane in level.lanes.values():
            if lane.waiting:
                owed = (own_end - lane.counter) * lane.weight / _waiting_cost(lane, num_output_tokens)
                share = 1.0 if lane is own else min(1.0, max(0.0, owed))
                num_sequences += share * len(lane.waiting)
                num_all_tokens += share * lane.num_tokens
        return num_sequences, num_all_tokens

    def _weight(self, tenant: str | None) -> float:
        return 1.0 if tenant is None else self._weights.get(tenant, 1.0)

    def _push(self, lane: Lane, sequence: Sequence) -> None:
        if lane.level.num_waiting == 0:
            insort(self._priorities, lane.level.priority)
        lane.level.push(lane, sequence, next(self._numbers))
        self.num_tokens += sequence.num_tokens
        self._num_waiting += 1

    def _remove(self, sequence: Sequence) -> None:
        level = sequence.lane.level
        level.remove(sequence.lane, sequence)
        if level.num_waiting == 0:
            del self._priorities[bisect_left(self._priorities, level.priority)]
        self.num_tokens -= sequence.num_tokens
        self._num_waiting -= 1


def _waiting_cost(lane: Lane, num_output_tokens: float) -> float:
    """What it will cost to serve all that waits in ``lane``."""
    return PROMPT_TOKEN_COST * lane.num_tokens + OUTPUT_TOKEN_COST * num_output_tokens * len(lane.waiting)
