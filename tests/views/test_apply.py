"""The views for a training loop of one's own."""

import numpy as np
import pytest
import torch

from selfsight.errors import ConfigError, DataError
from selfsight.views import View, apply, expand

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 20, 24, 3), dtype=np.uint8)


def test_expand_copies_each_view_count_times():
    main, local = View(count=2), View(size=96, count=3)
    assert expand([main, local]) == [View()] * 2 + [View(size=96)] * 3
    assert expand(main) == [View()] * 2
    assert expand([]) == []


def test_apply_gives_one_tensor_per_crop():
    views = [View(size=16, count=2), View(size=8)]
    crops = apply(IMAGES, views)
    assert [tuple(x.shape) for x in crops] == [(6, 3, 16, 16)] * 2 + [(6, 3, 8, 8)]
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in crops)
    assert not torch.equal(crops[0], crops[1])


def test_apply_depends_on_seed_and_position_alone():
    view = View(size=16, noise=1.0)
    first = apply(IMAGES, view, seed=1, position=4)[0]
    assert torch.equal(apply(IMAGES, [view], seed=1, position=4)[0], first)
    assert not torch.equal(apply(IMAGES, view, seed=1, position=5)[0], first)
    assert not torch.equal(apply(IMAGES, view, seed=2, position=4)[0], first)


def test_slot_i_of_step_k_has_address_k_n_plus_i():
    view = View(size=16)
    whole = apply(IMAGES, view, position=2)[0]
    for i in range(6):
        assert torch.equal(apply(IMAGES[i : i + 1], view, position=12 + i)[0][0], whole[i])


def test_statistics_normalise():
    view = View(size=16, space="rgb")
    raw = apply(IMAGES, View(size=16, space="raw"))[0]
    x = apply(IMAGES, view, mean=(0.5, 0.25, 0.0), std=(0.5, 1.0, 2.0))[0]
    mean, std = (torch.tensor(c).view(3, 1, 1) for c in ((0.5, 0.25, 0.0), (0.5, 1.0, 2.0)))
    assert (x - (raw - mean) / std).abs().max() < 1e-6
    assert raw.min() >= 0
    assert raw.max() <= 1


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (np.zeros((2, 8, 8, 3), np.float32), "image 0 is float32"),
        (np.zeros((2, 8, 8, 4), np.uint8), "views need uint8 \\(height, width, 3\\)"),
        (np.zeros((8, 8, 3), np.uint8), "images are one \\(N, height, width, 3\\) array"),
        (np.array([None, None]), "images are one"),
        ((image for image in ()), "not generator"),
        ([[0, 1], [2, 3]], "image 0 is list"),
        ([np.zeros((8, 8, 3), np.uint8), None], "image 1 is NoneType"),
    ],
)
def test_what_is_no_image_is_refused_in_one_line(images, said):
    with pytest.raises(DataError, match=said) as raised:
        apply(images, View(size=4))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"threads": 0}, "threads ≥ 1"),
        ({"mean": (0.5,)}, "three means"),
        ({"std": (1.0, 0.0, 1.0)}, "deviations > 0"),
        ({"dtype": torch.float16}, "float32 or bfloat16"),
    ],
)
def test_what_makes_no_sense_is_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        apply(np.zeros((2, 8, 8, 3), np.uint8), View(size=4), **options)
    with pytest.raises(ConfigError, match="no view to make"):
        apply(np.zeros((2, 8, 8, 3), np.uint8), [])


def test_numbers_of_numpy_are_numbers():
    image = np.arange(192, dtype=np.uint8).reshape(1, 8, 8, 3)
    ours = apply(image, View(size=4), seed=np.int64(3), position=np.int64(2))
    assert torch.equal(ours[0], apply(image, View(size=4), seed=3, position=2)[0])
