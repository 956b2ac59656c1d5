"""The cost model: its arithmetic on a fabric made up, its monotony, and what it learns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from waferline.fabric.cost import CostModel, StepShape
from waferline.fabric.curve import BandwidthCurve
from waferline.fabric.placement import plan_placement
from waferline.fabric.report import report_lines, report_rows
from waferline.fabric.residency import host_residency
from waferline.fabric.spec import FabricSpec, Links
from waferline.model.load import load_model
from waferline_kernels.kv_cache import KV_BF16
from waferline_kernels.program import Op
from waferline_kernels.tiles import FORMATS

PROGRAM = load_model(Path(__file__).parents[1] / "fixtures" / "tied", "q8").program
WORKERS = 2


def host(bandwidth: float = 1e9, macs: float = 1e12, barrier: float = 0.0) -> FabricSpec:
    curve = BandwidthCurve((1 << 10, 1 << 30), (4 * bandwidth, bandwidth))
    return FabricSpec("host", WORKERS, (), curve, dict.fromkeys(FORMATS, macs), Links(barrier_seconds=barrier))


def model(spec: FabricSpec) -> CostModel:
    return CostModel(PROGRAM, host_residency(PROGRAM, plan_placement(PROGRAM, WORKERS), spec), spec, "bf16")


def test_a_step_bound_by_memory_takes_its_bytes_over_the_bandwidth() -> None:
    spec = host(macs=1e18)
    costs, shape = model(spec), StepShape.of(1, 10, 1)
    swept = PROGRAM.swept_bytes + 10 * PROGRAM.dims.kv_block_bytes(KV_BF16) / 16
    assert costs.swept_bytes(shape) == swept
    sweeping = sum(prediction.sweep for prediction in costs.predict(shape))
    assert sum(prediction.bytes for prediction in costs.predict(shape)) == pytest.approx(swept)
    # Shares are of whole strips, so the fuller core has up to a strip of each matrix more than half.
    assert swept / spec.curve.at(swept) <= sweeping <= 1.5 * swept / spec.curve.at(swept)


def test_a_step_bound_by_arithmetic_takes_its_macs_over_the_peak() -> None:
    costs, shape = model(host(bandwidth=1e18, macs=1e9)), StepShape.of(40, 820, 1)
    predictions = costs.predict(shape)
    macs = sum(prediction.macs for prediction in predictions)
    assert sum(prediction.compute for prediction in predictions) == pytest.approx(macs / 1e9)
    dims = PROGRAM.dims
    per_row = dims.hidden * (dims.qkv + dims.heads * dims.head_dim + 3 * dims.ffn)
    attended = 2 * dims.heads * dims.head_dim * 820
    assert macs == dims.layers * (40 * per_row + attended) + dims.hidden * dims.vocab
    assert costs.predict_step_ms(40, 820, 1) == pytest.approx(1e3 * macs / 1e9, rel=1e-3)


def test_prediction_of_instructions_and_of_the_step_agree() -> None:
    costs = model(host(barrier=1e-6))
    for shape in (StepShape.of(1, 10, 1), StepShape.of(33, 600, 2), StepShape.of(7, 28, 0)):
        predicted = costs.predict_step_ms(shape.num_rows, shape.context_tokens, shape.num_logits_rows)
        assert predicted == pytest.approx(1e3 * sum(prediction.seconds for prediction in costs.predict(shape)))


def test_barriers_are_paid_where_rows_are_shared_out() -> None:
    few, many = (model(host(barrier=1.0)).predict(StepShape.of(rows, rows, 1)) for rows in (4, 5))
    ops = PROGRAM.instructions["op"]
    prepares = np.isin(ops, (Op.NORM, Op.QUANTIZE))
    prepares_many = prepares & (PROGRAM.instructions["wanted_rows"] == 0)
    assert [prediction.barrier for prediction in few] == np.where(prepares, 0.0, 1.0).tolist()
    assert [prediction.barrier for prediction in many] == np.where(prepares & ~prepares_many, 0.0, 1.0).tolist()


def test_keys_and_values_are_read_once_by_the_rows_of_one_sequence() -> None:
    assert StepShape.of(8, 8 * 100, 8).kv_tokens == 800
    assert StepShape.of(100, 5050, 1).kv_tokens == 50
    assert StepShape.of(100, 5050, 0).kv_tokens == 50
    assert StepShape.of(100, 5050, 1, kv_tokens=100).kv_tokens == 100


rows = st.integers(1, 2000)
tokens = st.integers(1, 1_000_000)


@given(rows, tokens, rows, tokens, st.integers(0, 3), st.integers(1, 1000))
def test_more_work_is_never_predicted_to_take_less(r: int, c: int, w: int, kv: int, which: int, more: int) -> None:
    costs = model(host(barrier=1e-6))
    costs.observe(1, 100, 1, 3.0)
    shape = [r, c, w, kv]
    before = costs.predict_step_ms(*shape)
    shape[which] += more
    assert costs.predict_step_ms(*shape) >= before * (1 - 1e-9)


def test_it_learns_what_each_kind_of_step_takes() -> None:
    """Decoding that takes twice as long as sweeping would, prefill three times as long as the peak says."""
    costs = model(host(bandwidth=1e9, macs=20e9))
    decode, prefill = (1, 100, 1, 100), (64, 2080, 1, 64)
    truth = {decode: 2 * costs.predict_step_ms(*decode), prefill: 3 * costs.predict_step_ms(*prefill)}
    for _ in range(60):
        for shape, milliseconds in truth.items():
            costs.observe(*shape[:3], milliseconds, shape[3])
    for shape, milliseconds in truth.items():
        assert costs.predict_step_ms(*shape) == pytest.approx(milliseconds, rel=0.1)
    assert costs.factors["compute"] > 2


def test_one_disturbed_step_is_soon_forgotten() -> None:
    costs = model(host())
    truth = costs.predict_step_ms(1, 100, 1)
    for _ in range(50):
        costs.observe(1, 100, 1, truth)
    costs.observe(1, 100, 1, 1000 * truth)
    assert costs.predict_step_ms(1, 100, 1) < 1.2 * truth
    for _ in range(30):
        costs.observe(1, 100, 1, truth)
    assert costs.predict_step_ms(1, 100, 1) == pytest.approx(truth, rel=0.02)


def test_it_follows_where_all_steps_take_other_times() -> None:
    """Be it that the machine has changed, or that what it was told first was wrong."""
    costs = model(host())
    truth = costs.predict_step_ms(1, 100, 1)
    for milliseconds in (40 * truth, truth):
        for _ in range(200):
            costs.observe(1, 100, 1, milliseconds)
        for _ in range(10):
            costs.observe(1, 100, 1, truth)
        assert costs.predict_step_ms(1, 100, 1) == pytest.approx(truth, rel=0.1)


@pytest.mark.parametrize("milliseconds", [0.0, -1.0, float("nan")])
def test_a_step_that_took_no_time_is_refused(milliseconds: float) -> None:
    with pytest.raises(ValueError, match="measured_ms"):
        model(host()).observe(1, 1, 1, milliseconds)


def test_the_report_adds_up() -> None:
    spec = host()
    where = host_residency(PROGRAM, plan_placement(PROGRAM, WORKERS), spec)
    predictions = CostModel(PROGRAM, where, spec, "bf16").predict(StepShape.of(1, 10, 1))
    measured = np.full((len(PROGRAM.instructions), 2), 1e-6)
    *kinds, step = report_rows(PROGRAM, predictions, where, measured)
    assert sum(row.count for row in kinds) == step.count == len(PROGRAM.instructions)
    assert sum(row.bytes for row in kinds) == pytest.approx(step.bytes)
    assert step.measured == pytest.approx(2e-6 * step.count)
    assert step.waited == pytest.approx(1e-6 * step.count)
    assert step.share_of_limit == pytest.approx(step.limit / (2e-6 * step.count))
    assert {row.kind for row in kinds} >= {"matmul qkv", "matmul gate_up", "attend", "norm", "sample"}
    assert all(row.level == "" for row in kinds if not row.bytes)
    lines = list(report_lines([*kinds, step]))
    assert len(lines) == len(kinds) + 2
    unmeasured = report_rows(PROGRAM, predictions, where)
    assert all(row.measured is None and row.share_of_limit is None for row in unmeasured)
    assert "barrier_us" in unmeasured[0].fields()
