"""The tokenizer: `tokenizer.json` through the `tokenizers` library, with the bytes that each token stands for."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tokenizers

from .errors import ModelError
from .fields import Fields

TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


class Tokenizer:
    """Text to token ids and back.

    A text is the UTF-8 of its tokens' bytes in a row (``token_bytes``), so that it can be decoded token by token:
    see ``Detokenizer``. Bytes that are not UTF-8 become U+FFFD.
    """

    def __init__(
        self,
        tokenizer: tokenizers.Tokenizer,
        bos_token_id: int | None = None,
        eos_token_id: int | None = None,
        add_bos_token: bool = False,
    ) -> None:
        """Wrap ``tokenizer``. ``add_bos_token`` begins every text with ``bos_token_id``, where the tokenizer does not
        do so by itself. Raises ValueError for one that cannot even encode the empty text."""
        # A text is encoded whole: limits and padding that a file carries over from training would change it silently.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self.bos_token_id = bos_token_id
        self.eos_token_id = eos_token_id
        self._prefix: list[int] = []
        before_any_text = self._encode("")
        if add_bos_token and bos_token_id is not None and bos_token_id not in before_any_text:
            self._prefix = [bos_token_id]
        self._special = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        decoder = tokenizer.decoder  # its state is its part of tokenizer.json
        decoders = set() if decoder is None else _decoder_types(json.loads(decoder.__getstate__()))
        self._byte_level = "ByteLevel" in decoders
        self._byte_fallback = "ByteFallback" in decoders
        self._bytes: dict[tuple[int, bool], bytes] = {}
        self._whole_texts: dict[int, str | None] = {}

    @classmethod
    def from_json_bytes(cls, data: bytes, config: Fields | None = None, where: str = TOKENIZER_FILE) -> Tokenizer:
        """The tokenizer that a `tokenizer.json` holds, with the BOS and EOS of a `tokenizer_config.json`.

        Raises ModelError, naming ``where``, for bytes that are no tokenizer.
        """
        try:
            tokenizer = tokenizers.Tokenizer.from_buffer(data)
        except (KeyboardInterrupt, SystemExit, MemoryError):
            raise
        except BaseException as error:  # where the library panics it raises what is no Exception
            raise ModelError(f"{where}: not a tokenizer that the tokenizers library reads: {error}") from None
        bos_token_id = eos_token_id = None
        add_bos_token = False
        if config is not None:
            bos_token_id, eos_token_id = (_token_id(tokenizer, config, name) for name in ("bos_token", "eos_token"))
            add_bos_token = config.boolean("add_bos_token", False)
            if add_bos_token and bos_token_id is None:
                config.fail("add_bos_token", "false, or a bos_token of the vocabulary")
        try:
            return cls(tokenizer, bos_token_id, eos_token_id, add_bos_token)
        except ValueError as error:
            raise ModelError(f"{where}: not a tokenizer that can be used: {error}") from None

    @classmethod
    def from_folder(cls, folder: str | Path) -> Tokenizer:
        """The tokenizer of a Hugging Face folder. Raises ModelError where it is missing or malformed."""
        path, config_path = Path(folder) / TOKENIZER_FILE, Path(folder) / TOKENIZER_CONFIG_FILE
        if not path.is_file():
            raise ModelError(f"{folder}: no {TOKENIZER_FILE} (other tokenizer files are not read)")
        config = Fields.parse(config_path.read_bytes(), str(config_path)) if config_path.is_file() else None
        return cls.from_json_bytes(path.read_bytes(), config, str(path))

    @property
    def vocab_size(self) -> int:
        """Ids with a token, special ones included; a model's vocabulary may be padded beyond them."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of ``text``, with the special tokens that a prompt begins with unless not ``add_special_tokens``.
        Raises ValueError for text that is not Unicode (lone surrogates), and for what the tokenizer has no tokens for."""
        token_ids = self._encode(text, add_special_tokens)
        return [*self._prefix, *token_ids] if add_special_tokens else token_ids

    def _encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        try:
            text.encode()  # the library would take the text for no string at all
        except UnicodeEncodeError as error:
            raise ValueError(f"text: {error}, expected Unicode text") from None
        try:
            # Of a batch, for that lets other threads run meanwhile: a megabyte takes the library seconds.
            (encoding,) = self._tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        except (KeyboardInterrupt, SystemExit, MemoryError):
            raise
        except BaseException as error:  # where the library panics it raises what is no Exception
            raise ValueError(f"text: {error}, expected one that the tokenizer can encode") from None
        token_ids: list[int] = encoding.ids
        return token_ids

    def encode_word(self, word: str) -> list[tuple[int, ...]]:
        """The token ids of ``word`` as it is at the beginning of a text and, where that differs, after a space. Raises
        ValueError as ``encode`` does."""
        texts = (word.lstrip(), " " + word.lstrip())
        return list(dict.fromkeys(tuple(self.encode(text, add_special_tokens=False)) for text in texts))

    def decode(self, token_ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """The text of ``token_ids``."""
        parts: list[bytes] = []
        for token_id in token_ids:
            if not self.is_silent(token_id, skip_special_tokens):
                parts.append(self.token_bytes(token_id, begins_text=not parts))
        return b"".join(parts).decode(errors="replace")

    def token_text(self, token_id: int) -> str:
        """What one token stands for, special ones too; U+FFFD for bytes that are only part of a character."""
        return self.token_bytes(token_id).decode(errors="replace")

    def whole_text(self, token_id: int) -> str | None:
        """What a token adds to a text that ends with a whole character; None where the token does not end with one, and
        for a special token."""
        try:
            return self._whole_texts[token_id]
        except KeyError:
            return self._whole_texts.setdefault(token_id, self._find_whole_text(token_id))

    def _find_whole_text(self, token_id: int) -> str | None:
        if token_id in self._special:
            return None
        try:
            return self.token_bytes(token_id).decode()
        except UnicodeDecodeError:
            return None

    def is_silent(self, token_id: int, skip_special_tokens: bool = True) -> bool:
        """Whether a token adds nothing to a text: a special one, or an id without a token."""
        if token_id in self._special:
            return skip_special_tokens
        return self._tokenizer.id_to_token(token_id) is None

    def token_bytes(self, token_id: int, begins_text: bool = False) -> bytes:
        """The bytes that a token adds to a text; where it ``begins_text``, some tokenizers drop a leading space."""
        key = (token_id, begins_text)
        if key not in self._bytes:
            self._bytes[key] = self._find_bytes(token_id, begins_text)
        return self._bytes[key]

    def _find_bytes(self, token_id: int, begins_text: bool) -> bytes:
        token = self._tokenizer.id_to_token(token_id)
        if token is None:
            return b""
        if self._byte_level:
            # Like the library: a token with a character outside the alphabet stands for its own UTF-8.
            known = all(c in _BYTE_LEVEL_ALPHABET for c in token)
            return bytes(_BYTE_LEVEL_ALPHABET[c] for c in token) if known else token.encode()
        if self._byte_fallback and (match := _BYTE_TOKEN.fullmatch(token)) and (byte := int(match[1], 16)) >= 0x80:
            return bytes([byte])  # which is no text by itself
        # Any other decoder is asked: what the token gives at the beginning, and what a second one adds to the first.
        first = self._tokenizer.decode([token_id], skip_special_tokens=False)
        if begins_text:
            return str(first).encode()
        both = self._tokenizer.decode([token_id, token_id], skip_special_tokens=False)
        return str(both).removeprefix(first).encode()


def _token_id(tokenizer: tokenizers.Tokenizer, config: Fields, name: str) -> int | None:
    """The id of a token that a `tokenizer_config.json` names, as a string or as an object with its content."""
    if name not in config:
        return None
    token = config.object(name).string("content") if isinstance(config.raw(name), dict) else config.string(name)
    token_id = tokenizer.token_to_id(token)
    return None if token_id is None else int(token_id)


def _decoder_types(decoder: dict[str, Any]) -> set[str]:
    """Types of a `tokenizer.json` decoder, those within a sequence included."""
    return {decoder["type"]}.union(*(_decoder_types(part) for part in decoder.get("decoders", ())))


def _byte_level_alphabet() -> dict[str, int]:
    """Character -> byte of byte-level BPE: printable bytes stand for themselves, the others for U+0100 onwards (Radford
    et al. 2019, GPT-2's `bytes_to_unicode`)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted(set(range(256)) - set(printable))
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTE_LEVEL_ALPHABET = _byte_level_alphabet()
