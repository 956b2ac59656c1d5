"""One engine in a process of its own, so that thread pools do not meet: `python -m benches.peers.worker ENGINE SETUP`.

Lines of JSON: requests on standard input (``[method, *arguments]`` of a Runner), on the original standard output first
``{"ready": settings}`` or ``{"absent": why}``, then ``{"result": ...}`` for each. What libraries print goes to standard
error.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from .runner import Absent, Setup


def main() -> None:
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def reply(**message: Any) -> None:
        print(json.dumps(message), file=replies)

    engine, fields = sys.argv[1], json.loads(sys.argv[2])
    setup = Setup(**{**fields, "model": Path(fields["model"]), "cache": Path(fields["cache"])})
    try:
        runner = importlib.import_module(f".{engine}_peer", __package__).prepare(setup)
    except (ImportError, Absent) as error:
        reply(absent=f"{error}")
        return
    reply(ready=runner.settings)
    for line in sys.stdin:
        method, *arguments = json.loads(line)
        reply(result=getattr(runner, method)(*arguments))


if __name__ == "__main__":
    main()
