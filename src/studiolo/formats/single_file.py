"""A whole model in one file, with CompVis' names, as AUTOMATIC1111 and ComfyUI read it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import init_empty_weights
from huggingface_hub.errors import StrictDataclassError

from studiolo.diffusion.components import Components
from studiolo.diffusion.families import FAMILIES
from studiolo.errors import StudioloError
from studiolo.formats import compvis, mmdit
from studiolo.formats.diffusers_folder import check_fit
from studiolo.formats.file_texts import make_tokenizer, text_from_file, text_to_file, tokenizer_settings
from studiolo.formats.inferring import Description, infer
from studiolo.formats.layouts import LAYOUTS
from studiolo.formats.tensors import OnProgress, Tensors, read_metadata, read_tensors, write_tensors
from studiolo.models.registry import CARD_KEY

DESCRIPTION_KEY = "studiolo.model"
_MOST_LAYERS, _LARGEST = 256, 1 << 20
_NAMES = {"unet": "U-Net", "transformer": "transformer", "vae": "VAE"}
_UNREADABLE = (
    *(KeyError, ValueError, TypeError, IndexError, AttributeError, RuntimeError, StrictDataclassError),
)
_PREDICTIONS = {"v": "v_prediction", "v_prediction": "v_prediction", "epsilon": "epsilon", "eps": "epsilon"}


def read_single_file(file: str | Path, dtype: torch.dtype | None = torch.float32) -> Components:
    """The model in a .safetensors or .ckpt file: Stable Diffusion 1.x, 2.x, XL or 3, in eval mode.

    Configs stand in the metadata of files that Studiolo wrote; for others those of the published
    architecture are taken. Weights are cast to `dtype` (None: as they are stored). EMA weights, which some
    files have beside the others, are not used.

    Raises:
        StudioloError: the file is damaged or no such model.
    """
    file = Path(file)
    tensors = read_tensors(file)
    try:
        components = _build(describe(file, tensors), tensors, dtype)
    except StudioloError as error:
        raise StudioloError(error.message, where=error.where or file, remedy=error.remedy) from error
    except _UNREADABLE as error:
        raise StudioloError(
            f"not a model that can be read: {type(error).__name__}: {error}",
            where=file,
            remedy="Its weights are of another architecture, or some are missing.",
        ) from error
    check_fit(components, file)
    return components


def describe(file: Path, tensors: Tensors | None = None) -> Description:
    """What the model in a file is, without reading its weights."""
    tensors = read_tensors(file) if tensors is None else tensors
    metadata = read_metadata(file)
    if text := metadata.get(DESCRIPTION_KEY):
        told = Description(**json.loads(text))
        _check_size(told.configs)
        return told
    _refuse_parts(tensors)
    return infer(tensors, _told_prediction(file, metadata))


def _check_size(configs: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuses a config that no file of weights can fill, before anything is made of its size."""
    for part, config in configs.items():
        for key, value in config.items():
            most = _MOST_LAYERS if "layers" in key else _LARGEST
            numbers = value if isinstance(value, list) else [value]
            if len(numbers) > _MOST_LAYERS or any(isinstance(n, int) and n > most for n in numbers):
                raise StudioloError(
                    f"its metadata ask for a {part} of a size that there is not: {key} {str(value)[:40]}",
                    remedy="Do not trust this file.",
                )


def write_single_file(
    components: Components,
    file: str | Path,
    dtype: torch.dtype | None = None,
    card: Mapping[str, Any] | None = None,
    on_progress: OnProgress | None = None,
) -> Path:
    """Writes a model to a .safetensors file; returns its path.

    Configs, tokenizers that are not CLIP's, and the `card` go into the metadata, so that reading the file
    gives the same model, bit for bit.

    Raises:
        StudioloError: an architecture that has no names there.
    """
    tensors: dict[str, torch.Tensor] = {}
    for part, module in components.modules.items():
        tensors |= _to_file(part, module, components.family.name)
    if components.family.name == "sdxl":  # how other programs tell; they know no other way
        tensors |= _flags(components.scheduler_config)
    metadata = (
        {"format": "pt"} | _model_spec(components) | {DESCRIPTION_KEY: json.dumps(_description(components))}
    )
    if card:
        metadata[CARD_KEY] = json.dumps(card, ensure_ascii=False)
    return write_tensors(file, tensors, metadata, dtype, on_progress)


def _flags(scheduler: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    wanted = {
        "v_pred": scheduler.get("prediction_type") == "v_prediction",
        "ztsnr": scheduler.get("rescale_betas_zero_snr"),
    }
    return {name: torch.empty(0) for name, there in wanted.items() if there}


def _to_file(part: str, module: Any, family: str) -> dict[str, torch.Tensor]:
    if part.startswith("text_encoder"):
        return text_to_file(part, module, family)
    weights = module.state_dict()
    if part == "transformer":
        named = mmdit.to_file(weights)
    else:
        named = compvis.to_compvis(weights, part, module.config)
    return {_prefix(part) + name: tensor for name, tensor in named.items()}


def _prefix(part: str) -> str:
    return compvis.VAE if part == "vae" else compvis.UNET


def _build(told: Description, tensors: Tensors, dtype: torch.dtype | None) -> Components:
    encoders = sorted(part for part in told.configs if part.startswith("text_encoder"))
    return Components(
        tokenizers=tuple(make_tokenizer(settings) for settings in told.tokenizers),
        text_encoders=tuple(_from_file(part, told, tensors, dtype) for part in encoders),
        vae=_from_file("vae", told, tensors, dtype),
        denoiser=_from_file(LAYOUTS[told.family].family.denoiser, told, tensors, dtype),
        scheduler_config=dict(told.scheduler),
        family=FAMILIES[told.family](**told.settings),
    )


def _from_file(part: str, told: Description, tensors: Tensors, dtype: torch.dtype | None) -> Any:
    config = told.configs[part]
    network = LAYOUTS[told.family].networks[part]
    is_text = part.startswith("text_encoder")
    with init_empty_weights(include_buffers=False):
        module = network(network.config_class.from_dict(config)) if is_text else network.from_config(config)
    names = {name: tensor.shape for name, tensor in module.state_dict().items()}
    if is_text:
        weights = text_from_file(part, told, tensors, names)
    else:
        weights = _image_weights(part, config, tensors, names)
    _check(part, names, weights)
    module.load_state_dict({name: t.to(dtype or t.dtype) for name, t in weights.items()}, assign=True)
    if is_text:
        module.tie_weights()
    return module.eval()


def _image_weights(
    part: str, config: Mapping[str, Any], tensors: Tensors, names: Mapping[str, torch.Size]
) -> dict[str, torch.Tensor]:
    """Those of a VAE, a U-Net or a transformer, of which a file must hold no more."""
    prefix = _prefix(part)
    held = {name.removeprefix(prefix): tensors[name] for name in tensors if name.startswith(prefix)}
    if part == "transformer":
        known, weights = {mmdit.file_name(name) for name in names}, mmdit.from_file(held, names)
    else:
        weights = compvis.from_compvis(held, names, part, config)
        known = {compvis.unet_name(name, config) for name in names} if part == "unet" else set(held)
    if more := held.keys() - known:
        raise StudioloError(
            f"its {_NAMES[part]} has {len(more)} weights more than that architecture has",
            remedy="ControlNets and other additions are not supported.",
        )
    return weights


def _check(part: str, names: Mapping[str, torch.Size], weights: Tensors) -> None:
    if missing := sorted(names.keys() - weights.keys()):
        raise StudioloError(
            f"the {part} lacks {len(missing)} of its {len(names)} weights, such as {missing[0]}",
            remedy="Fetch the whole checkpoint again.",
        )
    if wrong := [name for name, shape in names.items() if weights[name].shape != shape]:
        name = wrong[0]
        raise StudioloError(
            f"the {part} is of another architecture: {name} is {list(weights[name].shape)}, "
            f"and {list(names[name])} is wanted",
            remedy="Stable Diffusion 1.x, 2.x, XL and 3 are read from single files.",
        )


def _description(components: Components) -> dict[str, Any]:
    configs = {}
    for part, module in components.modules.items():
        config = module.config
        config = config.to_dict() if hasattr(config, "to_dict") else dict(config)
        configs[part] = {key: value for key, value in config.items() if key != "_name_or_path"}
    told = Description(
        components.family.name,
        configs,
        dict(components.scheduler_config),
        [tokenizer_settings(tokenizer) for tokenizer in components.tokenizers],
        asdict(components.family),  # type: ignore[call-overload]  # all families are dataclasses
    )
    return asdict(told)


def _told_prediction(file: Path, metadata: Mapping[str, str]) -> str | None:
    """What the file's metadata (https://github.com/Stability-AI/ModelSpec), or a config with its name as
    AUTOMATIC1111 wants it beside the file, say that the network predicts."""
    if told := metadata.get("modelspec.prediction_type"):
        return _PREDICTIONS.get(told.lower())
    beside = file.with_suffix(".yaml")
    if not beside.is_file() or beside.stat().st_size > 1 << 20:
        return None
    try:
        found = yaml.safe_load(beside.read_text(encoding="utf-8"))
        return _PREDICTIONS.get(str(found["model"]["params"].get("parameterization", "eps")))
    except (yaml.YAMLError, KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
        raise StudioloError(
            "not a config of latent diffusion", where=beside, remedy="Move it away from the weights."
        ) from error


def _model_spec(components: Components) -> dict[str, str]:
    """The keys of https://github.com/Stability-AI/ModelSpec that follow from the model itself."""
    side = components.image_size
    return {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": _architecture(components),
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.resolution": f"{side}x{side}",
    } | ({} if components.is_flow else {"modelspec.prediction_type": "v" if _is_v(components) else "epsilon"})


def _architecture(components: Components) -> str:
    if components.family.name == "sd3":
        return "stable-diffusion-v3-medium"
    if components.family.name == "sdxl":
        return "stable-diffusion-xl-v1-base"
    if components.text_encoder.config.hidden_act == "quick_gelu":
        return "stable-diffusion-v1"
    return f"stable-diffusion-v2-{'768-v' if _is_v(components) else '512'}"


def _is_v(components: Components) -> bool:
    return components.scheduler_config.get("prediction_type") == "v_prediction"


def _refuse_parts(tensors: Tensors) -> None:
    """Tells what else a file is, when it is no whole model."""
    if any(name.startswith(compvis.UNET) for name in tensors):
        return
    names = " ".join(tensors).lower()
    if "lora" in names or "hada_" in names or "lokr_" in names:
        raise StudioloError(
            "an adapter (LoRA), not a whole model",
            remedy="Merge it into its base: studiolo merge BASE FILE --out MODEL",
        )
    if len(tensors) <= 3 or "string_to_param" in names:
        raise StudioloError("no model: a textual-inversion embedding, perhaps")
    raise StudioloError(
        f"no Stable Diffusion model: its weights are named like {next(iter(tensors))}",
        remedy="Give a checkpoint in CompVis' names (model.diffusion_model.*), or a Diffusers folder.",
    )
