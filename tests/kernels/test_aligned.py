"""Arrays of zeros that begin on a cache line, small ones and those that get huge pages."""

from __future__ import annotations

import numpy as np
import pytest

from waferline_kernels.aligned import HUGE_PAGE, aligned_zeros


@pytest.mark.parametrize("size", [4, 64, HUGE_PAGE - 64, HUGE_PAGE - 4, HUGE_PAGE, 3 * HUGE_PAGE + 4])
@pytest.mark.parametrize("alignment", [64, 4096])
def test_zeros_are_aligned_and_may_be_written(size: int, alignment: int) -> None:
    array = aligned_zeros((size // 4, 1), np.float32, alignment)
    assert array.shape == (size // 4, 1)
    assert array.ctypes.data % alignment == 0
    assert not array.any()
    array[:] = 1
    assert array.sum() == size // 4


def test_large_arrays_outlive_each_other() -> None:
    arrays = [aligned_zeros(HUGE_PAGE, np.uint8) for _ in range(3)]
    first = arrays[0]
    first[:] = 7
    del arrays
    other = aligned_zeros(HUGE_PAGE, np.uint8)
    assert (first == 7).all()
    assert not other.any()
