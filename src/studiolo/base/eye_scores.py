"""How far the eye can be trusted: its accuracy on scenes it never saw, and on sprites it never saw."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from studiolo.base.dataset import SceneSet
from studiolo.base.scenes import Composer
from studiolo.base.sprites import SpriteBank
from studiolo.base.vocabulary import BACKGROUNDS, HELD_OUT
from studiolo.evaluation.eye import Eye

VIEWS = 16
"""Scenes composed of each held-out sprite."""


def eye_scores(eye: Eye, scenes: SceneSet, bank: SpriteBank) -> dict[str, Any]:
    """Accuracies on `scenes`, and how the embedding tells held-out sprites of `bank` from others."""
    return {"scenes": scene_accuracy(eye, scenes), "held_out_subjects": identity_scores(eye, bank)}


def scene_accuracy(eye: Eye, scenes: SceneSet) -> dict[str, float]:
    """Top-1 and top-5 of the noun, top-1 of background and style, over scenes of one thing; and for pairs
    the share of things that are among the two most probable nouns."""
    verdict = eye.classify([Image.fromarray(image) for image in scenes.images])
    single = torch.tensor([truth["kind"] == "one" for truth in scenes.truths])
    noun = torch.tensor([eye.nouns.index(truth["nouns"][0]) for truth in scenes.truths])
    background = torch.tensor([eye.backgrounds.index(truth["background"]) for truth in scenes.truths])
    style = torch.tensor([eye.styles.index(truth["style"]) for truth in scenes.truths])
    best = verdict.noun.topk(5).indices
    both = [
        len({eye.nouns[i] for i in row[:2].tolist()} & set(truth["nouns"])) / len(set(truth["nouns"]))
        for row, truth in zip(best, scenes.truths, strict=True)
        if truth["kind"] != "one"
    ]
    return {
        "scenes": len(scenes),
        "noun_top1": _share(best[single, 0] == noun[single]),
        "noun_top5": _share((best[single] == noun[single, None]).any(1)),
        "pairs_top2": round(float(np.mean(both)), 4),
        "background": _share(verdict.background.argmax(1) == background),
        "style": _share(verdict.style.argmax(1)[single] == style[single]),
    }


def _share(hits: Tensor) -> float:
    return round(float(hits.float().mean()), 4)


def identity_scores(eye: Eye, bank: SpriteBank) -> dict[str, float]:
    """Of held-out sprites in scenes of their own: similarity to the same sprite in other scenes, to other
    drawings of the same noun, and to other nouns; and how well the first is told from the other two (area
    under the ROC). How often the eye sees their noun is what noun accuracies of these subjects can reach."""
    composer = Composer(bank, 0)
    subjects = sorted(HELD_OUT & set(bank.sprites))
    others = sorted(set(bank.sprites) - set(subjects))
    related = [key for key in others if key[0] in {noun for noun, _ in subjects}]
    keys = subjects + related + others[:: max(1, len(others) // 60)]
    embeddings = {key: eye.embed(_views(composer, key)) for key in dict.fromkeys(keys)}
    nouns = torch.tensor([eye.nouns.index(noun) for noun, _ in subjects]).repeat_interleave(VIEWS)
    best = torch.cat([eye.classify(_views(composer, key)).noun.topk(5).indices for key in subjects])
    same: list[Tensor] = []
    noun: list[Tensor] = []
    other: list[Tensor] = []
    for subject in subjects:
        own = embeddings[subject] @ embeddings[subject].T
        same.append(own[~torch.eye(VIEWS, dtype=torch.bool)])
        for key, views in embeddings.items():
            if key != subject:
                (noun if key[0] == subject[0] else other).append((embeddings[subject] @ views.T).flatten())
    same_, noun_, other_ = torch.cat(same), torch.cat(noun), torch.cat(other)
    return {
        "noun_top1": _share(best[:, 0] == nouns),
        "noun_top5": _share((best == nouns[:, None]).any(1)),
        "same_sprite": round(float(same_.mean()), 4),
        "same_noun": round(float(noun_.mean()), 4),
        "other_noun": round(float(other_.mean()), 4),
        "auc_against_same_noun": roc_auc(same_, noun_),
        "auc_against_other_noun": roc_auc(same_, other_),
    }


def _views(composer: Composer, key: tuple[str, str]) -> list[Image.Image]:
    names = list(BACKGROUNDS)
    scenes = (
        composer.compose(np.random.default_rng((99, i)), *key, names[5 * i % len(names)])
        for i in range(VIEWS)
    )
    return [Image.fromarray(scene.image) for scene in scenes]


def roc_auc(positive: Tensor, negative: Tensor) -> float:
    """Chance that a positive is above a negative, ties counted half (Mann-Whitney U)."""
    order = negative.sort().values
    below = torch.searchsorted(order, positive, right=False).double()
    up_to = torch.searchsorted(order, positive, right=True).double()
    return round(float(((below + up_to) / 2).mean() / len(negative)), 4)
