"""kNN against scikit-learn, against DINO's code, and where ties and limits are."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from selfsight.errors import ConfigError, DataError
from selfsight.evaluate import evaluate
from selfsight.evaluate.learners import neighbours
from selfsight.evaluate.protocols.knn import KNN
from selfsight.features import Features

GOLDEN = os.environ.get("SELFSIGHT_GOLDEN")


def clusters(n: int, d: int = 16, classes: int = 5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    y = draw.integers(classes, size=n)
    centre = np.random.default_rng(99).normal(size=(classes, d))
    return (centre[y] + 1.5 * draw.normal(size=(n, d))).astype(np.float32), y


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (20, 0.07), (20, 0.5), (200, 0.1)])
def test_equals_scikit_learn(k: int, temperature: float) -> None:
    (x, y), (test, _) = clusters(600), clusters(200, seed=1)
    theirs = KNeighborsClassifier(
        k, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / temperature)
    ).fit(x, y)
    ours = KNN(k, temperature).fit(x, y)
    np.testing.assert_allclose(ours.proba(test), theirs.predict_proba(test), atol=2e-5)
    assert (ours.predict(test) == theirs.predict(test)).all()


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("k", [1, 5, 20])
def test_majority_equals_scikit_learn(k: int, metric: str) -> None:
    (x, y), (test, _) = clusters(600), clusters(200, seed=1)
    theirs = KNeighborsClassifier(k, metric=metric, algorithm="brute").fit(x, y)
    ours = KNN(k, metric=metric, vote="majority").fit(x, y)
    np.testing.assert_allclose(ours.proba(test), theirs.predict_proba(test), atol=1e-12)
    assert (ours.predict(test) == theirs.predict(test)).all()


def test_euclidean_weights_are_one_over_the_distance() -> None:
    x, y = np.array([[0.0], [3.0], [4.0]]), np.array([1, 0, 0])
    # From 2: distances 2, 1 and 2.
    votes = KNN(3, metric="euclidean").fit(x, y).proba(np.array([[2.0]]))
    near, far = 1 / 1.00001, 1 / 2.00001
    np.testing.assert_allclose(votes, [[near + far, far]] / np.array(near + 2 * far), rtol=1e-12)
    (x, y), (test, _) = clusters(600), clusters(200, seed=1)
    theirs = KNeighborsClassifier(20, algorithm="brute", weights=lambda d: 1 / (d + 1e-5)).fit(x, y)
    ours = KNN(20, metric="euclidean").fit(x, y)
    np.testing.assert_allclose(ours.proba(test), theirs.predict_proba(test), atol=2e-5)
    assert (ours.predict(test) == theirs.predict(test)).all()
    # An equal row outweighs others, and does not divide by zero.
    assert (ours.predict(x) == y).all()


def test_scores_declare_how_neighbours_voted() -> None:
    (x, y), (test, target) = clusters(100), clusters(50, seed=1)
    train, test = Features(x, y), Features(test, target)
    told = {
        "kNN (k=5, T=0.1)": (KNN(5, 0.1), {"temperature": 0.1}),
        "kNN (k=5, majority)": (KNN(5, vote="majority"), {"vote": "majority"}),
        "kNN (k=5, Euclidean, 1/d)": (KNN(5, metric="euclidean"), {"metric": "euclidean"}),
        "kNN (k=5, Euclidean, majority)": (
            KNN(5, metric="euclidean", vote="majority"),
            {"metric": "euclidean", "vote": "majority"},
        ),
    }
    for name, (protocol, chosen) in told.items():
        score = evaluate(train, test, [protocol])["knn"]
        assert score.name == name
        assert score.options == {
            "k": 5, "temperature": 0.07, "metric": "cosine", "vote": "weighted", **chosen
        }  # fmt: skip


@pytest.mark.skipif(not GOLDEN, reason="SELFSIGHT_GOLDEN is not set")
def test_equals_dino() -> None:
    folder, compared = Path(str(GOLDEN)), 0
    for record in json.loads((folder / "index.json").read_text())["records"]:
        if record["method"] != "knn_weighted":
            continue
        with np.load(folder / record["file"], allow_pickle=False) as arrays:
            inputs = {name: arrays[key] for name, key in record["inputs"].items()}
            outputs = {name: arrays[key] for name, key in record["outputs"].items()}
        hyper = record["hyper_parameters"]
        probe = KNN(hyper["k"], hyper["T"]).fit(inputs["train"], inputs["train_labels"])
        predicted = probe.predict(inputs["test"])
        assert (predicted == outputs["pred"]).all(), record
        accuracy = 100 * probe.score(inputs["test"], inputs["test_labels"])
        top1 = float(outputs["top1"])
        assert accuracy == pytest.approx(100 * top1 if top1 <= 1 else top1, abs=1e-5), record
        compared += 1
    assert compared


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    (x, y), (test, _) = clusters(300), clusters(50, seed=1)
    whole = KNN().fit(x, y).proba(test)
    monkeypatch.setattr(neighbours, "_QUERIES", 7)
    monkeypatch.setattr(neighbours, "_ROWS", 64)
    np.testing.assert_array_equal(KNN().fit(x, y).proba(test), whole)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_leave_one_out_is_what_it_says(
    metric: str, dtype: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = clusters(40)
    x = x.astype(dtype)
    monkeypatch.setattr(neighbours, "_QUERIES", 11)
    monkeypatch.setattr(neighbours, "_BLOCK64", 11 * 40)
    ours = KNN(k=5, metric=metric).fit(x, y).proba(x, exclude_self=True)
    for i in range(40):
        rest = np.arange(40) != i
        others = KNN(k=5, metric=metric).fit(x[rest], y[rest]).proba(x[i : i + 1])[0]
        np.testing.assert_allclose(ours[i, : len(others)], others, atol=1e-12)


def test_equal_votes_go_to_the_lower_class() -> None:
    x = np.array([[1.0, 0.0], [1.0, 0.0]])
    for y in ([0, 1], [1, 0], [4, 2]):
        assert KNN(k=2).fit(x, np.array(y)).predict(x[:1]).tolist() == [min(y)]


def test_equal_similarities_at_the_last_place_go_to_the_lower_class() -> None:
    x = np.tile([[1.0, 0.0]], (50, 1))
    y = np.arange(50)[::-1].copy()
    assert KNN(k=1).fit(x, y).predict(x[:3]).tolist() == [0, 0, 0]
    votes = KNN(k=4).fit(x, y).proba(x[:1])[0]
    np.testing.assert_allclose(votes[:5], [0.25, 0.25, 0.25, 0.25, 0])


def test_k_is_clipped_to_what_there_is() -> None:
    x, y = clusters(7)
    probe = KNN(k=20).fit(x, y)
    assert probe.effective_k == 7
    assert probe.predict(x).shape == (7,)
    assert probe.predict(x, exclude_self=True).shape == (7,)


def test_a_low_temperature_does_not_overflow() -> None:
    x, y = clusters(50)
    assert np.isfinite(KNN(temperature=1e-3).fit(x, y).proba(x)).all()


def test_takes_tensors_and_half_precision() -> None:
    x, y = clusters(60)
    half = torch.from_numpy(x).bfloat16()
    expected = KNN().fit(half.float().numpy(), y).predict(half.float().numpy())
    assert (KNN().fit(half, torch.from_numpy(y)).predict(half) == expected).all()


def test_refuses_what_it_cannot_use() -> None:
    x, y = clusters(30)
    with pytest.raises(ConfigError, match="k ≥ 1"):
        KNN(k=0)
    with pytest.raises(ConfigError, match="temperature > 0"):
        KNN(temperature=0.0)
    for chosen in ({"metric": "euclidean"}, {"vote": "majority"}):
        with pytest.raises(ConfigError, match="weighted vote by cosine only; leave it out"):
            KNN(temperature=0.1, **chosen)
    broken = x.copy()
    broken[[4, 9], 2] = np.nan
    with pytest.raises(DataError, match=r"2 of 30 feature rows are not finite \(rows 4, 9\)"):
        KNN().fit(broken, y)
    with pytest.raises(DataError, match="16 channels, got 3"):
        KNN().fit(x, y).predict(x[:, :3])
    with pytest.raises(DataError, match="class numbers"):
        KNN().fit(x, y[:-1])
    with pytest.raises(DataError, match="N ≥ 1"):
        KNN().fit(x[:0], y[:0])
    with pytest.raises(DataError, match="leave-one-out"):
        KNN().fit(x, y).predict(x[:5], exclude_self=True)
