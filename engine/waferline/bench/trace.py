"""Request traces: when requests came, and how many tokens their prompts and completions had.

A trace is a CSV file as the Azure LLM inference traces are:

    TIMESTAMP,ContextTokens,GeneratedTokens
    2023-11-16 18:15:46.6805900,374,44
    2023-11-16 18:15:50.9951690,396,109

which is a request of 374 prompt tokens that was given 44, and 4,314,579,000 ns later one of 396 that was given 109.
"""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

HEADER = ["TIMESTAMP", "ContextTokens", "GeneratedTokens"]
MAX_TOKENS = 10**7  # of a prompt or completion: more is a mistake
_TIMESTAMP = re.compile(r"([0-9]{4}-[0-9]{2}-[0-9]{2}[ T][0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.([0-9]{1,9}))?(?:\+00:00)?")


@dataclass(frozen=True)
class TraceRequest:
    arrival_ns: int  # after the first one that was read
    num_prompt_tokens: int
    num_output_tokens: int


def read_trace(path: str | Path, count: int | None = None, skip: int = 0) -> list[TraceRequest]:
    """``count`` requests of the trace at ``path`` after the first ``skip``, all of them where it is None.

    Raises OSError for a file that cannot be read, and ValueError, naming line, field and value, for what is not a trace.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as lines:
            return parse_trace(lines, str(path), count, skip)
    except UnicodeDecodeError as error:
        raise ValueError(f"trace: {path}: {error}, expected a text file in UTF-8") from None


def parse_trace(lines: Iterable[str], name: str, count: int | None = None, skip: int = 0) -> list[TraceRequest]:
    """The requests of a trace's ``lines``; ``name`` is what errors call it. See ``read_trace``."""
    reader = csv.reader(lines)
    requests: list[TraceRequest] = []
    begin = latest = None

    def fail(field: str, value: object, allowed: str) -> ValueError:
        return ValueError(f"trace: {name}, line {max(1, reader.line_num)}: {field}: {value!r}, expected {allowed}")

    def parse_count(field: str, text: str) -> int:
        if not re.fullmatch("[0-9]{1,8}", text) or not 1 <= int(text) <= MAX_TOKENS:
            raise fail(field, text, f"a number of tokens from 1 to {MAX_TOKENS}")
        return int(text)

    try:
        header = next(reader, [])
        if header != HEADER:
            raise fail("header", ",".join(header), ",".join(HEADER))
        for row in itertools.islice(reader, skip, None if count is None else skip + count):
            if len(row) != len(HEADER):
                raise fail("fields", len(row), f"{len(HEADER)}: {', '.join(HEADER)}")
            time_ns = _parse_time_ns(row[0])
            if time_ns is None:
                raise fail(HEADER[0], row[0], "a time such as 2023-11-16 18:15:46.6805900")
            if latest is not None and time_ns < latest:
                raise fail(HEADER[0], row[0], "no earlier time than the line before has")
            begin, latest = time_ns if begin is None else begin, time_ns
            prompt, output = (parse_count(*pair) for pair in zip(HEADER[1:], row[1:], strict=True))
            requests.append(TraceRequest(time_ns - begin, prompt, output))
    except csv.Error as error:
        raise fail("line", str(error), "comma-separated values") from None
    if not requests:
        raise fail("requests", 0, "at least 1")
    return requests


def _parse_time_ns(text: str) -> int | None:
    """Nanoseconds since 1970 in UTC; None for what is not a time."""
    match = _TIMESTAMP.fullmatch(text)
    if match is None:
        return None
    try:
        seconds = int(datetime.fromisoformat(match[1]).replace(tzinfo=timezone.utc).timestamp())
    except ValueError:  # such as a 13th month
        return None
    return seconds * 10**9 + int((match[2] or "").ljust(9, "0"))
