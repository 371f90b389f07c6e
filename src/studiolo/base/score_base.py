"""What the base model can draw, judged by the independent eye: every noun, on several backgrounds.

python -m studiolo.base.score_base --out DIR
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from studiolo.base.vocabulary import BACKGROUNDS, HELD_OUT, NOUNS, STYLES, article
from studiolo.diffusion.components import Components
from studiolo.diffusion.sampling import SamplerSettings, generate
from studiolo.drawing.sheet import contact_sheet
from studiolo.evaluation.eye import EYE_FOLDER, Eye, shipped_eye
from studiolo.evaluation.measures import accuracy
from studiolo.formats.opening import open_components
from studiolo.models.registry import BASE_NAME
from studiolo.store.files import atomic_path

_BATCH = 32


@dataclass(frozen=True)
class Wish:
    """One prompt and what must be seen for it; every other wish names a style."""

    noun: str
    background: str
    style: str | None

    @property
    def prompt(self) -> str:
        name = article(f"{self.style} style {self.noun}" if self.style else self.noun)
        return f"a photo of {name} {BACKGROUNDS[self.background][0]}"


def wishes(nouns: Sequence[str], each: int) -> list[Wish]:
    """`each` wishes of every noun; backgrounds and styles take turns, so that all come about as often."""
    backgrounds, found = list(BACKGROUNDS), []
    for i, noun in enumerate(nouns):
        styles = [style for style in STYLES if (noun, style) not in HELD_OUT]
        for j in range(each):
            background = backgrounds[(4 * i + 5 * j) % len(backgrounds)]
            found.append(Wish(noun, background, styles[(i + j) % len(styles)] if j % 2 else None))
    return found


def base_scores(eye: Eye, asked: Sequence[Wish], pictures: Sequence[Image.Image]) -> dict[str, Any]:
    """Shares of pictures in which the eye sees what was asked for; `by_noun` is of the top five."""
    verdict = eye.classify(pictures)
    nouns = [eye.nouns.index(wish.noun) for wish in asked]
    styled = [i for i, wish in enumerate(asked) if wish.style]
    of_noun = {wish.noun: [i for i, other in enumerate(asked) if other.noun == wish.noun] for wish in asked}
    scores = {
        "noun_top1": accuracy(verdict.noun, nouns),
        "noun_top5": accuracy(verdict.noun, nouns, 5),
        "background": accuracy(verdict.background, [eye.backgrounds.index(w.background) for w in asked]),
    }
    if styled:
        styles = [eye.styles.index(asked[i].style or "") for i in styled]
        scores["style"] = accuracy(verdict.style[styled], styles)
    by_noun = {
        noun: accuracy(verdict.noun[rows], [nouns[i] for i in rows], 5) for noun, rows in of_noun.items()
    }
    return {key: round(value, 4) for key, value in scores.items()} | {"by_noun": by_noun}


def score_base(
    components: Components,
    eye: Eye,
    settings: SamplerSettings,
    each: int = 4,
    seed: int = 0,
    nouns: Sequence[str] = tuple(NOUNS),
) -> tuple[dict[str, Any], Image.Image]:
    """The scores, and a sheet of the first picture of every noun: as they come, none chosen.

    Wish i is drawn from seed `seed` + i.
    """
    asked = wishes(nouns, each)
    prompts = [wish.prompt for wish in asked]
    pictures = generate(components, prompts, range(seed, seed + len(asked)), settings, batch_size=_BATCH)
    facts = {"pictures": len(pictures), "seed": seed, **settings.as_dict()}
    first = pictures[::each]
    sheet = contact_sheet(first, prompts[::each], columns=9, cell=128)
    return facts | base_scores(eye, asked, pictures), sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=BASE_NAME, help="a name or folder")
    parser.add_argument("--out", type=Path, required=True, help="where scores.json and grid.png go")
    parser.add_argument("--each", type=int, default=4, help="pictures of each noun")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance", type=float, default=5.0)
    chosen = parser.parse_args()
    components = open_components(chosen.model)
    settings = SamplerSettings(steps=chosen.steps, guidance_scale=chosen.guidance)
    scores, sheet = score_base(components, shipped_eye(), settings, chosen.each, chosen.seed)
    scores["real_scenes"] = json.loads((EYE_FOLDER / "scores.json").read_text(encoding="utf-8"))["scenes"]
    chosen.out.mkdir(parents=True, exist_ok=True)
    with atomic_path(chosen.out / "grid.png") as temporary:
        sheet.save(temporary, optimize=True)
    with atomic_path(chosen.out / "scores.json") as temporary:
        temporary.write_text(json.dumps(scores, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({key: value for key, value in scores.items() if key != "by_noun"}, indent=1))


if __name__ == "__main__":
    main()
