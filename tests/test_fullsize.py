"""The benchmarks' models of the published sizes, counted; the numbers are those of the published weights."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch

from studiolo.formats.diffusers_folder import check_fit

FULL_SIZE = runpy.run_path(str(Path(__file__).parent.parent / "benchmarks" / "fullsize.py"))
CLIP_L, CLIP_G, VAE = 123_060_480, 694_659_840, 83_653_863
COUNTS = {
    "sd1": [CLIP_L, VAE, 859_520_964],
    "sd2": [340_387_840, VAE, 865_910_724],
    "sdxl": [CLIP_L, CLIP_G, VAE, 2_567_463_684],
    "sd3": [CLIP_L + 768 * 768, CLIP_G, 4_762_310_656, 83_819_683, 2_028_328_000],
}


@pytest.mark.parametrize("name", COUNTS)
def test_full_size_models_have_the_published_numbers_of_parameters(name):
    components = FULL_SIZE["full_size"](name)
    assert list(FULL_SIZE["parameters"](components).values()) == COUNTS[name]
    assert components.device == torch.device("meta")
    check_fit(components, Path(name))
    assert components.image_size == {"sd1": 512, "sd2": 768}.get(name, 1024)
    assert len(components.tokenizer) == 49408
