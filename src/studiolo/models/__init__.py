"""The registry: which models there are and where their weights lie.

    from studiolo import models
    models.pull("smollm2").path

The names below are imported on first use, so that importing this package costs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from studiolo.models.names import add, list_models, remove, show
    from studiolo.models.pulling import pull

__all__ = ["add", "list_models", "pull", "remove", "show"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'studiolo.models' has no attribute {name!r}")
    home = "pulling" if name == "pull" else "names"
    return getattr(import_module(f"studiolo.models.{home}"), name)


def __dir__() -> Sequence[str]:
    return sorted({*globals(), *__all__})
