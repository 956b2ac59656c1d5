"""examples/zmq_client.py against a server."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from running_server import RunningServer

EXAMPLE = Path(__file__).parents[2] / "examples" / "zmq_client.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(EXAMPLE), *arguments], capture_output=True, text=True, timeout=60)


def test_it_streams_a_completion(server: RunningServer) -> None:
    done = run("echo", server.address)
    assert (done.returncode, done.stdout) == (0, "".join(f"{i} " for i in range(200)))
    assert "[200 tokens, length]" in done.stderr


def test_it_shows_an_error(server: RunningServer) -> None:
    done = run("refuse", server.address)
    assert (done.returncode, done.stderr) == (1, "prompt_too_long: prompt: too long\n")


def test_it_explains_itself() -> None:
    assert run().returncode == 2
