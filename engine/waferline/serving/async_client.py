"""AsyncClient: a server's tokens in asyncio code."""

from __future__ import annotations

import asyncio
import time
import weakref
from collections.abc import AsyncIterator, Callable
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
from .client import DEFAULT_TIMEOUT_S
from .connection import Connection
from .dealer import Dealer, Socket
from .session import Inbox, T, checked

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..runtime.request_options import RequestOptions


class AsyncClient:
    """What Client is, in asyncio: any number of tasks of one event loop may use it at once.

    >>> async with AsyncClient("tcp://127.0.0.1:5757") as client:  # doctest: +SKIP
    ...     async for delta in client.stream("Once upon a time"):
    ...         print(delta.text, end="", flush=True)
    """

    def __init__(self, address: str = DEFAULT_ADDRESS, *, timeout: float = DEFAULT_TIMEOUT_S) -> None:
        self._connection = Connection(address, timeout)
        self._readers = LoopReaders(self._connection.dealer, weakly(self._take_in))
        self._watchdog: asyncio.Handle | None = None

    async def generate(
        self,
        prompts: Prompts,
        sampling_params: SamplingParams | list[SamplingParams] | None = None,
        **options: Unpack[RequestOptions],
    ) -> list[RequestOutput]:
        """As ``Client.generate``; cancelling the task cancels the requests."""
        inbox: AsyncInbox[EngineOutput] = AsyncInbox()
        self._start_waiting()
        with closing(Batch(self._connection, prompts, sampling_params, options, inbox)) as batch:
            while not batch.is_done:
                batch.send()
                await inbox.wait()
                batch.take()
            return batch.results()

    def stream(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        request_id: str | None = None,
        **options: Unpack[RequestOptions],
    ) -> AsyncTokenStream:
        """As ``Client.stream``; the request is sent at once, not with the first delta asked for."""
        self._start_waiting()
        return AsyncTokenStream(self, prompt, sampling_params, request_id, options)

    async def cancel(self, request_id: str) -> None:
        """As ``Client.cancel``."""
        self._connection.cancel(request_id)

    async def ping(self) -> float:
        """The seconds that the server takes to answer."""
        begin = time.perf_counter()
        inbox = AsyncInbox[wire.Pong]()
        self._start_waiting()
        self._connection.ping(inbox)
        await inbox.wait()
        checked(inbox.take())
        return time.perf_counter() - begin

    async def stats(self) -> dict[str, Any]:
        """The server's and its engine's numbers, as ``docs/protocol.md`` lists them."""
        inbox = AsyncInbox[dict[str, Any]]()
        self._start_waiting()
        self._connection.stats(inbox)
        await inbox.wait()
        return checked(inbox.take())

    async def close(self) -> None:
        """Close the connection; the server ends what is in flight on it."""
        if self._watchdog is not None:
            self._watchdog.cancel()
        self._connection.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def _start_waiting(self) -> None:
        """See to it that what arrives is taken in, and that silence is noticed."""
        self._connection.dealer.check_process()
        if self._connection.closed:
            return  # sending will tell
        loop = asyncio.get_running_loop()
        if self._readers.loop is not loop:
            self._readers.start(loop)
            self._watchdog = None
        if not self._connection.session.is_waiting:
            self._connection.session.restart_silence()
        if self._watchdog is None:
            self._watchdog = loop.call_soon(weakly(self._watch))

    def _take_in(self) -> None:
        self._connection.take_in()

    def _watch(self) -> None:
        """Look after silence for as long as something is waited for."""
        connection = self._connection
        connection.take_in()  # it may have arrived while the loop was busy
        self._watchdog = None
        if connection.session.is_waiting:
            delay = connection.check_silence()
            self._watchdog = asyncio.get_running_loop().call_later(delay, weakly(self._watch))


def weakly(method: Callable[[], None]) -> Callable[[], None]:
    """``method`` as an event loop may keep it: a client that nobody else has is garbage, although the loop goes on."""
    reference = weakref.WeakMethod(method)

    def call() -> None:
        alive = reference()
        if alive is not None:
            alive()

    return call


class LoopReaders:
    """Has an event loop call ``on_readable`` for the sockets of ``dealer``, whichever it uses."""

    def __init__(self, dealer: Dealer, on_readable: Callable[[], None]) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self._dealer = dealer
        self._on_readable = on_readable
        self._descriptors: list[int] = []
        dealer.on_sockets = self._read

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """From now on in ``loop``."""
        self._read(())
        self.loop = loop
        self._read((self._dealer.socket, self._dealer.monitor))

    def _read(self, sockets: tuple[Socket, ...]) -> None:
        """Read from ``sockets`` instead of the former ones, which are still open."""
        former, self._descriptors = self._descriptors, []
        if self.loop is None or self.loop.is_closed():
            return
        for descriptor in former:
            self.loop.remove_reader(descriptor)
        for socket in sockets:
            self._descriptors.append(socket.fileno())
            self.loop.add_reader(socket.fileno(), self._on_readable)


class AsyncInbox(Inbox[T]):
    """An inbox that a task can wait for."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        super().__init__(self._event.set)

    async def wait(self) -> None:
        while not self:
            self._event.clear()
            await self._event.wait()


class AsyncTokenStream(Call, AsyncIterator[Delta]):
    """The deltas of one request of an AsyncClient."""

    def __init__(
        self,
        client: AsyncClient,
        prompt: Prompt,
        params: SamplingParams | None,
        request_id: str | None = None,
        options: RequestOptions | None = None,
    ) -> None:
        self._client = client  # takes in what arrives
        self._inbox: AsyncInbox[EngineOutput] = AsyncInbox()
        super().__init__(client._connection, prompt, params, request_id, options, self._inbox)

    async def __anext__(self) -> Delta:
        while not self._is_over:
            await self._inbox.wait()
            delta = self._take_delta()
            if delta is not None:
                return delta
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """As ``close``, under the name that asynchronous iterators have for it."""
        self.close()
