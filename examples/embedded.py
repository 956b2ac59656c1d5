"""The embedded API: a model in this process. `python examples/embedded.py [MODEL]`"""

import sys

from waferline import LLM, SamplingParams

model = sys.argv[1] if len(sys.argv) > 1 else "demo"

with LLM(model) as llm:
    # Many prompts at once: they share the steps of one batch.
    prompts = ["Once upon a time", "The little dog", "One morning"]
    for output in llm.generate(prompts, SamplingParams(temperature=0.8, max_tokens=32)):
        print(f"{output.prompt!r} -> {output.outputs[0].text!r}")

    # One prompt, token by token. The seed makes it the same every time.
    for delta in llm.stream("Once upon a time", SamplingParams(temperature=0.8, max_tokens=200, seed=7)):
        print(delta.text, end="", flush=True)
    print()

    stats = llm.stats()
    print(f"{stats['generation_tokens_total']} tokens on {stats['backend']} ({stats['level']})")
