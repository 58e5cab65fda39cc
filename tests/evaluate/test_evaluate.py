"""evaluate(): one report, and one clear line for whatever cannot be evaluated."""

import json
from dataclasses import replace

import numpy as np
import pytest

from selfsight.errors import ConfigError, DataError
from selfsight.evaluate import Report, Score, evaluate, interval
from selfsight.features import Features


def features(n: int, seed: int, noise: float = 2.0) -> Features:
    draw = np.random.default_rng(seed)
    y = draw.integers(3, size=n)
    x = np.random.default_rng(9).normal(size=(3, 8))[y] + noise * draw.normal(size=(n, 8))
    return Features(x.astype(np.float32), y, classes=("a", "b", "c"))


TRAIN, TEST = features(150, 0), features(80, 1)


def test_report() -> None:
    report = evaluate(TRAIN, TEST)
    assert [score.protocol for score in report.scores] == ["knn", "linear"]
    knn, linear = report["knn"], report["linear"]
    assert knn.correct is not None
    assert knn.accuracy == knn.correct.mean()
    assert (knn.low, knn.high) == interval(knn.correct)
    assert knn.low < knn.accuracy < knn.high
    assert (knn.n, knn.details) == (80, {"k": 20, "temperature": 0.07})
    assert set(linear.details) == {"strength", "at_edge", "tuned", "converged", "seed"}
    again = json.loads(json.dumps(report.json()))
    assert again["scores"][0]["accuracy"] == knn.accuracy
    assert evaluate(TRAIN, TEST).json() == report.json()


def test_table_and_text() -> None:
    report = Report(
        [
            Score("kNN (k=20, T=0.07)", "knn", 0.612, 0.583, 0.640, 1100),
            Score("linear", "linear", 1.0, 0.9, 1.0, 1100),
        ]
    )
    assert report.table()[0] == ("kNN (k=20, T=0.07)", "61.2%", "[58.3, 64.0]", "n=1,100")
    assert str(report).splitlines() == [
        "kNN (k=20, T=0.07)   61.2%  [58.3, 64.0]   n=1,100",
        "linear              100.0%  [90.0, 100.0]  n=1,100",
    ]
    assert str(Report([])) == ""


@pytest.mark.parametrize(
    ("train", "test", "words"),
    [
        (replace(TRAIN, label=None), TEST, "training images have no labels"),
        (TRAIN, replace(TEST, label=None), "test images have no labels"),
        (replace(TRAIN, label=np.zeros(150)), TEST, "all training images have one class"),
        (TRAIN, replace(TEST, embedding=np.zeros((80, 5))), "8 channels and test features 5"),
        (TRAIN, replace(TEST, classes=("a", "b", "d")), "only one of them has c, d"),
        (TRAIN, replace(TEST, classes=("b", "a", "c")), "the order differs"),
        (TRAIN, Features(np.empty((0, 8)), np.empty(0)), "there are no test images"),
        (features(12, 0), TEST, "kNN with k=20 needs as many training images, got 12"),
        (replace(TRAIN, embedding=np.full((150, 8), np.nan)), TEST, "150 training embeddings"),
    ],
)
def test_unusable_data(train: Features, test: Features, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        evaluate(train, test)
    assert "\n" not in str(caught.value)


def test_unknown_protocol() -> None:
    with pytest.raises(ConfigError, match=r"unknown protocol linaer.*did you mean linear\?"):
        evaluate(TRAIN, TEST, ("linaer",))
    with pytest.raises(ConfigError, match="list of names"):
        evaluate(TRAIN, TEST, "knn")
    with pytest.raises(ConfigError, match="list of names"):
        evaluate(TRAIN, TEST, ())
