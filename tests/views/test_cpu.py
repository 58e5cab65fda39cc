"""The CPU's executor against the reference."""

from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scenes import PLAIN, photo, table
from torch import Tensor

from selfsight.data.decode import decode
from selfsight.errors import ConfigError, DataError
from selfsight.views import IMAGENET_MEAN, IMAGENET_STD, cpu, expand, presets, reference
from selfsight.views.reference import Images
from selfsight.views.sample import Table, sample
from selfsight.views.spec import View

STEP = 1 / 255
# A tenth of what is promised of one operator: a chain can enlarge it.
NEAR = STEP / 10
IMAGENET = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
SIZES = (1, 2, 3, 5, 8, 31, 32, 33, 96)


def apart(images: Images, drawn: Table, view: View) -> Tensor:
    """How far the executors are from each other, in units of the colours."""
    exact = reference.render(images, drawn, view, **IMAGENET)
    ours = cpu.render(images, drawn, view, **IMAGENET)
    assert ours.shape == exact.shape
    assert ours.is_contiguous(memory_format=torch.channels_last)
    assert torch.isfinite(ours).all()
    unit = IMAGENET_STD if view.space == "rgb" else (1, 1, 1)
    return (ours - exact).abs() * torch.tensor(unit).view(3, 1, 1)


def drawn_for(images: Images, view: View, seed: int = 0, index: int = 0) -> Table:
    extents = reference.sizes(images)
    return sample(view, extents, seed=seed, position=np.arange(len(extents)), index=index)


# Geometry

SHAPES = [(1, 1), (1, 17), (17, 1), (2, 2), (7, 5), (31, 33), (300, 7), (640, 480)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shape", SHAPES)
def test_sources_of_any_shape(shape, size):
    images = [photo(*shape, seed) for seed in range(6)]
    cropped = drawn_for(images, View(crop=(0.01, 1.0), ratio=(0.2, 5.0), jitter_p=0, gray=0))
    whole = table(images, flip=[0, 1, 0, 1, 0, 1], turns=[0, 0, 1, 1, 2, 3])
    for each in (cropped, whole):
        assert apart(images, each, View(size=size, space="raw")).max() < NEAR


@pytest.mark.parametrize("size", [1, 7, 96, 224])
def test_large_sources_become_much_smaller(size):
    images = [photo(2500, 1300), photo(1300, 2500)]
    assert apart(images, table(images, flip=[0, 1]), View(size=size, space="raw")).max() < NEAR


def test_every_corner_of_an_image():
    image = photo(37, 53)
    for height, width in ((1, 1), (1, 53), (37, 1), (5, 6), (16, 16), (36, 52)):
        corners = [(t, s) for t in (0, 37 - height) for s in (0, 53 - width)]
        tops, lefts = (list(map(float, sides)) for sides in zip(*corners, strict=True))
        boxes = {"top": tops, "left": lefts, "height": height, "width": width}
        for size in (1, 8, 33):
            drawn = table([image] * 4, **boxes)
            assert apart([image] * 4, drawn, View(size=size, space="raw")).max() < NEAR


# Photometry

OPERATORS: dict[str, dict[str, float | list[float]]] = {
    "turns": {"turns": [1, 2, 3]},
    "brightness": {"brightness": [0.3, 1.8, 1.2]},
    "contrast": {"contrast": [0.2, 1.8, 0.7]},
    "saturation": {"saturation": [0, 1.8, 0.5]},
    "hue": {"hue": [-0.5, 0.2, 0.37]},
    "gray": {"gray": 1},
    "blur": {"sigma": [0.1, 1.0, 2.0]},
    "a wide blur": {"sigma": [4.0, 20.0, 0.05]},
    "solarize": {"solarize": 1},
    "equalize": {"equalize": 1},
    "cutout": {"cutout_x": [0, 0.5, 0.99], "cutout_y": [0.3, 0.99, 0]},
    "noise": {"noise": 0.1},
    "sobel": {"sobel": 1},
}


@pytest.mark.parametrize("space", ["raw", "rgb", "lab"])
@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_alone(name, space):
    off: list[Tensor] = []
    for size in (*SIZES, 224):
        images = [photo(40, 56, seed) for seed in range(3)]
        far = apart(images, table(images, **OPERATORS[name]), View(size=size, space=space))
        if name == "equalize":  # a value that rounds to another level moves its neighbours' too
            step = STEP + 1e-6 if space != "lab" else 5 * STEP  # of a dark colour in Lab
            off.append((far > step).any(dim=1).flatten())
        else:
            assert far.max() < NEAR, size
    assert not off or torch.cat(off).float().mean() < 1e-3


@pytest.mark.parametrize("order", range(24))
def test_each_order_of_the_jitter(order):
    images = [photo(30, 30, seed) for seed in range(2)]
    jitter = {"brightness": 1.5, "contrast": 1.6, "saturation": 0.4, "hue": 0.15}
    drawn = table(images, order=[order, 23 - order], **jitter)
    assert apart(images, drawn, View(size=30, space="raw")).max() < NEAR


def test_extreme_images():
    colours = [(0, 0, 0), (255, 255, 255), (255, 0, 0), (0, 255, 1), (128, 128, 128), (127,) * 3]
    images = [np.full((9, 9, 3), colour, np.uint8) for colour in colours]
    images += [np.indices((9, 9)).sum(0)[..., None] % 2 * np.full(3, 255, np.uint8)]
    images = [image.astype(np.uint8) for image in images]
    for name, columns in OPERATORS.items():
        columns = {c: v[0] if isinstance(v, list) else v for c, v in columns.items()}
        for size in (9, 16):
            for space in ("raw", "lab"):
                drawn = table(images, **columns)
                assert apart(images, drawn, View(size=size, space=space)).max() < NEAR, name


# Chains

DISCONTINUOUS = ("solarize", "equalize", "hue")
PAPERS: dict[str, list[View]] = {
    "simclr": [presets.simclr_view()],
    "half of simclr": [presets.simclr_view(0.5, solarize=0.2)],
    "moco v1": [presets.moco_view(1)],
    "moco v2": [presets.moco_view(2)],
    "byol": presets.byol_views(),
    "dino": presets.dino_views(6),
    "two crops of dino": presets.dino_views(0),
    "swav": presets.crops(presets.simclr_view(), 4),
    "in lab": [presets.simclr_view(space="lab")],
    "plain": [View(jitter_p=0, gray=0, blur=0)],
}
EVERYTHING = View(
    blur_sigma=(0.1, 2.0),
    **dict.fromkeys(
        ("flip", "rotate", "gray", "blur", "solarize", "equalize", "cutout", "noise", "sobel"), 0.4
    ),
)


@pytest.mark.parametrize("paper", PAPERS)
def test_the_views_of_papers(paper):
    for size, count in ((224, 4), (64, 16), (32, 32)):
        images = [photo(60 + 37 * (i % 3), 150 - 11 * (i % 5), i) for i in range(count)]
        views = presets.fitted(PAPERS[paper], size)
        far = []
        for index, view in enumerate(expand(views)):
            far.append(apart(images, drawn_for(images, view, 1, index), view))
            assert view.jitter[3] or view.solarize or far[-1].max() <= STEP
        worst = torch.cat([each.amax(dim=1).flatten() for each in far])
        assert (worst <= STEP).float().mean() >= 0.999
        assert worst.mean() < NEAR


@pytest.mark.parametrize("space", ["raw", "rgb", "lab"])
def test_everything_at_once(space):
    far = []
    for size in (5, 31, 32, 64):
        view = replace(EVERYTHING, size=size, space=space)
        images = [photo(20 + i, 90 - i, i) for i in range(32)]
        far.append(apart(images, drawn_for(images, view), view).amax(dim=1).flatten())
    assert (torch.cat(far) <= STEP).float().mean() >= 0.999


def test_without_discontinuous_operators_every_pixel_agrees():
    off = dict.fromkeys(("solarize", "equalize"), 0.0)
    for size in (8, 33, 96):
        view = replace(EVERYTHING, size=size, space="raw", jitter=(0.8, 0.8, 0.8, 0), **off)
        images = [photo(20 + i, 90 - i, i) for i in range(24)]
        assert apart(images, drawn_for(images, view, seed=5), view).max() <= STEP


@pytest.mark.parametrize(
    ("column", "value"), [("sigma", 1.02), ("brightness", 1.205), ("left", 1), ("width", 55)]
)
def test_a_slightly_wrong_parameter_is_seen(column, value):
    images = [photo(40, 56, seed) for seed in range(3)]
    right = {"sigma": 1.0, "brightness": 1.2, "width": 54}
    view = View(size=32, space="raw")
    exact = reference.render(images, table(images, **right), view, **PLAIN)
    same = cpu.render(images, table(images, **right), view, **PLAIN)
    other = cpu.render(images, table(images, **{**right, column: value}), view, **PLAIN)
    assert (same - exact).abs().max() < NEAR < (other - exact).abs().max()


# What images may be

STACK = np.stack([photo(30, 40, seed) for seed in range(5)])


def memory_map(folder: Path) -> np.ndarray:
    np.save(folder / "images.npy", STACK)
    return np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False)


def read_only(folder: Path) -> np.ndarray:
    copy = STACK.copy()
    copy.setflags(write=False)
    return copy


KINDS: dict[str, Callable[[Path], Images]] = {
    "a stack": lambda _: STACK,
    "a list": lambda _: list(STACK),
    "a tuple": lambda _: tuple(STACK),
    "a tensor": lambda _: torch.tensor(STACK),
    "a tensor with strides": lambda _: torch.tensor(STACK).mT.contiguous().mT,
    "read-only": read_only,
    "a list of read-only images": lambda folder: list(read_only(folder)),
    "memory-mapped": memory_map,
    "a list of memory-mapped images": lambda folder: list(memory_map(folder)),
    "every second of a stack": lambda _: np.repeat(STACK, 2, axis=0)[::2],
    "with strides": lambda _: np.repeat(np.repeat(STACK, 2, axis=1), 3, axis=2)[:, ::2, ::3],
    "backwards": lambda _: np.flip(np.flip(STACK).copy()),
    "a list of transposed images": lambda _: [image.T.copy().T for image in STACK],
    "parts of larger images": lambda _: [
        np.pad(x, [(3, 2), (1, 5), (0, 0)])[3:-2, 1:-5] for x in STACK
    ],
}


@pytest.mark.parametrize("size", [16, 64])
@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_images(kind, size, tmp_path):
    view = replace(EVERYTHING, size=size)
    expected = cpu.render(STACK.copy(), drawn_for(STACK, view), view, **IMAGENET)
    images = KINDS[kind](tmp_path)
    before = [np.asarray(image).copy() for image in images]
    assert torch.equal(cpu.render(images, drawn_for(images, view), view, **IMAGENET), expected)
    assert all(map(np.array_equal, before, map(np.asarray, images)))


def test_sizes_may_be_mixed():
    view = replace(EVERYTHING, size=24)
    images = [photo(*shape, i) for i, shape in enumerate([*SHAPES, *SHAPES[::-1], (24, 24)])]
    drawn = drawn_for(images, view)
    whole = cpu.render(images, drawn, view, **IMAGENET)
    for i, image in enumerate(images):
        alone = cpu.render([image], drawn.take(np.array([i])), view, **IMAGENET)
        assert torch.equal(alone[0], whole[i]), image.shape


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "I;16", "1", "RGB"])
def test_decoded_files(mode):
    pixels = photo(33, 47)
    if mode == "I;16":
        stored = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    elif mode == "RGBA":
        stored = Image.fromarray(np.dstack([pixels, pixels[..., 1]]))
    else:
        stored = Image.fromarray(pixels).convert(mode)
    file = BytesIO()
    stored.save(file, "PNG")
    images = [decode(file.getvalue())] * 2
    view = View(size=32, jitter=(0.4, 0.4, 0.4, 0), space="raw")
    assert apart(images, drawn_for(images, view), view).max() <= STEP


def test_no_images_give_no_views():
    view = View(size=7)
    for none in ([], np.zeros((0, 5, 5, 3), np.uint8), torch.zeros(0, 5, 5, 3, dtype=torch.uint8)):
        x = cpu.render(none, drawn_for(none, view), view, threads=4, **IMAGENET)
        assert x.shape == (0, 3, 7, 7)


def test_refusals():
    images = [photo(8, 8)] * 2
    with pytest.raises(DataError, match="1 images for 2 rows"):
        cpu.render(images[:1], table(images), View(size=8), **PLAIN)
    with pytest.raises(DataError, match=r"views need uint8 \(height, width, 3\)"):
        cpu.render([photo(8, 8) / 255] * 2, table(images), View(size=8), **PLAIN)
    for dtype in (torch.float16, torch.float64, torch.uint8):
        with pytest.raises(ConfigError, match="float32 or bfloat16"):
            cpu.render(images, table(images), View(size=8), dtype=dtype, **PLAIN)


@pytest.mark.parametrize(
    ("column", "value"),
    [("top", -1), ("left", -1), ("top", 1), ("left", 2), ("height", 9), ("width", 900),
     ("height", 0), ("width", 0.5), ("top", np.nan), ("width", np.nan), ("left", np.inf)],
)  # fmt: skip
def test_a_crop_beyond_its_image_is_refused(column, value):
    images = [photo(8, 9)] * 3
    drawn = table(images, **{column: [0 if column in ("top", "left") else 8, value, 1]})
    with pytest.raises(DataError, match="row 1 of a view's table crops beyond its image of 8×9"):
        cpu.render(images, drawn, View(size=8), **PLAIN)


# bfloat16


@pytest.mark.parametrize("space", ["raw", "rgb", "lab"])
@pytest.mark.parametrize("size", [1, 3, 33, 64])
def test_half_precision_is_single_precision_rounded(space, size):
    view = replace(EVERYTHING, size=size, space=space)
    images = [photo(40, 50, seed) for seed in range(12)]
    drawn = drawn_for(images, view)
    single = cpu.render(images, drawn, view, **IMAGENET)
    half = cpu.render(images, drawn, view, dtype=torch.bfloat16, **IMAGENET)
    assert half.dtype == torch.bfloat16
    assert half.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(half, single.to(torch.bfloat16))


def test_half_precision_rounds_ties_to_even():
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    images = [np.stack([levels] * 3, axis=-1)]
    drawn, view = table(images), View(size=16)
    scale = {"mean": (0, 1, 2), "std": (1 / 765, 1 / 1275, -1 / 765)}
    single = cpu.render(images, drawn, view, **scale)
    half = cpu.render(images, drawn, view, dtype=torch.bfloat16, **scale)
    bits = single.permute(0, 2, 3, 1).contiguous().view(torch.int32)
    assert (bits & 0xFFFF == 0x8000).sum() > 50
    assert torch.equal(half, single.to(torch.bfloat16))
