"""The words the story grammar casts its stories from: characters, places, things, food and weather.

Everything here knows how to write itself into a template through `str.format`. The format spec asks for one form of the
word, and a capital first letter in the spec asks for a capital in the text:

    >>> fox = Character("Finn", "fox", "small red", MALE, "paws")
    >>> "{c:A_kind} named {c} lost {c:his} hat, and {c:he} cried.".format(c=fox)
    'A small red fox named Finn lost his hat, and he cried.'
"""

from collections.abc import Mapping
from dataclasses import dataclass


def listed(text: str) -> tuple[str, ...]:
    """Splits words that are written as one text."""
    return tuple(text.split())


def with_article(noun: str) -> str:
    """Puts the right indefinite article before a noun phrase: "an old owl", "a red kite"."""
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def pick_form(forms: Mapping[str, str], spec: str) -> str:
    """Returns the form that `spec` names; a capitalised spec ("He") gives the capitalised form."""
    form = forms[spec.lower()]
    return form[0].upper() + form[1:] if spec and spec[0].isupper() else form


@dataclass(frozen=True)
class Pronouns:
    """One set of pronouns. The format specs are named after the masculine forms."""

    he: str
    him: str
    his: str
    himself: str


MALE = Pronouns("he", "him", "his", "himself")
FEMALE = Pronouns("she", "her", "her", "herself")


@dataclass(frozen=True)
class Character:
    """Someone in the story. Specs: none (the name), he, him, his, himself, kind, a_kind, the_kind, full, paws."""

    name: str
    kind: str
    adjective: str
    pronouns: Pronouns
    paws: str

    def __format__(self, spec: str) -> str:
        is_child = self.kind in CHILDREN
        forms = {
            "": self.name,
            "he": self.pronouns.he,
            "him": self.pronouns.him,
            "his": self.pronouns.his,
            "himself": self.pronouns.himself,
            "kind": self.kind,
            "a_kind": with_article(f"{self.adjective} {self.kind}"),
            "the_kind": f"the {self.adjective} {self.kind}",
            # "Mila the hedgehog", but never "Mila the girl".
            "full": self.name if is_child else f"{self.name} the {self.kind}",
            "paws": self.paws,
        }
        return pick_form(forms, spec)


@dataclass(frozen=True)
class Helper:
    """A grown-up animal without a name. Specs: kind, a_kind, the_kind, the, he, him, his, came."""

    kind: str
    adjective: str
    pronouns: Pronouns
    came: str

    def __format__(self, spec: str) -> str:
        forms = {
            "kind": self.kind,
            "a_kind": with_article(f"{self.adjective} {self.kind}"),
            "the_kind": f"the {self.adjective} {self.kind}",
            "the": f"the {self.kind}",
            "he": self.pronouns.he,
            "him": self.pronouns.him,
            "his": self.pronouns.his,
            "came": self.came,
        }
        return pick_form(forms, spec)


@dataclass(frozen=True)
class Place:
    """Somewhere to go. Specs: none ("the pond"), at ("by the pond"), search ("among the reeds by the pond")."""

    name: str
    at: str
    search: str

    def __format__(self, spec: str) -> str:
        return pick_form({"": self.name, "at": self.at, "search": self.search}, spec)


@dataclass(frozen=True)
class Home:
    """Where the hero lives. Specs: none or in ("in a cozy burrow near the river"), noun ("burrow")."""

    where: str
    noun: str

    def __format__(self, spec: str) -> str:
        return pick_form({"": self.where, "in": self.where, "noun": self.noun}, spec)


@dataclass(frozen=True)
class Thing:
    """A treasure. Specs: none ("red scarf"), a ("a red scarf"), noun ("scarf"), color ("red"), use ("wore it ...")."""

    noun: str
    color: str
    use: str

    def __format__(self, spec: str) -> str:
        full = f"{self.color} {self.noun}"
        forms = {"": full, "a": with_article(full), "noun": self.noun, "color": self.color, "use": self.use}
        return pick_form(forms, spec)


@dataclass(frozen=True)
class Food:
    """Something good to eat. Specs: none ("plum pie"), a ("a warm plum pie"), noun ("pie")."""

    name: str
    noun: str
    a: str

    def __format__(self, spec: str) -> str:
        return pick_form({"": self.name, "noun": self.noun, "a": self.a}, spec)


GIRL_NAMES = listed(
    "Mila Rosie Lily Nora Ella Ivy Ruby Hazel Clara Daisy Willa Tess Poppy Molly Luna Pearl Fern Greta Maya Anna Zoe "
    "Nina Lola Freya Ada Juno Bella Lucy Mia Sara Emma Amira Yuki Rosa"
)
BOY_NAMES = listed(
    "Pip Finn Max Leo Toby Oscar Milo Hugo Sam Ben Otto Jasper Theo Bruno Felix Rusty Barnaby Noah Tom Gus Archie "
    "Ravi Kofi Emil Louis Omar Teddy Bo Tim Jack Jonah Henry Walter Basil"
)

# Made-up names teach the model to copy a name it has never seen before.
NAME_STARTS = listed("Bel Dor Fen Gil Hal Jor Kib Lum Mar Nim Or Pel Rin Sol Tam Wil Zan Vel Cor Ash")
NAME_ENDS = listed("a o in ette by ka lo mi wyn ric us ina dle pin ora")

CHILDREN = ("girl", "boy")
SWIMMING_KINDS = ("frog", "turtle", "otter", "beaver", "dragon")
TINY_KINDS = ("mouse", "mole", "frog", "hedgehog", "squirrel")
BIG_KINDS = ("bear", "pony", "panda", "dragon")

# kind: (limbs, the homes it may live in)
KINDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "girl": ("hands", ("house", "cottage", "farmhouse")),
    "boy": ("hands", ("house", "cottage", "farmhouse")),
    "rabbit": ("paws", ("burrow", "cottage")),
    "fox": ("paws", ("den", "cottage")),
    "bear": ("paws", ("cave", "cabin")),
    "mouse": ("paws", ("burrow", "house")),
    "hedgehog": ("paws", ("burrow", "cottage")),
    "squirrel": ("paws", ("tree house", "cottage")),
    "kitten": ("paws", ("house", "cottage")),
    "puppy": ("paws", ("house", "farmhouse")),
    "frog": ("hands", ("hut", "house")),
    "turtle": ("feet", ("hut", "house")),
    "otter": ("paws", ("den", "hut")),
    "mole": ("paws", ("burrow", "cottage")),
    "badger": ("paws", ("den", "cabin")),
    "lamb": ("hooves", ("barn", "cottage")),
    "pony": ("hooves", ("stable", "barn")),
    "beaver": ("paws", ("lodge", "cabin")),
    "piglet": ("feet", ("barn", "cottage")),
    "goat": ("hooves", ("barn", "hut")),
    "raccoon": ("paws", ("tree house", "den")),
    "panda": ("paws", ("hut", "cabin")),
    "monkey": ("hands", ("tree house", "hut")),
    "dragon": ("claws", ("cave", "hut")),
}
CHILD_SHARE = 0.35  # how many of the characters are children

CHARACTER_ADJECTIVES = (
    *("little", "little", "little", "small", "young", "kind", "shy"),
    *("brave", "cheerful", "curious", "clever", "gentle", "playful"),
)
HOME_ADJECTIVES = ("cozy", "little", "tiny", "warm", "round", "old", "snug", "quiet")
HOME_SETTINGS = (
    "near the river",
    "at the edge of the forest",
    "by the sea",
    "on a green hill",
    "beside a quiet lake",
    "at the end of a winding road",
    "behind the old mill",
    "in a small village",
    "under a big oak tree",
    "in the middle of a wide meadow",
    "at the foot of a mountain",
    "deep in the woods",
)

ELDERS = (
    ("Grandma", FEMALE),
    ("Grandpa", MALE),
    ("Mama", FEMALE),
    ("Papa", MALE),
    ("Aunt Clover", FEMALE),
    ("Uncle Barley", MALE),
)

WALKING = "came along the path"
FLYING = "flew down from a branch"
# kind, its adjectives, how it arrives
HELPERS = (
    ("owl", ("old", "wise", "sleepy"), FLYING),
    ("crow", ("clever", "old", "friendly"), FLYING),
    ("robin", ("busy", "cheerful", "kind"), FLYING),
    ("jay", ("friendly", "bright blue", "busy"), FLYING),
    ("magpie", ("clever", "friendly", "old"), FLYING),
    ("goose", ("kind", "plump", "wise"), WALKING),
    ("heron", ("tall", "quiet", "old"), WALKING),
    ("tortoise", ("old", "wise", "slow"), WALKING),
    ("donkey", ("gray", "patient", "gentle"), WALKING),
    ("horse", ("gentle", "brown", "kind"), WALKING),
    ("snail", ("patient", "slow", "gray"), WALKING),
    ("deer", ("gentle", "tall", "quiet"), WALKING),
)
BIRDS = tuple(helper for helper in HELPERS if helper[2] == FLYING)

PLACES = (
    Place("the pond", "by the pond", "among the reeds by the pond"),
    Place("the bridge", "on the bridge", "under the old bridge"),
    Place("the meadow", "in the meadow", "in the tall grass of the meadow"),
    Place("the mill", "at the mill", "behind the old mill"),
    Place("the garden", "in the garden", "among the cabbages in the garden"),
    Place("the orchard", "in the orchard", "under the apple trees in the orchard"),
    Place("the barn", "in the barn", "in the hay in the barn"),
    Place("the market", "at the market", "between the stalls at the market"),
    Place("the hill", "on the hill", "on top of the windy hill"),
    Place("the forest", "in the forest", "under the ferns in the forest"),
    Place("the river", "by the river", "along the bank of the river"),
    Place("the beach", "on the beach", "between the rocks on the beach"),
    Place("the well", "by the well", "behind the stone well"),
)

COLORS = ("red", "blue", "yellow", "green", "purple", "white", "golden", "silver", "pink", "brown")
THINGS = (
    ("scarf", "wore it every day"),
    ("hat", "wore it on every walk"),
    ("ball", "bounced it everywhere"),
    ("drum", "played it every morning"),
    ("boat", "sailed it on the water"),
    ("bell", "rang it every morning"),
    ("marble", "rolled it across the floor"),
    ("whistle", "blew it on every walk"),
    ("blanket", "slept with it every night"),
    ("umbrella", "took it everywhere"),
    ("book", "read it every night"),
    ("lantern", "lit it every evening"),
    ("doll", "hugged it every night"),
    ("button", "kept it in a little box"),
    ("ribbon", "tied it in a bow every morning"),
    ("cup", "drank milk from it every day"),
    ("bucket", "filled it with sand and stones"),
    ("kite", "flew it on every windy day"),
    ("mitten", "wore it when it was cold"),
    ("crown", "played king and queen with it"),
)

# All singular, so that "the {food:noun} was" is always right.
FOODS = (
    Food("plum pie", "pie", "a warm plum pie"),
    Food("apple pie", "pie", "a big apple pie"),
    Food("berry cake", "cake", "a sweet berry cake"),
    Food("honey cake", "cake", "a golden honey cake"),
    Food("carrot cake", "cake", "a fresh carrot cake"),
    Food("nut bread", "bread", "a loaf of nut bread"),
    Food("pumpkin bread", "bread", "a loaf of pumpkin bread"),
    Food("ginger cookie", "cookie", "a giant ginger cookie"),
    Food("cherry tart", "tart", "a little cherry tart"),
    Food("apple pancake", "pancake", "a thick apple pancake"),
    Food("berry muffin", "muffin", "a huge berry muffin"),
)

# adjective: what one sees or hears of it
WEATHERS: dict[str, tuple[str, ...]] = {
    "sunny": ("The sun was shining and the sky was blue.", "Bees hummed in the flowers."),
    "bright": ("The sky was clear from end to end.", "Everything smelled of fresh grass."),
    "warm": ("The air was soft and sweet.", "Butterflies danced over the grass."),
    "cloudy": ("Gray clouds drifted over the hills.", "The clouds looked like sleepy sheep."),
    "windy": ("The wind danced in the trees.", "Leaves flew high into the air."),
    "rainy": ("Rain tapped on the roof.", "There were puddles everywhere."),
    "foggy": ("The fog was as thick as milk.", "The trees looked like gray ghosts."),
    "snowy": ("Big white flakes fell from the sky.", "Snow lay on the ground like a soft blanket."),
    "cold": ("Frost sparkled on the windows.", "The puddles had turned to ice."),
    "hot": ("There was not a cloud in the sky.", "Even the birds were too hot to sing."),
    "starry": ("The stars twinkled above the trees.", "The sky was full of tiny lights."),
    "quiet": ("Everything was still.", "Only the leaves whispered in the dark."),
    "dark": ("There was no moon in the sky.", "The wind sighed in the chimney."),
    "clear": ("The moon was round and bright.", "The moon hung over the hills like a lamp."),
}
