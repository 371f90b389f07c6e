"""Does a picture show what its prompt asks for? By the eye's backgrounds, or by CLIP-T of the paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from PIL import Image

from studiolo.evaluation import measures
from studiolo.evaluation.eye import Eye
from studiolo.evaluation.textimage import TextImage


@dataclass(frozen=True)
class Asked:
    """What a picture was asked to show: in words, without the identifier, and as the eye's background."""

    prompt: str
    background: str


class PromptJudge(Protocol):
    def agreement(self, images: Sequence[Image.Image], asked: Sequence[Asked]) -> float:
        """How well pictures fit what each was asked for; more is better."""
        ...


@dataclass(frozen=True)
class EyeJudge:
    """The share of pictures on the background that was asked for."""

    eye: Eye

    def agreement(self, images: Sequence[Image.Image], asked: Sequence[Asked]) -> float:
        numbers = [self.eye.backgrounds.index(one.background) for one in asked]
        return measures.accuracy(self.eye.classify(images).background, numbers)


@dataclass(frozen=True)
class ClipJudge:
    """CLIP-T: the mean cosine of each picture with its prompt (Ruiz et al. 2023, section 4.1)."""

    clip: TextImage

    def agreement(self, images: Sequence[Image.Image], asked: Sequence[Asked]) -> float:
        return self.clip.agreement(images, [one.prompt for one in asked])
