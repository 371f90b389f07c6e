"""Where a picture comes from, told inside its PNG file: enough to make the same bytes again.

Two text chunks: `studiolo`, a JSON object as `Provenance` describes it, and `parameters`, the one line that
other tools (AUTOMATIC1111, ComfyUI, Civitai) show. No time, user or path is written.
"""

from __future__ import annotations

import io
import platform
from pathlib import Path
from typing import Annotated, Any

from PIL import Image, PngImagePlugin, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from studiolo.diffusion.sampler_settings import SamplerSettings
from studiolo.errors import StudioloError

CHUNK = "studiolo"
MAX_BATCH = 128
_MAX_CHARACTERS = 1 << 20

Text = Annotated[str, Field(max_length=2_000)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Side = Annotated[int, Field(ge=1, le=8192)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Record(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


class Request(_Record):
    """One picture asked for: what, what not, and from which noise."""

    prompt: Text
    negative_prompt: Text = ""
    seed: Seed = 0


class AdapterTrace(_Record):
    """An adapter that was merged into the model, and how much of it."""

    name: Text
    sha256: Sha256
    weight: Annotated[float, Field(ge=-10, le=10)] = 1.0


class ModelTrace(_Record):
    """Which weights drew (`Components.fingerprint()`, before `adapters` were merged in, in order);
    for a subject also what it was taught from."""

    name: Text
    kind: Text = "folder"
    fingerprint: Sha256
    base: dict[str, Any] | None = None
    data: list[Text] = []
    adapters: Annotated[list[AdapterTrace], Field(max_length=32)] = Field(
        default=[], exclude_if=lambda adapters: not adapters
    )


class Machine(_Record):
    """What the last bits of a picture depend on beside its settings."""

    studiolo: Text
    torch: Text
    diffusers: Text
    transformers: Text
    pillow: Text
    device: Text
    dtype: Text
    threads: Annotated[int, Field(ge=1, le=4096)]
    processor: Text


class GivenTrace(_Record):
    """The picture that this one began from, and its mask, by the SHA-256 of their files; `alpha` as in
    `drawing.given.Given`."""

    image: Sha256
    mask: Sha256 | None = None
    strength: Annotated[float, Field(gt=0, le=1)]
    keep: bool = True
    alpha: bool = Field(default=False, exclude_if=lambda alpha: not alpha)


class Provenance(_Record):
    """The record in a picture's file.

    `batch` are the pictures that were drawn in one call of the network and `index` is this one's place among
    them: float sums may fall differently in another batch, so reproducing means drawing all of it again.
    """

    settings: dict[str, Any]
    width: Side
    height: Side
    batch: Annotated[list[Request], Field(min_length=1, max_length=MAX_BATCH)]
    index: Annotated[int, Field(ge=0)]
    model: ModelTrace
    machine: Machine
    given: GivenTrace | None = Field(default=None, exclude_if=lambda given: given is None)

    @model_validator(mode="after")
    def _index_within_batch(self) -> Provenance:
        if self.index >= len(self.batch):
            raise ValueError(f"index {self.index} of a batch of {len(self.batch)}")
        return self

    @property
    def request(self) -> Request:
        """What was asked for in this picture."""
        return self.batch[self.index]

    @property
    def sampler_settings(self) -> SamplerSettings:
        """The settings, checked; StudioloError when a value is none."""
        try:
            return SamplerSettings(**self.settings)
        except TypeError as error:
            raise StudioloError(f"sampler settings that this version does not know: {error}") from error

    def parameters(self) -> str:
        """The settings in the notation of AUTOMATIC1111's web UI."""
        settings, request = self.sampler_settings, self.request
        facts = {
            "Steps": settings.steps,
            "Sampler": settings.sampler,
            "CFG scale": settings.guidance_scale,
            "Seed": request.seed,
            "Size": f"{self.width}x{self.height}",
            **({"Denoising strength": self.given.strength} if self.given else {}),
            "Model hash": self.model.fingerprint[:10],
            "Model": self.model.name,
            **{f"Adapter {one.name}": one.weight for one in self.model.adapters},
            "Version": f"studiolo {self.machine.studiolo}",
        }
        negative = [f"Negative prompt: {request.negative_prompt}"] if request.negative_prompt else []
        return "\n".join(
            [request.prompt, *negative, ", ".join(f"{name}: {fact}" for name, fact in facts.items())]
        )


def this_machine(device: Any, dtype: Any) -> Machine:
    """The machine, the libraries and the number of threads at work now."""
    import diffusers
    import PIL
    import torch
    import transformers

    from studiolo import __version__

    on_gpu = torch.device(device).type == "cuda"
    return Machine(
        studiolo=__version__,
        torch=torch.__version__,
        diffusers=diffusers.__version__,
        transformers=transformers.__version__,
        pillow=PIL.__version__,
        device=torch.device(device).type,
        dtype=str(dtype).removeprefix("torch."),
        threads=torch.get_num_threads(),
        processor=torch.cuda.get_device_name(device)
        if on_gpu
        else f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
    )


def to_png(image: Image.Image, provenance: Provenance) -> bytes:
    """The picture as a PNG file with its provenance; the same arguments give the same bytes."""
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text(CHUNK, provenance.model_dump_json())
    chunks.add_text("parameters", provenance.parameters())
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", pnginfo=chunks)
    return buffer.getvalue()


def read_provenance(path: str | Path) -> Provenance:
    """The record in a PNG file; nothing is decoded but its header chunks, and these are bounded.

    Raises:
        StudioloError: the file is no PNG, has no record, or one that is not ours.
    """
    try:
        with Image.open(path, formats=["PNG"]) as image:
            text = image.info.get(CHUNK)
    except (UnidentifiedImageError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise StudioloError("not a readable PNG file", where=path) from error
    except OSError as error:
        raise StudioloError(f"cannot be read: {error.strerror or error}", where=path) from error
    if not isinstance(text, str):
        raise StudioloError(
            "this picture does not say how it was made",
            where=path,
            remedy="Give a PNG file as studiolo wrote it; editing or sending may take the record away.",
        )
    if len(text) > _MAX_CHARACTERS:
        raise StudioloError("the record of how it was made is too long", where=path)
    try:
        return Provenance.model_validate_json(text)
    except (ValidationError, RecursionError) as error:
        raise StudioloError(f"damaged record of how it was made: {_first(error)}", where=path) from error


def _first(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return "nested too deep"
    found = error.errors(include_url=False)[0]
    return f"{'.'.join(map(str, found['loc'])) or 'record'}: {found['msg']}"
