"""From a model and limits to an executor: the limits checked, memory planned, workers placed, weights loaded."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from waferline_kernels.aligned import HUGE_PAGE
from waferline_kernels.executor import Executor, create_executor
from waferline_kernels.kv_cache import KV_FORMATS
from waferline_kernels.program import Program
from waferline_kernels.sequences import KV_BLOCK_SIZE, SPAN

from ..fabric.cost import CostModel, StepShape
from ..fabric.host import claim_cpus, probe_host
from ..fabric.placement import plan_placement
from ..fabric.report import residency
from ..fabric.residency import host_residency
from ..fabric.spec import known_host_fabric
from ..model.load import Model
from .limits import kv_block_bytes, model_bytes, plan_limits

WARM_UP_ROWS = 32
WARM_UP_CONTEXT = 1024
WARM_UP_SECONDS = 0.05  # that steps may have taken if there is to be another one
WARM_UP_REPEATS = 3  # of each step, after a first one: the fastest tells what it takes where nothing disturbs it
WARM_UP_LESSONS = 20  # times that the cost model is told: a factor comes from far off, and each time follows a little


class ExecutorSetup:
    """An executor that is ready to run ``model``, and what it was made from; see EngineCore for the limits.

    ``model`` is limited to the context in force. ``cost_model`` predicts its steps, and has learnt from a few.
    """

    def __init__(
        self,
        model: Model,
        *,
        threads: int | None,
        max_num_seqs: int,
        max_model_len: int | None,
        max_num_batched_tokens: int,
        kv_cache_memory: int | None,
        kv_dtype: str,
        num_speculative_tokens: int,
    ) -> None:
        self.num_speculative_tokens = num_speculative_tokens
        self.limits = plan_limits(
            model,
            max_num_seqs,
            max_model_len,
            max_num_batched_tokens,
            kv_cache_memory,
            kv_dtype,
            num_speculative_tokens,
        )
        self.model = model = model.limited_to(self.limits.max_model_len)
        self.kv_dtype = self.limits.kv_dtype
        self.kv_cache_bytes = self.limits.num_kv_blocks * kv_block_bytes(model, self.kv_dtype)
        self.model_bytes = model_bytes(model)
        self._program = model.program
        placement = plan_placement(model.program, threads)
        self._claim = claim_cpus(probe_host().cpus, placement.num_workers)
        self.placement = placement if self._claim is None else replace(placement, cpus=self._claim.cpus)
        self._is_closed = False
        self.residency = residency(model.program, self.placement)
        fabric = known_host_fabric(placement.num_workers)
        where = host_residency(model.program, self.placement, fabric)
        self.cost_model = CostModel(model.program, where, fabric, self.kv_dtype)
        try:
            self.executor = create_executor(model.program, self.placement, model.weights, self.limits)
            _warm_up(self.executor, model, self.cost_model)
        except BaseException:
            self._release_cpus()
            raise

    def touch_kv_cache(self) -> None:
        """Write to every huge page of the KV cache, so that no later step waits for the system to find and clear them. That
        takes from 0.1 to some 5 ms (where a virtual machine's host has to find them too), and as sequences grow from one
        to the next they do in all layers at once."""
        executor, program = self.executor, self._program
        block_bytes = program.dims.kv_block_bytes(KV_FORMATS[self.kv_dtype]) // program.dims.layers
        last = self.limits.num_kv_blocks - 1
        for block_id in (*range(0, last, max(1, HUGE_PAGE // block_bytes)), last):
            executor.sequences.block_tables[0, 0] = block_id
            _take_step(executor, program, 0, 1)

    def close(self) -> None:
        """Release the executor and its CPUs. May be called more than once."""
        if not self._is_closed:
            self._is_closed = True
            self.executor.close()
            self._release_cpus()

    def _release_cpus(self) -> None:
        if self._claim is not None:
            self._claim.release()


def _warm_up(executor: Executor, model: Model, cost_model: CostModel) -> None:
    """Take a few steps in slot 0, so that no request pays for the first touch of code and memory, and let the cost model
    learn from them: from a single row, from a chunk of a prompt's beginning, and from one that attends to much."""
    table, limits = executor.sequences, executor.limits
    longest = min(WARM_UP_CONTEXT, limits.max_model_len - 1, limits.num_kv_blocks * KV_BLOCK_SIZE)
    rows = min(WARM_UP_ROWS, longest, limits.max_num_batched_tokens)
    reserved = -(-longest // KV_BLOCK_SIZE)
    table.block_tables[0, :reserved] = np.arange(reserved)
    table.num_blocks[0] = reserved
    seconds: dict[StepShape, float] = {}
    for start, count in ((0, 1), (0, rows), (longest - rows, rows)):
        if sum(seconds.values()) < WARM_UP_SECONDS:
            times = [_take_step(executor, model.program, start, count) for _ in range(1 + WARM_UP_REPEATS)]
            seconds[StepShape.of_chunk(start, count, 1)] = min(times)
    for _ in range(WARM_UP_LESSONS):
        for shape, took in seconds.items():
            cost_model.observe(shape.num_rows, shape.context_tokens, 1, 1e3 * took, shape.kv_tokens)


def _take_step(executor: Executor, program: Program, start: int, count: int) -> float:
    """The seconds of a step of ``count`` rows in slot 0, from position ``start`` on; its blocks are reserved."""
    table = executor.sequences
    table.num_tokens[0] = start + count
    table.sampling[0]["max_tokens"] = 1
    seconds = executor.run(program, np.array([(0, start, count, 1)], SPAN), max_steps=1).seconds
    executor.ring.drain()
    return seconds
