"""What the ``sample`` instruction means, stated in numpy; the other backends are held to it.

The order is vLLM's: ``allowed_ids``; bad words; stop ids masked below ``min_tokens``; logit bias; repetition, frequency
and presence penalties; temperature; ``min_p``; ``top_k``; ``top_p``; one draw. Ties go to the lowest id; where every token
is banned, the lowest allowed id is taken. NaN counts as banned, and of logits that became infinite the first is taken.
Log-probabilities are those of the raw logits.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .constraints import unpack_allowed_ids
from .philox import uniform
from .sequences import SamplingRules


def allowed_tokens(rules: SamplingRules, vocab: int) -> NDArray[np.bool_]:
    """Whether a token is among the allowed ids, bool [vocab]; all are where none were given."""
    if not rules.params["has_allowed_ids"]:
        return np.ones(vocab, bool)
    return unpack_allowed_ids(rules.allowed_ids, vocab)


def banned_tokens(rules: SamplingRules, output: NDArray[np.int32]) -> list[int]:
    """The tokens that would complete a bad word after the completion ``output`` (int32 [num_output_tokens])."""
    banned, at = [], 0
    table = rules.constraints["bad_words"]
    for _ in range(rules.params["num_bad_words"]):
        *prefix, last = table[at + 1 : at + 1 + table[at]].tolist()
        at += 1 + table[at]
        if output[max(0, len(output) - len(prefix)) :].tolist() == prefix:
            banned.append(last)
    return banned


@np.errstate(over="ignore", invalid="ignore")
def penalized_logits(
    logits: NDArray[np.float32], rules: SamplingRules, tokens: NDArray[np.int32]
) -> NDArray[np.float32]:
    """``logits`` (float32 [vocab]) after masks, bias and penalties, for a sequence of ``tokens`` (int32 [num_tokens])."""
    params = rules.params
    output = tokens[params["num_prompt_tokens"] :]
    z = np.where(allowed_tokens(rules, len(logits)), logits, np.float32(-np.inf))
    z[banned_tokens(rules, output)] = -np.inf
    if len(output) < params["min_tokens"]:
        z[params["stop_ids"][: params["num_stop_ids"]]] = -np.inf
    num_bias = params["num_logit_bias"]
    z[rules.constraints["bias_ids"][:num_bias]] += rules.constraints["bias_values"][:num_bias]
    if params["repetition_penalty"] != 1:
        seen = np.unique(tokens)
        z[seen] = np.where(z[seen] > 0, z[seen] / params["repetition_penalty"], z[seen] * params["repetition_penalty"])
    if params["frequency_penalty"] != 0 or params["presence_penalty"] != 0:
        seen, counts = np.unique(output, return_counts=True)
        z[seen] -= counts.astype(np.float32) * params["frequency_penalty"] + params["presence_penalty"]
    return np.where(np.isnan(z), np.float32(-np.inf), z)


@np.errstate(over="ignore", invalid="ignore")
def sample_token(logits: NDArray[np.float32], rules: SamplingRules, tokens: NDArray[np.int32]) -> int:
    """The token that follows ``tokens`` (int32 [num_tokens]), from ``logits`` (float32 [vocab])."""
    params = rules.params
    z = penalized_logits(logits, rules, tokens)
    if params["temperature"] != 0:
        z = z / params["temperature"]
    if z.max() == -np.inf:
        return int(allowed_tokens(rules, len(z)).argmax())
    if params["temperature"] == 0 or z.max() == np.inf:
        return int(z.argmax())
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
