"""Options that `ask`, `chat` and the like have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
