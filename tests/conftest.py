"""What every test may use."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from helpers import TARGETS

REPOSITORY = Path(__file__).parents[1]

# A shell's background job ignores SIGINT, and so would every process that a test starts and then interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples each time, and no verdict on a busy machine's speed.
settings.register_profile(
    "waferline", derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("waferline")


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of shared models and corpora beside the repository; tests that need it skip where it is absent."""
    path = Path(os.environ.get("WAFERLINE_SHARED", REPOSITORY.parent / "shared"))
    if not (path / "models").is_dir():
        pytest.skip(f"needs the shared models and corpora, which are not at {path}")
    return path


@pytest.fixture(scope="session", autouse=True)
def own_cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is measured of this machine while tests run is not kept for its user."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def fixtures_dir() -> Path:
    """The tiny models of `fixtures/make_golden.py`."""
    return REPOSITORY / "tests" / "fixtures"


@pytest.fixture(params=["reference", *TARGETS])
def target(request: pytest.FixtureRequest) -> str:
    """The reference, and everything that is held to it: each level of the native backend, and numba."""
    return str(request.param)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", action="store_true", help="try hundreds of schedules where a few are tried else")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "large: takes many seconds and gigabytes; runs where WAFERLINE_LARGE_TESTS=1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ.get("WAFERLINE_LARGE_TESTS") != "1":
        for item in items:
            if item.get_closest_marker("large"):
                item.add_marker(pytest.mark.skip(reason="large: set WAFERLINE_LARGE_TESTS=1 to run it"))
