"""The base model's card: what it is, what it learned from, and what it can do as the eye sees it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from studiolo.base.sprites import PACKAGES
from studiolo.base.vocabulary import BACKGROUNDS, HELD_OUT, NOUNS, STYLES

_CLAIM = 0.5
"""A noun is claimed when the eye has it among five guesses in at least this share of its pictures."""

_TEMPLATE = Path(__file__).with_name("card_template.md")


def card(scores: dict[str, Any], training: str) -> str:
    """The card as Markdown, from `score_base`'s scores and a paragraph on the training run."""
    by_noun: dict[str, float] = scores["by_noun"]
    claimed = [noun for noun in NOUNS if by_noun.get(noun, 0) >= _CLAIM]
    packages = [f"- `{p.name}` {p.version}, {p.licence}: {p.credit}" for p in PACKAGES]
    return _TEMPLATE.read_text(encoding="utf-8").format(
        nouns=len(NOUNS),
        styles=len(STYLES),
        backgrounds=len(BACKGROUNDS),
        packages="\n".join(packages),
        held_out=", ".join(f"{noun} ({style})" for noun, style in sorted(HELD_OUT)),
        training=training,
        each=scores["pictures"] // len(NOUNS),
        scores=_score_table(scores, claimed),
        claimed=", ".join(claimed) or "none",
        unclaimed=", ".join(noun for noun in NOUNS if noun not in claimed) or "none",
        **{key: scores[key] for key in ("pictures", "guidance_scale", "steps", "sampler")},
    )


def _score_table(scores: dict[str, Any], claimed: list[str]) -> str:
    real: dict[str, float] = scores["real_scenes"]
    rows = ["| | generated | real scenes |", "|---|---|---|"]
    for key, name in (
        ("noun_top1", "noun, first guess"),
        ("noun_top5", "noun, among five guesses"),
        ("background", "background"),
        ("style", "style"),
    ):
        rows.append(f"| {name} | {scores[key]:.1%} | {real[key]:.1%} |")
    if claimed:
        among = sum(scores["by_noun"][noun] for noun in claimed) / len(claimed)
        rows.append(f"| noun, among five guesses, the {len(claimed)} claimed nouns | {among:.1%} | |")
    return "\n".join(rows)
