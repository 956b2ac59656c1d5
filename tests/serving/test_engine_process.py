"""What the engine process does with its commands, and when the process that started it is gone."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import zmq
from running_server import FAKE_ENGINE

from waferline.runtime.messages import EngineOutput, GenerateRequest, RequestError
from waferline.runtime.prompts import LONG_PROMPT
from waferline.runtime.sampling_params import SamplingParams
from waferline.serving.engine_link import MODULE_COMMAND, EngineConfig, EngineProcess, GetStats, private_directory
from waferline.serving.engine_process import Entrance
from waferline.serving.server import Server

LONG = "x" * LONG_PROMPT


class SlowTokenizer:
    """An engine that takes long prompts up when it is told to; what it is asked for, in order."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.asked: list[str] = []

    def add(self, request: GenerateRequest) -> None:
        if len(request.prompt) >= LONG_PROMPT:
            assert self.go_on.wait(10)
        self.asked.append(f"add {request.request_id}")

    def abort(self, request_id: str) -> None:
        self.asked.append(f"abort {request_id}")

    def stats(self) -> Any: ...

    def close(self) -> None: ...


def request(name: str, prompt: str | list[int]) -> GenerateRequest:
    return GenerateRequest(name, prompt, SamplingParams())


def test_a_long_prompt_holds_up_neither_other_requests_nor_cancellations() -> None:
    engine = SlowTokenizer()
    with closing(Entrance(engine, lambda outputs: None)) as entrance:
        entrance.add(request("long", LONG))
        entrance.add(request("short", "Hi"))
        entrance.add(request("ids", [1, 2]))
        entrance.abort("short")
        entrance.abort("long")  # which has not been taken up
        assert engine.asked == ["add short", "add ids", "abort short"]
        engine.go_on.set()
    assert engine.asked[3:] == ["add long", "abort long"]


def test_a_long_prompt_that_is_not_taken_up_is_answered() -> None:
    class Failing(SlowTokenizer):
        def add(self, request: GenerateRequest) -> None:
            raise MemoryError

    outputs: list[EngineOutput] = []
    with closing(Entrance(Failing(), outputs.extend)) as entrance:
        entrance.add(request("long", LONG))
    assert outputs == [RequestError("long", "internal", "the request could not be taken up: MemoryError()")]


@pytest.mark.parametrize("command", [MODULE_COMMAND, FAKE_ENGINE], ids=["engine", "fake"])
def test_an_engine_ends_with_a_server_that_ended_before_its_first_command(command: tuple[str, ...]) -> None:
    directory = private_directory()
    lifeline, far_end = socket.socketpair()
    with far_end:
        arguments = [*command, directory, str(far_end.fileno())]
        process = subprocess.Popen(arguments, pass_fds=[far_end.fileno()], start_new_session=True)
    lifeline.close()
    assert process.wait(60) == 0
    assert not Path(directory).exists()


@pytest.mark.timeout(30)  # a send that waits for a process that is gone waits for ever
def test_commands_to_an_engine_that_has_died_hold_up_nobody() -> None:
    with zmq.Context[zmq.Socket[bytes]]() as context:
        engine = EngineProcess(context, EngineConfig(model="fake"), (sys.executable, "-c", ""))
        assert engine.lifeline.recv(1) == b""
        for _ in range(5000):  # more than a ZeroMQ queue has room for unless told otherwise
            engine.send(GetStats())
        assert engine.describe_end() == "ended with status 0"
        engine.close()


def test_a_config_that_cannot_be_sent_starts_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", None)
    with pytest.raises(OverflowError):
        Server("tcp://127.0.0.1:*", EngineConfig(model="fake", max_num_seqs=10**30))


@pytest.mark.parametrize("timeout", [-1.0, float("nan"), float("inf")])
def test_a_drain_takes_a_number_of_seconds(timeout: float) -> None:
    with pytest.raises(ValueError, match=f"drain_timeout: {timeout}, expected"):
        Server("tcp://127.0.0.1:*", EngineConfig(model="fake"), drain_timeout=timeout)
