"""Class images: made once, in order, whole or not at all, and never a matter of timing."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from studiolo.diffusion.components import Components
from studiolo.diffusion.sampling import SamplerSettings, generate
from studiolo.dreambooth.examples import LatentEncoder
from studiolo.dreambooth.prior import ClassExamples, ClassImageMaker, ClassImageSet
from studiolo.dreambooth.recipe import Recipe, fill
from studiolo.dreambooth.transforms import Transform
from studiolo.errors import StudioloError
from tiny import tiny_components


@pytest.fixture(scope="module")
def components() -> Components:
    return tiny_components()


def image_set(
    root: Path, count: int = 6, fingerprint: str = "base", size: int = 32, **changed
) -> ClassImageSet:
    made = {"count": count, "batch_size": 4, "steps": 2} | changed.pop("class_images", {})
    changed = {"class_prompts": ["a photo of a {class_noun}"]} | changed
    recipe = Recipe(class_noun="fox").with_values({"class_images": made} | changed)
    prompts = [fill(prompt, recipe.class_noun) for prompt in recipe.class_prompts]
    return ClassImageSet(recipe.class_images, prompts, fingerprint, size, root)


def make_all(images: ClassImageSet, components: Components) -> None:
    with ClassImageMaker(images, components) as maker:
        for index in range(images.count):
            maker.wait(index)


def contents(images: ClassImageSet) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(images.folder.glob("*.png"))}


def test_they_are_what_the_sampler_draws_of_the_class_prompt(components, tmp_path):
    images = image_set(tmp_path, count=4)
    make_all(images, components)
    settings = SamplerSettings(sampler="ddim", steps=2, guidance_scale=images.settings.guidance_scale)
    drawn = generate(components, ["a photo of a fox"] * 4, [0, 1, 2, 3], settings)
    for index, picture in enumerate(drawn):
        assert Image.open(images.path(index)).tobytes() == picture.tobytes()


def test_in_half_precision_they_look_alike_and_lie_elsewhere(components, tmp_path):
    """With the float32 numbers of the base left as they are, and its text encoder and VAE in common."""
    before = components.fingerprint()
    whole, half = (
        image_set(tmp_path, count=4, class_images={"precision": p}) for p in ("32-true", "bf16-mixed")
    )
    artists = [images.artist(components, components.parameters) for images in (whole, half)]
    for images, artist in zip((whole, half), artists, strict=True):
        images.make_batch(artist, 0)
    assert components.fingerprint() == artists[0].fingerprint() == before
    sizes = [sum(p.nbytes for p in a.denoiser.parameters()) for a in (components, artists[1])]
    assert sizes[1] < 0.6 * sizes[0]
    assert artists[1].vae.decoder.conv_in.weight is components.vae.decoder.conv_in.weight
    assert whole.folder != half.folder
    assert "precision" not in json.loads((whole.folder / "made-by.json").read_text()), (
        "as before there was one"
    )
    one, two = (
        np.stack([np.asarray(Image.open(images.path(i)), dtype=float) for i in range(4)])
        for images in (whole, half)
    )
    assert 0 < abs(one - two).mean() < 2


def test_a_second_run_reuses_them(components, tmp_path):
    images = image_set(tmp_path)
    make_all(images, components)
    before = {path: path.stat().st_mtime_ns for path in images.folder.iterdir()}
    again = image_set(tmp_path)
    assert again.missing() == []
    make_all(again, components)
    assert {path: path.stat().st_mtime_ns for path in images.folder.iterdir()} == before


@pytest.mark.parametrize(
    "changed",
    [
        {"fingerprint": "other"},
        {"size": 64},
        {"class_noun": "dog"},
        {"class_prompts": ["a {class_noun}"]},
        *(
            {"class_images": {key: value}}
            for key, value in {
                "seed": 1,
                "batch_size": 3,
                "sampler": "euler",
                "steps": 3,
                "guidance_scale": 1.0,
                "eta": 1.0,
                "negative_prompt": "snow",
            }.items()
        ),
    ],
    ids=str,
)
def test_whatever_changes_a_picture_changes_the_folder(tmp_path, changed):
    assert image_set(tmp_path, **changed).folder != image_set(tmp_path).folder


@pytest.mark.parametrize(
    "changed", [{"steps": 7}, {"seed": 3}, {"prior_weight": 0.5}, {"learning_rate": 0.1}], ids=str
)
def test_what_changes_no_picture_changes_no_folder(tmp_path, changed):
    assert image_set(tmp_path, **changed).folder == image_set(tmp_path).folder


def test_more_images_extend_the_set(components, tmp_path):
    few, many = image_set(tmp_path, count=3), image_set(tmp_path, count=10)
    make_all(few, components)
    before = contents(few)
    make_all(many, components)
    assert many.folder == few.folder
    assert before.items() <= contents(many).items()
    fresh = image_set(tmp_path / "fresh", count=10)
    make_all(fresh, components)
    assert contents(fresh) == contents(many)


def test_a_kill_loses_at_most_the_batch_in_flight(components, tmp_path):
    """Leaves the folder as a kill in the middle of the second batch does, then makes the rest."""
    whole = image_set(tmp_path / "whole", count=12)
    make_all(whole, components)
    killed = image_set(tmp_path / "killed", count=12)
    make_all(image_set(tmp_path / "killed", count=4), components)
    killed.path(4).write_bytes(whole.path(4).read_bytes())
    (killed.folder / ".tmp-000005.png").write_bytes(b"half")
    assert killed.missing() == [1, 2]
    make_all(killed, components)
    assert contents(killed).items() >= contents(whole).items()


def test_leaving_stops_the_making_within_a_step(components, tmp_path):
    images = image_set(tmp_path, count=400)
    with ClassImageMaker(images, components) as maker:
        maker.wait(0)
    assert images.ready() < 400
    assert all(Image.open(path).load() for path in images.folder.glob("0*.png"))


def test_errors_surface_where_the_images_are_awaited(components, tmp_path, monkeypatch):
    def broken(*args: object, **kwargs: object) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr("studiolo.dreambooth.prior.generate", broken)
    with (
        ClassImageMaker(image_set(tmp_path), components) as maker,
        pytest.raises(StudioloError, match="no room"),
    ):
        maker.wait(0)


def test_waiting_can_be_called_off(components, tmp_path, monkeypatch):
    gate = threading.Event()
    monkeypatch.setattr("studiolo.dreambooth.prior.generate", lambda *a, **k: gate.wait() and [])

    def give_up() -> None:
        raise TimeoutError

    with ClassImageMaker(image_set(tmp_path), components) as maker:
        with pytest.raises(TimeoutError):
            maker.wait(0, give_up)
        gate.set()


def test_ranks_share_the_batches_whenever_they_begin(components, tmp_path):
    images = image_set(tmp_path, count=12)
    with ClassImageMaker(images, components, rank=0, world=2) as first:
        first.wait(3)
        with ClassImageMaker(images, components, rank=1, world=2):
            for index in range(12):
                first.wait(index)
    alone = image_set(tmp_path / "alone", count=12)
    make_all(alone, components)
    assert contents(images) == contents(alone)


def test_examples_do_not_depend_on_who_was_faster(components, tmp_path):
    """The producer must wait for the consumer in one run, and has finished before it in the other."""
    images = image_set(tmp_path)
    counters = [list(range(k, k + 4)) for k in range(0, 16, 4)]

    def drawn() -> list[torch.Tensor]:
        with ClassImageMaker(images, components) as maker:
            examples = ClassExamples(maker, LatentEncoder(components, Transform(32, flip=False)))
            return [examples.draw(7, "class", some).latents for some in counters]

    overlapped = drawn()
    assert images.missing() == []
    for one, two in zip(overlapped, drawn(), strict=True):
        assert torch.equal(one, two)


def test_every_epoch_meets_every_image_once_and_the_first_in_the_order_of_making(components, tmp_path):
    with ClassImageMaker(image_set(tmp_path), components) as maker:
        examples = ClassExamples(maker, LatentEncoder(components, Transform(32)))
        epochs = [examples.order(0, "class", range(6 * e, 6 * e + 6)).tolist() for e in range(4)]
    assert epochs[0] == list(range(6))
    assert all(sorted(epoch) == list(range(6)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
