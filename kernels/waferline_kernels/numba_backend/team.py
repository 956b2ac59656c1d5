"""The team: a thread for each worker but the first, which is whoever calls `run`.

A thread first copies its strips to its arena, so that it is the first to touch them, and then enters `run_worker` for
good: there it sleeps, holding no GIL and using no CPU, until `wake` writes it a byte.
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Callable
from queue import Queue
from typing import Any

from .state import State
from .step import PREPARE, REST, run_worker

MAX_WAITING = 2  # loads that a thread may lag behind
NO_DESCRIPTOR = -1

Load = Callable[[int], None]


def pin_thread(cpu: int) -> None:
    """Pin the calling thread where the system can and the process is given that CPU; else leave it."""
    if hasattr(os, "sched_setaffinity"):
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, {cpu})


def _serve(worker: int, cpu: int | None, loads: Queue[Load | None], descriptor: int, state: State) -> None:
    if cpu is not None:
        pin_thread(cpu)
    for load in iter(loads.get, None):
        load(worker)
    run_worker(worker, REST, descriptor, *state)


class Team:
    """Workers 1 .. num_workers - 1. Made, loaded, then woken and put to rest around steps, and closed once."""

    def __init__(self, num_workers: int, cpus: tuple[int, ...] | None, state: State) -> None:
        self._num_others = num_workers - 1
        self._state = state
        self._is_awake = False
        self._loads: list[Queue[Load | None]] = [Queue(MAX_WAITING) for _ in range(self._num_others)]
        run_worker(0, PREPARE, NO_DESCRIPTOR, *state)  # compiles, or reads the cache
        read_end, self._write_end = os.pipe()
        threads = [
            threading.Thread(
                target=_serve,
                args=(worker, cpus[worker] if cpus else None, self._loads[worker - 1], read_end, state),
                name=f"waferline-worker-{worker}",
                daemon=True,
            )
            for worker in range(1, num_workers)
        ]
        self._close = weakref.finalize(self, _stop, os.getpid(), threads, self._loads, state, read_end, self._write_end)
        for thread in threads:
            thread.start()

    def load(self, load: Load) -> None:
        """Have every worker call ``load(worker)``, each on its own thread; they may still be at it on return."""
        for queue in self._loads:
            queue.put(load)
        load(0)

    def finish_loading(self) -> None:
        for queue in self._loads:
            queue.put(None)

    def wake(self) -> None:
        """Have the threads wait at the barrier for a step; without effect while they do."""
        if self._num_others and not self._is_awake:
            os.write(self._write_end, bytes(self._num_others))
            self._is_awake = True

    def rest(self) -> None:
        """Have the threads sleep; without effect while they do."""
        if self._is_awake:
            run_worker(0, REST, NO_DESCRIPTOR, *self._state)
            self._is_awake = False

    def close(self) -> None:
        """End the threads, which must be at rest; a second call does nothing."""
        self._close()


def _stop(
    process: int, threads: list[threading.Thread], loads: list[Queue[Any]], state: State, read_end: int, write_end: int
) -> None:
    if os.getpid() == process:  # a forked child has the pipe but not the threads
        state.step["stop"] = 1
        for queue in loads:
            queue.put(None)
        os.write(write_end, bytes(len(threads)))
        for thread in threads:
            thread.join()
    os.close(read_end)
    os.close(write_end)
