"""Segmentation: heads learn what is there to learn, and mean IoU is counted as it should be."""

import json

import numpy as np
import pytest
import torch
from torch import Tensor

from selfsight.data.base import Arrays
from selfsight.data.masks import IGNORED, Paired
from selfsight.encoders import create_encoder
from selfsight.encoders.base import Encoder
from selfsight.errors import ConfigError, DataError, Diverged
from selfsight.evaluate.base import Sight
from selfsight.evaluate.learners.maps import (
    Kind,
    LinearHead,
    MapNetwork,
    UPerNetHead,
    enlarged,
    likeliest,
)
from selfsight.evaluate.measures.regions import areas, confusion, ious
from selfsight.evaluate.protocols.segmentation import Segmentation, cross_entropy
from selfsight.evaluate.statistics import around, bootstrap


def halves(n: int, seed: int, height: int = 32, width: int = 32, ignore: int = 4) -> Paired:
    """Pictures that are red on one side of a line and blue on the other; a rim is ignored."""
    draw = np.random.default_rng(seed)
    images = draw.integers(40, size=(n, height, width, 3), dtype=np.uint8)
    masks = np.zeros((n, height, width), np.int16)
    for image, mask, split in zip(images, masks, draw.integers(8, width - 8, n), strict=True):
        image[:, :split, 0] += 200
        image[:, split:, 2] += 200
        mask[:, split:] = 1
        mask[:ignore] = IGNORED
    return Paired("halves", Arrays("halves", images), masks.__getitem__, "", ("red", "blue"))


TRAIN, TEST = halves(12, 0), halves(6, 1, width=48)


def sight(name: str = "test_resnet", size: int = 32) -> Sight:
    return Sight(create_encoder(name, size=size, seed=0), size)


@pytest.mark.parametrize(
    ("name", "head", "tuned"),
    [
        ("test_vit", "linear", False),
        ("test_resnet", "upernet", False),
        ("test_vit", "upernet", False),
        ("test_resnet", "linear", True),
    ],
)
def test_heads_learn(name: str, head: Kind, tuned: bool) -> None:
    seen = sight(name)
    before = {key: value.clone() for key, value in seen.encoder.state_dict().items()}
    torch.manual_seed(5)
    state = torch.get_rng_state()
    protocol = Segmentation(head, tuned=tuned, epochs=12, batch=6, hidden=8, lr=0.03)
    (score,) = protocol.measure(seen, TRAIN, TEST)
    assert score.value > 0.75
    assert score.metric == "mIoU"
    assert score.n == 6
    assert score.low <= score.value <= score.high
    assert score.details["pixel_accuracy"] > 0.85
    assert np.isclose(np.mean(list(score.details["per_class"].values())), score.value)
    assert list(score.details["per_class"]) == ["red", "blue"]
    # Every pixel that is not ignored was counted, at the masks' own resolution.
    assert np.sum(score.details["confusion"]) == 6 * 28 * 48
    json.dumps(score.json())
    # The encoder and torch's generator are as they were.
    assert all(torch.equal(value, before[key]) for key, value in seen.encoder.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_the_seed_decides() -> None:
    def measured(seed: int, threads: int = 1) -> float:
        seen = Sight(sight().encoder, 32, threads=threads)
        return Segmentation(epochs=1, batch=6, seed=seed).measure(seen, TRAIN, TEST)[0].value

    assert measured(0) == measured(0, threads=3)
    assert measured(0) != measured(1)


def test_several_seeds_are_reported_as_their_mean() -> None:
    """Each is the training by that seed alone."""
    one, other = (
        Segmentation(epochs=1, batch=6, seed=s).measure(sight(), TRAIN, TEST)[0] for s in (3, 4)
    )
    score, over = Segmentation(epochs=1, batch=6, seed=3, seeds=2).measure(sight(), TRAIN, TEST)
    values = [one.value, other.value]
    assert [found["value"] for found in score.details["seeds"]] == values
    assert [found["per_class"] for found in score.details["seeds"]] == [
        same.details["per_class"] for same in (one, other)
    ]
    assert score.value == over.value == np.mean(values)
    assert (score.metric, over.metric, over.n) == ("mIoU", "mIoU over seeds", 2)


def test_draws_are_mean_ious_of_resampled_images() -> None:
    (score,) = Segmentation(epochs=1, batch=6).measure(sight(), TRAIN, TEST)
    network = Segmentation(epochs=1, batch=6).training.fit(sight(), TRAIN, TEST, 2, cross_entropy)
    sizes = np.array(
        [
            areas(confusion(mask, likeliest(answer, mask.shape), 2))
            for answer, mask in network.answers(sight(), TEST)
        ]
    )
    drawn = bootstrap(lambda chosen: float(np.nanmean(ious(sizes[chosen].sum(axis=0)))), 6)
    assert score.value == pytest.approx(np.nanmean(ious(sizes.sum(axis=0))))
    low, high, draws = around(score.value, drawn)
    assert score.draws is not None
    np.testing.assert_allclose(score.draws, draws)
    assert (score.low, score.high) == pytest.approx((low, high))


def test_the_loss_leaves_ignored_pixels_out() -> None:
    answer = torch.zeros(1, 2, 1, 3)
    answer[0, 0, 0, 0] = 5.0
    mask = torch.tensor([[[0, IGNORED, 1]]])
    expected = (np.log1p(np.exp(-5)) + np.log(2)) / 2
    assert cross_entropy(answer, mask).item() == pytest.approx(expected, rel=1e-5)
    assert cross_entropy(answer, torch.full_like(mask, IGNORED)).item() == 0


def test_few_channels_at_a_time_give_the_same_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = torch.randn(7, 3, 4, generator=torch.Generator().manual_seed(0))
    (whole,) = enlarged(answer, (10, 9), 7)
    expected = whole.argmax(0).numpy()
    for values in (90, 270, 10_000):
        monkeypatch.setattr("selfsight.evaluate.learners.maps._BLOCK", values)
        assert np.array_equal(likeliest(answer, (10, 9)), expected)


def test_a_vits_maps_become_a_pyramid() -> None:
    head = UPerNetHead([8, 8, 8, 8], 3, hidden=4).eval()
    maps = [torch.randn(1, 8, 4, 6) for _ in range(4)]
    assert head(maps).shape == (1, 3, 16, 24)
    apart = [torch.randn(1, 8, side, side) for side in (16, 8, 4, 2)]
    assert head(apart).shape == (1, 3, 16, 16)
    assert LinearHead([5, 8], 3)(apart).shape == (1, 3, 2, 2)


def test_a_frozen_encoder_is_not_trained() -> None:
    class Spy(torch.nn.Module):
        def forward(self, maps: list[Tensor]) -> Tensor:
            assert not maps[0].requires_grad
            assert not network.encoder.training
            return maps[0]

    seen = sight()
    network = MapNetwork(seen.encoder.copied(), [4], Spy(), seen, tuned=False).train()
    network(torch.zeros(1, 3, 32, 32))


class Flat(Encoder):
    """Gives no maps."""

    name, dim, token_dim, size, multiple, maskable = "flat", 3, 3, 32, 1, False
    mean, std, crop_pct = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), 1.0

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3))


def test_what_cannot_be_measured() -> None:
    short = Segmentation(epochs=1, batch=6)
    with pytest.raises(DataError, match="has 1 image; a head needs two or more"):
        short.measure(sight(), halves(1, 0), TEST)
    with pytest.raises(ConfigError, match="flat gives no feature maps"):
        short.measure(Sight(Flat(), 32), TRAIN, TEST)
    with pytest.raises(ConfigError, match="multiples of 16 pixels, got 40 × 40"):
        short.measure(Sight(sight("test_vit").encoder, 40), TRAIN, TEST)
    with pytest.raises(DataError, match="no pixel of halves has a class"):
        short.measure(sight(), TRAIN, halves(2, 0, ignore=32))
    with pytest.raises(Diverged, match=r"loss is (nan|inf).*choose a smaller lr"):
        Segmentation(epochs=9, batch=6, optimizer="sgd", lr=1e30).measure(sight(), TRAIN, TEST)
