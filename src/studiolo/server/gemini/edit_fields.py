"""Messages of predict by which Google's clients edit pictures (`models.edit_image`)."""

from __future__ import annotations

from studiolo.server.gemini.field import Field, ignored, refused

_TEACH = "pictures guide no drawing; teach a subject from them instead"

EDIT_ENUMS: dict[str, tuple[str, ...]] = {
    "EditMode": (
        "EDIT_MODE_DEFAULT", "EDIT_MODE_INPAINT_REMOVAL", "EDIT_MODE_INPAINT_INSERTION",
        "EDIT_MODE_OUTPAINT", "EDIT_MODE_CONTROLLED_EDITING", "EDIT_MODE_STYLE", "EDIT_MODE_BGSWAP",
        "EDIT_MODE_PRODUCT_IMAGE",
    ),
    "MaskReferenceMode": (
        "MASK_MODE_DEFAULT", "MASK_MODE_USER_PROVIDED", "MASK_MODE_BACKGROUND", "MASK_MODE_FOREGROUND",
        "MASK_MODE_SEMANTIC",
    ),
    "ReferenceType": (
        "REFERENCE_TYPE_RAW", "REFERENCE_TYPE_MASK", "REFERENCE_TYPE_CONTROL", "REFERENCE_TYPE_STYLE",
        "REFERENCE_TYPE_SUBJECT", "REFERENCE_TYPE_CONTENT",
    ),
}  # fmt: skip

EDIT_MESSAGES: dict[str, dict[str, Field]] = {
    "ReferenceImage": {
        "referenceType": Field("ReferenceType", "REFERENCE_TYPE_RAW once; REFERENCE_TYPE_MASK once at most"),
        "referenceId": ignored("integer", "a picture and its mask are told apart by their types"),
        "referenceImage": Field("ReferenceFile"),
        "maskImageConfig": Field("MaskImageConfig"),
        "controlImageConfig": refused(_TEACH),
        "styleImageConfig": refused(_TEACH),
        "subjectImageConfig": refused(_TEACH),
    },
    "ReferenceFile": {
        "bytesBase64Encoded": Field("bytes", "PNG, JPEG or WebP"),
        "mimeType": ignored("text", "the bytes tell it"),
        "gcsUri": refused("nothing is fetched from the web", "text"),
    },
    "MaskImageConfig": {
        "maskMode": Field("MaskReferenceMode", "MASK_MODE_USER_PROVIDED: white is what to paint"),
        "maskClasses": refused("nothing is recognized in pictures"),
        "dilation": refused("masks are taken as they are", "number"),
    },
    "EditConfig": {
        "baseSteps": Field("integer", "denoising steps, as `steps`", least=1, most=1000),
    },
}
