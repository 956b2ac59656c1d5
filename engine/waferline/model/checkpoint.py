"""Hugging Face folders: their small files, and their tensors from one safetensors file or from shards."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from .errors import ModelError
from .fields import Fields
from .tensor_file import FLOAT_DTYPES, TensorFile, TensorInfo

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
REQUIRED_FILES = ("config.json", "tokenizer.json")
OPTIONAL_FILES = ("generation_config.json", "tokenizer_config.json")


def read_side_files(folder: Path) -> dict[str, bytes]:
    """The small files that describe a model, by name. Raises ModelError where a required one is missing."""
    files = {name: folder / name for name in (*REQUIRED_FILES, *OPTIONAL_FILES)}
    for name in REQUIRED_FILES:
        if not files[name].is_file():
            raise ModelError(f"{folder}: no {name}, expected a Hugging Face model folder with one")
    return {name: path.read_bytes() for name, path in files.items() if path.is_file()}


class Checkpoint:
    """The tensors of a folder by name, as stored. Raises ModelError for a missing, truncated or malformed file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.paths = [folder / WEIGHTS_FILE]
        self._files: dict[str, TensorFile] = {}  # by tensor
        if self.paths[0].is_file():
            file = TensorFile(self.paths[0])
            self._files = dict.fromkeys(file.tensors, file)
        elif (folder / INDEX_FILE).is_file():
            self._read_shards(folder / INDEX_FILE)
        else:
            raise ModelError(f"{folder}: no {WEIGHTS_FILE} and no {INDEX_FILE} (other weight files are not read)")

    def _read_shards(self, index: Path) -> None:
        weight_map = Fields.parse(index.read_bytes(), str(index)).raw("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
            raise ModelError(f"{index}: weight_map: expected an object of tensor names and file names")
        names = sorted(set(weight_map.values()))
        for name in names:
            if Path(name).name != name or (self.folder / name).is_dir():
                raise ModelError(f"{index}: weight_map: {name!r}, expected a file of the same folder")
        shards = {name: TensorFile(self.folder / name) for name in names}
        for tensor, name in weight_map.items():
            if tensor not in shards[name].tensors:
                raise ModelError(f"{self.folder / name}: no tensor {tensor!r}, which {INDEX_FILE} says it holds")
            self._files[tensor] = shards[name]
        self.paths = [index, *(self.folder / name for name in names)]

    def names(self) -> list[str]:
        return list(self._files)

    def info(self, name: str) -> TensorInfo:
        return self._files[name].tensors[name]

    def view(self, name: str) -> NDArray[Any]:
        """The tensor as stored, mapped; bfloat16 as uint16 bits."""
        return self._files[name].view(name)

    def check(self, expected: Iterable[tuple[str, tuple[int, ...]]], tied: bool) -> None:
        """Raise ModelError unless exactly the tensors of ``expected`` (names and shapes) are here, as floats. No more of
        ``expected`` is taken than is found.

        Passed over: rotary frequencies, which older checkpoints store, and an output matrix beside a tied embedding.
        """
        names = set()
        for name, shape in expected:
            names.add(name)
            if name not in self._files:
                raise ModelError(f"{self.folder}: tensor {name!r} is missing, expected shape {list(shape)}")
            info = self.info(name)
            if info.shape != shape or info.dtype not in FLOAT_DTYPES:
                allowed = f"{', '.join(FLOAT_DTYPES)} of shape {list(shape)}"
                raise ModelError(f"{self.folder}: tensor {name!r} is {info}, expected {allowed}")
        for name in self._files.keys() - names:
            if not name.endswith("rotary_emb.inv_freq") and not (tied and name == "lm_head.weight"):
                raise ModelError(f"{self.folder}: tensor {name!r} is not one that this architecture has")


def file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
