"""Models that are on another device than their schedule: what the samplers give them is moved there.

PyTorch's "meta" device stands for a GPU: it computes shapes alone, and refuses tensors of the CPU as GPUs do.
"""

from __future__ import annotations

import pytest
import torch

from studiolo.diffusion.conditioning import Conditioning
from studiolo.diffusion.noise import generators
from studiolo.diffusion.sampler_settings import SamplerSettings
from studiolo.diffusion.samplers import FLOW_SAMPLERS, SAMPLERS
from studiolo.diffusion.sampling import sample_latents
from tiny_families import TINY

PICTURES = 2


def on_meta(name: str):
    """The model without its weights, noisy latents for it and what it is told of two pictures."""
    components = TINY[name]()
    for module in components.modules.values():
        module.to("meta")
    config = components.denoiser.config
    pooled = {"sdxl": 24, "sd3": 40}.get(name.split()[0])
    told = Conditioning(
        torch.empty(
            PICTURES, 20, config.get("joint_attention_dim") or config.cross_attention_dim, device="meta"
        ),
        None if pooled is None else torch.empty(PICTURES, pooled, device="meta"),
    )
    noisy = torch.empty(PICTURES, *components.latent_shape(), device="meta")
    return components, noisy, told.sized(components.family.sizes(32, 32))


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("times", [torch.tensor(500.5), torch.tensor([500, 20])], ids=["scalar", "each"])
def test_times_on_the_cpu_reach_a_model_that_is_elsewhere(name, times):
    components, noisy, told = on_meta(name)
    prediction = components.predict(noisy, times, told)
    assert prediction.device.type == "meta"
    assert prediction.shape == noisy.shape


@pytest.mark.parametrize(
    ("name", "sampler"), [*(("sd1", one) for one in SAMPLERS), *(("sd3", one) for one in FLOW_SAMPLERS)]
)
def test_every_sampler_goes_its_way_there(name, sampler):
    components, noisy, told = on_meta(name)
    sources = generators(range(PICTURES))
    settings = SamplerSettings(sampler, 3, 4.0)
    latents = sample_latents(components, told, told, sources, tuple(noisy.shape[1:]), settings)
    assert latents.device.type == "meta"
    assert latents.shape == noisy.shape
