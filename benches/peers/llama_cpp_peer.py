"""llama.cpp through llama-cpp-python's bindings of its C interface: `llama_decode` on batches, and argmax of the logits.

Settings: repacked weights (AMX where the build has it), flash attention off, a KV stream for each sequence.
"""

from __future__ import annotations

import ctypes
import time
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from .gguf_file import write_gguf
from .runner import Absent, Generation, Runner, Setup, converted

FILE_TYPES = {
    "F32": llama_cpp.LLAMA_FTYPE_ALL_F32,
    "Q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0,
    "Q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0,
}
UBATCH = 512


@llama_cpp.llama_log_callback
def _be_silent(level: int, text: bytes, user_data: Any) -> None:
    pass


def quantized(setup: Setup, pure: bool) -> Path:
    """The GGUF file of a setup, quantised by llama.cpp itself. ``pure``: every matrix in the file's type; otherwise
    as llama.cpp chooses, which gives the output matrix and the embedding more bits."""
    full = converted(setup, "model-F32.gguf", lambda path: write_gguf(setup.model, path))
    if setup.variant == "F32":
        return full

    def quantize(path: Path) -> None:
        params = llama_cpp.llama_model_quantize_default_params()
        params.ftype = FILE_TYPES[setup.variant]
        params.pure = pure
        if llama_cpp.llama_model_quantize(str(full).encode(), str(path).encode(), params) != 0:
            raise Absent(f"llama_model_quantize refuses {setup.variant} of this model")

    return converted(setup, f"model-{setup.variant}{'-pure' if pure else ''}.gguf", quantize)


class TokenBatch:
    """A `llama_batch` with views of its fields: ``rows`` tokens, each of one sequence."""

    def __init__(self, rows: int) -> None:
        self.raw = llama_cpp.llama_batch_init(rows, 0, 1)
        self.raw.n_tokens = rows
        self.tokens, self.positions, self.wanted, counts = (
            np.ctypeslib.as_array(field, (rows,))
            for field in (self.raw.token, self.raw.pos, self.raw.logits, self.raw.n_seq_id)
        )
        counts[:] = 1

    def assign(self, sequences: NDArray[np.int64]) -> None:
        for row, sequence in enumerate(sequences):
            self.raw.seq_id[row][0] = int(sequence)

    def free(self) -> None:
        llama_cpp.llama_batch_free(self.raw)


class LlamaCppRunner(Runner):
    def __init__(self, setup: Setup, path: Path) -> None:
        llama_cpp.llama_log_set(_be_silent, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        params.use_extra_bufts = True
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        if not self._model:
            raise Absent(f"llama.cpp does not load {path.name} of this model")
        self._threads = setup.threads
        self._max_model_len = setup.max_model_len
        self._contexts: dict[tuple[int, int], Any] = {}  # by sequences and tokens of each
        self.vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self.settings = (
            f"llama.cpp by llama-cpp-python {llama_cpp.__version__}, {path.stem.removeprefix('model-')}, flash attention "
            f"off, f16 KV, threads: {setup.threads}; {llama_cpp.llama_print_system_info().decode().strip(' |')}"
        )

    def _context(self, batch: int, length: int) -> Any:
        if (batch, length) not in self._contexts:
            params = llama_cpp.llama_context_default_params()
            params.n_seq_max = batch
            params.n_ctx = batch * (-(-length // 256) * 256)
            params.n_batch = max(UBATCH, batch * length)
            params.n_ubatch = UBATCH
            params.n_threads = params.n_threads_batch = self._threads
            params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
            params.kv_unified = False
            params.no_perf = True
            context = llama_cpp.llama_init_from_model(self._model, params)
            if not context:
                raise RuntimeError(f"llama.cpp makes no context of {batch} sequences of {length} tokens")
            self._contexts[batch, length] = context
        return self._contexts[batch, length]

    def generate(self, prompts: NDArray[np.int32], tokens: int) -> Generation:
        size, length = prompts.shape
        context = self._context(size, length + tokens)
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), False)
        chosen = np.empty((size, tokens), np.int64)
        prompt, following = TokenBatch(size * length), TokenBatch(size)
        prompt.assign(np.repeat(np.arange(size), length))
        prompt.tokens[:] = prompts.reshape(-1)
        prompt.positions[:] = np.tile(np.arange(length), size)
        prompt.wanted[:] = prompt.positions == length - 1
        following.assign(np.arange(size))
        following.wanted[:] = 1
        times = [time.perf_counter()]
        chosen[:, 0] = self._logits(context, prompt, size).argmax(axis=1)
        times.append(time.perf_counter())
        for step in range(1, tokens):
            following.tokens[:] = chosen[:, step - 1]
            following.positions[:] = length + step - 1
            chosen[:, step] = self._logits(context, following, size).argmax(axis=1)
            times.append(time.perf_counter())
        prompt.free()
        following.free()
        return Generation(chosen, np.diff(times).tolist())

    def logits(self, token_ids: list[int]) -> NDArray[np.float32]:
        """The logits after each of ``token_ids``, ``max_model_len`` at most: a copy, float32 [tokens, vocab]."""
        count = len(token_ids)
        context = self._context(1, self._max_model_len)
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), False)
        batch = TokenBatch(count)
        batch.assign(np.zeros(count, np.int64))
        batch.tokens[:], batch.positions[:], batch.wanted[:] = token_ids, np.arange(count), 1
        logits = self._logits(context, batch, count).copy()
        batch.free()
        return logits

    def _logits(self, context: Any, batch: TokenBatch, rows: int) -> NDArray[np.float32]:
        """Run ``batch``; the logits of its ``rows`` wanted rows, float32 [rows, vocab], valid until the next run."""
        result = llama_cpp.llama_decode(context, batch.raw)
        if result != 0:
            raise RuntimeError(f"llama_decode returned {result}")
        return np.ctypeslib.as_array(llama_cpp.llama_get_logits(context), (rows, self.vocab))


def prepare(setup: Setup) -> Runner:
    return LlamaCppRunner(setup, quantized(setup, pure=True))
