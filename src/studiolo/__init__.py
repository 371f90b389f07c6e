"""Teach a subject from a handful of images and draw it anywhere.

    import studiolo
    rex = studiolo.train("photos/", class_noun="dog", name="rex")
    rex.generate("a photo of [V] dog on the moon", seed=7)[0].save("moon.png")

The names below are imported on first use, so that `import studiolo` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from studiolo.errors import StudioloError

if TYPE_CHECKING:
    from studiolo.drawing.model import load
    from studiolo.drawing.reproduction import reproduce
    from studiolo.dreambooth.trainer import resume, train  # with scores, from evaluation.training
    from studiolo.evaluation.functions import bench, estimate, score, sweep
    from studiolo.formats.converting import convert
    from studiolo.formats.merging import merge
    from studiolo.language.asking import Chat, ask, count_tokens, embed, keep

__version__ = "0.1.0"
__all__ = [
    "Chat",
    "StudioloError",
    "__version__",
    "ask",
    "bench",
    "convert",
    "count_tokens",
    "embed",
    "estimate",
    "keep",
    "load",
    "merge",
    "reproduce",
    "resume",
    "score",
    "sweep",
    "train",
]

_HOMES = {
    "load": "studiolo.drawing.model",
    "train": "studiolo.evaluation.training",
    "resume": "studiolo.evaluation.training",
    "estimate": "studiolo.evaluation.functions",
    "sweep": "studiolo.evaluation.functions",
    "bench": "studiolo.evaluation.functions",
    "score": "studiolo.evaluation.functions",
    "reproduce": "studiolo.drawing.reproduction",
    "convert": "studiolo.formats.converting",
    "merge": "studiolo.formats.merging",
    "ask": "studiolo.language.asking",
    "Chat": "studiolo.language.asking",
    "count_tokens": "studiolo.language.asking",
    "embed": "studiolo.language.asking",
    "keep": "studiolo.language.asking",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'studiolo' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
