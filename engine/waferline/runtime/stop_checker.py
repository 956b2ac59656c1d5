"""Stop strings, found in a stream of text without ever letting part of one out."""

from __future__ import annotations

from collections.abc import Sequence


class StopChecker:
    """Watches one completion's text for its stop strings.

    The text ends where the stop string that is the first to be complete begins; of several complete at the same
    character the longest counts. How the text is cut into pieces makes no difference. What could still become a stop
    string is held back, unless stop strings are part of the text (``include_stop``), which then ends with one:

    >>> checker = StopChecker(["\\n\\n"])
    >>> checker.feed("one\\n"), checker.feed("two\\n"), checker.feed("\\nthree")
    ('one', '\\ntwo', '')
    >>> checker.matched
    '\\n\\n'
    """

    def __init__(self, stop_strings: Sequence[str], include_stop: bool = False) -> None:
        self._include_stop = include_stop
        self._patterns = [_Pattern(text) for text in sorted(stop_strings, key=len, reverse=True)]
        self._held = ""
        self.matched: str | None = None
        """The stop string that ended the text."""

    def feed(self, text: str, may_stop: bool = True) -> str:
        """What ``text`` lets out. Stop strings that would be complete within it are let out too unless ``may_stop``."""
        if self.matched is not None:
            return ""
        self._held += text
        end = len(self._held) - len(text)
        for character in text:
            end += 1
            complete = [pattern for pattern in self._patterns if pattern.advance(character)]
            if complete and may_stop:
                self.matched = complete[0].text
                self._held = self._held[: end if self._include_stop else end - len(self.matched)]
                return self.flush()
        keep = 0 if self._include_stop else max(pattern.num_matched for pattern in self._patterns)
        released = self._held[: len(self._held) - keep]
        self._held = self._held[len(released) :]
        return released

    def flush(self) -> str:
        """What is held back, at the end of the completion."""
        held, self._held = self._held, ""
        return held


class _Pattern:
    """One string and how many of its first characters the text ends with (Knuth, Morris and Pratt 1977)."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.num_matched = 0
        self._borders = [0, 0]  # of each prefix: its longest proper prefix that is its suffix too
        for at in range(1, len(text)):
            self._borders.append(self._extend(self._borders[at], text[at]))

    def _extend(self, matched: int, character: str) -> int:
        while matched and self.text[matched] != character:
            matched = self._borders[matched]
        return matched + (self.text[matched] == character)

    def advance(self, character: str) -> bool:
        """Whether the text, with ``character`` added, ends with the whole string."""
        self.num_matched = self._extend(self.num_matched, character)
        if self.num_matched < len(self.text):
            return False
        self.num_matched = self._borders[self.num_matched]  # what is complete cannot grow: only its borders can
        return True
