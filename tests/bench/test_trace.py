"""The trace parser: what it takes, and that it says what it does not take, and where."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from waferline.bench.trace import HEADER, TraceRequest, parse_trace, read_trace

FIRST = "2023-11-16 18:15:46.6805900,374,44"


def trace(*lines: str, header: str = ",".join(HEADER)) -> list[str]:
    return [f"{line}\n" for line in (header, *lines)]


def test_the_documented_example() -> None:
    lines = trace(FIRST, "2023-11-16 18:15:50.9951690,396,109", "2023-11-16T18:15:51+00:00,1,1")
    expected = [TraceRequest(0, 374, 44), TraceRequest(4_314_579_000, 396, 109), TraceRequest(4_319_410_000, 1, 1)]
    assert parse_trace(lines, "t") == expected
    assert parse_trace(lines, "t", 2) == expected[:2]


def test_times_count_from_the_first_request_that_is_not_skipped() -> None:
    lines = trace(FIRST, "2023-11-16 18:15:50,396,109", "2023-11-16 18:15:51,1,1", "2023-11-16 18:15:52,2,2")
    assert parse_trace(lines, "t", 2, skip=1) == [TraceRequest(0, 396, 109), TraceRequest(10**9, 1, 1)]
    with pytest.raises(ValueError, match="requests: 0, expected at least 1"):
        parse_trace(lines, "t", skip=4)


@given(
    st.lists(st.tuples(st.integers(0, 10**13), st.integers(1, 10**7), st.integers(1, 10**7)), min_size=1),
    st.integers(7, 9),
)
def test_what_is_written_is_read(rows: list[tuple[int, int, int]], digits: int) -> None:
    unit = 10 ** (9 - digits)
    rows = sorted((time_ns // unit * unit, prompt, output) for time_ns, prompt, output in rows)
    lines = []
    for time_ns, prompt, output in rows:
        moment = datetime(2023, 12, 31, 23, 59, 58) + timedelta(seconds=time_ns // 10**9)
        lines.append(f"{moment:%Y-%m-%d %H:%M:%S}.{time_ns % 10**9 // unit:0{digits}},{prompt},{output}")
    expected = [TraceRequest(time_ns - rows[0][0], prompt, output) for time_ns, prompt, output in rows]
    assert parse_trace(trace(*lines), "t") == expected


@given(st.lists(st.text(st.sampled_from('0123456789,-: .T+"\n\0x'), max_size=30), min_size=1, max_size=3))
def test_any_other_text_is_refused_by_a_line_number(lines: list[str]) -> None:
    with pytest.raises(ValueError, match="trace: t, line "):
        parse_trace(trace(FIRST, *lines), "t")


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([], "line 1: header: '', expected TIMESTAMP,ContextTokens,GeneratedTokens"),
        (trace(header="TIMESTAMP,ContextTokens"), "line 1: header: 'TIMESTAMP,ContextTokens', expected TIMESTAMP,"),
        (trace(), "line 1: requests: 0, expected at least 1"),
        (trace(FIRST, "2023-11-16 18:15:47,1"), "line 3: fields: 2, expected 3: TIMESTAMP, ContextTokens, Gen"),
        (trace(FIRST, ""), "line 3: fields: 0, expected 3"),
        (trace("yesterday,1,1"), "line 2: TIMESTAMP: 'yesterday', expected a time such as 2023-11-16"),
        (trace("2023-13-16 18:15:47,1,1"), "line 2: TIMESTAMP: '2023-13-16 18:15:47', expected a time such as"),
        (trace(FIRST, "2023-11-16 18:15:46,1,1"), "line 3: TIMESTAMP: '2023-11-16 18:15:46', expected no earlier time"),
        (trace("2023-11-16 18:15:47,0,1"), "line 2: ContextTokens: '0', expected a number of tokens from 1 to"),
        (trace("2023-11-16 18:15:47,1,-3"), "line 2: GeneratedTokens: '-3', expected a number of tokens"),
        (trace("2023-11-16 18:15:47,1,99999999"), "line 2: GeneratedTokens: '99999999', expected a number of tokens"),
    ],
)
def test_what_is_wrong_is_named(lines: list[str], words: str) -> None:
    with pytest.raises(ValueError, match="trace: t, ") as error:
        parse_trace(lines, "t")
    assert words in str(error.value)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="expected a text file in UTF-8"):
        read_trace(path)
    path.write_text("\ufeff" + "".join(trace(FIRST)))
    assert read_trace(path) == [TraceRequest(0, 374, 44)]
