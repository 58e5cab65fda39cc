"""What to learn a probe from and what to test it on."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from selfsight import philox
from selfsight.data.base import Arrays, Source, Subset, pixel_digest
from selfsight.data.named import NAMES
from selfsight.data.sources import Data, open_source
from selfsight.errors import DataError
from selfsight.philox import Purpose

__all__ = ["duplicates", "evaluation_split", "in_memory", "parts"]

_TEST_FRACTION = 0.2


def parts(data: Data) -> tuple[Data, Data] | None:
    """The training and test data that `data` itself declares: train/ and test/ or val/ in a
    folder, the splits of a set known by name."""
    if not isinstance(data, str | os.PathLike):
        return None
    root = Path(data).expanduser()
    if root.is_dir():
        tests = [root / name for name in ("test", "val") if (root / name).is_dir()]
        train = root / "train"
        return (train, tests[0]) if train.is_dir() and tests else None
    if not root.exists() and data in (*NAMES, "synthetic"):
        return data, f"{data}:test"
    return None


def evaluation_split(data: Data, seed: int = 0, **options: Any) -> tuple[Source, Source]:
    """Training and test images with labels: the data's own parts, otherwise four fifths and
    one fifth of every class. `options` are those of `open_source`."""
    declared = parts(data)
    if declared is None:
        return _stratified(open_source(data, labels=True, **options), seed)
    train, test = (open_source(part, labels=True, **options) for part in declared)
    if train.classes != test.classes:
        strange = sorted(set(train.classes) ^ set(test.classes))
        where = train.name if strange[0] in train.classes else test.name
        raise DataError(
            f"{train.name} and {test.name} have different classes: only {where} has "
            f"{strange[0]}; give both the same sub-folders"
        )
    return train, test


def _stratified(source: Source, seed: int) -> tuple[Source, Source]:
    assert source.labels is not None
    test: list[NDArray[np.int64]] = []
    for label in range(len(source.classes)):
        members = np.flatnonzero(source.labels == label)
        # At least one for each side; a class of one image has nothing to be tested on.
        count = min(max(1, round(_TEST_FRACTION * len(members))), len(members) - 1)
        if count > 0:
            drawn = philox.permutation(seed, label, Purpose.SPLIT, len(members))[:count]
            test.append(members[drawn])
    if not test:
        raise DataError(
            f"{source.name} has no class with two images, so none to test on; label more images"
        )
    chosen = np.sort(np.concatenate(test))
    rest = np.setdiff1d(np.arange(len(source)), chosen)
    return source.subset(rest), source.subset(chosen)


def duplicates(train: Source, test: Source) -> list[tuple[int, int]]:
    """(number in train, number in test) of every pair of equal images: equal files, or equal
    pixels where one side is not made of files."""
    by_pixels = in_memory(train) != in_memory(test)
    known: dict[bytes, list[int]] = {}
    for index in range(len(train)):
        known.setdefault(_content(train, index, by_pixels), []).append(index)
    return [
        (first, index)
        for index in range(len(test))
        for first in known.get(_content(test, index, by_pixels), ())
    ]


def in_memory(source: Source) -> bool:
    while isinstance(source, Subset):
        source = source.source
    return isinstance(source, Arrays)


def _content(source: Source, index: int, by_pixels: bool) -> bytes:
    return pixel_digest(source.read(index)) if by_pixels else source.digest(index)
