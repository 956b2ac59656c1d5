"""What every engine is asked: one interface, so that all of them do the same work and are timed in the same way."""

from __future__ import annotations

import json
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

WEIGHTS_FILE = "model.safetensors"


class Absent(Exception):
    """An engine that cannot be measured here; the message says why."""


@dataclass(frozen=True)
class Setup:
    """What a runner is made for. ``variant`` is one of the engine's in ``registry.PEERS``."""

    model: Path  # a Hugging Face folder with one safetensors file
    variant: str
    threads: int
    max_batch: int
    max_model_len: int  # tokens of a sequence, prompt and completion
    cache: Path  # where converted models are kept


@dataclass(frozen=True)
class Generation:
    tokens: NDArray[np.int64]  # [batch, tokens]
    seconds: list[float]  # between tokens; the first from the prompt to the first token: [tokens]


class Runner(ABC):
    """An engine with a model loaded."""

    vocab: int
    settings: str  # versions, build flags and options in force, for the report

    @abstractmethod
    def generate(self, prompts: NDArray[np.int32], tokens: int) -> Generation:
        """Continue each of ``prompts`` (int32 [batch, n]) greedily by ``tokens`` tokens, past any end token.

        Nothing is kept from an earlier call: no prefix cache.
        """

    def decode(self, batch: int, prompt_tokens: int, tokens: int) -> list[float]:
        """Seconds of each of ``tokens`` decoding steps of ``batch`` sequences after prompts of ``prompt_tokens``."""
        return self.generate(make_prompts(batch, prompt_tokens, self.vocab), tokens + 1).seconds[1:]

    def prefill(self, tokens: int) -> list[float]:
        """Seconds from one prompt of ``tokens`` tokens to the first sampled one, as a list of one."""
        return self.generate(make_prompts(1, tokens, self.vocab), 1).seconds

    def greedy(self, prompt: list[int], tokens: int) -> list[int]:
        """The greedy continuation of one prompt, to compare engines by."""
        return self.generate(np.array([prompt], np.int32), tokens).tokens[0].tolist()


def make_prompts(batch: int, tokens: int, vocab: int) -> NDArray[np.int32]:
    """Prompts that differ from their first token on, so that none shares a prefix: int32 [batch, tokens]."""
    rows, columns = np.arange(batch)[:, None], np.arange(tokens)[None, :]
    return ((3 + 31 * rows + columns) % vocab).astype(np.int32)


def converted(setup: Setup, name: str, convert: Callable[[Path], None]) -> Path:
    """The model converted by ``convert(path)``, kept in the cache for as long as it is newer than the original."""
    path = setup.cache / setup.model.resolve().name / name
    if path.exists() and path.stat().st_mtime > (setup.model / WEIGHTS_FILE).stat().st_mtime:
        return path
    unfinished = path.with_name("unfinished-" + name)
    for old in (path, unfinished):
        shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    convert(unfinished)
    unfinished.touch()
    return unfinished.rename(path)


def read_config(model: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((model / "config.json").read_text())
    return config
