"""Dtypes: the tile format of each of a model's matrices."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from waferline_kernels.tiles import BF16, F32, Q4, Q8, TileFormat


@dataclass(frozen=True)
class Dtype:
    """``format`` for all matrices but those whose role (the last word of a tensor's name) is among ``overrides``. k and v
    have the role ``kv`` only where query heads share them; else they count for as much as q, and are with it in ``qkv``."""

    name: str
    format: TileFormat
    overrides: Mapping[str, TileFormat] = field(default_factory=lambda: MappingProxyType({}), repr=False)

    def format_of(self, role: str) -> TileFormat:
        return self.overrides.get(role, self.format)

    def described(self, roles: Container[str]) -> str:
        """``q4 (kv: q8, logits: q8)``, for a model that has both of these ``roles``."""
        overrides = ", ".join(f"{role}: {format.name}" for role, format in self.overrides.items() if role in roles)
        return f"{self.name} ({overrides})" if overrides else self.name


# These override what costs most in four bits for its bytes (docs/architecture.md has the figures).
DTYPES = {
    dtype.name: dtype
    for dtype in (
        Dtype("f32", F32),
        Dtype("bf16", BF16),
        Dtype("q8", Q8),
        Dtype("q4", Q4, MappingProxyType({"kv": Q8, "logits": Q8})),
    )
}
