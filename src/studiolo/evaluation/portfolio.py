"""The pictures that a model is judged by, and what the judges see in them."""

from __future__ import annotations

from dataclasses import dataclass, field

from PIL import Image


@dataclass(frozen=True)
class Portfolio:
    """Pictures of an exam: of the class, of unrelated things, and of the subject (none for a base model).

    Within a set the pictures go prompt by prompt, each prompt's in the order of the seeds.
    """

    class_pictures: list[Image.Image]
    unrelated_pictures: list[Image.Image]
    subject_pictures: list[Image.Image] = field(default_factory=list)
