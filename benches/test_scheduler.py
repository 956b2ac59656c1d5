"""What scheduling costs: ``schedule`` and ``update`` at 64 running sequences, under pytest-benchmark (``pytest
benches/test_scheduler.py``, with the extra ``bench``). What the executor and the postprocessing do is not in it.
"""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from waferline.runtime.request import Request
from waferline.runtime.sampling_params import SamplingParams
from waferline.runtime.scheduler import MAX_STEPS, Scheduler
from waferline.runtime.sequence import Sequence
from waferline.runtime.step_builder import ScheduledStep
from waferline_kernels.sequences import KV_BLOCK_SIZE, ExecutorLimits, SequenceTable

NUM_SEQS = 64
MAX_MODEL_LEN = 1024
LIMITS = ExecutorLimits(NUM_SEQS, MAX_MODEL_LEN, 512, NUM_SEQS, NUM_SEQS * MAX_MODEL_LEN // KV_BLOCK_SIZE)
ROUNDS = 200


class Clock:
    """Stands still while the tokens of a step are made up."""

    def __init__(self) -> None:
        self._stood = 0.0

    def __call__(self) -> float:
        return time.perf_counter() - self._stood

    def run(self, scheduler: Scheduler, step: ScheduledStep, num_steps: int) -> None:
        begin = time.perf_counter()
        for sequence, (_, _, _, num_logits) in zip(step.sequences, step.batch.tolist(), strict=True):
            sequence.token_ids += [0] * num_steps * num_logits
            scheduler._table.num_tokens[sequence.slot] = sequence.num_tokens
        self._stood += time.perf_counter() - begin


clock = Clock()


def make_sequence(number: int, num_prompt_tokens: int) -> Sequence:
    params = SamplingParams(detokenize=False)
    tokenizer: Any = SimpleNamespace()
    prompt = [number, *range(num_prompt_tokens - 1)]
    request = Request(f"r{number}", prompt, params, 0, MAX_MODEL_LEN - num_prompt_tokens, [], frozenset())
    return Sequence(request, 0, tokenizer)


def take_step(scheduler: Scheduler, num_steps: int) -> None:
    step = scheduler.schedule()
    assert step is not None
    num_steps = min(num_steps, step.max_steps)
    clock.run(scheduler, step, num_steps)
    scheduler.update(step, num_steps)


def running_scheduler(stagger: int, num_steps: int = 1) -> Scheduler:
    """One that has decoded in runs of ``num_steps``; each sequence is ``stagger`` tokens longer than the one before."""
    scheduler = Scheduler(LIMITS, SequenceTable.allocate(LIMITS, 1))
    for number in range(NUM_SEQS):
        scheduler.add(make_sequence(number, 100 + number * stagger % KV_BLOCK_SIZE))
    while len(scheduler._decoding) < NUM_SEQS:
        take_step(scheduler, 1)
    for _ in range(2):
        take_step(scheduler, num_steps)
    return scheduler


@pytest.mark.benchmark(timer=clock)
@pytest.mark.parametrize(
    ("stagger", "num_steps"),
    [
        pytest.param(0, 1, id="nothing_changes"),
        pytest.param(1, 1, id="four_fill_a_block"),
        pytest.param(1, MAX_STEPS, id="a_long_run"),
    ],
)
def test_decoding(benchmark: BenchmarkFixture, stagger: int, num_steps: int) -> None:
    def setup() -> tuple[tuple[Scheduler, int], dict[str, Any]]:
        return (running_scheduler(stagger, num_steps), num_steps), {}

    benchmark.pedantic(take_step, setup=setup, rounds=ROUNDS)


@pytest.mark.benchmark(timer=clock)
def test_one_ends_and_one_is_admitted(benchmark: BenchmarkFixture) -> None:
    def setup() -> tuple[tuple[Scheduler], dict[str, Any]]:
        scheduler = running_scheduler(stagger=1)
        scheduler.add(make_sequence(NUM_SEQS, 100))
        return (scheduler,), {}

    def end_one_and_admit_another(scheduler: Scheduler) -> None:
        scheduler.finish(scheduler.running[NUM_SEQS // 2], "length")
        take_step(scheduler, 1)

    benchmark.pedantic(end_one_and_admit_another, setup=setup, rounds=ROUNDS)
