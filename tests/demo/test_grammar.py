"""The story grammar: repeatable, varied, well-formed; and the model folder that was trained from it."""

import json
import random
import re
import struct

import pytest

from waferline.demo import MODEL_DIR
from waferline.demo.grammar import expand, write_stories, write_story
from waferline.demo.plots import PLOTS
from waferline.demo.words import MALE, Character, with_article

STORIES = write_stories(range(600))


def test_a_seed_always_gives_the_same_story() -> None:
    assert write_stories(range(20)) == STORIES[:20]
    assert write_story(3) == STORIES[3]


def test_stories_are_varied() -> None:
    assert len(set(STORIES)) == len(STORIES)
    assert len(PLOTS) >= 12
    assert len({story.split()[-1] for story in STORIES}) > 20, "the endings are too much alike"
    openings = {" ".join(story.split()[:3]) for story in STORIES if not story.startswith("Once upon a time")}
    assert len(openings) > 60


def test_about_half_of_the_stories_open_with_once_upon_a_time() -> None:
    share = sum(story.startswith("Once upon a time,") for story in STORIES) / len(STORIES)
    assert 0.4 < share < 0.6


@pytest.mark.parametrize(
    "flaw",
    [
        r"[\[\]{}<>|]",  # a field, choice or reference that was not filled in
        r"TRY",
        r"  | [,.!?]",  # gaps where a choice was empty
        r"[.,][.,]",
        r'""',
        r"\ba [aeiou]",
        r"\ban [^aeiou]",
        r"\b(\w+) \1 (?!pulled)",  # a word twice
        r"[^.!?\"]\Z",  # an end without a full stop
    ],
)
def test_no_story_has_the_flaw(flaw: str) -> None:
    # "Mia pulled Leo, Leo pulled the turnip" is no flaw: a comma stands between the two names.
    flawed = [story for story in STORIES if re.search(flaw, story)]
    assert not flawed, flawed[0]


def test_stories_are_plain_ascii_text_of_story_length() -> None:
    for story in STORIES:
        assert re.fullmatch(r"(?:[ -~]|\n\n)+", story), story
        assert 80 <= len(story.split()) <= 280, story
        assert story.count('"') % 2 == 0, story


NAMING_OF_HERO = re.compile(
    r"(?:named|called) (\w+)|[Nn]ame was (\w+)|story of (\w+)|^(?!It |There )(\w+) was an? ",
)


@pytest.mark.parametrize("name", PLOTS)
def test_every_plot_keeps_its_hero_to_the_end(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("waferline.demo.plots.PLOTS", {name: PLOTS[name]})
    for seed in range(40):
        story = write_story(seed)
        introduced = re.search(
            r"(?:named|called) (\w+)|[Nn]ame was (\w+)|story of (\w+)|^(?!It |There )(\w+) was an? ", story
        )
        assert introduced, story
        hero = next(group for group in introduced.groups() if group)
        assert story.count(hero) >= 4, story


def test_expand_makes_nested_choices_and_keeps_fields() -> None:
    phrases = {"who": "[Finn|Mila]"}
    expanded = {expand("<who> [ran[ fast|]|slept].{hero:he}", phrases, random.Random(seed)) for seed in range(200)}
    assert expanded == {f"{who} {did}.{{hero:he}}" for who in ("Finn", "Mila") for did in ("ran", "ran fast", "slept")}


def test_expand_tells_attempts_in_order() -> None:
    attempts = expand("TRY[he ran.|he hid.|he sang.|he cried.]", {}, random.Random(0))
    assert re.fullmatch(r"First, he \w+\. Then he \w+\.(?: After that, he \w+\.)?", attempts)
    assert len(set(re.findall(r"he (\w+)", attempts))) == attempts.count(" he ")


def test_characters_write_themselves() -> None:
    fox = Character("Finn", "fox", "old red", MALE, "paws")
    assert f"{fox:A_kind} named {fox} lost {fox:his} hat. {fox:He} cried." == (
        "An old red fox named Finn lost his hat. He cried."
    )
    assert f"{fox:full}" == "Finn the fox"
    assert f"{Character('Ada', 'girl', 'little', MALE, 'hands'):full}" == "Ada"
    assert with_article("owl") == "an owl"


def test_model_folder_holds_the_weights_that_its_config_describes() -> None:
    config = json.loads((MODEL_DIR / "config.json").read_text())
    with (MODEL_DIR / "model.safetensors").open("rb") as file:
        (header_length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(header_length))
    header.pop("__metadata__")

    hidden, inner, head_dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * head_dim, config["num_key_value_heads"] * head_dim
    layer = {
        "input_layernorm": [hidden],
        "self_attn.q_proj": [queries, hidden],
        "self_attn.k_proj": [keys, hidden],
        "self_attn.v_proj": [keys, hidden],
        "self_attn.o_proj": [hidden, queries],
        "post_attention_layernorm": [hidden],
        "mlp.gate_proj": [inner, hidden],
        "mlp.up_proj": [inner, hidden],
        "mlp.down_proj": [hidden, inner],
    }
    expected = {"model.embed_tokens.weight": [config["vocab_size"], hidden], "model.norm.weight": [hidden]}
    for index in range(config["num_hidden_layers"]):
        expected |= {f"model.layers.{index}.{name}.weight": shape for name, shape in layer.items()}
    assert {name: tensor["shape"] for name, tensor in header.items()} == expected
    assert {tensor["dtype"] for tensor in header.values()} == {"BF16"}


def test_model_folder_has_a_tokenizer_of_the_config() -> None:
    config = json.loads((MODEL_DIR / "config.json").read_text())
    tokenizer = json.loads((MODEL_DIR / "tokenizer.json").read_text())
    special = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    assert special == {"<|bos|>": config["bos_token_id"], "<|endoftext|>": config["eos_token_id"]}
    assert len(tokenizer["model"]["vocab"]) == config["vocab_size"]
