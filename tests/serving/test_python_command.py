"""Processes of this package's own run its code, and nothing that lies in the user's current folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from waferline.serving.python_command import PACKAGE_FOLDER, python_command

SCRIPT = "import sys; from waferline.cli import main; sys.exit(main())"  # as the one that is installed


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, whose files have names of modules."""
    folder = tmp_path / "here"
    folder.mkdir()
    for name in ("queue", "zmq", "msgspec"):
        (folder / f"{name}.py").write_text("raise SystemExit('a file of the user was run')")
    monkeypatch.chdir(folder)
    return folder


def test_a_server_and_its_engine_import_nothing_from_the_current_folder(here: Path, tmp_path: Path) -> None:
    script = tmp_path / "waferline"
    script.write_text(SCRIPT)
    done = subprocess.run([sys.executable, script, "demo", "--max-tokens", "2"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("entry", ["", ".", "{here}"])
def test_nor_where_the_parent_does(here: Path, monkeypatch: pytest.MonkeyPatch, entry: str) -> None:
    monkeypatch.setattr(sys, "path", [entry.format(here=here), *sys.path])
    done = subprocess.run([*python_command("waferline.cli"), "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_package_may_lie_in_the_current_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PACKAGE_FOLDER)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    done = subprocess.run([*python_command("waferline.cli"), "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
