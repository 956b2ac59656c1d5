"""The arguments of ``waferline bench``; a benchmark itself is imported when it runs."""

from __future__ import annotations

import argparse
import importlib
from typing import Any

from ..argument_types import counts, integer, shares, size, targets


def add_bench(commands: Any) -> None:
    """Add ``bench`` and its benchmarks to ``commands``, the command line's subparsers."""
    bench = commands.add_parser("bench", help="measure the engine beside what this machine allows")
    benchmarks = bench.add_subparsers(metavar="BENCHMARK", required=True)

    def add(name: str, summary: str, repeats: int | None = 5, threads: Any = int) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = benchmarks.add_parser(name, help=summary)
        metavar = "N" if threads is int else "N,N"
        parser.add_argument("--threads", type=threads, metavar=metavar, help="default: as many as there is work for")
        if repeats is not None:
            parser.add_argument(
                "--repeats", type=int, default=repeats, metavar="N", help="of which medians; %(default)s"
            )
        parser.add_argument("--json", action="store_true", help="one line of JSON")
        parser.set_defaults(run=run_bench, benchmark=name)
        return parser

    kernels = add("kernels", "every kernel beside the bandwidth or peak of this machine, and its error")
    kernels.add_argument(
        "--only", default="", metavar="TEXT", help="kernels whose name contains it, such as q8 or avx2"
    )
    kernels.add_argument("--rows", type=counts, default=(1, 32, 512), metavar="N,N", help="1,32,512")
    kernels.add_argument("--k", type=int, default=2048, metavar="N", help="inputs of the matrices; %(default)s")
    kernels.add_argument("--n", type=int, metavar="N", help="their outputs; default: what makes them 2 MB")

    decode = add("decode", "tokens a second beside the limit that memory sets")
    _add_model(decode)
    _add_kv_dtype(decode)
    decode.add_argument("--batch", type=counts, default=(1,), metavar="N,N", help="sequences at once; 1")
    decode.add_argument("--prompt-tokens", type=int, default=128, metavar="N", help="%(default)s")
    decode.add_argument("--tokens", type=int, default=128, metavar="N", help="of each sequence; %(default)s")

    serve = add("serve", "a stream by Executor.run, LLM.stream and a server's client", repeats=3, threads=counts)
    _add_model(serve)
    serve.add_argument("--prompt-tokens", type=int, default=128, metavar="N", help="%(default)s")
    serve.add_argument("--tokens", type=int, default=256, metavar="N", help="of the stream; %(default)s")

    prefill = add("prefill", "a prompt's tokens a second beside what its matmuls alone reach")
    _add_model(prefill)
    _add_kv_dtype(prefill)
    prefill.add_argument("--tokens", type=int, metavar="N", help="of the prompt; 512, or what the model has room for")

    interference = add("interference", "what a long prompt does to the streams beside which it arrives", repeats=3)
    _add_model(interference)
    _add_kv_dtype(interference)
    interference.add_argument("--streams", type=int, default=8, metavar="N", help="%(default)s")
    interference.add_argument(
        "--prompt-tokens", type=int, metavar="N", help="of the long prompt; 4000, or what the model has room for"
    )
    interference.add_argument(
        "--tokens", type=int, default=200, metavar="N", help="of each stream before, and after; %(default)s"
    )
    interference.add_argument(
        "--itl-target-ms",
        type=targets,
        default=("40", "auto"),
        metavar="MS,MS",
        help="auto: just above the p99 of undisturbed streams; 40,auto",
    )
    interference.add_argument(
        "--undisturbed-tokens", type=int, default=1500, metavar="N", help="of each stream, for auto; %(default)s"
    )

    speculation = add("speculation", "decoding with drafts beside decoding without", repeats=3)
    _add_model(speculation)
    speculation.add_argument("--prompt-tokens", type=int, default=16, metavar="N", help="%(default)s")
    speculation.add_argument("--tokens", type=int, default=128, metavar="N", help="of the stream; %(default)s")
    speculation.add_argument(
        "--num-speculative-tokens", type=int, default=4, metavar="N", help="of a draft; %(default)s"
    )
    speculation.add_argument(
        "--acceptance",
        type=shares,
        default=(1.0, 0.5, 0.0),
        metavar="P,P",
        help="of a draft token, how likely it is right; 1,0.5,0",
    )

    _add_schedule(
        add("schedule", "latencies of a request trace: simulated, and beside it the real engine's", repeats=None)
    )

    load = add("load", "how fast a model is packed and loaded, and the memory it takes", repeats=3)
    _add_model(load)


def _add_schedule(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    _add_kv_dtype(parser)
    add = parser.add_argument
    add("--trace", required=True, metavar="FILE", help="CSV: TIMESTAMP,ContextTokens,GeneratedTokens")
    add("--requests", type=integer, default=1000, metavar="N", help="the first of the trace; %(default)s")
    add("--skip", type=integer, default=0, metavar="N", help="of the trace's requests, to begin after; %(default)s")
    add("--time-scale", type=float, default=1.0, metavar="X", help="by which times between requests are multiplied; 1")
    add("--load", type=float, metavar="X", help="scale times so that requests come at X times what can be served")
    add("--seconds", type=float, metavar="S", help="with a load: as many requests as come in this time")
    add("--cancel-share", type=float, default=0.0, metavar="X", help="of clients that lose patience, 0 to 1; 0")
    add("--seed", type=integer, default=0, metavar="N", help="of prompts, tokens and patience; %(default)s")
    add("--ttft-limit-ms", type=float, default=2000.0, metavar="MS", help="to the first token; %(default)s")
    add("--itl-limit-ms", type=float, default=200.0, metavar="MS", help="from each token to the next; %(default)s")
    add("--itl-target-ms", type=float, metavar="MS", help="what the scheduler aims at")
    add("--max-ttft-ms", type=float, metavar="MS", help="refuse what is predicted to wait longer for its first token")
    add("--max-waiting-requests", type=int, metavar="N", help="refuse what comes while as many wait")
    add("--max-waiting-tokens", type=int, metavar="TOKENS", help="the same by the tokens of their prompts")
    add("--queue-timeout-ms", type=int, metavar="MS", help="of each request; give up what has not begun by then")
    add("--max-num-seqs", type=int, default=64, metavar="N", help="sequences that run at once; %(default)s")
    add(
        "--max-model-len",
        type=int,
        metavar="TOKENS",
        help="of a completion and its prompt; longer ones are refused",
    )
    add("--max-num-batched-tokens", type=int, default=512, metavar="TOKENS", help="of one step; %(default)s")
    add("--kv-cache-memory", type=size, metavar="SIZE", help="such as 512MiB or 2GiB")
    add("--fabric", default="host", help="what is simulated: host (measured), or wse3; %(default)s")
    add("--real", action="store_true", help="replay the requests against the real engine too, in real time")


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="demo", help='a Hugging Face folder, a packed file, or "demo" (the default)')
    parser.add_argument("--dtype", help="of the weights: q4, q8, bf16 or f32; default: q8, or what a packed file has")


def _add_kv_dtype(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--kv-dtype", default="auto", help="of the KV cache: f32, bf16, int8 or auto; default: auto")


def run_bench(args: argparse.Namespace) -> int:
    """Run the benchmark that ``args`` name. Raises ValueError for a count that is given and not positive."""
    fields = (
        *("repeats", "tokens", "prompt_tokens", "streams", "undisturbed_tokens", "num_speculative_tokens", "k", "n"),
        "requests",
    )
    for field in fields:
        value = getattr(args, field, None)
        if value is not None and value < 1:
            raise ValueError(f"{field}: {value}, expected at least 1")
    importlib.import_module(f".{args.benchmark}", __package__).run(args)
    return 0
