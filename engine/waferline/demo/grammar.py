"""Writes small children's stories: each seed gives one story, and the same seed always gives the same one.

    >>> write_story(seed=7).split(".")[0]
    'Once upon a time, on a windy afternoon, a cheerful girl named Clara stepped outside'

A story is made in four steps: cast its characters, places and weather; put an opening, a plot and a closing together;
choose among the alternatives of the template; fill in the cast. The templates are in `plots.py`, the words in
`words.py`.
"""

import random
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from . import plots, words

Cast = dict[str, Any]  # what a template's {fields} stand for; every value writes itself through str.format
Choice = TypeVar("Choice")

ONCE_SHARE = 0.5  # stories that open with "Once upon a time"
SCENE_SHARE = 0.3  # stories that begin right on their day, without an introduction first
TRAIT_SHARE = 0.4
CLOSING_SHARE = 0.6
MADE_UP_NAME_SHARE = 0.1
THIRD_TRY_SHARE = 0.25

_REFERENCE = re.compile(r"<([a-z_.]+)>")
_INNERMOST_CHOICE = re.compile(r"(TRY)?\[([^\[\]]*)\]")


def write_story(seed: int) -> str:
    """Returns one story: plain ASCII, paragraphs separated by a blank line, roughly 80 to 250 words."""
    # A string seed: neighboring integers would start random.Random in related states.
    rng = random.Random(f"story {seed}")
    plot = rng.choice(tuple(plots.PLOTS.values()))
    cast = _cast_story(plot, rng)
    template = _compose(plot, rng)
    phrases = plots.PHRASES | _draw_records(plot.slots, cast, _company(plot))
    return _tidy(expand(template, phrases, rng).format(**cast))


def write_stories(seeds: Iterable[int]) -> list[str]:
    """Returns the stories of the seeds, in their order."""
    return [write_story(seed) for seed in seeds]


def expand(template: str, phrases: Mapping[str, str], rng: random.Random) -> str:
    """Replaces the references by their phrases and makes every choice, the innermost first; {fields} stay.

    >>> expand("<greeting> {hero}[!|!]", {"greeting": "[Hello|Hello],"}, random.Random(0))
    'Hello, {hero}!'
    """

    def choose(match: re.Match[str]) -> str:
        alternatives = match[2].split("|")
        return _tell_attempts(alternatives, rng) if match[1] else rng.choice(alternatives)

    text = template
    while True:
        text, num_references = _REFERENCE.subn(lambda match: phrases[match[1]], text)
        text, num_choices = _INNERMOST_CHOICE.subn(choose, text)
        if num_references + num_choices == 0:
            return text


def _tell_attempts(attempts: Sequence[str], rng: random.Random) -> str:
    """Puts two or three of the attempts after one another: "First, he ... Then he ... After that, he ..."."""
    num_attempts = 3 if rng.random() < THIRD_TRY_SHARE else 2
    chosen = rng.sample(attempts, num_attempts)
    leads = ("First,", "Then", "After that,")[:num_attempts]
    return " ".join(f"{lead} {attempt.strip()}" for lead, attempt in zip(leads, chosen, strict=True))


def _compose(plot: plots.Plot, rng: random.Random) -> str:
    """Puts opening, plot and closing together into one template."""
    is_once = rng.random() < ONCE_SHARE
    story = plot.story.strip()
    if rng.random() < SCENE_SHARE:
        opening = rng.choice(plots.ONCE_SCENES if is_once else plots.SCENES)
        beginning = f"{opening} {plot.setup}\n\n{story}"
    else:
        opening = rng.choice(plots.ONCE_INTRODUCTIONS if is_once else plots.INTRODUCTIONS)
        trait = rng.choice(plots.TRAITS) if rng.random() < TRAIT_SHARE else ""
        beginning = f"{opening} {trait} {plot.setup}\n\n{rng.choice(plots.DAY_LINES)} {story}"
    # Nobody tells an elder about a day on which the elder was there.
    closings = [closing for closing in plots.CLOSINGS if "{elder" not in closing or "{elder" not in plot.story]
    closing = rng.choice(closings) if rng.random() < CLOSING_SHARE else ""
    return f"{beginning} {closing}"


def _tidy(text: str) -> str:
    """Brings the white space in order: single spaces, and a blank line between paragraphs."""
    paragraphs = (" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", text))
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph)


def _cast_story(plot: plots.Plot, rng: random.Random) -> Cast:
    """Draws everybody and everything that a template may name; no two of them share a name or a kind.

    Each plot has a company of its own: whoever and whatever a story names more than once is always the same in it. A
    model of a few million parameters learns what belongs to a plot long before it learns to look a name up at the
    story's beginning, and so keeps its names.
    """
    company = _company(plot)
    hero = _draw_character(plot.hero_kinds, (), company)
    friend = _draw_character(plot.friend_kinds, (hero,), company)
    other = _draw_character(tuple(words.KINDS), (hero, friend), company)
    helper = _draw_helper(words.HELPERS, company)
    bird = _draw_helper(words.BIRDS, company)
    elder_name, elder_pronouns = company.choice(words.ELDERS)
    place_a, place_b, place_c = company.sample(words.PLACES, 3)
    food, food_b = company.sample(words.FOODS, 2)
    weather = rng.choice(plot.weathers)
    color = company.choice(words.COLORS)
    noun, use = company.choice(words.THINGS)
    return {
        "hero": hero,
        "friend": friend,
        "other": other,
        "helper": helper,
        "bird": bird,
        "elder": words.Character(elder_name, "elder", "old", elder_pronouns, "hands"),
        "home": _draw_home(hero.kind, rng),
        "place_a": place_a,
        "place_b": place_b,
        "place_c": place_c,
        "food": food,
        "food_b": food_b,
        "thing": words.Thing(noun, color, use),
        "color": color,
        "weather": weather,
        "weather_line": rng.choice(words.WEATHERS[weather]),
        "daytime": rng.choice(("night", "evening") if plot.at_night else ("morning", "morning", "afternoon", "day")),
    }


def _company(plot: plots.Plot) -> random.Random:
    return random.Random(f"the company of {plot.story}")


def _draw_character(kinds: Sequence[str], company: Sequence[words.Character], rng: random.Random) -> words.Character:
    """Draws a character of one of the kinds that differs from the company in name and kind."""
    taken_kinds = [character.kind for character in company]
    taken_names = [character.name for character in company]
    children = [kind for kind in kinds if kind in words.CHILDREN and kind not in taken_kinds]
    animals = [kind for kind in kinds if kind not in words.CHILDREN and kind not in taken_kinds]
    kind = rng.choice(children if children and rng.random() < words.CHILD_SHARE else animals)

    is_female = kind == "girl" or (kind != "boy" and rng.random() < 0.5)
    names = words.GIRL_NAMES if is_female else words.BOY_NAMES
    if rng.random() < MADE_UP_NAME_SHARE:
        names = tuple(start + end for start in words.NAME_STARTS for end in words.NAME_ENDS)
    name = rng.choice([name for name in names if name not in taken_names])
    return words.Character(
        name=name,
        kind=kind,
        adjective=rng.choice(words.CHARACTER_ADJECTIVES),
        pronouns=words.FEMALE if is_female else words.MALE,
        paws=words.KINDS[kind][0],
    )


def _draw_helper(helpers: Sequence[tuple[str, tuple[str, ...], str]], rng: random.Random) -> words.Helper:
    kind, adjectives, came = rng.choice(helpers)
    return words.Helper(kind, rng.choice(adjectives), rng.choice((words.FEMALE, words.MALE)), came)


def _draw_home(kind: str, rng: random.Random) -> words.Home:
    noun = rng.choice(words.KINDS[kind][1])
    where = f"in {words.with_article(f'{rng.choice(words.HOME_ADJECTIVES)} {noun}')} {rng.choice(words.HOME_SETTINGS)}"
    return words.Home(where, noun)


def _draw_records(slots: Mapping[str, Sequence[plots.Record]], cast: Cast, rng: random.Random) -> dict[str, str]:
    """Draws one record for each slot and returns its fields as phrases: {"toy.noun": "kite", ...}.

    A record that speaks of an animal of the same kind as somebody in the cast is left out, so that there is never a
    second fox of whom the reader knows nothing.
    """
    cast_kinds = {cast[role].kind for role in ("hero", "friend", "helper", "bird")}
    phrases: dict[str, str] = {}
    for slot, records in slots.items():
        fitting = [record for record in records if cast_kinds.isdisjoint(" ".join(record.values()).split())]
        record = rng.choice(fitting)
        phrases.update({f"{slot}.{name}": text for name, text in record.items()})
    return phrases
