"""What a model was taught, as its card has it, and the images it was taught with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from studiolo.drawing.model import ImageModel
from studiolo.dreambooth.subject import load_subject
from studiolo.errors import StudioloError


@dataclass(frozen=True)
class Learned:
    """A subject as a model's card has it: its name there (V for the only one), class and word, where its
    images lie, and their hashes."""

    name: str
    class_noun: str
    identifier: str
    images: Sequence[str]
    hashes: frozenset[str]


def learned_subjects(model: ImageModel) -> list[Learned]:
    """All that the model was taught; none of a base. Of a merged model nobody says where its images lie."""
    card = model.ref.card
    recipe, images = card.get("recipe") or {}, card.get("data", {}).get("images", [])
    places = {one["name"]: one["images"] for one in recipe.get("subjects") or []}
    taught = [
        one for one in card.get("subjects") or [card] if one.get("class_noun") and one.get("identifier")
    ]
    if len(taught) == 1:
        (name, files), *_ = [*places.items(), ("V", recipe.get("images", []))]
        hashes = frozenset(image["sha256"] for image in images)
        return [Learned(name, taught[0]["class_noun"], taught[0]["identifier"], files, hashes)]
    return [
        Learned(
            one["name"],
            one["class_noun"],
            one["identifier"],
            places.get(one["name"], []),
            frozenset(image["sha256"] for image in images if image["file"].startswith(f"{one['name']}/")),
        )
        for one in taught
    ]


def find_subject(model: ImageModel, name: str | None = None) -> Learned:
    """The subject of that name, or the only one.

    Raises StudioloError when there is none, or when there are several and no name says which.
    """
    learned = learned_subjects(model)
    if not learned:
        raise StudioloError(
            "this model has learned no subject",
            where=model.ref.name,
            remedy="Name a taught model; `studiolo models list` shows them.",
        )
    found = [one for one in learned if name in (None, one.name)]
    if len(found) != 1:
        raise StudioloError(
            "which subject?" if name is None else f"no subject of this model is called {name!r}",
            where=model.ref.name,
            remedy=f"Name one of {', '.join(one.name for one in learned)}.",
        )
    return found[0]


def training_images(
    model: ImageModel,
    images: str | Path | Sequence[str | Path] | None = None,
    subject: str | None = None,
) -> list[Image.Image]:
    """The images that the model was taught (one `subject`) with, checked by their hashes; others that lie
    there are left out. Where the card holds no hashes, all that lie there are taken.

    Raises:
        StudioloError: they are not where the recipe says (or `images`), or they are others.
    """
    learned = find_subject(model, subject)
    size = (model.ref.card.get("recipe") or {}).get("resolution") or model.components.image_size
    remedy = "Say where the images lie now: --images DIR (images=DIR)."
    try:
        found = load_subject(images or learned.images, learned.class_noun, min_size=size)
    except StudioloError as error:
        raise StudioloError(
            f"the training images cannot be read: {error.message}", where=error.where, remedy=remedy
        ) from error
    missing = learned.hashes - {image.sha256 for image in found.images}
    if missing:
        raise StudioloError(
            f"{len(missing)} of the training images are not there, or have changed",
            where=model.ref.name,
            remedy=remedy,
        )
    known = learned.hashes or {image.sha256 for image in found.images}
    return [image.image for image in found.images if image.sha256 in known]
