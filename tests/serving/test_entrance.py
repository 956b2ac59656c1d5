"""Requests that take long to be taken up: they hold up nobody, and are bounded, cancelled and timed as all others are."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from waferline.runtime.messages import EngineOutput, Finished, GenerateRequest, RequestError
from waferline.runtime.prompts import LONG_PROMPT, MANY_TOKEN_IDS, is_slow_to_admit
from waferline.runtime.sampling_params import SamplingParams
from waferline.serving import entrance as entrance_module
from waferline.serving.entrance import Entrance

LONG = "x" * LONG_PROMPT
MANY = [1] * MANY_TOKEN_IDS


class SlowTokenizer:
    """An engine that takes long prompts up when it is told to; what it is asked for, in order."""

    def __init__(self) -> None:
        self.is_entering, self.go_on = threading.Event(), threading.Event()
        self.asked: list[str] = []

    def add(self, request: GenerateRequest) -> None:
        if len(request.prompt) >= LONG_PROMPT:
            self.is_entering.set()
            assert self.go_on.wait(10)
        self.asked.append(f"add {request.request_id}")

    def abort(self, request_id: str) -> None:
        self.asked.append(f"abort {request_id}")

    def stats(self) -> dict[str, Any]:
        return {"num_requests_waiting": 2, "oldest_wait_seconds": 0.0, "request_errors_total": {"overloaded": 1}}

    def close(self) -> None: ...


class Bench:
    """An entrance whose engine is taking up a long prompt, "first"."""

    def __init__(self) -> None:
        self.engine = SlowTokenizer()
        self.outputs: list[EngineOutput] = []
        self.entrance = Entrance(self.engine, self.outputs.extend, max_waiting_requests=4)
        self.entrance.add(request("first", LONG, n=3))  # which does not wait
        assert self.engine.is_entering.wait(10)

    def finish(self) -> list[str]:
        """What the engine was asked for in the end."""
        self.engine.go_on.set()
        while self.entrance.stats()["num_requests_waiting"] != self.engine.stats()["num_requests_waiting"]:
            time.sleep(0.001)
        self.entrance.close()
        return self.engine.asked


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.finish()


def request(name: str, prompt: str | list[int], n: int = 1, **options: Any) -> GenerateRequest:
    return GenerateRequest(name, prompt, SamplingParams(n=n), arrival_ns=time.monotonic_ns(), **options)


def test_what_is_slow_to_admit() -> None:
    few, many = SamplingParams(allowed_token_ids=[1]), SamplingParams(allowed_token_ids=MANY)
    assert is_slow_to_admit(LONG, few)
    assert is_slow_to_admit(MANY, few)
    assert is_slow_to_admit("Hi", many)
    assert not is_slow_to_admit("Hi", few)
    assert not is_slow_to_admit([1, 2], few)


def test_a_long_prompt_holds_up_neither_other_requests_nor_cancellations(bench: Bench) -> None:
    bench.entrance.add(request("short", "Hi"))
    bench.entrance.add(request("ids", [1, 2]))
    bench.entrance.abort("short")
    bench.entrance.abort("first")  # which has not been taken up
    assert bench.engine.asked == ["add short", "add ids", "abort short"]
    assert bench.finish()[3:] == ["add first", "abort first"]
    assert bench.outputs == []


def test_what_waits_is_cancelled_at_once(bench: Bench) -> None:
    bench.entrance.add(request("second", LONG, n=2))
    bench.entrance.add(request("third", LONG))
    bench.entrance.abort("second")
    assert bench.outputs == [Finished("second", ["abort", "abort"], 0, 0)]
    bench.entrance.abort("second")  # is the engine's now, which knows of none
    assert bench.finish() == ["abort second", "add first", "add third"]


def test_completions_that_wait_are_bounded(bench: Bench) -> None:
    bench.entrance.add(request("second", LONG, n=3))
    bench.entrance.add(request("third", MANY, n=2))
    message = "max_waiting_requests: 5 with this request, expected at most 4"
    assert bench.outputs == [RequestError("third", "overloaded", message)]
    assert bench.entrance.stats()["request_errors_total"] == {"overloaded": 2}
    bench.entrance.abort("second")
    bench.entrance.add(request("fourth", MANY, n=2))
    assert bench.finish() == ["add first", "add fourth"]


def test_what_waits_is_bounded_in_length(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entrance_module, "MAX_WAITING_LENGTH", len(LONG) + 100)
    bench.entrance.add(request("second", LONG))
    bench.entrance.add(request("third", LONG))
    length = f"{2 * len(LONG)} long with those that wait to be tokenized, expected at most {len(LONG) + 100}"
    assert bench.outputs == [RequestError("third", "overloaded", f"prompt: {length} characters and ids")]
    bench.entrance.add(request("short", "Hi"))  # does not wait
    assert bench.finish() == ["add short", "add first", "add second"]


def test_what_waits_fails_when_its_time_is_over(bench: Bench) -> None:
    an_hour_ago = time.monotonic_ns() - 3600 * 10**9
    overdue = request("overdue", LONG, queue_timeout_ms=10**6, deadline_ms=10**7)
    overdue.arrival_ns = an_hour_ago
    bench.entrance.add(overdue)
    bench.entrance.add(request("patient", LONG, deadline_ms=10**6))
    bench.entrance.add(request("unhurried", LONG))
    next_s = bench.entrance.end_overdue()
    message = "queue_timeout_ms: 1000000, and it had not begun"
    assert bench.outputs == [RequestError("overdue", "deadline_exceeded", message)]
    assert next_s is not None
    assert 0 < next_s <= 1000
    assert bench.entrance.stats()["request_errors_total"] == {"overloaded": 1, "deadline_exceeded": 1}
    bench.entrance.abort("patient")
    assert bench.entrance.end_overdue() is None
    assert bench.finish() == ["add first", "add unhurried"]


def test_what_has_not_entered_is_among_what_waits(bench: Bench) -> None:
    bench.entrance.add(request("second", LONG, n=2))
    stats = bench.entrance.stats()
    assert stats["num_requests_waiting"] == 2 + 3 + 2
    assert stats["oldest_wait_seconds"] > 0
    bench.finish()
    assert bench.entrance.stats() == bench.engine.stats()


def test_a_long_prompt_that_is_not_taken_up_is_answered() -> None:
    class Failing(SlowTokenizer):
        def add(self, request: GenerateRequest) -> None:
            raise MemoryError

    outputs: list[EngineOutput] = []
    with closing(Entrance(Failing(), outputs.extend)) as entrance:
        entrance.add(request("long", LONG))
    assert outputs == [RequestError("long", "internal", "the request could not be taken up: MemoryError()")]
