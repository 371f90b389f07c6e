"""Several processes that train together."""

from __future__ import annotations

from pytorch_lightning.utilities.rank_zero import rank_zero_only


def first_process() -> bool:
    """Whether this process is the one that writes and speaks, of those that train together."""
    return getattr(rank_zero_only, "rank", 0) == 0
