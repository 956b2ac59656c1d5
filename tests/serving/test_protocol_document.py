"""docs/protocol.md: each worked example is what the code and the ``msgpack`` package make of it, each list complete."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgpack
import msgspec
import pytest

from waferline.runtime.errors import CODES, UNAVAILABLE
from waferline.runtime.sampling_params import SamplingParams
from waferline.runtime.stats import EngineStats
from waferline.serving import entrance, outbox, server, wire

DOCUMENT = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()
EXAMPLES = [
    (json.loads(json_line), bytes.fromhex(hexadecimal))
    for json_line, hexadecimal in re.findall(r"```wire\n(.+)\n([0-9a-f \n]+)```", DOCUMENT)
]


def section(title: str) -> str:
    """The text below a heading, up to the next."""
    return re.split(r"\n#+ ", DOCUMENT.partition(f"# {title}\n")[2])[0]


def rows(text: str) -> dict[str, list[str]]:
    """The rows of the tables in ``text``: each name in the first column -> the other columns."""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:3] == "| `"]
    return {name: rest for first, *rest in cells for name in re.findall(r"`([^`]+)`", first)}


def fields_of(struct: type[msgspec.Struct]) -> set[str]:
    return {field.encode_name for field in msgspec.structs.fields(struct)}


@pytest.mark.parametrize(("message", "frame"), EXAMPLES, ids=[message["type"] for message, _ in EXAMPLES])
def test_a_worked_example_is_what_it_says(message: dict[str, Any], frame: bytes) -> None:
    assert msgpack.unpackb(frame) == message
    if message["type"] in ("generate", "cancel", "ping") or message == {"type": "stats"}:
        assert msgpack.packb(message) == frame
        decoded = wire.decode_client_message([frame])
        assert msgpack.unpackb(wire.encode(decoded)) == message
    else:
        assert wire.encode(wire.decode_server_message(frame)) == frame


def test_every_type_of_message_has_an_example() -> None:
    types = {message["type"] for message, _ in EXAMPLES}
    assert types == {"generate", "cancel", "ping", "stats", "accepted", "tokens", "finished", "error", "pong"}


@pytest.mark.parametrize(
    "struct", [wire.Generate, wire.Cancel, wire.Ping, wire.Accepted, wire.Tokens, wire.Finished, wire.Error, wire.Pong]
)
def test_every_field_of_a_message_is_listed(struct: type[msgspec.Struct]) -> None:
    text = section(str(struct.__struct_config__.tag)).partition("`params`:")[0]
    listed = [name for line in text.splitlines() for name in re.findall(r"^\| `(\w+)`", line)]
    is_code = set(CODES).__contains__
    assert [name for name in listed if not is_code(name)] == ["type", *sorted(fields_of(struct), key=listed.index)]


def test_stats_lists_the_engine_s_too() -> None:
    listed = rows(DOCUMENT.rpartition("### stats")[2].partition("\n## ")[0])
    assert set(listed) == {"type", *fields_of(wire.Stats), *fields_of(EngineStats)}


def test_every_sampling_parameter_is_listed_with_its_default() -> None:
    listed = rows(section("generate").partition("`params`:")[2])
    shown = {name: columns[1] for name, columns in listed.items()}
    defaults = {field.name: field.default for field in msgspec.structs.fields(SamplingParams)}
    assert shown == {name: "nil" if value is None else str(value).lower() for name, value in defaults.items()}


def test_every_error_code_is_listed() -> None:
    assert set(rows(section("error"))) - {"type", *fields_of(wire.Error)} == set(CODES) - {UNAVAILABLE}


def test_the_bounds_are_those_in_force() -> None:
    bounds = section("Bounds")
    for bound in (wire.MAX_MESSAGE_BYTES, wire.MAX_FRAME_BYTES, wire.MAX_PROMPT_LENGTH):
        assert f"{bound:,}" in bounds
    assert f"| {wire.MAX_ID_LENGTH} |" in bounds
    assert f"| {server.MAX_REQUESTS} |" in bounds
    assert f"{entrance.MAX_WAITING_LENGTH:,}" in bounds
    assert f"| {outbox.MAX_UNREAD_BYTES >> 20} MiB" in bounds
    assert f"# The protocol, version {wire.PROTOCOL_VERSION}\n" in DOCUMENT
