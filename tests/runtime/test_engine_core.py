"""The engine core on a tiny model: what a request gives, and that nothing beside it changes that."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import Any

import pytest
from recorder import TIMEOUT_S, RecordingCore

from waferline.model.load import Model
from waferline.runtime import executor_setup
from waferline.runtime.messages import Accepted, Delta, Finished, RequestError
from waferline_kernels.kv_cache import KV_BF16

# Together: greedy and drawn, penalties, several completions, logprobs, prompts of one token and of several blocks.
MIXED: dict[str, tuple[Any, dict[str, Any]]] = {
    "greedy": ("Once upon a time", {"temperature": 0, "max_tokens": 40}),
    "drawn": ("The cat", {"seed": 1, "temperature": 0.8, "top_p": 0.9, "max_tokens": 50}),
    "long": ([i % 250 for i in range(90)], {"seed": 2, "top_k": 20, "max_tokens": 12}),
    "one": ([5], {"seed": 3, "min_p": 0.05, "max_tokens": 33}),
    "several": ("abc", {"seed": 4, "n": 3, "max_tokens": 20, "temperature": 1.2}),
    "penalised": ("aaa", {"seed": 5, "presence_penalty": 0.7, "frequency_penalty": 0.3, "repetition_penalty": 1.3}),
    "scored": ("How likely is this prompt?", {"seed": 6, "logprobs": 3, "prompt_logprobs": 2, "max_tokens": 8}),
    "scored and long": ([(7 * i) % 250 for i in range(80)], {"seed": 7, "prompt_logprobs": 0, "logprobs": 0}),
    "without end": ("zzz", {"seed": 8, "ignore_eos": True, "max_tokens": 60}),
}


@pytest.fixture(scope="module")
def alone(tiny_model: Model) -> dict[str, list[Delta]]:
    """The deltas of each of MIXED when it runs alone, by request and then by completion."""
    deltas = {}
    with RecordingCore(tiny_model) as recorder:
        for name, (prompt, fields) in MIXED.items():
            recorder.add(name, prompt, **fields)
            recorder.finish(name)
            recorder.check_protocol(name)
            deltas[name] = sorted(recorder.deltas(name), key=lambda delta: delta.index)
    return deltas


def test_closing_where_the_lock_is_held_does_not_wait_for_it(tiny_model: Model) -> None:
    with RecordingCore(tiny_model) as recorder:
        recorder.add("a", "abc", max_tokens=200, ignore_eos=True)
        with recorder.core._lock:  # as in a signal's handler that comes while the caller asks for statistics
            recorder.core.close()
        recorder.wait("a")
        recorder.add("late", "abc")
        assert recorder.error("late") == ("shutting_down", "the engine was closed")


def test_tokens_arrive_before_the_run_that_made_them_returns(tiny_model: Model) -> None:
    with RecordingCore(tiny_model) as recorder:
        executor = recorder.core._executor
        run, may_return = executor.run, threading.Event()
        num_tokens = [0]

        def run_and_stay(program: Any, batch: Any, max_steps: int) -> Any:
            result = run(program, batch, max_steps)
            num_tokens[0] += result.num_steps
            assert result.num_steps == 1 or may_return.wait(TIMEOUT_S)
            return result

        executor.run = run_and_stay  # type: ignore[method-assign]
        recorder.add("a", "Once upon a time", temperature=0, max_tokens=30, ignore_eos=True)
        recorder.wait_for_deltas("a", 3)  # more than a prompt and a run of one step give
        recorder.wait_for_deltas("a", num_tokens[0])
        assert not may_return.is_set()
        may_return.set()
        assert len(recorder.finish("a").outputs[0].token_ids) == 30


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_num_seqs": 1, "max_num_batched_tokens": 1},
        {"max_num_seqs": 3, "max_num_batched_tokens": 3},
        {"max_num_seqs": 8, "max_num_batched_tokens": 64},
        {"threads": 2},
    ],
    ids=str,
)
def test_a_request_gives_the_same_alone_and_beside_others(
    tiny_model: Model, alone: dict[str, list[Delta]], options: dict[str, Any]
) -> None:
    with RecordingCore(tiny_model, **options) as recorder:
        for name, (prompt, fields) in MIXED.items():
            recorder.add(name, prompt, **fields)
        for name in MIXED:
            recorder.finish(name)
            recorder.check_protocol(name)
            assert sorted(recorder.deltas(name), key=lambda delta: delta.index) == alone[name]
        stats = recorder.core.stats()
    assert (stats.num_requests_running, stats.num_requests_waiting, stats.kv_cache_usage) == (0, 0, 0)
    assert stats.generation_tokens_total == sum(len(deltas) for deltas in alone.values())


def test_preemption_is_invisible(tiny_model: Model, alone: dict[str, list[Delta]]) -> None:
    memory = 8 * tiny_model.program.dims.kv_block_bytes(KV_BF16)
    with RecordingCore(tiny_model, kv_cache_memory=memory, max_num_batched_tokens=40) as recorder:
        for name, (prompt, fields) in MIXED.items():
            recorder.add(name, prompt, **fields)
        for name in MIXED:
            recorder.finish(name)
            recorder.check_protocol(name)
            assert sorted(recorder.deltas(name), key=lambda delta: delta.index) == alone[name]
        stats = recorder.core.stats()
    assert stats.num_preemptions_total > 0
    assert stats.kv_cache_usage == 0


def test_the_texts_of_all_deltas_are_the_text_of_all_tokens(tiny_model: Model) -> None:
    decode = tiny_model.tokenizer.decode
    with RecordingCore(tiny_model) as recorder:
        for seed in range(5):
            output = recorder.run("héllo", seed=seed, max_tokens=40, ignore_eos=True)
            token_ids = output.prompt_token_ids + output.outputs[0].token_ids
            assert decode(output.prompt_token_ids) + output.outputs[0].text == decode(token_ids)


def test_a_drawn_seed_is_reported_and_gives_the_same_again(tiny_model: Model) -> None:
    with RecordingCore(tiny_model) as recorder:
        drawn = recorder.run("abc", n=2, max_tokens=20)
        again = recorder.run("abc", n=2, max_tokens=20, seed=drawn.seed)
        other = recorder.run("abc", n=2, max_tokens=20)
    assert drawn.outputs == again.outputs
    assert other.seed != drawn.seed
    assert drawn.outputs[0].token_ids != drawn.outputs[1].token_ids


def test_the_first_completion_of_several_is_the_one_of_one(tiny_model: Model) -> None:
    with RecordingCore(tiny_model) as recorder:
        one = recorder.run("abc", seed=9)
        three = recorder.run("abc", seed=9, n=3)
    assert [output.index for output in three.outputs] == [0, 1, 2]
    assert three.outputs[0] == one.outputs[0]


def test_an_abort_ends_one_request_and_no_other(tiny_model: Model, alone: dict[str, list[Delta]]) -> None:
    with RecordingCore(tiny_model) as recorder:
        recorder.slow_down()
        recorder.add("aborted", "abc", n=2, max_tokens=None, ignore_eos=True, seed=1)
        prompt, fields = MIXED["drawn"]
        recorder.add("drawn", prompt, **fields)
        recorder.wait_for_deltas("aborted", 3)
        recorder.core.abort("aborted")
        end = recorder.wait("aborted")
        assert isinstance(end, Finished)
        assert "abort" in end.finish_reasons
        assert end.num_output_tokens == recorder.num_tokens("aborted")
        recorder.finish("drawn")
        assert recorder.deltas("drawn") == alone["drawn"]
        recorder.check_protocol("aborted")
        recorder.core.abort("aborted")  # has ended
        recorder.core.abort("unknown")
        assert recorder.core.drain()
        assert recorder.core.stats().kv_cache_usage == 0


def test_what_waits_can_be_aborted(tiny_model: Model) -> None:
    with RecordingCore(tiny_model, max_num_seqs=1) as recorder:
        recorder.slow_down()
        recorder.add("runs", "abc", max_tokens=None, ignore_eos=True, seed=1)
        recorder.add("waits", "abc")
        recorder.wait_for_deltas("runs", 1)
        recorder.wait_for_accepted("waits")
        assert recorder.core.stats().num_requests_waiting == 1
        recorder.core.abort("waits")
        assert recorder.wait("waits") == Finished("waits", ["abort"], 3, 0)
        assert recorder.finish("runs").outputs[0].finish_reason == "length"


def test_max_tokens_none_fills_the_context(tiny_model: Model) -> None:
    with RecordingCore(tiny_model, max_model_len=40) as recorder:
        output = recorder.run("abcdefghij", max_tokens=None, ignore_eos=True)
        assert (len(output.outputs[0].token_ids), output.outputs[0].finish_reason) == (30, "length")
        output = recorder.run([1] * 39, max_tokens=100, ignore_eos=True)
        assert (len(output.outputs[0].token_ids), output.outputs[0].finish_reason) == (1, "length")


@pytest.mark.parametrize(
    ("prompt", "fields", "code", "message"),
    [
        ("", {}, "invalid_request", "prompt: '', expected at least one character or token id"),
        ([], {}, "invalid_request", "prompt: [], expected at least one character or token id"),
        (5, {}, "invalid_request", "prompt: 5, expected a string or a list of token ids"),
        ([1, "a"], {}, "invalid_request", "prompt: 'a', expected token ids (integers)"),
        ([1, True], {}, "invalid_request", "prompt: True, expected token ids (integers)"),
        ([1, 259], {}, "invalid_request", "prompt: 259, expected token ids from 0 to 258"),
        ([-1], {}, "invalid_request", "prompt: -1, expected token ids from 0 to 258"),
        pytest.param([10**5000], {}, "invalid_request", "prompt: a number of too many digits to be shown", id="huge"),
        ([1, "a" * 1000], {}, "invalid_request", f"prompt: '{'a' * 199}..., expected token ids (integers)"),
        ("\ud800", {}, "invalid_request", "prompt: text: "),
        ("a", {"stop_token_ids": [1, 300]}, "invalid_request", "stop_token_ids: 300, expected token ids from 0 to 258"),
        ([1] * 255 + ["a"], {}, "prompt_too_long", "prompt: 256 tokens, expected at most 255"),
        ([-1, 1, 2], {"truncate_prompt_tokens": 2}, "invalid_request", "prompt: -1, expected token ids from 0 to 258"),
        (
            [1] * 256,
            {},
            "prompt_too_long",
            "prompt: 256 tokens, expected at most 255, which leaves room for one more in a max_model_len of 256",
        ),
    ],
)
def test_a_bad_request_is_refused_by_name_and_others_go_on(
    tiny_model: Model, prompt: Any, fields: dict[str, Any], code: str, message: str
) -> None:
    with RecordingCore(tiny_model) as recorder:
        recorder.add("good", "abc", seed=1)
        recorder.add("bad", prompt, **fields)
        error = recorder.error("bad")
        assert error[0] == code
        assert error[1].startswith(message)
        recorder.finish("good")
        assert recorder.core.stats().request_errors_total == {code: 1}


@pytest.mark.parametrize("option", ["deadline_ms", "queue_timeout_ms"])
def test_a_request_that_comes_out_of_time_is_not_even_tokenized(
    tiny_model: Model, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    monkeypatch.setattr(tiny_model.tokenizer, "encode", None)
    with RecordingCore(tiny_model) as recorder:
        a_minute_ago = time.monotonic_ns() - 60 * 10**9
        recorder.add("late", "abc", options={option: 60_000}, arrival_ns=a_minute_ago)
        assert recorder.error("late") == ("deadline_exceeded", f"{option}: 60000, and it had not begun")
        assert recorder.core.stats().request_errors_total == {"deadline_exceeded": 1}


def test_time_counts_from_the_arrival_wherever_that_was(tiny_model: Model) -> None:
    with RecordingCore(tiny_model, max_ttft_ms=1000) as recorder:
        a_minute_ago = time.monotonic_ns() - 60 * 10**9
        recorder.add("late", "abc", options={"deadline_ms": 10**9}, arrival_ns=a_minute_ago, max_tokens=1)
        assert len(recorder.finish("late").outputs) == 1
        assert recorder.core.stats().request_queue_time_seconds_total >= 60
        assert recorder.core._runner.admission.slowness < 60  # which is the engine's own


def test_parameters_that_were_changed_after_their_check_are_checked_again(tiny_model: Model) -> None:
    with RecordingCore(tiny_model) as recorder:
        from waferline import SamplingParams

        params = SamplingParams()
        params.logprobs = 1000
        recorder.add("bad", "abc", params)
        assert recorder.error("bad") == ("invalid_request", "logprobs: 1000, expected 0 to 20")
        recorder.add("worse", "abc", {"n": 1})
        assert recorder.error("worse") == ("invalid_request", "sampling_params: {'n': 1}, expected SamplingParams")


def test_an_id_in_use_is_refused(tiny_model: Model) -> None:
    with RecordingCore(tiny_model) as recorder:
        recorder.slow_down()
        recorder.add("a", "abc", max_tokens=None, ignore_eos=True)
        recorder.add("a", "abc")
        recorder.wait("a")
        refused = [message for message in recorder.messages["a"] if isinstance(message, RequestError)]
        assert [(error.code, error.message) for error in refused] == [
            ("duplicate_id", "request_id: 'a' is in use, expected a new one")
        ]
        recorder.core.abort("a")


def test_drain_finishes_what_runs_and_refuses_what_comes(tiny_model: Model) -> None:
    with RecordingCore(tiny_model) as recorder:
        recorder.slow_down()
        recorder.add("runs", "abc", max_tokens=None, ignore_eos=True)
        assert not recorder.core.drain(timeout=0)
        recorder.add("late", "abc")
        assert recorder.error("late") == ("shutting_down", "the engine takes no further requests")
        assert recorder.core.drain()
        assert recorder.finish("runs").outputs[0].finish_reason == "length"


def test_close_ends_what_runs_with_an_error(tiny_model: Model) -> None:
    with RecordingCore(tiny_model, max_num_seqs=1) as recorder:
        recorder.slow_down()
        recorder.add("runs", "abc", max_tokens=None, ignore_eos=True)
        recorder.add("waits", "abc")
        recorder.wait_for_deltas("runs", 1)
        recorder.core.close()
        for name in ("runs", "waits"):
            assert recorder.error(name) == ("shutting_down", "the engine was closed")
        recorder.add("late", "abc")
        assert recorder.error("late") == ("shutting_down", "the engine was closed")
        recorder.core.close()


def test_a_failed_step_fails_its_requests_and_no_later_one(tiny_model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    with RecordingCore(tiny_model) as recorder:
        expected = recorder.run("abc", seed=1).outputs

        def fail(*arguments: Any) -> None:
            raise ValueError("batch.slot: 99")

        with monkeypatch.context() as patch:
            patch.setattr(recorder.core._executor, "run", fail)
            recorder.add("fails", "abc", n=2)
            assert recorder.error("fails") == ("internal", "the step failed: batch.slot: 99")
        assert recorder.run("abc", seed=1).outputs == expected
        assert recorder.core.stats().kv_cache_usage == 0


def test_a_request_that_cannot_be_detokenised_fails_alone(tiny_model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    from waferline.runtime import request_runner

    append_token = request_runner.append_token

    def append_or_fail(sequence: Any, *arguments: Any) -> Delta:
        if sequence.request.request_id == "fails" and sequence.num_output_tokens == 3:
            raise KeyError("token")
        return append_token(sequence, *arguments)

    monkeypatch.setattr(request_runner, "append_token", append_or_fail)
    with RecordingCore(tiny_model) as recorder:
        recorder.add("fails", "abc", ignore_eos=True)
        recorder.add("good", "abc", ignore_eos=True)
        code, message = recorder.error("fails")
        assert code == "internal"
        assert "KeyError('token')" in message
        assert len(recorder.deltas("fails")) == 3
        assert len(recorder.finish("good").outputs[0].token_ids) == 16


def test_an_engine_that_cannot_go_on_leaves_nobody_waiting(tiny_model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    with RecordingCore(tiny_model) as recorder:

        def fail() -> None:
            raise RuntimeError("broken")

        monkeypatch.setattr(recorder.core._scheduler, "schedule", fail)
        recorder.add("fails", "abc")
        assert recorder.error("fails") == ("engine_dead", "the engine stopped: RuntimeError('broken')")
        recorder.add("late", "abc")
        assert recorder.error("late") == ("engine_dead", "the engine stopped: RuntimeError('broken')")
        assert recorder.core.drain(timeout=1)


def test_a_consumer_that_fails_does_not_stop_the_engine(tiny_model: Model) -> None:
    with RecordingCore(tiny_model) as recorder:
        record = recorder.core._on_output

        def record_or_fail(outputs: list[Any]) -> None:
            if any(output.request_id == "lost" for output in outputs):
                raise RuntimeError("nobody listens")
            record(outputs)

        recorder.core._on_output = record_or_fail
        recorder.add("lost", "abc", max_tokens=2, ignore_eos=True)
        while recorder.core.stats().request_success_total["length"] == 0:
            time.sleep(0.001)
        assert recorder.core.stats().request_errors_total == {}
        recorder.run("abc")


def test_an_idle_engine_uses_no_cpu(tiny_model: Model) -> None:
    with RecordingCore(tiny_model) as recorder:
        recorder.run("abc")
        time.sleep(0.2)  # the drain thread goes back to sleep
        before = time.process_time()
        time.sleep(0.5)
        assert time.process_time() - before < 0.005


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_num_seqs": 0}, ValueError, "max_num_seqs: 0, expected 1 to 4096"),
        ({"max_num_seqs": "4"}, TypeError, "max_num_seqs: '4', expected an integer"),
        (
            {"max_num_seqs": 64, "max_num_batched_tokens": 32},
            ValueError,
            "max_num_batched_tokens: 32, expected at least max_num_seqs",
        ),
        ({"max_model_len": 257}, ValueError, "max_model_len: 257, expected 2 to 256"),
        ({"kv_dtype": "fp8"}, ValueError, "kv_dtype: 'fp8', expected one of auto, f32, bf16, int8"),
        ({"kv_cache_memory": 10}, ValueError, "kv_cache_memory: 10 bytes, expected at least"),
        ({"threads": 0}, ValueError, "threads: 0, expected 1 to"),
        ({"itl_target_ms": 0}, ValueError, "itl_target_ms: 0, expected 0.001 to 1e"),
        ({"itl_target_ms": 5e-324}, ValueError, "itl_target_ms: 5e-324, expected 0.001 to 1e"),
        ({"itl_target_ms": 10**400}, ValueError, "itl_target_ms: 1000"),
        ({"itl_target_ms": "5"}, TypeError, "itl_target_ms: '5', expected milliseconds or None"),
        ({"enable_prefix_caching": 1}, TypeError, "enable_prefix_caching: 1, expected True or False"),
    ],
)
def test_limits_that_cannot_be_met_are_refused(
    tiny_model: Model, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        RecordingCore(tiny_model, **options)


def test_with_a_target_the_kv_cache_is_touched_before_it_is_used(
    tiny_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor_setup, "HUGE_PAGE", 4 * tiny_model.program.dims.kv_block_bytes(KV_BF16))
    touched = []
    take_step = executor_setup._take_step

    def record(executor: Any, *arguments: Any) -> float:
        touched.append(int(executor.sequences.block_tables[0, 0]))
        return take_step(executor, *arguments)

    monkeypatch.setattr(executor_setup, "_take_step", record)
    memory = 30 * tiny_model.program.dims.kv_block_bytes(KV_BF16)
    with RecordingCore(tiny_model, kv_cache_memory=memory, itl_target_ms=5) as recorder:
        assert recorder.core.stats().itl_target_ms == 5
        output = recorder.run("abc", seed=1)
    stride = 4 * tiny_model.program.dims.layers
    assert touched[-len(range(0, 29, stride)) - 1 :] == [*range(0, 29, stride), 29]
    with RecordingCore(tiny_model) as recorder:
        assert recorder.run("abc", seed=1).outputs == output.outputs


def test_a_kv_cache_too_small_for_the_model_bounds_the_context(tiny_model: Model) -> None:
    memory = 3 * tiny_model.program.dims.kv_block_bytes(KV_BF16)
    with RecordingCore(tiny_model, kv_cache_memory=memory) as recorder:
        assert recorder.core.stats().max_model_len == 48
        assert len(recorder.run("abc", max_tokens=None, ignore_eos=True).outputs[0].token_ids) == 45
        recorder.add("long", [1] * 48)
        assert recorder.error("long")[0] == "prompt_too_long"
    with pytest.raises(ValueError, match="max_model_len: 100, expected at most 48, the tokens that a KV cache of"):
        RecordingCore(tiny_model, kv_cache_memory=memory, max_model_len=100)


def test_stats_tell_what_runs_and_on_what(tiny_model: Model) -> None:
    with RecordingCore(tiny_model) as recorder:
        recorder.run("abc", n=2, max_tokens=5, ignore_eos=True)
    stats = recorder.core.stats()  # after the last run has been accounted for
    assert (stats.model, stats.dtype, stats.max_model_len, stats.max_num_seqs) == ("qwen2", "q8", 256, 16)
    assert (stats.prompt_tokens_total, stats.generation_tokens_total) == (3, 10)
    assert stats.request_success_total == {"stop": 0, "length": 2, "abort": 0, "deadline": 0}
    assert stats.steps_total == 5
    assert stats.step_seconds_total > 0
    assert stats.model_bytes > 0
    assert stats.kv_cache_bytes == stats.num_kv_blocks * tiny_model.program.dims.kv_block_bytes(KV_BF16)


def test_the_prompt_and_the_seed_are_reported_first(tiny_model: Model) -> None:
    with RecordingCore(tiny_model) as recorder:
        recorder.add("a", "abc", seed=17)
        recorder.finish("a")
        assert recorder.messages["a"][0] == Accepted("a", tiny_model.tokenizer.encode("abc"), 17)


def test_a_failure_of_the_drain_thread_leaves_nobody_waiting(
    tiny_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RecordingCore(tiny_model) as recorder:

        def fail(timeout: float) -> bool:
            raise RuntimeError("broken")

        monkeypatch.setattr(recorder.core._executor.ring, "wait", fail)
        recorder.slow_down()
        recorder.add("fails", "abc", max_tokens=None, ignore_eos=True)
        assert recorder.error("fails") == ("engine_dead", "the engine stopped: RuntimeError('broken')")


def test_close_from_an_engine_thread_closes_in_another(tiny_model: Model) -> None:
    with RecordingCore(tiny_model) as recorder:
        record = recorder.core._on_output

        def record_and_close(outputs: list[Any]) -> None:
            record(outputs)
            if isinstance(outputs[-1], Delta):
                recorder.core.close()

        recorder.core._on_output = record_and_close
        recorder.add("a", "abc", max_tokens=None, ignore_eos=True)
        assert recorder.error("a") == ("shutting_down", "the engine was closed")
        for thread in threading.enumerate():
            if thread.name == "waferline-close":
                thread.join()


def test_a_model_without_end_tokens_runs(tiny_model: Model) -> None:
    with RecordingCore(replace(tiny_model, eos_token_ids=())) as recorder:
        assert recorder.run("abc", temperature=0).outputs[0].finish_reason == "length"
