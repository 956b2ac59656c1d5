"""An engine process without a model: its prompts say what happens. Run as a script by the tests' servers.

"echo ..." and lists of ids: ``max_tokens`` tokens, at once; "heavy ...": the same after a second for which ``add``
takes; "bulky": the same, with a kilobyte of text each; "slow ..." and "sleepy ...": one every 10 ms or 1.5 s; "refuse":
an error instead; "busy": that there is too much to do, naming the request's options; "arrival": the same, naming when
it arrived; "die": the process ends by SIGKILL after three tokens; "halt": the engine reports that it has stopped. A
config whose model is "broken" does not load, and "crash" ends the process while loading; "stubborn" goes on loading
when it is told to end, and sends its server SIGINT. As many tokens are said to be cached as the cache salt has
characters.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any

from waferline.runtime.errors import ENGINE_DEAD, INVALID_REQUEST, OVERLOADED, PROMPT_TOO_LONG
from waferline.runtime.messages import Accepted, Delta, EngineOutput, Finished, GenerateRequest, RequestError
from waferline.serving import engine_process
from waferline.serving.engine_link import EngineConfig
from waferline.serving.entrance import OnOutput

STEP_S = {"slow": 0.01, "sleepy": 1.5}


@dataclass
class Running:
    request: GenerateRequest
    num_tokens: int = 0
    is_aborted: bool = False

    @property
    def kind(self) -> str:
        prompt = self.request.prompt
        return prompt.partition(" ")[0] if isinstance(prompt, str) else "echo"


class FakeEngine:
    """Steps all running requests in turn, on a thread of its own, as an EngineCore does."""

    def __init__(self, config: EngineConfig, on_output: OnOutput) -> None:
        if config.model == "broken":
            raise ValueError("config.json: hidden_size: 'x', expected an integer")
        if config.model == "crash":
            os.kill(os.getpid(), signal.SIGKILL)
        if config.model == "stubborn":
            print("loading", flush=True)
            with socket.socket(fileno=os.dup(int(sys.argv[2]))) as lifeline:
                lifeline.recv(1)
            os.kill(os.getppid(), signal.SIGINT)
            signal.pause()
        self._config = config
        self._on_output = on_output
        self._running: dict[str, Running] = {}
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._loop)
        self._thread.start()

    def add(self, request: GenerateRequest) -> None:
        running = Running(request)
        if isinstance(request.prompt, list) and min(request.prompt) < 0:  # as an engine checks them
            return self._on_output([RequestError(request.request_id, INVALID_REQUEST, "prompt: expected token ids")])
        if running.kind == "refuse":
            return self._on_output([RequestError(request.request_id, PROMPT_TOO_LONG, "prompt: too long")])
        if running.kind == "busy":
            options = f"{request.priority} {request.tenant} {request.deadline_ms} {request.queue_timeout_ms}"
            return self._on_output([RequestError(request.request_id, OVERLOADED, options, 70)])
        if running.kind == "arrival":
            return self._on_output([RequestError(request.request_id, OVERLOADED, str(request.arrival_ns))])
        if running.kind == "heavy":
            time.sleep(1)
        if running.kind == "halt":
            return self._on_output([RequestError(request.request_id, ENGINE_DEAD, "the engine stopped")])
        self._on_output([Accepted(request.request_id, prompt_ids(request.prompt), request.params.seed or 0)])
        with self._changed:
            self._running[request.request_id] = running
            self._changed.notify()

    def abort(self, request_id: str) -> None:
        with self._changed:
            if request_id in self._running:
                self._running[request_id].is_aborted = True

    def stats(self) -> dict[str, Any]:
        return {
            "model": self._config.model,
            "num_running": len(self._running),
            "num_requests_waiting": 0,
            "oldest_wait_seconds": 0.0,
            "request_errors_total": {},
        }

    def close(self) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()

    def _loop(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._running or self._is_closed)
                if self._is_closed:
                    return
                running = list(self._running.values())
            self._on_output([output for one in running for output in self._step(one)])
            time.sleep(max(STEP_S.get(one.kind, 0) for one in running))

    def _step(self, running: Running) -> list[EngineOutput]:
        request = running.request
        name, params = request.request_id, request.params
        if running.is_aborted:
            return [self._end(running, "abort")]
        i = running.num_tokens
        running.num_tokens += 1
        if running.kind == "die" and i == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        is_last = running.num_tokens == (params.max_tokens or 16)
        reason = "length" if is_last else None
        deltas: list[EngineOutput] = [
            Delta(name, index, [i], token_text(i, running.kind), reason, time_ns=time.monotonic_ns())
            for index in range(params.n)
        ]
        return [*deltas, self._end(running, "length")] if is_last else deltas

    def _end(self, running: Running, reason: str) -> Finished:
        request = running.request
        with self._changed:
            del self._running[request.request_id]
        num_prompt_tokens = len(prompt_ids(request.prompt))
        n = request.params.n
        num_cached_tokens = len(request.cache_salt or "")
        return Finished(request.request_id, [reason] * n, num_prompt_tokens, n * running.num_tokens, num_cached_tokens)


def prompt_ids(prompt: str | list[int]) -> list[int]:
    return list(prompt.encode()) if isinstance(prompt, str) else prompt


def token_text(token_id: int, kind: str) -> str:
    return "x" * 1024 if kind == "bulky" else f"{token_id} "


if __name__ == "__main__":
    sys.exit(engine_process.main(FakeEngine))
