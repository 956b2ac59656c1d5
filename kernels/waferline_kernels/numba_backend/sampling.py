"""The ``sample`` instruction: what `waferline_kernels.sampling` states, in passes over the vocabulary without a sort."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..program import Buffer
from ..ring import Finish
from ..sequences import NO_LOGPROBS
from ..tiles import TILE_N
from .constrain import constrain, lowest_allowed
from .jit import kernel
from .order import Order, best_tokens, fill_buckets, walk
from .rows import exponential
from .state import State
from .vectors import count_less, load, max_lanes, splat, store, sum_lanes_float64, where_less, without_nan

CHUNK = 1024  # tokens whose weights are added up before they join the sum
ALMOST_ONE = 1 - 2.0**-52  # a share of a mass below it is never the whole mass, whatever the rounding


@kernel
def philox_uniform(seed: np.uint64, completion_index: int, position: int) -> float:
    """``philox.uniform``."""
    mask, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    c0, c1, c2, c3 = np.uint64(position), np.uint64(completion_index), np.uint64(0), np.uint64(0)
    k0, k1 = seed & mask, seed >> half
    for _ in range(10):
        p0, p1 = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
        c0, c1, c2, c3 = (p1 >> half) ^ c1 ^ k0, p1 & mask, (p0 >> half) ^ c3 ^ k1, p0 & mask
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & mask, (k1 + np.uint64(0xBB67AE85)) & mask
    return np.float64(((c1 << half) | c0) >> np.uint64(11)) * 2.0**-53


@kernel
def copy_logits(src: NDArray[np.float32], at: int, vocab: int, dst: NDArray[np.float32]) -> None:
    """``dst = src[at : at + vocab]`` with -inf for NaN and for the padding."""
    for i in range(0, vocab, TILE_N):
        store(dst, i, without_nan(load(src, at + i)))
    dst[vocab:] = -np.inf


@kernel
def largest_of(z: NDArray[np.float32], vocab: int) -> np.float32:
    largest = splat(-np.inf)
    for i in range(0, vocab, TILE_N):
        x = load(z, i)
        largest = where_less(largest, x, x, largest)
    return max_lanes(largest)


@kernel
def first_equal(z: NDArray[np.float32], vocab: int, value: np.float32) -> int:
    for token in range(vocab):
        if z[token] == value:
            return token
    return 0


@kernel
def penalize(z: NDArray[np.float32], params: Any, tokens: NDArray[np.int32], counts: NDArray[np.int32]) -> None:
    """Repetition, frequency and presence penalties in place; ``counts`` [vocab] is zero before and after."""
    num_prompt = params["num_prompt_tokens"]
    repetition = params["repetition_penalty"]
    if repetition != 1:
        for token in tokens:
            if counts[token] == 0:
                z[token] = z[token] / repetition if z[token] > 0 else z[token] * repetition
            counts[token] = 1
        for token in tokens:
            counts[token] = 0
    frequency, presence = params["frequency_penalty"], params["presence_penalty"]
    if frequency != 0 or presence != 0:
        for token in tokens[num_prompt:]:
            counts[token] += 1
        for token in tokens[num_prompt:]:
            if counts[token] > 0:
                z[token] -= np.float32(counts[token]) * frequency + presence
            counts[token] = 0


@kernel
def sum_of(weights: NDArray[np.float32], begin: int, end: int) -> float:
    total = 0.0
    for i in range(begin, end, TILE_N):
        total += sum_lanes_float64(load(weights, i))
    return total


@kernel
def draw_any(weights: NDArray[np.float32], vocab: int, u: float) -> int:
    """Draw in proportion to the weights, in the order of the ids."""
    total = 0.0
    for begin in range(0, vocab, CHUNK):
        total += sum_of(weights, begin, min(begin + CHUNK, vocab))
    target, before, drawn = u * total, 0.0, 0
    for begin in range(0, vocab, CHUNK):
        end = min(begin + CHUNK, vocab)
        after = before + sum_of(weights, begin, end)
        if after > target:
            for token in range(begin, end):
                before += weights[token]
                if weights[token] > 0:
                    drawn = token
                if before > target:
                    break
            break
        before = after
    return drawn


@kernel
def sample_token(state: State, worker: int, params: Any, slot: int, position: int) -> int:
    """``sampling.sample_token`` for the tokens before ``position``; the worker's first row of scratch has the logits."""
    sizes = state.sizes[0]
    vocab, temperature = sizes["vocab"], params["temperature"]
    z, weights = state.floats[worker, 1], state.floats[worker, 2]
    copy_logits(state.floats[worker, 0], 0, vocab, z)
    begin = slot * sizes["max_model_len"]
    num_prompt = params["num_prompt_tokens"]
    constrain(
        z,
        vocab,
        params,
        state.constraints[slot],
        state.allowed_ids[slot],
        state.tokens[begin + num_prompt : begin + position],
    )
    penalize(z, params, state.tokens[begin : begin + position], state.counts[worker])
    if temperature != 0:
        for i in range(0, vocab, TILE_N):
            store(z, i, without_nan(load(z, i) / splat(temperature)))
    largest = largest_of(z, vocab)
    if largest == -np.inf:
        return lowest_allowed(params, state.allowed_ids[slot], vocab)
    if temperature == 0 or not np.isfinite(largest):
        return first_equal(z, vocab, largest)
    min_p = splat(params["min_p"])
    for i in range(0, vocab, TILE_N):
        weight = exponential(load(z, i) - splat(largest))
        store(weights, i, where_less(weight, min_p, splat(0.0), weight))
    u = min(philox_uniform(params["seed"], params["completion_index"], position), ALMOST_ONE)
    if params["top_k"] <= 0 and params["top_p"] >= 1:
        return draw_any(weights, vocab, u)
    order = Order(vocab, z, weights, largest, state.bucket_counts[worker], state.masses[worker], state.ids[worker])
    fill_buckets(order)
    mass = order.masses.sum()
    if params["top_k"] > 0:
        mass = walk(order, min(params["top_k"], vocab), np.inf)[1]
    if params["top_p"] < 1:
        mass = walk(order, vocab, np.float64(params["top_p"]) * mass)[1]
    return walk(order, vocab, np.nextafter(u * mass, np.inf))[0]  # the first token beyond u * mass


@kernel
def score(z: NDArray[np.float32], vocab: int, token: int, num_top: int, ids: NDArray[np.int32], entry: Any) -> None:
    """``sampling.score``: of the raw logits ``z``, the logprob and rank of ``token`` and the ``num_top`` best tokens."""
    largest = largest_of(z, vocab)
    total, rank = 0.0, 1
    for i in range(0, vocab, TILE_N):
        x = load(z, i)
        total += sum_lanes_float64(exponential(x - splat(largest)))
        rank += count_less(splat(z[token]), x)
    log_sum = np.float32(math.log(total))
    num_top = min(num_top, vocab)
    entry["num_top"], entry["rank"] = num_top, rank
    entry["logprob"] = z[token] - largest - log_sum
    if num_top > 0:
        best_tokens(z, vocab, num_top, ids)
        for i in range(num_top):
            entry["top_ids"][i] = ids[i]
            entry["top_logprobs"][i] = z[ids[i]] - largest - log_sum


@kernel
def finish_of(params: Any, token: int, position: int, max_model_len: int) -> int:
    num_output = position + 1 - params["num_prompt_tokens"]
    if num_output >= params["min_tokens"]:  # a stop id is drawn before where no other token may be
        for i in range(params["num_stop_ids"]):
            if params["stop_ids"][i] == token:
                return Finish.STOP.value
    if num_output >= params["max_tokens"] or position + 1 >= max_model_len:
        return Finish.LENGTH.value
    return Finish.NONE.value


@kernel
def sample(state: State, worker: int) -> None:
    """SAMPLE: the worker's part of the wanted rows. A row whose next token is known is scored against it; the last row of
    a sequence, and those that verify drafts, draw one and say whether it ends the sequence."""
    sizes = state.sizes[0]
    vocab = sizes["vocab"]
    for w in range(worker, state.step[0]["num_wanted"], sizes["num_workers"]):
        slot, position = state.rows[state.wanted[w], 0], state.rows[state.wanted[w], 1] + 1
        params, entry = state.sampling[slot], state.entries[w]
        raw = state.floats[worker, 0]
        copy_logits(state.buffers, state.buffer_at[Buffer.LOGITS] + w * state.buffer_stride[Buffer.LOGITS], vocab, raw)
        entry["slot"], entry["position"] = slot, position
        if position < state.num_tokens[slot]:
            token = state.tokens[slot * sizes["max_model_len"] + position]
            entry["is_prompt"], num_top = 1, params["num_prompt_logprobs"]
        else:
            token = sample_token(state, worker, params, slot, position)
            entry["finish"] = finish_of(params, token, position, sizes["max_model_len"])
            num_top = params["num_logprobs"]
        entry["token"], entry["num_top"] = token, NO_LOGPROBS
        if num_top != NO_LOGPROBS:
            score(raw, vocab, token, num_top, state.ids[worker, 0], entry)
