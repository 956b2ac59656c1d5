"""What executors refuse, and what neither a broken row, a fork nor their own end may do to others."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from helpers import TARGETS, fill_slot
from programs import TINY, even_placement, make_executor, make_limits, random_program
from waferline_kernels.executor import Executor
from waferline_kernels.placement import Placement
from waferline_kernels.program import Dims
from waferline_kernels.sequences import SPAN
from waferline_kernels.tiles import BF16, F32, Q8, TileFormat


@pytest.fixture(params=TARGETS)
def target(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def executor(target: str) -> Any:
    program, weights = random_program(TINY, Q8)
    made = make_executor(target, program, even_placement(program, 1), weights, make_limits())
    fill_slot(made, 0, [1, 2, 3])
    yield made
    made.close()


PROGRAM = random_program(TINY, Q8)[0]
SPANS = np.array([(0, 0, 3, 1)], SPAN)


def program_of(executor: Executor) -> Any:
    """PROGRAM, whose tensors are the executor's own."""
    return replace(PROGRAM, tensors=executor._tensors)  # type: ignore[attr-defined]


def test_at_least_one_step_is_asked_for(executor: Executor) -> None:
    for steps in (0, -1):
        with pytest.raises(ValueError, match=f"max_steps: {steps}, expected at least 1"):
            executor.run(program_of(executor), SPANS, steps)


def test_a_sequence_that_fills_its_slot_has_no_room_for_another_token(executor: Executor) -> None:
    longest = executor.limits.max_model_len
    fill_slot(executor, 0, [1] * longest)
    before = executor.sequences.tokens.copy()
    with pytest.raises(ValueError, match=r"batch\.num_logits: \[1\], expected 0 where"):
        executor.run(program_of(executor), np.array([(0, 0, longest, 1)], SPAN), 1)
    executor.run(program_of(executor), np.array([(0, 0, longest, 0)], SPAN), 1)
    assert (executor.sequences.tokens == before).all()
    assert executor.sequences.num_tokens[0] == longest


@pytest.mark.parametrize("profile", [np.zeros((1, 2), np.int64), np.zeros((len(PROGRAM.instructions), 2), np.int32)])
def test_a_profile_has_two_counts_for_each_instruction(executor: Executor, profile: np.ndarray) -> None:
    executor.profile_ns = profile
    if executor.name == "native":  # others measure nothing
        with pytest.raises(ValueError, match="profile_ns: "):
            executor.run(program_of(executor), SPANS, 1)
    else:
        assert executor.run(program_of(executor), SPANS, 1).num_steps == 1
        assert not profile.any()


@pytest.mark.parametrize("timeout", [-1.0, 0.0, 1e-3])
def test_waiting_for_tokens_ends(executor: Executor, timeout: float) -> None:
    assert not executor.ring.wait(timeout)


def test_after_its_end_an_executor_says_so(executor: Executor) -> None:
    executor.close()
    if executor.name == "native":
        for call in (executor.attach, lambda: executor.run(program_of(executor), SPANS, 1)):
            with pytest.raises(RuntimeError, match="the executor is closed"):
                call()
    executor.close()  # once more


def test_placements_that_kernels_cannot_follow_are_refused(target: str) -> None:
    program, weights = random_program(TINY, Q8)
    whole = even_placement(program, 2)
    (pairs,) = (i for i, tensor in enumerate(program.tensors) if tensor.name == "layers.0.gate_up")
    odd = whole.shares.copy()
    odd[pairs, 0]["count"] -= 1
    odd[pairs, 1]["first"] -= 1
    odd[pairs, 1]["count"] += 1
    for placement, message in (
        (Placement(odd, (1 << 20, 1 << 20)), r"layers\.0\.gate_up part strips that are multiplied in pairs"),
        (replace(whole, cpus=(0,)), r"placement\.cpus: \(0,\), expected one for each of 2 workers"),
    ):
        with pytest.raises(ValueError, match=message):
            make_executor(target, program, placement, weights, make_limits())


def test_angles_are_there_for_each_position(target: str) -> None:
    program, weights = random_program(TINY, Q8, max_model_len=63)
    with pytest.raises(ValueError, match=r"limits\.max_model_len: 64, expected at most rope's 63"):
        make_executor(target, program, even_placement(program, 1), weights, make_limits(max_model_len=64))


@pytest.mark.parametrize("format", [F32, BF16], ids=lambda f: f.name)
@pytest.mark.parametrize("hidden", [36, 48])  # with and without columns that pad the last strip
def test_a_row_that_overflows_leaves_nothing_behind(target: str, format: TileFormat, hidden: int) -> None:
    dims = Dims(hidden=hidden, layers=1, heads=2, kv_heads=1, head_dim=16, ffn=33, vocab=50)
    program, weights = random_program(dims, format, tied=False)
    endless = 49
    width = 2 if format is BF16 else 4
    strips = weights["embed"].view(np.uint16 if width == 2 else np.float32)
    if format is BF16:  # pairs of K beside one another
        strips.reshape(len(strips), -1, 16, 2)[endless // 16, :, endless % 16] = 0x7F80
    else:
        strips.reshape(len(strips), -1, 16)[endless // 16, :, endless % 16] = np.inf
    executor = make_executor(target, program, even_placement(program, 2), weights, make_limits())
    try:
        logits = []
        for slot, token in enumerate((5, endless, 5)):
            fill_slot(executor, slot, [token])
            executor.run(program, np.array([(slot, 0, 1, 1)], SPAN), 1)
            logits.append(executor.logits[0, : dims.vocab].copy())
        assert np.isfinite(logits[0]).all()
        assert not np.isfinite(logits[1]).all()
        assert (logits[0] == logits[2]).all()
    finally:
        executor.close()


def test_a_forked_child_ends(target: str) -> None:
    """It has the executor, whose workers sleep, but not their threads."""
    code = f"""
import os, sys, time, warnings
import numpy as np
sys.path[:0] = {sys.path!r}
from helpers import fill_slot
from programs import even_placement, make_executor, make_limits, matmul_program
from waferline_kernels.sequences import SPAN
from waferline_kernels.tiles import Q8
warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads
program, weights = matmul_program(40, 64, Q8)
executor = make_executor({target!r}, program, even_placement(program, 2), weights, make_limits())
fill_slot(executor, 0, [1])
executor.run(program, np.array([(0, 0, 1, 1)], SPAN), 1)
time.sleep(0.1)  # until the other worker sleeps
child = os.fork()
if child == 0:
    if executor.name == "native":
        try:
            executor.run(program, np.array([(0, 1, 1, 1)], SPAN), 1)
            sys.exit(1)
        except RuntimeError as error:
            assert "after a fork, make another one" in str(error)
    executor.close()
    del executor
    sys.exit(3)
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
executor.run(program, np.array([(0, 1, 1, 1)], SPAN), 1)
executor.close()
sys.exit(status)
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 3
