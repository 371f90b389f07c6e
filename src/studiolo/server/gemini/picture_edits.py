"""Pictures that predict begins from: what reference images and modes of editing ask of the artist."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from studiolo.language.errors import InvalidRequestError, UnsupportedError

Wire = dict[str, Any]

_WHERE = "instances[0].reference_images"
_PAINTING = ("EDIT_MODE_DEFAULT", "EDIT_MODE_INPAINT_INSERTION", "EDIT_MODE_OUTPAINT", "EDIT_MODE_BGSWAP")
_RAW, _MASK = "REFERENCE_TYPE_RAW", "REFERENCE_TYPE_MASK"


def edit_of(instance: Mapping[str, Any], parameters: Mapping[str, Any]) -> Wire:
    """The arguments of `Artist.draw` that say what to begin from; none where no picture is sent.

    Raises:
        InvalidRequestError: not one picture, with one mask at most.
        UnsupportedError: another mode than painting anew what the picture, or its mask, says.
    """
    references = instance.get("referenceImages", [])
    if not references:
        for name in ("editMode", "editConfig", "strength"):
            if name in parameters:
                raise InvalidRequestError(
                    "there is no picture to edit", where="parameters", remedy="Send reference images."
                )
        return {}
    if (mode := parameters.get("editMode", _PAINTING[0])) not in _PAINTING:
        raise UnsupportedError(
            f"{mode} is not done here", where="parameters.edit_mode", remedy=f"Use {', '.join(_PAINTING)}."
        )
    files = {kind: _file_of(references, kind) for kind in (_RAW, _MASK)}
    if files[_RAW] is None:
        raise InvalidRequestError("no picture to edit", where=_WHERE, remedy=f"Send one of type {_RAW}.")
    order: Wire = {"init": files[_RAW], "strength": parameters.get("strength")}
    if files[_MASK] is not None:
        order["mask"] = files[_MASK]
        order["strength"] = parameters.get("strength", 1.0)
    if steps := parameters.get("editConfig", {}).get("baseSteps"):
        order["steps"] = steps
    return order


def _file_of(references: list[Wire], kind: str) -> bytes | None:
    """The bytes of the one reference of that type."""
    found = [(i, one) for i, one in enumerate(references) if one.get("referenceType") == kind]
    for i, one in enumerate(references):
        if one.get("referenceType") not in (_RAW, _MASK):
            raise UnsupportedError(
                "pictures guide no drawing here",
                where=f"{_WHERE}[{i}].reference_type",
                remedy=f"Use {_RAW} and {_MASK}; teach a subject from pictures of it.",
            )
    if not found:
        return None
    if len(found) > 1:
        raise UnsupportedError(f"{len(found)} references of type {kind}", where=_WHERE, remedy="Send one.")
    ((i, one),) = found
    mode = one.get("maskImageConfig", {}).get("maskMode", "MASK_MODE_USER_PROVIDED")
    if mode not in ("MASK_MODE_DEFAULT", "MASK_MODE_USER_PROVIDED"):
        raise UnsupportedError(
            "nothing is recognized in pictures here",
            where=f"{_WHERE}[{i}].mask_image_config.mask_mode",
            remedy="Send a mask, and say MASK_MODE_USER_PROVIDED.",
        )
    data = one.get("referenceImage", {}).get("bytesBase64Encoded")
    if not data:
        raise InvalidRequestError("a reference without a picture", where=f"{_WHERE}[{i}].reference_image")
    return bytes(data)
