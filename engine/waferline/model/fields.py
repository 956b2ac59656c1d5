"""JSON objects whose fields are checked as they are read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NoReturn

from .errors import ModelError

MIN_NUMBER, MAX_NUMBER = 1e-30, 1e30  # well within float32


class Fields:
    """The fields of one JSON object; ``where`` names the object in errors. A null field counts as absent.

    Every reader raises ModelError for a wrong type or value, and for an absent field without a default.
    """

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self._values = values
        self.where = where

    @classmethod
    def parse(cls, data: bytes, where: str) -> Fields:
        """The object that ``data`` holds as JSON text."""
        try:
            values = json.loads(data)
            json.dumps(values, ensure_ascii=False).encode()  # no half of a character
        except (ValueError, RecursionError) as error:  # of ValueError: JSONDecodeError and Unicode's errors
            raise ModelError(f"{where}: not valid JSON: {error}") from None
        if not isinstance(values, dict):
            raise ModelError(f"{where}: holds {type(values).__name__}, expected a JSON object")
        return cls(values, where)

    def __contains__(self, name: str) -> bool:
        return self._values.get(name) is not None

    def raw(self, name: str) -> Any:
        """The value as it stands, None where absent."""
        return self._values.get(name)

    def fail(self, name: str, expected: str) -> NoReturn:
        found = repr(self._values[name]) if name in self._values else "missing"
        raise ModelError(f"{self.where}: {name}: {found}, expected {expected}")

    def integer(self, name: str, default: int | None = None, low: int = 1) -> int:
        value = self.raw(name) if name in self else default
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value < 2**31:
            self.fail(name, f"an integer of at least {low}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A number from MIN_NUMBER to MAX_NUMBER."""
        value = self.raw(name) if name in self else default
        if not isinstance(value, int | float) or isinstance(value, bool) or not MIN_NUMBER <= value <= MAX_NUMBER:
            self.fail(name, f"a number from {MIN_NUMBER:g} to {MAX_NUMBER:g}")
        return float(value)

    def boolean(self, name: str, default: bool) -> bool:
        value = self.raw(name) if name in self else default
        if not isinstance(value, bool):
            self.fail(name, "true or false")
        return value

    def string(self, name: str, default: str | None = None) -> str:
        value = self.raw(name) if name in self else default
        if not isinstance(value, str):
            self.fail(name, "a string")
        return value

    def object(self, name: str) -> Fields:
        value = self.raw(name)
        if not isinstance(value, dict):
            self.fail(name, "an object")
        return Fields(value, f"{self.where}: {name}")
