"""The rare token that stands for the subject: found in the vocabulary, or added to it.

Ruiz et al. 2023, section 3.2: a word with a meaning has to be unlearned first, and random letters fall
apart into common tokens; so they take a rare token. Here rareness is read from the vocabulary (byte-pair
encoding merges common words first) and meaning is measured in the text encoder.

Where a model has several text encoders, a rare token is one in all those of CLIP, its meaning is the mean
over them, and an added token is added to each, T5's included.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import CLIPTokenizer

from studiolo.diffusion.components import Components
from studiolo.diffusion.vocabulary import add_word, row_of, rows_of, token_ids
from studiolo.errors import StudioloError

RAREST = 128  # candidates that are scored
COMMON = 128  # words they are compared with
STRONG = 0.8  # shift from which a token means something
_WORD_END = "</w>"
_BATCH = 64


@dataclass(frozen=True)
class Candidate:
    """A token and how much it means already.

    Attributes:
        token: as one writes it in a prompt.
        token_id: its row in the vocabulary (of the first text encoder).
        shift: how far it moves "a photo of a {noun}" in the text encoder: 0 not at all, 1 as a common
        word does. likeness: cosine to the most similar common word, in [-1, 1].
    """

    token: str
    token_id: int
    shift: float
    likeness: float

    @property
    def score(self) -> float:
        """Lower is better: less meaning of its own."""
        return self.shift + self.likeness


@dataclass(frozen=True)
class IdentifierChoice:
    """The identifier, whether it was added to the vocabulary, why it was taken, and what else there was.

    `token_ids` are its rows in the table of each text encoder, None for one that reads it in pieces (T5).
    """

    token: str
    token_ids: tuple[int | None, ...]
    added: bool
    reason: str
    alternatives: list[Candidate]

    @property
    def token_id(self) -> int:
        """Its row in the table of the first text encoder."""
        assert self.token_ids[0] is not None
        return self.token_ids[0]


def find_identifier(
    components: Components, class_noun: str, candidates: Sequence[str] | None = None
) -> IdentifierChoice:
    """The token that means least beside `class_noun`, among `candidates` or the rarest short ones.

    The choice depends on the model and the noun alone. `alternatives` holds all that were scored, the
    best first. Raises StudioloError when no candidate is a single token.
    """
    known = _known(components)
    if candidates is None:
        excluded = set(class_noun.lower().split())
        rare = [
            t for t in sorted(known, key=known.__getitem__, reverse=True) if re.fullmatch("[a-z]{2,4}", t)
        ]
        names = [t for t in rare if t not in excluded][:RAREST]
    else:
        names = [t for t in candidates if t in known]
    if not names:
        raise StudioloError(
            "the vocabulary has no rare short token"
            if candidates is None
            else "none of them is a single token",
            where="identifier",
            remedy="Give an identifier of your own, such as 'zwx'; it is added to the vocabulary.",
        )
    ranked = sorted(_measure(components, class_noun, names, known), key=lambda c: (c.score, -c.token_id))
    best = ranked[0]
    kind = "rare ones" if candidates is None else "given ones"
    reason = f"one token, and of {len(ranked)} {kind} it means least: {_meaning(best, class_noun)}"
    return IdentifierChoice(best.token, rows_of(components, best.token), False, reason, ranked)


def take_identifier(components: Components, text: str, class_noun: str) -> IdentifierChoice:
    """`text` as the identifier: as it is where it is one token of the vocabulary, else added (see
    `add_identifier`, which changes `components`).

    Raises StudioloError for what cannot stand in a prompt as one word, and for the class noun itself.
    """
    token = check_identifier(text, class_noun)
    if not _is_token(components, token):
        return add_identifier(components, token, class_noun)
    if token in components.tokenizer.get_added_vocab():
        return IdentifierChoice(token, rows_of(components, token), False, "added to this model before", [])
    measured = _measure(components, class_noun, [token], _known(components))[0]
    reason = f"one token; {_meaning(measured, class_noun)}"
    if measured.shift >= STRONG:
        reason += ": it has a meaning that has to be unlearned, a rarer one would serve better"
    return IdentifierChoice(token, rows_of(components, token), False, reason, [measured])


def add_identifier(components: Components, text: str, class_noun: str) -> IdentifierChoice:
    """Adds `text` to the vocabulary of `components`, in place, as one token of every text encoder.

    Its embedding is the mean of the class noun's: it starts by meaning the class.

    Raises StudioloError if it is one token already, or cannot stand in a prompt as one word.
    """
    token = check_identifier(text, class_noun)
    if _is_token(components, token):
        raise StudioloError(f"'{token}' is a token already", where="identifier", remedy="Use it as it is.")
    pieces = components.tokenizer.convert_ids_to_tokens(token_ids(components.tokenizer, token))
    for tokenizer, text_encoder in zip(components.tokenizers, components.text_encoders, strict=True):
        if row_of(tokenizer, token) is None:
            _add(tokenizer, text_encoder, token, class_noun)
    shown = " ".join(piece.replace(_WORD_END, "") for piece in pieces)
    reason = f"would be {len(pieces)} tokens ({shown}): added as one, which starts as '{class_noun}'"
    return IdentifierChoice(token, rows_of(components, token), True, reason, [])


def _add(tokenizer: Any, text_encoder: Any, token: str, class_noun: str) -> None:
    rows = text_encoder.get_input_embeddings().weight
    add_word(tokenizer, text_encoder, token, rows[token_ids(tokenizer, class_noun)].mean(dim=0))


def _meaning(candidate: Candidate, noun: str) -> str:
    return f"it moves 'a photo of a {noun}' {candidate.shift:.2f} times as far as a common word does"


def check_identifier(text: str, class_noun: str) -> str:
    """`text` as it stands in prompts, in lower case.

    Raises StudioloError unless it is one word of letters and digits that the class noun does not hold.
    """
    token = text.strip().lower()
    if not re.fullmatch(r"[a-z0-9]{1,32}", token):
        raise StudioloError(
            f"{text!r} cannot be an identifier",
            where="identifier",
            remedy="Use one word of letters and digits: zwx.",
        )
    if token in class_noun.lower().split():
        raise StudioloError(
            f"'{token}' is the class noun",
            where="identifier",
            remedy="Use a word without a meaning, so that the class keeps its own.",
        )
    return token


def _single_tokens(tokenizer: Any) -> dict[str, int]:
    """Words that are one token each -> id: those that end a word in the vocabulary, and added ones."""
    added = {text: index for text, index in tokenizer.get_added_vocab().items() if text.isalnum()}
    words = {t.removesuffix(_WORD_END): i for t, i in tokenizer.get_vocab().items() if t.endswith(_WORD_END)}
    plain = [word for word in words if re.fullmatch("[a-z]+", word)]
    # A token may be out of reach: the merges of a word can lead elsewhere.
    reached = tokenizer(plain, add_special_tokens=False).input_ids if plain else []
    return {
        word: words[word] for word, ids in zip(plain, reached, strict=True) if ids == [words[word]]
    } | added


def _known(components: Components) -> dict[str, int]:
    """Words that are one token in every text encoder of CLIP's -> id in the first."""
    found = [_single_tokens(tokenizer) for tokenizer, _ in _clip_towers(components)]
    return {word: index for word, index in found[0].items() if all(word in other for other in found[1:])}


def _clip_towers(components: Components) -> list[tuple[Any, Any]]:
    """Tokenizers and text encoders of CLIP's, in order."""
    towers = zip(components.tokenizers, components.text_encoders, strict=True)
    return [tower for tower in towers if isinstance(tower[0], CLIPTokenizer)]


def _is_token(components: Components, token: str) -> bool:
    return all(row_of(tokenizer, token) is not None for tokenizer, _ in _clip_towers(components))


def _measure(
    components: Components, noun: str, names: Sequence[str], known: dict[str, int]
) -> list[Candidate]:
    """Shift and likeness of each of `names`, in their order; means over the text encoders of CLIP's."""
    by_id = sorted(known, key=known.__getitem__)
    words = [word for word in by_id if len(word) > 3 and word not in names]
    common = words[:COMMON] or list(names)
    towers = [_meanings(*tower, noun, [*names, *common], len(names)) for tower in _clip_towers(components)]
    shift, likeness = (torch.stack(values).mean(dim=0).tolist() for values in zip(*towers, strict=True))
    ids = [row_of(components.tokenizer, name) or 0 for name in names]
    return [Candidate(*row) for row in zip(names, ids, shift, likeness, strict=True)]


def _meanings(
    tokenizer: Any, text_encoder: Any, noun: str, words: Sequence[str], count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Shift and likeness of the first `count` of `words` in one text encoder; the others are common words."""
    ids = [row_of(tokenizer, word) or 0 for word in words]
    start, noun_ids = token_ids(tokenizer, "a photo of a"), token_ids(tokenizer, noun)

    def summaries(prompts: list[list[int]]) -> torch.Tensor:
        return _summaries(tokenizer, text_encoder, prompts)

    beside = summaries([[*start, i, *noun_ids] for i in ids])
    distance = 1 - torch.cosine_similarity(beside, summaries([[*start, *noun_ids]]))
    shift = distance[:count] / distance[count:].median().clamp_min(1e-6)

    alone = summaries([[*start, i] for i in ids])
    alone = torch.nn.functional.normalize(alone - alone[count:].mean(dim=0), dim=1)
    return shift, (alone[:count] @ alone[count:].T).amax(dim=1)


@torch.no_grad()
def _summaries(tokenizer: Any, text_encoder: Any, prompts: list[list[int]]) -> torch.Tensor:
    """The state at the end of each prompt, float32 [B, D] on the CPU; prompts are token ids of one length.

    CLIP's text encoder is causal: the padding that is left out here comes later and cannot change this state.
    """
    rows = torch.tensor([[tokenizer.bos_token_id, *p, tokenizer.eos_token_id] for p in prompts])
    batches = rows.to(text_encoder.device).split(_BATCH)
    return torch.cat([text_encoder(batch).last_hidden_state[:, -1].float().cpu() for batch in batches])
