"""The same work on Waferline and on the engines a user would pick instead, alternating, in one run.

    python -m benches.peers MODEL [MODEL ...] [--threads 2] [--out DIR]

Each engine runs in a process of its own with the same numbers of threads, greedily and past any end token, from the same
prompts. One repeat gives each of them each piece of work once, so that a machine whose speed drifts does so for all; the
figures are medians of the repeats. What cannot be installed or converted is listed with its reason. Into DIR go
``MODEL.md``, ``MODEL.json`` and, where matplotlib is installed, ``MODEL.png``.

``--check`` compares greedy tokens with Waferline's in float32 instead of measuring.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from . import chart
from .agreement import print_agreement
from .process import PeerProcess
from .registry import PEERS
from .report import Contender, Measurement, Work, decode_work, markdown, prefill_work, records
from .runner import Absent, Setup, read_config

SETTLE_SECONDS = 0.25  # in which the threads of the engine before stop spinning
WARM_UP_TOKENS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL", help="Hugging Face folders")
    parser.add_argument("--only", default=",".join(PEERS), help="engines; %(default)s")
    parser.add_argument("--batch", default="1,8,32", help="sequences at once; %(default)s")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=128, help="decoded of each sequence; %(default)s")
    parser.add_argument("--prefill", type=int, default=512, help="tokens of the prompt; %(default)s")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", default="2", help="each engine with each of these numbers; %(default)s")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "waferline-peers")
    parser.add_argument("--out", type=Path, help="a folder for the reports")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()

    engines = args.only.split(",")
    if unknown := set(engines) - set(PEERS):
        parser.error(f"--only: {', '.join(sorted(unknown))}, expected some of {', '.join(PEERS)}")
    args.cache.mkdir(parents=True, exist_ok=True)
    for model in args.models:
        if args.check:
            print_agreement(model, engines, max(_counts(args.threads)), args.cache)
        else:
            compare(model, engines, args)


def compare(model: Path, engines: Sequence[str], args: argparse.Namespace) -> None:
    """Measure every variant of ``engines`` on ``model``; print the report, and write it where ``--out`` says."""
    context = read_config(model)["max_position_embeddings"]
    batches = _counts(args.batch)
    works = [decode_work(batch, args.prompt_tokens, args.tokens) for batch in batches]
    max_model_len = args.prompt_tokens + args.tokens + 1
    if args.prefill < context:
        works.append(prefill_work(args.prefill))
        max_model_len = max(max_model_len, args.prefill + 1)
    contenders = [
        Contender(engine, variant, threads)
        for engine in engines
        for variant in PEERS[engine]
        for threads in _counts(args.threads)
    ]
    processes: dict[str, PeerProcess] = {}
    try:
        for contender in contenders:
            setup = Setup(model, contender.variant, contender.threads, max(batches), max_model_len, args.cache)
            try:
                process = PeerProcess(
                    contender.engine,
                    setup,
                    args.cache / f"{contender.engine}-{contender.variant}-{contender.threads}.log",
                )
                processes[contender.name] = process
                contender.settings = process.settings
            except Absent as reason:
                contender.absent = str(reason)
        for work in works:
            _repeat(work, contenders, processes, args.repeats)
    finally:
        for process in processes.values():
            process.close()

    title = f"{model.resolve().name}, {machine()}"
    text = markdown(title, works, contenders)
    print(text, flush=True)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        stem = args.out / model.resolve().name
        stem.with_suffix(".md").write_text(text)
        report = {"model": model.resolve().name, "machine": machine(), "results": records(works, contenders)}
        stem.with_suffix(".json").write_text(json.dumps(report, indent=1))
        try:
            chart.draw(title, works, contenders, stem.with_suffix(".png"))
        except ImportError as error:
            print(f"no chart: {error}")


def _counts(text: str) -> list[int]:
    return [int(count) for count in text.split(",")]


def _repeat(work: Work, contenders: list[Contender], processes: dict[str, PeerProcess], repeats: int) -> None:
    """Give each contender ``work`` in turn, ``repeats`` times after a short warm-up; who fails drops out."""
    for repeat in range(-1, repeats):
        for contender in contenders:
            if contender.absent:
                continue
            arguments = work.arguments
            if repeat < 0 and work.method == "decode":
                arguments = (*arguments[:-1], WARM_UP_TOKENS)
            try:
                seconds = processes[contender.name].ask(work.method, *arguments)
            except Absent as reason:
                contender.absent = str(reason)
                continue
            if repeat >= 0:
                contender.works.setdefault(work.name, Measurement()).runs.append(seconds)
            time.sleep(SETTLE_SECONDS)


def machine() -> str:
    """The processor's name as the operating system gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
