"""Incremental detokenisation: what each token adds to a stream's text, never half a character."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from .tokenizer import Tokenizer

MAX_CHARACTER_BYTES = 4  # of UTF-8


class Detokenizer:
    """The text of one completion, token by token, after the prompt ``prompt_token_ids``.

    The texts of all steps and of ``flush``, joined, are the completion's part of ``Tokenizer.decode`` of prompt and
    completion; a step keeps back at most the three bytes of a character that is not complete, and costs the same
    however long the completion is. Special tokens add nothing where they are skipped.

    With a byte-level tokenizer, and the two tokens ``c3`` and ``a9`` of "é"::

        >>> detokenizer.step(c3), detokenizer.step(a9), detokenizer.flush()
        ('', 'é', '')
    """

    def __init__(
        self, tokenizer: Tokenizer, prompt_token_ids: Sequence[int] = (), skip_special_tokens: bool = True
    ) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._begins_text = True
        # A prompt may end within a character, which the completion's first tokens then complete.
        tail = b""
        for token_id in reversed(prompt_token_ids):
            if not tokenizer.is_silent(token_id, skip_special_tokens):
                self._begins_text = False
                tail = tokenizer.token_bytes(token_id) + tail
            if len(tail) >= MAX_CHARACTER_BYTES:
                break
        self._utf8.decode(tail)
        self._is_between_characters = not self._begins_text and not self._utf8.getstate()[0]

    def step(self, token_id: int) -> str:
        """The text that ``token_id`` completes: empty while a character lacks bytes."""
        if self._is_between_characters:
            text = self._tokenizer.whole_text(token_id)
            if text is not None:
                return text
        if self._tokenizer.is_silent(token_id, self._skip_special_tokens):
            return ""
        added = self._tokenizer.token_bytes(token_id, self._begins_text)
        self._begins_text = False
        text = self._utf8.decode(added)
        self._is_between_characters = not self._utf8.getstate()[0]
        return text

    def flush(self) -> str:
        """The text of the end: U+FFFD for a character that was never completed, else empty."""
        return self._utf8.decode(b"", final=True)


class NoText:
    """A detokenizer for completions whose text is not wanted: all of it is empty."""

    def step(self, token_id: int) -> str:
        return ""

    def flush(self) -> str:
        return ""
