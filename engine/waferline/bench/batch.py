"""A batch without an engine: greedy sequences of equal length, prefilled and decoded by hand on an executor."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from waferline_kernels.executor import Executor, create_executor
from waferline_kernels.placement import Placement
from waferline_kernels.program import Program
from waferline_kernels.sequences import KV_BLOCK_SIZE, NO_LOGPROBS, SPAN, ExecutorLimits

from ..fabric.bandwidth import read_seconds
from ..fabric.host import claim_cpus, probe_host
from ..fabric.placement import plan_placement

MAX_ROWS = 512  # of a step
RING_STEPS = 16  # that the ring holds of the largest batch: see waferline_kernels.executor


class ZeroWeights(Mapping[str, NDArray[Any]]):
    """Zeros for every tensor of a program, for its speed does not depend on their values; their pages are never touched."""

    def __init__(self, program: Program) -> None:
        self._specs = {spec.name: spec for spec in program.tensors}

    def __getitem__(self, name: str) -> NDArray[Any]:
        spec = self._specs[name]
        if spec.is_table:
            return np.zeros((spec.n, spec.k), np.float32)
        return np.zeros((spec.num_strips, spec.strip_bytes), np.uint8)

    def __iter__(self) -> Iterator[str]:
        return iter(self._specs)

    def __len__(self) -> int:
        return len(self._specs)


@contextmanager
def placed(program: Program, threads: int | None) -> Iterator[Placement]:
    """A placement whose workers are pinned to CPUs of their own, where there are as many that no engine claims. The
    calling thread becomes one of them, and is let go in the end."""
    placement, cpus = plan_placement(program, threads), probe_host().cpus
    claim = claim_cpus(cpus, placement.num_workers)
    try:
        yield placement if claim is None else Placement(placement.shares, placement.arena_bytes, claim.cpus)
    finally:
        if claim is not None:
            claim.release()
            os.sched_setaffinity(0, cpus)


class Batch:
    """``size`` sequences of up to ``max_model_len`` tokens that no token ends, their blocks reserved. The thread that
    makes it is worker 0. A step has up to ``max_rows`` rows, and of ``max_logits`` of them logits, or of as many as there
    are sequences. ``kv_dtype`` of kv_cache.KV_FORMATS; ``backend`` and ``level`` as in create_executor."""

    def __init__(
        self,
        program: Program,
        weights: Mapping[str, NDArray[Any]],
        placement: Placement,
        *,
        size: int,
        max_model_len: int,
        max_rows: int = MAX_ROWS,
        max_logits: int = 1,
        kv_dtype: str = "f32",
        backend: str | None = None,
        level: str | None = None,
    ) -> None:
        blocks = -(-max_model_len // KV_BLOCK_SIZE)
        limits = ExecutorLimits(
            max_num_seqs=size * max(1, -(-max_model_len // RING_STEPS)),  # a ring that holds every token
            max_model_len=max_model_len,
            max_num_batched_tokens=max(size, max_rows),
            max_num_logits=max(size, max_logits),
            num_kv_blocks=size * blocks,
            kv_dtype=kv_dtype,
        )
        self.program = program
        self.size = size
        self._placement = placement
        self.executor: Executor = create_executor(program, placement, weights, limits, backend, level)
        self.executor.attach()
        table = self.executor.sequences
        table.block_tables[:size] = np.arange(size * blocks).reshape(size, blocks)
        table.num_blocks[:size] = blocks
        params = table.sampling[:size]
        params["top_p"] = params["repetition_penalty"] = 1
        params["num_logprobs"] = params["num_prompt_logprobs"] = NO_LOGPROBS
        params["max_tokens"] = max_model_len

    @property
    def num_tokens(self) -> int:
        """Of each sequence."""
        return int(self.executor.sequences.num_tokens[0])

    def prefill(self, prompt_tokens: int, program: Program | None = None) -> float:
        """Begin every sequence anew with a prompt, and sample its first token; the seconds spent in steps. ``program``:
        a part of the batch's, that ends in sampling too."""
        table, rows = self.executor.sequences, self.executor.limits.max_num_batched_tokens
        prompt = np.arange(prompt_tokens) % self.program.dims.vocab
        table.tokens[: self.size, :prompt_tokens] = prompt
        table.num_tokens[: self.size] = prompt_tokens
        table.sampling[: self.size]["num_prompt_tokens"] = prompt_tokens
        seconds = 0.0
        for slot in range(self.size):
            for start in range(0, prompt_tokens, rows):
                count = min(rows, prompt_tokens - start)
                span = (slot, start, count, int(start + count == prompt_tokens))
                seconds += self.executor.run(program or self.program, np.array([span], SPAN), 1).seconds
                self.executor.ring.drain()
        return seconds

    def read_bandwidth(self, least_bytes: float) -> float:
        """Bytes a second of a plain prefetched read of the weights that a step sweeps, where they lie, as often as makes
        ``least_bytes``. With memory of its own, which is given back after each time, virtual machines are slow for some
        seconds after it."""
        nbytes = sum(self._placement.swept_bytes(self.program))
        sweeps = max(1, round(least_bytes / nbytes))
        seconds = self.executor.read_seconds(sweeps)
        if seconds is None:
            seconds = read_seconds(nbytes, self._placement.num_workers, self._placement.cpus, sweeps)
        return nbytes * sweeps / seconds

    def rewind(self, num_tokens: int) -> None:
        """Take every sequence back to its first ``num_tokens`` tokens, whose keys and values are there."""
        self.executor.sequences.num_tokens[: self.size] = num_tokens

    def decode(self, tokens: int) -> tuple[float, NDArray[np.int64]]:
        """Sample ``tokens`` more tokens of every sequence: the seconds spent in steps, and the nanosecond at which each
        step published its tokens, int64 [tokens]."""
        seconds, steps, times = 0.0, 0, []
        while steps < tokens:
            spans = np.array([(slot, self.num_tokens - 1, 1, 1) for slot in range(self.size)], SPAN)
            result = self.executor.run(self.program, spans, tokens - steps)
            times.append(self.executor.ring.drain()["time_ns"][:: self.size])
            seconds, steps = seconds + result.seconds, steps + result.num_steps
        return seconds, np.concatenate(times)

    def profile_decode(self, tokens: int) -> NDArray[np.float64] | None:
        """Seconds that a step of decoding works on each instruction and then waits, float64 [instructions, 2]: the medians
        of ``tokens`` steps; None where the backend does not measure them."""
        return self._profiled(lambda: self.decode(1), tokens)

    def profile_prefill(self, prompt_tokens: int, repeats: int) -> NDArray[np.float64] | None:
        """The same of ``repeats`` prefills of all sequences."""
        return self._profiled(lambda: self.prefill(prompt_tokens), repeats)

    def _profiled(self, run: Callable[[], object], repeats: int) -> NDArray[np.float64] | None:
        if self.executor.name != "native":
            return None
        profiles = np.zeros((repeats, len(self.program.instructions), 2), np.int64)
        try:
            for self.executor.profile_ns in profiles:
                run()
        finally:
            self.executor.profile_ns = None
        return np.median(profiles, axis=0) * 1e-9

    def close(self) -> None:
        self.executor.close()
