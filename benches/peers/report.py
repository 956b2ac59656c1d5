"""What a run found, as data and as a Markdown table; nothing here knows an engine."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Work:
    """What is timed: ``batch`` sequences decoding ``tokens`` tokens after ``prompt_tokens``, or one prompt's prefill."""

    name: str
    method: str  # of Runner
    arguments: tuple[int, ...]
    tokens_per_run: int  # that the rate counts


@dataclass
class Measurement:
    runs: list[list[float]] = field(default_factory=list)  # seconds of each step, of each run

    def tokens_per_second(self, work: Work) -> float:
        """The median of the runs."""
        return statistics.median(work.tokens_per_run / sum(seconds) for seconds in self.runs)

    def step_ms(self, share: float) -> float:
        """The step time that a ``share`` (0 to 1) of all steps is within, in milliseconds (nearest rank)."""
        steps = sorted(second for seconds in self.runs for second in seconds)
        return 1e3 * steps[min(len(steps) - 1, int(share * len(steps)))]


@dataclass
class Contender:
    """An engine in one variant on one model. ``absent``: why it has no measurements, or no further ones."""

    engine: str
    variant: str
    threads: int
    settings: str = ""
    absent: str = ""
    works: dict[str, Measurement] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.engine} {self.variant}, {self.threads}"

    def rate(self, work: Work) -> float | None:
        measured = self.works.get(work.name)
        return measured.tokens_per_second(work) if measured and measured.runs else None


def decode_work(batch: int, prompt_tokens: int, tokens: int) -> Work:
    return Work(f"decode, batch {batch}", "decode", (batch, prompt_tokens, tokens), batch * tokens)


def prefill_work(tokens: int) -> Work:
    return Work(f"prefill, {tokens} tokens", "prefill", (tokens,), tokens)


def records(works: Sequence[Work], contenders: Iterable[Contender]) -> list[dict[str, object]]:
    """A dictionary of each contender, for JSON."""
    return [
        {
            "engine": contender.engine,
            "variant": contender.variant,
            "threads": contender.threads,
            "settings": contender.settings,
            "absent": contender.absent,
            "works": {
                work.name: {
                    "tokens_per_second": round(contender.works[work.name].tokens_per_second(work), 1),
                    "step_ms_p50": round(contender.works[work.name].step_ms(0.5), 4),
                    "step_ms_p95": round(contender.works[work.name].step_ms(0.95), 4),
                    "runs": len(contender.works[work.name].runs),
                }
                for work in works
                if contender.rate(work) is not None
            },
        }
        for contender in contenders
    ]


def markdown(title: str, works: Sequence[Work], contenders: Sequence[Contender]) -> str:
    """A table of tokens per second, the best of each column bold, then what each contender is and why others are absent."""
    best = {work.name: max((contender.rate(work) or 0.0 for contender in contenders), default=0.0) for work in works}
    lines = [f"### {title}", "", "tokens/s, medians; after each name the number of threads", ""]
    lines.append(f"| engine | {' | '.join(work.name for work in works)} |")
    lines.append("|---" * (len(works) + 1) + "|")
    for contender in contenders:
        rates = [(contender.rate(work), best[work.name]) for work in works]
        if any(rate is not None for rate, _ in rates):
            lines.append(f"| {contender.name} | {' | '.join(_cell(rate, most) for rate, most in rates)} |")
    notes = [f"- {contender.name}: {contender.settings}" for contender in contenders if contender.settings]
    notes += [f"- {contender.name}: absent: {contender.absent}" for contender in contenders if contender.absent]
    return "\n".join([*lines, "", *notes, ""])


def _cell(rate: float | None, most: float) -> str:
    if rate is None:
        return "-"
    text = f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}"
    return f"**{text}**" if rate == most else text
