"""Which models of transformers the slots can serve (see `slots`), and why not the others."""

from __future__ import annotations

from typing import Any

_LAYERS = {"full_attention", "sliding_attention"}


def why_not(model: Any) -> str | None:
    """What stands against serving a model, or None.

    The slots hold keys and values of single tokens, and a mask says which tokens see which. So every layer
    must be an attention layer that looks back from each token, over all or over a window.
    """
    config = model.config.get_text_config()
    if getattr(model, "_is_stateful", False):
        return "it carries a state from token to token (recurrent or linear attention layers)"
    if model.config.is_encoder_decoder:
        return "it has an encoder beside the decoder"
    if other := set(getattr(config, "layer_types", None) or ()) - _LAYERS:
        return f"it has layers of the kind {min(other)!r}"
    if getattr(config, "use_bidirectional_attention", None) in ("all", True):
        return "its tokens see those that come after them (it makes embeddings, and no text)"
    return None
