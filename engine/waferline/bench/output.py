"""What a benchmark prints: a line of JSON, or a table for people."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..fabric.host import probe_host
from ..fabric.spec import processor_name

PERCENTILES = (50, 95, 99)


def machine() -> dict[str, Any]:
    """What every result carries of the machine that it was measured on."""
    return {"processor": processor_name(), "cpus": len(probe_host().cpus), "python": platform.python_version()}


def print_json(result: Mapping[str, Any]) -> None:
    """One line. Raises ValueError for a number that JSON does not have: what has no figure is None."""
    print(json.dumps(result, allow_nan=False))


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """The first column to the left, the others to the right."""
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    for line in lines:
        cells = [cell.rjust(width) for cell, width in zip(line, widths, strict=True)]
        print("  ".join([line[0].ljust(widths[0]), *cells[1:]]).rstrip())


def rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


def share(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"
