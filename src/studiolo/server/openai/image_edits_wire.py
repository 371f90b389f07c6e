"""The requests of images/edits and images/variations, field by field.

https://platform.openai.com/docs/api-reference/images/createEdit; extensions are sent in `extra_body`. In
forms the pictures themselves are files, beside these fields.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from studiolo.language.errors import InvalidRequestError, UnsupportedError
from studiolo.models.registry import BASE_NAME
from studiolo.server.openai.images_wire import NOT_KEPT, PictureFields, wishes
from studiolo.server.openai.wire import Wire, emulated, extension, ignored, refused

JSON = dict[str, Any]
FAITHFUL = 0.4
"""The strength that stands for `"input_fidelity": "high"`."""

Strength = Annotated[
    float | None,
    Field(gt=0, le=1),
    extension("how much of the picture to give up: 0.6 if not given, 1 where a mask says what to paint"),
]


class Reference(Wire):
    """A picture in a JSON body: one of the two."""

    image_url: Annotated[str | None, emulated("URLs of data; nothing is fetched from the web")] = None
    file_id: str | None = None


class EditRequest(PictureFields):
    events: ClassVar[str] = "image_edit"

    images: Annotated[list[Reference] | None, Field(max_length=16)] = None
    mask: Reference | None = None
    markup: Annotated[Any, refused("nothing is read from what is drawn over a picture")] = None
    input_fidelity: Annotated[
        Literal["high", "low"] | None,
        emulated(f"high: a strength of {FAITHFUL}, where no mask is sent and no strength"),
    ] = None

    strength: Strength = None
    keep: Annotated[
        bool | None, extension("outside the mask the pixels stay as they are; false: all are drawn again")
    ] = None


class VariationRequest(Wire):
    model: Annotated[str, Field(min_length=1)] | None = None
    n: Annotated[int, Field(ge=1, le=10)] | None = None
    size: str | None = None
    response_format: Literal["b64_json", "url"] | None = None
    user: Annotated[str | None, ignored(NOT_KEPT)] = None

    seed: Annotated[
        int | None, Field(ge=0, lt=2**32), extension("of the first picture; the next have seed + 1, ...")
    ] = None
    steps: Annotated[int | None, Field(ge=1, le=500), extension("denoising steps")] = None
    guidance_scale: Annotated[
        float | None, Field(ge=0, le=50), extension("how strongly to guide; 1: not at all")
    ] = None
    sampler: Annotated[str | None, extension("as `studiolo generate --sampler`")] = None
    strength: Strength = None

    @property
    def named(self) -> str:
        """The model that draws."""
        return self.model or BASE_NAME

    def with_prompt(self, prompt: str) -> EditRequest:
        """The same as an edit; the prompt may be empty."""
        return EditRequest.model_construct(prompt=prompt, **dict(self))


def edit_wishes(request: EditRequest, image: bytes, mask: bytes | None, *, alpha: bool = True) -> JSON:
    """What the artist is asked for beside the prompt; `alpha`: what is transparent is painted.

    Raises:
        InvalidRequestError: no size, or fields that contradict each other.
    """
    strength = request.strength
    if strength is None and request.input_fidelity == "high" and mask is None:
        strength = FAITHFUL
    given = {"init": image, "mask": mask, "strength": strength, "keep": request.keep, "alpha": alpha}
    return wishes(request) | given


def the_one(images: int, *, where: str) -> None:
    """Refuses none and several pictures.

    Raises:
        InvalidRequestError: none.
        UnsupportedError: several.
    """
    if images == 0:
        raise InvalidRequestError("missing: a picture is required", where=where)
    if images > 1:
        raise UnsupportedError(
            f"{images} pictures: they are edited one at a time here, and not composed",
            where=where,
            remedy="Send one; a subject that the prompt can name is taught by /fine_tuning/jobs.",
        )
