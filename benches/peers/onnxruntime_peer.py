"""ONNX Runtime GenAI: its model builder's int8 and int4 blocks of 32 with int8 activations (accuracy level 4)."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime_genai
from numpy.typing import NDArray

from .runner import Absent, Generation, Runner, Setup, converted, read_config

OPTIONS = ("block_size=32", "accuracy_level=4", "prune_lm_head=true")


class OnnxRuntimeRunner(Runner):
    def __init__(self, setup: Setup) -> None:
        folder = converted(setup, f"onnxruntime-{setup.variant}", lambda path: convert(setup, path))
        config = onnxruntime_genai.Config(str(folder))
        config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": setup.threads}}}}))
        self._model = onnxruntime_genai.Model(config)
        self.vocab = read_config(setup.model)["vocab_size"]
        self.settings = (
            f"ONNX Runtime GenAI {onnxruntime_genai.__version__}, {setup.variant}, {', '.join(OPTIONS)}, "
            f"threads: {setup.threads}"
        )

    def generate(self, prompts: NDArray[np.int32], tokens: int) -> Generation:
        batch, length = prompts.shape
        params = onnxruntime_genai.GeneratorParams(self._model)
        total = length + tokens
        params.set_search_options(batch_size=batch, min_length=total, max_length=total, do_sample=False)
        generator = onnxruntime_genai.Generator(self._model, params)
        times = [time.perf_counter()]
        generator.append_tokens(prompts)
        for _ in range(tokens):
            generator.generate_next_token()
            times.append(time.perf_counter())
        chosen = np.array([generator.get_sequence(row)[length:] for row in range(batch)], np.int64)
        return Generation(chosen, np.diff(times).tolist())


def convert(setup: Setup, path: Path) -> None:
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(setup.model), "-o", str(path)]
    command += ["-p", setup.variant, "-e", "cpu", "-c", str(path.parent), "--extra_options", *OPTIONS]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise Absent(f"the model builder fails: {result.stderr.strip().splitlines()[-1]}")
    # The builder adds an end-of-turn id of the tokenizer's, which may lie outside the vocabulary.
    written = path / "genai_config.json"
    config = json.loads(written.read_text())
    config["model"]["eos_token_id"] = [read_config(setup.model)["eos_token_id"]]
    written.write_text(json.dumps(config))


def prepare(setup: Setup) -> Runner:
    return OnnxRuntimeRunner(setup)
