"""Rounding codes with error feedback: GPTQ (Frantar et al. 2022).

What a matrix loses by being rounded is the change of its outputs. For a row of weights that is off by ``e`` [K], and inputs
``x``, its square has the mean ``e H e^T``, with ``H`` the mean of ``x^T x``. Where inputs go together, the codes of some
columns can make up for what others lost: with ``H = L L^T`` and ``L`` lower triangular, the loss is ``|e L|^2``, and going
from the last column to the first it is least if what is rounded is

    t[j] = w[j] + sum over i > j of e[i] L[i, j] / L[j, j],        e[j] = w[j] - step * code

(GPTQ in the form of Babai's nearest plane, Chen et al. 2025, which inverts nothing). Scales and subscales are chosen
before, as without feedback; so columns may be rounded in any order, and those of the largest inputs go first, while there
are most others left to make up for them: they are put last.

A worked example: inputs that always are equal have ``H = [[1, 1], [1, 1]]``, and ``L[1, 0] / L[0, 0]`` is nearly 1. The
weights 0.4 and 0.4 in steps of 1 become, from the last on, 0 and, since 0.4 + 0.4 is to be made up for, 1.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .tiles import Q4_ZERO_POINT, SUBGROUP, TILE_N, q4_codes, q4_steps, with_q4_codes

DAMPING = 0.01  # of H's mean diagonal, added to it: inputs other than those seen
LEAST_DAMPING = 1e-30  # where no input was other than 0
BLOCK = 32  # columns whose feedback among themselves is worked out one by one; that of earlier ones is one product


class Feedback(NamedTuple):
    order: NDArray[np.int64]  # [K]: columns, of which the last is rounded first
    gains: NDArray[np.float32]  # [K, K]: gains[i, j], i > j, is how much of error i is added to column j, both in order


def error_feedback(hessian: NDArray[np.float32]) -> Feedback:
    """The feedback for inputs whose sum of ``x^T x`` is ``hessian`` [K, K]. Raises ValueError where it is not finite."""
    if not np.isfinite(hessian).all():
        raise ValueError("hessian: holds NaN or infinity, expected finite numbers")
    diagonal = np.diag(hessian)
    order = np.argsort(diagonal, kind="stable")
    damped = hessian[np.ix_(order, order)].astype(np.float64)
    damped[np.diag_indices_from(damped)] += max(DAMPING * float(diagonal.mean()), LEAST_DAMPING)
    gains = np.linalg.cholesky(damped).astype(np.float32)
    gains /= np.diag(gains).copy()
    return Feedback(order, gains)


def round_with_feedback(
    packed: NDArray[np.uint8], weight: NDArray[np.float32], feedback: Feedback
) -> NDArray[np.uint8]:
    """q4 strips with the scales of ``packed``, which hold ``weight`` [N, K], and codes rounded with ``feedback``."""
    (n, k), (order, gains) = weight.shape, feedback
    wanted = np.zeros((k, len(packed) * TILE_N), np.float32)  # a row for each column, in order
    wanted[:, :n] = weight.T[order]
    steps = np.ascontiguousarray(q4_steps(packed, k).T)  # [4 G, N]
    errors, codes = np.zeros_like(wanted), np.empty(wanted.shape, np.uint8)  # codes: by column
    for end in range(k, 0, -BLOCK):
        begin = max(end - BLOCK, 0)
        targets = wanted[begin:end] + gains[end:, begin:end].T @ errors[end:]
        for j in reversed(range(begin, end)):
            column, step = order[j], steps[order[j] // SUBGROUP]
            code = q4_codes(targets[j - begin][:, None], step)[:, 0]
            errors[j] = wanted[j] - code * step
            targets[: j - begin] += gains[j, begin:j, None] * errors[j]
            codes[column] = code + np.float32(Q4_ZERO_POINT)
    return with_q4_codes(packed, codes.T)
