"""Servers and clients that end with the test."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from running_server import RawClient, RunningServer


@pytest.fixture
def start_server() -> Iterator[Callable[..., RunningServer]]:
    servers = []

    def start(model: str = "fake", **options: Any) -> RunningServer:
        servers.append(RunningServer(model, **options))
        return servers[-1]

    yield start
    for server in servers:
        if server.is_running:
            server.signal(signal.SIGINT)
        server.join()


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    """One server for the tests of a module that do not end it."""
    running = RunningServer()
    assert running.ready.wait(20)
    yield running
    running.signal(signal.SIGINT)
    running.join()


@pytest.fixture
def connect() -> Iterator[Callable[..., RawClient]]:
    clients = []

    def connect_to(server: RunningServer, **options: Any) -> RawClient:
        clients.append(RawClient(server.address, **options))
        return clients[-1]

    yield connect_to
    for client in clients:
        client.socket.close(linger=0)
