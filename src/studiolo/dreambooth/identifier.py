"""The rare token that stands for the subject: found in the vocabulary, or added to it.

Ruiz et al. 2023, section 3.2: a word with a meaning has to be unlearned first, and random letters fall
apart into common tokens; so they take a rare token. Here rareness is read from the vocabulary (byte-pair
encoding merges common words first) and meaning is measured in the text encoder.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import AddedToken

from studiolo.diffusion.components import Components
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
        token_id: its row in the vocabulary.
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
    """The identifier, whether it was added to the vocabulary, why it was taken, and what else there was."""

    token: str
    token_id: int
    added: bool
    reason: str
    alternatives: list[Candidate]


def find_identifier(
    components: Components, class_noun: str, candidates: Sequence[str] | None = None
) -> IdentifierChoice:
    """The token that means least beside `class_noun`, among `candidates` or the rarest short ones.

    The choice depends on the model and the noun alone. `alternatives` holds all that were scored, the
    best first. Raises StudioloError when no candidate is a single token.
    """
    known = _single_tokens(components.tokenizer)
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
    return IdentifierChoice(best.token, best.token_id, False, reason, ranked)


def take_identifier(components: Components, text: str, class_noun: str) -> IdentifierChoice:
    """`text` as the identifier: as it is where it is one token of the vocabulary, else added (see
    `add_identifier`, which changes `components`).

    Raises StudioloError for what cannot stand in a prompt as one word, and for the class noun itself.
    """
    token = check_identifier(text, class_noun)
    known = _single_tokens(components.tokenizer)
    if token not in known:
        return add_identifier(components, token, class_noun)
    if token in components.tokenizer.get_added_vocab():
        return IdentifierChoice(token, known[token], False, "added to this model before", [])
    measured = _measure(components, class_noun, [token], known)[0]
    reason = f"one token; {_meaning(measured, class_noun)}"
    if measured.shift >= STRONG:
        reason += ": it has a meaning that has to be unlearned, a rarer one would serve better"
    return IdentifierChoice(token, measured.token_id, False, reason, [measured])


def add_identifier(components: Components, text: str, class_noun: str) -> IdentifierChoice:
    """Adds `text` to the vocabulary of `components`, in place, as one token.

    Its embedding is the mean of the class noun's: it starts by meaning the class.

    Raises StudioloError if it is one token already, or cannot stand in a prompt as one word.
    """
    token = check_identifier(text, class_noun)
    tokenizer, text_encoder = components.tokenizer, components.text_encoder
    pieces = tokenizer.convert_ids_to_tokens(_ids(tokenizer, token))
    if token in _single_tokens(tokenizer):
        raise StudioloError(f"'{token}' is a token already", where="identifier", remedy="Use it as it is.")
    noun_ids = _ids(tokenizer, class_noun)
    # single_word: not to be cut out of longer words; normalized: prompts are lower-cased before the search.
    tokenizer.add_tokens([AddedToken(token, single_word=True, normalized=True)])
    token_id = tokenizer.convert_tokens_to_ids(token)
    if token_id >= text_encoder.get_input_embeddings().num_embeddings:
        text_encoder.resize_token_embeddings(token_id + 1, mean_resizing=False)
    with torch.no_grad():
        rows = text_encoder.get_input_embeddings().weight
        rows[token_id] = rows[noun_ids].mean(dim=0)
    # Configs of old (eos_token_id 2) make CLIP pool at the largest id, which was EOS until this token came.
    text_encoder.config.eos_token_id = text_encoder.eos_token_id = tokenizer.eos_token_id
    shown = " ".join(piece.replace(_WORD_END, "") for piece in pieces)
    reason = f"would be {len(pieces)} tokens ({shown}): added as one, which starts as '{class_noun}'"
    return IdentifierChoice(token, token_id, True, reason, [])


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


def _ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False).input_ids


def _measure(
    components: Components, noun: str, names: Sequence[str], known: dict[str, int]
) -> list[Candidate]:
    """Shift and likeness of each of `names`, in their order."""
    tokenizer = components.tokenizer
    start, noun_ids = _ids(tokenizer, "a photo of a"), _ids(tokenizer, noun)
    ids = [known[name] for name in names]
    words = [
        i for word, i in sorted(known.items(), key=lambda item: item[1]) if len(word) > 3 and i not in ids
    ]
    common = words[:COMMON] or ids

    beside = _summaries(components, [[*start, i, *noun_ids] for i in ids + common])
    plain = _summaries(components, [[*start, *noun_ids]])
    distance = 1 - torch.cosine_similarity(beside, plain)
    shift = distance[: len(ids)] / distance[len(ids) :].median().clamp_min(1e-6)

    alone = _summaries(components, [[*start, i] for i in ids + common])
    alone = torch.nn.functional.normalize(alone - alone[len(ids) :].mean(dim=0), dim=1)
    likeness = (alone[: len(ids)] @ alone[len(ids) :].T).amax(dim=1)
    return [Candidate(*row) for row in zip(names, ids, shift.tolist(), likeness.tolist(), strict=True)]


@torch.no_grad()
def _summaries(components: Components, prompts: list[list[int]]) -> torch.Tensor:
    """The state at the end of each prompt, float32 [B, D] on the CPU; prompts are token ids of one length.

    CLIP's text encoder is causal: the padding that is left out here comes later and cannot change this state.
    """
    tokenizer, text_encoder = components.tokenizer, components.text_encoder
    rows = torch.tensor([[tokenizer.bos_token_id, *p, tokenizer.eos_token_id] for p in prompts])
    batches = rows.to(text_encoder.device).split(_BATCH)
    return torch.cat([text_encoder(batch).last_hidden_state[:, -1].float().cpu() for batch in batches])
