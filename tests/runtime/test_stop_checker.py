from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from waferline.runtime.stop_checker import StopChecker

few_letters = st.text("ab", max_size=12)
stop_strings = st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=4)


def plain_stop(text: str, stops: list[str], allowed_from: int = 0) -> tuple[str, str | None]:
    """The meaning: cut before the stop string that ends first, at or after ``allowed_from``; of several the longest."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete and end > allowed_from:
            longest = max(complete, key=len)
            return text[: end - len(longest)], longest
    return text, None


@given(pieces=st.lists(few_letters, max_size=8), stops=stop_strings)
def test_text_ends_before_the_first_stop_string_however_it_is_cut(pieces: list[str], stops: list[str]) -> None:
    checker = StopChecker(stops)
    released = [checker.feed(piece) for piece in pieces]
    released.append(checker.flush())
    text, matched = plain_stop("".join(pieces), stops)
    assert ("".join(released), checker.matched) == (text, matched)


@given(pieces=st.lists(few_letters, min_size=1, max_size=8), stops=stop_strings)
def test_no_part_of_a_stop_string_leaks_and_no_more_than_that_is_held(pieces: list[str], stops: list[str]) -> None:
    checker = StopChecker(stops)
    out = text = ""
    for piece in pieces:
        text += piece
        out += checker.feed(piece)
        if checker.matched is not None:
            assert out == plain_stop(text, stops)[0]
            return
        held = text[len(out) :]
        assert text.startswith(out)
        beginnings = [text[at:] for at in range(len(text)) if any(stop.startswith(text[at:]) for stop in stops)]
        assert held == max(beginnings, key=len, default="")


@given(before=st.lists(few_letters, max_size=4), after=st.lists(few_letters, max_size=4), stops=stop_strings)
def test_stop_strings_complete_too_early_do_not_count(before: list[str], after: list[str], stops: list[str]) -> None:
    checker = StopChecker(stops)
    out = "".join([checker.feed(piece, may_stop=False) for piece in before])
    out += "".join([checker.feed(piece) for piece in after])
    out += checker.flush()
    text = "".join(before + after)
    expected, matched = plain_stop(text, stops, allowed_from=len("".join(before)))
    assert checker.matched == matched
    assert out == expected


@given(pieces=st.lists(few_letters, max_size=8), stops=stop_strings)
def test_a_stop_string_that_is_part_of_the_text_ends_it_and_holds_nothing_back(
    pieces: list[str], stops: list[str]
) -> None:
    checker = StopChecker(stops, include_stop=True)
    out = text = ""
    for piece in pieces:
        text += piece
        out += checker.feed(piece)
        before, matched = plain_stop(text, stops)
        assert (out, checker.matched) == (before + (matched or ""), matched)
    assert checker.flush() == ""


def test_nothing_follows_a_stop() -> None:
    checker = StopChecker(["end"])
    assert checker.feed("the end of it") == "the "
    assert checker.feed("more") == checker.flush() == ""
    assert checker.matched == "end"
