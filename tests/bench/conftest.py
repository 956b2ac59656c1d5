"""Benchmarks in tests: a host that is measured in milliseconds, and leaves nothing in the user's cache directory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from waferline.fabric import spec


@pytest.fixture(autouse=True)
def small_host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(spec, "MEMORY_SHARE", 0.0)  # the least footprint alone
    spec.host_fabric.cache_clear()
    yield
    spec.host_fabric.cache_clear()
