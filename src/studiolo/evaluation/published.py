"""The scores of the paper, computed as the paper says (Ruiz et al. 2023, sections 4.1 and 4.3).

DINO and CLIP-I are the mean cosine of every generated with every real picture, CLIP-T the mean cosine of a
picture with its prompt, PRES the DINO of class pictures with the real ones, DIV the mean LPIPS of pictures of
the same prompt; each averaged over prompts, then over subjects.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch
from PIL import Image

from studiolo.errors import StudioloError
from studiolo.evaluation import measures
from studiolo.evaluation.embedders import Embedder, load_embedder
from studiolo.evaluation.lpips import Lpips, load_lpips
from studiolo.evaluation.textimage import TextImage, load_text_image

TITLES = {
    "eye": "eye",
    "pres_eye": "PRES (eye)",
    "pres_clip": "PRES (CLIP-I)",
    "div_eye": "DIV (eye)",
    "div_dino": "DIV (DINO)",
    "div_clip": "DIV (CLIP-I)",
    "dino": "DINO",
    "clip": "CLIP-I",
    "clip_t": "CLIP-T",
    "pres": "PRES",
    "div": "DIV",
}
"""Of the columns of tables: those that stand in the paper last. `real_` before an embedder's name is the
likeness of real pictures."""
PAPERS = ("dino", "clip", "clip_t", "pres", "div")


@dataclass(frozen=True)
class Judges:
    """Who looks at the pictures.

    PRES is by DINO, if it is there, else by the first embedder under a name of its own; so is DIV where there
    is no LPIPS. Without CLIP there is no CLIP-T.
    """

    embedders: Mapping[str, Embedder]
    clip: TextImage | None = None
    lpips: Lpips | None = None

    def scores(
        self,
        real: Sequence[Image.Image],
        by_prompt: Mapping[str, Sequence[Image.Image]],
        of_class: Sequence[Image.Image],
    ) -> dict[str, float]:
        """The scores of one subject.

        Args:
            real: the photographs it was learned from.
            by_prompt: the pictures of each prompt; the prompts as CLIP is to read them.
            of_class: what the taught model draws for the class alone.
        """
        found: dict[str, float] = {}
        for name, embedder in self.embedders.items():
            training = embedder.embed(real)
            each = [measures.fidelity(embedder.embed(pictures), training) for pictures in by_prompt.values()]
            found[name] = fmean(each)
            if len(real) > 1:
                found[f"real_{name}"] = measures.mutual_similarity(training)
        if self.clip:
            found["clip_t"] = fmean(
                self.clip.agreement(pictures, [prompt] * len(pictures))
                for prompt, pictures in by_prompt.items()
            )
        name = "dino" if "dino" in self.embedders else next(iter(self.embedders))
        judge = self.embedders[name]
        pres, div = "pres" if name == "dino" else f"pres_{name}", "div" if self.lpips else f"div_{name}"
        found[pres] = measures.fidelity(judge.embed(of_class), judge.embed(real))
        found[div] = fmean(self._diversity(judge, pictures) for pictures in by_prompt.values())
        return {key: round(value, 4) for key, value in found.items() if not math.isnan(value)}

    def _diversity(self, embedder: Embedder, pictures: Sequence[Image.Image]) -> float:
        if len(pictures) < 2:
            return math.nan
        return self.lpips.diversity(pictures) if self.lpips else measures.diversity(embedder.embed(pictures))


def load_judges(
    names: Sequence[str] = ("eye",),
    weights: Mapping[str, str | Path] | None = None,
    device: str | torch.device = "cpu",
) -> Judges:
    """The embedders of these names (with clip, CLIP-T as well).

    Args:
        weights: folders of "dino" and "clip" (else they come from the hub), file or folder of "lpips".

    Raises:
        StudioloError: no embedder of that name, or its weights cannot be had.
    """
    given = dict(weights or {})
    if unknown := given.keys() - {*names, "lpips"}:
        raise StudioloError(
            f"nobody asked for {', '.join(sorted(unknown))}",
            where="weights",
            remedy="Name it as an embedder.",
        )
    clip = load_text_image(given.get("clip"), device) if "clip" in names else None
    embedders = {
        name: clip.pictures if clip and name == "clip" else load_embedder(name, given.get(name), device)
        for name in dict.fromkeys(names)
    }
    return Judges(embedders, clip, load_lpips(given["lpips"]) if "lpips" in given else None)


def mean_scores(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Each score averaged over subjects; those that some subject lacks are left out."""
    shared = [key for key in (found[0] if found else {}) if all(key in one for one in found)]
    return {key: round(fmean(one[key] for one in found), 4) for key in shared}
