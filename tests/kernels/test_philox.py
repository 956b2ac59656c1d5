"""Philox4x32-10 against the known answers of its authors' Random123 distribution (kat_vectors)."""

from __future__ import annotations

import pytest

from waferline_kernels.philox import philox4x32, uniform

ONES = 0xFFFFFFFF
PI = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ONES,) * 4, (ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (PI, (0xA4093822, 0x299F31D0), (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
    ],
)
def test_known_answers(counter: tuple[int, int, int, int], key: tuple[int, int], expected: tuple[int, ...]) -> None:
    assert philox4x32(counter, key) == expected


def test_uniform_depends_on_all_three_and_is_below_one() -> None:
    base = uniform(1, 0, 0)
    others = [uniform(2, 0, 0), uniform(1 << 40, 0, 0), uniform(1, 1, 0), uniform(1, 0, 1)]
    assert len({base, *others}) == 5
    assert all(0 <= u < 1 for u in [base, *others])
    mean = sum(uniform(7, 0, p) for p in range(2000)) / 2000
    assert abs(mean - 0.5) < 0.02
