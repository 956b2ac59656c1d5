"""What becomes of a client that nobody closes: dropped, found by the garbage collection, left at the program's end."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable

from running_server import RunningServer

from waferline.runtime.sampling_params import SamplingParams
from waferline.serving.async_client import AsyncClient
from waferline.serving.client import Client

LONG = SamplingParams(max_tokens=100_000)
PROGRAM_TIMEOUT_S = 60  # far beyond what a program takes that does not hang


def run_program(program: str, *arguments: str) -> str:
    """What ``program`` prints; it is to end by itself, without a complaint."""
    command = [sys.executable, "-c", program, *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PROGRAM_TIMEOUT_S)
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout


def wait_until(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def num_threads() -> int:
    """Of this process, ZeroMQ's too (Linux)."""
    return len(os.listdir("/proc/self/task"))


GARBAGE = """
import asyncio, gc, sys
from waferline import AsyncClient, Client, SamplingParams
LONG = SamplingParams(max_tokens=100_000)

def one_of_a_cycle():
    client = Client(sys.argv[1])
    client.ping()
    client.itself = client

async def of_a_loop_that_ended():
    await AsyncClient(sys.argv[1]).ping()

async def whose_stream_is_garbage_with_it():
    client = AsyncClient(sys.argv[1])
    stream = client.stream("slow", LONG)
    await anext(stream)
    client.stream = stream

for _ in range(10):
    one_of_a_cycle()
    asyncio.run(of_a_loop_that_ended())
    asyncio.run(whose_stream_is_garbage_with_it())
    gc.collect()
print("collected")
"""


def test_a_client_that_is_garbage_holds_nothing_up(server: RunningServer) -> None:
    assert run_program(GARBAGE, server.address) == "collected\n"


LEFT_AT_THE_END = """
import asyncio, sys
from waferline import AsyncClient, Client, SamplingParams
LONG = SamplingParams(max_tokens=100_000)

async def main():
    global async_client, async_stream
    async_client = AsyncClient(sys.argv[1])
    async_stream = async_client.stream("slow", LONG)
    await anext(async_stream)

asyncio.run(main())
client = Client(sys.argv[1])
stream = client.stream("slow", LONG)
next(stream)
"""


def test_a_program_ends_quietly_that_leaves_its_clients_open(server: RunningServer) -> None:
    assert run_program(LEFT_AT_THE_END, server.address) == ""
    with Client(server.address) as client:
        wait_until(lambda: client.stats()["num_running"] == 0)
        assert client.stats()["num_running"] == 0


def test_an_async_client_that_is_dropped_lets_go_of_its_loop(server: RunningServer) -> None:
    async def main() -> None:
        num_threads_before = num_threads()
        for _ in range(3):
            client = AsyncClient(server.address)
            await client.ping()
            stream = client.stream("slow", LONG)
            await anext(stream)
            del client, stream
        wait_until(lambda: num_threads() <= num_threads_before)
        assert num_threads() <= num_threads_before

    asyncio.run(main())


def test_a_stream_outlives_the_name_of_its_client(server: RunningServer) -> None:
    async def main() -> None:
        stream = AsyncClient(server.address).stream("slow", SamplingParams(max_tokens=5))
        assert len([delta async for delta in stream]) == 5

    asyncio.run(main())


FORKED = """
import asyncio, gc, os, sys
from contextlib import closing
from waferline import AsyncClient, Client, SamplingParams

def attempt(use):
    try:
        use()
    except RuntimeError as error:
        print(error)

def in_a_child(act):
    sys.stdout.flush()
    child = os.fork()
    if not child:
        act()
        sys.exit()
    assert os.waitpid(child, 0) == (child, 0)

def use_all():
    attempt(client.ping)
    attempt(client.stats)
    attempt(lambda: client.generate("echo"))
    attempt(lambda: list(stream))
    attempt(lambda: asyncio.run(async_client.ping()))

def drop_all():
    global client, stream, async_client
    stream.close()
    client.close()
    del client, stream, async_client
    gc.collect()

print(os.getpid())
client = Client(sys.argv[1])
stream = client.stream("slow", SamplingParams(max_tokens=50))
async_client = AsyncClient(sys.argv[1])
asyncio.run(async_client.ping())
for act in (use_all, drop_all, lambda: None):
    in_a_child(act)
assert len(list(stream)) == 50 and client.ping() and asyncio.run(async_client.ping())
"""


def test_a_client_is_of_no_use_and_no_harm_after_a_fork(server: RunningServer) -> None:
    pid, *errors = run_program(FORKED, server.address).splitlines()
    assert errors == [f"the client is process {pid}'s: after a fork, make another one"] * 5
