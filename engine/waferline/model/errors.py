"""The one exception of loading, packing and tokenising."""

from __future__ import annotations


class ModelError(ValueError):
    """A model cannot be loaded or packed; the message names the file, the field or tensor, and what is expected."""
