"""What a server does to the path that it is told to bind to."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from waferline.serving.server import bound_router

Context = zmq.Context[zmq.Socket[bytes]]


@pytest.fixture
def context() -> Iterator[Context]:
    context: Context = zmq.Context()
    yield context
    context.destroy(linger=0)


def test_a_file_stays_what_it_is(tmp_path: Path, context: Context) -> None:
    file, link = tmp_path / "file", tmp_path / "link"
    file.write_text("important")
    link.symlink_to(file)
    for path in (file, link, tmp_path):
        with pytest.raises(OSError, match=f"bind: 'ipc://{path}': what is there is no socket"):
            bound_router(context, f"ipc://{path}")
    assert (file.read_text(), link.read_text()) == ("important", "important")


def test_a_server_that_runs_keeps_its_path(tmp_path: Path, context: Context) -> None:
    address = f"ipc://{tmp_path}/socket"
    with bound_router(context, address) as router, context.socket(zmq.DEALER) as client:
        with pytest.raises(OSError, match=f"bind: '{address}': a server answers there"):
            bound_router(context, address)
        client.connect(address)
        client.send(b"Hi")
        assert router.poll(10_000)


def test_a_path_that_nobody_listens_at_can_be_used(tmp_path: Path, context: Context) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    assert path.is_socket()
    for address in (f"ipc://{path}", f"ipc://{tmp_path}/another", "ipc://*"):
        bound_router(context, address).close()


def test_a_path_that_is_busy_is_left_alone(tmp_path: Path, context: Context) -> None:
    """One that is listened at, but where no further connection is taken for now."""
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.bind(str(path))
        listener.listen(0)
        client.connect(str(path))
        with pytest.raises(OSError, match=f"bind: 'ipc://{path}': .*, expected a path that is free"):
            bound_router(context, f"ipc://{path}")
