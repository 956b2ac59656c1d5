"""Streams side by side in asyncio, one of them ended early. `python examples/asyncio_stream.py [MODEL]`"""

import asyncio
import sys

from waferline import AsyncLLM, SamplingParams


async def tell(llm: AsyncLLM, name: str, prompt: str, max_words: int) -> str:
    """Stream a story up to ``max_words`` words; breaking off and closing the stream aborts the request."""
    text = prompt
    stream = llm.stream(prompt, SamplingParams(temperature=0.8, max_tokens=200))
    async for delta in stream:
        text += delta.text
        if len(text.split()) >= max_words:
            break
    await stream.aclose()
    return f"{name}: {text}"


async def main() -> None:
    async with AsyncLLM(sys.argv[1] if len(sys.argv) > 1 else "demo") as llm:
        stories = [
            tell(llm, "Ada", "Once upon a time", max_words=30),
            tell(llm, "Bob", "The little dog", max_words=15),
        ]
        for story in asyncio.as_completed(stories):
            print(await story)


asyncio.run(main())
