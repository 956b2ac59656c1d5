from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from waferline.runtime.block_hash import extend_block_hashes

FEW_TOKENS = st.lists(st.integers(0, 1), min_size=64, max_size=64)
SALTS = st.sampled_from([None, "a", "b"])


def hashes_of(token_ids: list[int], cache_salt: str | None = None, *counts: int) -> list[bytes]:
    """Hashes of the full blocks, extended to each of ``counts`` in turn."""
    hashes: list[bytes] = []
    for count in (*counts, len(token_ids) // 16):
        extend_block_hashes(hashes, token_ids, cache_salt, count)
    return hashes


@given(first=FEW_TOKENS, second=FEW_TOKENS, salts=st.tuples(SALTS, SALTS), changed=st.integers(0, 79))
def test_hashes_are_equal_where_salt_and_all_tokens_so_far_are(
    first: list[int], second: list[int], salts: tuple[str | None, str | None], changed: int
) -> None:
    second = first[:changed] + second[changed:]
    pairs = zip(hashes_of(first, salts[0]), hashes_of(second, salts[1]), strict=True)
    for at, (one, other) in enumerate(pairs, start=1):
        assert (one == other) == (salts[0] == salts[1] and first[: 16 * at] == second[: 16 * at])


def test_hashes_do_not_depend_on_when_they_are_extended() -> None:
    tokens = list(range(1000, 1070))
    assert hashes_of(tokens, "a", 1, 1, 3) == hashes_of(tokens, "a")
    assert len(set(hashes_of(tokens, "a"))) == 4
