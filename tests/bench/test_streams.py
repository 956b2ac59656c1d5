"""What streams are summed up to, against examples worked out by hand, and that no request is lost or counted twice."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from waferline.bench.streams import Stream, StreamRecorder, count_deadlines, is_good, summarize
from waferline.runtime.messages import Accepted, Delta, Finished, RequestError

MS = 10**6


def stream(times: list[int], arrival: int = 0, outcome: str = "finished") -> Stream:
    end = times[-1] if times else arrival
    return Stream("a", arrival, 1, arrival, arrival, times, end, outcome)


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ([90, 105, 120, 155, 165], (4, 7)),  # the docstring's
        ([100, 110, 120], (3, 3)),  # each just in time
        ([10, 110, 120], (3, 3)),  # what came early is slack
        ([10, 10, 10, 130], (4, 4)),
        ([10, 10, 10, 131], (3, 4)),
        ([101], (0, 1)),
        ([110], (0, 2)),  # late by a whole interval, within which another was due
        ([150, 160, 170], (2, 8)),  # due at 100, 110 to 150, then anew
        ([150, 161], (0, 7)),
        ([], (0, 0)),
    ],
)
def test_fluidity(times: list[int], expected: tuple[int, int]) -> None:
    assert count_deadlines(stream(times), 100, 10) == expected
    assert count_deadlines(stream([time + 7 for time in times], 7), 100, 10) == expected


def etalon(gaps: list[int], ttft_limit: int, itl_limit: int) -> tuple[int, int]:
    """The paper's statement, by slack: https://arxiv.org/abs/2407.07000, algorithm 1."""
    total = missed = slack = 0
    for index, gap in enumerate(gaps):
        allowed = slack + (ttft_limit if index == 0 else itl_limit)
        if gap <= allowed:
            slack = allowed - gap
            total += 1
        else:
            misses = (gap - allowed) // itl_limit + 1
            missed, total, slack = missed + misses, total + misses, 0
    return total - missed, total


@given(st.lists(st.integers(0, 300)), st.integers(1, 200), st.integers(1, 50))
def test_deadlines_are_those_of_the_paper(gaps: list[int], ttft_limit: int, itl_limit: int) -> None:
    times = [sum(gaps[: index + 1]) for index in range(len(gaps))]
    assert count_deadlines(stream(times), ttft_limit, itl_limit) == etalon(gaps, ttft_limit, itl_limit)


def test_a_good_stream_is_finished_with_its_first_token_and_every_gap_in_time() -> None:
    assert is_good(stream([100, 110]), 100, 10)
    assert is_good(stream([100]), 100, 10)
    assert not is_good(stream([101, 102]), 100, 10)
    assert not is_good(stream([1, 5, 16, 17]), 100, 10)
    assert not is_good(stream([1, 2], outcome="cancelled"), 100, 10)
    assert not is_good(stream([], outcome="rejected"), 100, 10)


def latencies(name: str, *milliseconds: float) -> dict[str, float]:
    return dict(zip((f"{name}_{part}_ms" for part in ("p50", "p95", "p99", "max")), milliseconds, strict=True))


def test_a_summary_worked_out_by_hand() -> None:
    streams = [
        Stream("a", 0, 9, 1 * MS, 20 * MS, [100 * MS, 110 * MS, 130 * MS], 130 * MS, "finished"),
        Stream("b", 50 * MS, 9, 51 * MS, 60 * MS, [100 * MS, 105 * MS], 2000 * MS, "cancelled"),
        Stream("c", 60 * MS, 9, 64 * MS, None, [], 64 * MS, "rejected"),
    ]
    figures = summarize(streams, 100, 10)
    assert figures == {
        "seconds": 2.0,
        "requests_per_second": 0.5,
        "tokens_per_second": 2.5,
        **latencies("ttft", 50, 100, 100, 100),
        **latencies("itl", 10, 20, 20, 20),
        **latencies("queue", 10, 20, 20, 20),
        **latencies("refusal", 4, 4, 4, 4),
        "num_good": 0,
        "goodput_per_second": 0.0,
        "fluidity_index": round(4 / 6, 4),  # a: 100, 110 met, 120 and 130 missed; b: 150, 160 met
        "fluid_share": 0.5,
    }
    assert summarize(streams, 100, 20)["goodput_per_second"] == 0.5
    assert summarize(streams[2:], 100, 10)["fluidity_index"] is None
    refused_at_once = summarize([Stream("d", 0, 9, 0, None, [], 0, "rejected")], 100, 10)
    assert [refused_at_once[f"{rate}_per_second"] for rate in ("requests", "tokens", "goodput")] == [None] * 3


def recorder_of(*request_ids: str) -> StreamRecorder:
    times = iter(range(1, 100))
    recorder = StreamRecorder(lambda: next(times))
    for request_id in request_ids:
        recorder.begin(Stream(request_id, 0, 3))
    return recorder


def test_every_request_has_one_outcome() -> None:
    recorder = recorder_of("a", "b", "c", "d", "e", "f", "g")
    recorder.on_output([Accepted("a", [1], 0), Delta("a", 0, [5], "")])
    recorder.on_output([Delta("a", 0, [6], "", "length"), Finished("a", ["length"], 1, 2)])
    recorder.on_output([RequestError("b", "overloaded", "full"), RequestError("c", "internal", "broken")])
    recorder.on_output([Accepted("d", [1], 0), Finished("d", ["abort"], 1, 0)])
    recorder.on_output([RequestError("f", "deadline_exceeded", "late"), Finished("g", ["deadline"], 1, 0)])
    with pytest.raises(RuntimeError, match="outcomes: 1 of 7 requests without one \\['e'\\], and 0 messages too many"):
        recorder.outcomes()
    recorder.on_output([RequestError("e", "prompt_too_long", "long")])
    assert recorder.outcomes() == {"finished": 1, "rejected": 2, "cancelled": 1, "timed_out": 2, "failed": 1}
    assert recorder.streams["a"].token_times_ns == [1, 2]
    assert (recorder.streams["a"].answer_ns, recorder.streams["a"].end_ns) == (1, 2)


@pytest.mark.parametrize("request_id", ["a", "nobody"])
def test_a_message_too_many_is_noticed(request_id: str) -> None:
    recorder = recorder_of("a")
    recorder.on_output([Finished("a", ["length"], 1, 2)])
    recorder.on_output([Delta(request_id, 0, [5], "")])
    with pytest.raises(RuntimeError, match="0 of 1 requests without one \\[\\], and 1 messages too many"):
        recorder.outcomes()
