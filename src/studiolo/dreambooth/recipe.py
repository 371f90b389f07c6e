"""Every setting of a training, typed, bounded and explained: from defaults, YAML files and `key=value` flags.

The field descriptions below are the reference: `Recipe.to_yaml` writes them beside the values.
"""

from __future__ import annotations

import difflib
import re
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from studiolo.diffusion.words import words_of
from studiolo.dreambooth.recipe_group import Group, Many, Precision, Sampler
from studiolo.dreambooth.recipe_noise import NoiseLevels
from studiolo.dreambooth.recipe_parts import AdapterChoice, check_parts
from studiolo.dreambooth.recipe_prior import ClassImages, ClassPredictions
from studiolo.dreambooth.recipe_scores import ScoreSettings
from studiolo.dreambooth.recipe_subjects import SubjectSettings
from studiolo.errors import StudioloError
from studiolo.store.files import atomic_path
from studiolo.training.halves import HALVES
from studiolo.training.optimizers import OptimizerName, ScheduleName, rate_factor

Rate = Annotated[float, Field(gt=0, le=1)]
SCALAR_END = "...\n"  # PyYAML ends a lone scalar with this


class MisfitError(StudioloError):
    """Each setting may have its value, and together they are no recipe."""


class Previews(Group):
    """Pictures drawn while training, always from the same seeds, to watch the subject form."""

    every: int = Field(0, ge=0, description="Optimizer steps between previews; 0 draws none.")
    prompts: Many[str] = Field(
        (
            "a photo of [V] {class_noun}",
            "a photo of [V] {class_noun} on the beach",
            "a photo of a {class_noun}",
        ),
        description="[V] stands for the identifier, {class_noun} for the class.",
    )
    count: int = Field(2, ge=1, le=64, description="Pictures a prompt, of seeds seed, seed + 1, ...")
    seed: int = Field(0, ge=0, lt=2**63, description="Seed of the first picture of each prompt.")
    sampler: Sampler = Field("ddim", description="As for drawing.")
    steps: int = Field(20, ge=1, le=1000, description="Denoising steps.")
    guidance_scale: float = Field(4.0, ge=0, le=50, description="Classifier-free guidance; <= 1 is off.")


class Recipe(Group):
    """All that determines a taught subject: what is learned, from what, and how.

    The loss is DreamBooth's (Ruiz et al. 2023, eq. 2): the mean over instance images, plus `prior_weight`
    times the mean over class images.
    """

    images: Many[str] = Field((), description="Image files or folders of the subject.")
    class_noun: str | None = Field(
        None, description="What the subject is, as the base says it: fox, backpack."
    )
    name: str | None = Field(None, description="The name under which the taught model is registered.")
    base: str = Field("studiolo-base", description="The model to start from: a name, a folder or a hub id.")
    identifier: str | None = Field(
        None,
        description="The token that stands for the subject. null: a rare one is found.",
    )
    captions: Literal["sidecar", "filename"] | None = Field(
        None, description="Own prompts of images, with [V]: sidecar reads NAME.txt, filename takes the name."
    )
    masks: str | None = Field(None, description="Folder of masks named as the images; white counts.")
    subjects: tuple[SubjectSettings, ...] = Field(
        (),
        description="Several subjects in one run, in place of images, class_noun, identifier, captions and "
        "masks: each has these of its own, and a name, by which prompts and captions say [NAME].",
    )

    instance_prompt: str = Field(
        "a photo of [V] {class_noun}", description="Prompt of every image that has no caption of its own."
    )
    class_prompts: Many[str] = Field(
        (
            "a photo of a {class_noun}",
            "a {class_noun}",
            "a photo of a {class_noun}",
            "a {class_noun} in the city",
        ),
        min_length=1,
        description="Class image i is made from, and trained with, prompt i modulo their number. A context "
        "among them keeps the class composable; with many, its looks there win over the subject's.",
    )
    prior: Literal["images", "predictions"] = Field(
        "images",
        description="What keeps the class: images that the base makes of it, or what it predicts on its "
        "ways from noise, which need no images.",
    )
    class_images: ClassImages = Field(ClassImages(), description="How class images are made.")
    class_predictions: ClassPredictions = Field(
        ClassPredictions(), description="How predictions of the base are made, with prior: predictions."
    )
    prior_weight: float = Field(
        1.0,
        ge=0,
        le=100,
        description="Weight of the class half of the loss (paper: lambda = 1); 0 leaves it out.",
    )

    steps: int = Field(200, ge=1, le=1_000_000, description="Optimizer steps.")
    seed: int = Field(0, ge=0, lt=2**63, description="Of every random draw of the training.")
    batch_size: int = Field(4, ge=1, le=4096, description="Instance images a micro-batch and device.")
    class_batch_size: int | None = Field(
        None, ge=1, le=4096, description="Class images a micro-batch and device. null: as batch_size."
    )
    accumulate: int = Field(1, ge=1, le=4096, description="Micro-batches an optimizer step.")

    clip_skip: int | None = Field(
        None,
        ge=0,
        le=11,
        description="Last layers of CLIP that are left out, as diffusers counts them. null: the base's own.",
    )
    train_unet: bool = Field(True, description="Train the denoiser, whole or by adapters.")
    train_text_encoder: bool = Field(
        True, description="Train the (CLIP) text encoders, whole or by adapters."
    )
    train_token_embedding: bool = Field(
        False,
        description="Train the identifier's embedding alone (Gal et al. 2022); with adapters, beside them.",
    )
    token_vectors: int = Field(
        1, ge=1, le=32, description="How many tokens stand for the subject, each with an embedding."
    )
    adapter: AdapterChoice = Field(
        AdapterChoice(), description="Small corrections in place of whole networks."
    )
    text_encoder_stop_step: int | None = Field(
        None, ge=1, description="Step from which text encoder and token stand still. null: never."
    )
    unet_start_step: int = Field(
        0,
        ge=0,
        description="Step from which the denoiser is trained: the token or the text before it, alone.",
    )
    optimizer: OptimizerName = Field(
        "adamw",
        description="adamw; adamw8bit: its moments in 8 bits; adafactor: rows and columns of them; prodigy: "
        "finds the rate by itself.",
    )
    learning_rate: Rate | None = Field(
        None,
        description="The optimizer's rate for the denoiser, at its highest. null: what suits the model: 4e-4 "
        "for small ones, 2e-6 for large ones, 1e-4 for their adapters.",
    )
    text_learning_rate: Rate | None = Field(
        None, description="The same for the text encoders or the token embedding."
    )
    rate_multiplier: float = Field(1.0, gt=0, le=1000, description="Of the rates that are null.")
    lr_schedule: ScheduleName = Field(
        "linear",
        description="How the rates fall after the warm-up, to 0 at the last step: constant (not at all), "
        "linear, cosine, cosine_restarts, polynomial.",
    )
    lr_cycles: int = Field(1, ge=1, le=1000, description="How often cosine_restarts begins anew, in all.")
    lr_power: float = Field(1.0, gt=0, le=100, description="Power of polynomial.")
    warmup_steps: int = Field(
        10, ge=0, description="Steps in which the rates rise linearly to their highest."
    )
    weight_decay: float = Field(0.01, ge=0, le=1, description="AdamW's decoupled weight decay.")
    clip_norm: float | None = Field(
        1.0, gt=0, description="Largest norm of all gradients together. null: no limit."
    )

    noise_levels: NoiseLevels = Field(NoiseLevels(), description="At which noise levels the model is taught.")
    snr_gamma: float | None = Field(
        None,
        gt=0,
        description="min-SNR weights of the instance half (Hang et al. 2023 take 5).",
    )
    offset_noise: float = Field(
        0.0, ge=0, le=1, description="Strength of a noise common to all pixels of a channel; 0 is off."
    )
    ema_decay: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Highest decay of the exported moving average of the weights.",
    )

    resolution: int | None = Field(None, ge=8, le=4096, description="Side in pixels. null: the base's own.")
    crop: Literal["center", "random"] = Field("center", description="Which square of an image is seen.")
    crop_variants: int = Field(
        4, ge=1, le=256, description="Random variants made of each image (crop: random, color_jitter)."
    )
    color_jitter: float = Field(
        0.0, ge=0, lt=1, description="Most by which brightness, contrast and saturation vary; 0 is off."
    )
    buckets: bool = Field(
        False, description="Keep the proportions of images: each is seen in the nearest of several shapes."
    )
    bucket_step: int | None = Field(
        None,
        ge=8,
        le=512,
        description="Sides of these shapes are multiples of it, in pixels. null: the model's.",
    )
    flip: bool = Field(True, description="See each image mirrored half of the time.")

    precision: Precision = Field(
        "auto",
        description="Float type of the arithmetic; what is trained stays in float32. auto: bf16-mixed where "
        "the machine computes in it, else 32-true. 16-mixed needs a GPU.",
    )
    accelerator: Literal["auto", "cpu", "gpu", "mps"] = Field("auto", description="What to compute on.")
    devices: int = Field(1, ge=1, le=4096, description="Devices a machine.")
    num_nodes: int = Field(1, ge=1, le=4096, description="Machines.")
    strategy: Literal["auto", "ddp", "fsdp"] = Field(
        "auto",
        description="How several devices share the work: ddp, each with a copy of the model; fsdp, each with "
        "a part of its weights, gradients and moments.",
    )
    gradient_checkpointing: bool = Field(
        False, description="Less memory for activations, more time: they are computed again on the way back."
    )
    channels_last: bool = Field(
        False, description="Memory order of the denoiser in which GPUs convolve faster."
    )
    compile: bool = Field(
        False,
        description="Compile the denoiser's blocks (torch.compile): minutes at the start, faster steps.",
    )
    weights_dtype: Literal["float16", "float32"] = Field(
        "float16", description="Float type of the exported model."
    )
    export: Literal["adapter", "merged"] = Field(
        "adapter",
        description="What is exported where adapters or a token are trained: these alone, some megabytes "
        "beside the base; or a whole model with them merged in.",
    )

    checkpoint_every: int = Field(100, ge=1, description="Steps between checkpoints of the full state.")
    keep_checkpoints: int = Field(2, ge=1, le=1000, description="The newest ones that are kept.")
    previews: Previews = Field(Previews(), description="Pictures drawn while training.")
    scores: ScoreSettings = Field(
        ScoreSettings(), description="What is measured while training, what is best, and when to stop."
    )
    trackers: Many[Literal["tensorboard", "wandb"]] = Field(
        ("tensorboard",), description="Where curves and previews go besides metrics.csv: tensorboard, wandb."
    )

    @model_validator(mode="after")
    def _choices_fit(self) -> Recipe:
        if not (self.train_unet or self.train_text_encoder or self.train_token_embedding):
            raise ValueError("nothing to train: set train_unet, train_text_encoder or train_token_embedding")
        check_parts(self)
        if self.bucket_step is not None and not self.buckets:
            raise ValueError("bucket_step is of buckets: set buckets")
        if self.subjects:
            of_one = (self.images, self.class_noun, self.identifier, self.captions, self.masks)
            names = [subject.name for subject in self.subjects]
            if any(of_one):
                raise ValueError(
                    "with subjects, each has its own images, class_noun, identifier, captions and masks"
                )
            if len(set(names)) < len(names) or "V" in names:
                raise ValueError(f"subjects need different names, and none is V: {', '.join(names)}")
        if "[V]" not in self.instance_prompt:
            raise ValueError("instance_prompt has no [V], the place of the identifier")
        for mark in ("[V]", *(f"[{subject.name}]" for subject in self.subjects)):
            if any(mark in prompt for prompt in self.class_prompts):
                raise ValueError(f"class_prompts describe the class without the subject: take {mark} out")
        if self.lr_cycles > 1 and self.lr_schedule != "cosine_restarts":
            raise ValueError("lr_cycles is of cosine_restarts: set lr_schedule")
        if self.lr_power != 1 and self.lr_schedule != "polynomial":
            raise ValueError("lr_power is of polynomial: set lr_schedule")
        return self

    @classmethod
    def build(cls, values: Mapping[str, Any], *, where: object = None) -> Recipe:
        """A recipe of `values`, the rest by default.

        Raises StudioloError naming every wrong key (with the nearest right one) and every wrong value; its
        subclass MisfitError where only their combination is wrong.
        """
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            problems = [_problem(cls, item) for item in error.errors()]
            fit_alone = all(item["type"] == "value_error" for item in error.errors())
            raise (MisfitError if fit_alone else StudioloError)(
                "; ".join(problems), where=where or "recipe", remedy="All settings: studiolo train --defaults"
            ) from None

    @classmethod
    def of(cls, given: Recipe | str | Path | None) -> Recipe:
        """A recipe itself, that of a YAML file, or the default one."""
        if isinstance(given, Recipe):
            return given
        return cls.from_yaml(given) if given else cls()

    @classmethod
    def from_yaml(cls, path: str | Path) -> Recipe:
        """The recipe in a YAML file of `key: value` lines; keys that are left out keep their defaults."""
        try:
            values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise StudioloError(f"cannot be read: {error}", where=path) from None
        except (yaml.YAMLError, ValueError) as error:
            raise StudioloError(f"not YAML: {error}", where=path) from None
        if not isinstance(values or {}, dict):
            raise StudioloError(f"holds a {type(values).__name__}, not `key: value` lines", where=path)
        return cls.build(values or {}, where=path)

    def with_values(self, values: Mapping[str, Any]) -> Recipe:
        """This recipe with other values; {"previews": {"every": 50}} keeps the rest of the group."""
        return self.build(_merged(self.model_dump(), values))

    def with_settings(self, settings: Iterable[str]) -> Recipe:
        """This recipe with settings such as "steps=200" and "class_images.count=32", values in YAML."""
        values: dict[str, Any] = {}
        for setting in settings:
            key, equals, text = setting.partition("=")
            if not equals:
                raise StudioloError("a setting has the form key=value", where=setting)
            try:
                value = yaml.safe_load(text)
            except (yaml.YAMLError, ValueError):  # of a date or number that there is not
                raise StudioloError(f"the value {text!r} is not YAML", where=key) from None
            for part in reversed(key.strip().split(".")):
                value = {part: value}
            values = _merged(values, value)
        return self.with_values(values)

    def to_yaml(self) -> str:
        """All settings, each under its description; `from_yaml` of it is this recipe again."""
        return _yaml_with_comments(self)

    def save(self, path: str | Path) -> None:
        """Writes `to_yaml()` to a file that is whole or absent."""
        with atomic_path(path) as temporary:
            temporary.write_text(self.to_yaml(), encoding="utf-8")

    @property
    def all_subjects(self) -> tuple[SubjectSettings, ...]:
        """`subjects`, or the one that the recipe itself describes, as V."""
        if self.subjects:
            return self.subjects
        of_one = self.model_dump(include={"images", "class_noun", "identifier", "captions", "masks"})
        return (SubjectSettings(name="V", **of_one),)

    @property
    def phrase(self) -> str | None:
        """What [V] stands for: the identifier, as many words as it has vectors."""
        return None if self.identifier is None else " ".join(words_of(self.identifier, self.token_vectors))

    @property
    def learns_beside(self) -> bool:
        """Whether no network is trained whole: what is learned lies in adapters and tokens."""
        return self.adapter.kind is not None or not (self.train_unet or self.train_text_encoder)

    def check_taught(self, example: str | None = None) -> None:
        """StudioloError unless it says what is to be taught; `example` is how it might be said."""
        if not self.subjects and not (self.images and self.class_noun):
            raise StudioloError(
                "to be given: images of the subject and the class noun", where="images", remedy=example
            )

    @property
    def halves_frozen(self) -> bool:
        """Whether what no step changes is kept in the half precision that it is computed in.

        Not with DoRA, which measures the rows of frozen weights, nor where processes cast what they share.
        """
        return self.precision in HALVES and self.adapter.kind != "dora" and self.strategy != "fsdp"

    def rate_factor(self, step: int) -> float:
        """The part in [0, 1] of the highest rate that optimizer step `step` (from 0) is taken with."""
        return rate_factor(
            self.lr_schedule,
            step,
            self.steps,
            warmup=self.warmup_steps,
            cycles=self.lr_cycles,
            power=self.lr_power,
        )

    def unet_trains_at(self, step: int) -> bool:
        """Whether optimizer step `step` (from 0) moves the denoiser, or adapters in it."""
        return self.train_unet and step >= self.unet_start_step

    def text_trains_at(self, step: int) -> bool:
        """Whether optimizer step `step` (from 0) moves the text encoder or the token."""
        stop = self.text_encoder_stop_step
        return (self.train_text_encoder or self.train_token_embedding) and (stop is None or step < stop)


def fill(template: str, class_noun: str, identifier: str = "[V]") -> str:
    """A prompt with the class noun ("a {class_noun}" becomes "an owl") and the identifier in place."""
    article = "an" if re.match(r"[aeio]|um", class_noun) else "a"
    text = re.sub(r"\ba \{class_noun\}", f"{article} {class_noun}", template)
    return text.replace("{class_noun}", class_noun).replace("[V]", identifier)


def _merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(old)
    for key, value in new.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = _merged(result[key], value) if both else value
    return result


def _problem(model: type[BaseModel], item: Any) -> str:
    """One of pydantic's complaints in a sentence: the key, the value, what was expected."""
    key = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key, _keys(model), n=1, cutoff=0.5)
        return f"no setting is called '{key}'" + (f" (did you mean '{near[0]}'?)" if near else "")
    if item["type"] == "value_error":
        return str(item["ctx"]["error"])
    expected = re.sub(r"^Input s", "s", item["msg"])
    return f"{key} = {item['input']!r} {expected}{_meaning(model, item['loc'])}"


def _meaning(model: Any, location: tuple[int | str, ...]) -> str:
    """What the description of the field at `location` says, in brackets."""
    description = ""
    for part in location:
        field = getattr(model, "model_fields", {}).get(part)
        if field is None:
            break
        model, description = field.annotation, field.description or ""
    return f" ({description.rstrip('.')})" if description else ""


def _keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    """All keys in dotted form, groups before their members."""
    keys = []
    for name, field in model.model_fields.items():
        keys.append(prefix + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys += _keys(field.annotation, f"{prefix}{name}.")
    return keys


def _yaml_with_comments(group: BaseModel, indent: str = "") -> str:
    lines = []
    for name, field in type(group).model_fields.items():
        comment = textwrap.wrap(field.description or "", 108 - len(indent))
        lines += [f"{indent}# {line}" for line in comment]
        value = getattr(group, name)
        if isinstance(value, BaseModel):
            lines += [f"{indent}{name}:", _yaml_with_comments(value, indent + "  ").rstrip("\n")]
        else:
            plain = group.model_dump(mode="json", include={name})[name]
            text = yaml.safe_dump(plain, allow_unicode=True, default_flow_style=True, width=10_000)
            value_text = text.removesuffix(SCALAR_END).rstrip("\n")  # no more: a no-break space is a value
            lines.append(f"{indent}{name}: {value_text}")
    return "\n".join(lines) + "\n"
