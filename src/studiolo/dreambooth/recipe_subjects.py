"""The recipe's `subjects`: several in one run, each with its own images, class and word."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from studiolo.dreambooth.recipe_group import Group, Many


class SubjectSettings(Group):
    """One of several subjects of a run. In prompts for drawing and in captions, [NAME] stands for it."""

    name: str = Field(
        pattern=r"^V$|^[a-z0-9][a-z0-9-]{0,31}$", description="What it is called in prompts: [rex] for rex."
    )
    images: Many[str] = Field(min_length=1, description="Image files or folders of the subject.")
    class_noun: str = Field(description="What it is, as the base says it: fox, backpack.")
    identifier: str | None = Field(
        None,
        description="The token that stands for it. null: a rare one is found, different from the others'.",
    )
    captions: Literal["sidecar", "filename"] | None = Field(
        None, description="Own prompts of images, with [V]: sidecar reads NAME.txt, filename takes the name."
    )
    masks: str | None = Field(None, description="Folder of masks named as the images; white counts.")
