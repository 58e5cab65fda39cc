"""Test labels that embeddings give away: test rows among the training rows, and channels that
say the class."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from selfsight.errors import DataError
from selfsight.features import Features

__all__ = ["label_channels", "shared_rows", "without_leaks"]

# Fewer images beyond one per class can agree on a coarse channel by chance.
_AGREEING = 20
# A channel says the class if the deviation within every class is this little of the distance
# between the classes. What is computed from images varies with them: where a class is told by
# chance or by skill, its own images still differ, by a tenth of that distance for the best of
# encoders. What was computed from the label varies by rounding and noise alone.
_STEADY = 1 / 300
# Classes that together tell so many apart say the class, even where noise joins neighbours.
_APART = 100
# Rows or channels of fewer different values may be codes, which different images share.
_VALUES = 8


def without_leaks(
    train: Features, test: Features, duplicates: Literal["refuse", "drop"] = "refuse"
) -> Features:
    """The training features to learn from; DataError where labels leak.

    duplicates: what becomes of training rows that are equal to test rows: refused, or left out
    """
    assert train.label is not None
    assert test.label is not None
    channels = label_channels(train.embedding, train.label, test.embedding, test.label)
    if channels:
        shown = ", ".join(map(str, channels[:5])) + ", …" * (len(channels) > 5)
        raise DataError(
            f"the labels are in the features: channel{'s' * (len(channels) > 1)} {shown} hardly "
            "differ within a class and tell the classes apart, in training and test; leave out "
            "what is no embedding"
        )
    copies, copied = shared_rows(train.embedding, train.label, test.embedding)
    if len(copied) == 0:
        return train
    if duplicates == "refuse":
        equal = (train.embedding[copies] == test.embedding[copied[0]]).all(axis=1)
        first = copies[equal][0]
        raise DataError(
            f"{len(copied)} of {len(test)} test features are training features, too, the first "
            f"is {test.path[copied[0]]}, equal to {train.path[first]}; remove them, or leave "
            "their copies out of the training part with --duplicates drop"
        )
    rest = np.setdiff1d(np.arange(len(train)), copies)
    if len(rest) == 0:
        raise DataError("every training feature is equal to a test feature; nothing is left")
    return train.subset(rest)


@np.errstate(over="ignore", invalid="ignore")  # numbers too large to square say no class
def label_channels(
    train: NDArray[np.float32],
    train_label: NDArray[np.int64],
    test: NDArray[np.float32],
    test_label: NDArray[np.int64],
) -> list[int]:
    """The channels that have one value per class, but for a little noise, in both parts, if
    together they tell the classes apart: a class number, or one channel per class.

    train, test: (N, D); labels: (N,). No embedding of different images does this, but many
    images must agree before it counts, and codes, as of two values, may agree honestly.
    """
    classes, count = np.unique(np.concatenate([train_label, test_label]), return_counts=True)
    if count.sum() - len(classes) < _AGREEING or len(classes) < 2:
        return []
    high = np.maximum(train.max(axis=0), test.max(axis=0)).astype(np.float64)
    spread = high - np.minimum(train.min(axis=0), test.min(axis=0))
    left = np.flatnonzero(spread > 0)
    moments = []
    # The first classes leave few channels of an honest embedding, and soon there are none.
    for label in classes[np.argsort(count, kind="stable")]:
        rows = [part[of == label] for part, of in ((train, train_label), (test, test_label))]
        mean, deviation = _moments(np.concatenate([part[:, left] for part in rows]))
        moments.append((left, mean, deviation))
        left = left[deviation <= _STEADY * spread[left]]
        if len(left) == 0:
            return []
    kept = [np.searchsorted(seen, left) for seen, _, _ in moments]
    mean = np.stack([one[at] for (_, one, _), at in zip(moments, kept, strict=True)])
    deviation = np.stack([one[at] for (_, _, one), at in zip(moments, kept, strict=True)])
    # A single image far away widens the spread, but not the distance between means.
    distance = np.ptp(mean, axis=0)
    telling = deviation.max(axis=0) <= _STEADY * distance
    left, mean, distance = left[telling], mean[:, telling], distance[telling]
    if len(left) == 0 or _are_codes(train[:: 1 + len(train) // 1000], left):
        return []
    places = np.rint((mean - mean.min(axis=0)) / (_STEADY * distance))
    apart = len(np.unique(places, axis=0)) >= min(len(classes), _APART)
    return left.tolist() if apart else []


def _moments(rows: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and deviation of each column, from differences to the first row: what is far from
    zero keeps its digits."""
    away = rows - rows[:1]
    mean = away.mean(axis=0, dtype=np.float64)
    square = np.einsum("nd,nd->d", away, away, dtype=np.float64, casting="same_kind") / len(rows)
    return rows[0] + mean, np.sqrt(np.maximum(square - mean**2, 0))


def _are_codes(rows: NDArray[np.float32], channels: NDArray[np.int64]) -> bool:
    """Whether the channels hold but the few values that the others, which vary, hold as well."""
    others = np.unique(np.delete(rows, channels, axis=1))
    few = 2 <= len(others) <= _VALUES
    return few and bool(np.isin(rows[:, channels], others).all())


def shared_rows(
    train: NDArray[np.float32], label: NDArray[np.int64], test: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(numbers in train, numbers in test) of the rows of (N, D) that occur in both; label: (N,)
    of the training rows.

    Rows do not count that different images may share: of few values, as codes have, or of
    several classes, as of a collapsed encoder.
    """
    ours, theirs = ([row.tobytes() for row in part] for part in (train, test))
    shared = set(ours) & set(theirs)
    classes: dict[bytes, set[int]] = {}
    for row, of in zip(ours, label.tolist(), strict=True):
        if row in shared:
            classes.setdefault(row, set()).add(of)
    least = max(2, min(_VALUES, train.shape[1]))
    telling = {
        row
        for row, labels in classes.items()
        if len(labels) == 1 and len(np.unique(np.frombuffer(row, np.float32))) >= least
    }
    first, second = (
        np.array([i for i, row in enumerate(part) if row in telling], np.int64)
        for part in (ours, theirs)
    )
    return first, second
