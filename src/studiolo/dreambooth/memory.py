"""How much memory a training will need, before it begins.

Weights and their averages are counted. What a micro-batch needs is found by computing one with tensors that
have shapes and no contents: every tensor that a forward and a backward pass make is seen being made and let
go, so checkpointing, adapters, precision and attention count as they are.
"""

from __future__ import annotations

import weakref
from dataclasses import asdict, dataclass
from typing import Any

import psutil
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from studiolo.diffusion.components import Components
from studiolo.diffusion.text_keys import kept_bytes
from studiolo.dreambooth.memory_shared import Shared, shared_by
from studiolo.dreambooth.personalize import Personalization
from studiolo.dreambooth.recipe import Recipe
from studiolo.training.halves import HALVES
from studiolo.training.rows import copied_bytes

_STATE_BYTES = {"adamw": 8, "adamw8bit": 2.1, "prodigy": 16, "adafactor": 0.1}
"""Bytes of an optimizer's state for each trained number; Adafactor's are rows and columns of a matrix."""
_MIB = 2**20
LESS = (
    "adapter.kind=lora, gradient_checkpointing=true, a smaller batch_size with accumulate, "
    "optimizer=adamw8bit, precision=bf16-mixed"
)
"""What a recipe can do for less memory."""


@dataclass(frozen=True)
class Memory:
    """MiB on one device at the worst moment, by what they are for.

    `held` is what the process or the GPU holds already, the model in it; `step` the activations and gradients
    of a micro-batch; `class_images` what makes them meanwhile has beside the model, and its pictures. With
    fsdp they are those of one process, and `whole` is what it holds before, while its model is no part yet.
    """

    held: float
    optimizer: float
    average: float
    step: float
    class_images: float
    whole: float = 0.0

    @property
    def total(self) -> float:
        return sum(self._at_worst.values())

    @property
    def parts(self) -> dict[str, float]:
        """What is more than nothing."""
        return {name: round(value, 1) for name, value in self._at_worst.items() if value >= 0.1}

    @property
    def _at_worst(self) -> dict[str, float]:
        training = asdict(self)
        whole = training.pop("whole")
        return training if whole <= sum(training.values()) else {"whole": whole}


def told(memory: Memory, available: float) -> str:
    """One line: how much of what there is, and what for."""
    parts = ", ".join(f"{name.replace('_', ' ')} {value / 1024:.2f}" for name, value in memory.parts.items())
    return f"memory: about {memory.total / 1024:.2f} of {available / 1024:.1f} GiB ({parts})"


def estimate_memory(
    module: Personalization, components: Components, recipe: Recipe, artist: Components | None = None
) -> Memory:
    """What training `module`, whose networks are those of `components`, and lie whole, will need.

    `artist` is what draws class images meanwhile, where there are some to draw, or its twin: it cannot draw
    while this looks.
    """
    named, shared = list(module.named_parameters()), shared_by(module, recipe)
    trained = shared.kept(named, trained=True) / 4  # weights are trained in float32
    held = held_memory(components.device)
    left = sum(p.numel() * p.element_size() for _, p in named) - shared.kept(named)
    own, drawing = 0.0, 0.0
    if artist is not None:
        own, drawing = _own_bytes(artist, components), _drawing_bytes(artist, recipe)
    return Memory(
        held=held - (left + own) / _MIB,
        optimizer=trained * _STATE_BYTES[recipe.optimizer] / _MIB,
        average=(4 * trained if recipe.ema_decay else 0) / _MIB,
        step=_step_bytes(module, components, recipe, shared) / _MIB,
        class_images=(own + drawing) / _MIB,
        whole=held if shared.names else 0.0,
    )


def held_memory(device: torch.device) -> float:
    """MiB that the GPU, or else this process, holds now."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device) / _MIB
    return psutil.Process().memory_info().rss / _MIB


def available_memory(device: torch.device) -> float:
    """MiB that there are in all for this process: free ones and those that it holds."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free / _MIB + torch.cuda.memory_reserved(device) / _MIB
    return psutil.virtual_memory().available / _MIB + held_memory(device)


def _own_bytes(artist: Components, components: Components) -> float:
    """Of the weights of `artist`, what `components` has not."""
    own = set(artist.parameters) - set(components.parameters)
    return float(sum(p.numel() * p.element_size() for p in own))


class _MicroBatch(torch.nn.Module):
    """One micro-batch of both halves, from noisy latents to the gradients."""

    def __init__(self, module: Personalization) -> None:
        super().__init__()
        self.module = module

    def forward(self, noisy: Any, times: Any, ids: Any, sizes: Any) -> None:
        module = self.module
        with torch.set_grad_enabled(module.text_is_trained):
            text = module.family.encode(module.text_encoders, ids)
        prediction = module.family.predict(module.denoiser, noisy, times, text.sized(sizes))
        prediction.float().pow(2).mean().backward()


class _Denoising(torch.nn.Module):
    """One step of drawing."""

    def __init__(self, components: Components) -> None:
        super().__init__()
        self.networks = torch.nn.ModuleList([*components.text_encoders, components.denoiser])
        self._components = [components]  # a list, as it is no part

    @torch.no_grad()
    def forward(self, noisy: Any, times: Any, ids: Any, sizes: Any) -> None:
        (components,) = self._components
        text = components.family.encode(components.text_encoders, ids)
        components.predict(noisy, times, text.sized(sizes))


class _Decoding(torch.nn.Module):
    """Latents to pictures."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    @torch.no_grad()
    def forward(self, latents: Any) -> None:
        self.vae.decode(latents)


def _step_bytes(module: Personalization, components: Components, recipe: Recipe, shared: Shared) -> float:
    """Most bytes that a forward and a backward pass make at one moment: activations and gradients.

    With fsdp also the weights of other processes, which are gathered for it.
    """
    count = recipe.batch_size
    if recipe.prior_weight:
        count += recipe.class_batch_size or recipe.batch_size
    inputs = _inputs(components, recipe, count)
    copied = copied_bytes(module.denoiser, count, recipe.accumulate)
    return _peak(_MicroBatch(module), inputs, recipe.precision, shared) + shared.gathered + copied


def _drawing_bytes(components: Components, recipe: Recipe) -> float:
    """Most bytes that a batch of class images makes at one moment, beside the model."""
    count = recipe.class_images.batch_size
    guided = count * (2 if recipe.class_images.guidance_scale > 1 else 1)
    latents = torch.zeros(count, *_latent_shape(components, recipe), device=components.device)
    denoising = _peak(_Denoising(components), _inputs(components, recipe, guided))
    return max(
        denoising + guided * kept_bytes(components),
        _peak(_Decoding(components.vae), (latents,)),
    )


def _latent_shape(components: Components, recipe: Recipe) -> tuple[int, int, int]:
    side = recipe.resolution or components.image_size
    return components.latent_shape(side, side)


def _inputs(components: Components, recipe: Recipe, count: int) -> tuple[Any, Any, list[Any], Any]:
    """Noisy latents, times, token ids of every text encoder and sizes, of `count` examples."""
    shape, device = _latent_shape(components, recipe), components.device
    sizes = components.family.sizes(*(side * components.vae_factor for side in shape[1:]))
    ids = [
        torch.full((count, length), tokenizer.eos_token_id, device=device)
        for tokenizer, length in zip(
            components.tokenizers, components.family.lengths(components.tokenizers), strict=True
        )
    ]
    repeated = None if sizes is None else sizes.to(device).expand(count, -1)
    return torch.zeros(count, *shape, device=device), torch.zeros(count, device=device), ids, repeated


def _peak(
    module: torch.nn.Module, inputs: Any, precision: str = "32-true", shared: Shared | None = None
) -> float:
    """Most bytes alive at one moment of what `module` makes of `inputs`, computed without contents.

    Of a gradient that is `shared` (names without the module's first part) a process keeps its part alone.
    """
    dtype = HALVES.get(precision)
    device = next(module.parameters()).device.type
    fake = FakeTensorMode()

    def faked(tensor: torch.Tensor) -> torch.Tensor:
        return fake.from_tensor(tensor.detach()).requires_grad_(tensor.requires_grad)

    own = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    state = {name: faked(value) for name, value in own.items()}
    if shared is not None:
        _share_gradients(state, shared, dtype)
    inputs = tree_map_only(torch.Tensor, faked, inputs)
    live = _Live()
    with fake, torch.autocast(device, dtype, enabled=dtype is not None), live:
        functional_call(module, state, inputs)
    return float(live.peak)


def _share_gradients(state: dict[str, Any], shared: Shared, dtype: torch.dtype | None) -> None:
    """Has what is shared of `state` gathered in `dtype`, and its gradients let go but for a part."""
    kept = []

    def keep_part(parameter: torch.Tensor) -> None:
        gradient, parameter.grad = parameter.grad, None
        if gradient is not None:
            count = -(-gradient.numel() // shared.processes)
            kept.append(gradient.new_empty(count, dtype=torch.float32))

    for name, value in state.items():
        if name.removeprefix("module.") in shared.names:
            gathered = value.detach().to(dtype or value.dtype).requires_grad_(value.requires_grad)
            state[name] = gathered
            if gathered.requires_grad:
                gathered.register_post_accumulate_grad_hook(keep_part)


class _Live(TorchDispatchMode):
    """Counts the bytes of the tensors that operations make, as long as they live."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {t.untyped_storage()._cdata for t in _tensors((args, kwargs)) if isinstance(t, torch.Tensor)}
        made = func(*args, **(kwargs or {}))
        for tensor in _tensors(made):
            storage = tensor.untyped_storage()
            if storage._cdata not in given and storage._cdata not in self._known:
                self._add(storage)
        return made

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def _tensors(values: Any) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    tree_map_only(torch.Tensor, found.append, values)
    return found
