"""Packing matrices by the fastest means there is: the native kernels, and elsewhere numpy. The bytes are the same."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from . import native, tiles
from .tiles import TileFormat


def pack_matrix(weight: NDArray[np.float32], format: TileFormat) -> NDArray[np.uint8]:
    """``tiles.pack_matrix``, without the GIL where native kernels do it."""
    pack = native.pack_matrix if format.is_quantized and native.is_available() else tiles.pack_matrix
    return pack(weight, format)
