"""What clients see of their requests: when tokens came, how each request ended, and the figures that sum it up.

Times are nanoseconds of one clock, a real or a virtual one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from ..demo_command import percentile
from ..runtime.errors import DEADLINE_EXCEEDED, OVERLOADED, PROMPT_TOO_LONG
from ..runtime.messages import Accepted, Delta, EngineOutput, Finished, RequestError
from .output import PERCENTILES

OUTCOMES = ("finished", "rejected", "cancelled", "timed_out", "failed")
BAD_ENDS = {OVERLOADED: "rejected", PROMPT_TOO_LONG: "rejected", DEADLINE_EXCEEDED: "timed_out"}
GOOD_ENDS = {"abort": "cancelled", "deadline": "timed_out"}  # by finish reason; with others it is finished
FLUID = 0.9  # the share of deadlines that a fluid request meets: Etalon's


@dataclass
class Stream:
    """One request and what came back. Of ``outcome`` there is one of OUTCOMES in the end."""

    request_id: str
    arrival_ns: int
    num_prompt_tokens: int
    answer_ns: int | None = None  # when it was accepted or refused
    start_ns: int | None = None  # when the first step with a row of it began
    token_times_ns: list[int] = field(default_factory=list)
    end_ns: int | None = None
    outcome: str | None = None

    @property
    def ttft_ns(self) -> int | None:
        return self.token_times_ns[0] - self.arrival_ns if self.token_times_ns else None

    @property
    def gaps_ns(self) -> list[int]:
        """Between each token and the next."""
        return [later - earlier for earlier, later in pairwise(self.token_times_ns)]


class StreamRecorder:
    """Keeps a Stream for each request; ``on_output`` is an engine's."""

    def __init__(self, clock_ns: Callable[[], int]) -> None:
        self.streams: dict[str, Stream] = {}
        self._clock_ns = clock_ns
        self._violations: list[str] = []

    def begin(self, stream: Stream) -> None:
        self.streams[stream.request_id] = stream

    @property
    def num_open(self) -> int:
        return sum(stream.outcome is None for stream in self.streams.values())

    def on_output(self, outputs: list[EngineOutput]) -> None:
        now = self._clock_ns()
        for output in outputs:
            stream = self.streams.get(output.request_id)
            if stream is None or stream.outcome is not None:
                self._violations.append(f"{output} of a request that has ended or never was")
                continue
            if stream.answer_ns is None:
                stream.answer_ns = now
            match output:
                case Delta():
                    stream.token_times_ns.append(now)
                case Finished(finish_reasons=[reason]):
                    stream.outcome = GOOD_ENDS.get(reason, "finished")
                    stream.end_ns = now
                case RequestError(code=code):
                    stream.outcome = BAD_ENDS.get(code, "failed")
                    stream.end_ns = now
                case Accepted():
                    pass

    def outcomes(self) -> dict[str, int]:
        """How many requests ended in each of OUTCOMES. Raises RuntimeError unless each did in exactly one, once."""
        counts = Counter(stream.outcome for stream in self.streams.values())
        if counts[None] or self._violations:
            wrong = [stream.request_id for stream in self.streams.values() if stream.outcome is None]
            raise RuntimeError(
                f"outcomes: {counts[None]} of {len(self.streams)} requests without one {wrong[:3]}, and "
                f"{len(self._violations)} messages too many {self._violations[:3]}; expected neither"
            )
        return {outcome: counts[outcome] for outcome in OUTCOMES}


def count_deadlines(stream: Stream, ttft_limit_ns: int, itl_limit_ns: int) -> tuple[int, int]:
    """How many token deadlines ``stream`` met, and how many there were: its fluidity index is the first over the second.

    The fluidity index of Etalon (Agrawal et al., 2024: "Etalon: Holistic Performance Evaluation Framework for LLM
    Inference Systems"). The first token is due ``ttft_limit_ns`` after the arrival, each further one ``itl_limit_ns``
    later, whenever those before it came: what came early is slack for the others. A token that is late misses its own
    deadline and one for each whole ``itl_limit_ns`` that it is late; from when it came, deadlines start anew without slack.

    Limits of 100 and 10, tokens at 90, 105, 120, 155, 165: the first three are due at 100, 110, 120 and in time. The
    fourth, due at 130, is 25 late: it misses 130, 140 and 150. The fifth is due at 165 and in time: 4 of 7.
    """
    met = missed = 0
    due = stream.arrival_ns + ttft_limit_ns
    for time_ns in stream.token_times_ns:
        if time_ns <= due:
            met += 1
            due += itl_limit_ns
        else:
            missed += (time_ns - due) // itl_limit_ns + 1
            due = time_ns + itl_limit_ns
    return met, met + missed


def is_good(stream: Stream, ttft_limit_ns: int, itl_limit_ns: int) -> bool:
    """Whether ``stream`` is finished, its first token came in time, and no gap after it was longer than allowed."""
    ttft_ns = stream.ttft_ns
    in_time = ttft_ns is not None and ttft_ns <= ttft_limit_ns
    return stream.outcome == "finished" and in_time and max(stream.gaps_ns, default=0) <= itl_limit_ns


def summarize(streams: Iterable[Stream], ttft_limit_ms: float, itl_limit_ms: float) -> dict[str, Any]:
    """The figures of ``streams``, all of which have ended, none of them for an empty list of values (None).

    ITL is over the gaps of all streams together. Rates are from the first arrival to the last end (None where that is no
    time): of requests that are finished, and goodput of those that are good. ``fluidity_index`` is over the deadlines of
    all streams together; ``fluid_share`` is that of the streams with tokens whose own index is at least FLUID.
    """
    streams, limits = list(streams), (round(ttft_limit_ms * 1e6), round(itl_limit_ms * 1e6))
    seconds = (max(s.end_ns or 0 for s in streams) - min(s.arrival_ns for s in streams)) * 1e-9
    num_tokens = sum(len(s.token_times_ns) for s in streams)
    deadlines = [count_deadlines(s, *limits) for s in streams if s.token_times_ns]
    num_finished = sum(s.outcome == "finished" for s in streams)
    num_good = sum(is_good(s, *limits) for s in streams)
    refusals = [s.answer_ns - s.arrival_ns for s in streams if s.outcome == "rejected" and s.answer_ns is not None]
    return {
        "seconds": round(seconds, 3),
        "requests_per_second": _ratio(num_finished, seconds, 3),
        "tokens_per_second": _ratio(num_tokens, seconds, 1),
        **percentiles("ttft", [s.ttft_ns for s in streams if s.ttft_ns is not None]),
        **percentiles("itl", [gap for s in streams for gap in s.gaps_ns]),
        **percentiles("queue", [s.start_ns - s.arrival_ns for s in streams if s.start_ns is not None]),
        **percentiles("refusal", refusals),
        "num_good": num_good,
        "goodput_per_second": _ratio(num_good, seconds, 3),
        "fluidity_index": _ratio(sum(met for met, _ in deadlines), sum(count for _, count in deadlines)),
        "fluid_share": _ratio(sum(met >= FLUID * count for met, count in deadlines), len(deadlines)),
    }


def percentiles(name: str, values_ns: Iterable[int]) -> dict[str, float | None]:
    """``name``_p50_ms and so on of PERCENTILES, and the greatest value; None where there are no values."""
    ascending = [value * 1e-6 for value in sorted(values_ns)]
    shares = [percentile(ascending, p) if ascending else None for p in PERCENTILES]
    figures = {f"{name}_p{p}_ms": value for p, value in zip(PERCENTILES, shares, strict=True)}
    figures[f"{name}_max_ms"] = ascending[-1] if ascending else None
    return {field: None if value is None else round(value, 4) for field, value in figures.items()}


def _ratio(part: int, whole: float, digits: int = 4) -> float | None:
    return round(part / whole, digits) if whole else None
