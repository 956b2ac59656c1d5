"""The reproducibility contract: whatever runs beside a request, and however the scheduler treats it, its tokens and
their logprobs are to the bit what they are alone. ``pytest --soak`` tries hundreds of schedules for each combination.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from invariants import check_blocks, check_decode_batch
from recorder import TINY_MODEL
from scripted import FakeCosts
from stepper import run_step

from helpers import TARGETS, backend_and_level
from waferline.bench.speculation import ScriptedDrafter
from waferline.fabric.placement import plan_placement
from waferline.model.load import Model, load_model
from waferline.runtime.drafter import SpeculativeConfig
from waferline.runtime.messages import Delta, GenerateRequest
from waferline.runtime.request import Request, admit_request
from waferline.runtime.sampling_params import SamplingParams
from waferline.runtime.scheduler import MAX_STEPS, Scheduler
from waferline.runtime.sequence import Sequence
from waferline_kernels.executor import Executor, create_executor
from waferline_kernels.sequences import KV_BLOCK_SIZE, ExecutorLimits

NUM_SCHEDULES, NUM_SOAK_SCHEDULES = 16, 300
MAX_MODEL_LEN = 128
MAX_BLOCKS_PER_SEQ = MAX_MODEL_LEN // KV_BLOCK_SIZE

SYSTEM = [(7 * i) % 250 for i in range(50)]
REQUESTS: list[tuple[list[int], dict[str, Any]]] = [
    ([*SYSTEM, 1, 2, 3], {"temperature": 0, "max_tokens": 30, "logprobs": 5}),
    ([*SYSTEM, 4], {"seed": 1, "temperature": 0.8, "top_p": 0.9, "max_tokens": 20, "logprobs": 2}),
    ([*SYSTEM, 1, 2, 5, 6], {"seed": 2, "n": 3, "max_tokens": 18, "logprobs": 1}),
    ([*SYSTEM[:32], *range(80)], {"seed": 3, "top_k": 20, "max_tokens": 12, "logprobs": 5, "ignore_eos": True}),
    (SYSTEM[:48], {"seed": 4, "prompt_logprobs": 3, "logprobs": 3, "n": 2, "max_tokens": 5}),
    (
        [5, 6, 7],
        {
            "seed": 5,
            "max_tokens": 40,
            "logprobs": 0,
            "repetition_penalty": 1.3,
            "frequency_penalty": 0.2,
            "logit_bias": {7: 3.0},
            "bad_words": ["e"],
        },
    ),
    ([9] * 33, {"seed": 6, "temperature": 1.5, "max_tokens": 35, "logprobs": 5, "stop": ["a", "e"]}),
]
NEXT_TURN = len(REQUESTS)  # what the first request gave, and more


@dataclass(frozen=True)
class Arrival:
    request: int
    at: int  # step
    cancelled_at: int | None


@dataclass(frozen=True)
class Plan:
    arrivals: list[Arrival]
    seqs: int
    spare_rows: int
    blocks: int
    threads: int
    enable_prefix_caching: bool
    max_steps: int
    itl_target_ms: float | None
    row_ms: float
    num_drafts: int = 0  # of a sequence in a step, at most
    acceptance: float = 0.0  # how likely a draft token is right


ALONE = Plan([], 3, MAX_MODEL_LEN, 4 * MAX_BLOCKS_PER_SEQ, 1, False, MAX_STEPS, None, 1)
PLANS = st.builds(
    Plan,
    st.lists(
        st.builds(Arrival, st.integers(0, NEXT_TURN), st.integers(0, 20), st.none() | st.integers(1, 60)),
        min_size=3,
        max_size=12,
    ),
    seqs=st.sampled_from([1, 3, 4, 8]),
    spare_rows=st.sampled_from([0, 1, 7, 16, 33, 100]),
    blocks=st.sampled_from([MAX_BLOCKS_PER_SEQ, 9, 12, 16, 40]),
    threads=st.sampled_from([1, 2, 3]),
    enable_prefix_caching=st.sampled_from([True, True, True, False]),
    max_steps=st.sampled_from([1, 3, MAX_STEPS]),
    itl_target_ms=st.sampled_from([None, None, 1.0, 10.0, 40.0]),
    row_ms=st.sampled_from([0.3, 1.0, 3.0]),
    num_drafts=st.sampled_from([0, 1, 4, 7]),
    acceptance=st.sampled_from([0.3, 0.6, 0.9, 1.0]),
)


class Engine:
    """Runs requests of ``model`` by a plan; ``deltas`` has what each completion of each arrival gave."""

    def __init__(self, model: Model, executor: Executor, plan: Plan, drafts: SpeculativeConfig | None) -> None:
        costs: Any = FakeCosts(plan.row_ms)
        self.scheduler = Scheduler(
            executor.limits,
            executor.sequences,
            enable_prefix_caching=plan.enable_prefix_caching,
            cost_model=costs,
            itl_target_ms=plan.itl_target_ms,
            speculative_config=drafts,
        )
        self.deltas: defaultdict[tuple[str, int], list[Delta]] = defaultdict(list)
        self._model, self._executor, self._max_steps = model, executor, plan.max_steps

    def add(self, request_id: str, prompt: list[int], fields: dict[str, Any]) -> Request:
        message = GenerateRequest(request_id, prompt, SamplingParams(**fields))
        request = admit_request(message, self._model, MAX_MODEL_LEN)
        request.sequences = [Sequence(request, index, self._model.tokenizer) for index in range(request.params.n)]
        for sequence in request.sequences:
            self.scheduler.add(sequence)
        return request

    def cancel(self, request: Request) -> None:
        for sequence in request.sequences:
            if not sequence.is_finished:
                self.scheduler.finish(sequence, "abort")

    def step(self) -> bool:
        """Take a step; whether there was one to take."""
        step = self.scheduler.schedule()
        check_blocks(self.scheduler)
        check_decode_batch(self.scheduler)
        if step is None:
            return False
        step.max_steps = min(step.max_steps, self._max_steps)
        _, deltas = run_step(self.scheduler, self._executor, step, self._model.program, self._model.tokenizer, 1.0)
        for delta in deltas:
            self.deltas[delta.request_id, delta.index].append(delta)
        return True


@contextmanager
def engine_for(plan: Plan, dtype: str, target: str) -> Iterator[Engine]:
    model = tiny_model(dtype)
    rows = plan.seqs + plan.spare_rows
    limits = ExecutorLimits(plan.seqs, MAX_MODEL_LEN, rows, max(plan.seqs, min(rows, 20)), plan.blocks)
    placement = plan_placement(model.program, plan.threads)
    executor = create_executor(model.program, placement, model.weights, limits, *backend_and_level(target))
    try:
        yield Engine(model, executor, plan, scripted_drafts(plan, dtype, target) if plan.num_drafts else None)
    finally:
        executor.close()


@cache
def tiny_model(dtype: str) -> Model:
    return load_model(TINY_MODEL, dtype)


@cache
def prompt_and_fields(number: int, dtype: str, target: str) -> tuple[list[int], dict[str, Any]]:
    if number == NEXT_TURN:
        [first] = alone(0, dtype, target)
        answer = [token_id for delta in first for token_id in delta.token_ids]
        return [*REQUESTS[0][0], *answer, 1, 2], {"seed": 7, "max_tokens": 20, "logprobs": 5}
    return REQUESTS[number]


@cache
def alone(number: int, dtype: str, target: str) -> list[list[Delta]]:
    """The deltas of each completion of a request on an engine of its own, on one thread, without prefix caching."""
    prompt, fields = prompt_and_fields(number, dtype, target)
    with engine_for(ALONE, dtype, target) as engine:
        engine.add("", prompt, fields)
        while engine.step():
            pass
        return [engine.deltas["", index] for index in range(fields.get("n", 1))]


def scripted_drafts(plan: Plan, dtype: str, target: str) -> SpeculativeConfig:
    """Drafts of what each completion gave alone, some of them wrong."""

    def make_drafter(sequence: Sequence) -> ScriptedDrafter:
        arrival = plan.arrivals[int(sequence.request.request_id)]
        deltas = alone(arrival.request, dtype, target)[sequence.index]
        tokens = [*sequence.request.prompt_token_ids, *(delta.token_ids[0] for delta in deltas)]
        return ScriptedDrafter(tokens, plan.acceptance, 250, arrival.at)

    return SpeculativeConfig(plan.num_drafts, make_drafter)


def check_plan(plan: Plan, dtype: str, target: str) -> None:
    requests: dict[int, Request] = {}
    with engine_for(plan, dtype, target) as engine:
        at, has_stepped = 0, True
        while has_stepped or len(requests) < len(plan.arrivals):
            for number, arrival in enumerate(plan.arrivals):
                if arrival.at == at:
                    requests[number] = engine.add(str(number), *prompt_and_fields(arrival.request, dtype, target))
                if arrival.cancelled_at == at and number in requests:
                    engine.cancel(requests[number])
            has_stepped = engine.step()
            at += 1
        assert engine.scheduler.kv_cache.block_pool.num_free == plan.blocks
    for number, arrival in enumerate(plan.arrivals):
        for sequence, expected in zip(requests[number].sequences, alone(arrival.request, dtype, target), strict=True):
            deltas = engine.deltas[str(number), sequence.index]
            count = len(deltas) if sequence.finish_reason == "abort" else len(expected)
            for delta in deltas:
                delta.request_id = ""
            assert deltas == expected[:count]


@pytest.mark.parametrize("dtype", ["f32", "bf16", "q8", "q4"])
@pytest.mark.parametrize("target", TARGETS)
def test_a_request_gives_the_same_in_every_schedule(target: str, dtype: str, pytestconfig: pytest.Config) -> None:
    is_soak = pytestconfig.getoption("--soak")

    @settings(max_examples=NUM_SOAK_SCHEDULES if is_soak else NUM_SCHEDULES, derandomize=not is_soak)
    @given(plan=PLANS)
    def check(plan: Plan) -> None:
        check_plan(plan, dtype, target)

    check()
