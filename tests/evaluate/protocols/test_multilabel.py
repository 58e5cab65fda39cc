"""Machines against LIBLINEAR, average precision by hand, and the protocol from end to end."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.svm import LinearSVC

from selfsight.data.base import Arrays
from selfsight.data.tags import Tags
from selfsight.encoders import create_encoder
from selfsight.errors import ConfigError, DataError
from selfsight.evaluate import Sight, create, judge
from selfsight.evaluate.learners import svm
from selfsight.evaluate.learners.svm import LinearSVM, machines
from selfsight.evaluate.measures.ranking import Ranking
from selfsight.evaluate.protocols.multilabel import MultiLabel


def test_average_precision_by_hand() -> None:
    # Precision at the three that are there: 1/1, 2/4, 3/5; from the best further on 1, .6, .6.
    ranking = Ranking([9, 8, 7, 6, 5, 4], [1, 0, 0, 1, 1, 0])
    assert ranking.average_precision() == pytest.approx((1 + 0.6 + 0.6) / 3)
    # Recalls 0 to .3 are reached at 1; .4 to 1 at .6.
    assert ranking.average_precision(points="11") == pytest.approx((4 * 1 + 7 * 0.6) / 11)
    assert np.isnan(Ranking([1, 2], [0, 0]).average_precision())
    assert Ranking([0, 0, 0, 0], [0, 1, 0, 1]).average_precision() == 0.5


def test_recall_is_exact() -> None:
    # 3 of 10 are a recall of .3: it is reached at the third, not at the fourth.
    truth = [1, 1, 1, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1]
    ranking = Ranking(-np.arange(13), truth)
    assert ranking.average_precision(points="11") == pytest.approx((4 + 7 * 10 / 13) / 11)


@pytest.mark.parametrize("points", ["all", "11"])
def test_counting_twice_is_being_there_twice(points: str) -> None:
    draw = np.random.default_rng(0)
    scores, truth = draw.normal(size=40), draw.random(40) < 0.3
    times = draw.integers(3, size=40)
    twice = Ranking(np.repeat(scores, times), np.repeat(truth, times))
    weighted = Ranking(scores, truth).average_precision(times, points)
    assert weighted == pytest.approx(twice.average_precision(points=points))


def tagged(n: int, dim: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(n, dim)) + 0.5
    normal = np.random.default_rng(9).normal(size=(dim, 3))
    score = x @ normal + draw.normal(size=(n, 3))
    return x.astype(np.float32), (score > np.quantile(score, 0.7, axis=0)).astype(np.int8)


@pytest.mark.parametrize(("n", "dim"), [(120, 12), (60, 90)])
@pytest.mark.parametrize("cost", [0.01, 1.0, 50.0])
def test_machines_are_liblinears(n: int, dim: int, cost: float) -> None:
    x, tags = tagged(n, dim)
    ours = LinearSVM([cost]).fit(x, tags)
    assert ours.converged.all()
    rows = x / np.linalg.norm(x, axis=1, keepdims=True)
    for number in range(3):
        theirs = LinearSVC(C=cost, class_weight={0: 1, 1: 2}, tol=1e-9, max_iter=1_000_000)
        theirs.fit(rows, tags[:, number])
        np.testing.assert_allclose(
            ours.decide(x)[:, number], theirs.decision_function(rows), atol=1e-3
        )


def test_rows_of_no_cost_are_not_seen() -> None:
    x, tags = tagged(60, 8)
    rows, sign = torch.from_numpy(x), torch.from_numpy(2.0 * tags - 1)
    cost = torch.ones(60, 3)
    cost[40:, 1] = 0
    whole, converged = machines(rows, sign, cost)
    assert converged.all()
    part, _ = machines(rows[:40], sign[:40, 1:2], cost[:40, 1:2])
    torch.testing.assert_close(whole[1], part[0], atol=1e-3, rtol=0)
    left_out = tags.copy()
    left_out[40:, 1] = -1
    np.testing.assert_allclose(
        LinearSVM([1.0]).fit(x, left_out).weight[1],
        LinearSVM([1.0]).fit(x[:40], tags[:40]).weight[1],
        atol=1e-3,
    )


def test_the_cost_is_chosen_per_class(monkeypatch: pytest.MonkeyPatch) -> None:
    x, tags = tagged(90, 10)
    tags[:, 2] = np.random.default_rng(1).random(90) < 0.5
    costs = (1e-4, 1e-2, 1.0, 100.0)
    probe = LinearSVM(costs, seed=3).fit(x, tags)
    assert set(probe.cost) <= set(costs)
    assert probe.tuned.all()
    # By hand: three folds, the mean of average precisions, the smallest of equals.
    folds, rows = probe._folds(tags), np.arange(90)
    for number in range(3):
        for fold in range(3):
            there = tags[folds[:, number] == fold, number].sum()
            assert abs(there - tags[:, number].sum() / 3) < 1
        quality = []
        for cost in costs:
            each = []
            for fold in range(3):
                held = rows[folds[:, number] == fold]
                seen = np.setdiff1d(rows, held)
                scores = LinearSVM([cost]).fit(x[seen], tags[seen]).decide(x[held])[:, number]
                each.append(Ranking(scores, tags[held, number] == 1).average_precision())
            quality.append(np.mean(each))
        assert quality[costs.index(probe.cost[number])] == pytest.approx(max(quality), abs=0.01)
    monkeypatch.setattr(svm, "_BLOCK", 1)
    again = LinearSVM(costs, seed=3).fit(x, tags)
    assert (again.cost == probe.cost).all()


def test_classes_that_cannot_be_tuned_or_learned() -> None:
    x, tags = tagged(30, 6)
    tags[:, 0], tags[1:, 1], tags[0, 1] = 0, 0, 1
    probe = LinearSVM((0.1, 1.0, 10.0)).fit(x, tags)
    assert probe.tuned.tolist() == [False, False, True]
    assert probe.cost[:2].tolist() == [1.0, 1.0]
    assert (probe.decide(x)[:, 0] == 0).all()
    assert (probe.decide(x)[:, 1] != 0).all()
    with pytest.raises(DataError, match="fitted on 6 channels, got 2"):
        probe.decide(x[:, :2])


def images(n: int, seed: int) -> Tags:
    """Red and green squares: each there or not; blue everywhere."""
    draw = np.random.default_rng(seed)
    tags = np.column_stack([draw.random((n, 2)) < 0.5, np.ones(n)]).astype(np.int8)
    pixels = draw.integers(40, size=(n, 16, 16, 3)).astype(np.uint8)
    pixels[:, :8, :, 0] += 180 * tags[:, 0, None, None].astype(np.uint8)
    pixels[:, 8:, :, 1] += 180 * tags[:, 1, None, None].astype(np.uint8)
    return Tags(Arrays("squares", pixels), tags, ("red", "green", "blue"))


SIGHT = Sight(create_encoder("test_resnet", size=16, seed=0), 16)


def test_the_protocol() -> None:
    train, test = images(50, 0), images(40, 1)
    (score,) = MultiLabel().measure(SIGHT, train, test)
    assert score.metric == "mAP"
    assert score.n == 40
    assert score.value == np.mean(list(score.details["per_class"].values())) > 0.8
    assert score.low <= score.value <= score.high <= 1
    assert score.draws.shape == (1000,)
    assert score.details["left_out"] == ["blue"]
    assert set(score.details["costs"]) == {"red", "green"}
    (eleven,) = MultiLabel(points="11").measure(SIGHT, train, test)
    assert eleven.metric == "mAP (11 points)"
    assert eleven.value == score.details["map_11_points"]
    assert score.value == eleven.details["map_all_points"]


def test_what_is_left_out_of_the_count_counts_nowhere() -> None:
    train, test = images(50, 0), images(40, 1)
    tags = test.tags.copy()
    tags[:10, 0] = -1
    (score,) = MultiLabel([1.0]).measure(SIGHT, train, Tags(test.images, tags, test.classes))
    (whole,) = MultiLabel([1.0]).measure(SIGHT, train, test)
    (rest,) = MultiLabel([1.0]).measure(SIGHT, train, test.subset(range(10, 40)))
    per_class = [one.details["per_class"] for one in (score, whole, rest)]
    assert per_class[0]["red"] == per_class[2]["red"]
    assert per_class[0]["green"] == per_class[1]["green"]


def test_from_the_data(tmp_path: Path) -> None:
    lines = ["path,labels,split"]
    for part, tags in (("train", images(30, 0)), ("test", images(20, 1))):
        for i in range(len(tags)):
            file = f"{part}{i}.png"
            Image.fromarray(tags.images.read(i)).save(tmp_path / file)
            shown = [n for n, there in zip(tags.classes, tags.tags[i], strict=True) if there]
            lines.append(f"{file},{';'.join(shown)},{part}")
    (tmp_path / "tags.csv").write_text("\n".join(lines))
    report = judge(SIGHT, tmp_path / "tags.csv", ["multilabel"])
    assert report["multilabel"].n == 20
    assert report["multilabel"].value > 0.7


def test_what_is_refused() -> None:
    train, test = images(30, 0), images(20, 1)
    with pytest.raises(ConfigError, match="costs > 0"):
        create("multilabel", costs=(0.0, 1.0))
    with pytest.raises(DataError, match="different classes"):
        MultiLabel().measure(SIGHT, train, Tags(test.images, test.tags[:, :2], test.classes[:2]))
    nothing = Tags(test.images, np.ones((20, 3)), test.classes)
    with pytest.raises(DataError, match="no class is in some test images and missing from others"):
        MultiLabel().measure(SIGHT, train, nothing)
