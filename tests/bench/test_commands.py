"""``waferline bench``: each command runs on a tiny model and prints one line of JSON with what it promises."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers import LEVELS
from waferline.bench import kernels, load_probe
from waferline.bench.batch import Batch, ZeroWeights, placed
from waferline.bench.kernels import Footprint
from waferline.bench.prefill import matmul_macs, matmuls_alone
from waferline.cli import main
from waferline.fabric.placement import plan_placement
from waferline.model.load import load_model
from waferline_kernels.program import Op

TIED = Path(__file__).parents[1] / "fixtures" / "tied"

Captured = pytest.CaptureFixture[str]


def run_json(capsys: Captured, *arguments: str) -> dict[str, Any]:
    assert main(["bench", *arguments, "--json"]) == 0
    output, errors = capsys.readouterr()
    assert errors == ""
    assert output.count("\n") == 1
    result: dict[str, Any] = json.loads(output)
    assert result["bench"] == arguments[0]
    assert result["cpus"] >= 1
    return result


def test_decode(capsys: Captured) -> None:
    arguments = ("decode", "--model", str(TIED), "--prompt-tokens", "9", "--tokens", "5", "--repeats", "2")
    result = run_json(capsys, *arguments, "--batch", "1,3", "--threads", "2", "--dtype", "q4")
    one, three = result["results"]
    assert (one["batch"], three["batch"], one["threads"], one["dtype"]) == (1, 3, 2, "q4")
    for row in (one, three):
        assert row["tokens_per_second"] > 0
        assert 0 < row["itl_p50_ms"] <= row["itl_p95_ms"] <= row["itl_p99_ms"]
        swept = row["weight_bytes_per_step"] + row["kv_bytes_per_step"]
        assert row["bytes_per_token"] == round(swept / row["batch"])
        share = row["tokens_per_second"] * row["bytes_per_token"] / row["bandwidth_gb_per_second"] / 1e9
        assert row["share_of_limit"] == pytest.approx(share, rel=0.05, abs=2e-3)
        assert [entry["kind"] for entry in row["residency"]][-1] == "step"
    assert three["kv_bytes_per_step"] == 3 * one["kv_bytes_per_step"]


def test_serve(capsys: Captured) -> None:
    arguments = ("serve", "--model", str(TIED), "--prompt-tokens", "9", "--tokens", "20", "--repeats", "1")
    rows = run_json(capsys, *arguments, "--threads", "1,2", "--dtype", "q4")["results"]
    ways = ["Executor.run", "LLM.stream", "Client.stream"]
    assert [(row["way"], row["threads"]) for row in rows] == [(way, n) for n in (1, 2) for way in ways]
    for row in rows:
        assert row["dtype"] == "q4"
        assert row["tokens_per_second"] > 0
        assert 0 <= row["itl_p50_ms"] <= row["itl_p95_ms"] <= row["itl_p99_ms"]
    assert rows[0]["share_of_run"] == rows[3]["share_of_run"] == 1
    assert rows[1]["share_of_run"] == pytest.approx(
        rows[1]["tokens_per_second"] / rows[0]["tokens_per_second"], abs=1e-3
    )


def test_prefill(capsys: Captured) -> None:
    result = run_json(capsys, "prefill", "--model", str(TIED), "--tokens", "20", "--repeats", "2", "--threads", "1")
    assert result["tokens"] == 20
    assert result["tokens_per_second"] > 0
    assert 0 < result["share_of_limit"] < 2
    assert result["peak_tmac_per_second"] > 0


def test_matmuls_alone_are_a_prompt_s_own() -> None:
    program = load_model(TIED, "q8").program
    alone = matmuls_alone(program)
    assert matmul_macs(alone, 20) == matmul_macs(program, 20)
    assert {Op(i["op"]) for i in alone.instructions} == {Op.MATMUL, Op.LOGITS, Op.SAMPLE}


def test_kernels_of_a_given_shape(capsys: Captured) -> None:
    arguments = ("kernels", "--only", f"q8_64x16_{LEVELS[0]}" if LEVELS else "q8", "--rows", "1", "--repeats", "1")
    result = run_json(capsys, *arguments, "--k", "256", "--n", "48", "--threads", "1")
    assert {row["n"] for row in result["results"]} == {48}


def test_decode_of_one_token_has_no_gaps(capsys: Captured) -> None:
    arguments = ("decode", "--model", str(TIED), "--prompt-tokens", "9", "--tokens", "1", "--repeats", "1")
    [row] = run_json(capsys, *arguments)["results"]
    assert row["tokens_per_second"] > 0
    assert [row[f"itl_p{p}_ms"] for p in (50, 95, 99)] == [None] * 3
    assert main(["bench", *arguments]) == 0


def test_default_prompts_fit_the_model(capsys: Captured) -> None:
    assert run_json(capsys, "prefill", "--model", str(TIED), "--repeats", "1")["tokens"] == 255
    arguments = ("interference", "--model", str(TIED), "--repeats", "1", "--streams", "1", "--itl-target-ms", "40")
    assert [row["prompt_tokens"] for row in run_json(capsys, *arguments)["results"]] == [255, 255]


def test_speculation(capsys: Captured) -> None:
    arguments = ("speculation", "--model", str(TIED), "--tokens", "30", "--repeats", "1", "--threads", "1")
    result = run_json(capsys, *arguments, "--acceptance", "1,0.5,0.502", "--num-speculative-tokens", "3")
    cases = ["100% right", "50% right", "50.2% right", "loop, prompt lookup"]
    assert [row["drafts"] for row in result["results"]] == cases
    for row in result["results"]:
        assert row["speedup"] > 0
        assert row["num_speculative_tokens"] == 3
        assert 0 <= row["accepted_tokens"] <= row["draft_tokens"]
        assert row["steps"] + row["accepted_tokens"] == 30


def test_load(capsys: Captured, tmp_path: Path) -> None:
    result = run_json(capsys, "load", "--model", str(TIED), "--repeats", "1", "--threads", "1")
    fields = ("pack_seconds", "ready_seconds", "arena_fill_seconds", "memcpy_seconds", "model_bytes")
    assert all(result[field] > 0 for field in fields)
    packed = tmp_path / "tied.wafer"
    assert main(["pack", str(TIED), str(packed)]) == 0
    capsys.readouterr()
    again = run_json(capsys, "load", "--model", str(packed), "--repeats", "1", "--threads", "1")
    assert again["pack_seconds"] is None
    assert again["model_bytes"] == result["model_bytes"]
    assert main(["bench", "load", "--model", str(packed), "--dtype", "q4"]) == 1
    assert "dtype: 'q4', expected 'q8'" in capsys.readouterr().err


@pytest.fixture
def trace(tmp_path: Path) -> str:
    """Twelve requests within 110 ms, one of them too long for the model."""
    path = tmp_path / "trace.csv"
    lines = [f"2023-11-16 18:15:46.{at:02},{400 if at == 7 else 5 + at},{3 + at}" for at in range(12)]
    path.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *lines, ""]))
    return str(path)


def test_the_copy_that_loading_is_held_to_fills_each_worker_s_arena(monkeypatch: pytest.MonkeyPatch) -> None:
    arenas = []

    def allocate(shape: int, dtype: Any) -> Any:
        arenas.append(np.zeros(shape, dtype))
        return arenas[-1]

    monkeypatch.setattr(load_probe, "aligned_zeros", allocate)
    model = load_model(TIED)
    placement = plan_placement(model.program, 2)
    assert load_probe.copy_seconds(model, placement) > 0
    assert [len(arena) for arena in arenas] == list(placement.arena_bytes)
    for spec, shares in zip(model.program.tensors, placement.shares, strict=True):
        for arena, (first, count, offset) in zip(arenas, shares.tolist(), strict=True):
            strips = model.weights[spec.name][first : first + count].reshape(-1) if count else []
            np.testing.assert_array_equal(arena[offset : offset + len(strips)], strips)


def write_trace(folder: Path, *prompts: int) -> str:
    """Requests of so many prompt tokens, 100 ms apart."""
    path = folder / "prompts.csv"
    lines = [f"2023-11-16 18:15:46.{at},{prompt},9" for at, prompt in enumerate(prompts)]
    path.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *lines, ""]))
    return str(path)


def schedule_arguments(trace: str) -> tuple[str, ...]:
    limits = ("--max-num-seqs", "4", "--max-num-batched-tokens", "16", "--max-model-len", "48")
    return ("schedule", "--model", str(TIED), "--trace", trace, "--threads", "1", *limits)


def test_schedule(capsys: Captured, trace: str) -> None:
    result = run_json(
        capsys, *schedule_arguments(trace), "--real", "--ttft-limit-ms", "60000", "--itl-limit-ms", "60000"
    )
    assert (result["requests"], result["max_num_seqs"], result["max_model_len"]) == (12, 4, 48)
    assert result["capacity_per_second"] > 0
    assert (result["capacity_requests"], result["capacity_refused"]) == (12, 1)
    for figures in (result["simulated"], result["real"]):
        assert (figures["finished"], figures["rejected"], figures["num_good"]) == (11, 1, 11)
        assert figures["fluidity_index"] == figures["fluid_share"] == 1
        assert 0 < figures["ttft_p50_ms"] <= figures["ttft_p99_ms"]
        assert figures["num_steps"] > 0
    assert result["simulated"]["num_schedules"] > 0
    assert result["simulated"]["full_sequences"] <= 4


def test_what_is_refused_is_no_capacity(capsys: Captured, tmp_path: Path) -> None:
    def capacity(*prompts: int) -> float:
        arguments = schedule_arguments(write_trace(tmp_path, *prompts))
        result = run_json(capsys, *arguments, "--fabric", "wse3", "--load", "0.5")
        assert result["load"] == pytest.approx(0.5, rel=0.01)
        rate: float = result["capacity_per_second"]
        return rate

    assert capacity(20, 400, 20, 400) == capacity(20, 20)


def test_requests_that_come_at_once_have_no_load(capsys: Captured, tmp_path: Path) -> None:
    arguments = (*schedule_arguments(write_trace(tmp_path, 20)), "--fabric", "wse3")
    assert run_json(capsys, *arguments)["load"] is None
    assert main(["bench", *arguments]) == 0
    assert "1 requests at once, of a capacity of" in capsys.readouterr().out


def test_a_trace_of_which_little_or_nothing_can_be_served(capsys: Captured, tmp_path: Path) -> None:
    arguments = (*schedule_arguments(write_trace(tmp_path, 400, 400, 20)), "--fabric", "wse3")
    figures = run_json(capsys, *arguments, "--load", "1", "--seconds", "1e-9")["simulated"]
    assert (figures["rejected"], figures["requests_per_second"], figures["num_schedules"]) == (2, 0, 0)
    path = write_trace(tmp_path, 48)
    assert main(["bench", *schedule_arguments(path), "--fabric", "wse3"]) == 1
    words = f"trace: {path}: none of 1 requests can be served, expected some of fewer than 48 prompt tokens"
    assert words in capsys.readouterr().err


def test_schedule_at_a_load_on_a_wafer(capsys: Captured, trace: str) -> None:
    arguments = (*schedule_arguments(trace), "--fabric", "wse3", "--load", "0.5")
    result = run_json(capsys, *arguments)
    assert result["load"] == pytest.approx(0.5, rel=0.01)
    assert "real" not in result
    again = run_json(capsys, *arguments)
    clocked = [field for field in result["simulated"] if not field.endswith(("_us", "_us_per_step"))]
    assert [result["simulated"][field] for field in clocked] == [again["simulated"][field] for field in clocked]
    assert main(["bench", *arguments, "--requests", "5", "--cancel-share", "1"]) == 0
    lines = {line.split("  ")[0]: line.split()[-1] for line in capsys.readouterr().out.splitlines()}
    assert int(lines["finished"]) + int(lines["cancelled"]) == 5


@pytest.mark.parametrize("only", ["q8_64x16_numba", "attend_f32_numba"])
def test_kernels(capsys: Captured, monkeypatch: pytest.MonkeyPatch, only: str) -> None:
    monkeypatch.setattr(kernels, "footprints_of", lambda host: (Footprint("L2", 1 << 16),))
    monkeypatch.setattr(kernels, "BYTES_PER_READ", 1e6)
    result = run_json(
        capsys, "kernels", "--only", only, "--rows", "1,4", "--k", "192", "--repeats", "1", "--threads", "1"
    )
    assert [row["rows"] for row in result["results"]] == [1, 4]
    for row in result["results"]:
        assert only in row["kernel"]
        assert row["microseconds"] is None or row["microseconds"] > 0
        assert row["bandwidth_gb_per_second"] > 0
        assert row["error"] < 2e-6


def test_a_kernel_that_takes_no_measurable_time_has_no_figures(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "step_seconds", lambda *arguments: 1e-6)
    monkeypatch.setattr(kernels, "BYTES_PER_READ", 1e6)
    arguments = ("kernels", "--only", "attend_f32_numba", "--rows", "1", "--repeats", "1", "--threads", "1")
    [row] = run_json(capsys, *arguments)["results"]
    figures = ("microseconds", "gb_per_second", "tmac_per_second", "share_of_limit")
    assert [row[figure] for figure in figures] == [None] * 4
    assert main(["bench", *arguments]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    name, rows, _, *figures = last.split()
    assert (name, rows, figures) == ("attend_f32_numba", "1", ["33.6", "MB", f"{row['error']:.1e}"])


def test_attention_of_more_rows_than_the_context_makes_that_longer(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "CONTEXT", 64)
    monkeypatch.setattr(kernels, "BYTES_PER_READ", 1e6)
    arguments = ("--only", "attend_int8_numba", "--repeats", "1", "--threads", "1")
    [short] = run_json(capsys, "kernels", *arguments, "--rows", "8")["results"]
    [long] = run_json(capsys, "kernels", *arguments, "--rows", "640")["results"]
    assert long["bytes"] == 10 * short["bytes"]
    assert long["tmac_per_second"] > 0


@pytest.mark.parametrize(
    ("command", "words"), [("decode", "matmul gate_up"), ("prefill", "matmul gate_up"), ("speculation", "100% right")]
)
def test_a_table_for_people(capsys: Captured, command: str, words: str) -> None:
    assert main(["bench", command, "--model", str(TIED), "--tokens", "4", "--repeats", "1"]) == 0
    output, _ = capsys.readouterr()
    assert "tokens/s" in output
    assert words in output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["decode", "--model", "no-such-model"], "no-such-model"),
        (["decode", "--tokens", "0"], "tokens: 0, expected at least 1"),
        (["decode", "--batch", "1" + 12 * "0"], "Unable to allocate"),
        (["kernels", "--only", "q9"], "only: 'q9'"),
        (["kernels", "--threads", "0"], "threads: 0, expected 1 to 256"),
        (
            ["speculation", "--model", str(TIED), "--num-speculative-tokens", "0"],
            "num_speculative_tokens: 0, expected at least 1",
        ),
        (["speculation", "--model", str(TIED), "--tokens", "1"], "tokens: 1, expected at least 2"),
        (
            [
                "interference",
                "--model",
                str(TIED),
                "--prompt-tokens",
                "9",
                "--tokens",
                "1",
                "--undisturbed-tokens",
                "1",
            ],
            "undisturbed_tokens: 1, expected at least 2",
        ),
        (["load", "--model", str(TIED), "--threads", "0"], "threads: 0, expected 1 to 256"),
        (["schedule", "--trace", "no-such-trace"], "no-such-trace"),
        (["schedule", "--trace", "t", "--fabric", "tpu"], "fabric: 'tpu', expected one of host, wse3"),
        (["schedule", "--trace", "t", "--fabric", "wse3", "--real"], "fabric: 'wse3', expected 'host'"),
        (["schedule", "--trace", "t", "--load", "0"], "load: 0.0, expected 1e-06 to 1e+06"),
        (["schedule", "--trace", "t", "--itl-limit-ms", "1e-7"], "itl_limit_ms: 1e-07, expected 0.001 to 1e+09"),
        (["schedule", "--trace", "t", "--itl-target-ms", "nan"], "itl_target_ms: nan, expected 0.001 to 1e+09"),
        (["schedule", "--trace", "t", "--seed", "-1"], "seed: -1, expected at least 0"),
        (["serve", "--model", str(TIED), "--prompt-tokens", "254"], "prompt_tokens: 254, expected 1 to 131"),
        (["schedule", "--trace", "t", "--seconds", "1"], "seconds: 1.0, expected a load with it"),
        (["schedule", "--trace", "t", "--cancel-share", "2"], "cancel_share: 2.0, expected 0 to 1"),
        (["schedule", "--trace", "t", "--queue-timeout-ms", "0"], "queue_timeout_ms: 0, expected an integer from 1"),
    ],
)
def test_what_cannot_be_measured_is_said(capfd: pytest.CaptureFixture[str], arguments: list[str], words: str) -> None:
    assert main(["bench", *arguments]) == 1
    assert words in capfd.readouterr().err


def test_a_batch_samples_the_same_after_rewinding() -> None:
    model = load_model(TIED, max_model_len=40)
    with placed(model.program, 1) as placement:
        batch = Batch(model.program, model.weights, placement, size=2, max_model_len=40, max_rows=7)
        try:
            batch.prefill(17)
            seconds, times = batch.decode(5)
            first = batch.executor.sequences.tokens[:2, :23].copy()
            batch.rewind(18)
            batch.executor.sequences.tokens[:2, 18:] = 0
            batch.decode(5)
            assert (batch.executor.sequences.tokens[:2, :23] == first).all()
            assert seconds > 0
            assert len(times) == 5
            assert (times[1:] > times[:-1]).all()
        finally:
            batch.close()


def test_zero_weights_have_the_shapes_of_the_program() -> None:
    model = load_model(TIED)
    zeros = ZeroWeights(model.program)
    assert len(zeros) == len(list(zeros)) == len(model.program.tensors)
    for name in zeros:
        assert (zeros[name].shape, zeros[name].dtype) == (model.weights[name].shape, model.weights[name].dtype)


@pytest.mark.parametrize("fabric", ["host", "wse3"])
def test_inspect_predicts_a_step(capsys: Captured, fabric: str) -> None:
    assert main(["inspect", str(TIED), "--threads", "1", "--fabric", fabric]) == 0
    output, errors = capsys.readouterr()
    assert errors == ""
    step = next(line.split() for line in output.splitlines() if line.startswith("  step "))
    assert ("SRAM" in step) == (fabric == "wse3")
    assert step.count("us") == (1 if fabric == "wse3" else 2)
    assert main(["inspect", str(TIED), "--fabric", "tpu"]) == 1
    assert "fabric: 'tpu', expected one of host, wse3" in capsys.readouterr().err


@pytest.mark.parametrize("positions", [2, 3, 2**31 - 1])
def test_inspect_measures_a_model_of_any_context(capsys: Captured, tmp_path: Path, positions: int) -> None:
    folder = shutil.copytree(TIED, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text()) | {"max_position_embeddings": positions}
    (folder / "config.json").write_text(json.dumps(config))
    assert main(["inspect", str(folder), "--threads", "1"]) == 0
    output, errors = capsys.readouterr()
    assert errors == ""
    assert f"context    {positions} tokens" in output


@pytest.mark.parametrize("extra", ["test", "bench"])
def test_extras_with_pytest_have_what_it_is_configured_with(extra: str) -> None:
    lines = (Path(__file__).parents[2] / "pyproject.toml").read_text().splitlines()
    assert "timeout = 300" in lines  # an option of pytest-timeout's, and a warning without it is an error
    assert '"pytest-timeout>=' in next(line for line in lines if line.startswith(f"{extra} = ["))


def test_interference(capsys: Captured) -> None:
    arguments = ("--model", str(TIED), "--streams", "2", "--prompt-tokens", "60", "--tokens", "5", "--repeats", "1")
    result = run_json(
        capsys, "interference", *arguments, "--undisturbed-tokens", "5", "--itl-target-ms", "40,auto", "--threads", "1"
    )
    without, fixed, auto = result["results"]
    assert without["itl_target_ms"] is None
    assert fixed["itl_target_ms"] == 40
    assert auto["itl_target_ms"] > 0
    for row in result["results"]:
        assert row["ttft_ms"] > 0
        for phase in ("before", "during", "after"):
            figures = row["itl"][phase]["step"]
            assert figures["gaps"] == row["itl"][phase]["arrival"]["gaps"]
            if figures["gaps"]:  # such short streams may have ended before the prompt comes
                assert 0 < figures["p50"] <= figures["p99"] <= figures["worst"]
