"""Waferline, through its executor: the level at which llama.cpp and CTranslate2 are driven too."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from waferline.fabric.host import probe_host
from waferline.fabric.placement import choose_threads, plan_placement
from waferline.model.load import load_model
from waferline.runtime.memory import choose_kv_dtype
from waferline_kernels.executor import create_executor
from waferline_kernels.sequences import KV_BLOCK_SIZE, NO_LOGPROBS, SPAN, ExecutorLimits

from .runner import Generation, Runner, Setup

MAX_ROWS = 512  # of a step


class WaferlineRunner(Runner):
    def __init__(self, setup: Setup) -> None:
        model = load_model(setup.model, setup.variant, setup.max_model_len)
        blocks = -(-setup.max_model_len // KV_BLOCK_SIZE)
        limits = ExecutorLimits(
            max_num_seqs=setup.max_batch,
            max_model_len=setup.max_model_len,
            max_num_batched_tokens=MAX_ROWS,
            max_num_logits=setup.max_batch,
            num_kv_blocks=setup.max_batch * blocks,
            kv_dtype=choose_kv_dtype("auto", model.dtype),
        )
        threads = min(setup.threads, choose_threads(model.program, setup.threads))
        placement = plan_placement(model.program, threads, probe_host().cpus[:threads])
        self._program = model.program
        self._executor = create_executor(model.program, placement, model.weights, limits)
        self._executor.attach()
        table = self._executor.sequences
        table.block_tables[:] = np.arange(limits.num_kv_blocks).reshape(setup.max_batch, blocks)
        table.num_blocks[:] = blocks
        table.sampling["top_p"] = table.sampling["repetition_penalty"] = 1
        table.sampling["num_logprobs"] = table.sampling["num_prompt_logprobs"] = NO_LOGPROBS
        table.sampling["max_tokens"] = setup.max_model_len
        self.vocab = model.config.vocab
        self.settings = (
            f"Waferline {source_version()}, {self._executor.name}/{self._executor.level}, {setup.variant}, "
            f"{limits.kv_dtype} KV, threads: {threads}, driven by Executor.run"
        )

    def generate(self, prompts: NDArray[np.int32], tokens: int) -> Generation:
        batch, length = prompts.shape
        table = self._executor.sequences
        table.tokens[:batch, :length] = prompts
        table.num_tokens[:batch] = length
        table.sampling["num_prompt_tokens"][:batch] = length
        times = [time.monotonic_ns()]
        times.append(self._prefill(batch, length))
        while len(times) <= tokens:
            start = int(table.num_tokens[0]) - 1
            spans = np.array([(slot, start, 1, 1) for slot in range(batch)], SPAN)
            self._executor.run(self._program, spans, tokens + 1 - len(times))
            times += self._executor.ring.drain()["time_ns"][::batch].tolist()
        return Generation(
            table.tokens[:batch, length : length + tokens].astype(np.int64), (np.diff(times) / 1e9).tolist()
        )

    def _prefill(self, batch: int, length: int) -> int:
        """Prefill whole prompts, as many together as a step has rows; when the last token was sampled, in nanoseconds."""
        rows = min(length, MAX_ROWS)
        together = MAX_ROWS // rows
        for first in range(0, batch, together):
            slots = range(first, min(first + together, batch))
            for start in range(0, length, rows):
                count = min(rows, length - start)
                sampled = int(start + count == length)
                spans = np.array([(slot, start, count, sampled) for slot in slots], SPAN)
                self._executor.run(self._program, spans, 1)
                entries = self._executor.ring.drain()
        return int(entries["time_ns"][-1])


def source_version() -> str:
    """The commit of this source tree; "-dirty" where it has been changed since."""
    command = ["git", "describe", "--always", "--dirty"]
    result = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return result.stdout.strip() or "of an unknown commit"


def prepare(setup: Setup) -> Runner:
    return WaferlineRunner(setup)
