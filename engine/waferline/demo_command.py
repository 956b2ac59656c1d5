"""``waferline demo``: a server process, a client, a story as it is generated, and what it took."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

from .runtime.sampling_params import SamplingParams
from .serving.client import Client
from .serving.python_command import python_command

STOP_TIMEOUT_S = 10.0


def run(model: str, prompt: str, params: SamplingParams) -> None:
    """Stream a completion of ``prompt`` by ``model``, and print a summary.

    Raises RequestFailed where the request fails, and RuntimeError where the server does.
    """
    with running_server(model) as address, Client(address) as client:
        print(prompt, end="", flush=True)
        begin = time.perf_counter()
        arrivals = []
        for delta in client.stream(prompt, params):
            arrivals.append(time.perf_counter())
            print(delta.text, end="", flush=True)
        print("\n")
        for line in summary(begin, arrivals, client.stats()):
            print(line)


@contextmanager
def running_server(model: str, *options: str) -> Iterator[str]:
    """A server process for ``model`` on a free port of this machine, stopped in the end; its address. ``options``: of
    ``waferline serve``."""
    command = [
        *python_command("waferline.cli"),
        "serve",
        model,
        "--bind",
        "tcp://127.0.0.1:*",
        "--die-with-parent",
        *options,
    ]
    # A session of its own: a Ctrl-C reaches this process alone, which then stops the server.
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            ready_line = process.stdout.readline() if process.stdout else ""
            if not ready_line:
                raise RuntimeError("the server did not start")
            yield ready_line.split()[-1]
            process.terminate()
            if process.wait(STOP_TIMEOUT_S) != 0:
                raise RuntimeError(f"the server ended with status {process.returncode}")
        finally:
            process.kill()


def summary(begin: float, arrivals: list[float], stats: dict[str, Any]) -> Iterator[str]:
    """What a stream took that was asked for at ``begin`` and whose tokens came at ``arrivals`` (seconds)."""
    took = arrivals[-1] - begin
    yield f"tokens    {len(arrivals)} in {took:.3f} s: {len(arrivals) / took:.0f} tokens/s"
    yield f"TTFT      {milliseconds(arrivals[0] - begin)}"
    gaps = sorted(later - earlier for earlier, later in pairwise(arrivals))
    if gaps:
        yield f"ITL       p50 {milliseconds(percentile(gaps, 50))}, p99 {milliseconds(percentile(gaps, 99))}"
    backend = f"{stats['backend']}/{stats['level']}, threads: {stats['threads']}"
    yield f"model     {stats['model']}: {stats['model_bytes'] / 1e6:.1f} MB of {stats['dtype']} weights; {backend}"
    yield f"resident  {stats['residency']}"


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms"


def percentile(ascending: list[float], share: int) -> float:
    """The least of ``ascending`` values that ``share`` percent of them do not exceed."""
    return ascending[max(0, -(-len(ascending) * share // 100) - 1)]
