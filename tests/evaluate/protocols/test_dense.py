"""Dense regression: errors by hand, and a head that finds a depth that can be seen."""

import json
from collections.abc import Callable
from typing import Literal

import numpy as np
import pytest

from selfsight.data.base import Arrays
from selfsight.data.masks import Paired
from selfsight.encoders import create_encoder
from selfsight.errors import DataError
from selfsight.evaluate.base import Sight
from selfsight.evaluate.protocols.dense import Dense, errors
from selfsight.evaluate.report import Score
from selfsight.evaluate.statistics import mean_interval


def steps(
    n: int, seed: int, change: Callable[[np.ndarray], np.ndarray] = lambda target: target
) -> Paired:
    """Pictures whose bright side is 2 away and whose dark one 8; the first rows are unknown."""
    draw = np.random.default_rng(seed)
    images = draw.integers(40, size=(n, 32, 48, 3), dtype=np.uint8)
    targets = np.full((n, 32, 48), 8, np.float32)
    for image, target, split in zip(images, targets, draw.integers(8, 40, n), strict=True):
        image[:, :split] += 200
        target[:, :split] = 2
        target[:4] = np.nan
    targets = change(targets)
    return Paired("steps", Arrays("steps", images), targets.__getitem__, "")


TRAIN, TEST = steps(12, 0), steps(6, 1)
SIGHT = Sight(create_encoder("test_vit", size=32, seed=0), 32)


def test_errors_by_hand() -> None:
    target = np.array([[2, 4, np.nan], [0, -1, 10]], np.float32)
    answer = np.array([[2.4, 5, 9], [1, -1, 10]], np.float32)
    rmse, relative, near = errors(target, answer)
    assert rmse == pytest.approx(((0.16 + 1 + 1 + 0 + 0) / 5) ** 0.5)
    assert relative == pytest.approx((0.2 + 0.25 + 0) / 3)
    # 5 is 1.25 times 4, and less than 1.25 is asked for.
    assert near == pytest.approx(2 / 3)
    assert errors(np.array([[4.0]]), np.array([[-4.0]], np.float32))[2] == 0
    assert np.isnan(errors(np.full((2, 2), np.nan), answer[:, :2])).all()
    assert errors(np.zeros((1, 1)), np.ones((1, 1), np.float32))[0] == 1
    assert np.isnan(errors(np.zeros((1, 1)), np.ones((1, 1), np.float32))[1:]).all()


@pytest.mark.parametrize("loss", ["l1", "l2", "log"])
def test_a_head_learns(loss: Literal["l1", "l2", "log"]) -> None:
    protocol = Dense(loss=loss, epochs=16, batch=6, lr=0.05)
    rmse, relative, near = protocol.measure(SIGHT, TRAIN, TEST)
    # The mean of the targets alone is 3 away from each.
    assert rmse.value < 1.6
    assert relative.value < 0.4
    assert near.value > 0.5
    assert [score.metric for score in (rmse, relative, near)] == [
        "RMSE",
        "relative error",
        "δ<1.25",
    ]
    for score in (rmse, relative, near):
        assert score.each is not None
        assert score.value == score.each.mean()
        low, high = mean_interval(score.each)
        assert score.low == max(low, 0)
        assert score.high == (min(high, 1) if score is near else high)
        assert score.n == len(score.each) == 6
    json.dumps(rmse.json())


def test_no_answer_leaves_the_range_of_the_training_targets() -> None:
    found = Dense(loss="l2", epochs=1, batch=6, lr=100.0).measure(SIGHT, TRAIN, TEST)[0]
    assert found.value <= 6


def test_images_without_a_target_count_for_nothing() -> None:
    def bare(target: np.ndarray) -> np.ndarray:
        target[0] = np.nan
        return target

    short = Dense(epochs=1, batch=6)
    score = short.measure(SIGHT, steps(12, 0, bare), steps(6, 1, bare))[0]
    assert score.n == 5
    assert score.details["without_target"] == 1


def test_targets_below_zero_have_no_relative_error() -> None:
    scores = Dense(epochs=1, batch=6).measure(SIGHT, steps(12, 0, np.negative), TEST)
    assert len(scores) == 3
    scores = Dense(epochs=1, batch=6).measure(SIGHT, TRAIN, steps(6, 1, np.negative))
    assert [score.metric for score in scores] == ["RMSE"]


def test_what_cannot_be_measured() -> None:
    with pytest.raises(DataError, match=r"steps.* not above 0.*say --dense\.zero unknown"):
        Dense(loss="log").measure(SIGHT, steps(12, 0, np.negative), TEST)
    nothing = steps(4, 0, lambda target: np.full_like(target, np.nan))
    with pytest.raises(DataError, match="no pixel of steps has a target; there is nothing to le"):
        Dense().measure(SIGHT, nothing, TEST)
    with pytest.raises(DataError, match="no pixel of steps has a target; there is nothing to co"):
        Dense(epochs=1).measure(SIGHT, TRAIN, nothing)


def test_an_error_is_no_percentage() -> None:
    assert Score("d", "dense", 3.14159, 2, 1234.5, 9, "RMSE").shown() == ("3.142", "[2, 1,234]")
    assert Score("d", "dense", 0.5, 0.25, 0.75, 9, "δ<1.25").shown()[0] == "50.0%"
