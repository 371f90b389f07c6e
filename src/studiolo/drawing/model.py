"""A model to draw with: loaded by name, prompts in, pictures with their provenance out."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from pydantic import ValidationError

from studiolo.diffusion.compiling import compile_blocks
from studiolo.diffusion.components import Components
from studiolo.diffusion.conditioning import lost_text
from studiolo.diffusion.packing import fitting_batch
from studiolo.diffusion.sampler_settings import SamplerSettings
from studiolo.diffusion.sampling import OnStep, generate
from studiolo.drawing.adapters import Mounted, identifiers_of, mount_all
from studiolo.drawing.given import Given, Source, give
from studiolo.drawing.prompts import fill_identifier, spell_out
from studiolo.drawing.provenance import (
    MAX_BATCH,
    AdapterTrace,
    GivenTrace,
    ModelTrace,
    Provenance,
    Request,
    this_machine,
    to_png,
)
from studiolo.errors import StudioloError
from studiolo.formats.opening import open_components
from studiolo.models.registry import BASE_NAME, ModelRef, resolve
from studiolo.store.files import atomic_path

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Picture:
    """A drawn picture (RGB) and the record of how it was made."""

    image: Image.Image
    record: Provenance

    @property
    def provenance(self) -> dict:
        """The record as JSON values."""
        return self.record.model_dump(mode="json")

    def png(self) -> bytes:
        """The PNG file's bytes, provenance included."""
        return to_png(self.image, self.record)

    def save(self, path: str | Path) -> Path:
        """Writes the PNG file to `path`, which must end in .png, and returns the path."""
        if Path(path).suffix.lower() != ".png":
            raise StudioloError(
                "pictures are PNG files, which carry how they were made",
                where=path,
                remedy="End the name in .png, or save `picture.image`, which is a PIL image.",
            )
        with atomic_path(path) as temporary:
            temporary.write_bytes(self.png())
        return Path(path)


class ImageModel:
    """A base model or a taught subject, ready to draw."""

    def __init__(
        self,
        ref: ModelRef,
        components: Components,
        fingerprint: str | None = None,
        adapters: Sequence[Mounted] = (),
    ) -> None:
        self.ref = ref
        self.components = components
        self.fingerprint = fingerprint or components.fingerprint()
        self.adapters = tuple(adapters)

    @classmethod
    def load(
        cls,
        name_or_path: str | Path = BASE_NAME,
        device: str | None = None,
        dtype: str | torch.dtype | None = None,
        adapters: Sequence[str | Path | tuple[str | Path, float]] = (),
        compiled: bool = False,
    ) -> ImageModel:
        """The model of that name (see `models.registry.resolve`), in float32 on a GPU where there is one.

        `adapters` are merged into it: names or files, each with a weight or without (1); among them files of
        textual inversion, which add a word. `compiled` has torch.compile translate the denoiser's blocks at
        the first picture of each size, which takes a minute or more; pictures differ by rounding.

        Raises:
            StudioloError: no such model, device or dtype, an adapter that does not fit, or no C++ compiler.
        """
        ref = resolve(name_or_path)
        chosen_device, chosen_dtype = _device(device), _dtype(dtype)
        # Half precision stays so until it is cast below; adapters are added in float32, and rounded once.
        components = open_components(ref, torch.float32 if adapters else None)
        fingerprint = components.fingerprint()  # of the stored weights, whatever they are cast to
        pairs = [one if isinstance(one, tuple) else (one, 1.0) for one in adapters]
        mounted = mount_all(components, pairs)
        components.to(chosen_device, chosen_dtype)
        if compiled:
            compile_blocks(components.denoiser)
        return cls(ref, components, fingerprint, mounted)

    @property
    def identifiers(self) -> dict[str, str]:
        """The words that stand for the subjects, by their names; of the model and of its adapters."""
        words = identifiers_of(self.ref.name, self.ref.card)
        for adapter in self.adapters:
            words |= adapter.identifiers
        return words

    @property
    def identifier(self) -> str | None:
        """The word that stands for the subject; None for a model that was taught none, or several."""
        words = list(self.identifiers.values())
        return words[0] if len(words) == 1 else None

    def generate(
        self,
        prompt: str | Sequence[str],
        n: int = 1,
        seed: int = 0,
        negative_prompt: str = "",
        sampler: str = "ddim",
        steps: int = 30,
        guidance_scale: float = 5.0,
        eta: float = 0.0,
        width: int | None = None,
        height: int | None = None,
        batch_size: int | None = None,
        init: Source | None = None,
        mask: Source | None = None,
        strength: float = 0.6,
        keep: bool = True,
        **more: Any,
    ) -> list[Picture]:
        """Draws `n` pictures of each prompt, from the seeds seed, seed + 1, ...; prompt by prompt.

        `[V]` in a prompt stands for the subject, `[name]` for one of several. width and height are in pixels
        (default: the size the model was trained on, or that of `init`). `init` is a picture to begin from,
        `strength` how much of it to give up, `mask` white where alone to paint; see `drawing.given.give`. The
        other arguments, also those not named here, are those of `SamplerSettings`.

        Raises:
            StudioloError: a value out of range, or [V] with a model that was taught no subject.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        requests = [self.request(text, seed + i, negative_prompt) for text in prompts for i in range(n)]
        for note in self.notes(requests):
            warnings.warn(note, stacklevel=2)
        settings = SamplerSettings(sampler, steps, guidance_scale, eta, **more)
        given = give(init, mask, strength, keep)
        return self.draw(requests, settings, width, height, batch_size, given)

    def request(self, prompt: str, seed: int = 0, negative_prompt: str = "") -> Request:
        """A checked request, its `[V]` filled in, words of several vectors spelled out."""
        words = {word: full for adapter in self.adapters for word, full in adapter.words.items()}
        texts = [
            spell_out(fill_identifier(text, self.identifiers), words) for text in (prompt, negative_prompt)
        ]
        try:
            return Request(prompt=texts[0], negative_prompt=texts[1], seed=seed)
        except ValidationError as error:
            found = error.errors()[0]
            raise StudioloError(
                f"{found['msg']}, got {str(found['input'])[:80]}", where=found["loc"][0]
            ) from error

    def notes(self, requests: Sequence[Request]) -> list[str]:
        """What the user should know of these prompts: the words that the text encoder will not see, the
        negative prompts that are not read, and the subjects that cannot be told apart."""
        texts = dict.fromkeys(t for request in requests for t in (request.prompt, request.negative_prompt))
        limit = self.components.tokenizer.model_max_length
        lost = {text: lost_text(self.components, text) for text in texts}
        notes = [f"prompts end after {limit} tokens: '{end}' was not read" for end in lost.values() if end]
        if self.components.guidance_width and any(request.negative_prompt for request in requests):
            notes.append("guidance was distilled into this model: negative prompts are not read")
        by_word: dict[str, list[str]] = {}
        for name, word in self.identifiers.items():
            by_word.setdefault(word, []).append(name)
        alike = [(word, names) for word, names in by_word.items() if len(names) > 1]
        return notes + [
            f"{' and '.join(names)} have the same word, '{word}': no prompt can mean only one of them"
            for word, names in alike
        ]

    def draw(
        self,
        requests: Sequence[Request],
        settings: SamplerSettings,
        width: int | None = None,
        height: int | None = None,
        batch_size: int | None = None,
        given: Given | None = None,
        on_step: OnStep | None = None,
        on_picture: Callable[[int, Picture], None] | None = None,
    ) -> list[Picture]:
        """Draws the requests in order, `batch_size` (at most 128) at a time; default: what fits.

        All begin from `given`, or from noise.
        `on_step` is called after every denoising step, `on_picture(i, picture)` when picture i is done.
        """
        if given is not None and (width is None or height is None):
            own = given.size_for(self.components)
            width, height = width or own[0], height or own[1]
        shape = self.components.latent_shape(height, width)
        batch_size = fitting_batch(self.components, shape) if batch_size is None else batch_size
        if not 1 <= batch_size <= MAX_BATCH:
            raise StudioloError(
                f"a batch of {batch_size} pictures", where="batch_size", remedy=f"Use 1 to {MAX_BATCH}."
            )
        fitted = given.fitted(width, height) if given and width and height else None
        pictures: list[Picture] = []

        def keep(i: int, image: Image.Image) -> None:
            first = i - i % batch_size
            image = fitted.finished(image) if fitted else image
            batch = requests[first : first + batch_size]
            pictures.append(self._picture(image, settings, batch, i - first, given))
            if on_picture:
                on_picture(i, pictures[-1])

        generate(
            self.components,
            [request.prompt for request in requests],
            [request.seed for request in requests],
            settings,
            [request.negative_prompt for request in requests],
            height=height,
            width=width,
            batch_size=batch_size,
            start=fitted.start if fitted else None,
            on_step=on_step,
            on_picture=keep,
        )
        return pictures

    def _picture(
        self,
        image: Image.Image,
        settings: SamplerSettings,
        batch: Sequence[Request],
        index: int,
        given: Given | None,
    ) -> Picture:
        record = Provenance(
            settings=settings.as_dict(),
            width=image.width,
            height=image.height,
            batch=list(batch),
            index=index,
            model=self._trace(),
            machine=this_machine(self.components.device, self.components.dtype),
            given=_given_trace(given),
        )
        return Picture(image, record)

    def _trace(self) -> ModelTrace:
        card = self.ref.card
        images = card.get("data", {}).get("images", [])
        return ModelTrace(
            name=self.ref.name,
            kind=self.ref.kind,
            fingerprint=self.fingerprint,
            base=card.get("base"),
            data=[image["sha256"] for image in images],
            adapters=[
                AdapterTrace(name=one.name, sha256=one.sha256, weight=one.weight) for one in self.adapters
            ],
        )


def _given_trace(given: Given | None) -> GivenTrace | None:
    if given is None:
        return None
    return GivenTrace(
        image=given.image_sha256,
        mask=given.mask_sha256,
        strength=given.strength,
        keep=given.keep,
        alpha=given.alpha,
    )


def load(
    name_or_path: str | Path = BASE_NAME,
    device: str | None = None,
    dtype: str | torch.dtype | None = None,
    adapters: Sequence[str | Path | tuple[str | Path, float]] = (),
    compiled: bool = False,
) -> ImageModel:
    """`ImageModel.load`."""
    return ImageModel.load(name_or_path, device, dtype, adapters, compiled)


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # a torch without CUDA asserts
        raise StudioloError(
            f"there is no device {name!r} here",
            where="device",
            remedy="Use cpu, or cuda where there is a GPU.",
        ) from error
    return device


def _dtype(name: str | torch.dtype | None) -> torch.dtype:
    if isinstance(name, torch.dtype):
        return name
    if name is not None and name not in DTYPES:
        raise StudioloError(
            f"there is no dtype {name!r}", where="dtype", remedy=f"Use one of {', '.join(DTYPES)}."
        )
    return DTYPES[name or "float32"]
