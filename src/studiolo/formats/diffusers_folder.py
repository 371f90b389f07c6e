"""The Diffusers folder: model_index.json and one subfolder a part, as the pipelines of diffusers have it."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from transformers import T5TokenizerFast

from studiolo.diffusion.components import Components, numbered
from studiolo.diffusion.families import Family
from studiolo.errors import StudioloError
from studiolo.formats.layouts import LAYOUTS, Layout, family_named
from studiolo.formats.networks import read_network
from studiolo.store.files import atomic_dir

_INDEX = "model_index.json"
_CONFIGS = {"scheduler": "scheduler_config.json", "tokenizer": "tokenizer_config.json"}
_UNREADABLE = (OSError, ValueError, KeyError, RuntimeError, AttributeError, TypeError)


def load_components(
    path: str | Path, dtype: torch.dtype | None = torch.float32, device: str | torch.device = "cpu"
) -> Components:
    """Reads a model's folder; weights are cast to `dtype`, whatever float type they are stored in. None
    leaves each network in its half-precision type, if it is stored in one, and else makes it float32.

    The family is that of the pipeline that model_index.json names, or, where there is none, of the parts.
    Weights are read from safetensors files, and else from pickles, in which no code is run. Networks come
    back in eval mode.

    Raises StudioloError when a part is missing, of another architecture, or unreadable.
    """
    path = Path(path)
    index = _read_index(path)
    layout = _layout(path, index)
    try:
        with _without_progress_bars():
            components = _read_parts(path, index, layout, dtype)
    except _UNREADABLE as error:
        raise StudioloError(
            f"the model folder cannot be read: {error}",
            where=str(path),
            remedy="Download or export it again.",
        ) from error
    check_fit(components, path)
    return components.to(device=device)


def save_components(components: Components, path: str | Path, dtype: torch.dtype | None = None) -> Path:
    """Writes a folder that `DiffusionPipeline.from_pretrained(path)` loads; returns `path`.

    `dtype` stores the weights in another float type (half precision for shipping) and leaves `components`
    as they are. The folder appears under its name only when it is complete.
    """
    path = Path(path)
    with atomic_dir(path) as folder, _without_progress_bars():
        for name, tokenizer in zip(numbered("tokenizer"), components.tokenizers, strict=False):
            tokenizer.save_pretrained(folder / name)
        for part, module in components.modules.items():
            if dtype is not None and dtype != module.dtype:
                module = _copy_as(module, dtype)
            module.save_pretrained(folder / part, safe_serialization=True)
            _forget_origin(folder / part / "config.json")
        _write_json(folder / "scheduler" / "scheduler_config.json", components.scheduler_config)
        _write_json(folder / _INDEX, _model_index(components))
    return path


def _copy_as(module: Any, dtype: torch.dtype) -> Any:
    """A deep copy of a network in another float type, without a moment in which it is there uncast."""
    cast: dict[int, Any] = {}
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point():
            twin = tensor.detach().to(dtype, copy=True)
            parameter = isinstance(tensor, torch.nn.Parameter)
            cast[id(tensor)] = torch.nn.Parameter(twin, requires_grad=False) if parameter else twin
    return copy.deepcopy(module, cast)


def _read_index(path: Path) -> dict[str, Any]:
    """What model_index.json says; {} where there is none."""
    file = path / _INDEX
    if not file.is_file():
        return {}
    try:
        index = _read_json(file)
    except (OSError, ValueError) as error:
        raise StudioloError(f"cannot be read: {error}", where=str(file)) from error
    if not isinstance(index, dict):
        raise StudioloError("a JSON object was expected", where=str(file))
    return index


def _layout(path: Path, index: dict[str, Any]) -> Layout:
    """The layout of a folder in which every part is there."""
    pipeline = str(index.get("_class_name", ""))
    name = family_named(pipeline)
    if name is None:
        if pipeline not in ("", "DiffusionPipeline"):
            raise StudioloError(
                f"models for {pipeline} cannot be loaded",
                where=str(path),
                remedy="Use a text-to-image model of Stable Diffusion 1.x, 2.x, XL, 3 or 3.5.",
            )
        parts = {"transformer": "sd3", "text_encoder_2": "sdxl"}
        name = next((family for part, family in parts.items() if (path / part).is_dir()), "sd")
    layout = LAYOUTS[name]
    missing = [file for file in map(_config_file, layout.required) if not (path / file).is_file()]
    if not missing:
        return layout
    if name == "sdxl" and not (path / "text_encoder").exists() and (path / "text_encoder_2").exists():
        raise StudioloError(
            "this is SDXL's refiner, which draws on pictures that the base made",
            where=str(path),
            remedy="Use the base model, such as stabilityai/stable-diffusion-xl-base-1.0.",
        )
    folders = ", ".join(f"{part}/" for part in layout.required)
    raise StudioloError(
        f"not a folder of {layout.family.pipeline}: {', '.join(missing)} missing",
        where=str(path),
        remedy=f"Give a text-to-image model in Diffusers layout: {folders}.",
    )


def _config_file(part: str) -> str:
    return f"{part}/{_CONFIGS.get(part.rstrip('_0123456789'), 'config.json')}"


def _read_parts(path: Path, index: dict[str, Any], layout: Layout, dtype: torch.dtype | None) -> Components:
    encoders = [name for name in numbered("text_encoder", len(layout.encoders)) if (path / name).is_dir()]
    tokenizers = zip(numbered("tokenizer"), layout.tokenizers[: len(encoders)], strict=False)
    networks = layout.networks
    denoiser = read_network(networks[layout.family.denoiser], path / layout.family.denoiser, dtype)
    careful = dtype and torch.float32  # of the VAE, which is cast below, where it may be
    components = Components(
        tokenizers=tuple(
            tokenizer.from_pretrained(path / name, local_files_only=True) for name, tokenizer in tokenizers
        ),
        text_encoders=tuple(read_network(networks[name], path / name, dtype) for name in encoders),
        vae=read_network(networks["vae"], path / "vae", careful),
        denoiser=denoiser,
        scheduler_config=_read_json(path / "scheduler" / "scheduler_config.json"),
        family=_family(layout, index, denoiser),
    )
    return components.to(dtype=dtype)


def _family(layout: Layout, index: dict[str, Any], denoiser: Any) -> Family:
    """The family, with the settings that the folder tells of it."""
    settings: dict[str, Any] = {"clip_skip": index.get("_clip_skip", 0)}
    if layout.family.name == "sdxl":
        settings["zero_empty"] = index.get("force_zeros_for_empty_prompt", True)
    if layout.family.name == "sd3":
        settings["width"] = denoiser.config.joint_attention_dim
    return layout.family(**settings)


def _model_index(components: Components) -> dict[str, Any]:
    family, layout = components.family, LAYOUTS[components.family.name]
    scheduler = components.scheduler_config.get("_class_name", "DDIMScheduler")
    index: dict[str, Any] = {
        "_class_name": family.pipeline,
        "_diffusers_version": diffusers.__version__,
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "scheduler": ["diffusers", scheduler],
    }
    if family.name == "sd":
        index |= {"requires_safety_checker": False, "safety_checker": [None, None]}
    if family.name == "sdxl":
        index["force_zeros_for_empty_prompt"] = family.zero_empty
    if family.clip_skip:  # diffusers reads no name that begins so
        index["_clip_skip"] = family.clip_skip
    there = components.modules
    for name, network in layout.networks.items():
        index[name] = [network.__module__.split(".")[0], network.__name__] if name in there else [None, None]
    for name, tokenizer, encoder in zip(
        numbered("tokenizer"), layout.tokenizers, numbered("text_encoder"), strict=False
    ):
        index[name] = ["transformers", _tokenizer_name(tokenizer)] if encoder in there else [None, None]
    return index


def _tokenizer_name(tokenizer: Any) -> str:
    # The one that reads tokenizer.json has this name in every version of transformers.
    return "T5TokenizerFast" if tokenizer is T5TokenizerFast else tokenizer.__name__


def check_fit(components: Components, path: Path) -> None:
    """Refuses parts that do not belong together, and denoisers that want more than noise and text."""
    vae, denoiser = components.vae.config, components.denoiser.config
    if denoiser.in_channels != vae.latent_channels:
        purposes = {9: "inpainting", 8: "editing by instructions", 7: "upscaling", 5: "drawing with depth"}
        raise StudioloError(
            f"this is a model for {purposes.get(denoiser.in_channels, 'something else')}: its "
            f"{components.family.denoiser} takes {denoiser.in_channels} channels, and the VAE has "
            f"{vae.latent_channels}",
            where=path,
            remedy="Give the text-to-image model that it was made from; such a model can inpaint as it is.",
        )
    if vae.get("latents_mean") is not None:
        raise StudioloError(
            "models whose latents have a mean and deviation of their own cannot be loaded", where=path
        )
    for what, has, wanted in _pairs(components):
        if has != wanted:
            raise StudioloError(
                f"the parts do not fit together: {what} is {has}, and {wanted} is wanted",
                where=path,
                remedy="Give a text-to-image model whose parts were made for each other.",
            )


def _pairs(components: Components) -> Iterator[tuple[str, int, int]]:
    """What two parts must agree on: its name, what the one has and what the other wants."""
    texts = [encoder.config for encoder in components.text_encoders]
    denoiser, clips = components.denoiser.config, texts[:2]
    width = sum(text.hidden_size for text in clips)
    if components.family.name == "sd3":
        pooled = sum(text.projection_dim for text in clips)
        yield "the text encoders' projection", pooled, denoiser.pooled_projection_dim
        for text in texts[2:]:
            yield "T5's width", text.hidden_size, denoiser.joint_attention_dim
    else:
        yield "the text encoder's width", width, denoiser.cross_attention_dim
    if components.family.name == "sdxl":
        told = texts[1].projection_dim + 6 * denoiser.addition_time_embed_dim
        yield "the pooled text and the sizes", told, denoiser.projection_class_embeddings_input_dim
    for tokenizer, text in zip(components.tokenizers, clips, strict=False):
        longest, positions = tokenizer.model_max_length, text.max_position_embeddings
        yield "the tokenizer's longest text", max(longest, positions), positions  # a shorter one does fit


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    """The libraries' bars for the reading of shards say nothing here."""
    for logging in (transformers.utils.logging, diffusers.utils.logging):
        logging.disable_progress_bar()
    try:
        yield
    finally:
        for logging in (transformers.utils.logging, diffusers.utils.logging):
            logging.enable_progress_bar()


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
