"""Cancellations, deadlines and refusals reach a request wherever it is, within one step, and free its blocks at once.

A gate holds the engine before each run, so that each case is the one that is meant.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from recorder import Gate, RecordingCore, hold_long_runs

from waferline.model.load import Model
from waferline.runtime.messages import Accepted, Finished

LONG: dict[str, Any] = {"max_tokens": 200, "ignore_eos": True, "seed": 1}


class Gated(RecordingCore):
    def __init__(self, model: Model, **options: Any) -> None:
        super().__init__(model, **options)
        self.gate = Gate(self.core)

    def check_that_all_blocks_are_free(self) -> None:
        pool = self.core._scheduler.kv_cache.block_pool
        while self.core._scheduler.has_work:  # until the engine thread has gone to sleep
            time.sleep(0.001)
        assert pool.num_free == pool.num_blocks
        assert not self.core._scheduler.running


@pytest.fixture
def gated(tiny_model: Model) -> Iterator[Gated]:
    with Gated(tiny_model, max_num_seqs=2, max_num_batched_tokens=16) as recorder:
        yield recorder
        recorder.gate.open()


def test_queued(gated: Gated) -> None:
    gated.add("runs", "abc", n=2, **LONG)
    gated.gate.wait_for_run()
    gated.add("queued", "abc", **LONG)
    gated.core.abort("queued")
    gated.gate.let_one()
    assert gated.wait("queued") == Finished("queued", ["abort"], 3, 0)
    gated.core.abort("runs")
    gated.gate.open()
    gated.wait("runs")
    gated.check_that_all_blocks_are_free()


def test_in_prefill_between_chunks(gated: Gated) -> None:
    gated.add("long", [5] * 100, **LONG)
    gated.gate.wait_for_run()
    gated.gate.let_one()
    gated.core.abort("long")  # its second chunk is about to be computed
    gated.gate.open()
    assert gated.wait("long") == Finished("long", ["abort"], 100, 0)
    gated.check_that_all_blocks_are_free()
    assert [[span[1:3] for span in spans] for spans in gated.gate.spans] == [[(0, 16)], [(16, 16)]]


def test_in_decode_of_many_steps(gated: Gated) -> None:
    gated.add("decodes", "abc", **LONG)
    gated.gate.wait_for_run()
    gated.gate.let_one()
    gated.core.abort("decodes")  # a run of many steps is about to begin
    gated.gate.open()
    assert gated.wait("decodes") == Finished("decodes", ["abort"], 3, 1 + gated.gate.num_steps[1])
    gated.check_that_all_blocks_are_free()
    assert gated.gate.num_steps == [1, 1]


def test_all_completions_of_one_request_some_of_which_wait(gated: Gated) -> None:
    gated.add("several", "abc", n=4, **LONG)
    gated.gate.wait_for_run()
    gated.gate.let_one()
    gated.core.abort("several")
    gated.gate.open()
    end = gated.wait("several")
    assert isinstance(end, Finished)
    assert end.finish_reasons == ["abort"] * 4
    assert end.num_output_tokens == gated.num_tokens("several")
    assert not gated.deltas("several", 2)
    gated.check_that_all_blocks_are_free()


def test_one_that_was_preempted(tiny_model: Model) -> None:
    from waferline_kernels.kv_cache import KV_BF16

    memory = 4 * tiny_model.program.dims.kv_block_bytes(KV_BF16)
    with Gated(tiny_model, kv_cache_memory=memory, max_num_seqs=2) as gated:
        gated.add("first", [1] * 30, max_tokens=30, ignore_eos=True)
        gated.add("second", [2] * 30, max_tokens=30, ignore_eos=True)
        gated.gate.wait_for_run()
        while not gated.core._scheduler.num_preemptions:
            gated.gate.let_one()
        gated.core.abort("second")
        gated.gate.open()
        end = gated.wait("second")
        assert isinstance(end, Finished)
        assert (end.finish_reasons, end.num_output_tokens) == (["abort"], gated.num_tokens("second"))
        assert len(gated.finish("first").outputs[0].token_ids) == 30
        gated.check_that_all_blocks_are_free()


def test_a_deadline_ends_a_run_of_many_steps(tiny_model: Model) -> None:
    with RecordingCore(tiny_model) as recorder:
        hold_long_runs(recorder.core)
        recorder.add("late", "abc", options={"deadline_ms": 300}, **LONG)
        end = recorder.wait("late")
        assert isinstance(end, Finished)
        assert end.finish_reasons == ["deadline"]
        token_ids = [token for delta in recorder.deltas("late") for token in delta.token_ids]
        assert end.num_output_tokens == len(token_ids) < 10
        assert recorder.core.stats().request_success_total["deadline"] == 1


def test_a_queue_timeout_takes_effect_beside_a_run_of_many_steps(tiny_model: Model) -> None:
    with RecordingCore(tiny_model, max_num_seqs=1) as recorder:
        hold_long_runs(recorder.core)
        recorder.add("runs", "abc", **LONG)
        recorder.add("waits", "abc", options={"queue_timeout_ms": 30}, **LONG)
        assert recorder.error("waits") == ("deadline_exceeded", "queue_timeout_ms: 30, and it had not begun")
        assert isinstance(recorder.messages["waits"][0], Accepted)
        assert len(recorder.messages["waits"]) == 2
        recorder.core.abort("runs")
        recorder.wait("runs")


def test_too_much_to_do_is_told_while_a_step_runs(tiny_model: Model) -> None:
    with Gated(tiny_model, max_num_seqs=1, max_waiting_requests=2) as gated:
        gated.add("runs", "abc", **LONG)
        gated.gate.wait_for_run()
        for number in range(4):
            gated.add(f"waits-{number}", "abc", **LONG)
        for number in (2, 3):
            [error] = gated.messages[f"waits-{number}"]  # at once, although the engine stands still
            assert error.code == "overloaded"
            assert error.message == "max_waiting_requests: 3 with this request, expected at most 2"
            assert error.retry_after_ms >= 1
        stats = gated.core.stats()
        assert stats.request_errors_total == {"overloaded": 2}
        gated.gate.let_one()
        stats = gated.core.stats()
        assert (stats.num_requests_waiting, stats.num_tokens_waiting, stats.requests_begun_total) == (2, 6, 1)
        assert stats.oldest_wait_seconds > 0
        for name in ("runs", "waits-0", "waits-1"):
            gated.core.abort(name)
        gated.gate.open()
        gated.wait("waits-1")
        gated.check_that_all_blocks_are_free()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"priority": "high"}, "priority: 'high', expected an integer from -2147483648 to 2147483647"),
        ({"tenant": ""}, "tenant: '', expected None or text of 1 to 256 characters"),
        ({"deadline_ms": 0}, "deadline_ms: 0, expected an integer from 1 to 2147483647"),
        ({"queue_timeout_ms": 1.5}, "queue_timeout_ms: 1.5, expected an integer from 1 to 2147483647"),
    ],
)
def test_options_that_are_not_allowed_are_refused(tiny_model: Model, options: dict[str, Any], message: str) -> None:
    with RecordingCore(tiny_model) as recorder:
        recorder.add("bad", "abc", options=options)
        assert recorder.error("bad") == ("invalid_request", message)
