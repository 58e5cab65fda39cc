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
# Rows of fewer different values may be codes, which different images share.
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
            f"the labels are in the features: channel{'s' * (len(channels) > 1)} {shown} never "
            "differ within a class and tell all classes apart, in training and test; leave out "
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


def label_channels(
    train: NDArray[np.float32],
    train_label: NDArray[np.int64],
    test: NDArray[np.float32],
    test_label: NDArray[np.int64],
) -> list[int]:
    """The channels that have one value per class, in both parts, if together they tell all
    classes apart: an appended class number, or one channel per class.

    train, test: (N, D); labels: (N,). No embedding of different images does this, but many
    images must agree before it counts.
    """
    classes = np.unique(np.concatenate([train_label, test_label]))
    if len(train) + len(test) - len(classes) < _AGREEING or len(classes) < 2:
        return []
    constant = np.arange(train.shape[1])
    values = np.empty((0, len(constant)), np.float32)
    for label in classes:
        rows = [part[of == label] for part, of in ((train, train_label), (test, test_label))]
        # The first class leaves few channels of an honest embedding, and the rest go fast.
        members = np.concatenate([part[:, constant] for part in rows])
        same = (members == members[0]).all(axis=0)
        constant, values = constant[same], np.concatenate([values[:, same], members[:1, same]])
    telling = (values != values[:1]).any(axis=0)
    apart = len(np.unique(values[:, telling], axis=0)) == len(classes)
    return constant[telling].tolist() if telling.any() and apart else []


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
