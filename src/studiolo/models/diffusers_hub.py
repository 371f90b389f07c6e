"""Which files of a hub's repository make up a Diffusers folder, each weight once."""

from __future__ import annotations

from pathlib import Path

_NETWORKS = ("text_encoder", "text_encoder_2", "text_encoder_3", "unet", "transformer", "vae")
_PARTS = ("scheduler", "tokenizer", "tokenizer_2", "tokenizer_3", *_NETWORKS)
# Not "*/...": repositories also hold single files, exports and encoders for other programs in folders.
_DESCRIPTIONS = ["model_index.json", *(f"{part}/*.{kind}" for part in _PARTS for kind in ("json", "txt"))]
_WEIGHTS = [f"{part}/*.safetensors" for part in _NETWORKS]
_HALF = ["*.fp16.*", "*.fp16-*", "*.bf16.*", "*.bf16-*"]
_COPIES = ["*non_ema*", "*/*/*"]


def fetch_diffusers(hub_id: str) -> Path:
    """The folder of a repository's model in the hub's cache, downloaded where it is not there.

    Weights come in safetensors: as they are, or, where a part has half-precision variants alone, as those.
    Raises what the hub's client raises.
    """
    # The hub's client is needed for hub names alone, and it is slow to import.
    from huggingface_hub import snapshot_download

    wanted = _DESCRIPTIONS + _WEIGHTS
    path = Path(snapshot_download(hub_id, allow_patterns=wanted, ignore_patterns=_HALF + _COPIES))
    if halves := [f"{part}/*.fp16*" for part in _NETWORKS if _lacks_weights(path / part)]:
        snapshot_download(hub_id, allow_patterns=halves, ignore_patterns=[*_COPIES, "*.bin"])
    return path


def _lacks_weights(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.glob("*.safetensors"))
