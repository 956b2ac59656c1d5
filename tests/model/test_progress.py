"""The progress bar: on a terminal, for what takes seconds, and gone in the end."""

from __future__ import annotations

import io
import sys

import pytest

from waferline.model.progress import WORTH_A_BAR, ProgressBar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stderr", "total", "is_shown"),
    [(Terminal(), WORTH_A_BAR, True), (Terminal(), WORTH_A_BAR - 1, False), (io.StringIO(), WORTH_A_BAR, False)],
)
def test_it_is_shown_where_somebody_waits(
    monkeypatch: pytest.MonkeyPatch, stderr: io.StringIO, total: int, is_shown: bool
) -> None:
    monkeypatch.setattr(sys, "stderr", stderr)
    monkeypatch.setenv("TERM", "xterm")
    bar = ProgressBar("packing", total)
    bar.advance(total // 2)
    bar.advance(total - total // 2)
    written = stderr.getvalue()
    assert ("packing" in written) == is_shown
    bar.advance(1)
    bar.close()
    assert stderr.getvalue() == written
