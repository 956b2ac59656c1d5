"""Streams of text: whole characters, every space, and the same text as decoding at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizer_zoo import ZOO

from waferline.model.detokenizer import Detokenizer
from waferline.model.tokenizer import Tokenizer

TOKENIZERS = {name: Tokenizer(tokenizers.Tokenizer.from_str(make().to_str())) for name, make in ZOO.items()}
EMOJI = "\U0001f409"


def stream(tokenizer: Tokenizer, prompt: list[int], completion: list[int]) -> list[str]:
    """The texts of the steps and of the flush."""
    detokenizer = Detokenizer(tokenizer, prompt)
    return [*(detokenizer.step(token_id) for token_id in completion), detokenizer.flush()]


def ids_of(name: str, *tokens: str) -> list[int]:
    return [ZOO[name]().token_to_id(token) for token in tokens]


@pytest.mark.parametrize("name", ZOO)
@given(text=st.text(max_size=40).filter(lambda text: "\ufffd" not in text))
def test_a_text_streams_in_whole_characters(name: str, text: str) -> None:
    tokenizer = TOKENIZERS[name]
    token_ids = tokenizer.encode(text)
    texts = stream(tokenizer, [], token_ids)
    assert "".join(texts) == tokenizer.decode(token_ids)
    assert texts[-1] == ""
    assert not any("\ufffd" in part for part in texts)


@pytest.mark.parametrize("name", ZOO)
@given(token_ids=st.lists(st.integers(0, 345), max_size=30), data=st.data())
def test_any_ids_split_anywhere_give_the_text_of_all(name: str, token_ids: list[int], data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[name]
    assert "".join(stream(tokenizer, [], token_ids)) == tokenizer.decode(token_ids)
    split = data.draw(st.integers(0, len(token_ids)))
    prompt, completion = token_ids[:split], token_ids[split:]
    complete_characters = "".join(stream(tokenizer, [], prompt)[:-1])
    assert complete_characters + "".join(stream(tokenizer, prompt, completion)) == tokenizer.decode(token_ids)


@pytest.mark.parametrize(
    "text", ["", " ", "the", " the", "  the", "the café", EMOJI, f" {EMOJI}{EMOJI} ", "日本語\n\n"]
)
@pytest.mark.parametrize("name", ["byte_level", "sentencepiece"])
def test_spaces_and_characters(name: str, text: str) -> None:
    tokenizer = TOKENIZERS[name]
    assert "".join(stream(tokenizer, [], tokenizer.encode(text))) == text


def test_an_emoji_of_four_byte_tokens_appears_at_the_fourth() -> None:
    token_ids = ids_of("sentencepiece", *(f"<0x{byte:02X}>" for byte in EMOJI.encode()))
    assert stream(TOKENIZERS["sentencepiece"], [1], [*token_ids, *token_ids]) == ["", "", "", EMOJI] * 2 + [""]


def test_the_first_words_space_is_kept_after_a_prompt_and_dropped_after_bos() -> None:
    (the,) = ids_of("sentencepiece", "▁the")
    assert stream(TOKENIZERS["sentencepiece"], [1, the], [the, the]) == [" the", " the", ""]
    assert stream(TOKENIZERS["sentencepiece"], [1], [the, the]) == ["the", " the", ""]
    assert stream(TOKENIZERS["sentencepiece"], [], [1, the, the]) == ["", "the", " the", ""]


def test_special_tokens_add_nothing_even_within_a_character() -> None:
    c3, a9 = ids_of("byte_level", "Ã", "©")
    bos, eos = ids_of("byte_level", "<|bos|>", "<|eos|>")
    assert stream(TOKENIZERS["byte_level"], [bos], [c3, eos, a9, eos]) == ["", "", "é", "", ""]
    (tool,) = ids_of("byte_level", "<tool call>")
    assert stream(TOKENIZERS["byte_level"], [], [tool]) == ["<tool call>", ""]


@given(token_ids=st.lists(st.integers(0, 345), max_size=30), data=st.data())
def test_special_tokens_that_are_not_skipped_are_text(token_ids: list[int], data: st.DataObject) -> None:
    tokenizer = TOKENIZERS["byte_level"]
    split = data.draw(st.integers(0, len(token_ids)))
    texts = []
    for prompt, completion in (([], token_ids[:split]), (token_ids[:split], token_ids[split:])):
        detokenizer = Detokenizer(tokenizer, prompt, skip_special_tokens=False)
        texts.append("".join(map(detokenizer.step, completion)))
    assert "".join(texts) + detokenizer.flush() == tokenizer.decode(token_ids, skip_special_tokens=False)


def test_a_character_that_the_prompt_began() -> None:
    bytes_of = ids_of("sentencepiece", *(f"<0x{byte:02X}>" for byte in EMOJI.encode()))
    assert stream(TOKENIZERS["sentencepiece"], [1, *bytes_of[:2]], bytes_of[2:]) == ["", EMOJI, ""]


def test_a_character_cut_short_is_replaced_at_the_end() -> None:
    f0, a = ids_of("sentencepiece", "<0xF0>", "<0x41>")
    assert stream(TOKENIZERS["sentencepiece"], [], [a, f0]) == ["A", "", "\ufffd"]
    assert stream(TOKENIZERS["sentencepiece"], [], [f0, a]) == ["", "\ufffdA", ""]


def test_bytes_that_never_complete_do_not_hold_the_stream_up() -> None:
    (f0,) = ids_of("sentencepiece", "<0xF0>")
    texts = stream(TOKENIZERS["sentencepiece"], [], [f0] * 20_000)
    assert texts == ["", *["\ufffd"] * 20_000]


def test_stories260k_streams_as_it_decodes(shared_dir: Path) -> None:
    tokenizer = Tokenizer.from_folder(shared_dir / "models" / "stories260K")
    text = f'Once upon a time,  there was a café {EMOJI}.\n"Hi," she said.'
    token_ids = tokenizer.encode(text)
    assert "".join(stream(tokenizer, token_ids[:1], token_ids[1:])) == text
    assert stream(tokenizer, token_ids[:3], token_ids[3:])[0] == " a"
