"""What to learn a probe from and what to test it on."""

import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from selfsight import philox
from selfsight.data.base import Arrays, Pixels, Skip, Source, Subset, pixel_digest, printable
from selfsight.data.layouts import annotations
from selfsight.data.named import NAMES
from selfsight.data.sources import Data, open_source
from selfsight.errors import DataError
from selfsight.philox import Purpose

__all__ = [
    "COPY",
    "a_fifth",
    "copied_images",
    "duplicates",
    "evaluation_split",
    "in_memory",
    "parts",
    "stratified",
    "without_copies",
]

# Why a training image is left out.
COPY = "equal to a test image"

# What is drawn for the test where the data do not declare one.
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


def evaluation_split(
    data: Data,
    seed: int = 0,
    *,
    duplicates: Literal["refuse", "drop"] = "refuse",
    **options: Any,
) -> tuple[Source, Source]:
    """Training and test images with labels: the data's own parts, otherwise four fifths and
    one fifth of every class. `options` are those of `open_source`.

    duplicates: what becomes of training images that are equal to test images. Those of declared
        parts are refused, or left out of the training part; from a split that is drawn here they
        are always left out
    """
    said = annotations(data)
    if said is not None:
        raise DataError(
            f"{data} holds {said[0]}, not a folder of images per class; take --protocols {said[1]}"
        )
    declared = parts(data)
    if declared is None:
        train, test = _stratified(open_source(data, labels=True, **options), seed)
        return without_copies(train, test, refuse=False)[0], test
    train, test = (open_source(part, labels=True, **options) for part in declared)
    if train.classes != test.classes:
        strange = sorted(set(train.classes) ^ set(test.classes))
        where = train.name if strange[0] in train.classes else test.name
        raise DataError(
            f"{train.name} and {test.name} have different classes: only {where} has "
            f"{strange[0]}; give both the same sub-folders"
        )
    return without_copies(train, test, refuse=duplicates == "refuse")[0], test


def without_copies(
    train: Source, test: Source, *, refuse: bool
) -> tuple[Source, NDArray[np.int64]]:
    """The training images that are equal to no test image, and their numbers.

    refuse: raise if there are others; otherwise these are among `skipped`
    """
    copies, copied = copied_images(train, test)
    rest = np.setdiff1d(np.arange(len(train)), copies)
    if not copies:
        return train, rest
    if refuse:
        raise _refusal(train, test, copies, copied)
    if len(rest) == 0:
        raise DataError(
            f"every training image of {train.name} is equal to a test image; nothing is left to "
            "learn from"
        )
    left = train.subset(rest)
    left.skipped = (*left.skipped, *(Skip(train.path(i), COPY) for i in copies))
    return left, rest


def copied_images(train: Source, test: Source) -> tuple[list[int], list[int]]:
    """(numbers in train, numbers in test) of the images that are in both."""
    ours, theirs = _contents(train, test)
    shared = set(ours.values()) & set(theirs.values())
    first, second = (
        [index for index, content in part.items() if content in shared] for part in (ours, theirs)
    )
    return first, second


def _refusal(train: Source, test: Source, copies: list[int], copied: list[int]) -> DataError:
    """copies, copied: numbers of equal images in train and test."""
    first = duplicates(train.subset(copies), test.subset(copied[:1]))[0][0]
    return DataError(
        f"{len(copied)} of {len(test)} test images of {test.name} are training images, too, "
        f"the first is {printable(test.path(copied[0]))}, equal to "
        f"{printable(train.path(copies[first]))}; remove them, or leave their copies out of the "
        "training part with --duplicates drop"
    )


def _stratified(source: Source, seed: int) -> tuple[Source, Source]:
    assert source.labels is not None
    rest, chosen = stratified(source.labels, seed)
    if len(chosen) == 0:
        raise DataError(
            f"{source.name} has no class with two images, so none to test on; label more images"
        )
    return source.subset(rest), source.subset(chosen)


def stratified(labels: NDArray[np.int64], seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Numbers of the training and of the test part of `labels` (N,): four fifths and one fifth
    of every class, by a seed."""
    test = [np.empty(0, np.int64)]
    for label in np.unique(labels).tolist():
        members = np.flatnonzero(labels == label)
        test.append(members[a_fifth(len(members), seed, label)[1]])
    chosen = np.sort(np.concatenate(test))
    return np.setdiff1d(np.arange(len(labels)), chosen), chosen


def a_fifth(n: int, seed: int, draw: int = 0) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The rest of n images, and a fifth of them for the test, each in order."""
    # At least one for each side; one image alone has nothing to be tested on.
    count = min(max(1, round(_TEST_FRACTION * n)), n - 1)
    order = philox.permutation(seed, draw, Purpose.SPLIT, n)
    return np.sort(order[count:]), np.sort(order[:count])


def duplicates(train: Source, test: Source) -> list[tuple[int, int]]:
    """(number in train, number in test) of each test image that has an equal training image, and
    the first of these: equal files, or equal pixels where one side is not made of files."""
    ours, theirs = _contents(train, test)
    known: dict[bytes, int] = {}
    for first, content in ours.items():
        known.setdefault(content, first)
    return [(known[one], second) for second, one in theirs.items() if one in known]


def _contents(train: Source, test: Source) -> tuple[dict[int, bytes], dict[int, bytes]]:
    """Digests by number, of images that may have an equal on the other side."""
    arrays = in_memory(train), in_memory(test)
    first, second = (
        # Files were digested when they were checked, pixels were not: a look at a few of them
        # leaves hardly any to digest.
        _alike(train, test) if all(arrays) else (range(len(train)), range(len(test)))
    )
    by_pixels = arrays[0] != arrays[1]
    return (
        {index: _content(train, index, by_pixels) for index in first},
        {index: _content(test, index, by_pixels) for index in second},
    )


def _alike(train: Source, test: Source) -> tuple[list[int], list[int]]:
    """The numbers of images that have their like, by a few pixels, on the other side."""
    looks = [
        [hash(_look(source.read(index))) for index in range(len(source))]
        for source in (train, test)
    ]
    shared = set(looks[0]) & set(looks[1])
    first, second = ([i for i, look in enumerate(one) if look in shared] for one in looks)
    return first, second


def _look(pixels: Pixels) -> bytes:
    height, width, _ = pixels.shape
    return pixels[:: max(1, height // 8), :: max(1, width // 8)].tobytes()


def in_memory(source: Source) -> bool:
    while isinstance(source, Subset):
        source = source.source
    return isinstance(source, Arrays)


def _content(source: Source, index: int, by_pixels: bool) -> bytes:
    return pixel_digest(source.read(index)) if by_pixels else source.digest(index)
