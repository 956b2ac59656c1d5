"""transformers on PyTorch, eager, with its scaled-dot-product attention and a growing cache."""

from __future__ import annotations

import time

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from .runner import Generation, Runner, Setup

DTYPES = {"bf16": torch.bfloat16, "f32": torch.float32}


class TransformersRunner(Runner):
    def __init__(self, setup: Setup) -> None:
        torch.set_num_threads(setup.threads)
        torch.set_grad_enabled(False)
        self._model = transformers.AutoModelForCausalLM.from_pretrained(
            setup.model, dtype=DTYPES[setup.variant], attn_implementation="sdpa"
        ).train(False)
        self.vocab = self._model.config.vocab_size
        self.settings = (
            f"transformers {transformers.__version__}, PyTorch {torch.__version__}, {setup.variant}, eager, "
            f"threads: {setup.threads}"
        )

    def generate(self, prompts: NDArray[np.int32], tokens: int) -> Generation:
        chosen = np.empty((len(prompts), tokens), np.int64)
        cache = transformers.DynamicCache(config=self._model.config)
        inputs = torch.from_numpy(prompts.astype(np.int64))
        times = [time.perf_counter()]
        for step in range(tokens):
            logits = self._model(inputs, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
            inputs = logits.argmax(dim=-1, keepdim=True)
            chosen[:, step] = inputs[:, 0]
            times.append(time.perf_counter())
        return Generation(chosen, np.diff(times).tolist())


def prepare(setup: Setup) -> Runner:
    return TransformersRunner(setup)
