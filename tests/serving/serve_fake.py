"""A server process whose engine process is the fake one; it prints its address. Run as a script."""

from __future__ import annotations

from functools import partial

from running_server import FAKE_ENGINE

from waferline.serving.engine_link import EngineConfig, EngineProcess
from waferline.serving.server import Server

if __name__ == "__main__":
    server: Server = Server(
        "tcp://127.0.0.1:*",
        EngineConfig(model="fake"),
        on_ready=lambda stats: print(server.address, flush=True),
        start_engine=partial(EngineProcess, command=FAKE_ENGINE),
    )
    server.install_signal_handlers()
    server.run()
