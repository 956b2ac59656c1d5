"""The ring: tokens on their way from a running step to whoever drains them.

One producer (the step loop) and one consumer at a time. ``head`` counts entries ever published and ``tail`` entries
ever drained, so ``head - tail`` are waiting; entry ``i`` lies at ``i % capacity``. The producer never overwrites: a
step is not begun unless the ring has room for all it may publish.
"""

from __future__ import annotations

import threading
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from .sequences import MAX_LOGPROBS


class Finish(IntEnum):
    NONE = 0
    STOP = 1  # one of the sequence's stop ids
    LENGTH = 2  # max_tokens or max_model_len


ENTRY = np.dtype(
    [
        ("slot", np.int32),
        ("position", np.int32),  # of the token in its sequence
        ("token", np.int32),
        ("is_prompt", np.int32),  # 1: a prompt token, scored; 0: a sampled one
        ("finish", np.int32),
        ("num_top", np.int32),  # entries of top_ids and top_logprobs; -1: logprob and rank are not computed either
        ("rank", np.int32),  # 1 for the most likely token
        ("logprob", np.float32),  # log softmax of the logits before any sampling parameter
        ("time_ns", np.int64),  # CLOCK_MONOTONIC when the step ended
        ("top_ids", np.int32, (MAX_LOGPROBS,)),
        ("top_logprobs", np.float32, (MAX_LOGPROBS,)),
    ],
    align=True,
)


class Ring:
    """A ring whose producer is Python; the native executor's, in C, has the same consumer's side."""

    def __init__(self, capacity: int) -> None:
        self._entries = np.zeros(capacity, ENTRY)
        self._head = 0
        self._tail = 0
        self._changed = threading.Condition()

    @property
    def capacity(self) -> int:
        return len(self._entries)

    @property
    def free(self) -> int:
        return self.capacity - (self._head - self._tail)

    def publish(self, entries: NDArray[np.void]) -> None:
        """Append ``entries`` (ENTRY [n], n at most ``free``) and wake the consumer."""
        if len(entries) > self.free:
            raise ValueError(f"entries: {len(entries)}, the ring has room for {self.free}")
        at = (self._head + np.arange(len(entries))) % self.capacity
        with self._changed:
            self._entries[at] = entries
            self._head += len(entries)
            self._changed.notify_all()

    def wait(self, timeout: float) -> bool:
        """Sleep until there is something to drain, at most ``timeout`` seconds; whether there is."""
        with self._changed:
            return self._changed.wait_for(lambda: self._head != self._tail, timeout)

    def drain(self) -> NDArray[np.void]:
        """Take all waiting entries, oldest first: ENTRY [n], a copy."""
        with self._changed:
            at = np.arange(self._tail, self._head) % self.capacity
            self._tail = self._head
            return self._entries[at]
