"""Addresses: what a client may connect to, and what a server binds to, this machine's own unless told otherwise."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import stat

DEFAULT_ADDRESS = "tcp://127.0.0.1:5757"


def check_address(address: str) -> None:
    """Raise ValueError unless ``address`` is one that a client can connect to."""
    match = re.fullmatch(r"ipc://.+|tcp://(?:[^:\[\]\s]+|\[[0-9A-Fa-f:.]+\]):(\d{1,5})", address)
    if not match or not 0 < int(match[1] or 1) < 65536:
        raise ValueError(f"address: {address!r}, expected tcp://HOST:PORT or ipc://PATH")


def check_bind_address(address: str, allow_remote: bool) -> None:
    """Raise ValueError unless ``address`` can be bound to, and, without ``allow_remote``, reached from here only."""
    if re.fullmatch(r"ipc://.+", address):
        return
    match = re.fullmatch(r"tcp://(\*|[^:\[\]]+|\[[0-9A-Fa-f:.]+\]):(\*|\d{1,5})", address)
    if not match or (match[2] != "*" and int(match[2]) > 65535):
        raise ValueError(f"bind: {address!r}, expected tcp://ADDRESS:PORT (port * for any free one) or ipc://PATH")
    host = match[1]
    if not allow_remote and not _is_loopback(host):
        raise ValueError(
            f"bind: {address!r} can be reached from other machines, and whoever reaches it may use it; "
            "expected a loopback address such as 127.0.0.1, or --allow-remote"
        )


def check_that_path_is_free(address: str) -> None:
    """Raise OSError where ``address`` is the path of what is no socket, or of one that somebody listens at: ZeroMQ would
    put its own in the place of either. What a server has left behind that was killed may be replaced."""
    path = address.removeprefix("ipc://")
    if path == address or path == "*" or path.startswith("@"):  # the latter are no files
        return
    try:
        is_socket = stat.S_ISSOCK(os.lstat(path).st_mode)
    except OSError:  # nothing is there; whether something can be is found out by binding
        return
    if not is_socket:
        raise OSError(f"bind: {address!r}: what is there is no socket, expected a path that is free")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return
        except OSError as error:
            raise OSError(f"bind: {address!r}: {error.strerror}, expected a path that is free") from None
    raise OSError(f"bind: {address!r}: a server answers there, expected a path that is free")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:  # * or a name
        return host in ("localhost", "lo")
