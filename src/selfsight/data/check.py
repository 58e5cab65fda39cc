"""What is in a data set, before anything is trained on it."""

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from selfsight.data.base import Skip, Source
from selfsight.data.sources import Data, open_source
from selfsight.data.split import duplicates, parts

__all__ = ["Check", "check"]


@dataclass(frozen=True)
class Check:
    """images: how many, all parts together
    formats, classes: how many of each
    smallest, largest, median: of height and width, each on its own
    max_size: the largest --size that enlarges at most a tenth of the images
    skipped: files that are not used
    duplicates: groups of equal images within a part
    leaks: the first equal training image, and the test image, of each that has one
    """

    name: str
    images: int
    formats: dict[str, int]
    classes: dict[str, int]
    smallest: tuple[int, int]
    largest: tuple[int, int]
    median: tuple[int, int]
    max_size: int
    skipped: tuple[Skip, ...]
    duplicates: tuple[tuple[str, ...], ...]
    leaks: tuple[tuple[str, str], ...]

    def json(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and numbers."""
        return asdict(self)


def check(data: Data, **options: Any) -> Check:
    """Opens the data, its own parts if it declares any, and counts. `options` are those of
    `open_source`; any number of bad files is allowed."""
    options = {"labels": None, "max_bad_fraction": 1.0} | options
    declared = parts(data)
    sources = [open_source(part, **options) for part in declared or (data,)]
    sizes = np.concatenate([source.sizes for source in sources])
    formats: Counter[str] = Counter()
    classes: Counter[str] = Counter()
    groups: list[tuple[str, ...]] = []
    for source in sources:
        formats.update(source.format(index) for index in range(len(source)))
        if source.labels is not None:
            counts = np.bincount(source.labels, minlength=len(source.classes))
            classes.update(dict(zip(source.classes, counts.tolist(), strict=True)))
        groups += _equal(source)
    leaks: list[tuple[str, str]] = []
    if len(sources) == 2:
        train, test = sources
        leaks = [(train.path(i), test.path(j)) for i, j in duplicates(train, test)]
    return Check(
        name=sources[0].name if declared is None else str(data),
        images=len(sizes),
        formats=dict(sorted(formats.items())),
        classes=dict(classes),
        smallest=_pair(sizes.min(axis=0)),
        largest=_pair(sizes.max(axis=0)),
        median=_pair(np.median(sizes, axis=0)),
        max_size=_max_size(sizes.min(axis=1)),
        skipped=tuple(skip for source in sources for skip in source.skipped),
        duplicates=tuple(groups),
        leaks=tuple(leaks),
    )


def _equal(source: Source) -> list[tuple[str, ...]]:
    groups: dict[bytes, list[int]] = {}
    for index in range(len(source)):
        groups.setdefault(source.digest(index), []).append(index)
    return [tuple(map(source.path, group)) for group in groups.values() if len(group) > 1]


def _max_size(short: np.ndarray) -> int:
    side = int(np.percentile(short, 10))
    return side // 32 * 32 if side >= 64 else side


def _pair(values: np.ndarray) -> tuple[int, int]:
    return int(values[0]), int(values[1])
