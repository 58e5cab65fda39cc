"""Label propagation: by the plain definition, and on clips in which it is known what moves."""

import json

import numpy as np
import pytest
import torch
from torch import Tensor

from selfsight.data.base import Arrays
from selfsight.data.masks import Paired
from selfsight.encoders import create_encoder
from selfsight.errors import ConfigError, DataError
from selfsight.evaluate.base import Sight
from selfsight.evaluate.protocols.propagation import Propagation, by_clip, propagated
from selfsight.evaluate.statistics import mean_interval, student_interval

SIGHT = Sight(create_encoder("test_vit", size=64, seed=0, patch_size=8), 64)


def clip(masks: list[np.ndarray], name: str = "clip", still: bool = True) -> Paired:
    """Objects are bright noise over dark noise, the same in each frame if it is still."""
    draw = np.random.default_rng(3)
    noise = draw.integers(60, size=(*masks[0].shape, 3), dtype=np.uint8)
    frames = []
    for mask in masks:
        if not still:
            noise = draw.integers(60, size=noise.shape, dtype=np.uint8)
        frames.append(noise + 90 * np.minimum(mask, 2)[..., None].astype(np.uint8))
    images = Arrays(name, np.stack(frames))
    return Paired(name, images, [m.astype(np.uint8) for m in masks].__getitem__, name)


def square(left: int, value: int = 1, top: int = 16, side: int = 32) -> np.ndarray:
    mask = np.zeros((64, 64), np.int64)
    mask[top : top + side, left : left + side] = value
    return mask


def unit(*shape: int) -> Tensor:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.nn.functional.normalize(x, dim=-3)


# The rule


@pytest.mark.parametrize(("k", "radius"), [(1, 1), (5, 2), (4, 12), (500, 1)])
def test_propagated_is_its_definition(k: int, radius: int) -> None:
    query, keys = unit(6, 4, 5), unit(3, 6, 4, 5)
    labels = torch.rand(3, 2, 4, 5, dtype=torch.float64)
    found = propagated(query, keys, labels, k, radius, 0.1)
    for row in range(4):
        for column in range(5):
            near = [
                (float(query[:, row, column] @ keys[m, :, r, c]), labels[m, :, r, c])
                for m in range(3)
                for r in range(4)
                for c in range(5)
                if abs(r - row) <= radius and abs(c - column) <= radius
            ]
            best = sorted(near, key=lambda pair: -pair[0])[:k]
            weight = torch.tensor([s for s, _ in best], dtype=torch.float64).div(0.1).softmax(0)
            expected = sum(w * label for w, (_, label) in zip(weight, best, strict=True))
            torch.testing.assert_close(found[:, row, column], expected)


# Clips


def test_a_still_clip_copies_the_mask() -> None:
    scores = Propagation().measure(SIGHT, [], [clip([square(16)] * 12)])
    assert [score.metric for score in scores] == ["J&F", "J", "F"]
    # Its corners are rounded.
    assert [score.value for score in scores] == [pytest.approx(0.96, abs=0.03)] * 3


def test_a_moving_object_is_followed() -> None:
    masks = [square(8 * step) for step in range(5)]
    found = Propagation(radius=2).measure(SIGHT, [], [clip(masks, still=False)])[0]
    assert found.value > 0.9
    # It moves by one place a frame; without the last frames it soon is out of reach.
    lost = Propagation(radius=1, context=0).measure(SIGHT, [], [clip(masks, still=False)])[0]
    assert lost.value < 0.8


def test_first_and_last_frame_are_not_counted() -> None:
    masks = [square(16)] * 5
    # What a counted frame's mask says matters, the last one's does not.
    for changed, same in ((4, True), (3, False), (1, False)):
        other = [mask if i != changed else square(40) for i, mask in enumerate(masks)]
        test = clip(masks)
        test = Paired("clip", test.images, [m.astype(np.uint8) for m in other].__getitem__, "")
        value = Propagation().measure(SIGHT, [], [test])[1].value
        # Squares of 32 that are 24 apart have a seventh of their union in common.
        wanted = 1 if same else (1 + 1 + 1 / 7) / 3
        assert value == pytest.approx(wanted, abs=0.04)


def test_objects_clips_and_intervals() -> None:
    two = square(0, side=24) + square(32, value=2, side=24)
    void = two.copy()
    void[60:] = 255
    clips = [clip([two] * 4, "two"), clip([void] * 4, "void"), clip([square(16, 255)] * 4, "one")]
    score, j, f = Propagation().measure(SIGHT, [], clips)
    assert score.n == 3
    assert score.each is not None
    assert j.each is not None
    assert f.each is not None
    np.testing.assert_allclose(score.each, (j.each + f.each) / 2)
    assert score.value == score.each.mean()
    assert score.details["objects"] == 5
    low, high = mean_interval(score.each)
    assert (score.low, score.high) == (max(low, 0), min(high, 1))
    assert score.value > 0.9
    assert list(score.details["per_clip"]) == ["two", "void", "one"]
    json.dumps(score.json())


def test_each_object_has_the_same_weight() -> None:
    """So a clip with one object counts half as much as one with two."""
    two = square(0, side=24) + square(32, value=2, side=24)
    lost = clip([square(0, side=8)] * 4, "lost")
    masks = [square(0, side=8), *[square(48, top=48, side=8)] * 3]
    lost = Paired("lost", lost.images, [m.astype(np.uint8) for m in masks].__getitem__, "")
    for clips in ([clip([two] * 4, "two"), lost], [clip([two] * 4, "two")] * 2 + [lost] * 3):
        scores = Propagation().measure(SIGHT, [], clips)
        per_clip = scores[0].details["per_clip"]
        j = [per_clip[one.name]["J"] for one in clips]
        assert per_clip["lost"]["J"] == 0
        objects = [2 if one.name == "two" else 1 for one in clips]
        assert scores[1].value == pytest.approx(np.average(j, weights=objects))
        assert scores[0].details["clip_mean"] < scores[0].value


def test_the_interval_is_that_of_resampled_clips() -> None:
    """Where they are many: Student's over the linear parts, against the mean over objects of
    clips drawn with replacement."""
    draw = np.random.default_rng(0)
    found = [draw.beta(5, 2, (int(n), 2)) for n in draw.integers(1, 6, 200)]
    each = by_clip(found)
    np.testing.assert_allclose(each.mean(axis=0), np.concatenate(found).mean(axis=0))
    means = [
        np.concatenate([found[i] for i in draw.integers(200, size=200)]).mean(axis=0)[0]
        for _ in range(2000)
    ]
    low, high = student_interval(each[:, 0])
    np.testing.assert_allclose((low, high), np.quantile(means, (0.025, 0.975)), atol=0.003)


def test_the_order_of_two_objects_is_kept() -> None:
    left, right = ((1, 2), (2, 1))
    masks = [square(0, a, side=24) + square(32, b, side=24) for a, b in (left, left, right, right)]
    test = clip(masks[:1] * 4)
    test = Paired("swapped", test.images, [m.astype(np.uint8) for m in masks].__getitem__, "")
    # Frame 1 is right and frame 2 names each object as the other.
    assert Propagation().measure(SIGHT, [], [test])[1].value == pytest.approx(0.5, abs=0.03)


def test_levels_of_a_cnn() -> None:
    cnn = Sight(create_encoder("test_resnet", size=64, seed=0), 64)
    found = Propagation(k=1).measure(cnn, [], [clip([square(16)] * 4)])[0]
    assert found.details["level"] == 2
    assert found.value > 0.9
    finer = Propagation(k=1, level=1).measure(cnn, [], [clip([square(16)] * 4)])[0]
    assert finer.value > found.value
    with pytest.raises(ConfigError, match="has feature levels 0 to 4"):
        Propagation(level=9).measure(cnn, [], [clip([square(16)] * 4)])


def test_a_first_mask_without_objects() -> None:
    with pytest.raises(DataError, match="the first mask of clip has 0 objects"):
        Propagation().measure(SIGHT, [], [clip([square(0, value=0)] * 4)])
