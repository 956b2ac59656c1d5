"""What the engine process does with its commands, and when the process that started it is gone."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import zmq
from running_server import FAKE_ENGINE

from waferline.serving.engine_link import EngineConfig, EngineProcess, GetStats, engine_command, private_directory
from waferline.serving.server import Server


@pytest.mark.parametrize("command", [engine_command(), FAKE_ENGINE], ids=["engine", "fake"])
def test_an_engine_ends_with_a_server_that_ended_before_its_first_command(command: Sequence[str]) -> None:
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
