"""Keys and values of many sequences in one row, without padding.

Each token of each sequence has a slot, its place along the row. A sequence is a list of slots, and sequences
with the same beginning share the slots of it. The attention mask says which slots a token sees; so tokens of
all sequences, of prompts and of answers, go through the model together in one row, and none is padding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import DynamicCache

_SPARE = 512
"""Freed slots that are left lying before the row is made shorter."""


@dataclass(eq=False)
class Row:
    """One sequence: its tokens so far, and the slot of each that has been through the model."""

    tokens: list[int]
    slots: list[int] = field(default_factory=list)

    @property
    def waiting(self) -> int:
        """Tokens that have not been through the model."""
        return len(self.tokens) - len(self.slots)


class Slots:
    """The row of keys and values, and who uses which part of it."""

    def __init__(self) -> None:
        self.cache = DynamicCache()
        self.length = 0
        self._users: Counter[int] = Counter()
        self._rows: list[Row] = []

    def add(self, row: Row) -> int:
        """Takes in a sequence; it shares the slots of the longest beginning that is there already.

        Returns how many tokens that spares. The last token is never spared, as its output is wanted.
        """
        best: Row | None = None
        most = 0
        for other in self._rows:
            common = _common(row.tokens[:-1], other.tokens[: len(other.slots)])
            if common > most:
                best, most = other, common
        row.slots = best.slots[:most] if best else []
        self._users.update(row.slots)
        self._rows.append(row)
        return most

    def remove(self, row: Row) -> None:
        """Forgets a sequence; slots that no other uses are freed."""
        self._rows.remove(row)
        self._users.subtract(row.slots)
        row.slots = []
        used = sum(1 for count in self._users.values() if count > 0)
        if self.length - used > max(_SPARE, used):
            self._compact()

    def place(self, parts: Sequence[tuple[Row, int]]) -> tuple[Tensor, Tensor, Tensor]:
        """The next `count` tokens of each row as one row of T, their positions, and where each may look.

        Returns token ids [1, T], positions [1, T], and for each token and each of the `length` + T slots
        how far behind the token it lies in its own sequence: 0 itself, -1 not to be seen; [T, length + T].
        """
        ids: list[int] = []
        positions: list[int] = []
        total = sum(count for _, count in parts)
        behind = torch.full((total, self.length + total), -1, dtype=torch.long)
        for row, count in parts:
            start, first = len(row.slots), len(ids)
            row.slots += range(self.length + first, self.length + first + count)
            self._users.update(row.slots[start:])
            places = torch.arange(start, start + count)
            distance = places[:, None] - torch.arange(start + count)
            behind[first : first + count, torch.tensor(row.slots)] = distance.clamp(min=-1)
            ids += row.tokens[start : start + count]
            positions += places.tolist()
        self.length += total
        return torch.tensor([ids]), torch.tensor([positions]), behind

    def _compact(self) -> None:
        """Moves the used slots together."""
        used = sorted(slot for slot, count in self._users.items() if count > 0)
        where = {slot: index for index, slot in enumerate(used)}
        keep = torch.tensor(used, dtype=torch.long)
        for layer in self.cache.layers:
            if layer.keys is not None and layer.keys.numel():
                index = keep.to(layer.keys.device)
                layer.keys = layer.keys.index_select(-2, index)
                layer.values = layer.values.index_select(-2, index)
        for row in self._rows:
            row.slots = [where[slot] for slot in row.slots]
        self._users = Counter({where[slot]: self._users[slot] for slot in used})
        self.length = len(used)


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many first tokens are the same."""
    size = min(len(one), len(other))
    return next((index for index in range(size) if one[index] != other[index]), size)
