"""The comparison with other engines: what needs none of them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from benches.peers.agreement import common_prefix
from benches.peers.process import PeerProcess
from benches.peers.report import Contender, Measurement, decode_work, markdown, prefill_work, records
from benches.peers.runner import Absent, Generation, Runner, Setup, converted, make_prompts

DECODE = decode_work(batch=8, prompt_tokens=128, tokens=4)
PREFILL = prefill_work(512)


class CountingRunner(Runner):
    """Says each token's number, and that it took so many seconds."""

    vocab = 100
    settings = "none"

    def generate(self, prompts: NDArray[np.int32], tokens: int) -> Generation:
        return Generation(np.tile(np.arange(tokens), (len(prompts), 1)), [float(step) for step in range(tokens)])


def make_setup(folder: Path) -> Setup:
    model = folder / "model"
    model.mkdir()
    (model / "model.safetensors").touch()
    return Setup(model, "q8", threads=1, max_batch=1, max_model_len=8, cache=folder / "cache")


def test_decode_counts_the_steps_after_the_first_token() -> None:
    assert CountingRunner().decode(2, 5, 3) == [1.0, 2.0, 3.0]
    assert CountingRunner().prefill(5) == [0.0]
    assert CountingRunner().greedy([1, 2], 3) == [0, 1, 2]


def test_prompts_share_no_prefix() -> None:
    prompts = make_prompts(32, 16, vocab=512)
    assert prompts.shape == (32, 16)
    assert len(set(prompts[:, 0].tolist())) == 32
    assert prompts.max() < 512
    assert make_prompts(3, 64, vocab=50).max() < 50


def test_rates_are_medians_of_runs() -> None:
    measured = Measurement([[0.1, 0.1, 0.1, 0.1], [0.2, 0.2, 0.2, 0.2], [0.1, 0.1, 0.1, 0.5]])
    assert measured.tokens_per_second(DECODE) == pytest.approx(32 / 0.8)
    assert measured.step_ms(0.5) == pytest.approx(100)
    assert measured.step_ms(1.0) == pytest.approx(500)


def test_the_table_marks_the_fastest_and_names_the_absent() -> None:
    fast = Contender("waferline", "q8", 2, "built here", works={DECODE.name: Measurement([[0.01] * 4])})
    slow = Contender(
        "other", "int8", 1, works={DECODE.name: Measurement([[0.1] * 4]), PREFILL.name: Measurement([[2.0]])}
    )
    gone = Contender("third", "int4", 2, absent="not installed")
    table = markdown("tiny", [DECODE, PREFILL], [fast, slow, gone])
    assert "| engine | decode, batch 8 | prefill, 512 tokens |" in table
    assert "| waferline q8, 2 | **800** | - |" in table
    assert "| other int8, 1 | 80.0 | **256** |" in table
    assert "- waferline q8, 2: built here" in table
    assert "- third int4, 2: absent: not installed" in table
    assert "| third int4" not in table


def test_records_leave_out_what_was_not_measured() -> None:
    contender = Contender("other", "int8", 1, works={PREFILL.name: Measurement([[2.0], [1.0], [4.0]])})
    [record] = records([DECODE, PREFILL], [contender])
    assert record["works"] == {
        PREFILL.name: {"tokens_per_second": 256.0, "step_ms_p50": 2000.0, "step_ms_p95": 4000.0, "runs": 3}
    }


def test_common_prefix() -> None:
    assert common_prefix([1, 2, 3], [1, 2, 3]) == 3
    assert common_prefix([1, 2, 3], [1, 9, 3]) == 1
    assert common_prefix([], [1]) == 0


def test_a_conversion_is_kept_until_the_model_changes(tmp_path: Path) -> None:
    setup, calls = make_setup(tmp_path), []

    def convert(path: Path) -> None:
        calls.append(path)
        path.write_text("converted")

    path = converted(setup, "file", convert)
    assert converted(setup, "file", convert) == path
    assert path.read_text() == "converted"
    assert len(calls) == 1
    newer = path.stat().st_mtime_ns + 10**9
    os.utime(setup.model / "model.safetensors", ns=(newer, newer))
    converted(setup, "file", convert)
    assert len(calls) == 2


def test_an_engine_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(Absent, match="unheard_of_peer"):
        PeerProcess("unheard_of", make_setup(tmp_path), tmp_path / "log")
