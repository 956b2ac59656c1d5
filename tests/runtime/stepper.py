"""An engine without threads: what EngineCore does with a step, in the order that a test wants."""

from __future__ import annotations

from typing import Any

from waferline.runtime.messages import Delta, TokenLogprob
from waferline.runtime.output_processor import append_prompt_logprobs, append_token, token_logprobs, unpack_entries
from waferline.runtime.scheduler import Scheduler
from waferline.runtime.step_builder import ScheduledStep
from waferline_kernels.executor import Executor, RunResult


def run_step(
    scheduler: Scheduler,
    executor: Executor,
    step: ScheduledStep,
    program: Any = None,
    tokenizer: Any = None,
    seconds: float = 0.0,
) -> tuple[RunResult, list[Delta]]:
    """Run ``step``, which is said to take ``seconds`` each time; the deltas of its tokens, with logprobs where there is a
    ``tokenizer``."""
    result = executor.run(program, step.batch, step.max_steps)
    entries, deltas = executor.ring.drain(), []
    for row, (slot, position, token, is_prompt, finish, _, _) in enumerate(unpack_entries(entries)):
        sequence = scheduler.slots[slot]
        assert sequence is not None
        logprobs = [TokenLogprob(token, 0.0, 1, "")] if tokenizer is None else token_logprobs(entries[row], tokenizer)
        if is_prompt:
            append_prompt_logprobs(sequence, position, logprobs)
        elif not sequence.is_finished:
            deltas.append(append_token(sequence, token, finish, 0, logprobs))
            if deltas[-1].finish_reason:
                scheduler.finish(sequence, deltas[-1].finish_reason)
    scheduler.update(step, result.num_steps, seconds * result.num_steps, [1e3 * seconds] * result.num_steps)
    return result, deltas


def run_all(scheduler: Scheduler, executor: Executor, seconds: float = 0.0) -> list[ScheduledStep]:
    """Run to the end; the steps that it took."""
    steps = []
    while (step := scheduler.schedule()) is not None:
        run_step(scheduler, executor, step, seconds=seconds)
        steps.append(step)
        assert len(steps) < 10_000, "no end"
    return steps
