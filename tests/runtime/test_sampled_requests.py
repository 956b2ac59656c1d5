"""Sampling parameters through the whole engine: what they do to tokens, text and messages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from recorder import RecordingCore

from waferline.model.load import Model
from waferline.runtime.constraints import bad_word_tokens
from waferline.runtime.messages import Delta
from waferline.runtime.output_processor import join_deltas
from waferline_kernels.kv_cache import KV_BF16

PROMPT = "Once upon a time"
DRAWN: dict[str, Any] = {"seed": 1, "max_tokens": 60, "ignore_eos": True}
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 40, "ignore_eos": True}


@pytest.fixture(scope="module")
def recorder(tiny_model: Model) -> Iterator[RecordingCore]:
    with RecordingCore(tiny_model, max_num_seqs=2) as recorder:
        yield recorder


def test_bias_makes_a_token_certain_or_impossible(recorder: RecordingCore) -> None:
    free = recorder.run(PROMPT, **GREEDY).outputs[0].token_ids
    biased = recorder.run(PROMPT, **GREEDY, logit_bias={free[0]: -100.0, 77: 100.0}).outputs[0]
    assert biased.token_ids == [77] * 40
    without = recorder.run(PROMPT, **GREEDY, logit_bias={free[0]: -100.0}).outputs[0].token_ids
    assert free[0] not in without


def test_allowed_ids_hold_for_every_completion_and_for_no_other_request(recorder: RecordingCore) -> None:
    free = recorder.run(PROMPT, **DRAWN)
    allowed = [65, 66, 67, 200]
    output = recorder.run(PROMPT, **DRAWN, n=3, allowed_token_ids=allowed)
    for completion in output.outputs:
        assert set(completion.token_ids) == set(allowed)
    for _ in range(2):  # in the slots that were constrained before
        assert recorder.run(PROMPT, **DRAWN).outputs == free.outputs


def test_a_sequence_that_was_set_back_is_constrained_again(tiny_model: Model) -> None:
    block = tiny_model.program.dims.kv_block_bytes(KV_BF16)
    params = {**DRAWN, "allowed_token_ids": [65, 66, 67], "n": 2}  # both arrive at once, and only one has room to end
    with RecordingCore(tiny_model, max_num_seqs=2, max_model_len=96) as roomy:
        undisturbed = roomy.run(PROMPT, **params).outputs
    with RecordingCore(tiny_model, max_num_seqs=2, max_model_len=96, kv_cache_memory=7 * block) as recorder:
        assert recorder.run(PROMPT, **params).outputs == undisturbed
        assert recorder.core.stats().num_preemptions_total > 0


def test_a_bad_word_does_not_come_out(recorder: RecordingCore) -> None:
    free = recorder.run(PROMPT, **GREEDY).outputs[0]
    words = [tokens for tokens in zip(free.token_ids, free.token_ids[1:], strict=False) if max(tokens) < 128]
    tokenizer = recorder.core.model.tokenizer
    bad = [word for word in (tokenizer.decode(pair) for pair in words) if word.strip() == word != ""][:2]
    assert bad
    output = recorder.run(PROMPT, **GREEDY, bad_words=bad).outputs[0]
    assert any(word in free.text for word in bad)
    assert not any(word in output.text for word in bad)


def test_the_words_of_a_request_are_each_taken_once(tiny_model: Model) -> None:
    a, space = (tiny_model.tokenizer.encode(text, add_special_tokens=False)[0] for text in ("a", " "))
    assert bad_word_tokens(["a", " a", "aa"], tiny_model.tokenizer, 259) == [(a,), (space, a), (a, a), (space, a, a)]
    assert bad_word_tokens(["a"], tiny_model.tokenizer, a) == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"logit_bias": {259: 1.0}}, "logit_bias: 259, expected token ids from 0 to 258"),
        ({"allowed_token_ids": [1, 259]}, "allowed_token_ids: 259, expected token ids from 0 to 258"),
        (
            {"bad_words": ["x" * 250 + str(number) for number in range(9)]},
            "bad_words: 4527 tokens in 18 sequences, each of which counts as one more, expected at most 1024 in all",
        ),
        ({"bad_words": ["\ud800"]}, "bad_words: text: "),
    ],
)
def test_what_the_model_cannot_take_is_refused_by_name(
    recorder: RecordingCore, fields: dict[str, Any], message: str
) -> None:
    request_id = str(fields)[:50]
    recorder.add(request_id, PROMPT, **fields)
    code, said = recorder.error(request_id)
    assert code == "invalid_request"
    assert said.startswith(message)


def test_a_stop_string_is_part_of_the_text_where_it_should_be(recorder: RecordingCore) -> None:
    text = recorder.run(PROMPT, **DRAWN).outputs[0].text
    stop = text[20:24]
    end = text.index(stop) + len(stop)
    recorder.add("included", PROMPT, **DRAWN, stop=["never seen", stop], include_stop_str_in_output=True)
    output = recorder.finish("included").outputs[0]
    assert (output.text, output.finish_reason, output.stop_reason) == (text[:end], "stop", stop)
    without = recorder.run(PROMPT, **DRAWN, stop=["never seen", stop]).outputs[0]
    assert without.token_ids == output.token_ids


def test_a_stop_id_s_text_is_part_of_it_too(recorder: RecordingCore) -> None:
    biased = {**GREEDY, "logit_bias": {65: 100.0}, "min_tokens": 3}
    excluded = recorder.run(PROMPT, **biased, stop_token_ids=[65]).outputs[0]
    included = recorder.run(PROMPT, **biased, stop_token_ids=[65], include_stop_str_in_output=True).outputs[0]
    assert excluded.token_ids == included.token_ids
    assert 65 not in included.token_ids[:3]
    text = recorder.core.model.tokenizer.token_text(65)
    assert included.text == excluded.text + text


def test_special_tokens_are_part_of_the_text_where_they_should_be(recorder: RecordingCore) -> None:
    tokenizer, (end,) = recorder.core.model.tokenizer, recorder.core.model.eos_token_ids
    certain = {**GREEDY, "max_tokens": 3, "logit_bias": {end: 100.0}}
    assert recorder.run(PROMPT, **certain).outputs[0].text == ""
    shown = recorder.run(PROMPT, **certain, skip_special_tokens=False).outputs[0]
    assert shown.text == tokenizer.token_text(end) * 3 != ""
    ended = {**certain, "ignore_eos": False, "skip_special_tokens": False}
    assert recorder.run(PROMPT, **ended).outputs[0].text == ""
    assert recorder.run(PROMPT, **ended, include_stop_str_in_output=True).outputs[0].text == tokenizer.token_text(end)


def test_no_text_where_none_is_wanted(recorder: RecordingCore) -> None:
    with_text = recorder.run(PROMPT, **DRAWN).outputs[0]
    without = recorder.run(PROMPT, **DRAWN, detokenize=False).outputs[0]
    assert with_text.text
    assert without.text == ""
    assert without.token_ids == with_text.token_ids


def test_a_prompt_is_cut_from_the_left(recorder: RecordingCore) -> None:
    whole = recorder.run(PROMPT, **DRAWN, truncate_prompt_tokens=1000)
    assert whole.outputs == recorder.run(PROMPT, **DRAWN).outputs
    cut = recorder.run(PROMPT, **DRAWN, truncate_prompt_tokens=4)
    assert cut.prompt_token_ids == whole.prompt_token_ids[-4:]
    assert cut.outputs == recorder.run(cut.prompt_token_ids, **DRAWN).outputs
    assert recorder.run([5] * 1000, truncate_prompt_tokens=3, max_tokens=1).prompt_token_ids == [5] * 3


def test_a_completion_comes_whole_where_only_the_end_is_wanted(recorder: RecordingCore) -> None:
    params = {**DRAWN, "n": 2, "logprobs": 3, "prompt_logprobs": 1, "stop": "zzz"}
    recorder.add("by-token", PROMPT, **params)
    recorder.add("whole", PROMPT, **params, output_kind="final_only")
    by_token, whole = recorder.finish("by-token"), recorder.finish("whole")
    assert [delta.index for delta in recorder.deltas("whole")] == [0, 1]
    assert whole.outputs == by_token.outputs
    assert whole.prompt_logprobs == by_token.prompt_logprobs
    assert recorder.wait("whole") == msgspec.structs.replace(recorder.wait("by-token"), request_id="whole")


def test_what_was_generated_before_a_cancellation_comes_with_it(tiny_model: Model) -> None:
    with RecordingCore(tiny_model) as recorder:
        recorder.slow_down()
        recorder.add("steady", PROMPT, seed=1, max_tokens=None, ignore_eos=True)
        recorder.add("whole", PROMPT, seed=1, max_tokens=None, ignore_eos=True, output_kind="final_only")
        recorder.wait_for_deltas("steady", 10)
        recorder.core.abort("whole")
        recorder.core.abort("steady")
        output = recorder.finish("whole")
        (delta,) = recorder.deltas("whole")
        steady = recorder.finish("steady").outputs[0]
        assert output.outputs[0].finish_reason == "abort"
        assert delta.finish_reason is None
        assert delta.token_ids == steady.token_ids[: len(delta.token_ids)]


def test_joined_deltas_say_what_each_said() -> None:
    first = Delta("r", 1, [3], "a", time_ns=1, prompt_logprobs=[[]])
    last = Delta("r", 1, [4], "b", finish_reason="stop", stop_reason=4, time_ns=2)
    assert join_deltas([first, last]) == Delta("r", 1, [3, 4], "ab", "stop", 4, None, [[]], 2)
