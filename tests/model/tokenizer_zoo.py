"""Small tokenizers of the kinds that checkpoints come with."""

from __future__ import annotations

from functools import cache

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXTS = [
    "Once upon a time, the café 🐉 was happy.",
    "the dragon 🐉🐲 ate naïve crêpes",
    "日本語のテキスト、the end 😀😀",
] * 4


@cache
def byte_level() -> Tokenizer:
    """Like Llama 3 and Qwen 2: byte-level BPE, whose merges join bytes within and across characters."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|bos|>", "<|eos|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=340, initial_alphabet=alphabet, special_tokens=special, min_frequency=1, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_tokens([AddedToken("<tool call>", special=False)])
    tokenizer.post_processor = _begin_with("<|bos|>", 0)
    return tokenizer


@cache
def sentencepiece() -> Tokenizer:
    """Like Llama 2 and stories260K: words begin with U+2581, unknown characters fall back to bytes."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    for piece in [
        "▁",
        "▁▁",
        "t",
        "h",
        "e",
        "o",
        "n",
        "c",
        "th",
        "▁th",
        "▁the",
        "on",
        "▁on",
        "é",
        "▁é",
        "日",
        "lo",
        "l",
    ]:
        vocab[piece] = len(vocab)
    merges = [("t", "h"), ("▁", "th"), ("▁th", "e"), ("o", "n"), ("▁", "on"), ("▁", "é"), ("l", "o"), ("▁", "▁")]
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = _begin_with("<s>", 1)
    return tokenizer


@cache
def metaspace() -> Tokenizer:
    """Unigram-like: the Metaspace decoder, which drops the first token's leading space."""
    tokenizer = Tokenizer(models.WordLevel({"▁the": 0, "▁cat": 1, "▁": 2, "s": 3, "<unk>": 4}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


@cache
def words() -> Tokenizer:
    """No decoder at all: the library joins tokens with spaces."""
    tokenizer = Tokenizer(models.WordLevel({"the": 0, "cat": 1, "sat": 2, "<unk>": 3}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def _begin_with(token: str, token_id: int) -> processors.TemplateProcessing:
    return processors.TemplateProcessing(single=f"{token} $A", special_tokens=[(token, token_id)])


ZOO = {"byte_level": byte_level, "sentencepiece": sentencepiece, "metaspace": metaspace, "words": words}
