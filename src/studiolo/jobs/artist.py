"""Drawing for many: models stay loaded, one drawing at a time, and who waits in front of it goes first."""

from __future__ import annotations

import asyncio
import gc
import io
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from studiolo.errors import StudioloError
from studiolo.jobs.queue import BULK, FIRST
from studiolo.jobs.sharing import Sharing
from studiolo.jobs.turns import Turns
from studiolo.language.errors import InvalidRequestError
from studiolo.models import registry

if TYPE_CHECKING:
    from studiolo.diffusion.sampling import Step
    from studiolo.drawing.given import Given
    from studiolo.drawing.model import ImageModel

    OnStep = Callable[[ImageModel, Step], None]

T = TypeVar("T")
Progress = Callable[[int, int], None]
"""(denoising steps done, of how many), for all pictures of a drawing together."""

Sketch = Callable[[int, int, bytes], None]
"""(which picture, which sketch of it, a PNG file), both counted from 0."""

MOST = 128
"""Pictures of one drawing."""
LARGEST = 4
"""Sides of a picture, in sides that the model was trained for: memory grows with more than their square."""
BATCH = 8
"""Pictures drawn at once, as `studiolo generate` does it: the last bits of a picture depend on it."""


@dataclass(frozen=True)
class Picture:
    """A picture as a PNG file, which tells how it was made.

    `prompt` is what was drawn, the identifier in place; `notes` what the user should know, such as words that
    the model did not read. Sizes are in pixels.
    """

    png: bytes
    seed: int
    prompt: str
    width: int
    height: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Order:
    """What to draw: each prompt with its seed, and how."""

    requests: Sequence[tuple[str, int]]
    negative: str = ""
    width: int | None = None
    height: int | None = None
    steps: int = 30
    guidance: float = 5.0
    sampler: str = "ddim"
    more: Mapping[str, Any] = field(default_factory=dict)
    """Other fields of `diffusion.sampler_settings.SamplerSettings`."""
    init: bytes | None = None
    """A picture file to begin from; this and the next ones as `drawing.given.give` takes them."""
    mask: bytes | None = None
    strength: float | None = None
    keep: bool = True
    alpha: bool = False


class Artist:
    """Draws with the base model and the subjects of the registry, on one device.

    Args:
        device: as torch names it; None: a GPU where there is one.
        memory: what loaded models may take together, in bytes; None: without limit. The one at work stays.
        sharing: who else uses the GPU; by default nobody.
    """

    def __init__(
        self, *, device: str | None = None, memory: int | None = None, sharing: Sharing | None = None
    ) -> None:
        self.device, self.memory, self._sharing = device, memory, sharing or Sharing()
        self._sharing.make_way = self._make_way
        self._turns = Turns()
        self._models: dict[str, tuple[int, ImageModel]] = {}  # the least recently used first

    @property
    def loaded(self) -> list[str]:
        """Names of the models that are loaded, the least recently used first."""
        return list(self._models)

    @property
    def waiting(self) -> int:
        """How many drawings wait for their turn."""
        return self._turns.waiting

    async def draw(
        self,
        model: str,
        prompt: str,
        *,
        n: int = 1,
        seed: int | None = None,
        width: int | None = None,
        height: int | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        negative: str | None = None,
        sampler: str | None = None,
        more: Mapping[str, Any] | None = None,
        init: bytes | None = None,
        mask: bytes | None = None,
        strength: float | None = None,
        keep: bool | None = None,
        alpha: bool | None = None,
        interactive: bool = True,
        progress: Progress | None = None,
        sketches: int = 0,
        on_sketch: Sketch | None = None,
    ) -> list[Picture]:
        """Draws `n` pictures of a prompt, from the seeds seed, seed + 1, ... (by default random ones).

        What is left open is as `studiolo generate` has it, and so are the bytes. Cancelled, it ends after
        the denoising step at work.

        Args:
            more: other fields of `diffusion.sampler_settings.SamplerSettings`.
            init, mask, strength, keep, alpha: what to begin from, as `drawing.given.give` takes it, as files'
                bytes.
            sketches: of each picture on its way, at even distances, as far as it has steps for them; they go
                to `on_sketch`.

        Raises:
            NoSuchModelError: there is no such model to draw with.
            OverloadedError: a training on the GPU leaves no room for this now. Where nobody waits in front of
                it (not `interactive`), it is drawn when the training is over.
            TooLargeError: the GPU has not enough memory for it.
            StudioloError: a value out of range, or [V] with a model that was taught no subject.
        """
        if not 1 <= n <= MOST:
            raise InvalidRequestError(f"{n} pictures", where="n", remedy=f"Ask for 1 to {MOST}.")
        first = secrets.randbelow(2**32 - n) if seed is None else seed
        given = {"width": width, "height": height, "steps": steps, "guidance": guidance,
                 "negative": negative, "sampler": sampler, "more": more, "init": init, "mask": mask,
                 "strength": strength, "keep": keep, "alpha": alpha}  # fmt: skip
        order = Order(
            [(prompt, first + i) for i in range(n)],
            **{name: value for name, value in given.items() if value is not None},  # type: ignore[arg-type]
        )
        priority = FIRST if interactive else BULK
        return await self._carry_out(
            model, order, priority, progress, sketches if on_sketch else 0, on_sketch
        )

    async def _carry_out(
        self,
        model: str,
        order: Order,
        priority: int,
        progress: Progress | None,
        sketches: int,
        on_sketch: Sketch | None,
    ) -> list[Picture]:
        """Draws all of an order in one turn; raises as `draw` does."""
        loop, stop = asyncio.get_running_loop(), threading.Event()
        batches, done = -(-len(order.requests) // BATCH), 0

        def on_step(drawer: ImageModel, step: Step) -> None:
            nonlocal done
            if stop.is_set():
                raise _Stopped
            done += 1
            total = step.total * batches
            if progress is not None:
                loop.call_soon_threadsafe(progress, min(done, total), total)
            if on_sketch is not None and (number := _sketch_at(step, sketches)) is not None:
                for picture, png in zip(step.pictures, _sketched(drawer, step), strict=True):
                    loop.call_soon_threadsafe(on_sketch, picture, number, png)

        while True:
            if priority > FIRST:
                await self._sharing.over()
            async with self._turns.turn(priority):
                if priority > FIRST and self._sharing.busy:
                    continue
                return await _in_thread(lambda: self._fitted(model, order, on_step), stop)

    async def _make_way(self) -> None:
        """Takes all models off the GPU, when what is being drawn is done."""
        async with self._turns.turn(FIRST):
            if self._models and await asyncio.to_thread(lambda: self._sharing.gpu) is not None:
                await asyncio.to_thread(self._unload)

    async def forget(self, model: str) -> None:
        """Unloads a model, if it is loaded."""
        async with self._turns.turn(FIRST):
            self._models.pop(model, None)
            gc.collect()

    def _fitted(self, name: str, order: Order, on_step: OnStep) -> list[Picture]:
        """The pictures of an order; if they do not fit beside other models that are loaded, without those."""
        import torch

        while True:
            others = [loaded for loaded in self._models if loaded != name]
            with self._sharing.drawing(), suppress(torch.OutOfMemoryError):
                return self._draw(self._model(name), order, on_step)
            self._unload()
            if not others:
                raise self._sharing.too_much()

    def _unload(self) -> None:
        self._models.clear()
        gc.collect()
        self._sharing.give_back()

    def _draw(self, model: ImageModel, order: Order, on_step: OnStep) -> list[Picture]:
        from studiolo.diffusion.sampler_settings import SamplerSettings
        from studiolo.drawing.given import give

        _check_size(model, order)
        requests = [model.request(prompt, seed, order.negative) for prompt, seed in order.requests]
        settings = SamplerSettings(order.sampler, order.steps, order.guidance, **order.more)
        given = give(order.init, order.mask, order.strength, order.keep, order.alpha)
        if given is not None and (order.width is None or order.height is None):
            _check_shape(model, given)
        notes = tuple(model.notes(requests))
        drawn = model.draw(
            requests,
            settings,
            width=order.width,
            height=order.height,
            batch_size=BATCH,
            given=given,
            on_step=lambda step: on_step(model, step),
        )
        return [
            Picture(
                picture.png(),
                picture.record.request.seed,
                picture.record.request.prompt,
                picture.record.width,
                picture.record.height,
                notes,
            )
            for picture in drawn
        ]

    def _model(self, name: str) -> ImageModel:
        """The model of that name, loaded if it is not, or was taught anew."""
        from studiolo.drawing.model import ImageModel

        written = _written(name)
        known = self._models.pop(name, None)
        if known is None or known[0] != written:
            known = (written, ImageModel.load(name, self.device))
        self._models[name] = known
        self._make_room()
        return known[1]

    def _make_room(self) -> None:
        """Unloads the least recently used, but never the last."""
        while self.memory is not None and len(self._models) > 1:
            if sum(size_of(model) for _, model in self._models.values()) <= self.memory:
                return
            del self._models[next(iter(self._models))]
            gc.collect()


def size_of(model: ImageModel) -> int:
    """Bytes of its weights."""
    parts = tuple(model.components.modules.values())
    return sum(p.numel() * p.element_size() for part in parts for p in part.parameters())


def _check_size(model: ImageModel, order: Order) -> None:
    own = model.components.image_size
    for name, side in (("width", order.width), ("height", order.height)):
        try:
            model.components.latent_shape(side)
        except StudioloError as error:
            message = error.message.replace("height", name)
            raise InvalidRequestError(message, where=name, remedy=error.remedy) from None
        if side is not None and side > LARGEST * own:
            raise InvalidRequestError(
                f"{side} pixels, and this model draws {own} best",
                where=name,
                remedy=f"Use {LARGEST * own} at most.",
            )


def _check_shape(model: ImageModel, given: Given) -> None:
    """Refuses pictures so long and narrow that they would be drawn larger than any may be."""
    width, height = given.size_for(model.components)
    if max(width, height) > LARGEST * model.components.image_size:
        raise InvalidRequestError(
            f"a picture of {given.image.width}x{given.image.height} pixels is too narrow for this model",
            where="init",
            remedy="Cut it to a shape nearer to a square.",
        )


def _sketch_at(step: Step, sketches: int) -> int | None:
    """Which sketch is due at this step."""
    marks = [step.total * (i + 1) // (sketches + 1) for i in range(sketches)]
    return marks.index(step.number) if step.number in marks and step.number < step.total else None


def _sketched(model: ImageModel, step: Step) -> list[bytes]:
    """What the pictures will look like, as far as the model can tell at this step, as PNG files."""
    from PIL import Image

    from studiolo.diffusion.autoencoding import decode_latents

    files = []
    for pixels in decode_latents(model.components, step.clean):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, format="PNG")
        files.append(file.getvalue())
    return files


class _Stopped(Exception):  # noqa: N818 (no error: nobody waits for the pictures any more)
    pass


def _written(name: str) -> int:
    """When the model of that name was written; only names of the registry are taken, no paths, no hub ids."""
    known = {ref.name: ref for ref in registry.list_models()}
    if name not in known:
        raise registry.NoSuchModelError(
            "no model of this name draws", where=name, remedy=f"There are: {', '.join(known)}."
        )
    try:
        return known[name].marker.stat().st_mtime_ns
    except OSError:
        return 0  # its folder is gone: loading it tells so


async def _in_thread(work: Callable[[], T], stop: threading.Event) -> T:
    """The result of `work` in a thread; cancelled, it sets `stop` and waits until the thread has ended."""
    task = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        stop.set()
        while not task.done():
            await asyncio.wait([task])
        task.exception()
        raise
