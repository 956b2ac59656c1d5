"""The native packers give what tiles.py says, byte for byte, on every level."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from waferline_kernels import native, packing, tiles
from waferline_kernels.tiles import BF16, F32, Q4, Q8, TileFormat

pytestmark = pytest.mark.skipif(not native.is_available(), reason="the native extension is not built")
LEVELS = native.supported_levels() if native.is_available() else ()


@pytest.mark.parametrize("format", [Q8, Q4], ids=lambda format: format.name)
@pytest.mark.parametrize("level", LEVELS)
@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 300)),
    scale=st.sampled_from([1e-42, 1e-37, 1e-20, 1.0, 1e15]),
    seed=st.integers(0, 99),
)
@settings(max_examples=25)
def test_the_bytes_of_numpy(level: str, format: TileFormat, shape: tuple[int, int], scale: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    weight = (rng.standard_t(3, shape) * scale).astype(np.float32)
    weight[rng.integers(shape[0])] = 0
    weight[0, : shape[1] // 2] = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WAFERLINE_ISA", level)
        packed = packing.pack_matrix(weight, format)
    np.testing.assert_array_equal(packed, tiles.pack_matrix(weight, format))


@pytest.mark.parametrize("format", [F32, BF16, Q8, Q4], ids=lambda format: format.name)
def test_what_cannot_be_packed(format: TileFormat) -> None:
    for value in (np.nan, np.inf, -np.inf):
        weight = np.ones((17, 130), np.float32)
        weight[16, 129] = value
        with pytest.raises(ValueError, match="weight: holds NaN or infinity"):
            packing.pack_matrix(weight, format)
    for shape in ((4,), (0, 4), (4, 0), (1, 4, 4)):
        with pytest.raises(ValueError, match=r"weight: shape .* expected a matrix"):
            packing.pack_matrix(np.ones(shape, np.float32), format)


def test_rows_that_are_not_contiguous() -> None:
    weight = np.random.default_rng(0).standard_normal((20, 80)).astype(np.float32)
    np.testing.assert_array_equal(packing.pack_matrix(weight[::2, ::2], Q8), tiles.pack_matrix(weight[::2, ::2], Q8))
