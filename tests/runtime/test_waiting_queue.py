"""The waiting queue against a plain list, and the fairness that it promises."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from scripted import make_sequence

from waferline.runtime.sequence import Sequence
from waferline.runtime.waiting_queue import OUTPUT_TOKEN_COST, PROMPT_TOKEN_COST, WaitingQueue

Place = tuple[int, str | None]  # priority and tenant


def place_of(sequence: Sequence) -> Place:
    return sequence.request.priority, sequence.request.tenant


def sequence_of(tenant: str | None = None, prompt: int = 10, priority: int = 0) -> Sequence:
    return make_sequence([1] * prompt, 1000, tenant=tenant, priority=priority)


def begin(queue: WaitingQueue, num_cached_tokens: int = 0) -> Sequence:
    """Take the first, as the scheduler does."""
    sequence = queue.pop()
    if sequence.num_cached_tokens is None:
        sequence.num_cached_tokens = num_cached_tokens
    queue.charge(sequence)
    return sequence


class QueueMachine(RuleBasedStateMachine):
    """Beside the queue stands a list of what waits, in order, and each tenant's counter at each priority."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = {"a": 2.0}
        self.queue = WaitingQueue(self.weights)
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.counters: dict[Place, float] = defaultdict(float)
        self.turns: dict[Place, int] = {}
        self.last_served: dict[int, Place] = {}
        self.num_turns = 0

    @rule(
        tenant=st.sampled_from(["a", "b", None]), priority=st.sampled_from([0, 0, 0, -3, 5]), prompt=st.integers(1, 50)
    )
    def add(self, tenant: str | None, priority: int, prompt: int) -> None:
        sequence = sequence_of(tenant, prompt, priority)
        place = place_of(sequence)
        others = {place_of(other) for other in self.waiting if other.request.priority == priority}
        if place not in others:
            served = [self.counters[self.last_served[priority]]] if priority in self.last_served else [0.0]
            self.counters[place] = max(self.counters[place], min([self.counters[p] for p in others] or served))
        self.begin_to_wait(sequence)
        self.waiting.append(sequence)
        self.queue.add(sequence)

    def begin_to_wait(self, sequence: Sequence) -> None:
        self.num_turns += 1
        if not any(place_of(other) == place_of(sequence) for other in self.waiting):
            self.turns[place_of(sequence)] = self.num_turns

    def serve(self, sequence: Sequence, cost: int) -> None:
        self.counters[place_of(sequence)] += cost / self.weights.get(sequence.request.tenant or "", 1.0)

    @precondition(lambda self: self.waiting)
    @rule(cached=st.integers(0, 50))
    def take(self, cached: int) -> None:
        first = self.first()
        is_new = first.num_cached_tokens is None
        cached = min(cached, first.num_prompt_tokens - 1)
        assert begin(self.queue, cached) is first
        if is_new:
            self.serve(first, PROMPT_TOKEN_COST * (first.num_prompt_tokens - cached))
        self.last_served[first.request.priority] = place_of(first)
        self.waiting.remove(first)
        self.running.append(first)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), count=st.integers(1, 30))
    def generate(self, data: st.DataObject, count: int) -> None:
        sequence = data.draw(st.sampled_from(self.running))
        sequence.token_ids += [1] * count
        self.serve(sequence, OUTPUT_TOKEN_COST * count)

    @precondition(lambda self: self.running)
    @rule()
    def preempt(self) -> None:
        sequence = max(self.running, key=lambda running: running.rank)
        self.begin_to_wait(sequence)
        self.running.remove(sequence)
        self.waiting.insert(0, sequence)
        self.queue.put_back(sequence)

    @precondition(lambda self: self.running or self.waiting)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        sequence = data.draw(st.sampled_from(self.running + self.waiting))
        (self.running if sequence in self.running else self.waiting).remove(sequence)
        self.queue.finish(sequence)
        priority = sequence.request.priority
        if not any(other.request.priority == priority for other in self.running + self.waiting):
            self.last_served.pop(priority, None)
            for tenant in ("a", "b", None):
                self.counters.pop((priority, tenant), None)

    def first(self) -> Sequence:
        def order(sequence: Sequence) -> tuple[int, float, int]:
            place = place_of(sequence)
            return sequence.request.priority, self.counters[place], self.turns[place]

        return min(self.waiting, key=order)  # the first of the least

    @invariant()
    def they_agree(self) -> None:
        self.queue.settle()
        assert len(self.queue) == len(self.waiting)
        assert set(self.queue) == set(self.waiting)
        assert self.queue.num_tokens == sum(sequence.num_tokens for sequence in self.waiting)
        assert self.queue.first is (self.first() if self.waiting else None)
        ranks = [sequence.rank for sequence in self.waiting]
        assert min(ranks, default=None) == min((sequence.rank for sequence in self.queue.oldest()), default=None)


QueueMachine.TestCase.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)
TestWaitingQueue = QueueMachine.TestCase


@settings(max_examples=60, deadline=None)
@given(
    weights=st.tuples(st.sampled_from([1.0, 1.0, 3.0, 0.5]), st.sampled_from([1.0, 2.0])),
    sizes=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 30)), min_size=2, max_size=12),
    num_slots=st.integers(1, 4),
)
def test_what_two_backlogged_tenants_are_served_differs_by_a_bound_that_does_not_grow(
    weights: tuple[float, float], sizes: list[tuple[int, int]], num_slots: int
) -> None:
    shares = dict(zip("ab", weights, strict=True))
    queue = WaitingQueue(shares)
    running: dict[Sequence, int] = {}  # -> tokens that it will have
    served = dict.fromkeys(shares, 0.0)
    differences = [0.0]
    # The two ask for different things: each has its own half of the sizes.
    halves = {"a": sizes[: len(sizes) // 2], "b": sizes[len(sizes) // 2 :]}
    added = dict.fromkeys(shares, 0)

    def ask(tenant: str) -> None:
        prompt, _ = halves[tenant][added[tenant] % len(halves[tenant])]
        added[tenant] += 1
        queue.add(sequence_of(tenant, prompt))

    for tenant in shares:
        for _ in range(num_slots + 1):
            ask(tenant)
    for number in range(600):
        while len(running) < num_slots:
            queue.settle()
            sequence = begin(queue)
            tenant = sequence.request.tenant
            assert tenant is not None
            served[tenant] += PROMPT_TOKEN_COST * sequence.num_prompt_tokens / shares[tenant]
            running[sequence] = halves[tenant][number % len(halves[tenant])][1]
            ask(tenant)
        for sequence, wanted in list(running.items()):
            sequence.token_ids.append(1)
            served[str(sequence.request.tenant)] += OUTPUT_TOKEN_COST / shares[str(sequence.request.tenant)]
            if sequence.num_output_tokens == wanted:
                queue.finish(sequence)
                del running[sequence]
        differences.append(served["a"] - served["b"])
    longest_prompt, most_tokens = max(p for p, _ in sizes), num_slots * max(p + o for p, o in sizes)
    bound = max(PROMPT_TOKEN_COST * longest_prompt, OUTPUT_TOKEN_COST * most_tokens) / min(weights)
    assert max(differences) - min(differences) <= 2 * bound
    assert min(served.values()) > 0


def test_a_tenant_that_was_away_has_no_credit_and_keeps_its_debt() -> None:
    queue = WaitingQueue()
    for _ in range(20):
        queue.add(sequence_of("busy"))
        queue.add(sequence_of("spender", prompt=300))
    order = []
    for _ in range(4):
        order.append(begin(queue).request.tenant)
    assert order == ["busy", "spender", "busy", "busy"]  # 300 tokens to 10, 20, 30
    for sequence in [sequence for sequence in queue if sequence.request.tenant == "spender"]:
        queue.finish(sequence)
    for tenant in ("away", "away", "away", "spender"):
        queue.add(sequence_of(tenant))
    order = [begin(queue).request.tenant for _ in range(6)]
    assert order == ["busy", "away", "busy", "away", "busy", "away"]


def test_a_conversation_that_is_cached_costs_little() -> None:
    queue = WaitingQueue()
    for tenant in ("cached", "other"):
        for _ in range(3):
            queue.add(sequence_of(tenant, prompt=100))
    order = []
    for _ in range(4):
        first = queue.first
        assert first is not None
        order.append(begin(queue, 90 if first.request.tenant == "cached" else 0).request.tenant)
    assert order == ["cached", "other", "cached", "cached"]


def test_priority_comes_before_fairness_and_one_priority_s_tenants_owe_the_other_s_nothing() -> None:
    queue = WaitingQueue()
    for _ in range(3):
        queue.add(sequence_of("a", prompt=100))
    begin(queue)
    queue.add(sequence_of("a", priority=-1))
    queue.add(sequence_of("b", priority=1))
    queue.add(sequence_of("b"))
    assert [place_of(begin(queue)) for _ in range(5)] == [(-1, "a"), (0, "a"), (0, "b"), (0, "a"), (1, "b")]


def test_names_that_nobody_uses_any_more_are_forgotten() -> None:
    queue = WaitingQueue()
    queue.add(sequence_of("stays", prompt=1000))
    begin(queue)
    for number in range(500):
        queue.add(sequence_of(f"passes-{number}"))
        queue.finish(begin(queue))
        queue.add(sequence_of(f"priority-{number}", priority=number + 1))
        queue.finish(begin(queue))
    assert len(queue._levels) == 1
    assert len(queue._levels[0].lanes) < 50


def test_what_goes_before_a_request_is_estimated_from_shares() -> None:
    queue = WaitingQueue({"big": 3.0})
    for _ in range(4):
        queue.add(sequence_of("own"))
        queue.add(sequence_of("own", priority=-1))
        queue.add(sequence_of("own", priority=1))
    for _ in range(40):
        queue.add(sequence_of("big"))
        queue.add(sequence_of("equal"))
    # 4 of a higher priority, 4 of its own; with its own the 5th, as many of its equal's and three times as many of big's.
    assert queue.ahead_of(0, "own", 10, 0.0) == (pytest.approx(4 + 4 + 5 + 15), pytest.approx(280))
    assert queue.ahead_of(0, "own", 10, 20.0)[0] == pytest.approx(4 + 4 + 4.2 + 12.6)  # outputs cost too
    assert queue.ahead_of(0, "new", 10, 0.0)[0] == pytest.approx(4 + 1 + 1 + 3)
    assert queue.ahead_of(-9, "own", 10, 0.0) == (0, 0)
    assert queue.ahead_of(9, None, 10, 0.0)[0] == 92


@pytest.mark.parametrize("operation", ["pop", "first"])
def test_an_empty_queue_has_no_first(operation: str) -> None:
    queue: Any = WaitingQueue()
    sequence = sequence_of("a")
    queue.add(sequence)
    queue.finish(sequence)
    if operation == "first":
        assert queue.first is None
    else:
        with pytest.raises(IndexError, match="nothing waits"):
            queue.pop()
