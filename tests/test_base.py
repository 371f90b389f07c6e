"""The base model's recipe: what its scenes show, what its words are, what the shipped weights fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from studiolo.base.autoencoder import reconstruction_loss
from studiolo.base.dataset import scene_set
from studiolo.base.loop import FALL, WARMUP, Machine, Part, trained
from studiolo.base.sample_subjects import SUBJECTS
from studiolo.base.scenes import Composer
from studiolo.base.sprites import PACKAGES, SPRITE_SIZE, SpriteBank, fetch_package
from studiolo.base.text import MAX_LENGTH, caption_words, info_nce, new_tokenizer, tokenize
from studiolo.base.vocabulary import BACKGROUNDS, HATS, HELD_OUT, NOUNS, STYLES, TWINS, article
from studiolo.errors import StudioloError
from studiolo.models.registry import BASE_NAME, resolve

ALLOWED = {"MIT", "Apache-2.0", "OFL-1.1", "CC-BY-4.0"}


@pytest.fixture(scope="module")
def bank() -> SpriteBank:
    """A coloured disc for every (noun, style): the composer does not care what a sprite shows."""
    y, x = np.mgrid[:SPRITE_SIZE, :SPRITE_SIZE] / SPRITE_SIZE - 0.5
    inside = (x**2 + y**2 < 0.2).astype(np.uint8) * 255
    rng = np.random.default_rng(0)
    sprites = {}
    for noun in NOUNS:
        for style in STYLES:
            colour = np.broadcast_to(rng.integers(0, 255, 3, dtype=np.uint8), (*inside.shape, 3))
            sprites[noun, style] = np.dstack([colour, inside])
    return SpriteBank(sprites)


def test_a_scene_is_a_function_of_seed_and_number(bank: SpriteBank) -> None:
    one, other = Composer(bank, 3), Composer(bank, 3)
    other.scene(5)  # the order of asking changes nothing
    a, b = one.scene(7), other.scene(7)
    assert a.caption == b.caption
    assert np.array_equal(a.image, b.image)
    assert not np.array_equal(a.image, Composer(bank, 4).scene(7).image)


def test_captions_say_what_is_shown(bank: SpriteBank) -> None:
    for index in range(300):
        scene = Composer(bank, 1).scene(index)
        for noun in scene.nouns:
            assert any(word in scene.caption for word in (noun, *NOUNS[noun][1])), scene
        places = BACKGROUNDS[scene.background]
        others = [p for name, ps in BACKGROUNDS.items() if name != scene.background for p in ps]
        said = scene.caption.endswith(places)
        assert said or not any(scene.caption.endswith(f" {phrase}") for phrase in others), scene
        assert scene.kind != "hat" or scene.nouns[1] in HATS


def test_plain_background_has_its_colour_where_no_sprite_stands(bank: SpriteBank) -> None:
    scene = Composer(bank, 0).compose(np.random.default_rng(0), "fox", "flat", "white")
    assert (scene.image[0] == 255).all()


def test_held_out_drawings_are_in_no_scene(bank: SpriteBank) -> None:
    training = bank.training()
    assert not HELD_OUT & set(training.sprites)
    shown = {(scene.nouns[0], scene.style) for scene in map(Composer(training, 2).scene, range(2000))}
    assert not HELD_OUT & shown


def test_twin_styles_are_held_out_together_and_every_noun_stays_in_some_style() -> None:
    for noun, style in HELD_OUT:
        for twins in TWINS:
            assert style not in twins or {(noun, twin) for twin in twins} <= HELD_OUT
        assert any((noun, other) not in HELD_OUT for other in STYLES)
    assert set(SUBJECTS.values()) <= HELD_OUT


def test_licences_are_open_and_every_style_has_a_package() -> None:
    assert {package.licence for package in PACKAGES} <= ALLOWED
    assert {package.name for package in PACKAGES} == set(STYLES.values())


def test_a_package_with_another_checksum_is_refused(tmp_path: Path) -> None:
    (tmp_path / PACKAGES[0].tarball).write_bytes(b"something else")
    with pytest.raises(StudioloError, match="SHA-256"):
        fetch_package(PACKAGES[0], tmp_path)


def test_a_scene_set_is_written_once_and_read_again(bank: SpriteBank, tmp_path: Path) -> None:
    first = scene_set(bank, 5, 12, tmp_path, workers=1)
    again = scene_set(SpriteBank({}), 5, 12, tmp_path)  # nothing is composed any more
    assert np.array_equal(first.images, again.images)
    assert again.captions[3] == Composer(bank, 5).scene(3).caption


def test_every_caption_fits_and_its_words_are_single_tokens(bank: SpriteBank) -> None:
    tokenizer = new_tokenizer(caption_words())
    captions = [Composer(bank, 1).scene(index).caption for index in range(300)]
    ids = tokenize(tokenizer, captions)
    assert ids.shape == (300, MAX_LENGTH)
    assert (ids[:, -1] == tokenizer.eos_token_id).all(), "a caption fills the whole window"
    for noun in NOUNS:
        assert tokenizer.tokenize(noun) == [f"{word}</w>" for word in noun.split()]
    assert tokenizer.decode(tokenizer("a crocodile")["input_ids"], skip_special_tokens=True) == "a crocodile"


@pytest.mark.parametrize(
    ("noun", "phrase"),
    [
        ("fox", "a fox"),
        ("owl", "an owl"),
        ("umbrella", "an umbrella"),
        ("unicorn", "a unicorn"),
        ("fries", "fries"),
    ],
)
def test_article(noun: str, phrase: str) -> None:
    assert article(noun) == phrase


def test_info_nce_of_perfect_and_of_blind_pairs() -> None:
    eye = torch.eye(8)
    sharp, log8 = torch.tensor(4.6), torch.log(torch.tensor(8.0))
    assert info_nce(eye, eye, sharp) < 1e-3
    assert torch.isclose(info_nce(torch.ones(8, 8), eye, sharp), log8)


def test_reconstruction_loss_is_nothing_for_the_same_and_the_offset_for_a_shifted_picture() -> None:
    x = torch.rand(2, 3, 8, 8)
    assert reconstruction_loss(x, x, 1.0) == 0
    assert torch.isclose(reconstruction_loss(x, x + 0.25, 1.0), torch.tensor(0.25), atol=1e-6)


class Line(Part):
    """The smallest thing that can be trained: a line through the origin."""

    def __init__(self) -> None:
        super().__init__(learning_rate=1e-2, steps=20, seed=0)
        torch.manual_seed(0)
        self.line = torch.nn.Linear(4, 1)

    def batch(self, generator: torch.Generator) -> torch.Tensor:
        return torch.randn(8, 4, generator=generator)

    def losses(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": (self.line(batch) - batch.sum(1, keepdim=True)).pow(2).mean()}


def _weights_after(folder: Path, minutes: tuple[float, ...]) -> tuple[torch.Tensor, list[int]]:
    looked: list[int] = []
    for limit in minutes:
        machine = Machine(precision="32-true", minutes=limit)
        with trained(part := Line(), folder, machine, ema_decay=0.9, look=looked.append, every=5):
            weights = torch.cat([p.detach().flatten() for p in part.parameters()])
    return weights, looked


def test_a_training_that_ran_out_of_time_goes_on_to_the_same_end(tmp_path: Path) -> None:
    whole, looked = _weights_after(tmp_path / "whole", (1,))
    broken, _ = _weights_after(tmp_path / "broken", (0, 0, 1))  # no time at all: one step each, saved
    assert torch.equal(whole, broken)
    assert looked == [5, 10, 15, 20]


def test_a_loss_that_is_no_number_ends_the_training(tmp_path: Path) -> None:
    part = Line()
    with torch.no_grad():
        part.line.weight.fill_(float("nan"))
    part.steps = 100  # the log looks every 100 steps
    with pytest.raises(StudioloError, match="the loss is nan"), trained(part, tmp_path, Machine()):
        pass


def test_learning_rate_rises_stays_and_falls_to_nothing() -> None:
    part = Line()
    part.steps = 1000
    assert part.rate_factor(0) == pytest.approx(1 / WARMUP)
    assert part.rate_factor(WARMUP) == part.rate_factor(700) == 1
    assert part.rate_factor(1000 - 150) == pytest.approx(150 / (FALL * 1000))
    assert part.rate_factor(1000) == 0


def test_shipped_weights_are_small_and_load_in_the_reference_pipeline() -> None:
    try:
        folder = resolve(BASE_NAME).path
    except StudioloError:
        pytest.skip("the weights of studiolo-base are not in this checkout")
    from diffusers import StableDiffusionPipeline

    weights = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    assert weights <= 32 * 10**6
    pipeline = StableDiffusionPipeline.from_pretrained(
        folder, safety_checker=None, requires_safety_checker=False, torch_dtype=torch.float32
    )
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    picture = pipeline("a fox in the snow", num_inference_steps=2, generator=generator).images[0]
    assert picture.size == (64, 64)


@pytest.mark.parametrize("name", SUBJECTS)
def test_sample_subjects_are_there(name: str) -> None:
    import studiolo

    views = sorted((Path(studiolo.__file__).parent / "base" / "subjects" / name).glob("*.png"))
    assert len(views) == 5
    for view in views:
        with Image.open(view) as image:
            assert image.size == (128, 128)
