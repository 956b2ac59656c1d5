from __future__ import annotations

from typing import Any

import pytest

from waferline.runtime.errors import RequestFailed
from waferline.runtime.messages import Accepted, Delta, Finished, RequestError, TokenLogprob
from waferline.runtime.outputs import CompletionOutput, Logprob, RequestCollector, RequestOutput, result_of_prompt
from waferline.runtime.prompts import pair_prompts
from waferline.runtime.sampling_params import SamplingParams


def test_interleaved_completions_are_gathered_by_index() -> None:
    collector = RequestCollector("r", "Hi", SamplingParams(n=2))
    collector.add(Accepted("r", [1, 2], seed=9))
    collector.add(Delta("r", 1, [5], "x"))
    collector.add(Delta("r", 0, [3], "a"))
    collector.add(Delta("r", 0, [4], "b", finish_reason="stop", stop_reason="c"))
    assert not collector.is_done
    assert collector.result().outputs[1].finish_reason is None
    collector.add(Delta("r", 1, [6], "y", finish_reason="length"))
    collector.add(Finished("r", ["stop", "length"], 2, 4, 1))
    assert collector.is_done
    assert collector.result() == RequestOutput(
        request_id="r",
        prompt="Hi",
        prompt_token_ids=[1, 2],
        prompt_logprobs=None,
        outputs=[
            CompletionOutput(0, "ab", [3, 4], None, None, "stop", "c"),
            CompletionOutput(1, "xy", [5, 6], None, None, "length", None),
        ],
        finished=True,
        seed=9,
        num_cached_tokens=1,
    )


def test_logprobs_are_by_token_id_with_the_chosen_token_first() -> None:
    collector = RequestCollector("r", [1, 2], SamplingParams(logprobs=2, prompt_logprobs=1))
    chosen = [TokenLogprob(7, -2.0, 3, "g"), TokenLogprob(5, -0.5, 1, "e"), TokenLogprob(6, -1.0, 2, "f")]
    best = [TokenLogprob(5, -0.25, 1, "e"), TokenLogprob(5, -0.25, 1, "e"), TokenLogprob(6, -1.5, 2, "f")]
    prompt = [[], [TokenLogprob(2, -1.0, 1, "b"), TokenLogprob(2, -1.0, 1, "b")]]
    collector.add(Delta("r", 0, [7], "g", logprobs=chosen, prompt_logprobs=prompt))
    collector.add(Delta("r", 0, [5], "e", logprobs=best))
    output = collector.result()
    assert output.prompt is None
    assert output.prompt_logprobs == [None, {2: Logprob(-1.0, 1, "b")}]
    logprobs = output.outputs[0].logprobs
    assert logprobs is not None
    assert [list(entry) for entry in logprobs] == [[7, 5, 6], [5, 6]]
    assert logprobs[0][7] == Logprob(-2.0, 3, "g")
    assert output.outputs[0].cumulative_logprob == -2.25


def test_an_abort_is_the_finish_reason_of_what_had_not_ended() -> None:
    collector = RequestCollector("r", "Hi", SamplingParams())
    collector.add(Delta("r", 0, [3], "a"))
    collector.add(Finished("r", ["abort"], 2, 1))
    assert collector.result().outputs[0].finish_reason == "abort"


def test_a_failed_request_raises_naming_its_prompt() -> None:
    collector = RequestCollector("r", "Hi", SamplingParams())
    collector.add(RequestError("r", "prompt_too_long", "prompt: 9 tokens"))
    assert collector.is_done
    with pytest.raises(RequestFailed, match=r"prompt_too_long: prompts\[4\]: prompt: 9 tokens") as caught:
        result_of_prompt(collector, 4)
    assert (caught.value.code, caught.value.message) == ("prompt_too_long", "prompts[4]: prompt: 9 tokens")


GREEDY, DRAWN = SamplingParams(temperature=0), SamplingParams(seed=1)


@pytest.mark.parametrize(
    ("prompts", "params", "pairs"),
    [
        ("abc", None, [("abc", SamplingParams())]),
        ([1, 2], GREEDY, [([1, 2], GREEDY)]),
        (["abc", [1, 2]], GREEDY, [("abc", GREEDY), ([1, 2], GREEDY)]),
        (["abc", "d"], [GREEDY, DRAWN], [("abc", GREEDY), ("d", DRAWN)]),
        ([], None, []),
        ([[]], None, [([], SamplingParams())]),
    ],
)
def test_prompts_are_paired_with_their_parameters(prompts: Any, params: Any, pairs: Any) -> None:
    assert pair_prompts(prompts, params) == pairs


@pytest.mark.parametrize(
    ("prompts", "params", "error", "message"),
    [
        (5, None, TypeError, "prompts: 5, expected a string, a list of token ids, or a list of such prompts"),
        (["a", "b"], [GREEDY], ValueError, "sampling_params: 1 of them, expected one, or one for each of 2 prompts"),
        ("a", {"n": 1}, TypeError, "sampling_params: {'n': 1}, expected SamplingParams"),
    ],
)
def test_what_does_not_pair_is_refused(prompts: Any, params: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        pair_prompts(prompts, params)
