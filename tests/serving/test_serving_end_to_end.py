"""`waferline serve` with a real engine, in processes of their own, from the first line it prints to its exit status."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from running_server import child_of, cpu_seconds, wait_until_gone

from waferline import LLM, Client, RequestFailed, SamplingParams
from waferline.demo import MODEL_DIR

MODEL = Path(__file__).parents[1] / "fixtures" / "qwen2"
NUM_CLIENTS = 3
NUM_REQUESTS = 64

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


class ServerProcess:
    def __init__(self, *options: str) -> None:
        command = [sys.executable, "-m", "waferline.cli", "serve", str(MODEL), "--bind", "tcp://127.0.0.1:*", *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout
        self.ready_line = self.process.stdout.readline()
        self.address = self.ready_line.split()[-1]

    def end(self) -> tuple[int, str]:
        """The exit status and what was printed to standard error, once the process has ended."""
        _, errors = self.process.communicate(timeout=20)
        return self.process.returncode, errors


@pytest.fixture
def serve() -> Iterator[Callable[..., ServerProcess]]:
    servers = []

    def start(*options: str) -> ServerProcess:
        servers.append(ServerProcess(*options))
        return servers[-1]

    yield start
    for server in servers:
        server.process.kill()
        server.process.communicate()


def wait_until_idle(client: Client) -> dict[str, Any]:
    deadline = time.monotonic() + 10
    while True:
        stats = client.stats()
        if not (stats["num_requests_running"] or stats["num_requests_waiting"] or stats["requests_in_flight"]):
            return stats
        assert time.monotonic() < deadline
        time.sleep(0.01)


def random_jobs(count: int) -> list[dict[str, Any]]:
    """Requests of mixed lengths and kinds; every fifth is cancelled midway."""
    rng = random.Random(5)
    jobs = []
    for i in range(count):
        prompt = [rng.randrange(256) for _ in range(rng.randrange(1, 120))]
        params = {"max_tokens": rng.randrange(1, 100), "temperature": rng.choice([0.0, 0.8]), "seed": i}
        params |= {"n": rng.choice([1, 1, 1, 3]), "ignore_eos": True}
        job: dict[str, Any] = {
            "prompt": bytes(prompt).hex() if i % 3 == 0 else prompt,
            "params": params,
            "cancel_after": None,
        }
        if i % 5 == 0:
            params["max_tokens"] = 100
            job["cancel_after"] = rng.randrange(1, 40)
        elif i % 4 == 1:
            params["allowed_token_ids"] = rng.sample(range(256), 20)
            params |= {"bad_words": [chr(params["allowed_token_ids"][0] % 90 + 33)], "output_kind": "final_only"}
        jobs.append(job)
    return jobs


def test_requests_of_several_clients_give_the_tokens_that_each_gives_alone(
    serve: Callable[..., ServerProcess],
) -> None:
    server = serve("--max-num-seqs", "8", "--kv-cache-memory", "200KiB")  # not enough for all that run at once
    jobs = random_jobs(NUM_REQUESTS)
    with Client(server.address) as client:
        before = client.stats()
        script = str(Path(__file__).parent / "client_process.py")
        clients = [
            subprocess.Popen(
                [sys.executable, script, server.address], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            for _ in range(NUM_CLIENTS)
        ]
        for i, process in enumerate(clients):
            assert process.stdin
            json.dump(jobs[i::NUM_CLIENTS], process.stdin)
            process.stdin.close()
            process.stdin = None
        results: list[Any] = [None] * NUM_REQUESTS
        for i, process in enumerate(clients):
            results[i::NUM_CLIENTS] = json.loads(process.communicate(timeout=120)[0])
            assert process.returncode == 0
        after = wait_until_idle(client)
    assert after["num_kv_blocks"] == before["num_kv_blocks"]
    assert after["kv_cache_usage"] == before["kv_cache_usage"] == 0

    with LLM(MODEL) as llm:
        for job, result in zip(jobs, results, strict=True):
            (alone,) = llm.generate(job["prompt"], msgspec.convert(job["params"], SamplingParams))
            for tokens, reason, completion in zip(
                result["completions"], result["finish_reasons"], alone.outputs, strict=True
            ):
                expected = completion.token_ids
                assert tokens == (expected if reason != "abort" else expected[: len(tokens)])
                # a cancel may come when the last token is on its way
                assert reason == completion.finish_reason or (reason == "abort" and job["cancel_after"])


@linux
def test_a_cancelled_request_ends_and_its_neighbour_does_not(
    serve: Callable[..., ServerProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WAFERLINE_BACKEND", "reference")  # slow: the cancel comes long before the last token
    server = serve()
    params = SamplingParams(max_tokens=200, ignore_eos=True)
    with Client(server.address) as client:
        cancelled, neighbour = client.stream([1], params, request_id="cancelled"), client.stream([1], params)
        client.cancel("cancelled")
        assert len(list(cancelled)) < 200
        assert cancelled.finished
        assert cancelled.finished.finish_reasons == ["abort"]
        assert len(list(neighbour)) == 200


def test_the_ready_line_tells_what_runs_where(serve: Callable[..., ServerProcess]) -> None:
    drafts = '{"method": "ngram", "num_speculative_tokens": 3}'
    server = serve("--threads", "1", "--dtype", "f32", "--no-enable-prefix-caching", "--speculative-config", drafts)
    assert server.ready_line.startswith("waferline: serving qwen2 (f32) on ")
    with Client(server.address) as client:
        stats = client.stats()
        assert f"{stats['backend']}/{stats['level']}, 1 thread at tcp://127.0.0.1:" in server.ready_line
        assert not stats["enable_prefix_caching"]
        assert stats["num_speculative_tokens"] == 3
        with pytest.raises(RequestFailed) as raised:
            client.generate([[1] * 1000])
        assert raised.value.code == "prompt_too_long"


def test_a_drained_server_finishes_its_streams(serve: Callable[..., ServerProcess]) -> None:
    server = serve()
    with Client(server.address) as client:
        streams = [client.stream([i], SamplingParams(max_tokens=200, ignore_eos=True)) for i in range(20)]
        next(streams[-1])
        server.process.send_signal(signal.SIGTERM)
        assert [len(list(stream)) for stream in streams] == [200] * 19 + [199]
    assert server.end()[0] == 0


@linux
def test_a_killed_engine_ends_the_server_with_a_message(serve: Callable[..., ServerProcess]) -> None:
    server = serve()
    with Client(server.address) as client:
        os.kill(child_of(server.process.pid), signal.SIGSTOP)
        streams = [client.stream([1], SamplingParams(max_tokens=200)) for _ in range(3)]
        client.ping()  # answered in order, so the server has the requests
        os.kill(child_of(server.process.pid), signal.SIGKILL)
        for stream in streams:
            with pytest.raises(RequestFailed, match="SIGKILL") as raised:
                list(stream)
            assert raised.value.code == "engine_dead"
    status, errors = server.end()
    assert status == 1
    assert errors.endswith("waferline: the engine process was killed by SIGKILL\n")
    assert "Traceback" not in errors


@linux
def test_an_idle_server_uses_no_cpu(serve: Callable[..., ServerProcess]) -> None:
    server = serve()
    with Client(server.address) as client:
        client.generate("some work first")
    pids = [server.process.pid, child_of(server.process.pid)]
    time.sleep(0.5)
    before = sum(map(cpu_seconds, pids))
    time.sleep(2)
    assert sum(map(cpu_seconds, pids)) - before <= 0.02


def test_the_demo_streams_a_story_and_sums_up() -> None:
    command = [
        sys.executable,
        "-m",
        "waferline.cli",
        "demo",
        "--model",
        str(MODEL),
        "--max-tokens",
        "20",
        "--ignore-eos",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    story, _, summary = done.stdout.rpartition("\n\n")
    assert story.startswith("Once upon a time")
    lines = dict(line.split(None, 1) for line in summary.splitlines())
    assert list(lines) == ["tokens", "TTFT", "ITL", "model", "resident"]
    assert lines["tokens"].startswith("20 in ")


@pytest.mark.skipif(not MODEL_DIR.is_dir(), reason="the embedded model is not there")
def test_the_demo_with_the_embedded_model() -> None:
    command = [sys.executable, "-m", "waferline.cli", "demo", "--max-tokens", "30"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.startswith("Once upon a time")
    assert "tokens/s" in done.stdout


@linux
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGINT])
def test_the_demo_s_server_does_not_outlive_it(signum: int) -> None:
    program = (
        "import sys, time; from waferline.demo_command import running_server\n"
        "with running_server(sys.argv[1]) as address: print(address, flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", program, str(MODEL)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout
        assert process.stdout.readline()
        server = child_of(process.pid)
        engine = child_of(server)
        process.send_signal(signum)
    wait_until_gone(server)
    wait_until_gone(engine)
