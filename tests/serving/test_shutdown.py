"""How a server ends: drained, stopped, or because its engine has died; and that nothing outlives it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from running_server import RawClient, RunningServer, child_of, cpu_seconds, is_alive, wait_until_gone

Start = Callable[..., RunningServer]
Connect = Callable[..., RawClient]


def start_slow_stream(client: RawClient, max_tokens: int) -> None:
    client.send(type="generate", id="running", prompt="slow", params={"max_tokens": max_tokens})
    client.receive_until("tokens")


@pytest.fixture
def process() -> Iterator[subprocess.Popen[str]]:
    """A server process with the fake engine."""
    script = Path(__file__).parent / "serve_fake.py"
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def test_sigterm_drains(start_server: Start, connect: Connect) -> None:
    server = start_server()
    client, newcomer = connect(server), connect(server)
    start_slow_stream(client, max_tokens=30)
    server.signal(signal.SIGTERM)
    newcomer.send(type="ping")  # answered while draining
    assert newcomer.receive()["type"] == "pong"
    newcomer.send(type="generate", id="new", prompt="echo")
    error = newcomer.receive()
    assert (error["id"], error["code"]) == ("new", "shutting_down")
    finished = client.receive_until("finished", "error")[-1]
    assert finished["finish_reasons"] == ["length"]
    server.join()
    assert server.failure is None


def test_an_idle_server_drains_at_once(start_server: Start) -> None:
    server = start_server()
    assert server.ready.wait(20)
    server.signal(signal.SIGTERM)
    server.join(5)


@pytest.mark.parametrize(
    "signals", [[signal.SIGINT], [signal.SIGTERM, signal.SIGTERM], [signal.SIGTERM, signal.SIGINT]]
)
def test_stopping_ends_every_request_with_an_error(start_server: Start, connect: Connect, signals: list[int]) -> None:
    server = start_server()
    client = connect(server)
    start_slow_stream(client, max_tokens=100_000)
    for signum in signals:
        server.signal(signum)
    error = client.receive_until("finished", "error")[-1]
    assert (error["id"], error["code"]) == ("running", "shutting_down")
    server.join(5)
    assert server.failure is None


def test_draining_has_a_time_bound(start_server: Start, connect: Connect) -> None:
    server = start_server(drain_timeout=0.1)
    client = connect(server)
    start_slow_stream(client, max_tokens=100_000)
    server.signal(signal.SIGTERM)
    assert client.receive_until("finished", "error")[-1]["code"] == "shutting_down"
    server.join(5)


def test_a_drain_waits_for_a_client_that_reads_slowly(
    start_server: Start, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also for what it has left in ZeroMQ's hands."""
    monkeypatch.setattr("waferline.serving.server.LINGER_S", 0)
    server = start_server()
    client = connect(server, rcvhwm=10, rcvbuf=4096)
    client.send(type="generate", id="a", prompt="bulky", params={"max_tokens": 6000})  # more than buffers hold
    messages = client.receive_until("tokens")
    deadline = time.monotonic() + 20
    while server.server._streams:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    server.signal(signal.SIGTERM)
    while server.server._outbox:
        messages += [client.receive() for _ in range(200)]
        time.sleep(0.06)  # in which the server hands on what there is room for
    time.sleep(0.3)  # in which a server that does not wait would end
    messages += client.receive_until("finished")
    assert [message["seq"] for message in messages if message["type"] == "tokens"] == list(range(6000))
    server.join()


def test_stopping_does_not_wait_for_slow_readers(
    start_server: Start, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("waferline.serving.server.LINGER_S", 0)
    server = start_server(drain_timeout=600)
    client = connect(server, rcvhwm=10, rcvbuf=4096)
    client.send(type="generate", id="a", prompt="bulky", params={"max_tokens": 20_000})  # more than buffers hold
    deadline = time.monotonic() + 20
    while not server.server._outbox:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    for signum in (signal.SIGTERM, signal.SIGINT):
        server.signal(signum)
    server.join(10)
    assert not server.is_running
    assert server.failure is None


def test_a_dead_engine_is_told_to_every_request_and_ends_the_server(start_server: Start, connect: Connect) -> None:
    server = start_server()
    client, other = connect(server), connect(server)
    start_slow_stream(other, max_tokens=100_000)
    client.send(type="generate", id="a", prompt="die")
    client.send(type="generate", id="b", prompt="slow", params={"max_tokens": 100_000})
    errors = [client.receive_until("error")[-1], client.receive_until("error")[-1]]
    assert sorted((error["id"], error["code"]) for error in errors) == [("a", "engine_dead"), ("b", "engine_dead")]
    assert other.receive_until("error")[-1]["code"] == "engine_dead"
    server.join()
    assert "SIGKILL" in str(server.failure)


@linux
@pytest.mark.timeout(60)
def test_a_server_whose_engine_is_killed_ends_however_much_it_is_asked(process: subprocess.Popen[str]) -> None:
    assert process.stdout
    address = process.stdout.readline().strip()
    client = RawClient(address, sndhwm=0, rcvhwm=0)
    start_slow_stream(client, max_tokens=100_000)
    engine = child_of(process.pid)
    process.send_signal(signal.SIGSTOP)  # it finds the messages and the engine's end at once
    os.kill(engine, signal.SIGKILL)
    wait_until_gone(engine)
    for _ in range(2000):
        client.send(type="cancel", id="running")  # each of which is handed on to the engine
    process.send_signal(signal.SIGCONT)
    while (error := client.receive_until("error")[-1])["code"] == "unknown_request":
        pass
    assert (error["id"], error["code"]) == ("running", "engine_dead")
    client.socket.close()
    assert process.wait(20) not in (0, None)


def test_an_engine_that_has_stopped_ends_the_server(start_server: Start, connect: Connect) -> None:
    server = start_server()
    client = connect(server)
    start_slow_stream(client, max_tokens=100_000)
    client.send(type="generate", id="a", prompt="halt")
    errors = [client.receive_until("error")[-1], client.receive_until("error")[-1]]
    assert [(error["id"], error["code"]) for error in errors] == [("a", "engine_dead"), ("running", "engine_dead")]
    server.join()
    assert str(server.failure) == "the engine stopped"


@pytest.mark.parametrize(("model", "words"), [("broken", "hidden_size"), ("crash", "SIGKILL")])
def test_a_model_that_does_not_load_ends_the_server(
    start_server: Start, connect: Connect, model: str, words: str
) -> None:
    server = start_server(model)
    client = connect(server)
    server.join()
    assert words in str(server.failure)
    assert not server.ready.is_set()
    del client


def test_requests_that_come_while_the_model_loads_are_served(start_server: Start, connect: Connect) -> None:
    server = start_server()
    client = connect(server)
    client.send(type="ping")
    client.send(type="generate", id="a", prompt="echo", params={"max_tokens": 2})
    assert client.receive_until("finished")[0]["type"] == "pong"


@linux
def test_the_engine_process_dies_with_the_server(process: subprocess.Popen[str]) -> None:
    assert process.stdout
    assert process.stdout.readline().startswith("tcp://127.0.0.1:")
    engine = child_of(process.pid)
    for signum in (signal.SIGINT, signal.SIGTERM):
        os.kill(engine, signum)  # not its business
    time.sleep(0.05)
    assert is_alive(engine)
    process.kill()
    wait_until_gone(engine)


@linux
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_server_process_ends_with_status_0_and_takes_its_engine_along(
    process: subprocess.Popen[str], signum: int
) -> None:
    assert process.stdout
    process.stdout.readline()
    engine = child_of(process.pid)
    process.send_signal(signum)
    assert process.wait(10) == 0
    assert not is_alive(engine)


@linux
def test_a_signal_more_leaves_nothing_behind() -> None:
    """SIGINT that comes while the server waits for its engine to end, which is busy loading and does not."""
    script = Path(__file__).parent / "serve_fake.py"
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(script), "stubborn"]
        environment = {**os.environ, "TMPDIR": folder}
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
            assert process.stderr
            assert process.stderr.readline() == "loading\n"
            assert len(os.listdir(folder)) == 1
            engine = child_of(process.pid)
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
        assert os.listdir(folder) == []
        assert not is_alive(engine)


@linux
def test_an_idle_server_uses_no_cpu(process: subprocess.Popen[str]) -> None:
    assert process.stdout
    process.stdout.readline()
    pids = [process.pid, child_of(process.pid)]
    before = sum(map(cpu_seconds, pids))
    time.sleep(2)
    assert sum(map(cpu_seconds, pids)) - before <= 0.02
