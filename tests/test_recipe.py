from __future__ import annotations

import re
from typing import get_args

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from studiolo.diffusion.sampler_settings import NAMES
from studiolo.dreambooth.recipe import Recipe, fill
from studiolo.dreambooth.recipe_group import Sampler
from studiolo.errors import StudioloError


@pytest.fixture
def recipe() -> Recipe:
    return Recipe(class_noun="fox", name="rex", images=("a b.png", "ü.png"), identifier="on")


def test_yaml_round_trip(recipe, tmp_path):
    recipe.save(tmp_path / "recipe.yaml")
    assert Recipe.from_yaml(tmp_path / "recipe.yaml") == recipe


def test_yaml_is_plain_and_explains_every_setting(recipe):
    text = recipe.to_yaml()
    assert yaml.safe_load(text) == recipe.model_dump(mode="json")
    for line, after in zip(text.splitlines(), text.splitlines()[1:], strict=False):
        assert line.lstrip().startswith("#") or not after.lstrip()[0].isalpha() or ":" in line


@given(
    st.fixed_dictionaries(
        {
            "steps": st.integers(1, 10**6),
            "learning_rate": st.floats(1e-12, 1),
            "prior_weight": st.floats(0, 100),
            "name": st.text(st.characters(exclude_categories=["C"]), min_size=1, max_size=20),
            "clip_norm": st.none() | st.floats(1e-6, 1e6),
            "class_images": st.fixed_dictionaries({"count": st.integers(1, 1000)}),
        }
    )
)
def test_yaml_round_trip_of_any_values(values):
    recipe = Recipe.build(values)
    assert Recipe.build(yaml.safe_load(recipe.to_yaml())) == recipe


def test_settings_stand_above_and_groups_are_merged(recipe):
    changed = recipe.with_settings(
        ["steps=7", "class_images.count=3", "previews={every: 5}", "trackers=wandb"]
    )
    assert (changed.steps, changed.class_images.count, changed.previews.every) == (7, 3, 5)
    assert changed.trackers == ("wandb",)
    assert changed.class_images.batch_size == recipe.class_images.batch_size
    assert changed.previews.prompts == recipe.previews.prompts
    assert recipe.with_settings([]) == recipe


@pytest.mark.parametrize("text", ["1e-3", "0.001", "1.0e-3"])
def test_numbers_in_any_notation(recipe, text):
    assert recipe.with_settings([f"learning_rate={text}"]).learning_rate == 0.001


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("stpes=3", ["'stpes'", "did you mean 'steps'"]),
        ("class_images.cuont=3", ["'class_images.cuont'", "'class_images.count'"]),
        ("steps=-3", ["steps = -3", "greater than or equal to 1"]),
        ("steps=many", ["steps = 'many'", "integer"]),
        ("steps=.nan", ["steps = nan"]),
        ("learning_rate=.inf", ["learning_rate = inf"]),
        ("precision=fp16", ["precision = 'fp16'", "'bf16-mixed'"]),
        ("class_images=3", ["class_images = 3"]),
        ("class_images.sampler=dimm", ["class_images.sampler = 'dimm'", "'ddim'"]),
        ("lr_cycles=3", ["lr_cycles is of cosine_restarts"]),
        ("lr_power=2", ["lr_power is of polynomial"]),
        ("trackers=[mlflow]", ["'mlflow'", "'tensorboard'"]),
        ("train_token_embedding=true", ["train_text_encoder"]),
        ("instance_prompt=a fox", ["[V]"]),
        ("class_prompts=a [V] fox", ["[V]"]),
        ("class_prompts=[]", ["class_prompts"]),
        ("steps", ["key=value"]),
        ("steps=[1", ["steps", "YAML"]),
        ("name=2024-13-45", ["name", "YAML"]),
        ("bucket_step=32", ["bucket_step", "buckets"]),
        ("adapter.rank=16", ["adapter.rank", "set adapter.kind"]),
        ("adapter.alpha=8", ["adapter.alpha", "set adapter.kind"]),
        ("adapter={targets: [conv], text_encoder_rank: 2}", ["adapter.text_encoder_rank, adapter.targets"]),
    ],
)
def test_wrong_settings_name_key_value_and_what_was_expected(recipe, setting, told):
    with pytest.raises(StudioloError) as error:
        recipe.with_settings([setting])
    for part in told:
        assert part in str(error.value)


def test_what_a_file_says_in_full_is_taken(tmp_path):
    """A run writes every setting: those that have no effect are there, as they are by default."""
    for values in (
        {},
        {"adapter": {"kind": "lora", "rank": 4, "targets": ["conv"]}},
        {"prior": "predictions", "class_predictions": {"count": 4}},
    ):
        recipe = Recipe().with_values(values)
        recipe.save(tmp_path / "r.yaml")
        assert Recipe.from_yaml(tmp_path / "r.yaml") == recipe


def test_a_recipe_draws_by_every_sampler():
    assert get_args(Sampler) == NAMES


def test_all_mistakes_are_told_at_once(tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text("stepps: 3\nseed: -1\n")
    with pytest.raises(StudioloError, match=r"(?s)r\.yaml.*steps.*seed = -1|r\.yaml.*seed = -1.*steps"):
        Recipe.from_yaml(file)


@pytest.mark.parametrize("content", [b"[1, 2]", b"a: [", b"\xff\xfe\x00", b"steps", b"name: 2024-13-45"])
def test_files_that_are_no_recipe(tmp_path, content):
    (tmp_path / "r.yaml").write_bytes(content)
    with pytest.raises(StudioloError, match=r"r\.yaml"):
        Recipe.from_yaml(tmp_path / "r.yaml")


def test_an_empty_file_is_the_defaults(tmp_path):
    (tmp_path / "r.yaml").write_text("")
    assert Recipe.from_yaml(tmp_path / "r.yaml") == Recipe()


def test_nothing_to_train():
    with pytest.raises(StudioloError, match="nothing to train"):
        Recipe().with_settings(["train_unet=false", "train_text_encoder=false"])


@pytest.mark.parametrize(
    ("noun", "told"),
    [("fox", "a photo of a fox"), ("owl", "a photo of an owl"), ("umbrella", "a photo of an umbrella")],
)
def test_articles(noun, told):
    assert fill("a photo of a {class_noun}", noun) == told


def test_captions():
    assert fill("a photo of [V] {class_noun}", "fox", "sks") == "a photo of sks fox"
    assert fill("[V] {class_noun} asleep", "fox", "sks") == "sks fox asleep"


REX = {"name": "rex", "images": ["rex/"], "class_noun": "dog"}


def test_several_subjects(tmp_path):
    recipe = Recipe.build({"subjects": [REX, REX | {"name": "tom", "class_noun": "cat", "masks": "m"}]})
    assert [(one.name, one.class_noun, one.masks) for one in recipe.all_subjects] == [
        ("rex", "dog", None),
        ("tom", "cat", "m"),
    ]
    recipe.save(tmp_path / "r.yaml")
    assert Recipe.from_yaml(tmp_path / "r.yaml") == recipe
    alone = Recipe.build({"images": ["a.png"], "class_noun": "fox", "identifier": "sks"})
    assert alone.all_subjects[0].model_dump(include={"name", "identifier"}) == {
        "name": "V",
        "identifier": "sks",
    }


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"subjects": [REX], "class_noun": "dog"}, "each has its own images, class_noun"),
        ({"subjects": [REX, REX]}, "different names"),
        ({"subjects": [REX | {"name": "Rex!"}]}, "subjects.0.name = 'Rex!'"),
        ({"subjects": [REX | {"images": []}]}, "subjects.0.images"),
        ({"subjects": [REX], "class_prompts": "a [rex] dog"}, "take [rex] out"),
        ({"subjects": [REX | {"noun": "dog"}]}, "no setting is called 'subjects.0.noun'"),
    ],
)
def test_wrong_subjects_are_told(values, told):
    with pytest.raises(StudioloError, match=re.escape(told)):
        Recipe.build(values)
