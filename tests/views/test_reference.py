"""Every operator of both executors against PIL or torchvision."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from scenes import PLAIN, photo, raw, table, tensor
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from selfsight import philox
from selfsight.philox import Purpose
from selfsight.views import IMAGENET_MEAN, IMAGENET_STD, cpu, reference
from selfsight.views.sample import COLUMNS, ORDERS, Table, sample
from selfsight.views.spec import View

STEP = 1 / 255


@pytest.fixture(params=[reference.render, cpu.render], ids=["reference", "cpu"])
def render(request: pytest.FixtureRequest) -> Callable[..., Tensor]:
    return request.param


def slack(render: Callable[..., Tensor]) -> float:
    """What may be lost where the reference is exact."""
    return 0 if render is reference.render else 2e-6


# Geometry


@pytest.mark.parametrize(
    ("box", "size"),
    [
        ((0, 0, 90, 120), 32),  # smaller
        ((10, 20, 60, 50), 32),  # smaller, unequally
        ((3, 5, 20, 14), 48),  # larger
        ((3, 5, 80, 14), 40),  # smaller one way, larger the other
        ((7, 9, 1, 1), 8),
        ((89, 119, 1, 1), 8),
        ((0, 0, 90, 1), 7),
        ((40, 50, 32, 32), 32),
        ((0, 0, 90, 120), 1),
    ],
)
def test_crop_and_resize(box, size, render):
    image = photo(90, 120)
    top, left, height, width = box
    ours = raw([image], size, render, top=top, left=left, height=height, width=width)[0]
    exact = F.resized_crop(
        tensor(image), *box, [size, size], InterpolationMode.BILINEAR, antialias=True
    )
    assert (ours - exact).abs().max() < 1e-5
    pil = Image.fromarray(image).crop((left, top, left + width, top + height))
    pil = pil.resize((size, size), Image.Resampling.BILINEAR)
    assert (ours - tensor(pil)).abs().max() <= STEP


def test_a_crop_of_the_views_own_size_is_exact(render):
    image = photo(40, 50)
    ours = raw([image], 32, render, top=3, left=4, height=32, width=32)[0]
    assert (ours - tensor(image[3:35, 4:36])).abs().max() <= slack(render)


def test_flip_and_quarter_turns(render):
    image = photo(32, 32)
    expected = tensor(image)
    for flip in (0, 1):
        for turns in range(4):
            ours = raw([image], 32, render, flip=flip, turns=turns)[0]
            pil = Image.fromarray(image)
            pil = ImageOps.mirror(pil) if flip else pil
            assert (ours - tensor(pil.rotate(90 * turns))).abs().max() <= slack(render)
            expected = tensor(image).flip(-1) if flip else tensor(image)
            assert (ours - expected.rot90(turns, (-2, -1))).abs().max() <= slack(render)


def test_flip_after_a_resize_is_the_mirror_image(render):
    image = photo(50, 71)
    mirrored = raw([image], 32, render).flip(-1)
    assert (raw([image], 32, render, flip=1) - mirrored).abs().max() <= slack(render)


# Photometry. Each on two of three samples with different strengths.

OPERATORS: dict[str, tuple[dict[str, list[float]], Callable[[Tensor, int], Tensor]]] = {
    "darker": (
        {"brightness": [0.3, 1, 0.7]},
        lambda x, i: F.adjust_brightness(x, [0.3, 1, 0.7][i]),
    ),
    "brighter": (
        {"brightness": [1.8, 1, 1.2]},
        lambda x, i: F.adjust_brightness(x, [1.8, 1, 1.2][i]),
    ),
    "contrast": ({"contrast": [0.2, 1, 1.8]}, lambda x, i: F.adjust_contrast(x, [0.2, 1, 1.8][i])),
    "saturation": (
        {"saturation": [0.0, 1, 1.8]},
        lambda x, i: F.adjust_saturation(x, [0.0, 1, 1.8][i]),
    ),
    "hue": ({"hue": [-0.2, 0, 0.37]}, lambda x, i: F.adjust_hue(x, [-0.2, 0, 0.37][i])),
    "half a turn of hue": (
        {"hue": [-0.5, 0, 0.5]},
        lambda x, i: F.adjust_hue(x, [-0.5, 0, 0.5][i]),
    ),
    "gray": ({"gray": [1, 0, 1]}, lambda x, i: F.rgb_to_grayscale(x, 3) if i != 1 else x),
    "blur": (
        {"sigma": [0.1, 0, 2.0]},
        lambda x, i: F.gaussian_blur(x, [5, 5], [0.1, 0, 2.0][i]) if i != 1 else x,
    ),
    "solarize": ({"solarize": [1, 0, 1]}, lambda x, i: F.solarize(x, 0.5) if i != 1 else x),
    "equalize": ({"equalize": [1, 0, 1]}, lambda x, i: F.equalize(x) if i != 1 else x),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_operator_agrees_with_torchvision(name, render):
    columns, theirs = OPERATORS[name]
    images = [photo(48, 48, seed) for seed in range(3)]
    ours = raw(images, 48, render, **columns)
    for i, image in enumerate(images):
        assert (ours[i] - theirs(tensor(image), i)).abs().max() < 2e-5, i
    assert (ours[1] - tensor(images[1])).abs().max() <= slack(render)
    assert (ours[0] - tensor(images[0])).abs().max() > STEP or columns == OPERATORS["blur"][0]


@pytest.mark.parametrize(
    ("columns", "theirs"),
    [
        ({"brightness": 1.4}, lambda im: ImageEnhance.Brightness(im).enhance(1.4)),
        ({"brightness": 0.4}, lambda im: ImageEnhance.Brightness(im).enhance(0.4)),
        ({"gray": 1}, lambda im: im.convert("L").convert("RGB")),
        ({"solarize": 1}, lambda im: ImageOps.solarize(im, 128)),
        ({"equalize": 1}, ImageOps.equalize),
    ],
)
def test_operator_agrees_with_pil(columns, theirs, render):
    images = [photo(64, 64), photo(20, 20, 1), np.full((64, 64, 3), 77, np.uint8)]
    for image in images:
        ours = raw([image], len(image), render, **columns)[0]
        assert (ours - tensor(theirs(Image.fromarray(image)))).abs().max() <= STEP + 1e-6


def test_hue_of_pure_and_gray_colours(render):
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (9, 9, 9), (0, 0, 0)]
    images = [np.full((2, 2, 3), c, np.uint8) for c in colours]
    third = raw(images, 2, render, hue=1 / 3)[:, :, 0, 0] * 255
    expected = [(0, 255, 0), (0, 0, 255), (255, 0, 0), (0, 255, 255), (9, 9, 9), (0, 0, 0)]
    assert (third - torch.tensor(expected)).abs().max() < 1e-2


@pytest.mark.parametrize("size", [30, 96, 224])
def test_blur_kernel_grows_with_the_side(size, render):
    image = photo(size, size)
    taps = View(size=size).blur_kernel
    ours = raw([image], size, render, sigma=1.7)[0]
    assert (ours - F.gaussian_blur(tensor(image), [taps, taps], [1.7, 1.7])).abs().max() < 1e-5


@pytest.mark.parametrize("order", range(24))
def test_jitter_follows_each_samples_order(order, render):
    steps = [
        lambda x: F.adjust_brightness(x, 1.5),
        lambda x: F.adjust_contrast(x, 1.6),
        lambda x: F.adjust_saturation(x, 0.4),
        lambda x: F.adjust_hue(x, 0.15),
    ]
    images = [photo(24, 24, seed) for seed in range(2)]
    orders = [order, (order + 7) % 24]
    jitter = {"brightness": 1.5, "contrast": 1.6, "saturation": 0.4, "hue": 0.15}
    ours = raw(images, 24, render, order=orders, **jitter)
    for image, own, which in zip(images, ours, orders, strict=True):
        expected = tensor(image)
        for number in ORDERS[which]:
            expected = steps[number](expected)
        assert (own - expected).abs().max() < 1e-4


@pytest.mark.parametrize(("x", "y"), [(0.5, 0.5), (0.0, 0.0), (0.999, 0.3), (0.1, 0.95)])
@pytest.mark.parametrize("side", [1, 2, 9, 32])
def test_cutout_is_a_clipped_gray_square(x, y, side, render):
    image = np.full((side, side, 3), 200, np.uint8)
    ours = raw([image], side, render, cutout_x=x, cutout_y=y)[0]
    half = max(1, side // 2)
    expected = np.full((side, side), 200 / 255, np.float32)
    left, top = (int(np.floor(np.float32(c) * side)) - half // 2 for c in (x, y))
    expected[max(0, top) : max(0, top + half), max(0, left) : max(0, left + half)] = 0.5
    assert (ours - torch.from_numpy(expected)).abs().max() <= slack(render)
    assert (ours == 0.5).any()


def test_noise_has_an_address(render):
    images = [np.full((64, 64, 3), 128, np.uint8)] * 3
    plain = table(images, noise=[0.1, 0.0, 0.1])
    moved = Table(plain.values, 5, np.array([2, 1, 7]), 3)
    ours = render(images, moved, View(size=64, space="raw"), **PLAIN)
    noise = ours - 128 / 255
    assert noise[1].abs().max() <= slack(render)
    for i, position in ((0, 2), (2, 7)):
        normal = philox.normal(5, position, Purpose.NOISE, 3 * 64 * 64, view=3)
        expected = (128 / 255 + 0.1 * normal).clip(0, 1).reshape(3, 64, 64)
        assert np.abs(ours[i].numpy() - expected).max() < 1e-5
        assert abs(noise[i].std() - 0.1) < 0.003
    assert abs(np.corrcoef(noise[0].flatten(), noise[2].flatten())[0, 1]) < 0.05


def test_sobel_is_the_gradient_magnitude_of_the_luminance(render):
    image = photo(32, 32)
    gray = torch.nn.functional.pad(F.rgb_to_grayscale(tensor(image))[None], (1,) * 4, "reflect")
    across = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 4
    kernel = torch.stack([across, across.T])[:, None]
    expected = torch.nn.functional.conv2d(gray, kernel).norm(dim=1).clamp(max=1)
    ours = raw([image], 32, render, sobel=1)[0]
    assert (ours - expected).abs().max() < 1e-5
    assert ours.max() > 0.2
    flat = raw([np.full((8, 8, 3), 90, np.uint8)], 8, render, sobel=1)
    assert flat.abs().max() <= slack(render)


# Chains


def chain(image: np.ndarray, row: dict[str, float], view: View) -> Tensor:
    """The same parameters through torchvision's functions."""
    box = [int(row[c]) for c in ("top", "left", "height", "width")]
    size = [view.size, view.size]
    x = F.resized_crop(tensor(image), *box, size, InterpolationMode.BILINEAR, antialias=True)
    x = F.horizontal_flip(x) if row["flip"] else x
    x = x.rot90(int(row["turns"]), (-2, -1))
    adjust = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
    names = ("brightness", "contrast", "saturation", "hue")
    for number in ORDERS[int(row["order"])]:
        x = adjust[number](x, row[names[number]])
    x = F.rgb_to_grayscale(x, 3) if row["gray"] else x
    if row["sigma"]:
        x = F.gaussian_blur(x, [view.blur_kernel] * 2, [row["sigma"]] * 2)
    x = F.solarize(x, 0.5) if row["solarize"] else x
    return F.equalize((x * 255).round() / 255) if row["equalize"] else x


@pytest.mark.parametrize(
    "view",
    [
        View(size=32, space="raw"),
        View(
            size=48,
            space="raw",
            rotate=0.5,
            solarize=0.5,
            equalize=0.3,
            jitter=(0.4, 0.4, 0.4, 0.5),
        ),
    ],
)
def test_chains_agree_with_torchvision(view, render):
    images = [photo(60 + 5 * (i % 3), 80, i) for i in range(48)]
    drawn = sample(view, reference.sizes(images), seed=1, position=np.arange(48), index=0)
    ours = render(images, drawn, view, **PLAIN)
    rows = [dict(zip(COLUMNS, map(float, row), strict=True)) for row in drawn.values]
    theirs = torch.stack([chain(*pair, view) for pair in zip(images, rows, strict=True)])
    assert ((ours - theirs).abs() <= STEP).all(dim=1).float().mean() >= 0.999
    assert (ours - theirs).abs().mean() < 1e-3


# Colour space


@pytest.mark.parametrize(
    ("colour", "lab"),
    [
        ((255, 0, 0), (53.24, 80.09, 67.20)),
        ((0, 255, 0), (87.73, -86.18, 83.18)),
        ((0, 0, 255), (32.30, 79.19, -107.86)),
        ((255, 255, 255), (100, 0, 0)),
        ((119, 119, 119), (50.03, 0, 0)),
        ((5, 5, 5), (1.37, 0, 0)),
        ((0, 0, 0), (0, 0, 0)),
    ],
)
def test_lab(colour, lab, render):
    image = np.full((3, 3, 3), colour, np.uint8)
    x = render([image], table([image]), View(size=3, space="lab"), **PLAIN)
    measured = (x[0, :, 1, 1] + torch.tensor([1.0, 0, 0])) * torch.tensor([50.0, 110, 110])
    assert measured.tolist() == pytest.approx(lab, abs=0.02)


def test_rgb_is_normalised_and_channels_last(render):
    image = photo(16, 16)
    x = render([image] * 2, table([image] * 2), View(size=16), mean=IMAGENET_MEAN, std=IMAGENET_STD)
    assert (x[0] - F.normalize(tensor(image), IMAGENET_MEAN, IMAGENET_STD)).abs().max() < 1e-6
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert x.dtype == torch.float32
