"""Options that several commands have in common: those that talk (`ask`, `chat`), those that teach."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from studiolo.errors import StudioloError

if TYPE_CHECKING:
    from studiolo.dreambooth.recipe import Recipe

Model = Annotated[str, typer.Option(help="A name; see `studiolo models list`.")]
System = Annotated[str | None, typer.Option(help="What the model is to be and to mind.")]
Tools = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Functions: a .py file, whose public functions are called, or a .json list of declarations, "
        "whose calls are printed.",
    ),
]
Think = Annotated[
    str | None, typer.Option(metavar="N", help="Think first: tokens, dynamic, low, medium, high, off.")
]
Thoughts = Annotated[
    str | None, typer.Option(metavar="HOW", help="What to show of the thinking: full, summary or hidden.")
]
MaxTokens = Annotated[int | None, typer.Option(min=1, help="Longest answer, thoughts included.")]
Temperature = Annotated[float | None, typer.Option(min=0, max=2, help="0: always the likeliest.")]
Context = Annotated[
    str | None, typer.Option(metavar="NAME", help="What goes before the turns; see `studiolo contexts`.")
]
Safety = Annotated[
    str | None,
    typer.Option(
        metavar="LEVEL", help="Withhold what is likely to do harm: from low, medium or high probability on."
    ),
]
Reuse = Annotated[
    float | None,
    typer.Option(
        min=0.01,
        max=1,
        metavar="COSINE",
        help="Answer as an earlier question of the same meaning was; try 0.9.",
    ),
]

Images = Annotated[
    list[Path] | None,
    typer.Argument(help="Images of the subject, or folders of them: 3 to 10 suffice.", show_default=False),
]
ClassNoun = Annotated[
    str | None, typer.Option("--class", metavar="NOUN", help="What the subject is: fox, backpack.")
]
Subjects = Annotated[
    list[str] | None,
    typer.Option(
        "--subject",
        metavar="NAME=NOUN:PATH",
        help="One of several subjects, in place of IMAGES and --class: rex=dog:photos/rex. Repeatable.",
    ),
]
Identifier = Annotated[
    str | None, typer.Option(metavar="TOKEN", help="The word for the subject; else a rare one is found.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="One setting: steps=200, class_images.count=32. Repeatable."
    ),
]


def chosen_recipe(
    file: Path | None,
    settings: list[str] | None,
    images: list[Path] | None = None,
    class_noun: str | None = None,
    base: str | None = None,
    subjects: list[str] | None = None,
    identifier: str | None = None,
) -> Recipe:
    """The recipe in `file` (else the default one), with what a command's options put above it.

    Raises StudioloError for a file that cannot be read, and for settings that no recipe has.
    """
    from studiolo.dreambooth.recipe import Recipe

    chosen = Recipe.of(file).with_settings(settings or [])
    given = {
        "images": [str(path.absolute()) for path in images or []],
        "class_noun": class_noun,
        "base": base,
        "subjects": [_subject(text) for text in subjects or []],
        "identifier": identifier,
    }
    return chosen.with_values({key: value for key, value in given.items() if value})


def _subject(text: str) -> dict[str, str]:
    """One of several subjects, of NAME=NOUN:PATH."""
    name, equals, rest = text.partition("=")
    noun, colon, path = rest.partition(":")
    if not (equals and colon and path):
        raise StudioloError(
            "a subject has the form NAME=NOUN:PATH", where=f"--subject {text}", remedy="rex=dog:photos/rex"
        )
    return {"name": name, "class_noun": noun, "images": path}
