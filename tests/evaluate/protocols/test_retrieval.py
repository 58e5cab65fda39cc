"""Retrieval against hand-worked ranks and scikit-learn's average precision."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from selfsight.errors import DataError
from selfsight.evaluate import create
from selfsight.evaluate.protocols import retrieval
from selfsight.evaluate.protocols.retrieval import Retrieval, retrieve
from selfsight.features import Features


def at(*degrees: float) -> torch.Tensor:
    """Unit vectors in those directions."""
    angle = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([angle.cos(), angle.sin()], dim=1)


def clusters(n: int, seed: int, classes: int = 4) -> Features:
    draw = np.random.default_rng(seed)
    y = draw.integers(classes, size=n)
    centre = np.random.default_rng(9).normal(size=(classes, 8))
    return Features(centre[y] + 1.5 * draw.normal(size=(n, 8)), y)


def test_by_hand() -> None:
    gallery, label = at(10, 20, 30, 40, 50), torch.tensor([1, 0, 1, 0, 0])
    # Places of class 0: 2, 4, 5. Of class 1: 1, 3. Of class 7: none.
    precision, first = retrieve(at(0, 0, 0), torch.tensor([0, 1, 7]), gallery, label)
    np.testing.assert_allclose(precision[:2], [(1 / 2 + 2 / 4 + 3 / 5) / 3, (1 + 2 / 3) / 2])
    assert np.isnan(precision[2])
    assert first.tolist() == [2, 1, 0]


def test_equals_speak_against_the_first_and_share_a_place_in_the_precision() -> None:
    gallery = at(0, 0, 0, 90)
    for label, place in (
        ([0, 1, 1, 0], 3),
        ([1, 1, 0, 0], 3),
        ([0, 0, 1, 1], 2),
        ([1, 1, 1, 0], 4),
    ):
        precision, first = retrieve(at(0), torch.tensor([0]), gallery, torch.tensor(label))
        expected = average_precision_score([v == 0 for v in label], [1, 1, 1, 0])
        assert precision[0] == pytest.approx(expected)
        assert first[0] == place


@pytest.mark.parametrize("own", [False, True])
def test_equals_scikit_learn(own: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "_BLOCK", 7 * 60)
    query, gallery = clusters(30, 0), clusters(60, 1)
    if own:
        gallery = query
    x, y = torch.from_numpy(query.embedding), torch.from_numpy(query.label)
    among, label = torch.from_numpy(gallery.embedding), torch.from_numpy(gallery.label)
    precision, first = retrieve(x, y, among, label, own=own)
    similarity = torch.cosine_similarity(x[:, None], among, dim=2).numpy()
    for i in range(30):
        rest = np.arange(len(gallery)) != (i if own else -1)
        truth, score = (label == y[i]).numpy()[rest], similarity[i, rest]
        assert precision[i] == pytest.approx(average_precision_score(truth, score), abs=1e-6)
        assert first[i] == 1 + truth[np.argsort(-score)].argmax()


def test_scores() -> None:
    train, test = clusters(60, 0), clusters(30, 1)
    scores = Retrieval().measure(train, test)
    assert [score.metric for score in scores] == ["mAP", "R@1", "R@5", "R@10"]
    values = [score.value for score in scores]
    assert values[1] < values[2] <= values[3]
    for score in scores:
        assert score.value == score.each.mean()
        assert 0 <= score.low < score.value <= score.high <= 1
        assert score.n == 30
    assert scores[0].details == {"gallery_images": 60, "left_out": 0}
    # The first place is the nearest neighbour.
    a, b = (one.embedding / np.linalg.norm(one.embedding, axis=1)[:, None] for one in (test, train))
    assert values[1] == (train.label[(a @ b.T).argmax(axis=1)] == test.label).mean()


def test_leave_one_out_and_queries_without_an_answer() -> None:
    test = clusters(20, 1)
    label = test.label.copy()
    label[3] = 9
    lonely = Features(test.embedding, label)
    scores = create("retrieval", gallery="test").measure(clusters(5, 0), lonely)
    assert scores[0].n == 19
    assert scores[0].details == {"gallery_images": 19, "left_out": 1}
    strangers = Features(test.embedding, label + 100)
    with pytest.raises(DataError, match="no test image has its class in the gallery"):
        Retrieval().measure(clusters(5, 0), strangers)


def test_a_collapsed_encoder_finds_nothing() -> None:
    flat = Features(np.ones((20, 4)), np.arange(20) % 2)
    scores = Retrieval("test").measure(flat, flat)
    assert scores[0].value == pytest.approx(9 / 19)
    assert [score.value for score in scores[1:]] == [0, 0, 0]


def test_mismatched_channels() -> None:
    with pytest.raises(DataError, match="queries have 8 channels and the gallery 3"):
        retrieve(torch.ones(2, 8), torch.zeros(2), torch.ones(2, 3), torch.zeros(2))
