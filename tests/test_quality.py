"""What quantisation costs, as ``benches/quality.py`` measures it."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from benches import quality

TEXT = f"the cat sat on the mat\n{quality.STORY_END}\n\n{quality.STORY_END}\na dog ran\n"


@pytest.mark.parametrize(("dtype", "least", "most"), [("f32", 0.0, 0.0), ("q4_0", 1e-6, 1.0)])
def test_a_dtype_is_held_against_f32(
    fixtures_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    dtype: str,
    least: float,
    most: float,
) -> None:
    text = tmp_path / "stories.txt"
    text.write_text(TEXT)
    assert quality.read_stories(text, 9) == ["the cat sat on the mat", "a dog ran"]
    arguments = [str(fixtures_dir / "tied"), str(text), "--dtype", dtype, "--kv-dtype", "f32", "--threads", "1"]
    monkeypatch.setattr(sys, "argv", ["quality", *arguments])
    quality.main()
    printed = capsys.readouterr().out
    [divergence] = re.findall(r"mean KL +(\S+) nats", printed)
    assert least <= float(divergence) <= most
    assert f"perplexity {dtype}" in printed


def test_added_perplexity_has_the_error_of_its_stories() -> None:
    tokens = np.array([10, 30])
    exact = np.array([20.0, 45.0])
    assert quality.added_perplexity(exact, exact, tokens) == (0.0, 0.0)
    added, error = quality.added_perplexity(exact + 0.01 * tokens, exact, tokens)  # the same of every token
    assert (added, error) == (pytest.approx(100 * np.expm1(0.01)), pytest.approx(0, abs=1e-9))
    added, error = quality.added_perplexity(exact + np.array([0.4, -0.4]), exact, tokens)
    assert (added, error) == (pytest.approx(0), pytest.approx(100 * np.sqrt(2 * 0.32) / 40))
