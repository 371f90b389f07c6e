"""Class images: what the base model draws for the class alone, made while training already runs.

A picture is a function of the base, the prompt, the sampler's settings, the seed and the batch it is made
in; the cache is a folder named by the hash of all that, so pictures are reused exactly when they would
come out the same. The training consumes them in the order in which they are made and waits when one is
missing: its result does not depend on who was faster.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from PIL import Image

from studiolo.diffusion.components import Components
from studiolo.diffusion.sampling import SamplerSettings, generate
from studiolo.dreambooth.examples import Draw, ExampleSet, LatentEncoder, visits
from studiolo.dreambooth.recipe_prior import ClassImages
from studiolo.errors import StudioloError
from studiolo.store.files import atomic_path, sha256_json
from studiolo.training.halves import HALVES, halve

_POLL = 0.2  # seconds between looks at the folder, for pictures that another process makes


class _Stopped(Exception):  # noqa: N818 (no error)
    """Ends a batch half-way when nobody needs it any more."""


@dataclass(frozen=True)
class ClassImageSet:
    """The class images of a recipe on a base model, as files `000000.png`, `000001.png`, ... in `folder`.

    Args:
        settings: how they are made.
        prompts: image i is made from prompt i modulo their number.
        fingerprint: of the base model that draws them.
        size: side of the square pictures in pixels.
        root: the folder in which each set has its own, named by content.
    """

    settings: ClassImages
    prompts: Sequence[str]
    fingerprint: str
    size: int
    root: Path

    @cached_property
    def identity(self) -> dict[str, object]:
        """Everything a picture depends on. `count` is left out: more pictures extend a set."""
        # Without a precision they are what they were before there was one.
        plain = {"precision"} if self.settings.precision == "32-true" else set()
        made = self.settings.model_dump(exclude={"count"} | plain)
        return {"base": self.fingerprint, "size": self.size, "prompts": list(self.prompts), **made}

    @cached_property
    def folder(self) -> Path:
        return self.root / sha256_json(self.identity)

    @property
    def count(self) -> int:
        return self.settings.count

    @property
    def batches(self) -> range:
        """Numbers of the batches that hold the `count` pictures; the last may hold more."""
        return range(-(-self.count // self.settings.batch_size))

    def path(self, index: int) -> Path:
        return self.folder / f"{index:06d}.png"

    def members(self, batch: int) -> range:
        """The pictures of a batch: always all of it, since a picture depends on its batch by float error."""
        size = self.settings.batch_size
        return range(batch * size, (batch + 1) * size)

    def missing(self) -> list[int]:
        """Numbers of the batches of which a picture is not there."""
        return [b for b in self.batches if not all(self.path(i).exists() for i in self.members(b))]

    def ready(self) -> int:
        """How many of the `count` pictures are there."""
        return sum(self.path(i).exists() for i in range(self.count))

    def artist(self, base: Components, sharing: Iterable[torch.nn.Parameter]) -> Components:
        """What draws them: a copy of the base that computes in their precision and has `sharing` in common
        with it, but for what is held in half precision."""
        copy = base.copy(sharing)
        if half := HALVES.get(self.settings.precision):
            halve(copy.denoiser, half, frozen=False)
        return copy

    def make_batch(
        self, components: Components, batch: int, on_step: Callable[..., None] | None = None
    ) -> None:
        """Draws one batch with an `artist` and writes its pictures, each whole or not at all."""
        chosen = self.settings
        members = self.members(batch)
        settings = SamplerSettings(
            sampler=chosen.sampler, steps=chosen.steps, guidance_scale=chosen.guidance_scale, eta=chosen.eta
        )
        pictures = generate(
            components,
            [self.prompts[i % len(self.prompts)] for i in members],
            [chosen.seed + i for i in members],
            settings,
            negative_prompts=[chosen.negative_prompt] * len(members),
            height=self.size,
            width=self.size,
            batch_size=len(members),
            on_step=on_step,
        )
        self._describe()
        for index, picture in zip(members, pictures, strict=True):
            with atomic_path(self.path(index)) as temporary:
                picture.save(temporary)

    def _describe(self) -> None:
        """Leaves beside the pictures what they are, for people who find the folder."""
        file = self.folder / "made-by.json"
        if not file.exists():
            with atomic_path(file) as temporary:
                temporary.write_text(json.dumps(self.identity, indent=2) + "\n", encoding="utf-8")


class ClassImageMaker:
    """Makes the missing class images in a thread of its own, in order, on a copy of the base model.

    Of W processes each makes every W-th batch; all read the same folder. A context manager: leaving it
    stops the thread within one denoising step.

    Args:
        components: the base as it is before training.
        sharing: parameters of it that the training will not write to.
        on_picture: called with the number of pictures that are there, whenever it has grown.
    """

    def __init__(
        self,
        images: ClassImageSet,
        components: Components,
        *,
        rank: int = 0,
        world: int = 1,
        sharing: Iterable[torch.nn.Parameter] = (),
        on_picture: Callable[[int], None] | None = None,
    ) -> None:
        self.images = images
        # By number, not by place among the missing: processes may look at different times.
        self._todo = [batch for batch in images.missing() if batch % world == rank]
        self._components = images.artist(components, sharing) if self._todo else None
        self.artist = self._components and self._components.copy(sharing=self._components.parameters)
        """A twin, with the same parameters, of what draws; None as soon as there is nothing to draw."""
        self._on_picture = on_picture or (lambda count: None)
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self._stop = False
        self._thread = threading.Thread(target=self._run, name="class-images", daemon=True)

    def __enter__(self) -> ClassImageMaker:
        self._on_picture(self.images.ready())
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop = True
        self._thread.join()

    @property
    def is_at_work(self) -> bool:
        """Whether this process still makes pictures."""
        return bool(self._todo) and self._thread.is_alive()

    def wait(self, index: int, cancelled: Callable[[], None] = lambda: None) -> Image.Image:
        """Class image `index`, RGB, as soon as it is there.

        `cancelled` is called while waiting and may raise. Raises StudioloError when making the images failed.
        """
        path = self.images.path(index)
        with self._changed:
            while not path.exists():
                if self._error is not None:
                    raise StudioloError(
                        f"making the class images failed: {self._error}", where=self.images.folder
                    ) from self._error
                cancelled()
                self._changed.wait(_POLL)
        with Image.open(path) as picture:
            return picture.convert("RGB")

    @torch.no_grad()
    def _run(self) -> None:
        try:
            for batch in self._todo:
                assert self._components is not None
                self.images.make_batch(self._components, batch, on_step=self._check_stop)
                with self._changed:
                    self._changed.notify_all()
                self._on_picture(self.images.ready())
        except _Stopped:
            pass
        except BaseException as error:  # raised again where the training waits
            with self._changed:
                self._error = error
                self._changed.notify_all()
        finally:
            self._components = self.artist = None

    def _check_stop(self, *progress: object) -> None:
        if self._stop:
            raise _Stopped


class ClassExamples:
    """Class images as training examples, encoded when first met.

    The first pass over them follows the order in which they are made, later passes an order of their own
    each.
    """

    def __init__(
        self, maker: ClassImageMaker, encoder: LatentEncoder, cancelled: Callable[[], None] = lambda: None
    ) -> None:
        self._maker, self._encoder, self._cancelled = maker, encoder, cancelled
        self._count = maker.images.count
        self._encoded: dict[int, ExampleSet] = {}

    def draw(self, seed: int, stream: str, counters: Sequence[int]) -> Draw:
        """As `ExampleSet.draw`: example k is a function of its counter alone."""
        index = self.order(seed, stream, counters)
        sets = [self._example(int(i)) for i in index]
        rows = torch.arange(len(sets))
        return ExampleSet.joined(sets).draw_at(rows, seed, stream, counters)._replace(image_index=index)

    def order(self, seed: int, stream: str, counters: Sequence[int]) -> torch.Tensor:
        """The class image that each counter meets, int64 [B]."""
        numbers = torch.tensor(list(counters))
        later = visits(self._count, seed, stream, counters)
        return torch.where(numbers < self._count, numbers, later)

    def _example(self, index: int) -> ExampleSet:
        if index not in self._encoded:
            self._encoded[index] = self._encoder.encode([self._maker.wait(index, self._cancelled)])
        return self._encoded[index]
