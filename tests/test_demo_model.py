"""The embedded model: exact greedy and seeded tokens, on every backend, from nothing but this repository.

``python tests/test_demo_model.py`` writes the golden tokens again, after the model was trained again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from helpers import TARGETS, run_tokens
from waferline import LLM, SamplingParams
from waferline.model.load import load_model

GOLDEN = Path(__file__).parent / "fixtures" / "demo_golden.json"
PROMPT = "Once upon a time"
MAX_TOKENS = 400
CASES: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "seeded": {"temperature": 0.8, "top_p": 0.95, "seed": 42},
}


def golden() -> dict[str, list[int]]:
    tokens: dict[str, list[int]] = json.loads(GOLDEN.read_text())
    return tokens


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("target", TARGETS)
def test_exact_tokens(target: str, case: str) -> None:
    model = load_model("demo", dtype="f32")
    prompt = model.tokenizer.encode(PROMPT)
    for threads in (1, 2):
        assert run_tokens(model, prompt, MAX_TOKENS, target, threads, **CASES[case]) == golden()[case]


@pytest.mark.parametrize("case", CASES)
def test_the_embedded_api_gives_the_same_tokens(case: str) -> None:
    with LLM("demo", dtype="f32") as llm:
        [output] = llm.generate(PROMPT, SamplingParams(max_tokens=MAX_TOKENS, **CASES[case]))
    completion = output.outputs[0]
    assert completion.token_ids == golden()[case]
    assert completion.finish_reason == "stop"


def test_stories_end_and_read_as_text() -> None:
    with LLM("demo") as llm:
        outputs = llm.generate(
            [PROMPT] * 8, [SamplingParams(max_tokens=500, temperature=0.7, seed=seed) for seed in range(8)]
        )
    texts = [output.outputs[0].text for output in outputs]
    assert all(output.outputs[0].finish_reason == "stop" for output in outputs)
    assert all(60 < len(text.split()) < 320 for text in texts)
    assert all(text.rstrip().endswith((".", "!", '"')) for text in texts)
    assert len(set(texts)) == 8


if __name__ == "__main__":
    with LLM("demo", dtype="f32") as llm:
        tokens = {
            case: llm.generate(PROMPT, SamplingParams(max_tokens=MAX_TOKENS, **sampling))[0].outputs[0].token_ids
            for case, sampling in CASES.items()
        }
    GOLDEN.write_text(json.dumps(tokens) + "\n")
