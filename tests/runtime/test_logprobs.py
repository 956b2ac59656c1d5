"""Logprobs and penalties against numpy, from the reference executor's logits."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray
from recorder import RecordingCore

from helpers import run_logits
from waferline.model.load import Model
from waferline.runtime.messages import GenerateRequest
from waferline.runtime.outputs import Logprob
from waferline.runtime.request import admit_request
from waferline.runtime.sampling_params import SamplingParams
from waferline_kernels.sampling import log_softmax, penalized_logits
from waferline_kernels.sequences import ExecutorLimits, SequenceTable

PROMPT = "How likely?"
TOLERANCE = 2e-3


@pytest.fixture(scope="module")
def recorder(tiny_model: Model) -> Iterator[RecordingCore]:
    with RecordingCore(tiny_model, kv_dtype="f32") as recorder:
        yield recorder


def reference_logits(model: Model, token_ids: list[int]) -> NDArray[np.float32]:
    """In a KV cache of f32, as the recorder's."""
    return run_logits(model, token_ids, "reference")


def check(entry: dict[int, Logprob], token: int, logits: NDArray[np.float32], count: int, model: Model) -> None:
    """``entry`` has ``token`` first, and the ``count`` best."""
    logprobs = log_softmax(logits)
    best = np.argsort(-logits, kind="stable")[:count].tolist()
    assert next(iter(entry)) == token
    assert set(entry) >= {token}
    assert count <= len(entry) <= count + 1
    for token_id, logprob in entry.items():
        assert logprob.logprob == pytest.approx(logprobs[token_id], abs=TOLERANCE)
        assert logprob.decoded_token == model.tokenizer.token_text(token_id)
    top = [logprobs[token_id] for token_id in list(entry)[:0] + sorted(entry, key=lambda t: entry[t].rank)[:count]]
    assert top == pytest.approx(logprobs[best], abs=TOLERANCE)
    assert entry[token].rank == pytest.approx(1 + np.count_nonzero(logits > logits[token]), abs=1)


def test_logprobs_are_those_of_the_raw_logits(recorder: RecordingCore, tiny_model: Model) -> None:
    output = recorder.run(PROMPT, seed=3, temperature=0.7, top_k=50, logprobs=4, prompt_logprobs=2, max_tokens=6)
    completion = output.outputs[0]
    token_ids = output.prompt_token_ids + completion.token_ids
    logits = reference_logits(tiny_model, token_ids)
    assert completion.logprobs is not None
    assert len(completion.logprobs) == 6
    for at, entry in enumerate(completion.logprobs, start=len(output.prompt_token_ids)):
        check(entry, token_ids[at], logits[at - 1], 4, tiny_model)
    chosen = [entry[token].logprob for entry, token in zip(completion.logprobs, completion.token_ids, strict=True)]
    assert completion.cumulative_logprob == pytest.approx(sum(chosen))
    assert output.prompt_logprobs is not None
    assert output.prompt_logprobs[0] is None
    assert len(output.prompt_logprobs) == len(output.prompt_token_ids)
    for at, prompt_entry in enumerate(output.prompt_logprobs[1:], start=1):
        assert prompt_entry is not None
        check(prompt_entry, token_ids[at], logits[at - 1], 2, tiny_model)


def test_zero_logprobs_are_those_of_the_chosen_token(recorder: RecordingCore) -> None:
    output = recorder.run(PROMPT, seed=3, logprobs=0, prompt_logprobs=0, max_tokens=3)
    assert output.outputs[0].logprobs is not None
    assert [list(entry) for entry in output.outputs[0].logprobs] == [[t] for t in output.outputs[0].token_ids]
    assert output.prompt_logprobs is not None
    assert [list(entry or {}) for entry in output.prompt_logprobs[1:]] == [[t] for t in output.prompt_token_ids[1:]]


def test_without_logprobs_there_are_none(recorder: RecordingCore) -> None:
    output = recorder.run(PROMPT, seed=3)
    assert output.prompt_logprobs is None
    assert output.outputs[0].logprobs is None
    assert output.outputs[0].cumulative_logprob is None


def test_a_prompt_of_one_token_has_nothing_to_score(recorder: RecordingCore) -> None:
    assert recorder.run([5], prompt_logprobs=3).prompt_logprobs == [None]


def test_prompt_logprobs_come_once_with_the_first_delta_of_the_first_completion(recorder: RecordingCore) -> None:
    recorder.add("several", PROMPT, seed=3, n=2, prompt_logprobs=1, max_tokens=3)
    recorder.finish("several")
    carriers = [delta.index for delta in recorder.deltas("several") if delta.prompt_logprobs is not None]
    assert carriers == [0]
    assert recorder.deltas("several", 0)[0].prompt_logprobs is not None


def test_penalties_are_those_of_numpy(recorder: RecordingCore, tiny_model: Model) -> None:
    params = SamplingParams(
        temperature=0, presence_penalty=1.5, frequency_penalty=0.5, repetition_penalty=1.4, max_tokens=12
    )
    recorder.add("penalties", PROMPT, params)
    output = recorder.finish("penalties")
    row = admit_request(GenerateRequest("", PROMPT, params), tiny_model, 256).sampling(0)
    unused = SequenceTable.allocate(ExecutorLimits(1, 256, 1, 1, 16), tiny_model.config.vocab).rules(0)
    rules = unused._replace(params=row)
    token_ids = output.prompt_token_ids + output.outputs[0].token_ids
    logits = reference_logits(tiny_model, token_ids)
    for at in range(len(output.prompt_token_ids), len(token_ids)):
        z = penalized_logits(logits[at - 1], rules, np.array(token_ids[:at], np.int32))
        assert z[token_ids[at]] == pytest.approx(z.max(), abs=TOLERANCE)
    plain = recorder.run(PROMPT, temperature=0, max_tokens=12).outputs[0].token_ids
    assert plain != output.outputs[0].token_ids
