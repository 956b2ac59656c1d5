"""SamplingParams on the command line: an option for each field that makes a difference there."""

from __future__ import annotations

import argparse
import types
from collections.abc import Callable
from typing import Any, get_args, get_origin

import msgspec

from .runtime.sampling_params import SamplingParams

NO_OPTIONS = ("detokenize", "output_kind")  # the commands print text, as it comes or whole


def add_sampling_options(parser: argparse.ArgumentParser, **defaults: Any) -> None:
    """Add the options; ``defaults`` are in force instead of the fields' own."""
    group = parser.add_argument_group("sampling")
    for field in msgspec.structs.fields(SamplingParams):
        if field.name in NO_OPTIONS:
            continue
        default = defaults.get(field.name, field.default)
        options: dict[str, Any] = {"default": argparse.SUPPRESS, "help": f"default: {_shown(default)}"}
        alternatives = get_args(field.type) if isinstance(field.type, types.UnionType) else (field.type,)
        element_types = [get_args(one)[0] for one in alternatives if get_origin(one) is list]
        if field.type is bool:
            options["action"] = argparse.BooleanOptionalAction
        elif any(get_origin(one) is dict for one in alternatives):
            options |= {"action": "append", "type": _parse_pair, "metavar": "ID=VALUE"}
            options["help"] += "; may be given several times"
        elif element_types:
            options |= {"action": "append", "type": element_types[0], "metavar": element_types[0].__name__.upper()}
            options["help"] += "; may be given several times"
        else:
            options |= {"type": _parser_of(alternatives), "metavar": alternatives[0].__name__.upper()}
        group.add_argument("--" + field.name.replace("_", "-"), **options)
    parser.set_defaults(sampling_defaults=defaults)


def sampling_params(args: argparse.Namespace) -> SamplingParams:
    """The parameters that ``args`` give. Raises ValueError for values out of range."""
    names = {field.name for field in msgspec.structs.fields(SamplingParams)}
    given = {name: value for name, value in vars(args).items() if name in names}
    if "logit_bias" in given:
        given["logit_bias"] = dict(given["logit_bias"])
    return SamplingParams(**{**args.sampling_defaults, **given})


def _parser_of(alternatives: tuple[Any, ...]) -> Callable[[str], Any]:
    """What reads a number, or "none" where None is among the ``alternatives``."""
    number = alternatives[0]

    def parse(text: str) -> Any:
        return None if text.lower() == "none" and types.NoneType in alternatives else number(text)

    parse.__name__ = str(number.__name__)  # argparse names it: "invalid int value"
    return parse


def _parse_pair(text: str) -> tuple[int, float]:
    token_id, _, value = text.partition("=")
    return int(token_id), float(value)


_parse_pair.__name__ = "ID=VALUE"  # argparse names it: "invalid ID=VALUE value"


def _shown(default: object) -> str:
    return "none" if default is None else str(default).lower()
