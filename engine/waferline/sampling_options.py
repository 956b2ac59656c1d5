"""SamplingParams on the command line: an option for each field that makes a difference there."""

from __future__ import annotations

import argparse
import types
from collections.abc import Callable
from typing import Any, get_args, get_origin

import msgspec

from .runtime.sampling_params import SamplingParams

NO_OPTIONS = ("detokenize", "output_kind")  # the commands print text, as it comes or whole
HELP = {
    "n": "completions of each prompt",
    "temperature": "0: always the likeliest token",
    "top_k": "draw among so many of the likeliest tokens; 0: all",
    "top_p": "draw among the fewest likeliest tokens whose probabilities reach this sum",
    "min_p": "draw among tokens at least this share as likely as the likeliest",
    "seed": "of what is drawn; none: another each time",
    "max_tokens": "of a completion; none: as many as the context has room for",
    "min_tokens": "before which nothing ends a completion",
    "stop": "text that ends a completion",
    "stop_token_ids": "a token that ends a completion",
    "include_stop_str_in_output": "print what ended a completion too",
    "ignore_eos": "go on after the model's own end",
    "logprobs": "compute those of each token and of so many likeliest ones",
    "prompt_logprobs": "the same of the prompt's tokens",
    "presence_penalty": "taken off the logits of tokens that the completion has",
    "frequency_penalty": "the same, times how often it has them",
    "repetition_penalty": "by which logits of tokens in prompt and completion are divided",
    "logit_bias": "added to a token's logit",
    "allowed_token_ids": "a token that may be drawn; no others are",
    "bad_words": "a word that is never completed",
    "skip_special_tokens": "leave them out of the text",
    "truncate_prompt_tokens": "take only so many of a prompt's last tokens",
}


def add_sampling_options(parser: argparse.ArgumentParser, without: tuple[str, ...] = (), **defaults: Any) -> None:
    """Add the options, but for those of the fields ``without``; ``defaults`` are in force instead of the fields' own."""
    group = parser.add_argument_group("sampling")
    for field in msgspec.structs.fields(SamplingParams):
        if field.name in (*NO_OPTIONS, *without):
            continue
        default = defaults.get(field.name, field.default)
        options: dict[str, Any] = {
            "default": argparse.SUPPRESS,
            "help": f"{HELP[field.name]}; default: {_shown(default)}",
        }
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
