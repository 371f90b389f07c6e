"""Views, latents and draws against diffusers' own posterior and against what must hold for every input."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps

from studiolo.dreambooth.examples import ExampleSet, LatentEncoder, encode_examples, visits
from studiolo.dreambooth.transforms import Transform, View, image_tensor, mask_focus, mask_tensor
from tiny import tiny_components

SIZE = 32
sides = st.integers(1, 300)
transforms = st.builds(
    Transform,
    size=st.just(SIZE),
    crop=st.sampled_from(["center", "random"]),
    flip=st.booleans(),
    crop_variants=st.integers(1, 4),
    min_scale=st.floats(0.05, 1),
    seed=st.integers(0, 2**63 - 1),
)


@pytest.fixture(scope="module")
def components():
    return tiny_components()


def picture(seed: int, size: tuple[int, int] = (48, 40)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def box_mask(size: tuple[int, int], box: tuple[int, int, int, int]) -> Image.Image:
    mask = Image.new("L", size)
    mask.paste(255, box)
    return mask


def count_encodings(monkeypatch, vae) -> list[int]:
    """The batch sizes of all calls of vae.encode from now on."""
    batches: list[int] = []
    encode = vae.encode
    monkeypatch.setattr(vae, "encode", lambda pixels: batches.append(len(pixels)) or encode(pixels))
    return batches


@given(transforms, st.tuples(sides, sides), st.text(max_size=5))
def test_every_square_lies_inside_its_image(transform, size, key):
    views = transform.views(size, key)
    assert len(views) == transform.count
    for left, top, right, bottom in (view.box for view in views):
        assert 0 <= left < right <= size[0]
        assert 0 <= top < bottom <= size[1]
        assert right - left == bottom - top
        if transform.crop == "center":
            assert right - left == min(size)
        else:
            assert right - left >= max(1, int(min(size) * transform.min_scale))


@given(transforms, st.data())
def test_every_square_of_a_masked_image_shows_some_of_the_subject(transform, data):
    width, height = data.draw(st.tuples(sides, sides))
    x, y = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    for left, top, right, bottom in (v.box for v in transform.views((width, height), "key", focus=(x, y))):
        assert 0 <= left <= x < right <= width
        assert 0 <= top <= y < bottom <= height


@given(transforms, st.tuples(sides, sides))
def test_squares_depend_on_seed_image_and_number_alone(transform, size):
    views = transform.views(size, "one image")
    assert views == transform.views(size, "one image")
    fewer = Transform(**{**vars(transform), "crop_variants": 1})
    assert views[: fewer.count] == fewer.views(size, "one image")


def test_other_seeds_and_images_get_other_squares():
    transform = Transform(SIZE, crop="random", crop_variants=8)
    views = transform.views((300, 200), "a")
    assert views != transform.views((300, 200), "b")
    assert views != Transform(SIZE, crop="random", crop_variants=8, seed=1).views((300, 200), "a")


@given(st.integers(2, 60), st.data())
def test_mirroring_twice_gives_the_square_back(side, data):
    image = picture(side, (side + 5, side + 3))
    left, top = data.draw(st.integers(0, 5)), data.draw(st.integers(0, 3))
    box = (left, top, left + side, top + side)
    plain = View(box, False).of(image, side, Image.Resampling.LANCZOS)
    mirrored = View(box, True).of(image, side, Image.Resampling.LANCZOS)
    assert plain.tobytes() == image.crop(box).tobytes()
    assert ImageOps.mirror(mirrored).tobytes() == plain.tobytes()


@given(transforms, st.tuples(st.integers(40, 200), st.integers(40, 200)))
def test_image_and_mask_stay_aligned(transform, size):
    """Each pixel of the picture holds its own coordinate; so does each pixel of the mask."""
    columns = np.broadcast_to(np.linspace(0, 255, size[0], dtype=np.float32), size[::-1])
    rows = np.broadcast_to(np.linspace(0, 255, size[1], dtype=np.float32)[:, None], size[::-1])
    image = Image.fromarray(np.stack([columns, rows, rows], axis=2).astype(np.uint8))
    for axis, gradient in ((0, columns), (1, rows)):
        mask = Image.fromarray(gradient.astype(np.uint8))
        for view in transform.views(size, "key"):
            seen = image_tensor(view.of(image, SIZE, Image.Resampling.LANCZOS))[axis] / 2 + 0.5
            share = mask_tensor(mask, view, SIZE, 4)[0]
            cells = torch.nn.functional.avg_pool2d(seen[None], 4)[0]
            assert torch.allclose(cells, share, atol=0.02)


@given(st.integers(0, 7), st.integers(0, 7), st.integers(1, 8), st.integers(1, 8), st.booleans())
def test_mask_is_the_share_of_each_latent_cell(x, y, width, height, flipped):
    """At the scale of the image itself, the weights are exact areas: their sum is the mask's."""
    box = (4 * x, 4 * y, min(SIZE, 4 * x + width), min(SIZE, 4 * y + height))
    mask = box_mask((SIZE, SIZE), box)
    share = mask_tensor(mask, View((0, 0, SIZE, SIZE), flipped), SIZE, 4)
    assert share.shape == (1, 8, 8)
    assert share.sum().item() * 16 == pytest.approx((box[2] - box[0]) * (box[3] - box[1]))
    column = 7 - x if flipped else x
    inside = min(4, box[2] - box[0]) * min(4, box[3] - box[1])
    assert share[0, y, column].item() == pytest.approx(inside / 16)


@given(st.lists(st.tuples(st.integers(0, 29), st.integers(0, 19)), min_size=1))
def test_focus_is_a_white_pixel(points):
    mask = Image.new("L", (30, 20))
    for point in points:
        mask.putpixel(point, 255)
    assert mask.getpixel(mask_focus(mask)) == 255


def test_posterior_is_that_of_diffusers(components):
    images = [picture(1), picture(2, (32, 32))]
    examples = encode_examples(components, images, Transform(SIZE), None)
    assert examples.mean.shape == (2, 2, 4, 8, 8)
    for n, image in enumerate(images):
        square = ImageOps.fit(image, (min(image.size),) * 2).resize((SIZE, SIZE), Image.Resampling.LANCZOS)
        for v, seen in enumerate((square, ImageOps.mirror(square))):
            pixels = torch.tensor(np.asarray(seen) / 127.5 - 1).permute(2, 0, 1)[None].float()
            with torch.no_grad():
                posterior = components.vae.encode(pixels).latent_dist
            torch.testing.assert_close(examples.mean[n, v], posterior.mean[0])
            torch.testing.assert_close(examples.logvar[n, v], posterior.logvar[0])


def test_mixed_precision_around_the_encoder_changes_nothing(components):
    outside = encode_examples(components, [picture(1)], Transform(SIZE), None)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = encode_examples(components, [picture(1)], Transform(SIZE), None)
    assert torch.equal(inside.mean, outside.mean)


def test_draws_have_the_posterior_of_the_image(components):
    """20,000 draws of one image, unscaled again, have its mean and its standard deviation."""
    examples = encode_examples(components, [picture(3)], Transform(SIZE, flip=False), None)
    # The variances of random weights are of no use here: these span what a trained VAE gives.
    logvar = torch.linspace(-12, 0, examples.logvar.numel()).view_as(examples.logvar)
    wide = ExampleSet(examples.mean, logvar, scaling_factor=examples.scaling_factor)
    count = 20_000
    latents = wide.draw(0, "test", range(count)).latents / components.vae.config.scaling_factor
    deviation = (logvar[0, 0] / 2).exp()
    error = (latents.mean(0) - examples.mean[0, 0]).abs() / (deviation / count**0.5)
    assert error.max() < 5
    torch.testing.assert_close(latents.std(0), deviation, rtol=0.03, atol=1e-6)


@pytest.fixture(scope="module")
def five(components):
    images = [picture(i) for i in range(5)]
    masks = [box_mask((48, 40), (i, i, 20 + i, 30)) if i % 2 else None for i in range(5)]
    return encode_examples(components, images, Transform(SIZE, crop="random", crop_variants=2), None, masks)


@settings(max_examples=30)
@given(st.integers(0, 2**63 - 1), st.text(max_size=5), st.integers(0, 10**6))
def test_each_epoch_meets_each_image_once(five, seed, stream, epoch):
    order = visits(len(five), seed, stream, range(5 * epoch, 5 * epoch + 5))
    assert sorted(order.tolist()) == [0, 1, 2, 3, 4]


def test_epochs_have_orders_of_their_own(five):
    orders = visits(len(five), 0, "test", range(5 * 600)).view(600, 5)
    counts = torch.stack([(orders[:, place] == image).sum() for place in range(5) for image in range(5)])
    # Every image falls on every place in a fifth of the epochs (120 of 600; deviation 9.8).
    assert (counts - 120).abs().max() < 50


@settings(max_examples=20)
@given(st.lists(st.integers(0, 10**9), min_size=2, max_size=8), st.integers(1, 7))
def test_draws_do_not_depend_on_the_batch(five, counters, cut):
    whole = five.draw(7, "test", counters)
    parts = [five.draw(7, "test", part) for part in (counters[:cut], counters[cut:]) if part]
    for name in ("latents", "image_index", "masks"):
        assert torch.equal(getattr(whole, name), torch.cat([getattr(part, name) for part in parts]))


def test_every_view_is_drawn_with_its_own_mask(five):
    """Without noise, a draw is one of the stored views, and its mask is the mask of that view."""
    still = ExampleSet(five.mean, torch.full_like(five.logvar, -1e9), five.masks, five.scaling_factor)
    met = set()
    for latents, index, mask in zip(*still.draw(1, "test", range(200))[:3], strict=True):
        views = [v for v in range(4) if torch.allclose(five.mean[index, v] * 0.5, latents, atol=1e-5)]
        assert len(views) == 1
        assert torch.equal(five.masks[index, views[0]], mask)
        met.add((index.item(), views[0]))
    assert met == set(itertools.product(range(5), range(4)))


def test_images_without_mask_count_in_full(five, components):
    assert five.masks.shape == (5, 4, 1, 8, 8)
    assert (five.masks[0] == 1).all()
    assert ((five.masks[1].sum(dim=(1, 2, 3)) > 0) & (five.masks[1].mean(dim=(1, 2, 3)) < 1)).all()
    assert encode_examples(components, [picture(0)], Transform(SIZE), None).masks is None


def test_images_that_come_one_by_one_are_the_same_examples(components, five):
    images = [picture(i) for i in range(5)]
    encoder = LatentEncoder(components, Transform(SIZE, crop="random", crop_variants=2))
    joined = ExampleSet.joined([encoder.encode([image]) for image in images])
    together = encoder.encode(images)
    assert torch.equal(joined.mean, together.mean)
    first = ExampleSet.joined([encoder.encode([image]) for image in images[:2]])
    index, counters = torch.tensor([1, 0]), [11, 12]
    early, late = (s.draw_at(index, 0, "class", counters).latents for s in (first, together))
    assert torch.equal(early, late)


def test_the_second_time_nothing_is_encoded(components, tmp_path, monkeypatch):
    batches = count_encodings(monkeypatch, components.vae)
    images = [picture(1), picture(2)]
    first = encode_examples(components, images, Transform(SIZE), tmp_path)
    assert sum(batches) == 4
    again = encode_examples(components, images[::-1], Transform(SIZE), tmp_path)
    assert sum(batches) == 4
    assert torch.equal(again.mean, first.mean.flip(0))
    assert torch.equal(again.logvar, first.logvar.flip(0))


@pytest.mark.parametrize(
    "transform",
    [
        Transform(SIZE, flip=False),
        Transform(SIZE + 8),
        Transform(SIZE, crop="random"),
        Transform(SIZE, crop="random", crop_variants=2),
        Transform(SIZE, crop="random", min_scale=0.5),
        Transform(SIZE, crop="random", seed=1),
    ],
)
def test_another_transform_is_encoded_anew(components, tmp_path, monkeypatch, transform):
    for other in (Transform(SIZE), Transform(SIZE, crop="random", crop_variants=3)):
        encode_examples(components, [picture(1)], other, tmp_path)
    batches = count_encodings(monkeypatch, components.vae)
    cached = encode_examples(components, [picture(1)], transform, tmp_path)
    assert sum(batches) == transform.count
    assert torch.equal(cached.mean, encode_examples(components, [picture(1)], transform, None).mean)


def test_another_image_or_vae_is_encoded_anew(components, tmp_path, monkeypatch):
    image = picture(1)
    encode_examples(components, [image], Transform(SIZE), tmp_path)
    changed = image.copy()
    changed.putpixel((20, 20), (1, 2, 3))
    other = components.copy()
    with torch.no_grad():
        next(other.vae.parameters()).view(-1)[0] += 1e-3
    for model, seen in ((components, changed), (other, image)):
        batches = count_encodings(monkeypatch, model.vae)
        encode_examples(model, [seen], Transform(SIZE), tmp_path)
        assert sum(batches) == 2


def test_training_the_rest_keeps_the_cache(components, tmp_path, monkeypatch):
    encode_examples(components, [picture(1)], Transform(SIZE), tmp_path)
    other = components.copy()
    with torch.no_grad():
        next(other.denoiser.parameters()).add_(1)
    batches = count_encodings(monkeypatch, other.vae)
    encode_examples(other, [picture(1)], Transform(SIZE), tmp_path)
    assert batches == []


@pytest.mark.parametrize(
    "damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"x" * 99]
)
def test_a_damaged_cache_file_is_written_anew(components, tmp_path, damage):
    first = encode_examples(components, [picture(1)], Transform(SIZE), tmp_path)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    again = encode_examples(components, [picture(1)], Transform(SIZE), tmp_path)
    assert torch.equal(again.mean, first.mean)
    assert file.read_bytes() == whole


@pytest.mark.parametrize("wrong", [{"size": 0}, {"crop_variants": 0}, {"min_scale": 0.0}, {"min_scale": 1.1}])
def test_a_transform_out_of_bounds_is_refused(wrong):
    with pytest.raises(ValueError, match="min_scale in"):
        Transform(**{"size": SIZE, **wrong})


def test_sizes_are_those_of_diffusers_training_scripts():
    """The original, the crop's corner in the image as it is scaled, the picture: (height, width) each; a
    mirrored view has its corner mirrored (examples/dreambooth/train_dreambooth_lora_sdxl.py)."""
    view = View((10, 20, 50, 60), False)
    assert view.sizes((100, 80), 20) == [80, 100, 10, 5, 20, 20]
    assert View((10, 20, 50, 60), True).sizes((100, 80), 20) == [80, 100, 10, 25, 20, 20]


@given(st.tuples(sides, sides), st.tuples(st.integers(8, 64), st.integers(8, 64)), st.integers(0, 9))
def test_parts_of_other_shapes_keep_their_proportions(size, shape, seed):
    transform = Transform(shape, crop="random", crop_variants=3, seed=seed)
    for left, top, right, bottom in (view.box for view in transform.views(size, "key")):
        assert 0 <= left < right <= size[0]
        assert 0 <= top < bottom <= size[1]
        width, height = right - left, bottom - top
        # each side is rounded to the nearest pixel, but there is at least one
        assert abs(width * shape[1] - height * shape[0]) <= sum(shape) / 2 or min(width, height) == 1


def test_jitter_changes_colours_but_not_masks_and_is_part_of_the_key(components):
    image, mask = picture(1), box_mask((48, 40), (5, 5, 30, 30))
    plain, toned = Transform(SIZE, flip=False), Transform(SIZE, flip=False, color_jitter=0.3, crop_variants=3)
    views = toned.views(image.size, "a")
    assert len({view.tone for view in views}) == 3
    assert all(0.7 <= factor <= 1.3 for view in views for factor in view.tone)
    assert views == toned.views(image.size, "a")
    first = plain.views(image.size, "a")[0]
    assert {view.box for view in views} == {first.box}
    for view in views:
        assert view.key != first.key
        assert view.of(image, SIZE, Image.Resampling.LANCZOS) != first.of(
            image, SIZE, Image.Resampling.LANCZOS
        )
        assert torch.equal(mask_tensor(mask, view, SIZE, 4), mask_tensor(mask, first, SIZE, 4))


def test_brightness_is_pillows_own():
    image = picture(2, (SIZE, SIZE))
    view = View((0, 0, SIZE, SIZE), False, (1.2, 1.0, 1.0))
    expected = ImageEnhance.Brightness(image).enhance(1.2)
    assert view.of(image, SIZE, Image.Resampling.LANCZOS).tobytes() == expected.tobytes()
