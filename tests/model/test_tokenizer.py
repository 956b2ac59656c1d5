"""Tokenizers: text to ids and back, with the tokenizers library as the oracle."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizer_zoo import ZOO

from waferline.model.errors import ModelError
from waferline.model.fields import Fields
from waferline.model.tokenizer import Tokenizer


def wrap(library: tokenizers.Tokenizer) -> Tokenizer:
    return Tokenizer.from_json_bytes(library.to_str().encode())


@pytest.mark.parametrize("name", ZOO)
@given(text=st.text(max_size=40))
def test_text_is_encoded_and_decoded_as_the_library_does(name: str, text: str) -> None:
    library = ZOO[name]()
    tokenizer, token_ids = wrap(library), library.encode(text).ids
    assert tokenizer.encode(text) == token_ids
    assert tokenizer.decode(token_ids) == library.decode(token_ids)
    whole = library.decode(token_ids, skip_special_tokens=False)
    assert tokenizer.decode(token_ids, skip_special_tokens=False) == whole


@pytest.mark.parametrize("name", ZOO)
def test_a_word_has_a_form_for_the_beginning_and_one_after_a_space(name: str) -> None:
    tokenizer = wrap(ZOO[name]())
    begin_tokens = set(tokenizer.encode(""))  # special ones
    for word in ("the", " the"):
        forms = tokenizer.encode_word(word)
        assert 1 <= len(forms) == len(set(forms)) <= 2
        assert [tokenizer.decode(form).strip() for form in forms] == [word.strip()] * len(forms)
        assert not any(begin_tokens & set(form) for form in forms)
    if name == "byte_level":
        assert [tokenizer.decode(form) for form in tokenizer.encode_word("the")] == ["the", " the"]


@given(token_ids=st.lists(st.integers(0, 345), max_size=30))
def test_byte_level_ids_in_any_order_decode_as_the_library_does(token_ids: list[int]) -> None:
    library = ZOO["byte_level"]()
    tokenizer = wrap(library)
    for skip in (True, False):
        assert tokenizer.decode(token_ids, skip) == library.decode(token_ids, skip_special_tokens=skip)


@example(token_ids=[3 + 32, 290])
@given(token_ids=st.lists(st.sampled_from([0, 1, 2, *range(3 + 32, 3 + 127), *range(259, 290)]), max_size=30))
def test_sentencepiece_ids_in_any_order_decode_as_the_library_does(token_ids: list[int]) -> None:
    library = ZOO["sentencepiece"]()
    assert wrap(library).decode(token_ids) == library.decode(token_ids)


def test_byte_level_text_comes_back() -> None:
    tokenizer = wrap(ZOO["byte_level"]())
    for text in ("the café 🐉", "  two  spaces\n", "日本語", "a<tool call>b"):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_token_text_shows_spaces_special_tokens_and_parts_of_characters() -> None:
    tokenizer, library = wrap(ZOO["sentencepiece"]()), ZOO["sentencepiece"]()
    tokens = ["▁the", "▁", "</s>", "<0x41>", "<0xF0>", "日"]
    assert [tokenizer.token_text(library.token_to_id(t)) for t in tokens] == [" the", " ", "</s>", "A", "\ufffd", "日"]
    assert tokenizer.token_text(10**6) == ""
    byte_level = wrap(ZOO["byte_level"]())
    assert byte_level.token_text(ZOO["byte_level"]().token_to_id("Ġthe")) == " the"
    assert byte_level.token_text(0) == "<|bos|>"


def test_limits_and_padding_of_a_file_do_not_apply() -> None:
    library = tokenizers.Tokenizer.from_str(ZOO["words"]().to_str())
    library.enable_truncation(2)
    library.enable_padding(length=5)
    assert wrap(library).encode("the cat sat the cat") == [0, 1, 2, 0, 1]


def with_config(library: tokenizers.Tokenizer, **config: object) -> Tokenizer:
    return Tokenizer.from_json_bytes(library.to_str().encode(), Fields(config, "tokenizer_config.json"))


def test_bos_is_added_where_the_config_says_so_and_never_twice() -> None:
    words = with_config(ZOO["words"](), add_bos_token=True, bos_token="sat")
    assert words.encode("the cat") == [2, 0, 1]
    assert with_config(ZOO["words"](), add_bos_token=False, bos_token="sat").encode("the") == [0]
    assert with_config(ZOO["words"](), bos_token="sat").encode("the") == [0]
    pieces = with_config(ZOO["sentencepiece"](), add_bos_token=True, bos_token={"content": "<s>"}, eos_token="</s>")
    assert pieces.encode("the").count(1) == 1
    assert (pieces.bos_token_id, pieces.eos_token_id) == (1, 2)
    assert with_config(ZOO["words"](), bos_token="absent", eos_token=None).bos_token_id is None
    with pytest.raises(
        ModelError, match=r"tokenizer_config\.json: add_bos_token: True, expected false, or a bos_token"
    ):
        with_config(ZOO["words"](), bos_token="absent", add_bos_token=True)


def test_vocab_size_counts_added_tokens() -> None:
    assert wrap(ZOO["byte_level"]()).vocab_size == 341
    assert wrap(ZOO["words"]()).vocab_size == 4


def with_a_normalizer_that_panics() -> bytes:
    described = json.loads(ZOO["words"]().to_str())
    return json.dumps({**described, "normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}).encode()


@pytest.mark.parametrize(
    "data",
    [b"", b"{}", b"\xff", json.dumps({"model": {"type": "Strange"}}).encode(), with_a_normalizer_that_panics()],
)
def test_not_a_tokenizer(data: bytes) -> None:
    with pytest.raises(ModelError, match=r"tokenizer\.json: not a tokenizer that the tokenizers library reads"):
        Tokenizer.from_json_bytes(data)


def test_a_tokenizer_that_cannot_encode_anything() -> None:
    described = json.loads(ZOO["byte_level"]().to_str())
    described["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<absent>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {},
    }
    with pytest.raises(ModelError, match=r"tokenizer\.json: not a tokenizer that can be used: text: "):
        Tokenizer.from_json_bytes(json.dumps(described).encode())


def test_text_without_tokens_is_the_text_s_fault() -> None:
    unigram = tokenizers.Tokenizer(tokenizers.models.Unigram([("a", -1.0), ("b", -2.0)], None, False))
    tokenizer = wrap(unigram)
    assert tokenizer.encode("ab") == [0, 1]
    with pytest.raises(ValueError, match=r"text: .*unk_id.*, expected one that the tokenizer can encode"):
        tokenizer.encode("aXb")


def test_text_that_is_not_unicode() -> None:
    with pytest.raises(ValueError, match=r"text: .*surrogates"):
        wrap(ZOO["byte_level"]()).encode("\ud800")


def test_from_folder(fixtures_dir: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_folder(fixtures_dir / "tied")
    assert tokenizer.decode(tokenizer.encode("Hello, you!")) == "Hello, you!"
    with pytest.raises(ModelError, match=r"no tokenizer\.json"):
        Tokenizer.from_folder(tmp_path)


def test_the_tokenizer_of_stories260k(shared_dir: Path) -> None:
    tokenizer = Tokenizer.from_folder(shared_dir / "models" / "stories260K")
    assert tokenizer.encode("") == [1]
    assert tokenizer.encode("Once upon a time") == [1, 403, 407, 261, 378]
    assert tokenizer.decode([1, 403, 407, 261, 378]) == "Once upon a time"
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.vocab_size) == (1, 2, 512)
