"""Cuts and draws along the tokens in order of their logits: the larger first, and the lower id first among equals.

The order is never made whole. Tokens fall into buckets by how far they lie below the largest logit, sixteen buckets a
unit and one for the rest, with the number of tokens and the sum of weights (the *mass*) of each; where a count or a mass
is reached inside a bucket, that bucket alone is sorted.

Arrays over the vocabulary are padded to whole vectors: logits with -inf, weights with 0.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..tiles import TILE_N
from .jit import kernel
from .vectors import count_less, load, splat, sum_lanes_float64

NUM_BUCKETS = 512
BUCKETS_PER_UNIT = np.float32(16)
LAST_BUCKET = NUM_BUCKETS - 1


class Order(NamedTuple):
    vocab: int
    z: NDArray[np.float32]  # [vocab]: logits
    weights: NDArray[np.float32]  # [vocab]: what a token adds to the mass
    largest: np.float32  # of z, finite
    counts: NDArray[np.int32]  # [NUM_BUCKETS]
    masses: NDArray[np.float64]  # [NUM_BUCKETS]
    ids: NDArray[np.int32]  # [2, vocab]: scratch


@kernel
def bucket_of(z: np.float32, largest: np.float32) -> int:
    depth = (largest - z) * BUCKETS_PER_UNIT
    return int(depth) if depth < np.float32(LAST_BUCKET) else LAST_BUCKET


@kernel
def none_above(order: Order, begin: int, end_bucket: int) -> bool:
    """Whether the vector of tokens from ``begin`` has none in the buckets before ``end_bucket``."""
    depth = (splat(order.largest) - load(order.z, begin)) * splat(BUCKETS_PER_UNIT)
    return count_less(depth, splat(end_bucket)) == 0


@kernel
def fill_buckets(order: Order) -> None:
    counts, masses = order.counts, order.masses
    counts[:] = 0
    masses[:] = 0
    for begin in range(0, order.vocab, TILE_N):
        end = min(begin + TILE_N, order.vocab)
        if none_above(order, begin, LAST_BUCKET):
            counts[LAST_BUCKET] += end - begin
            masses[LAST_BUCKET] += sum_lanes_float64(load(order.weights, begin))
            continue
        for token in range(begin, end):
            bucket = bucket_of(order.z[token], order.largest)
            counts[bucket] += 1
            masses[bucket] += order.weights[token]


@kernel
def gather_bucket(order: Order, bucket: int) -> int:
    """The tokens of a bucket, the lower ids first, into ``ids[0]``; how many."""
    ids, count = order.ids[0], 0
    for begin in range(0, order.vocab, TILE_N):
        if bucket < LAST_BUCKET and none_above(order, begin, bucket + 1):
            continue
        for token in range(begin, min(begin + TILE_N, order.vocab)):
            if bucket_of(order.z[token], order.largest) == bucket:
                ids[count] = token
                count += 1
    return count


@kernel
def sort_tokens(order: Order, count: int) -> None:
    """Merge sort the first ``count`` of ``ids[0]`` by descending logit; stable, so equal ones keep their order."""
    z, ids, merged = order.z, order.ids[0], order.ids[1]
    width = 1
    while width < count:
        for begin in range(0, count, 2 * width):
            middle, end = min(begin + width, count), min(begin + 2 * width, count)
            left, right = begin, middle
            for i in range(begin, end):
                if left < middle and (right == end or z[ids[left]] >= z[ids[right]]):
                    merged[i] = ids[left]
                    left += 1
                else:
                    merged[i] = ids[right]
                    right += 1
        for i in range(count):
            ids[i] = merged[i]
        width *= 2


@kernel
def walk(order: Order, limit: int, target: float) -> tuple[int, float]:
    """Go down the order until ``limit`` tokens are passed or their mass is at least ``target``.

    Returns the last token passed and the mass of all that were passed: for one token the same mass, to the bit, whatever
    stopped the walk.
    """
    passed, mass, token = 0, 0.0, 0
    for bucket in range(NUM_BUCKETS):
        num_tokens, after = order.counts[bucket], mass + order.masses[bucket]
        if num_tokens == 0:
            continue
        if passed + num_tokens < limit and after < target:
            passed += num_tokens
            mass = after
            continue
        sort_tokens(order, gather_bucket(order, bucket))
        for i in range(num_tokens):
            token = order.ids[0, i]
            passed += 1
            mass += order.weights[token]
            if passed >= limit or mass >= target:
                return token, mass
    return token, mass


@kernel
def best_tokens(z: NDArray[np.float32], vocab: int, wanted: int, ids: NDArray[np.int32]) -> None:
    """The first ``wanted`` tokens of the order (at most all of them), by insertion, into ``ids``."""
    found = 0
    for begin in range(0, vocab, TILE_N):
        if found == wanted and count_less(splat(z[ids[found - 1]]), load(z, begin)) == 0:
            continue
        for token in range(begin, min(begin + TILE_N, vocab)):
            if found < wanted:
                found += 1
            elif not z[token] > z[ids[found - 1]]:
                continue
            place = found - 1
            while place > 0 and z[token] > z[ids[place - 1]]:
                ids[place] = ids[place - 1]
                place -= 1
            ids[place] = token
