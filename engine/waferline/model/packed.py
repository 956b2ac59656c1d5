"""Packed files: a model whose tensors lie as the kernels read them, so that loading converts nothing.

A packed file is a safetensors container. Its tensors are, in this order: the program's matrices in execution order
(uint8 ``[num_strips, strip_bytes]``, each at a multiple of 64 bytes), its tables (float32; without ``rope``, which is
computed for the ``max_model_len`` in force), and the model's small files, verbatim (uint8, such as ``config.json``).
Its metadata::

    format          "waferline-packed"
    format_version  "2"
    dtype           "q4"                        the matrices' format,
    group           "128"                       the K that share one of its scales (0: none), and
    overrides       {"kv": "q8", ...}           matrices, by role, in another format
    sources         {"model.safetensors": ...}  SHA-256 of every file it was made from
    calibration     "gptq, 8192 tokens"         how codes were rounded, where not each to the nearest (calibration.py)
    waferline       "0.1.0"                     the version that packed it

The same sources packed by the same version give the same bytes; calibrated ones do on the same machine.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from waferline_kernels.program import Program, TensorSpec

from .calibration import CALIBRATION
from .checkpoint import (
    INDEX_FILE,
    OPTIONAL_FILES,
    REQUIRED_FILES,
    WEIGHTS_FILE,
    Checkpoint,
    file_sha256,
    read_side_files,
)
from .compile import compile_program, program_tensors, stored_tensors
from .dtypes import DTYPES, Dtype
from .errors import ModelError
from .fields import Fields
from .packing import check_checkpoint, program_weights, tensor_packers
from .parallel import run_jobs
from .progress import ProgressBar
from .spec import ModelConfig, parse_config
from .tensor_file import LazyWeights, TensorFile, TensorInfo, array_block, write_tensor_file

FORMAT = "waferline-packed"
FORMAT_VERSION = "2"
NOT_CALIBRATED: Mapping[str, NDArray[np.uint8]] = MappingProxyType({})
_NO_DIGEST = "0" * 64  # until a source is hashed


def check_out(out: Path, folder: Path) -> None:
    """Raise ModelError for an ``out`` that cannot be written, and for one that the model in ``folder`` is read from, or
    would be once it is there."""
    if (out.exists() and not out.is_file()) or not out.parent.is_dir() or not os.access(out.parent, os.W_OK):
        raise ModelError(f"out: {str(out)!r}, expected a file in a folder that is there and can be written to")
    names = (*REQUIRED_FILES, *OPTIONAL_FILES, WEIGHTS_FILE, INDEX_FILE)
    sources = (*(folder / name for name in names), *Checkpoint(folder).paths)
    if out.resolve() in {source.resolve() for source in sources}:
        raise ModelError(f"out: {str(out)!r}, expected another file than the model's own")


def write_packed(
    folder: Path, out: Path, dtype: str, calibrated: Mapping[str, NDArray[np.uint8]] = NOT_CALIBRATED
) -> None:
    """Pack the Hugging Face folder ``folder`` into the file ``out``, its matrices in ``dtype``, but for the strips that are
    ``calibrated``, by tensor.

    Raises ModelError for a folder that cannot be loaded and for an ``out`` that cannot be written.
    """
    files = read_side_files(folder)
    config = parse_config(Fields.parse(files["config.json"], str(folder / "config.json")))
    checkpoint = Checkpoint(folder)
    check_checkpoint(checkpoint, config, DTYPES[dtype])
    program = compile_program(config, DTYPES[dtype], config.max_position_embeddings)
    packers = tensor_packers(checkpoint, config, program)
    digests = {path.name: _NO_DIGEST for path in (*(folder / name for name in files), *checkpoint.paths)}

    def metadata() -> dict[str, str]:
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "dtype": dtype,
            "group": str(DTYPES[dtype].format.group),
            "overrides": _overrides(DTYPES[dtype]),
            "sources": json.dumps(digests, sort_keys=True),
            **({"calibration": CALIBRATION} if calibrated else {}),
            "waferline": _waferline_version(),
        }

    def digest(name: str) -> None:
        digests[name] = file_sha256(folder / name)

    bar = ProgressBar("packing", sum(packer.spec.nbytes for name, packer in packers.items() if name not in calibrated))
    infos = {spec.name: _tensor_info(spec) for spec in _in_file_order(program)}
    blocks = {
        name: [array_block(calibrated[name])] if name in calibrated else packers[name].blocks(bar) for name in infos
    }
    side_files = {name: [array_block(np.frombuffer(data, np.uint8))] for name, data in files.items()}
    side_infos = {name: TensorInfo("U8", (len(data),)) for name, data in files.items()}
    hashing = [partial(digest, name) for name in digests]
    try:
        write_tensor_file(
            out, metadata, infos | side_infos, blocks | side_files, lambda jobs: run_jobs([*hashing, *jobs])
        )
    except OSError as error:
        raise ModelError(f"{out}: cannot be written: {error.strerror}") from None
    finally:
        bar.close()


class PackedFile:
    """A packed file, mapped. Raises ModelError for one that is malformed or of another format or version."""

    def __init__(self, path: Path) -> None:
        self._file = TensorFile(path)
        metadata = self._file.metadata
        self._check("format", (FORMAT,), "for a checkpoint give the folder it lies in")
        self._check("format_version", (FORMAT_VERSION,), "pack the model again")
        self._check("dtype", tuple(DTYPES), "pack the model again")
        dtype = DTYPES[metadata["dtype"]]
        self._check("group", (str(dtype.format.group),), "pack the model again")
        self._check("overrides", (_overrides(dtype),), "pack the model again")
        self.path = path
        self.dtype = dtype.name
        self.files = {name: self._side_file(name) for name in REQUIRED_FILES} | {
            name: self._side_file(name) for name in OPTIONAL_FILES if name in self._file.tensors
        }

    def _check(self, field: str, allowed: tuple[str, ...], advice: str) -> None:
        found = self._file.metadata.get(field)
        if found not in allowed:
            raise ModelError(f"{self._file.path}: {field}: {found!r}, expected {' or '.join(allowed)}; {advice}")

    def _side_file(self, name: str) -> bytes:
        info = self._file.tensors.get(name)
        if info is None or info.dtype != "U8":
            raise ModelError(f"{self._file.path}: {name} is {info or 'missing'}, expected the file's bytes as U8")
        return self._file.view(name).tobytes()

    def check(self, config: ModelConfig) -> None:
        """Raise ModelError unless the file has the tensors that ``config`` says, and no others. To be called before a
        program is compiled: see ``check_checkpoint``."""
        names = set(self.files)
        for spec in stored_tensors(program_tensors(config, DTYPES[self.dtype], max_model_len=1)):
            names.add(spec.name)
            found, expected = self._file.tensors.get(spec.name, "missing"), _tensor_info(spec)
            if found != expected:
                raise ModelError(f"{self.path}: tensor {spec.name!r} is {found}, expected {expected}")
        for name in self._file.tensors.keys() - names:
            raise ModelError(f"{self.path}: tensor {name!r} is not one that this model has")

    def weights(self, config: ModelConfig, program: Program) -> LazyWeights:
        """Views of the tensors of ``program``, which have been checked."""
        stored = {spec.name: partial(self._file.view, spec.name) for spec in stored_tensors(program.tensors)}
        return program_weights(config, program, stored)


def _in_file_order(program: Program) -> list[TensorSpec]:
    """What a packed file holds of ``program``: matrices, whose sizes are multiples of 64 bytes, before tables."""
    return sorted(stored_tensors(program.tensors), key=lambda spec: spec.is_table)


def _tensor_info(spec: TensorSpec) -> TensorInfo:
    if spec.is_table:
        return TensorInfo("F32", (spec.n, spec.k))
    return TensorInfo("U8", (spec.num_strips, spec.strip_bytes))


def _overrides(dtype: Dtype) -> str:
    return json.dumps({role: format.name for role, format in dtype.overrides.items()})


def _waferline_version() -> str:
    try:
        return importlib.metadata.version("waferline")
    except importlib.metadata.PackageNotFoundError:  # run from a source tree
        return "unknown"
