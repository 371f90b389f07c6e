"""The prior by the base's own predictions: on the ways of diffusers' DDIM, the objective's own targets."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler
from safetensors.torch import load_file

from studiolo.diffusion.conditioning import encode_prompts
from studiolo.diffusion.noise import counter_noise
from studiolo.diffusion.objective import add_noise, prediction_target
from studiolo.dreambooth.predictions import PredictionSet, walk, walk_levels
from studiolo.dreambooth.recipe_prior import ClassPredictions
from studiolo.errors import StudioloError
from tiny import tiny_components
from tiny_families import TINY

PROMPTS = ["a photo of a fox", "a fox"]


@pytest.fixture(scope="module", params=["epsilon", "v_prediction"])
def components(request):
    return tiny_components(prediction_type=request.param)


def prediction_set(root, fingerprint="base", size=32, prompts=PROMPTS, **changed) -> PredictionSet:
    settings = ClassPredictions(**({"count": 5, "steps": 3, "batch_size": 2} | changed))
    return PredictionSet(settings, prompts, fingerprint, size, root)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_way_is_that_of_ddim_and_what_is_kept_is_the_prediction(components, guidance):
    levels = torch.tensor([900, 500, 100])
    noise = counter_noise(components.latent_shape(), 0, "walk", [0, 1])
    positive, negative = encode_prompts(components, PROMPTS), encode_prompts(components, ["", ""])
    clean, eps = walk(components, noise, positive, negative, levels, guidance)

    scheduler = DDIMScheduler.from_config(components.scheduler_config)
    noisy = noise
    for place, level in enumerate(levels):
        with torch.no_grad():
            said = components.denoiser(noisy, level, positive.tokens).sample
            without = components.denoiser(noisy, level, negative.tokens).sample
        at = level.expand(2)
        again = add_noise(components.schedule, clean[:, place], eps[:, place], at)
        torch.testing.assert_close(again, noisy, rtol=1e-4, atol=1e-4)
        target = prediction_target(components.schedule, clean[:, place], eps[:, place], at)
        torch.testing.assert_close(target, said, rtol=1e-3, atol=1e-4)
        if place + 1 < len(levels):
            # DDIM's step goes num_train_timesteps / num_inference_steps levels down: here 400.
            scheduler.num_inference_steps = scheduler.config.num_train_timesteps // 400
            scheduler.config.num_train_timesteps = 800
            guided = without + guidance * (said - without) if guidance > 1 else said
            noisy = scheduler.step(guided, int(level), noisy).prev_sample
            scheduler = DDIMScheduler.from_config(components.scheduler_config)


def test_levels_fall_and_cover_the_range():
    met = torch.cat([walk_levels(1000, 20, 0, batch) for batch in range(100)])
    for batch in range(5):
        levels = walk_levels(1000, 20, 0, batch)
        assert (levels.diff() < 0).all()
        assert torch.equal(levels // 50, torch.arange(19, -1, -1))
    assert met.min() < 10
    assert met.max() >= 990
    assert len(met.unique()) > 500


def test_a_set_is_made_once_and_shared_by_processes(components, tmp_path):
    whole, shared = prediction_set(tmp_path / "one"), prediction_set(tmp_path / "two")
    told: list[int] = []
    whole.make(components, on_batch=told.append)
    assert told == [2, 4, 5, 5]
    stamps = {path: path.stat().st_mtime_ns for path in whole.folder.iterdir()}
    whole.make(components)
    assert {path: path.stat().st_mtime_ns for path in whole.folder.iterdir()} == stamps

    class Enough(Exception):  # noqa: N818
        pass

    def stop() -> None:
        if shared.path(1).exists():
            raise Enough

    with pytest.raises(Enough):  # rank 1 has made its batch, and waits for those of rank 0
        shared.make(components, rank=1, world=2, cancelled=stop)
    assert not shared.path(0).exists()
    shared.make(components, rank=0, world=2)
    for batch in whole.batches:
        one, two = load_file(whole.path(batch)), load_file(shared.path(batch))
        assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_damaged_file_is_made_anew(components, tmp_path):
    made = prediction_set(tmp_path)
    made.make(components)
    before = made.path(1).read_bytes()
    made.path(1).write_bytes(before[:100])
    made.make(components)
    assert made.path(1).read_bytes() == before


@pytest.mark.parametrize(
    "changed",
    [
        {"fingerprint": "x"},
        {"size": 64},
        {"prompts": ["a fox"]},
        {"steps": 4},
        {"seed": 1},
        {"guidance_scale": 2.0},
        {"batch_size": 3},
    ],
)
def test_what_a_prediction_depends_on_is_in_the_key(tmp_path, changed):
    assert prediction_set(tmp_path, **changed).folder != prediction_set(tmp_path).folder


def test_more_walks_extend_a_set(tmp_path):
    assert prediction_set(tmp_path, count=50).folder == prediction_set(tmp_path).folder


def test_examples_meet_each_prediction_once_an_epoch_with_its_own_level_and_prompt(components, tmp_path):
    made = prediction_set(tmp_path)
    made.make(components)
    examples = made.load()
    assert examples.clean.shape == (15, *components.latent_shape())
    drawn = examples.draw(1, "class", range(15))
    for latents, noise, level, index in zip(
        drawn.latents, drawn.noise, drawn.timesteps, drawn.image_index, strict=True
    ):
        place = next(i for i in range(15) if torch.equal(examples.clean[i], latents))
        assert torch.equal(examples.noise[place], noise)
        assert (examples.levels[place], place // 3) == (level, index)
    assert sorted(drawn.image_index.tolist()) == [i // 3 for i in range(15)]
    parts = [examples.draw(1, "class", part).latents for part in (range(4), range(4, 15))]
    assert torch.equal(torch.cat(parts), drawn.latents)


def test_a_stop_leaves_only_whole_files(components, tmp_path):
    made = prediction_set(tmp_path)
    steps = iter(range(100))

    def stop() -> None:
        if next(steps) == 4:
            raise StudioloError("enough")

    with pytest.raises(StudioloError):
        made.make(components, cancelled=stop)
    assert [path.name for path in made.folder.glob("*.safetensors")] == ["000000.safetensors"]


def test_guidance_is_away_from_what_drawing_is_guided_away_from(tmp_path):
    """SDXL is guided away from zeros, and not from the reading of an empty prompt."""
    components = TINY["sdxl"]()
    made = prediction_set(tmp_path, count=2, guidance_scale=3.0)
    made.make(components)
    levels = walk_levels(1000, 3, 0, 0)
    sizes = components.family.sizes(32, 32)
    positive = encode_prompts(components, PROMPTS).sized(sizes)
    zeros = positive.map(torch.zeros_like).sized(sizes)
    noise = counter_noise(components.latent_shape(32, 32), 0, "walk", [0, 1])
    clean, eps = walk(components, noise, positive, zeros, levels, 3.0)
    found = load_file(made.path(0))
    torch.testing.assert_close(found["clean"], clean)
    torch.testing.assert_close(found["noise"], eps)
