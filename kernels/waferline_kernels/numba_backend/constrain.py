"""Which tokens a sequence may take: allowed ids, bad words, min_tokens, logit bias."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..constraints import MASK_BITS
from .jit import kernel


@kernel
def is_allowed(mask: NDArray[np.uint32], token: int) -> bool:
    return (mask[token // MASK_BITS] >> np.uint32(token % MASK_BITS)) & np.uint32(1) != 0


@kernel
def lowest_allowed(params: Any, mask: NDArray[np.uint32], vocab: int) -> int:
    """The lowest of the allowed ids, 0 where none were given."""
    if params["has_allowed_ids"]:
        for token in range(vocab):
            if is_allowed(mask, token):
                return token
    return 0


@kernel
def ends_with(output: NDArray[np.int32], table: NDArray[np.int32], begin: int, count: int) -> bool:
    """Whether ``output`` ends with ``table[begin : begin + count]``."""
    if count > len(output):
        return False
    equal = 0
    for i in range(count):
        equal += output[len(output) - count + i] == table[begin + i]
    return equal == count


@kernel
def ban_bad_words(z: NDArray[np.float32], params: Any, table: NDArray[np.int32], output: NDArray[np.int32]) -> None:
    at = 0
    for _ in range(params["num_bad_words"]):
        prefix = table[at] - 1  # tokens before the last one
        if ends_with(output, table, at + 1, prefix):
            z[table[at + 1 + prefix]] = -np.inf
        at += 1 + table[at]


@kernel
def constrain(
    z: NDArray[np.float32],
    vocab: int,
    params: Any,
    constraints: Any,
    allowed_ids: NDArray[np.uint32],
    output: NDArray[np.int32],
) -> None:
    """Mask and bias the logits ``z`` (float32 [vocab]) in place, for what follows the completion ``output``."""
    if params["has_allowed_ids"]:
        for token in range(vocab):
            if not is_allowed(allowed_ids, token):
                z[token] = -np.inf
    ban_bad_words(z, params, constraints["bad_words"], output)
    if len(output) < params["min_tokens"]:
        for i in range(params["num_stop_ids"]):
            z[params["stop_ids"][i]] = -np.inf
    for i in range(params["num_logit_bias"]):
        z[constraints["bias_ids"][i]] += constraints["bias_values"][i]
