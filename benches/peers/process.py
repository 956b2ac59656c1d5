"""The driver's side of a worker: start it, ask it, end it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .runner import Absent, Setup

REPOSITORY = Path(__file__).parents[2]
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class PeerProcess:
    """An engine's runner in another process; its standard error goes to ``log``."""

    def __init__(self, engine: str, setup: Setup, log: Path) -> None:
        """Start it and wait until the model is loaded. Raises Absent where the engine cannot be measured here."""
        self.engine, self.variant, self._log = engine, setup.variant, log
        environment = dict(os.environ) | dict.fromkeys(THREAD_VARIABLES, str(setup.threads))
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", f"{__package__}.worker", engine, json.dumps(asdict(setup), default=str)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                cwd=REPOSITORY,
                env=environment,
            )
        message = self._receive()
        if "absent" in message:
            self.close()
            raise Absent(message["absent"])
        self.settings: str = message["ready"]

    def ask(self, method: str, *arguments: Any) -> Any:
        """Call a Runner's method. Raises Absent where the process ends instead of answering."""
        if self._process.stdin is None or self._process.poll() is not None:
            raise Absent(self._ending())
        print(json.dumps([method, *arguments]), file=self._process.stdin, flush=True)
        return self._receive()["result"]

    def _receive(self) -> dict[str, Any]:
        line = self._process.stdout.readline() if self._process.stdout else ""
        if not line:
            raise Absent(self._ending())
        message: dict[str, Any] = json.loads(line)
        return message

    def _ending(self) -> str:
        status = self._process.wait()
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return f"its process ended with {status}: {lines[-1] if lines else 'no message'}"

    def close(self) -> None:
        if self._process.stdin:
            self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()
