"""Pixels depend on the image and its row of the table, and on nothing else."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from scenes import PLAIN, photo, raw, table
from torch import Tensor

from selfsight.errors import DataError
from selfsight.views import IMAGENET_MEAN, IMAGENET_STD, reference
from selfsight.views.sample import COLUMNS, sample
from selfsight.views.spec import View

EVERYTHING = View(
    size=33,
    blur_sigma=(0.1, 2.0),
    jitter_p=0.8,
    **dict.fromkeys(
        ("flip", "rotate", "gray", "blur", "solarize", "equalize", "cutout", "noise", "sobel"), 0.4
    ),
)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def batches() -> dict[str, list[np.ndarray]]:
    rng = np.random.default_rng(0)
    mixed = [photo(*rng.integers(1, 70, 2), seed) for seed in range(24)]
    return {"same": [photo(40, 40, seed) for seed in range(24)], "mixed": mixed}


@pytest.mark.parametrize("kind", ["same", "mixed"])
def test_subsets_threads_and_chunks_give_the_same_bits(kind, threads, monkeypatch):
    view = replace(EVERYTHING, space="lab")
    images = batches()[kind]
    drawn = sample(view, reference.sizes(images), seed=4, position=np.arange(24), index=1)

    def render(rows: list[int]) -> Tensor:
        return reference.render(
            [images[i] for i in rows],
            drawn.take(np.array(rows)),
            view,
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
        )

    threads(1)
    whole = render(list(range(24)))
    assert torch.isfinite(whole).all()
    for rows in ([3], [23], list(range(0, 24, 3)), list(range(23, -1, -1)), list(range(7))):
        assert torch.equal(render(rows), whole[rows]), rows
    threads(2)
    assert torch.equal(render(list(range(24))), whole)
    assert torch.equal(render([11, 12]), whole[[11, 12]])
    monkeypatch.setattr(reference, "_CHUNK", 10_000)
    assert torch.equal(render(list(range(24))), whole)


def test_work_split_among_threads_leaves_no_trace(threads):
    # Large enough that torch splits even one plane, and the sum over it.
    view = replace(EVERYTHING, space="lab", size=192, noise=1.0)
    images = [photo(200, 210, seed) for seed in range(2)]
    drawn = sample(view, reference.sizes(images), seed=0, position=np.arange(2), index=0)
    drawn.values[:, COLUMNS.index("contrast")] = 1.3

    def render(rows: slice) -> Tensor:
        return reference.render(images[rows], drawn.take(rows), view, **PLAIN)

    threads(1)
    whole = render(slice(0, 2))
    threads(2)
    assert torch.equal(render(slice(0, 2)), whole)
    assert torch.equal(render(slice(1, 2)), whole[1:2])


def test_the_mean_of_one_large_image_is_the_same_for_any_number_of_threads(threads):
    for seed in range(8):
        pixels = []
        for count in (1, 2):
            threads(count)
            pixels.append(raw([photo(200, 200, seed)], 200, contrast=0.1))
        assert torch.equal(*pixels)


@pytest.mark.parametrize("size", [1, 2, 5, 32])
@pytest.mark.parametrize("shape", [(1, 1), (1, 17), (17, 1), (2, 2), (3, 301)])
def test_tiny_and_odd_images(shape, size):
    options = ("flip", "rotate", "gray", "blur", "solarize", "equalize", "cutout", "noise", "sobel")
    for on in ({}, *({name: 1.0} for name in options), dict.fromkeys(options, 1.0)):
        view = View(size=size, **on)
        images = [photo(*shape)] * 2
        drawn = sample(view, reference.sizes(images), seed=0, position=np.arange(2), index=0)
        x = reference.render(images, drawn, view, **PLAIN)
        assert x.shape == (2, 3, size, size)
        assert torch.isfinite(x).all()
        assert x.min() >= 0
        assert x.max() <= 1


def test_blur_of_a_constant_image_changes_nothing_at_any_side():
    for size in (1, 2, 3, 40):
        image = np.full((size, size, 3), 200, np.uint8)
        assert (raw([image], size, sigma=2.0) - 200 / 255).abs().max() < 1e-6


def test_arrays_tensors_and_lists_are_the_same_images():
    stacked = np.stack([photo(20, 20, seed) for seed in range(3)])
    stacked.setflags(write=False)
    expected = raw(list(stacked), 16)
    assert torch.equal(raw(stacked, 16), expected)
    assert torch.equal(raw(torch.tensor(stacked), 16), expected)
    assert raw(np.zeros((0, 8, 8, 3), np.uint8), 16).shape == (0, 3, 16, 16)
    assert raw([], 16).shape == (0, 3, 16, 16)


@pytest.mark.parametrize(
    "images",
    [
        [np.zeros((4, 4, 3), np.float32)],
        [np.zeros((4, 4), np.uint8)],
        [np.zeros((4, 4, 4), np.uint8)],
        [np.zeros((0, 4, 3), np.uint8)],
        np.zeros((2, 3, 8, 8), np.uint8),
        np.zeros((8, 8, 3), np.uint8),
        torch.zeros(2, 8, 8, 3),
    ],
)
def test_what_is_no_image_is_refused(images):
    with pytest.raises(DataError, match=r"views need uint8 \(height, width, 3\)"):
        reference.sizes(images)


def test_a_table_of_another_length_is_refused():
    images = [photo(8, 8)] * 2
    with pytest.raises(DataError, match="1 images for 2 rows"):
        reference.render(images[:1], table(images), View(size=8), **PLAIN)
