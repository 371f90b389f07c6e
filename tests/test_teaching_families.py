"""Teaching models of every family: the loss by the reference's own formulas, the identifier, whole runs."""

from __future__ import annotations

import json
import os
import signal

import numpy as np
import pytest
import torch
import yaml
from diffusers import DDPMScheduler, DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from diffusers.training_utils import (
    compute_density_for_timestep_sampling,
    compute_loss_weighting_for_sd3,
)
from PIL import Image
from typer.testing import CliRunner

from lessons import lesson, rows, same_weights, teach, weights
from studiolo.cli.main import app
from studiolo.diffusion.components import Components
from studiolo.diffusion.conditioning import tokenize
from studiolo.diffusion.families import StableDiffusion
from studiolo.dreambooth import callbacks
from studiolo.dreambooth.batches import Batches, Half
from studiolo.dreambooth.examples import ExampleSet, LatentEncoder
from studiolo.dreambooth.identifier import add_identifier, find_identifier, take_identifier
from studiolo.dreambooth.material import Material, Taught
from studiolo.dreambooth.parts import choose_parts
from studiolo.dreambooth.personalize import Personalization
from studiolo.dreambooth.progress import Display
from studiolo.dreambooth.rates import rates
from studiolo.dreambooth.recipe import Recipe
from studiolo.dreambooth.subject import load_subject
from studiolo.dreambooth.trainer import Interrupted, resume
from studiolo.dreambooth.transforms import Transform
from studiolo.errors import StudioloError
from studiolo.formats.diffusers_folder import load_components
from tiny_families import TINY, tiny_sd1, tiny_sd3, tiny_sdxl

PROMPTS = ["a photo of zwx fox", "a photo of a fox"]
LARGER = {"sd2", "sdxl", "sd3", "sd3 without t5"}


def make_batches(components: Components, recipe: Recipe) -> Batches:
    channels = components.denoiser.config.in_channels
    draws = torch.Generator().manual_seed(1)
    halves = []
    for stream, prompts in (("instance", [0]), ("class", [1])):
        mean, logvar = torch.randn(2, 3, 1, channels, 8, 8, generator=draws)
        sizes = torch.tensor([60.0, 50, 0, 4, 32, 32]).expand(3, 1, 6)
        examples = ExampleSet(mean, logvar - 3, sizes=sizes)
        halves.append(Half(stream, examples, recipe.batch_size, torch.tensor(prompts)))
    return Batches(recipe, *halves, 1000)


def make_module(components: Components, recipe: Recipe) -> Personalization:
    tokens = [take_identifier(components, "zwx", "fox").token_ids]
    return Personalization(
        components, recipe, PROMPTS, tokens, lambda *where: make_batches(components, recipe)
    )


def text_of(folder, prompts):
    """Embeddings and pooled vectors as the pipeline itself encodes these prompts."""
    absent = {"text_encoder_3": None, "tokenizer_3": None} if "without" in str(folder) else {}
    pipeline = DiffusionPipeline.from_pretrained(folder, **absent)
    others = {"StableDiffusionXLPipeline": ["prompt_2"], "StableDiffusion3Pipeline": ["prompt_2", "prompt_3"]}
    told = dict.fromkeys(others.get(type(pipeline).__name__, []))
    with torch.no_grad():
        found = pipeline.encode_prompt(
            prompts, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False, **told
        )
    return pipeline, found[0], (found[2] if len(found) > 2 else None)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    from studiolo.formats.diffusers_folder import save_components

    root = tmp_path_factory.mktemp("families")
    return {name: save_components(make(), root / name) for name, make in TINY.items()}


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl"])
def test_the_loss_is_that_of_diffusers_formulas(folders, name):
    components, recipe = load_components(folders[name]), Recipe(batch_size=2, prior_weight=0.5)
    batch = make_batches(components, recipe)[3]
    losses = make_module(components, recipe).training_step(batch, 0)
    pipeline, tokens, pooled = text_of(folders[name], PROMPTS)
    scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    expected = []
    for half in batch.halves:
        noisy = scheduler.add_noise(half.latents, half.noise, half.timesteps)
        is_v = scheduler.config.prediction_type == "v_prediction"
        target = scheduler.get_velocity(half.latents, half.noise, half.timesteps) if is_v else half.noise
        told = {}
        if pooled is not None:
            told = {
                "text_embeds": pooled[half.prompts],
                "time_ids": torch.tensor([[60.0, 50, 0, 4, 32, 32]] * 2),
            }
        prediction = pipeline.unet(
            noisy, half.timesteps, encoder_hidden_states=tokens[half.prompts], added_cond_kwargs=told
        ).sample
        expected.append(torch.nn.functional.mse_loss(prediction, target).item())
    assert losses["loss_instance"].item() == pytest.approx(expected[0], rel=1e-4)
    assert losses["loss"].item() == pytest.approx(expected[0] + 0.5 * expected[1], rel=1e-4)


@pytest.mark.parametrize("weighting", ["none", "sigma_sqrt", "cosmap"])
@pytest.mark.parametrize("name", ["sd3", "sd3 without t5"])
def test_the_loss_of_a_flow_is_that_of_diffusers_script(folders, name, weighting):
    """The lines of train_dreambooth_sd3.py, without its preconditioned outputs."""
    levels = {"density": "logit-normal", "weighting": weighting}
    components, recipe = load_components(folders[name]), Recipe(batch_size=2, noise_levels=levels)
    batch = make_batches(components, recipe)[3]
    losses = make_module(components, recipe).training_step(batch, 0)
    pipeline, tokens, pooled = text_of(folders[name], PROMPTS)
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(pipeline.scheduler.config)
    half = batch.instance
    indices = 999 - half.timesteps  # theirs begin with noise
    timesteps, sigmas = scheduler.timesteps[indices], scheduler.sigmas[indices].view(-1, 1, 1, 1)
    noisy = (1 - sigmas) * half.latents + sigmas * half.noise
    with torch.no_grad():
        prediction = pipeline.transformer(
            hidden_states=noisy,
            timestep=timesteps,
            encoder_hidden_states=tokens[half.prompts],
            pooled_projections=pooled[half.prompts],
        ).sample
    weight = compute_loss_weighting_for_sd3(weighting, sigmas)
    error = (weight.float() * (prediction - (half.noise - half.latents)) ** 2).reshape(2, -1).mean(1).mean()
    assert losses["loss_instance"].item() == pytest.approx(error.item(), rel=1e-4)


def test_weights_of_flows_are_refused_for_others(tmp_path):
    given = lesson(tmp_path)
    with pytest.raises(StudioloError, match="this model is none"):
        teach(given, tmp_path / "run", noise_levels={"weighting": "cosmap"})


def test_logit_normal_levels_are_those_of_diffusers():
    components = tiny_sd3()
    recipe = Recipe(batch_size=64, noise_levels={"density": "logit-normal", "mean": 0.5, "deviation": 0.8})
    batches = make_batches(components, recipe)
    ours = torch.cat([half.timesteps for i in range(30) for half in batches[i].halves]).float() / 1000
    theirs = compute_density_for_timestep_sampling(
        "logit_normal", 200_000, logit_mean=0.5, logit_std=0.8, generator=torch.Generator().manual_seed(0)
    )
    points = torch.linspace(0.05, 0.95, 19)
    torch.testing.assert_close(ours.quantile(points), theirs.quantile(points), atol=0.02, rtol=0)
    again = make_batches(components, recipe)
    assert torch.equal(again[7].instance.timesteps, batches[7].instance.timesteps)
    assert not torch.equal(batches[7].instance.timesteps, batches[7].prior.timesteps)


@pytest.mark.parametrize("name", ["sdxl", "sd3"])
def test_an_added_identifier_is_one_token_of_every_text_encoder(name):
    components = TINY[name]()
    for encoder in components.text_encoders[:2]:  # as published configs of old have it
        getattr(encoder, "text_model", encoder).eos_token_id = 2
    before = [encoder.get_input_embeddings().weight.clone() for encoder in components.text_encoders]
    choice = add_identifier(components, "qqx", "fox")
    assert choice.added
    assert len(choice.token_ids) == len(components.text_encoders)
    for tokenizer, encoder, table, row, ids in zip(
        components.tokenizers,
        components.text_encoders,
        before,
        choice.token_ids,
        tokenize(components, ["a photo of a qqx fox, qqx"]),
        strict=True,
    ):
        assert ids[0].tolist().count(row) == 2
        plain = tokenizer("a photo of a dog fox, dog").input_ids
        assert len(tokenizer("a photo of a qqx fox, qqx").input_ids) == len(plain)
        (noun,) = tokenizer("fox", add_special_tokens=False).input_ids
        now = encoder.get_input_embeddings().weight
        assert torch.equal(now[row], table[noun])
        kept = [i for i in range(len(table)) if i != row]
        assert torch.equal(now[kept], table[kept])
    # The pooled vector is that of the end of the text, not of the token, whose id is the largest.
    encoder, ids = components.text_encoders[1], tokenize(components, ["a qqx fox"])[1]
    inner = encoder.text_model
    with torch.no_grad():
        end = ids[0].tolist().index(components.tokenizers[1].eos_token_id)
        expected = encoder.text_projection(inner(ids).last_hidden_state[:, end])
        torch.testing.assert_close(encoder(ids).text_embeds, expected)


def test_a_word_of_clip_s_is_read_in_pieces_by_t5():
    components = tiny_sd3()
    vocabulary = components.tokenizers[2].get_vocab()
    choice = take_identifier(components, "zwx", "fox")
    assert not choice.added
    assert choice.token_ids[:2] == (choice.token_id, choice.token_id)
    assert choice.token_ids[2] is None
    assert components.tokenizers[2].get_vocab() == vocabulary


def test_meaning_is_the_mean_over_clip_s_text_encoders():
    components = tiny_sdxl()
    words = ["zwx", "sks", "hat"]
    both = find_identifier(components, "fox", words).alternatives
    alone = []
    for tower in (0, 1):
        one = tiny_sdxl()
        one.tokenizers, one.text_encoders = (one.tokenizers[tower],), (one.text_encoders[tower],)
        one.family = StableDiffusion()
        alone.append({c.token: c for c in find_identifier(one, "fox", words).alternatives})
    for candidate in both:
        for value in ("shift", "likeness"):
            expected = np.mean([getattr(tower[candidate.token], value) for tower in alone])
            assert getattr(candidate, value) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", ["sdxl", "sd3"])
@pytest.mark.parametrize("settings", [{}, {"adapter": {"kind": "dora", "rank": 2}}], ids=["full", "dora"])
def test_checkpointing_changes_no_gradient(name, settings):
    found = []
    for checkpointing in (False, True):
        recipe = Recipe(batch_size=1, gradient_checkpointing=checkpointing).with_values(settings)
        components = TINY[name]()
        module = make_module(components, recipe)
        module.training_step(make_batches(components, recipe)[0], 0)["loss"].backward()
        found.append({n: p.grad for n, p in module.named_parameters() if p.grad is not None})
    plain, again = found
    assert plain.keys() == again.keys()
    assert any("text_encoders" in name for name in plain)
    for key, gradient in plain.items():
        torch.testing.assert_close(again[key], gradient, rtol=1e-4, atol=1e-6)


def test_a_large_photo_is_told_as_large_as_it_was(tmp_path):
    """Though it is kept smaller: with 32 pixels to a picture, no side is kept above 64."""
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)).save(
        tmp_path / "a.png"
    )
    components = tiny_sdxl()
    subject = load_subject(tmp_path, "fox", min_size=32)
    assert min(subject.images[0].image.size) == 64
    recipe = Recipe().with_values({"prior_weight": 0, "batch_size": 2})
    material = Material(recipe, components, [Taught("V", subject, "zwx")])
    sizes = material.batches(None)(0, 0, 1)[0].instance.sizes
    assert sizes[:, :2].tolist() == [[300, 400]] * 2
    assert sizes[:, 4:].tolist() == [[32, 32]] * 2


def test_sizes_are_those_of_diffusers_sdxl_script():
    """Original (height, width), then the crop's top left corner after resizing, then the target."""
    encoder = LatentEncoder(tiny_sdxl(), Transform(32, flip=False))
    image = Image.fromarray(np.zeros((60, 100, 3), np.uint8))
    sizes = encoder.encode([image]).draw(0, "x", [0]).sizes
    top, left = 0, round((100 - 60) / 2 * 32 / 60)
    assert sizes[0].round().tolist() == [60, 100, top, left, 32, 32]


@pytest.mark.parametrize("name", ["sdxl", "sd3"])
def test_what_nobody_reads_gets_no_gradient_and_all_else_does(name):
    components, recipe = TINY[name](), Recipe(batch_size=1)
    module = make_module(components, recipe)
    module.training_step(make_batches(components, recipe)[0], 0)["loss"].backward()
    wanting = {n for n, p in module.named_parameters() if p.requires_grad and p.grad is None}
    assert not wanting
    assert not any(p.requires_grad for encoder in module.text_encoders[2:] for p in encoder.parameters())


def test_rates_suit_the_model(monkeypatch):
    small = tiny_sd1()
    assert rates(Recipe(), small) == (4e-4, 4e-5)
    assert rates(Recipe(learning_rate=0.1, rate_multiplier=2), small) == (0.1, 8e-5)
    monkeypatch.setattr(type(small.denoiser), "num_parameters", lambda self: 860_000_000)
    assert rates(Recipe(), small) == (2e-6, 2e-6)
    assert rates(Recipe(adapter={"kind": "lora"}), small)[0] == 1e-4
    assert rates(Recipe(optimizer="prodigy"), small) == (1.0, 1.0)


def test_all_text_encoders_of_clip_s_are_chosen():
    for name, make in TINY.items():
        components = make()
        choose_parts(components, Recipe(), [])
        trained = [any(p.requires_grad for p in e.parameters()) for e in components.text_encoders]
        assert trained == [True, True, False][: len(trained)], name


@pytest.mark.parametrize("name", sorted(LARGER))
def test_a_run_can_be_stopped_goes_on_exactly_and_is_drawn_from(name, tmp_path, monkeypatch):
    given = lesson(tmp_path / "lesson", TINY[name]())
    settings = {"steps": 3, "identifier": "qqx", "learning_rate": 1e-4, "text_learning_rate": 1e-4}
    teach(given, tmp_path / "whole", **settings)
    original = callbacks.Recorder.on_step

    def on_step(self, trainer, module, now):
        original(self, trainer, module, now)
        if now == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(callbacks.Recorder, "on_step", on_step)
        with pytest.raises(Interrupted):
            teach(given, tmp_path / "stopped", **settings)
    model = resume(tmp_path / "stopped", display=Display.silent())
    assert rows(tmp_path / "stopped") == rows(tmp_path / "whole")
    assert same_weights(tmp_path / "stopped" / "model", tmp_path / "whole" / "model")

    recipe = yaml.safe_load((tmp_path / "whole" / "recipe.yaml").read_text())
    density = "logit-normal" if "sd3" in name else "uniform"
    assert (recipe["noise_levels"]["density"], recipe["learning_rate"]) == (density, 1e-4)
    card = json.loads((tmp_path / "whole" / "model" / "studiolo.json").read_text())
    assert card["fingerprint"] == load_components(tmp_path / "whole" / "model").fingerprint()
    assert card["base"]["fingerprint"] == TINY[name]().fingerprint()
    moved = _moved(given["base"], tmp_path / "whole" / "model")
    clips = {"text_encoder", "text_encoder_2"}
    assert {part.split(".")[0] for part in moved} == {
        "sd2": {"text_encoder", "unet"},
        "sdxl": clips | {"unet"},
        "sd3": clips | {"transformer", "text_encoder_3"},
        "sd3 without t5": clips | {"transformer"},
    }[name]
    # T5 has the identifier in its table, and is otherwise as it was.
    assert [part for part in moved if part.startswith("text_encoder_3")] in (
        [],
        ["text_encoder_3.shared.weight"],
    )

    assert model.generate("a [V] fox", steps=2)[0].image.size == (32, 32)
    arguments = ["generate", "a [V] fox on the moon", "--model", "stopped", "--steps", "2", "-n", "2"]
    drawn = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "out")], catch_exceptions=False)
    assert drawn.exit_code == 0, drawn.output
    assert len(list((tmp_path / "out").glob("*.png"))) == 3  # with the sheet


def _moved(base, model) -> set[str]:
    """Names of the tensors that have the same shape and other values."""
    old, new = weights(base), weights(model)
    return {
        name
        for name, tensor in new.items()
        if old[name].shape == tensor.shape and not torch.equal(old[name], tensor)
    }


@pytest.mark.parametrize("name", ["sdxl", "sd3"])
@pytest.mark.parametrize(
    "choice",
    [
        {"adapter": {"kind": "lora", "rank": 2}, "identifier": "qqx"},
        {"adapter": {"kind": "lora", "rank": 2}, "train_text_encoder": False, "train_token_embedding": True},
        {
            "train_unet": False,
            "train_text_encoder": False,
            "train_token_embedding": True,
            "identifier": "qqx",
        },
    ],
    ids=["lora", "lora and token", "token"],
)
def test_what_is_exported_beside_the_base_draws_as_the_merged_model(name, choice, tmp_path):
    given = lesson(tmp_path / "lesson", TINY[name]())
    beside = teach(given, tmp_path / "beside", steps=2, export="adapter", **choice)
    merged = teach(given, tmp_path / "merged", steps=2, export="merged", **choice)
    assert not list((tmp_path / "beside" / "model").glob("*/*.safetensors"))
    one, two = (np.asarray(m.generate("a [V] fox", steps=2)[0].image, int) for m in (beside, merged))
    assert np.abs(one - two).max() <= 1
    base = load_components(given["base"])
    assert beside.components.fingerprint() != base.fingerprint()


def test_clip_skip_of_the_recipe_is_that_of_the_taught_model(tmp_path):
    given = lesson(tmp_path / "lesson", tiny_sd1())
    model = teach(given, tmp_path / "run", steps=2, clip_skip=1)
    assert model.components.family.clip_skip == 1
    skipped = model.generate("a [V] fox", steps=2)[0]
    asked = model.generate("a [V] fox", steps=2, clip_skip=1)[0]
    plain = model.generate("a [V] fox", steps=2, clip_skip=0)[0]
    assert skipped.image.tobytes() == asked.image.tobytes() != plain.image.tobytes()
    assert asked.record.settings["clip_skip"] == 1
    with pytest.raises(StudioloError, match="cannot be left out"):
        teach(given, tmp_path / "other", steps=2, clip_skip=5)


def test_clip_skip_is_learned_with(tmp_path):
    components, recipe = tiny_sd1(), Recipe(batch_size=2)
    batch = make_batches(components, recipe)[0]
    plain = make_module(components, recipe).training_step(batch, 0)["loss"]
    skipped = make_module(tiny_sd1().skipping(1), recipe).training_step(batch, 0)["loss"]
    assert plain != skipped
