"""Safetensors files, read as views of the mapped file and written tensor by tensor.

The `safetensors` library checks a file; the bytes are taken from the map because its numpy side knows no bfloat16, and
written here because it would hold every tensor in memory at once and choose their order itself.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from waferline_kernels.tiles import ALIGNMENT, bfloat16_to_float32, round_up

from .errors import ModelError

FLOAT_DTYPES = ("F32", "F16", "BF16")
_NUMPY_DTYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "U8": "u1"}  # bfloat16 as its bits


@dataclass(frozen=True)
class TensorInfo:
    dtype: str  # safetensors' name, such as "BF16"
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


class TensorFile:
    """A safetensors file, mapped read-only. Raises ModelError where it is missing, truncated or malformed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with safe_open(path, framework="numpy"):  # checks the header, the offsets and the size of the file
                pass
            self._bytes: NDArray[np.uint8] = np.memmap(path, np.uint8, "r").view(np.ndarray)
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path}: not a readable safetensors file: {error}") from None
        length = int.from_bytes(self._bytes[:8].tobytes(), "little")
        header: dict[str, Any] = json.loads(self._bytes[8 : 8 + length].tobytes())
        self._start = 8 + length
        self.metadata: dict[str, str] = header.pop("__metadata__", None) or {}
        self._offsets: dict[str, tuple[int, int]] = {name: tuple(t["data_offsets"]) for name, t in header.items()}
        self.tensors = {name: TensorInfo(t["dtype"], tuple(t["shape"])) for name, t in header.items()}

    def view(self, name: str) -> NDArray[Any]:
        """The tensor as stored, without a copy; bfloat16 as uint16 bits. Its dtype is among those known here."""
        info, (begin, end) = self.tensors[name], self._offsets[name]
        raw = self._bytes[self._start + begin : self._start + end]
        return raw.view(_NUMPY_DTYPES[info.dtype]).reshape(info.shape)


def to_float32(stored: NDArray[Any]) -> NDArray[np.float32]:
    """Float32 of a view: exact from float16 and from the uint16 bits of bfloat16."""
    return bfloat16_to_float32(stored) if stored.dtype == np.uint16 else stored.astype(np.float32)


def write_tensor_file(
    path: Path, metadata: Mapping[str, str], tensors: Mapping[str, TensorInfo], data: Callable[[str], NDArray[Any]]
) -> None:
    """Write ``tensors`` in their order, asking ``data`` for one at a time. The same input gives the same bytes.

    The first tensor begins at a multiple of ``ALIGNMENT``. The file appears under its name when it is complete.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, info in tensors.items():
        begin, end = end, end + int(np.prod(info.shape)) * np.dtype(_NUMPY_DTYPES[info.dtype]).itemsize
        header[name] = {"dtype": info.dtype, "shape": list(info.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text = text.ljust(round_up(8 + len(text), ALIGNMENT) - 8)
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("wb") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            for name, info in tensors.items():
                stored = np.ascontiguousarray(data(name), _NUMPY_DTYPES[info.dtype])
                if stored.shape != info.shape:
                    raise ValueError(f"{name}: shape {list(stored.shape)}, expected {info}")
                out.write(stored.data)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


class LazyWeights(Mapping[str, NDArray[Any]]):
    """Arrays by name, each made when it is asked for and kept by nobody here."""

    def __init__(self, makers: Mapping[str, Callable[[], NDArray[Any]]]) -> None:
        self._makers = makers

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self._makers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)
