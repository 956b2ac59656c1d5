"""A server process whose engine process is the fake one; it prints its address when it is ready. Run as a script, with the
name of a model where that is another than "fake"."""

from __future__ import annotations

import sys
from functools import partial

from running_server import FAKE_ENGINE

from waferline.serving import engine_link
from waferline.serving.engine_link import EngineConfig, EngineProcess
from waferline.serving.server import Server

if __name__ == "__main__":
    server: Server = Server(
        "tcp://127.0.0.1:*",
        EngineConfig(model=sys.argv[1] if len(sys.argv) > 1 else "fake"),
        on_ready=lambda stats: print(server.address, flush=True),
        start_engine=partial(EngineProcess, command=FAKE_ENGINE),
    )
    server.install_signal_handlers()
    engine_link.CLOSE_TIMEOUT_S = 1.0
    server.run()
