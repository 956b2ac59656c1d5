"""An engine core whose messages are kept, for tests that look at them."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import msgspec

from waferline.model.load import Model
from waferline.runtime.engine_core import EngineCore
from waferline.runtime.messages import Accepted, Delta, EngineOutput, Finished, GenerateRequest, RequestError
from waferline.runtime.outputs import RequestCollector, RequestOutput
from waferline.runtime.sampling_params import SamplingParams

TINY_MODEL = Path(__file__).parents[1] / "fixtures" / "qwen2"
TIMEOUT_S = 60.0


class RecordingCore:
    """An EngineCore; ``messages`` has what it said of each request, in order."""

    def __init__(self, model: Model, **options: Any) -> None:
        self.messages: dict[str, list[EngineOutput]] = {}
        self._requests: dict[str, GenerateRequest] = {}
        self._changed = threading.Condition()
        self.core = EngineCore(model, on_output=self._record, **options)

    def __enter__(self) -> RecordingCore:
        return self

    def __exit__(self, *error: object) -> None:
        self.core.close()

    def _record(self, outputs: list[EngineOutput]) -> None:
        with self._changed:
            for output in outputs:
                self.messages.setdefault(output.request_id, []).append(output)
            self._changed.notify_all()

    def slow_down(self) -> None:
        """Make what runs last long enough to be interfered with: a millisecond a token."""
        run = self.core._executor.run

        def run_slowly(program: Any, batch: Any, max_steps: int) -> Any:
            time.sleep(0.004)
            return run(program, batch, min(4, max_steps))

        self.core._executor.run = run_slowly

    def add(
        self,
        request_id: str,
        prompt: Any,
        params: Any = None,
        cache_salt: str | None = None,
        options: dict[str, Any] | None = None,
        arrival_ns: int | None = None,
        **fields: Any,
    ) -> None:
        """``options``: of RequestOptions; ``fields``: of SamplingParams, where there are no ``params``."""
        params = params or SamplingParams(**fields)
        self._requests[request_id] = GenerateRequest(
            request_id, prompt, params, **{"cache_salt": cache_salt, **(options or {})}, arrival_ns=arrival_ns
        )
        self.core.add(self._requests[request_id])

    def wait_for_deltas(self, request_id: str, count: int) -> list[Delta]:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.deltas(request_id)) >= count, TIMEOUT_S)
            return self.deltas(request_id)

    def wait_for_accepted(self, request_id: str) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self.messages.get(request_id), TIMEOUT_S)

    def deltas(self, request_id: str, index: int | None = None) -> list[Delta]:
        """The request's deltas so far, without their times; those of one completion where ``index`` is given."""
        return [
            msgspec.structs.replace(message, time_ns=0)
            for message in self.messages.get(request_id, [])
            if isinstance(message, Delta) and index in (None, message.index)
        ]

    def num_tokens(self, request_id: str) -> int:
        """Of its deltas so far."""
        return sum(len(delta.token_ids) for delta in self.deltas(request_id))

    def wait(self, request_id: str) -> Finished | RequestError:
        """The request's last message."""

        def last() -> Any:
            message = self.messages.get(request_id, [None])[-1]
            return message if isinstance(message, Finished | RequestError) else None

        with self._changed:
            assert self._changed.wait_for(last, TIMEOUT_S), f"{request_id} has no end"
            return last()

    def finish(self, request_id: str) -> RequestOutput:
        """The output of a request that ends well."""
        end = self.wait(request_id)
        assert isinstance(end, Finished), end
        request = self._requests[request_id]
        collector = RequestCollector(request_id, request.prompt, request.params)
        for message in self.messages[request_id]:
            collector.add(message)
        return collector.result()

    def run(self, prompt: Any, **fields: Any) -> RequestOutput:
        """The output of one request with these parameters."""
        request_id = f"run-{len(self.messages)}"
        self.add(request_id, prompt, **fields)
        return self.finish(request_id)

    def error(self, request_id: str) -> tuple[str, str]:
        """Code and message of a request that fails."""
        end = self.wait(request_id)
        assert isinstance(end, RequestError), end
        return end.code, end.message

    def check_protocol(self, request_id: str) -> None:
        """Accepted, deltas and Finished in this order, one delta for each token and one for what an abort lets out, counts
        that agree."""
        accepted, *deltas, finished = self.messages[request_id]
        assert isinstance(accepted, Accepted)
        assert isinstance(finished, Finished)
        assert finished.num_prompt_tokens == len(accepted.prompt_token_ids)
        assert finished.num_output_tokens == sum(len(delta.token_ids) for delta in deltas)
        assert all(isinstance(delta, Delta) for delta in deltas)
        for index, reason in enumerate(finished.finish_reasons):
            own = self.deltas(request_id, index)
            assert all(len(delta.token_ids) == 1 for delta in own[: -1 if reason == "abort" else None])
            assert [delta.finish_reason for delta in own[:-1]] == [None] * (len(own) - 1)
            assert reason == "abort" or own[-1].finish_reason == reason


class Gate:
    """Lets the runs of an engine begin one by one; ``spans`` and ``num_steps`` tell of each that has ended."""

    def __init__(self, core: EngineCore) -> None:
        self.spans: list[list[tuple[int, ...]]] = []
        self.num_steps: list[int] = []
        self._arrived, self._opened = threading.Semaphore(0), threading.Semaphore(0)
        self._is_open = False
        self._run = core._executor.run
        core._executor.run = self._run_when_let  # type: ignore[method-assign]

    def _run_when_let(self, program: Any, batch: Any, max_steps: int) -> Any:
        self._arrived.release()
        assert self._is_open or self._opened.acquire(timeout=TIMEOUT_S)
        result = self._run(program, batch, max_steps)
        self.spans.append(batch.tolist())
        self.num_steps.append(result.num_steps)
        return result

    def wait_for_run(self) -> None:
        """Until a run is about to begin."""
        assert self._arrived.acquire(timeout=TIMEOUT_S)

    def let_one(self) -> None:
        """Let the run that is about to begin go on, and wait for the next."""
        self._opened.release()
        self.wait_for_run()

    def open(self) -> None:
        """Let all runs go on."""
        self._is_open = True
        self._opened.release()


def hold_long_runs(core: EngineCore) -> None:
    """Let a run of many steps begin only when the engine has been woken, and so take one."""
    run, table = core._executor.run, core._executor.sequences

    def run_when_woken(program: Any, batch: Any, max_steps: int) -> Any:
        while max_steps > 1 and not table.wake[0]:
            time.sleep(0.001)
        return run(program, batch, max_steps)

    core._executor.run = run_when_woken  # type: ignore[method-assign]
