"""CTranslate2: `Generator.generate_batch` with int8 weights, models converted by its transformers converter."""

from __future__ import annotations

import json
import time
from pathlib import Path

import ctranslate2
import numpy as np
from numpy.typing import NDArray

from .runner import Generation, Runner, Setup, converted


class CTranslate2Runner(Runner):
    def __init__(self, setup: Setup) -> None:
        folder = converted(
            setup, f"ctranslate2-{setup.variant}", lambda path: convert(setup.model, path, setup.variant)
        )
        self._generator = ctranslate2.Generator(
            str(folder), device="cpu", compute_type=setup.variant, inter_threads=1, intra_threads=setup.threads
        )
        self._vocabulary = json.loads((folder / "vocabulary.json").read_text())  # it takes prompts as strings
        self.vocab = len(self._vocabulary)
        self.settings = f"CTranslate2 {ctranslate2.__version__}, {setup.variant}, threads: {setup.threads}"

    def generate(self, prompts: NDArray[np.int32], tokens: int) -> Generation:
        ends = np.zeros(tokens)  # when the last sequence of each step was told

        def on_token(result: ctranslate2.GenerationStepResult) -> bool:
            ends[result.step] = time.perf_counter()
            return False

        start = [[self._vocabulary[token] for token in prompt] for prompt in prompts]
        begin = time.perf_counter()
        results = self._generator.generate_batch(
            start,
            max_length=tokens,
            min_length=tokens,
            sampling_topk=1,
            include_prompt_in_result=False,
            callback=on_token,
        )
        chosen = np.array([result.sequences_ids[0] for result in results], np.int64)
        return Generation(chosen, np.diff([begin, *ends]).tolist())


def convert(model: Path, path: Path, quantization: str) -> None:
    from ctranslate2.converters import TransformersConverter

    TransformersConverter(str(model)).convert(str(path), quantization=quantization)


def prepare(setup: Setup) -> Runner:
    return CTranslate2Runner(setup)
