"""The Diffusers folder: model_index.json and one subfolder a part, as StableDiffusionPipeline has it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from studiolo.diffusion.components import Components
from studiolo.errors import StudioloError
from studiolo.store.files import atomic_dir

_PARTS = {
    "scheduler": "scheduler_config.json",
    "text_encoder": "config.json",
    "tokenizer": "tokenizer_config.json",
    "unet": "config.json",
    "vae": "config.json",
}


def load_components(
    path: str | Path, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> Components:
    """Reads a Stable Diffusion folder; weights are cast to `dtype`, whatever float type they are stored in.

    Only safetensors files are read, never a pickle. Networks come back in eval mode.
    Raises StudioloError when a part is missing, of another architecture, or unreadable.
    """
    path = Path(path)
    _check_layout(path)
    try:
        with _without_progress_bars():
            components = _read_parts(path, dtype)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise StudioloError(
            f"the model folder cannot be read: {error}",
            where=str(path),
            remedy="Download or export it again.",
        ) from error
    _check_fit(components, path)
    return components.to(device=device)


def save_components(components: Components, path: str | Path, dtype: torch.dtype | None = None) -> Path:
    """Writes a folder that `StableDiffusionPipeline.from_pretrained(path)` loads; returns `path`.

    `dtype` stores the weights in another float type (half precision for shipping) and leaves `components`
    as they are. The folder appears under its name only when it is complete.
    """
    path = Path(path)
    if dtype is not None and dtype != components.dtype:
        components = components.copy().to(dtype=dtype)
    with atomic_dir(path) as folder, _without_progress_bars():
        components.tokenizer.save_pretrained(folder / "tokenizer")
        for part, module in components.modules.items():
            module.save_pretrained(folder / part, safe_serialization=True)
            _forget_origin(folder / part / "config.json")
        _write_json(folder / "scheduler" / "scheduler_config.json", components.scheduler_config)
        _write_json(folder / "model_index.json", _model_index(components))
    return path


def _read_parts(path: Path, dtype: torch.dtype) -> Components:
    return Components(
        tokenizers=(CLIPTokenizer.from_pretrained(path / "tokenizer", local_files_only=True),),
        text_encoders=(_read_network(CLIPTextModel, path / "text_encoder", dtype),),
        vae=_read_network(AutoencoderKL, path / "vae", dtype),
        denoiser=_read_network(UNet2DConditionModel, path / "unet", dtype),
        scheduler_config=_read_json(path / "scheduler" / "scheduler_config.json"),
    )


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    """The libraries' bars for the reading of shards say nothing here: a model is one small shard."""
    for logging in (transformers.utils.logging, diffusers.utils.logging):
        logging.disable_progress_bar()
    try:
        yield
    finally:
        for logging in (transformers.utils.logging, diffusers.utils.logging):
            logging.enable_progress_bar()


def _model_index(components: Components) -> dict[str, Any]:
    scheduler = components.scheduler_config.get("_class_name", "DDIMScheduler")
    return {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": diffusers.__version__,
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", scheduler],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }


def _check_layout(path: Path) -> None:
    missing = [f"{part}/{name}" for part, name in _PARTS.items() if not (path / part / name).is_file()]
    if missing:
        raise StudioloError(
            f"not a Stable Diffusion folder: {', '.join(missing)} missing",
            where=str(path),
            remedy="Give a folder in Diffusers layout: unet/, vae/, text_encoder/, tokenizer/, scheduler/.",
        )
    if (path / "text_encoder_2").exists():
        raise StudioloError(
            "models with two text encoders (SDXL) cannot be loaded",
            where=str(path),
            remedy="Use a Stable Diffusion 1.x or 2.x folder.",
        )


def _check_fit(components: Components, path: Path) -> None:
    """Refuses parts that do not belong together, and U-Nets that want more than noise and text."""
    text, vae, unet = components.text_encoder.config, components.vae.config, components.denoiser.config
    longest, positions = components.tokenizer.model_max_length, text.max_position_embeddings
    for what, has, wanted in (
        ("the text encoder's width", text.hidden_size, unet.cross_attention_dim),
        ("the VAE's number of latent channels", vae.latent_channels, unet.in_channels),
        ("the tokenizer's longest text", max(longest, positions), positions),  # a shorter one does fit
    ):
        if has != wanted:
            raise StudioloError(
                f"the parts do not fit together: {what} is {has}, and {wanted} is wanted",
                where=path,
                remedy="Give a text-to-image model; inpainting and depth models are not supported.",
            )


def _read_network(network: Any, folder: Path, dtype: torch.dtype) -> Any:
    """A network with all its weights, from safetensors only; the fp16 variant when nothing else is there."""
    files = [file.name for file in folder.glob("*.safetensors")]
    if not files:
        raise StudioloError(
            "no safetensors weights",
            where=str(folder),
            remedy="Convert the .bin weights; pickles are never run.",
        )
    module, info = network.from_pretrained(
        folder,
        dtype=dtype,
        variant="fp16" if all(".fp16." in name for name in files) else None,
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
    )
    if missing := sorted(info["missing_keys"]):
        raise KeyError(f"{folder.name} lacks {len(missing)} weights, such as {missing[0]}")
    return module.eval()


def _forget_origin(config: Path) -> None:
    """The libraries note where a part was loaded from: a path on this machine, no one else's business."""
    content = _read_json(config)
    if content.pop("_name_or_path", None):
        _write_json(config, content)


def _read_json(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
