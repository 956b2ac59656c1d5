"""What the commands' options are read by: each raises ArgumentTypeError, whose message argparse shows as it is."""

from __future__ import annotations

import argparse
import json
import math
import reprlib
from typing import Any

from .fabric.host import parse_size


def integer(text: str) -> int:
    """An integer that a message between processes can carry."""
    try:
        value = int(text)
    except ValueError:
        value = 2**63
    if not -(2**63) <= value < 2**63:
        raise argparse.ArgumentTypeError(f"{reprlib.repr(text)}, expected an integer of 64 bits")
    return value


def counts(text: str) -> tuple[int, ...]:
    """``1,8,32``: numbers of at least 1."""
    try:
        found = tuple(integer(part) for part in text.split(","))
        if min(found) >= 1:
            return found
    except argparse.ArgumentTypeError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r}, expected numbers of at least 1 such as 1,8,32")


def shares(text: str) -> tuple[float, ...]:
    """``1,0.5,0``: numbers from 0 to 1."""
    try:
        found = tuple(float(part) for part in text.split(","))
        if all(0 <= share <= 1 for share in found):
            return found
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r}, expected numbers from 0 to 1 such as 1,0.5,0")


def targets(text: str) -> tuple[str, ...]:
    """``40,auto``: milliseconds, or "auto"."""
    found = tuple(text.split(","))
    try:
        if all(target == "auto" or 0 < float(target) < math.inf for target in found):
            return found
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r}, expected milliseconds, or auto, such as 40,auto")


def size(text: str) -> int:
    """Bytes: see ``parse_size``."""
    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def tenant_weight(text: str) -> tuple[str, float]:
    """``acme=2``: a tenant and its weight."""
    tenant, _, weight = text.rpartition("=")
    try:
        if tenant:
            return tenant, float(weight)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r}, expected NAME=WEIGHT such as acme=2")


def json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise argparse.ArgumentTypeError(f"{reprlib.repr(text)}, expected a JSON object: {error}") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{reprlib.repr(text)}, expected a JSON object")
    return value
