"""What a classifier's answers on the test images are worth: top-1, top-5, per class, confusion."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from selfsight.evaluate.report import Score

__all__ = ["classified"]

_TOP = 5
# A confusion matrix of a thousand classes would fill megabytes of JSON.
_SHOWN = 200


def classified(
    name: str,
    protocol: str,
    answers: NDArray[Any],
    target: NDArray[np.int64],
    classes: tuple[str, ...] = (),
    **details: object,
) -> list[Score]:
    """Scores of a classifier: top-1 and, of more than five classes, top-5.

    answers: (N, C), larger for the likelier class, −∞ for those that are no answer; of equals the
        lower class goes first
    target: (N,) class numbers; one that no column stands for is never right
    classes: names, if known
    """
    order = np.argsort(-answers, axis=1, kind="stable")[:, :_TOP]
    answered = np.take_along_axis(answers, order, axis=1) > -np.inf
    hits = (order == target[:, None]) & answered
    right = hits[:, 0]
    found = {**details, **_by_class(order[:, 0], target, classes)}
    scores = [Score.mean(name, protocol, right, details=found)]
    if answers.shape[1] > _TOP:
        scores.append(Score.mean(name, protocol, hits.any(axis=1), "top-5"))
    return scores


def _by_class(
    answer: NDArray[np.int64], target: NDArray[np.int64], classes: tuple[str, ...]
) -> dict[str, object]:
    """The share of right answers of each class that occurs, their mean, and who is taken for
    whom: row by row the true class, column by column the answer."""
    count = int(max(answer.max(), target.max())) + 1
    confusion = np.zeros((count, count), np.int64)
    np.add.at(confusion, (target, answer), 1)
    total = confusion.sum(axis=1)
    occur = np.flatnonzero(total)
    recall = confusion.diagonal()[occur] / total[occur]
    names = [classes[i] if i < len(classes) else str(i) for i in occur.tolist()]
    found: dict[str, object] = {
        "per_class": dict(zip(names, recall.tolist(), strict=True)),
        "class_mean": float(recall.mean()),
    }
    if count <= _SHOWN:
        found["confusion"] = confusion.tolist()
    return found
