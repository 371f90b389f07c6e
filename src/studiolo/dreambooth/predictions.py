"""The prior without pictures: what the base itself says on its ways from noise to the class.

DreamBooth's prior asks the model to draw the class as the base draws it (Ruiz et al. 2023, eq. 2), by
pictures that the base made. Here the base is asked directly: it walks from noise towards the class, a DDIM
step (Song et al. 2021, eq. 12 with sigma 0; Euler's for flows) from noise level to noise level, and what it
predicts on the way is what the taught model shall still predict there. It costs one call of the denoiser an
example, where a picture takes dozens, and no VAE; and the target is the base's prediction instead of a noise
that is right on average only (Hinton et al. 2015 call this distillation).

A prediction at x_t is kept as the clean latents x_0 and the noise eps that it means, x_t = alpha x_0 +
sigma eps: the objective's own target for this pair is the prediction, whatever the model predicts.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from studiolo.diffusion.components import Components
from studiolo.diffusion.conditioning import Conditioning, encode_negatives, encode_prompts
from studiolo.diffusion.noise import counter_integers, counter_noise
from studiolo.diffusion.objective import add_noise, clean_estimate
from studiolo.diffusion.predictor import Predictor
from studiolo.diffusion.text_keys import text_read_once
from studiolo.dreambooth.examples import Draw, visits
from studiolo.dreambooth.recipe_prior import ClassPredictions
from studiolo.store.files import atomic_path, sha256_json

_FORMAT = 2  # of the cache
_PLACES = 2**16  # within each part of the noise levels
_POLL = 0.2  # seconds between looks at the folder, for files that another process makes


@dataclass(frozen=True)
class PredictionSet:
    """The base's predictions of a recipe, a file a batch of walks in `folder`.

    Args:
        settings: how many walks of how many steps.
        prompts: walk i is under prompt i modulo their number.
        fingerprint: of the base.
        size: side of the square pictures that the walks lead to, in pixels.
        root: the folder in which each set has its own, named by content.
    """

    settings: ClassPredictions
    prompts: Sequence[str]
    fingerprint: str
    size: int
    root: Path

    @cached_property
    def identity(self) -> dict[str, object]:
        """Everything a prediction depends on. `count` is left out: more walks extend a set."""
        made = self.settings.model_dump(exclude={"count"})
        known = {"base": self.fingerprint, "size": self.size, "prompts": list(self.prompts)}
        return {"format": _FORMAT, **known, **made}

    @cached_property
    def folder(self) -> Path:
        return self.root / sha256_json(self.identity)

    @property
    def batches(self) -> range:
        """Numbers of the batches that hold the `count` walks; the last may hold more."""
        return range(-(-self.settings.count // self.settings.batch_size))

    def path(self, batch: int) -> Path:
        return self.folder / f"{batch:06d}.safetensors"

    def missing(self) -> list[int]:
        """Numbers of the batches that are not there."""
        return [batch for batch in self.batches if not self.path(batch).exists()]

    def make(
        self,
        components: Components,
        rank: int = 0,
        world: int = 1,
        on_batch: Callable[[int], None] = lambda done: None,
        cancelled: Callable[[], None] = lambda: None,
    ) -> None:
        """Makes what is missing, of W processes each every W-th batch, and returns when all is there.

        `on_batch` is told how many walks are there, `cancelled` is called at every step and may raise.
        """
        for batch in self.batches[rank::world]:
            if _read(self.path(batch)) is None:
                self.make_batch(components, batch, cancelled)
            on_batch(min((batch + 1) * self.settings.batch_size, self.settings.count))
        while self.missing():
            cancelled()
            time.sleep(_POLL)
        on_batch(self.settings.count)

    @torch.no_grad()
    def make_batch(
        self, components: Components, batch: int, cancelled: Callable[[], None] = lambda: None
    ) -> None:
        """Makes one batch and writes its file, whole or not at all."""
        chosen = self.settings
        walks = range(batch * chosen.batch_size, (batch + 1) * chosen.batch_size)
        prompts = [self.prompts[walk % len(self.prompts)] for walk in walks]
        shape = components.latent_shape(self.size, self.size)
        noise = counter_noise(shape, chosen.seed, "walk", walks)
        sizes = components.family.sizes(self.size, self.size)
        positive = encode_prompts(components, prompts).sized(sizes)
        negative = encode_negatives(components, [""] * len(prompts)).sized(sizes)
        levels = walk_levels(components.schedule.num_steps, chosen.steps, chosen.seed, batch)
        clean, eps = walk(
            components, noise, positive, negative, levels, chosen.guidance_scale, on_step=cancelled
        )
        self._describe()
        with atomic_path(self.path(batch)) as temporary:
            save_file({"clean": clean, "noise": eps, "levels": levels}, temporary)

    def load(self) -> PredictionExamples:
        """All of it, once it is made."""
        files = [load_file(self.path(batch)) for batch in self.batches]
        steps, count = self.settings.steps, self.settings.count
        # [walks, steps, C, h, w], the walks of all batches in order
        clean, noise = (torch.cat([file[name] for file in files])[:count] for name in ("clean", "noise"))
        levels = torch.cat([file["levels"].repeat(self.settings.batch_size, 1) for file in files])[:count]
        return PredictionExamples(
            clean.flatten(0, 1), noise.flatten(0, 1), levels.flatten(), steps, self.size
        )

    def _describe(self) -> None:
        """Leaves beside the predictions what they are, for people who find the folder."""
        file = self.folder / "made-by.json"
        if not file.exists():
            with atomic_path(file) as temporary:
                temporary.write_text(json.dumps(self.identity, indent=2) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class PredictionExamples:
    """N predictions as training examples: `clean` and `noise` float32 [N, C, h, w], `levels` int64 [N] in
    [0, T); those of one walk, `steps` of them, lie together. `size` is of the pictures, in pixels."""

    clean: torch.Tensor
    noise: torch.Tensor
    levels: torch.Tensor
    steps: int
    size: int

    def draw(self, seed: int, stream: str, counters: Sequence[int]) -> Draw:
        """Examples number `counters`, every N in a row each prediction once; `image_index` is the walk."""
        index = visits(len(self.clean), seed, stream, counters)
        return Draw(
            self.clean[index],
            index // self.steps,
            masks=None,
            sizes=torch.tensor([self.size, self.size, 0, 0, self.size, self.size]).expand(len(index), 6),
            noise=self.noise[index],
            timesteps=self.levels[index],
        )


def walk_levels(levels: int, steps: int, seed: int, batch: int) -> torch.Tensor:
    """The noise levels, int64 [steps] in [0, levels), falling, at which the walks of a batch are asked.

    One in each of `steps` equal parts of the range, all at the same place of their part, which differs from
    batch to batch: together the batches cover the range evenly.
    """
    place = counter_integers(_PLACES, seed, "levels", [batch]).item() / _PLACES
    parts = (torch.arange(steps, dtype=torch.float64) + place) * levels / steps
    return parts.long().clamp(max=levels - 1).flip(0)


@torch.no_grad()
def walk(
    components: Components,
    noise: torch.Tensor,
    positive: Conditioning,
    negative: Conditioning,
    levels: torch.Tensor,
    guidance_scale: float,
    on_step: Callable[[], None] = lambda: None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Walks from `noise` [B, C, h, w] down `levels` [S]; (clean, noise) float32 [B, S, C, h, w] that the
    denoiser predicts under `positive` alone at each.

    The step itself takes the guided prediction, if the scale is above 1: on its way are then the pictures
    that people see, not those that unguided sampling would draw.
    """
    schedule, device = components.schedule, components.device
    noisy = noise.to(device)
    found: list[tuple[torch.Tensor, torch.Tensor]] = []
    with_text, without_text = Predictor(components, positive), Predictor(components, negative)
    with text_read_once(components.denoiser):
        for place, level in enumerate(levels):
            on_step()
            at = level.expand(len(noisy)).to(device)
            said = _ask(components, noisy, at, with_text)
            found.append(_meaning(components, noisy, said, at))
            step = found[-1]
            if guidance_scale > 1:
                without = _ask(components, noisy, at, without_text)
                step = _meaning(components, noisy, without + guidance_scale * (said - without), at)
            if place + 1 < len(levels):
                noisy = add_noise(schedule, *step, levels[place + 1].expand(len(noisy)).to(device))
    clean, eps = (torch.stack(part, dim=1).float().cpu() for part in zip(*found, strict=True))
    return clean.contiguous(), eps.contiguous()


def _ask(components: Components, noisy: torch.Tensor, at: torch.Tensor, predictor: Predictor) -> torch.Tensor:
    times = components.schedule.times.to(at.device)[at]
    return predictor(noisy.to(components.dtype), times).float()


def _meaning(
    components: Components, noisy: torch.Tensor, prediction: torch.Tensor, at: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The clean latents and the noise that a prediction at `noisy` means."""
    clean = clean_estimate(components.schedule, noisy, prediction, at)
    alpha, sigma = components.schedule.alpha_sigma(at, noisy.ndim)
    return clean, (noisy - alpha * clean) / sigma


def _read(file: Path) -> dict[str, torch.Tensor] | None:
    """What a file holds, or None when it is absent or damaged (it is then written anew)."""
    try:
        return load_file(file)
    except (OSError, SafetensorError):
        return None
