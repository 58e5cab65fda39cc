"""classified(): answers to top-1, top-5, per class and confusion, by literals."""

import numpy as np
import pytest

from selfsight.evaluate.measures.classified import classified


def test_two_classes() -> None:
    answers = np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.5, 0.5]])
    (score,) = classified("name", "knn", answers, np.array([0, 0, 1, 1]), ("cat", "dog"), k=3)
    assert score.each is not None
    # Of equals the lower class: the last image is taken for a cat.
    assert score.each.tolist() == [True, False, True, False]
    assert score.value == 0.5
    assert score.details == {
        "k": 3,
        "per_class": {"cat": 0.5, "dog": 0.5},
        "class_mean": 0.5,
        "confusion": [[1, 1], [1, 1]],
    }


def test_the_mean_over_classes_counts_each_class_once() -> None:
    answers = np.eye(2)[[0, 0, 0, 0]]
    (score,) = classified("name", "knn", answers, np.array([0, 0, 0, 1]))
    assert score.value == 0.75
    assert score.details["class_mean"] == 0.5


def test_top_five() -> None:
    answers = np.arange(7.0)[None].repeat(3, axis=0)
    first, five = classified("name", "linear", answers, np.array([6, 2, 1]))
    assert (first.metric, five.metric) == ("accuracy", "top-5")
    assert first.value == pytest.approx(1 / 3)
    assert five.value == pytest.approx(2 / 3)


def test_a_class_that_was_never_seen_is_wrong() -> None:
    (score,) = classified("name", "linear", np.array([[1.0, 0.0]]), np.array([2]))
    assert score.value == 0
    assert score.details["per_class"] == {"2": 0.0}


def test_what_is_no_answer_is_never_right() -> None:
    answers = np.full((2, 7), -np.inf)
    answers[:, 3] = 1.0
    first, five = classified("name", "knn", answers, np.array([3, 0]))
    assert first.value == five.value == 0.5
