"""How a completion ends: stop strings, stop ids, the end token, min_tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from recorder import RecordingCore

from waferline.model.load import Model

PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def recorder(tiny_model: Model) -> Iterator[RecordingCore]:
    with RecordingCore(tiny_model) as recorder:
        yield recorder


@pytest.fixture(scope="module")
def free(recorder: RecordingCore) -> tuple[list[int], list[str]]:
    """Tokens of a drawn completion of 60 tokens, and what each adds to its text."""
    recorder.add("free", PROMPT, seed=1, max_tokens=60, ignore_eos=True)
    recorder.finish("free")
    deltas = recorder.deltas("free")
    return [delta.token_ids[0] for delta in deltas], [delta.text for delta in deltas]


def test_a_stop_string_across_tokens_ends_the_text_before_it(
    recorder: RecordingCore, free: tuple[list[int], list[str]]
) -> None:
    tokens, texts = free
    text = "".join(texts)
    stop = text[20:24]
    begin = text.index(stop)
    recorder.add("stop", PROMPT, seed=1, max_tokens=60, ignore_eos=True, stop=["never seen", stop])
    output = recorder.finish("stop").outputs[0]
    assert (output.text, output.finish_reason, output.stop_reason) == (text[:begin], "stop", stop)
    needed = next(n for n in range(60) if stop in "".join(texts[:n]))
    assert output.token_ids == tokens[:needed]
    assert len(recorder.deltas("stop")) == needed
    recorder.check_protocol("stop")


def test_text_that_only_begins_a_stop_string_comes_out_at_the_end(
    recorder: RecordingCore, free: tuple[list[int], list[str]]
) -> None:
    text = "".join(free[1])
    output = recorder.run(PROMPT, seed=1, max_tokens=60, ignore_eos=True, stop=text[-3:] + "never seen").outputs[0]
    assert (output.text, output.finish_reason) == (text, "length")


def test_a_stop_string_before_min_tokens_does_not_count(
    recorder: RecordingCore, free: tuple[list[int], list[str]]
) -> None:
    tokens, texts = free
    stop = next(text for text in texts[3:] if text.isprintable() and text)
    first = next(n for n in range(60) if stop in "".join(texts[:n]))
    output = recorder.run(PROMPT, seed=1, max_tokens=60, ignore_eos=True, stop=stop, min_tokens=first).outputs[0]
    assert len(output.token_ids) > first
    assert output.token_ids == tokens[: len(output.token_ids)]


def test_a_stop_id_is_a_token_without_text(recorder: RecordingCore, free: tuple[list[int], list[str]]) -> None:
    tokens, texts = free
    stop_id = tokens[25]
    at = tokens.index(stop_id)
    output = recorder.run(PROMPT, seed=1, max_tokens=60, ignore_eos=True, stop_token_ids=[stop_id]).outputs[0]
    assert output.token_ids == tokens[: at + 1]
    assert (output.finish_reason, output.stop_reason) == ("stop", stop_id)
    text = "".join(texts[:at])
    assert output.text in (text, text + "\N{REPLACEMENT CHARACTER}")  # a character that was left incomplete


def test_the_end_token_gives_no_stop_reason(tiny_model: Model, free: tuple[list[int], list[str]]) -> None:
    tokens, _ = free
    end = tokens[25]
    with RecordingCore(replace(tiny_model, eos_token_ids=(end,))) as recorder:
        output = recorder.run(PROMPT, seed=1, max_tokens=60).outputs[0]
        assert output.token_ids == tokens[: tokens.index(end) + 1]
        assert (output.finish_reason, output.stop_reason) == ("stop", None)
        named = recorder.run(PROMPT, seed=1, max_tokens=60, stop_token_ids=[end]).outputs[0]
        assert named == output
        ignored = recorder.run(PROMPT, seed=1, max_tokens=60, ignore_eos=True).outputs[0]
        assert ignored.token_ids == tokens
        named = recorder.run(PROMPT, seed=1, max_tokens=60, ignore_eos=True, stop_token_ids=[end]).outputs[0]
        assert (named.token_ids, named.stop_reason) == (output.token_ids, end)


def test_a_cancelled_completion_keeps_the_text_that_might_have_become_a_stop_string(tiny_model: Model) -> None:
    with RecordingCore(tiny_model) as recorder:
        text = recorder.run(PROMPT, seed=1, max_tokens=60, ignore_eos=True).outputs[0].text
        recorder.slow_down()
        recorder.add("a", PROMPT, seed=1, max_tokens=200, ignore_eos=True, stop=[text + "never"])
        recorder.wait_for_deltas("a", 8)
        recorder.core.abort("a")
        recorder.finish("a")
        token_ids = [token for delta in recorder.deltas("a") for token in delta.token_ids]
        assert "".join(delta.text for delta in recorder.deltas("a")) == tiny_model.tokenizer.decode(token_ids)


def test_no_end_token_comes_before_min_tokens(tiny_model: Model) -> None:
    with RecordingCore(tiny_model) as recorder:
        first = recorder.run(PROMPT, temperature=0, max_tokens=1).outputs[0].token_ids[0]
    with RecordingCore(replace(tiny_model, eos_token_ids=(first,))) as recorder:
        assert recorder.run(PROMPT, temperature=0).outputs[0].token_ids == [first]
        for min_tokens in (1, 5):
            token_ids = recorder.run(PROMPT, temperature=0, min_tokens=min_tokens).outputs[0].token_ids
            assert first not in token_ids[:min_tokens]
            assert len(token_ids) > min_tokens


def test_the_last_token_may_end_with_a_stop_string(recorder: RecordingCore, free: tuple[list[int], list[str]]) -> None:
    _, texts = free
    stop = "".join(texts[:10])[-2:]
    needed = next(n for n in range(60) if stop in "".join(texts[:n]))
    output = recorder.run(PROMPT, seed=1, max_tokens=needed, ignore_eos=True, stop=stop).outputs[0]
    assert (output.finish_reason, output.stop_reason) == ("stop", stop)
