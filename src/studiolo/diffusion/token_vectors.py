"""The embedding of a token as small parameters of their own: the table beside it cannot move.

Textual inversion (Gal et al. 2022) trains nothing but the embedding of a new word. Training a row of the
table itself would keep gradients and moments for all of its rows, and has to undo what the optimizer does
to the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


class TokenVectors(torch.nn.Module):
    """Vectors [n, D] that a text encoder reads in place of rows `token_ids` of its embedding table.

    They are float32 and begin as copies of these rows. The table keeps its values until `write`.
    """

    def __init__(self, text_encoder: Any, token_ids: Sequence[int]) -> None:
        super().__init__()
        table = text_encoder.get_input_embeddings()
        self.token_ids = tuple(token_ids)
        self.vectors = torch.nn.Parameter(table.weight[list(token_ids)].detach().float().clone())
        self._tables = (table,)  # a tuple, so that the table is no part of this module
        self._hook = table.register_forward_hook(self._splice)

    def _splice(self, table: Any, inputs: tuple[Any, ...], embedded: torch.Tensor) -> torch.Tensor:
        """What the table gave for ids [B, L], with our vectors at our tokens: [B, L, D]."""
        ids = inputs[0]
        for row, token_id in enumerate(self.token_ids):
            vector = self.vectors[row].to(embedded.dtype)
            embedded = torch.where((ids == token_id).unsqueeze(-1), vector, embedded)
        return embedded

    @torch.no_grad()
    def write(self) -> None:
        """Copies the vectors into the table's rows."""
        self._tables[0].weight[list(self.token_ids)] = self.vectors.to(self._tables[0].weight)

    def detach_hook(self) -> None:
        """The text encoder reads its table alone again."""
        self._hook.remove()
