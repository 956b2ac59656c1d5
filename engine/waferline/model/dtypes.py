"""Dtypes: the tile format of each of a model's matrices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from waferline_kernels.tiles import BF16, F32, Q4, Q8, TileFormat


@dataclass(frozen=True)
class Dtype:
    """``format`` for all matrices but those whose role (the last word of a tensor's name) is among ``overrides``."""

    name: str
    format: TileFormat
    overrides: Mapping[str, TileFormat] = field(default_factory=lambda: MappingProxyType({}), repr=False)

    def format_of(self, role: str) -> TileFormat:
        return self.overrides.get(role, self.format)

    def __str__(self) -> str:
        """``q4 (logits: q8)``."""
        overrides = ", ".join(f"{role}: {format.name}" for role, format in self.overrides.items())
        return f"{self.name} ({overrides})" if overrides else self.name


# An output matrix in four bits costs a small model more perplexity than all its other matrices but down together.
DTYPES = {
    dtype.name: dtype
    for dtype in (
        Dtype("f32", F32),
        Dtype("bf16", BF16),
        Dtype("q8", Q8),
        Dtype("q4", Q4, MappingProxyType({"logits": Q8})),
    )
}
