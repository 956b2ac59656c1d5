"""A client process: runs the jobs that it reads as JSON from standard input, all at once; prints what came of each."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import msgspec

from waferline import AsyncClient, SamplingParams


async def run_job(client: AsyncClient, job: dict[str, Any]) -> dict[str, Any]:
    """The tokens of each completion; a job with ``cancel_after`` is cancelled once it has had so many deltas."""
    params = msgspec.convert(job["params"], SamplingParams)
    stream = client.stream(job["prompt"], params)
    completions: list[list[int]] = [[] for _ in range(params.n)]
    num_deltas = 0
    async for delta in stream:
        completions[delta.index] += delta.token_ids
        num_deltas += 1
        if num_deltas == job["cancel_after"]:
            await client.cancel(stream.request_id)
    assert stream.finished
    return {"completions": completions, "finish_reasons": stream.finished.finish_reasons}


async def main() -> None:
    jobs = json.load(sys.stdin)
    async with AsyncClient(sys.argv[1]) as client:
        json.dump(await asyncio.gather(*(run_job(client, job) for job in jobs)), sys.stdout)


asyncio.run(main())
