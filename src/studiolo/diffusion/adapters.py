"""Adapters: small trained corrections of frozen weights, LoRA and DoRA, on peft's layers.

LoRA (Hu et al. 2021) adds s B A to a weight W [out, in], with A [r, in], B [out, r] and s = alpha / r.
DoRA (Liu et al. 2024, eq. 5) gives each row of W + s B A a trained length m [out]. B starts at 0 and m at
the rows' own lengths, so that an adapted model begins as the base.

A state is a dictionary of tensors by names as peft and diffusers write them, the part's folder in front:
"unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight". It carries no alpha: s is
multiplied into B, which is what every reader takes a file without alpha to mean. A DoRA's lengths are
"...lora_magnitude_vector.weight": peft leaves ".weight" out, and transformers then does not find them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from studiolo.diffusion.components import Components
from studiolo.errors import StudioloError

Target = Literal["attention", "feed_forward", "conv"]
_NAME = "default"  # peft's own name for the one adapter of a model

DENOISER_TARGETS: dict[Target, list[str]] = {
    "attention": [
        *("to_q", "to_k", "to_v", "to_out.0"),
        *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),  # of the text, where it is joined (SD3)
    ],
    "feed_forward": ["ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2"],
    "conv": ["conv1", "conv2", "conv_shortcut"],  # of the U-Net's residual blocks
}
TEXT_TARGETS: dict[Target, list[str]] = {
    "attention": ["q_proj", "k_proj", "v_proj", "out_proj"],
    "feed_forward": ["fc1", "fc2"],
    "conv": [],
}


@dataclass(frozen=True)
class AdapterSettings:
    """Which adapters, where.

    Attributes:
        kind: "lora" or "dora".
        rank: r of the denoiser's, 0 for none there; text_rank: of the CLIP text encoders'.
        alpha: s = alpha / r in both; None is alpha = r.
        targets: kinds of layers: "attention" (q, k, v and out), "feed_forward", "conv".
        seed: of the initial values of A, N(0, 1 / r^2).
    """

    kind: Literal["lora", "dora"] = "lora"
    rank: int = 8
    text_rank: int = 0
    alpha: float | None = None
    targets: tuple[Target, ...] = ("attention",)
    seed: int = 0


@dataclass(frozen=True)
class Share:
    """The state of an adapter and how much of it is wanted; `where` names it in errors."""

    state: Mapping[str, torch.Tensor]
    weight: float = 1.0
    where: object = "adapter"

    def misfit(self, what: str) -> StudioloError:
        """The error that tells that it is not for this model."""
        return StudioloError(
            f"the adapter does not fit the model: {what}",
            where=self.where,
            remedy="Use it with the base model that it was trained on.",
        )


def inject(components: Components, settings: AdapterSettings) -> None:
    """Puts new adapters into the networks, in place; only adapters have `requires_grad` afterwards.

    Adapters are float32, whatever the networks are, and the networks' own weights keep their values.
    Raises StudioloError when there is nothing to adapt.
    """
    for module in components.modules.values():
        module.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        count = _inject(components.denoiser, settings, settings.rank, DENOISER_TARGETS)
        for encoder in components.text_encoders:
            count += _inject(encoder, settings, settings.text_rank, TEXT_TARGETS)
    if not count:
        raise StudioloError(
            f"this model has no layers of the kinds {', '.join(settings.targets)} to adapt",
            where="adapter",
            remedy="Give a rank above 0, and targets that the model has: attention.",
        )


def adapter_state(components: Components) -> dict[str, torch.Tensor]:
    """The state (see above) of the adapters that `inject` put in: detached copies, float32 on the CPU."""
    state = {}
    for part, module in components.modules.items():
        for name, layer in _adapted(module):
            tensors = {
                "lora_A.weight": layer.lora_A[_NAME].weight,
                "lora_B.weight": layer.lora_B[_NAME].weight * layer.scaling[_NAME],
            }
            if _NAME in layer.lora_magnitude_vector:
                tensors["lora_magnitude_vector.weight"] = layer.lora_magnitude_vector[_NAME].weight
            for suffix, tensor in tensors.items():
                state[f"{part}.{name}.{suffix}"] = tensor.detach().float().cpu().clone()
    return state


@torch.no_grad()
def merge(components: Components, state: Mapping[str, torch.Tensor], weight: float = 1.0) -> None:
    """`merge_all` of one adapter."""
    merge_all(components, [Share(state, weight)])


@torch.no_grad()
def merge_all(components: Components, shares: Sequence[Share]) -> None:
    """Adds adapters into the weights of `components`, in place: W + sum of weight_i (W_i - W), where W_i are
    the base's weights W with adapter i alone, computed in float32 and rounded once.

    Weight 0 leaves an adapter out, 1 is as trained, and their order does not matter. For LoRA that is what
    diffusers' `fuse_lora(lora_scale)` makes; for DoRA its scale multiplies B A alone, so that 0 is not the
    base: its rows would still have the trained lengths.

    Raises StudioloError for a tensor that does not fit the model.
    """
    modules = {
        f"{part}.{name}": layer
        for part, module in components.modules.items()
        for name, layer in module.named_modules()
    }
    layers: dict[str, list[tuple[Share, dict[str, torch.Tensor]]]] = {}
    for share in shares:
        for name, tensors in _by_layer(share).items():
            layers.setdefault(name, []).append((share, tensors))
    for name, parts in layers.items():
        target = getattr(modules.get(name), "weight", None)
        if target is None:
            raise parts[0][0].misfit(f"the model has no layer {name}")
        base = target.float()
        results = [_merged(name, base, tensors, share) for share, tensors in parts]
        alone = results[0]
        target.copy_(alone if len(results) == 1 else base + sum(result - base for result in results))


def remove(components: Components) -> None:
    """Takes the adapters out again: the networks as they were before `inject`, bit for bit."""
    for module in components.modules.values():
        for name, layer in list(_adapted(module)):
            parent, _, child = name.rpartition(".")
            setattr(module.get_submodule(parent), child, layer.get_base_layer())
        if hasattr(module, "peft_config"):
            del module.peft_config


def _inject(
    module: torch.nn.Module, settings: AdapterSettings, rank: int, known: dict[Target, list[str]]
) -> int:
    """How many layers of `module` got an adapter."""
    from peft import LoraConfig, inject_adapter_in_model

    ends = tuple(f".{end}" for target in settings.targets for end in known[target])
    names = [name for name, _ in module.named_modules() if name.endswith(ends)] if ends and rank else []
    if names:
        alpha = rank if settings.alpha is None else settings.alpha
        config = LoraConfig(
            r=rank,
            lora_alpha=alpha,  # type: ignore[arg-type]  # any number does
            lora_dropout=0.0,
            target_modules=names,
            init_lora_weights="gaussian",
            use_dora=settings.kind == "dora",
        )
        inject_adapter_in_model(config, module, _NAME)
    return len(names)


def _adapted(module: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    """Name and layer of each adapter that is in `module`."""
    from peft.tuners.lora import LoraLayer

    return ((name, layer) for name, layer in module.named_modules() if isinstance(layer, LoraLayer))


def _by_layer(share: Share) -> dict[str, dict[str, torch.Tensor]]:
    """The tensors A, B and perhaps m of each layer."""
    suffixes = {
        ".lora_A.weight": "A",
        ".lora_B.weight": "B",
        ".lora_magnitude_vector": "m",
        ".lora_magnitude_vector.weight": "m",
    }
    layers: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in share.state.items():
        suffix = next((s for s in suffixes if key.endswith(s)), None)
        if suffix is None:
            raise share.misfit(f"{key} is no part of a LoRA or DoRA")
        layers.setdefault(key.removesuffix(suffix), {})[suffixes[suffix]] = tensor
    return layers


def _merged(
    name: str, weight: torch.Tensor, tensors: Mapping[str, torch.Tensor], share: Share
) -> torch.Tensor:
    """The layer's weights W with one adapter: W + w B A, or w of the way from W to DoRA's; a convolution
    [out, in, h, w] counts as [out, in h w]."""
    if not {"A", "B"} <= tensors.keys():
        raise share.misfit(f"{name} has only one half of its LoRA")
    a, b = (tensors[half].to(weight).flatten(1) for half in ("A", "B"))
    flat = weight.flatten(1)
    if (b.shape[0], a.shape[1]) != flat.shape or a.shape[0] != b.shape[1]:
        shapes = f"{list(b.shape)} x {list(a.shape)}"
        raise share.misfit(f"{name} is {list(flat.shape)}, and the adapter is for {shapes}")
    if "m" not in tensors:
        return (flat + share.weight * (b @ a)).view_as(weight)
    lengths = tensors["m"].to(weight).flatten()
    if len(lengths) != len(flat):
        raise share.misfit(f"{name} has {len(flat)} rows, and the adapter has lengths for {len(lengths)}")
    whole = flat + b @ a
    whole = lengths[:, None] / whole.norm(dim=1, keepdim=True) * whole
    return flat.lerp(whole, share.weight).view_as(weight)
