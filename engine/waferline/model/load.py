"""Loading: from a folder or a packed file to a program and its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from waferline_kernels.program import Program
from waferline_kernels.tiles import Q4

from ..demo import MODEL_DIR
from .calibration import TEXT_TOKENS, calibrated_strips
from .checkpoint import Checkpoint, read_side_files
from .compile import ROPE, compile_program
from .dtypes import DTYPES
from .errors import ModelError
from .fields import Fields
from .packed import NOT_CALIBRATED, PackedFile, check_out, write_packed
from .packing import check_checkpoint, checkpoint_weights, program_weights, tensor_packers
from .spec import ModelConfig, parse_config
from .tokenizer import TOKENIZER_CONFIG_FILE, TOKENIZER_FILE, Tokenizer

DEMO = "demo"
DEFAULT_DTYPE = "q8"
MAX_EOS_TOKEN_IDS = 4  # what an executor has room for beside a request's own stop ids


@dataclass(frozen=True)
class Model:
    """All that a model is to the engine. ``weights`` has an array for each tensor of ``program`` by name: strips (uint8
    [num_strips, strip_bytes]) for a matrix, float32 [n, k] for a table; each is made or mapped when it is asked for."""

    name: str
    path: Path
    config: ModelConfig
    dtype: str
    program: Program
    weights: Mapping[str, NDArray[Any]]
    tokenizer: Tokenizer
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    max_model_len: int

    def limited_to(self, max_model_len: int) -> Model:
        """The same for sequences of at most ``max_model_len`` tokens: its table of angles is no longer than that."""
        if max_model_len >= self.max_model_len:
            return self
        tensors = [replace(spec, n=max_model_len) if spec.name == ROPE else spec for spec in self.program.tensors]
        program = replace(self.program, tensors=tuple(tensors))
        stored = {name: partial(self.weights.__getitem__, name) for name in self.weights}
        return replace(
            self,
            program=program,
            weights=program_weights(self.config, program, stored),
            max_model_len=max_model_len,
        )


def load_model(model: str | Path, dtype: str | None = None, max_model_len: int | None = None) -> Model:
    """Load ``"demo"``, a Hugging Face folder or a packed file.

    ``dtype`` is that of the matrices, ``q8`` where not given; a packed file has its own. ``max_model_len`` is the most
    tokens of a sequence, where not given the most that the model was made for.

    Raises ModelError, naming what is wrong, for anything that is not such a model, and for arguments that it does not
    allow. Nothing large is read before ``weights`` is used.
    """
    path = MODEL_DIR if model == DEMO else Path(model)
    name = DEMO if model == DEMO else path.resolve().name
    packed = PackedFile(path) if path.is_file() else None
    if packed is None and not path.is_dir():
        raise ModelError(f"model: {str(model)!r}, expected {DEMO!r}, a Hugging Face folder or a packed file")
    dtype = _dtype_in_force(dtype, packed)
    files = packed.files if packed else read_side_files(path)
    described = {name: Fields.parse(data, str(path / name)) for name, data in files.items() if name != TOKENIZER_FILE}
    config = parse_config(described["config.json"])
    max_model_len = _checked_max_model_len(max_model_len, config)
    if packed:
        packed.check(config)
    else:
        checkpoint = Checkpoint(path)
        check_checkpoint(checkpoint, config, DTYPES[dtype])
    program = compile_program(config, DTYPES[dtype], max_model_len)
    weights = packed.weights(config, program) if packed else checkpoint_weights(checkpoint, config, program)
    tokenizer = Tokenizer.from_json_bytes(
        files[TOKENIZER_FILE], described.get(TOKENIZER_CONFIG_FILE), str(path / TOKENIZER_FILE)
    )
    return Model(
        name=name,
        path=path,
        config=config,
        dtype=dtype,
        program=program,
        weights=weights,
        tokenizer=tokenizer,
        bos_token_id=next(iter(_token_ids("bos_token_id", described, tokenizer.bos_token_id, config)), None),
        eos_token_ids=_token_ids("eos_token_id", described, tokenizer.eos_token_id, config),
        max_model_len=max_model_len,
    )


def pack_model(model: str | Path, out: str | Path, dtype: str | None = None, calibrate: bool = False) -> None:
    """Write the packed file ``out`` of ``"demo"`` or of a Hugging Face folder, its matrices in ``dtype`` (default q8).

    With ``calibrate``, which is for q4, codes are rounded for the inputs that matrices have in text that the model writes
    itself: a better model of the same size, and slower to make (see ``calibration.py``).

    Raises ModelError for a model that cannot be loaded or is packed already, for an ``out`` that cannot be written, and
    for arguments that do not go together; what can be told at once, before anything is computed.
    """
    folder = MODEL_DIR if model == DEMO else Path(model)
    if not folder.is_dir():
        raise ModelError(f"model: {str(model)!r}, expected {DEMO!r} or a Hugging Face folder")
    dtype = _checked_dtype(dtype or DEFAULT_DTYPE)
    if calibrate and DTYPES[dtype].format is not Q4:
        raise ModelError(f"calibrate: given with dtype {dtype!r}, expected dtype 'q4': other formats need none")
    out = Path(out)
    check_out(out, folder)
    loaded = load_model(folder, dtype)
    write_packed(folder, out, dtype, _calibrated(loaded.limited_to(TEXT_TOKENS)) if calibrate else NOT_CALIBRATED)


def _calibrated(loaded: Model) -> dict[str, NDArray[np.uint8]]:
    packers = tensor_packers(Checkpoint(loaded.path), loaded.config, loaded.program)
    first_token = next(iter(loaded.tokenizer.encode("")), loaded.bos_token_id or 0)
    return calibrated_strips(
        loaded.program, loaded.weights, packers, first_token, loaded.eos_token_ids, loaded.max_model_len
    )


def _checked_dtype(dtype: str) -> str:
    if dtype not in DTYPES:
        raise ModelError(f"dtype: {dtype!r}, expected one of {', '.join(sorted(DTYPES))}")
    return dtype


def _dtype_in_force(dtype: str | None, packed: PackedFile | None) -> str:
    if packed is None:
        return _checked_dtype(dtype or DEFAULT_DTYPE)
    if dtype not in (None, packed.dtype):
        raise ModelError(f"dtype: {dtype!r}, expected {packed.dtype!r}, in which {packed.path} is packed")
    return packed.dtype


def _checked_max_model_len(max_model_len: int | None, config: ModelConfig) -> int:
    limit = config.max_position_embeddings
    if max_model_len is None:
        return limit
    if not isinstance(max_model_len, int) or isinstance(max_model_len, bool) or not 2 <= max_model_len <= limit:
        raise ModelError(
            f"max_model_len: {max_model_len!r}, expected 2 to {limit} (the model's max_position_embeddings)"
        )
    return max_model_len


def _token_ids(
    field: str, described: Mapping[str, Fields], tokenizer_id: int | None, config: ModelConfig
) -> tuple[int, ...]:
    """The ids of ``field``: from generation_config.json, else config.json, else the tokenizer; each once, in order."""
    for file in ("generation_config.json", "config.json"):
        fields = described.get(file)
        if fields is None or field not in fields:
            continue
        value: Any = fields.raw(field)
        ids = value if isinstance(value, list) else [value]
        valid = all(isinstance(i, int) and not isinstance(i, bool) and 0 <= i < config.vocab for i in ids)
        if not valid or len(set(ids)) > MAX_EOS_TOKEN_IDS:
            fields.fail(field, f"an id or a list of at most {MAX_EOS_TOKEN_IDS}, from 0 to {config.vocab - 1}")
        return tuple(dict.fromkeys(ids))
    return () if tokenizer_id is None or tokenizer_id >= config.vocab else (tokenizer_id,)
