"""Requests on a client's connection: one whose tokens are streamed, or several that are waited for."""

from __future__ import annotations

from collections import deque

from ..runtime.errors import RequestFailed
from ..runtime.messages import Accepted, Delta, EngineOutput, Finished
from ..runtime.outputs import RequestCollector, RequestOutput, result_of_prompt
from ..runtime.prompts import Prompt, Prompts, pair_prompts
from ..runtime.request_options import RequestOptions
from ..runtime.sampling_params import SamplingParams
from .connection import Connection
from .session import Inbox, checked

MAX_IN_FLIGHT = 1024  # completions of one batch; by default a server lets twice as many wait


class Call:
    """A request on a connection; closed or dropped before its end, it is cancelled.

    ``accepted`` is set before the first delta, ``finished`` at the end.
    """

    _is_over = True  # until it is sent

    def __init__(
        self,
        connection: Connection,
        prompt: Prompt,
        params: SamplingParams | None,
        request_id: str | None,
        options: RequestOptions | None,
        inbox: Inbox[EngineOutput],
    ) -> None:
        self._connection = connection
        self._inbox = inbox
        self.accepted: Accepted | None = None
        self.finished: Finished | None = None
        params = params or SamplingParams()
        self.request_id, frame = connection.prepare(prompt, params, inbox, request_id, options)
        self._is_over = False
        try:
            connection.send(frame)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Cancel the request if it has not ended; nothing more comes of it, to whoever waits for it neither."""
        if not self._is_over:
            self._is_over = True
            self._inbox.end()
            self._connection.withdraw(self.request_id, self._inbox)

    def __del__(self) -> None:
        if not self._is_over:
            self._is_over = True
            self._connection.drop(self.request_id, self._inbox)

    def _take_delta(self) -> Delta | None:
        """The next answer if it is a delta; what else it says is noted. Raises RequestFailed where it is an error.

        None as well where the request has ended while this was waited for.
        """
        if self._is_over:
            return None
        output = self._inbox.take()
        if isinstance(output, Delta):
            return output
        if isinstance(output, Accepted):
            self.accepted = output
            return None
        self.close()  # where messages were lost, the server goes on
        self.finished = checked(output)
        return None


class Batch:
    """Several requests on a connection, not too many at a time; if one fails, the others are cancelled."""

    def __init__(
        self,
        connection: Connection,
        prompts: Prompts,
        params: SamplingParams | list[SamplingParams] | None,
        options: RequestOptions,
        inbox: Inbox[EngineOutput],
    ) -> None:
        self._connection = connection
        self._options = options
        self._inbox = inbox
        self._waiting = deque(enumerate(pair_prompts(prompts, params)))
        self._in_flight: dict[str, tuple[int, RequestCollector]] = {}
        self._num_in_flight = 0  # completions
        self._results: dict[int, RequestOutput] = {}

    @property
    def is_done(self) -> bool:
        return not self._waiting and not self._in_flight

    def send(self) -> None:
        """Send what may be in flight now. Raises RequestFailed, naming the prompt's index, for one that cannot be."""
        while self._waiting:
            index, (prompt, params) = self._waiting[0]
            n: object = params.n  # of another type where it was assigned since it was checked: the server will tell
            num_completions = n if isinstance(n, int) else 1
            if self._in_flight and self._num_in_flight + num_completions > MAX_IN_FLIGHT:
                return
            self._waiting.popleft()
            try:
                request_id, frame = self._connection.prepare(prompt, params, self._inbox, options=self._options)
                self._in_flight[request_id] = index, RequestCollector(request_id, prompt, params)
                self._num_in_flight += num_completions
                self._connection.send(frame)
            except RequestFailed as error:
                raise RequestFailed(error.code, f"prompts[{index}]: {error.message}") from None

    def take(self) -> None:
        """Take one output from the inbox. Raises RequestFailed, naming the prompt's index, where one has failed."""
        output = self._inbox.take()
        index, collector = self._in_flight[output.request_id]
        collector.add(output)
        if collector.is_done:
            del self._in_flight[output.request_id]
            self._num_in_flight -= collector.num_completions
            self._results[index] = result_of_prompt(collector, index)

    def results(self) -> list[RequestOutput]:
        """The outputs, in the order of the prompts, once all are done."""
        return [self._results[index] for index in range(len(self._results))]

    def close(self) -> None:
        """Cancel what has not ended."""
        for request_id in self._in_flight:
            self._connection.withdraw(request_id, self._inbox)
