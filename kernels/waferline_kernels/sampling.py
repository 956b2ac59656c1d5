"""What the ``sample`` instruction means, stated in numpy; the other backends are held to it.

The order is vLLM's: stop ids masked below ``min_tokens``; repetition, frequency and presence penalties; temperature;
``min_p``; ``top_k``; ``top_p``; one draw. Ties go to the lowest id. Log-probabilities are those of the raw logits.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .philox import uniform


def penalized_logits(logits: NDArray[np.float32], params: np.void, tokens: NDArray[np.int32]) -> NDArray[np.float32]:
    """``logits`` (float32 [vocab]) after masks and penalties, for a sequence of ``tokens`` (int32 [num_tokens])."""
    z = logits.copy()
    output = tokens[params["num_prompt_tokens"] :]
    if len(output) < params["min_tokens"]:
        z[params["stop_ids"][: params["num_stop_ids"]]] = -np.inf
    if params["repetition_penalty"] != 1:
        seen = np.unique(tokens)
        z[seen] = np.where(z[seen] > 0, z[seen] / params["repetition_penalty"], z[seen] * params["repetition_penalty"])
    if params["frequency_penalty"] != 0 or params["presence_penalty"] != 0:
        seen, counts = np.unique(output, return_counts=True)
        z[seen] -= counts.astype(np.float32) * params["frequency_penalty"] + params["presence_penalty"]
    return z


def sample_token(logits: NDArray[np.float32], params: np.void, tokens: NDArray[np.int32]) -> int:
    """The token that follows ``tokens`` (int32 [num_tokens]), from ``logits`` (float32 [vocab])."""
    z = penalized_logits(logits, params, tokens)
    if params["temperature"] == 0:
        return int(z.argmax())
    z = z / params["temperature"]
    weights = np.exp(z - z.max())
    weights[weights < params["min_p"]] = 0
    ids = np.arange(len(z))
    if params["top_k"] > 0 or params["top_p"] < 1:
        ids = np.lexsort((ids, -z))
        if params["top_k"] > 0:
            ids = ids[: params["top_k"]]
        cumulative = weights[ids].astype(np.float64).cumsum()
        ids = ids[: 1 + np.searchsorted(cumulative, np.float64(params["top_p"]) * cumulative[-1])]
    cumulative = weights[ids].astype(np.float64).cumsum()
    u = uniform(int(params["seed"]), int(params["completion_index"]), len(tokens))
    chosen = np.searchsorted(cumulative, u * cumulative[-1], side="right")
    return int(ids[min(chosen, len(ids) - 1)])


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Log-probabilities of raw ``logits``, float32 [vocab]."""
    shifted = logits - logits.max()
    return shifted - np.log(np.exp(shifted, dtype=np.float32).sum(dtype=np.float64)).astype(np.float32)


def score(logits: NDArray[np.float32], token: int, num_top: int, entry: np.void) -> None:
    """Fill ``entry`` (ring.ENTRY) with the logprob and rank of ``token`` and the ``num_top`` best tokens."""
    logprobs = log_softmax(logits)
    best = np.lexsort((np.arange(len(logits)), -logits))[:num_top]
    entry["num_top"] = len(best)
    entry["rank"] = 1 + np.count_nonzero(logits > logits[token])
    entry["logprob"] = logprobs[token]
    entry["top_ids"][: len(best)] = best
    entry["top_logprobs"][: len(best)] = logprobs[best]
