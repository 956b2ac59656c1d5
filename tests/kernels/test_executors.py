"""Every executor on every instruction-set level, forced one at a time, held to the reference and to itself."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import numpy as np
import pytest

from helpers import FUSED_LEVELS, TARGETS, fill_slot
from programs import TINY, even_placement, make_executor, make_limits, matmul_program, random_program
from waferline_kernels.executor import Executor, StopReason
from waferline_kernels.placement import Placement
from waferline_kernels.program import Dims, Program
from waferline_kernels.ring import Finish
from waferline_kernels.sequences import SPAN
from waferline_kernels.tiles import BF16, F32, Q4, Q8, TILE_N, TileFormat, pack_matrix

FORMATS = [F32, BF16, Q8, Q4]
SHAPES = [
    TINY,
    Dims(hidden=64, layers=2, heads=8, kv_heads=4, head_dim=8, ffn=172, vocab=97),
    Dims(hidden=80, layers=1, heads=10, kv_heads=5, head_dim=64, ffn=96, vocab=64),
    Dims(hidden=36, layers=1, heads=2, kv_heads=1, head_dim=80, ffn=33, vocab=50),
    Dims(hidden=128, layers=1, heads=3, kv_heads=3, head_dim=96, ffn=64, vocab=80),
    Dims(hidden=66, layers=1, heads=4, kv_heads=1, head_dim=128, ffn=70, vocab=33),
]


@pytest.fixture(params=TARGETS)
def target(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@contextmanager
def executor_of(
    target: str, model: tuple[Program, dict[str, Any]], threads: int = 1, **limits: int
) -> Iterator[Executor]:
    program, weights = model
    executor = make_executor(target, program, even_placement(program, threads), weights, make_limits(**limits))
    try:
        yield executor
    finally:
        executor.close()


def spans(*rows: tuple[int, int, int, int]) -> np.ndarray:
    return np.array(list(rows), SPAN)


def logits_of(executor: Executor, program: Program, count: int) -> np.ndarray:
    return executor.logits[:count, : program.dims.vocab].copy()


@pytest.mark.parametrize("format", FORMATS, ids=lambda f: f.name)
@pytest.mark.parametrize("shape", [(16, 64), (17, 4), (5, 3), (48, 130), (33, 257), (100, 61)])
def test_a_matmul_equals_numpy(target: str, format: TileFormat, shape: tuple[int, int]) -> None:
    """q8 and q4 to the bit, for any number of rows and threads; f32 and bf16 to rounding."""
    n, k = shape
    model = matmul_program(n, k, format)
    for rows, threads in ((1, 1), (2, 2), (7, 1), (13, 2), (35, 1), (63, 2)):
        results = []
        for name in ("reference", target):
            with executor_of(name, model, threads if name == target else 1) as executor:
                fill_slot(executor, 0, [(i * 7) % n for i in range(rows)])
                executor.run(model[0], spans((0, 0, rows, rows)), 1)
                results.append(logits_of(executor, model[0], rows))
        if format.is_quantized:
            assert (results[0] == results[1]).all()
        else:
            # amx splits the activations of bf16 in two bfloat16
            np.testing.assert_allclose(results[0], results[1], rtol=0, atol=2e-4 if format is BF16 else 1e-4)


@pytest.mark.parametrize("format", [Q8, Q4], ids=lambda f: f.name)
@pytest.mark.parametrize("codes", ["lowest", "highest", "both"])
def test_the_largest_codes_and_activations_are_summed_exactly(target: str, format: TileFormat, codes: str) -> None:
    """Some levels add them up in 16 bits for a while."""
    n, k, rng = TILE_N, 256, np.random.default_rng(0)
    program, weights = matmul_program(n, k, format)
    signs = [(1, 1, 1, 1), (-1, -1, -1, -1), (1, 1, -1, -1), (-1, -1, 1, 1), (1, -1, 1, -1)]
    x = np.array([np.resize(row, k) for row in signs] + [rng.choice([-1, 1], k) for _ in range(n - len(signs))])
    lowest, highest = (0x81, 0x7F) if format is Q8 else (0x00, 0xFF)
    values = {"lowest": [lowest], "highest": [highest], "both": [lowest, highest]}[codes]
    strip = rng.choice(np.array(values, np.uint8), format.strip_bytes(k))
    lines = strip.reshape(-1, 64)
    for scale_line in lines[:: len(lines) // (1 if format is Q8 else 2)]:
        scale_line.view(np.uint16)[: 32 if format is Q8 else 16] = 0x3F80  # bfloat16's 1
    weights = {**weights, "embed": pack_matrix(x.astype(np.float32), F32), "matrix": strip[None]}
    for rows in (1, 2, 7, n, 2 * n):
        results = []
        for name in ("reference", target):
            with executor_of(name, (program, weights)) as executor:
                fill_slot(executor, 0, [i % n for i in range(rows)])
                executor.run(program, spans((0, 0, rows, rows)), 1)
                results.append(logits_of(executor, program, rows))
        assert (results[0] == results[1]).all()


@pytest.mark.parametrize("format", [Q8, Q4], ids=lambda f: f.name)
def test_rows_that_do_not_fit_a_cache_are_multiplied_in_blocks(target: str, format: TileFormat) -> None:
    model, rows = matmul_program(40, 8200, format), 165
    results = []
    for name in ("reference", target):
        with executor_of(
            name, model, max_model_len=rows + 1, max_num_batched_tokens=rows, max_num_logits=rows
        ) as executor:
            fill_slot(executor, 0, [i % 40 for i in range(rows)])
            executor.run(model[0], spans((0, 0, rows, rows)), 1)
            results.append(logits_of(executor, model[0], rows))
    assert (results[0] == results[1]).all()


@pytest.mark.parametrize("k", [257, 2200], ids=["short strips", "long strips"])
@pytest.mark.parametrize("format", FORMATS, ids=lambda f: f.name)
def test_from_how_far_weights_come_changes_no_bit(target: str, format: TileFormat, k: int) -> None:
    """Sweeps from L2, L3 and DRAM fetch ahead in ways of their own; an arena with room to spare counts as what it could
    hold."""
    program, weights = matmul_program(101, k, format)
    near = even_placement(program, 2)
    for rows in (1, 3, 15, 23, 33):
        results = []
        for room in (0, 3 << 20, 32 << 20):
            placement = Placement(near.shares, tuple(used + room for used in near.arena_bytes))
            with closing(make_executor(target, program, placement, weights, make_limits())) as executor:
                fill_slot(executor, 0, [(i * 7) % 101 for i in range(rows)])
                executor.run(program, spans((0, 0, rows, rows)), 1)
                results.append(logits_of(executor, program, rows))
        assert all((result == results[0]).all() for result in results)


@pytest.mark.parametrize("format", FORMATS, ids=lambda f: f.name)
@pytest.mark.parametrize("dims", SHAPES, ids=lambda d: f"{d.heads}x{d.head_dim}")
def test_a_whole_program_agrees_with_the_reference(target: str, format: TileFormat, dims: Dims) -> None:
    model = random_program(dims, format, tied=dims.layers == 1, bias=dims.layers == 1)
    tokens = [(i * 5 + 1) % dims.vocab for i in range(35)]
    results = []
    for name in ("reference", target):
        with executor_of(name, model) as executor:
            fill_slot(executor, 0, tokens)
            executor.run(model[0], spans((0, 0, 35, 35)), 1)
            results.append(logits_of(executor, model[0], 35))
    # A code of q8 activations may fall to the other side of a half where float sums differ in the last bit.
    np.testing.assert_allclose(results[0], results[1], rtol=0, atol=0.1 if format.is_quantized else 1e-4)
    assert np.abs(results[0] - results[1]).mean() < (5e-3 if format.is_quantized else 1e-5)


@pytest.mark.parametrize("format", FORMATS, ids=lambda f: f.name)
def test_bits_depend_on_neither_threads_nor_chunks_nor_neighbours(target: str, format: TileFormat) -> None:
    model = random_program(TINY, format)
    program = model[0]
    tokens = [(i * 11 + 3) % TINY.vocab for i in range(37)]

    def run(threads: int, chunks: list[int], neighbours: bool) -> np.ndarray:
        with executor_of(target, model, threads) as executor:
            fill_slot(executor, 1, tokens)
            fill_slot(executor, 0, tokens[5:12])
            parts, start = [], 0
            for count in chunks:
                batch = [(1, start, count, count)]
                if neighbours:
                    batch.insert(0, (0, 0, 7, 2))
                executor.run(program, spans(*batch), 1)
                skip = 2 if neighbours else 0
                parts.append(logits_of(executor, program, skip + count)[skip:])
                fill_slot(executor, 0, tokens[5:12])
                fill_slot(executor, 1, tokens)
                start += count
            return np.concatenate(parts)

    whole = run(1, [37], False)
    for threads, chunks, neighbours in (
        (2, [37], False),
        (1, [1] * 37, True),
        (2, [1, 20, 3, 13], True),
        (3, [5, 32], False),
    ):
        assert (run(threads, chunks, neighbours) == whole).all()


@pytest.mark.skipif(not FUSED_LEVELS, reason="no native level with fused multiply-add")
@pytest.mark.parametrize("format", FORMATS, ids=lambda f: f.name)
def test_native_levels_with_fused_multiply_add_agree_to_the_bit(format: TileFormat) -> None:
    model = random_program(TINY, format)
    results = []
    for level in FUSED_LEVELS:
        if format is BF16 and level == "amx":
            continue  # the order of its sums is the tile unit's
        with executor_of(f"native-{level}", model) as executor:
            fill_slot(executor, 0, [(i * 3) % TINY.vocab for i in range(40)])
            executor.run(model[0], spans((0, 0, 40, 40)), 1)
            results.append(logits_of(executor, model[0], 40))
    assert all((result == results[0]).all() for result in results)


def test_many_steps_equal_single_steps(target: str) -> None:
    model = random_program(TINY, Q8)
    outcomes = []
    for steps in (1, 5, 100):
        with executor_of(target, model, 2) as executor:
            fill_slot(executor, 0, [1, 2, 3], max_tokens=20)
            fill_slot(executor, 2, [4, 5], max_tokens=60, temperature=1.0, seed=5)
            batch, entries = spans((0, 0, 3, 1), (2, 0, 2, 1)), []
            while not entries or not any(e["finish"] for e in entries):
                executor.run(model[0], batch, steps)
                entries += list(executor.ring.drain())
                batch = spans(*((slot, executor.sequences.num_tokens[slot] - 1, 1, 1) for slot in (0, 2)))
            outcomes.append([(int(e["slot"]), int(e["position"]), int(e["token"]), int(e["finish"])) for e in entries])
    assert outcomes[0] == outcomes[1] == outcomes[2]
    assert len(outcomes[0]) == 40
    assert outcomes[0][-2][3] == Finish.LENGTH


def test_a_stop_id_ends_the_run(target: str) -> None:
    model = random_program(TINY, Q8)
    with executor_of(target, model) as executor:
        fill_slot(executor, 0, [1, 2, 3])
        executor.run(model[0], spans((0, 0, 3, 1)), 10)
        tokens = executor.ring.drain()["token"].tolist()
        stop = next(t for i, t in enumerate(tokens) if t not in tokens[:i] and i > 1)
        fill_slot(executor, 0, [1, 2, 3], stop_ids=[stop])
        result = executor.run(model[0], spans((0, 0, 3, 1)), 10)
        entries = executor.ring.drain()
        assert result.reason is StopReason.FINISHED
        assert entries["token"].tolist() == tokens[: tokens.index(stop) + 1]
        assert entries["finish"][-1] == Finish.STOP


def test_flags_and_blocks_end_the_run(target: str) -> None:
    model = random_program(TINY, Q8)
    with executor_of(target, model) as executor:

        def run(max_steps: int) -> tuple[StopReason, int]:
            result = executor.run(model[0], spans((0, 0, 3, 1)), max_steps)
            assert len(executor.ring.drain()) == result.num_steps
            return result.reason, result.num_steps

        fill_slot(executor, 0, [1, 2, 3])
        assert run(4) == (StopReason.STEPS, 4)
        fill_slot(executor, 0, [1, 2, 3])
        executor.sequences.num_blocks[0] = 1
        assert run(50) == (StopReason.OUT_OF_BLOCKS, 14)  # positions 2 to 15
        fill_slot(executor, 0, [1, 2, 3])
        executor.wake()
        assert run(50) == (StopReason.WAKE, 1)
        executor.sequences.wake[0] = 0
        fill_slot(executor, 0, [1, 2, 3])
        executor.sequences.stop_flags[0] = 1
        assert run(50) == (StopReason.STOPPED, 1)
        executor.sequences.stop_flags[0] = 0
        fill_slot(executor, 0, [1, 2, 3, 4, 5])  # a chunk that does not reach the sequence's end
        assert run(50) == (StopReason.STEPS, 1)


def test_a_wake_ends_a_run_within_a_step(target: str) -> None:
    model = random_program(TINY, Q8, max_model_len=800)
    with executor_of(target, model, max_num_seqs=50, max_model_len=800) as executor:
        for _ in range(20):  # a run may be over before the other thread has had its turn
            fill_slot(executor, 0, [1, 2, 3])
            steps_when_woken: list[int] = []

            def wake(seen: list[int] = steps_when_woken) -> None:
                executor.ring.wait(30)
                executor.wake()
                seen.append(executor.ring.capacity - executor.ring.free)

            waker = threading.Thread(target=wake)
            waker.start()
            result = executor.run(model[0], spans((0, 0, 3, 1)), 790)
            waker.join()
            executor.sequences.wake[0] = 0
            assert len(executor.ring.drain()) == result.num_steps
            if result.reason is StopReason.WAKE:
                break
        assert result.reason is StopReason.WAKE
        assert result.num_steps <= steps_when_woken[0] + 2  # the step at hand, and one that had begun not to see it


def test_a_full_ring_loses_nothing(target: str) -> None:
    model = random_program(TINY, Q8)
    with executor_of(target, model, max_num_seqs=1, max_num_logits=1, max_model_len=64) as executor:
        fill_slot(executor, 0, [1])
        batch, total = spans((0, 0, 1, 1)), 0
        result = executor.run(model[0], batch, 60)
        assert result.reason is StopReason.RING_FULL
        total += result.num_steps
        assert executor.ring.free == 0
        batch = spans((0, total, 1, 1))
        assert executor.run(model[0], batch, 60).num_steps == 0
        assert executor.ring.drain()["position"].tolist() == list(range(1, total + 1))
        assert executor.run(model[0], batch, 3).num_steps == 3


def test_the_ring_wakes_who_waits(target: str) -> None:
    model = random_program(TINY, Q8)
    with executor_of(target, model) as executor:
        fill_slot(executor, 0, [1])
        assert not executor.ring.wait(0.01)
        seen: list[bool] = []
        waiter = threading.Thread(target=lambda: seen.append(executor.ring.wait(30)))
        waiter.start()
        executor.run(model[0], spans((0, 0, 1, 1)), 1)
        waiter.join()
        assert seen == [True]


@pytest.mark.parametrize(
    ("batch", "field"),
    [
        (spans((4, 0, 1, 1)), "slot"),
        (spans((-1, 0, 1, 1)), "slot"),
        (spans((0, 0, 1, 1), (0, 1, 1, 1)), "slot"),
        (spans((0, 0, 0, 0)), "count"),
        (spans((0, 0, 2, 3)), "num_logits"),
        (spans((0, -1, 1, 1)), "start"),
        (spans((0, 2, 2, 1)), "start"),
        (np.zeros(0, SPAN), "dtype"),
    ],
)
def test_a_batch_outside_memory_is_refused(target: str, batch: np.ndarray, field: str) -> None:
    model = random_program(TINY, Q8)
    with executor_of(target, model) as executor:
        fill_slot(executor, 0, [1, 2, 3])
        with pytest.raises(ValueError, match=rf"batch\.{field}"):
            executor.run(model[0], batch, 1)


def test_a_token_outside_the_vocabulary_is_refused(target: str) -> None:
    model = random_program(TINY, Q8)
    with executor_of(target, model) as executor:
        for token in (-1, TINY.vocab):
            fill_slot(executor, 0, [1, token, 3])
            with pytest.raises(ValueError, match="slot 0"):
                executor.run(model[0], spans((0, 0, 3, 1)), 1)


def test_more_workers_than_cores_and_three_executors_at_once(target: str) -> None:
    model = random_program(TINY, F32)
    tokens: dict[int, list[int]] = {}

    def decode(number: int, workers: int = 8) -> None:
        with executor_of(target, model, workers) as executor:
            fill_slot(executor, 0, [1, 2, 3])
            executor.run(model[0], spans((0, 0, 3, 1)), 40)
            tokens[number] = executor.ring.drain()["token"].tolist()

    threads = [threading.Thread(target=decode, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    decode(3, workers=1)
    assert len(tokens[3]) > 10
    assert tokens[0] == tokens[1] == tokens[2] == tokens[3]


def test_weights_are_read_where_they_lie(target: str) -> None:
    with executor_of(target, matmul_program(40, 64, Q8)) as executor:
        seconds = executor.read_seconds(3)
        assert seconds is None or seconds > 0
        assert (seconds is None) == (executor.name != "native")
    if seconds is not None:
        with pytest.raises(RuntimeError, match="the executor is closed"):
            executor.read_seconds(1)
