"""Arrays that begin on a cache line: a vector across two of them is loaded at half the speed."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .tiles import ALIGNMENT


def aligned_zeros(shape: int | tuple[int, ...], dtype: Any, alignment: int = ALIGNMENT) -> NDArray[Any]:
    """np.zeros at a multiple of ``alignment`` bytes. Its pages are not touched yet."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    whole = np.zeros(size + alignment, np.uint8)
    skip = -whole.ctypes.data % alignment
    return whole[skip : skip + size].view(dtype).reshape(shape)
