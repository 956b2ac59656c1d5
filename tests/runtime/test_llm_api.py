"""LLM and AsyncLLM on a tiny model."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from recorder import TINY_MODEL, hold_long_runs

from waferline import LLM, AsyncLLM, RequestFailed, SamplingParams
from waferline.runtime.engine_core import SWITCH_INTERVAL_S
from waferline.runtime.messages import Delta
from waferline.runtime.prompts import LONG_PROMPT

REPOSITORY = Path(__file__).parents[2]
LONG = SamplingParams(max_tokens=None, ignore_eos=True, seed=1)


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(TINY_MODEL) as llm:
        yield llm


def becomes_idle(llm: LLM | AsyncLLM) -> bool:
    """Whether nothing runs or waits any more, soon: an abort ends a request after the step at hand."""
    for _ in range(1000):
        stats = llm.stats()
        if stats["num_requests_running"] == stats["num_requests_waiting"] == stats["kv_cache_usage"] == 0:
            return True
        time.sleep(0.01)
    return False


def test_python_threads_that_compute_do_not_keep_the_interpreter_long(llm: LLM) -> None:
    assert sys.getswitchinterval() <= SWITCH_INTERVAL_S


def test_generate_takes_text_token_ids_and_lists_of_both(llm: LLM) -> None:
    greedy = SamplingParams(temperature=0, max_tokens=5)
    [text] = llm.generate("abc", greedy)
    [ids] = llm.generate(llm.tokenizer.encode("abc"), greedy)
    both = llm.generate(["abc", text.prompt_token_ids], greedy)
    assert (text.prompt, ids.prompt) == ("abc", None)
    assert text.finished
    assert text.outputs == ids.outputs == both[0].outputs == both[1].outputs
    assert len(text.outputs[0].token_ids) == 5
    assert llm.generate([]) == []


def test_generate_takes_parameters_for_each_prompt(llm: LLM) -> None:
    params = [SamplingParams(max_tokens=count, ignore_eos=True) for count in (3, 7, 5)]
    outputs = llm.generate(["a", "b", "c"], params)
    assert [len(output.outputs[0].token_ids) for output in outputs] == [3, 7, 5]
    assert [output.prompt for output in outputs] == ["a", "b", "c"]


def test_stream_gives_what_generate_gives(llm: LLM) -> None:
    params = SamplingParams(seed=3, max_tokens=20, n=2)
    [output] = llm.generate("abc", params)
    deltas = list(llm.stream("abc", params))
    assert all(isinstance(delta, Delta) for delta in deltas)
    for completion in output.outputs:
        own = [delta for delta in deltas if delta.index == completion.index]
        assert "".join(delta.text for delta in own) == completion.text
        assert [delta.token_ids[0] for delta in own] == completion.token_ids
        assert own[-1].finish_reason == completion.finish_reason


def test_a_stream_closed_early_is_aborted(llm: LLM) -> None:
    stream = llm.stream("abc", LONG)
    next(stream)
    stream.close()
    assert becomes_idle(llm)


def test_a_bad_prompt_among_many_is_named_and_the_others_are_aborted(llm: LLM) -> None:
    with pytest.raises(RequestFailed, match=r"prompt_too_long: prompts\[2\]: prompt: 256 tokens"):
        llm.generate(["a", "b", [1] * 256, "d"], LONG)
    assert becomes_idle(llm)


@pytest.mark.parametrize("n", [10**9, "2"])
def test_a_number_of_completions_that_was_assigned_is_checked(llm: LLM, n: Any) -> None:
    params = SamplingParams()
    params.n = n
    with pytest.raises(RequestFailed, match=rf"invalid_request: prompts\[0\]: n: .*{n}"):
        llm.generate("abc", params)


def test_a_bad_prompt_raises_from_a_stream(llm: LLM) -> None:
    with pytest.raises(RequestFailed) as caught:
        next(llm.stream(""))
    assert caught.value.code == "invalid_request"


def test_many_threads_may_use_one_llm(llm: LLM) -> None:
    params = [SamplingParams(seed=seed, max_tokens=10) for seed in range(8)]
    expected = [llm.generate("abc", each)[0].outputs for each in params]
    results: dict[int, object] = {}

    def run(number: int) -> None:
        results[number] = llm.generate("abc", params[number])[0].outputs

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [results[number] for number in range(8)] == expected


def test_limits_are_passed_on() -> None:
    with LLM(TINY_MODEL, dtype="f32", threads=1, max_model_len=64, max_num_seqs=2, max_num_batched_tokens=32) as llm:
        stats = llm.stats()
        assert (stats["dtype"], stats["threads"], stats["max_model_len"]) == ("f32", 1, 64)
        assert (stats["max_num_seqs"], stats["max_num_batched_tokens"]) == (2, 32)
        assert stats["num_kv_blocks"] == 8


def test_after_close_requests_are_refused() -> None:
    llm = LLM(TINY_MODEL)
    llm.close()
    llm.close()
    with pytest.raises(RequestFailed, match="shutting_down: prompts\\[0\\]: the engine was closed"):
        llm.generate("abc")


def test_an_llm_that_is_dropped_takes_its_threads_along() -> None:
    before = set(threading.enumerate())
    llm = LLM(TINY_MODEL)
    llm.generate("abc")
    assert set(threading.enumerate()) > before
    del llm
    gc.collect()
    assert set(threading.enumerate()) == before


def test_a_program_that_never_closes_ends() -> None:
    code = f"from waferline import LLM; llm = LLM({str(TINY_MODEL)!r}); print(len(llm.generate('abc')))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout) == (0, "1\n"), result.stderr


def test_ctrl_c_in_generate_aborts() -> None:
    code = f"""
import os, signal, threading, time
from waferline import LLM, SamplingParams
with LLM({str(TINY_MODEL)!r}) as llm:
    prompts = ["abc"] * 2000
    threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        llm.generate(prompts, SamplingParams(max_tokens=None, ignore_eos=True))
    except KeyboardInterrupt:
        print("interrupted")
        end = time.monotonic() + 20
        while llm.stats()["num_requests_running"] or llm.stats()["num_requests_waiting"]:
            assert time.monotonic() < end
            time.sleep(0.01)
        print(len(llm.generate("abc")))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout) == (0, "interrupted\n1\n"), result.stderr


def test_prompts_share_what_is_cached_with_those_of_their_salt(llm: LLM) -> None:
    prompt = [7] * 40
    assert [output.num_cached_tokens for output in llm.generate([prompt] * 2, cache_salt="a")] == [0, 32]
    hits = llm.stats()["prefix_cache_hits_total"]
    list(llm.stream(prompt, cache_salt="b"))
    assert llm.stats()["prefix_cache_hits_total"] == hits
    list(llm.stream(prompt, cache_salt="b"))
    assert llm.stats()["prefix_cache_hits_total"] == hits + 32

    async def run() -> None:
        async with AsyncLLM(TINY_MODEL, enable_prefix_caching=True) as llm:
            outputs = [(await llm.generate(prompt, cache_salt=salt))[0] for salt in "aab"]
            assert [output.num_cached_tokens for output in outputs] == [0, 32, 0]
            async for _ in llm.stream(prompt, cache_salt="b"):
                pass
            assert llm.stats()["prefix_cache_hits_total"] == 64

    asyncio.run(run())


def test_too_much_to_do_is_told_at_once() -> None:
    with LLM(TINY_MODEL, max_num_seqs=1, max_waiting_requests=0, tenant_weights={"acme": 2}) as llm:
        hold_long_runs(llm._core)
        stream = llm.stream("abc", LONG, tenant="acme", priority=-1)
        next(stream)
        with pytest.raises(RequestFailed, match=r"prompts\[0\]: max_waiting_requests: 1 with this") as failed:
            llm.generate("abc")
        assert failed.value.code == "overloaded"
        assert failed.value.retry_after_ms is not None
        stream.close()
        with pytest.raises(TypeError, match="urgency"):
            llm.generate("abc", urgency=1)  # type: ignore[call-arg]


def test_a_completion_out_of_time_has_what_it_has() -> None:
    async def run() -> None:
        async with AsyncLLM(TINY_MODEL) as llm:
            hold_long_runs(llm._core)
            [output] = await llm.generate("abc", LONG, deadline_ms=300)
            assert output.outputs[0].finish_reason == "deadline"
            assert 0 < len(output.outputs[0].token_ids) < 10

    asyncio.run(run())


def test_drafts_change_nothing_but_the_time() -> None:
    params = SamplingParams(max_tokens=40, seed=1, ignore_eos=True)
    config = {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_min": 1}
    with LLM(TINY_MODEL) as plain, LLM(TINY_MODEL, speculative_config=config) as llm:
        assert llm.generate("abab", params)[0].outputs == plain.generate("abab", params)[0].outputs
        assert (plain.stats()["num_speculative_tokens"], llm.stats()["num_speculative_tokens"]) == (0, 4)

    async def run() -> None:
        with pytest.raises(ValueError, match=r"speculative_config\.num_speculative_tokens: missing"):
            AsyncLLM(TINY_MODEL, speculative_config={"method": "ngram"})

    asyncio.run(run())


def test_async_streams_run_side_by_side() -> None:
    async def run() -> None:
        async with AsyncLLM(TINY_MODEL) as llm:
            params = [SamplingParams(seed=seed, max_tokens=10 + seed) for seed in range(4)]

            async def text(each: SamplingParams) -> str:
                return "".join([delta.text async for delta in llm.stream("abc", each)])

            texts = await asyncio.gather(*map(text, params))
            outputs = await llm.generate(["abc"] * 4, params)
            assert texts == [output.outputs[0].text for output in outputs]

    asyncio.run(run())


def test_async_streams_can_be_aborted_and_closed() -> None:
    async def run() -> None:
        async with AsyncLLM(TINY_MODEL) as llm:
            deltas = []
            async for delta in llm.stream("abc", LONG, request_id="mine"):
                deltas.append(delta)
                if len(deltas) == 1:
                    with pytest.raises(RequestFailed, match="duplicate_id: request_id: 'mine' is in use"):
                        await anext(llm.stream("abc", LONG, request_id="mine"))
                    await llm.abort("mine")
            assert deltas[0].request_id == "mine"
            stream = llm.stream("abc", LONG)
            await anext(stream)
            await stream.aclose()
            await llm.abort("unknown")
            assert becomes_idle(llm)

    asyncio.run(run())


def test_an_id_can_be_used_again_at_once() -> None:
    async def run() -> None:
        async with AsyncLLM(TINY_MODEL, max_num_seqs=1) as llm:
            expected = [delta.token_ids for delta in await deltas_of(llm, "other")]
            for _ in range(10):
                stream = llm.stream("abc", LONG, request_id="mine")
                await anext(stream)
                await stream.aclose()
                deltas = await deltas_of(llm, "mine")
                assert [delta.token_ids for delta in deltas] == expected
                assert {delta.request_id for delta in deltas} == {"mine"}

    async def deltas_of(llm: AsyncLLM, request_id: str) -> list[Delta]:
        return [delta async for delta in llm.stream("xyz", SamplingParams(max_tokens=20, seed=1), request_id)]

    asyncio.run(run())


def test_ids_that_are_made_up_are_new() -> None:
    async def run() -> None:
        async with AsyncLLM(TINY_MODEL) as llm:
            streams = [llm.stream("abc", LONG, request_id=f"request-{i}") for i in range(4)]
            given = [(await anext(stream)).request_id for stream in streams]
            outputs = await llm.generate(["abc"] * 3, SamplingParams(max_tokens=2))
            made_up = [output.request_id for output in outputs] + [(await anext(llm.stream("abc", LONG))).request_id]
            assert given == [f"request-{i}" for i in range(4)]
            assert len({*given, *made_up}) == 8
            assert [(await anext(stream)).request_id for stream in streams] == given

    asyncio.run(run())


def test_async_failures_and_cancellation() -> None:
    async def run() -> None:
        async with AsyncLLM(TINY_MODEL) as llm:
            with pytest.raises(RequestFailed, match=r"invalid_request: prompts\[1\]"):
                await llm.generate(["abc", ""], LONG)
            with pytest.raises(RequestFailed, match="invalid_request: prompt: ''"):
                await anext(llm.stream(""))
            task = asyncio.create_task(llm.generate(["abc"] * 500, LONG))
            await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert becomes_idle(llm)

    asyncio.run(run())


def test_streams_go_on_while_a_long_prompt_is_tokenized(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        async with AsyncLLM(TINY_MODEL) as llm:
            may_go_on, encode = threading.Event(), llm.tokenizer.encode

            def slow_encode(text: str) -> list[int]:
                assert len(text) < LONG_PROMPT or may_go_on.wait(10)
                return encode(text)[:5]

            monkeypatch.setattr(llm.tokenizer, "encode", slow_encode)
            prompt, few = "a" * LONG_PROMPT, SamplingParams(max_tokens=3, ignore_eos=True)
            long = asyncio.create_task(llm.generate(["abc", prompt], few))
            aborted = asyncio.create_task(collect(llm.stream(prompt, few, "mine")))
            cancelled = asyncio.create_task(llm.generate(prompt, LONG))
            assert len(await collect(llm.stream("abc", few))) == 3
            await llm.abort("mine")
            cancelled.cancel()
            may_go_on.set()
            assert [(output.prompt, len(output.outputs[0].token_ids)) for output in await long] == [
                ("abc", 3),
                (prompt, 3),
            ]
            assert await aborted == []
            assert becomes_idle(llm)

    async def collect(deltas: AsyncIterator[Delta]) -> list[Delta]:
        return [delta async for delta in deltas]

    asyncio.run(run())


def test_a_deadline_counts_from_before_the_prompt_is_tokenized(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        async with AsyncLLM(TINY_MODEL) as llm:
            encode = llm.tokenizer.encode

            def slow_encode(text: str) -> list[int]:
                time.sleep(0.02)
                return encode(text)[:5]

            monkeypatch.setattr(llm.tokenizer, "encode", slow_encode)
            for call in (
                llm.generate("a" * LONG_PROMPT, deadline_ms=5),
                anext(llm.stream("a" * LONG_PROMPT, deadline_ms=5)),
            ):
                with pytest.raises(RequestFailed, match="deadline_ms: 5, and it had not begun"):
                    await call

    asyncio.run(run())


def test_many_prompts_are_tokenized_aside_together(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        async with AsyncLLM(TINY_MODEL) as llm:
            encode, threads = llm.tokenizer.encode, set()

            def noted_encode(text: str) -> list[int]:
                threads.add(threading.current_thread())
                return encode(text)[:5]

            monkeypatch.setattr(llm.tokenizer, "encode", noted_encode)
            few = SamplingParams(max_tokens=1)
            await llm.generate("abc", few)
            assert threads == {threading.main_thread()}
            threads.clear()
            await llm.generate(["a" * (LONG_PROMPT // 4)] * 4, few)
            assert threading.main_thread() not in threads

    asyncio.run(run())


def test_an_aborted_stream_has_no_further_deltas() -> None:
    async def run() -> None:
        async with AsyncLLM(TINY_MODEL) as llm:
            seen = 0
            async for _ in llm.stream("abc", LONG, request_id="mine"):
                seen += 1
                while llm.stats()["generation_tokens_total"] < 20:
                    await asyncio.sleep(0.001)  # deltas pile up
                await llm.abort("mine")
            assert seen == 1

    asyncio.run(run())


def test_an_async_llm_outlives_an_event_loop() -> None:
    llm = AsyncLLM(TINY_MODEL)
    try:
        for _ in range(2):
            [output] = asyncio.run(llm.generate("abc", SamplingParams(max_tokens=3, ignore_eos=True)))
            assert len(output.outputs[0].token_ids) == 3
    finally:
        llm.close()


def test_a_client_is_imported_without_kernels() -> None:
    code = """
import sys
from waferline import Client, AsyncClient, SamplingParams, RequestFailed, RequestOutput, Delta
print([name for name in ("numpy", "numba", "tokenizers", "waferline_kernels", "waferline.llm") if name in sys.modules])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout) == (0, "[]\n"), result.stderr


def test_a_forked_child_is_told_that_the_engine_is_not_its_own() -> None:
    code = f"""
import gc, os, socket, sys, time, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads
from waferline import LLM, SamplingParams
from waferline.fabric.host import claim_cpus
llm = LLM({str(TINY_MODEL)!r}, threads=2)
stream = llm.stream("abc", SamplingParams(max_tokens=9, ignore_eos=True))
next(stream)
list(stream)
stream = llm.stream("abc", SamplingParams(max_tokens=200, ignore_eos=True))
next(stream)
expected = llm.generate("abc", SamplingParams(max_tokens=5, seed=1))[0].outputs[0].token_ids
time.sleep(0.1)
child = os.fork()
if child == 0:
    refusals = 0
    for use in (lambda: llm.generate("abc"), llm.stats, lambda: next(stream)):
        try:
            use()
        except RuntimeError as error:
            assert "after a fork, make another one" in str(error)
            refusals += 1
    claim_cpus((), 0)
    holders = [s for s in gc.get_objects() if isinstance(s, socket.socket) and s.fileno() >= 0]
    sys.exit(refusals + len(holders))  # by way of what ends the engine at exit
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
assert llm.generate("abc", SamplingParams(max_tokens=5, seed=1))[0].outputs[0].token_ids == expected
sys.exit(status)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout) == (3, ""), result.stderr


def test_what_is_exported_exists() -> None:
    import waferline

    for name in waferline.__all__:
        assert getattr(waferline, name).__name__ == name
        assert name in dir(waferline)
    with pytest.raises(AttributeError, match="module 'waferline' has no attribute 'nothing'"):
        _ = waferline.nothing


@pytest.mark.parametrize("example", ["embedded.py", "asyncio_stream.py"])
def test_the_examples_run(example: str) -> None:
    path = REPOSITORY / "examples" / example
    result = subprocess.run([sys.executable, path, TINY_MODEL], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert result.stdout
