"""OpenVINO GenAI: `LLMPipeline` with its paged-attention backend, models converted by optimum-intel.

A variant is the weights' format (int8 by channel, or int4 by group) and the precision hint of everything else.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openvino
import openvino_genai
from numpy.typing import NDArray

from .runner import Generation, Runner, Setup, converted, read_config

GROUPS = (128, 64, 32)  # of int4; the largest that divides every matrix's inputs


def group_size(config: dict[str, Any]) -> int:
    inputs = (config["hidden_size"], config["intermediate_size"])
    return next((group for group in GROUPS if all(count % group == 0 for count in inputs)), -1)


class OpenVinoRunner(Runner):
    def __init__(self, setup: Setup) -> None:
        config = read_config(setup.model)
        weights, hint = setup.variant.split("-")
        group = group_size(config)
        folder = converted(setup, f"openvino-{weights}", lambda path: convert(setup.model, path, weights, group))
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.enable_prefix_caching = False
        scheduler.max_num_batched_tokens = setup.max_batch * setup.max_model_len
        self._pipeline = openvino_genai.LLMPipeline(
            folder,
            "CPU",
            scheduler_config=scheduler,
            INFERENCE_PRECISION_HINT=hint,
            INFERENCE_NUM_THREADS=setup.threads,
        )
        self.vocab = config["vocab_size"]
        grouped = f" by groups of {group}" if weights == "int4" else ""
        self.settings = (
            f"OpenVINO GenAI {openvino_genai.__version__}, LLMPipeline with paged attention, {weights} weights{grouped}, "
            f"INFERENCE_PRECISION_HINT {hint}, threads: {setup.threads}"
        )

    def generate(self, prompts: NDArray[np.int32], tokens: int) -> Generation:
        config = openvino_genai.GenerationConfig(max_new_tokens=tokens, ignore_eos=True, do_sample=False)
        ids = prompts.astype(np.int64)
        inputs = openvino_genai.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(np.ones_like(ids)))
        result = self._pipeline.generate(inputs, config)
        metrics = result.perf_metrics.raw_metrics
        first = metrics.m_times_to_first_token[0] / 1e6  # microseconds
        between = np.diff(metrics.m_new_token_times) / 1e3  # milliseconds
        return Generation(np.array(result.tokens), [first, *between.tolist()])


def convert(model: Path, path: Path, weights: str, group: int) -> None:
    from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig

    quantization = {
        "f32": None,
        "int8": OVWeightQuantizationConfig(bits=8, sym=True),
        "int4": OVWeightQuantizationConfig(bits=4, sym=True, group_size=group, ratio=1.0),
    }[weights]
    exported = OVModelForCausalLM.from_pretrained(
        model, export=True, compile=False, load_in_8bit=False, quantization_config=quantization
    )
    exported.save_pretrained(path)


def prepare(setup: Setup) -> Runner:
    return OpenVinoRunner(setup)
