"""Client: a server's tokens in ordinary, synchronous code."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ..runtime.messages import Delta, EngineOutput
from ..runtime.outputs import RequestOutput
from ..runtime.prompts import Prompt, Prompts
from ..runtime.sampling_params import SamplingParams
from . import wire
from .address import DEFAULT_ADDRESS
from .call import Batch, Call
from .connection import Connection
from .session import Inbox, T, checked
from .timeouts import poll_ms

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..runtime.request_options import RequestOptions

DEFAULT_TIMEOUT_S = 30.0


class Client:
    """A connection to a server, on which any number of requests run at once.

    ``timeout`` is how many seconds of silence the server is granted before what waits for it fails. A request that
    fails raises RequestFailed with the server's code and message; the code ``unavailable`` is the client's own. Not to
    be used from several threads at once.

    >>> with Client("tcp://127.0.0.1:5757") as client:  # doctest: +SKIP
    ...     for delta in client.stream("Once upon a time"):
    ...         print(delta.text, end="", flush=True)
    """

    def __init__(self, address: str = DEFAULT_ADDRESS, *, timeout: float = DEFAULT_TIMEOUT_S) -> None:
        self._connection = Connection(address, timeout)

    def generate(
        self,
        prompts: Prompts,
        sampling_params: SamplingParams | list[SamplingParams] | None = None,
        **options: Unpack[RequestOptions],
    ) -> list[RequestOutput]:
        """Complete one prompt or a list of them; the outputs, in the order of the prompts.

        A prompt is a string or a list of token ids. ``sampling_params``: one for all prompts or one for each.
        ``options``: ``cache_salt``, ``priority``, ``tenant``, ``deadline_ms`` and ``queue_timeout_ms``, see
        RequestOptions. Raises RequestFailed, naming the prompt's index, where one fails; the others are cancelled then,
        as they are by Ctrl-C.
        """
        inbox: Inbox[EngineOutput] = Inbox()
        with closing(Batch(self._connection, prompts, sampling_params, options, inbox)) as batch:
            while not batch.is_done:
                batch.send()
                self._wait(inbox)
                batch.take()
            return batch.results()

    def stream(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        request_id: str | None = None,
        **options: Unpack[RequestOptions],
    ) -> TokenStream:
        """Send a request; its deltas, one for each token of each completion, as they arrive.

        Closing or dropping the stream before its end cancels the request. ``request_id`` is what ``cancel`` takes; one
        is made up where it is not given. Raises RequestFailed where the request fails.
        """
        return TokenStream(self, prompt, sampling_params, request_id, options)

    def cancel(self, request_id: str) -> None:
        """End a request of this client early; its stream ends after the tokens that are on their way."""
        self._connection.cancel(request_id)

    def ping(self) -> float:
        """The seconds that the server takes to answer."""
        begin = time.perf_counter()
        inbox: Inbox[wire.Pong] = Inbox()
        self._connection.ping(inbox)
        self._wait(inbox)
        checked(inbox.take())
        return time.perf_counter() - begin

    def stats(self) -> dict[str, Any]:
        """The server's and its engine's numbers, as ``docs/protocol.md`` lists them."""
        inbox: Inbox[dict[str, Any]] = Inbox()
        self._connection.stats(inbox)
        self._wait(inbox)
        return checked(inbox.take())

    def close(self) -> None:
        """Close the connection; the server ends what is in flight on it."""
        self._connection.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _wait(self, inbox: Inbox[T]) -> None:
        """Take in what arrives until something is in ``inbox``, which where the server is gone is an error."""
        connection = self._connection
        if not inbox and not connection.take_in():
            connection.session.restart_silence()
        while not inbox:
            timeout = connection.check_silence()
            if not inbox:
                connection.dealer.wait(poll_ms(timeout))
                connection.take_in()


class TokenStream(Call, Iterator[Delta]):
    """The deltas of one request of a Client."""

    def __init__(
        self,
        client: Client,
        prompt: Prompt,
        params: SamplingParams | None,
        request_id: str | None = None,
        options: RequestOptions | None = None,
    ) -> None:
        self._client = client
        super().__init__(client._connection, prompt, params, request_id, options, Inbox())

    def __next__(self) -> Delta:
        while not self._is_over:
            self._client._wait(self._inbox)
            delta = self._take_delta()
            if delta is not None:
                return delta
        raise StopIteration
