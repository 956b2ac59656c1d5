"""Safetensors files, read as views of the mapped file and written tensor by tensor.

The `safetensors` library checks a file; the bytes are taken from the map because its numpy side knows no bfloat16, and
written here because it would hold every tensor in memory at once and choose their order itself.
"""

from __future__ import annotations

import json
import os
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
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

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape)) * np.dtype(_NUMPY_DTYPES[self.dtype]).itemsize


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


@dataclass(frozen=True)
class Block:
    """A part of a tensor's bytes; ``make`` gives it as a contiguous array of ``nbytes``, on any thread."""

    nbytes: int
    make: Callable[[], NDArray[Any]]


def array_block(array: NDArray[Any]) -> Block:
    """The block that ``array`` is."""
    return Block(array.nbytes, lambda: array)


def write_tensor_file(
    path: Path,
    metadata: Callable[[], Mapping[str, str]],
    tensors: Mapping[str, TensorInfo],
    blocks: Mapping[str, Sequence[Block]],
    run: Callable[[Iterable[Callable[[], None]]], None],
) -> None:
    """Write ``tensors`` in their order, each from its ``blocks``, whose making and writing is given to ``run`` as jobs.

    ``metadata`` is called before that for its length, and after it for its content. The same input gives the same
    bytes. The first tensor begins at a multiple of ``ALIGNMENT``. The file appears under its name when it is complete: of
    several that are written at once to one ``path``, the last to be complete stays.
    """
    offsets: dict[str, Any] = {}
    end = 0
    for name, info in tensors.items():
        begin, end = end, end + info.nbytes
        if sum(block.nbytes for block in blocks[name]) != info.nbytes:
            raise ValueError(f"{name}: {sum(block.nbytes for block in blocks[name])} bytes in blocks, expected {info}")
        offsets[name] = {"dtype": info.dtype, "shape": list(info.shape), "data_offsets": [begin, end]}

    def header() -> bytes:
        text = json.dumps({"__metadata__": dict(metadata()), **offsets}, separators=(",", ":")).encode()
        text = text.ljust(round_up(8 + len(text), ALIGNMENT) - 8)
        return len(text).to_bytes(8, "little") + text

    start, lock = len(header()), threading.Lock()
    partial_path = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")

    def write(at: int, block: Block) -> None:
        made = block.make()
        if made.nbytes != block.nbytes:
            raise ValueError(f"block: {made.nbytes} bytes, expected {block.nbytes}")
        with lock:
            out.seek(at)
            out.write(made.data)

    def jobs() -> Iterator[Callable[[], None]]:
        at = start
        for name in tensors:
            for block in blocks[name]:
                yield partial(write, at, block)
                at += block.nbytes

    try:
        with partial_path.open("xb") as out:
            run(jobs())
            head = header()
            if len(head) != start:
                raise ValueError(f"metadata: {len(head)} bytes of header, expected {start}")
            out.seek(0)
            out.write(head)
        os.replace(partial_path, path)
    finally:
        partial_path.unlink(missing_ok=True)


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
