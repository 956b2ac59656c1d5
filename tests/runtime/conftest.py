from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from recorder import TINY_MODEL

from waferline.model.load import Model, load_model


@pytest.fixture(scope="session")
def tiny_model() -> Model:
    """Two layers of random weights in q8, whose arithmetic is exact; a token for each byte; 256 tokens of context."""
    return load_model(TINY_MODEL, "q8")


@pytest.fixture(autouse=True)
def no_thread_is_left_behind() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    left = [thread.name for thread in threading.enumerate() if thread not in before and "waferline" in thread.name]
    assert not left
