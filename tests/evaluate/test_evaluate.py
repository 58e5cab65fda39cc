"""evaluate(): one report, and one clear line for whatever cannot be evaluated."""

import json
from dataclasses import replace

import numpy as np
import pytest

from selfsight.cli import evaluate as cli
from selfsight.data.base import Arrays, Source
from selfsight.encoders import create_encoder
from selfsight.errors import ConfigError, DataError
from selfsight.evaluate import (
    KNN,
    PROTOCOLS,
    LinearProbe,
    OnImages,
    Report,
    Score,
    Sight,
    evaluate,
    interval,
    judge,
    select,
)
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
    assert knn.each is not None
    assert knn.value == knn.each.mean()
    assert (knn.low, knn.high) == interval(knn.each)
    assert knn.low < knn.value < knn.high
    assert knn.n == 80
    assert knn.options["k"] == 20
    assert {"strength", "at_edge", "tuned", "converged"} < set(linear.details)
    again = json.loads(json.dumps(report.json()))
    assert again["scores"][0]["options"] == knn.options
    assert not {*knn.options} & {*knn.details}
    assert again["scores"][0]["value"] == knn.value
    assert evaluate(TRAIN, TEST).json() == report.json()


def test_table_and_text() -> None:
    report = Report(
        [
            Score("kNN (k=20, T=0.07)", "knn", 0.612, 0.583, 0.640, 1100),
            Score("linear", "linear", 1.0, 0.9, 1.0, 1100),
        ]
    )
    assert report.table()[0] == (
        "kNN (k=20, T=0.07)", "accuracy", "61.2%", "[58.3, 64.0]", "n=1,100",
    )  # fmt: skip
    assert str(report).splitlines() == [
        "kNN (k=20, T=0.07)  accuracy   61.2%  [58.3, 64.0]   n=1,100",
        "linear              accuracy  100.0%  [90.0, 100.0]  n=1,100",
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


def test_protocols_with_options() -> None:
    report = evaluate(TRAIN, TEST, [KNN(k=5), "linear"])
    assert report["knn"].options["k"] == 5
    built = select(("knn", "linear"), {"knn": {"k": 7}, "linear": {"seed": 3}})
    assert isinstance(built[0], KNN)
    assert isinstance(built[1], LinearProbe)
    assert (built[0].k, built[1].seed) == (7, 3)


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ({"kk": 3}, r"unknown option kk of knn; did you mean k\?"),
        ({"k": 0}, r"--knn.k 0 of knn: must be 1 or more"),
        ({"temperature": "warm"}, "--knn.temperature warm of knn: must be a number"),
    ],
)
def test_wrong_options(chosen: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        select(("knn",), {"knn": chosen})


class Counts(OnImages):
    """How many images there are."""

    name = "counts"

    def measure(self, sight: Sight, train: Source, test: Source) -> list[Score]:
        return [Score("counts", "counts", len(train) / len(test), 0, 1, len(test))]


def test_what_needs_an_encoder_is_not_asked_of_features() -> None:
    with pytest.raises(ConfigError, match="counts needs images and the encoder"):
        evaluate(TRAIN, TEST, ["knn", Counts()])


def test_judge_opens_the_data_as_each_protocol_reads_them() -> None:
    labels = np.arange(60) % 2
    images = np.random.default_rng(0).integers(0, 50, (60, 16, 16, 3)).astype(np.uint8)
    images[labels == 1, :, :, 0] += 150
    sight = Sight(create_encoder("test_resnet", size=16, seed=0), 16)
    report = judge(sight, Arrays("two", images, labels, ("a", "b")), [KNN(k=3), Counts()])
    assert [score.protocol for score in report.scores] == ["knn", "counts"]
    assert report["knn"].value == 1
    assert (report["counts"].value, report["counts"].n) == (4, 12)


def test_a_protocol_that_was_not_asked_for() -> None:
    with pytest.raises(ConfigError, match="the report has no retrieval; it has: knn"):
        evaluate(TRAIN, TEST, ("knn",))["retrieval"]


def test_the_help_names_all_protocols() -> None:
    assert cli.PROTOCOLS.split(", ") == list(PROTOCOLS)
