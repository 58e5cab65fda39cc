"""Images and what is said of each: tags, boxes, masks. How they are opened and parted."""

import abc
import os
from collections.abc import Iterable, Sequence
from typing import Literal, Self, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from selfsight.data.base import Opened, Progress, Skip, Source
from selfsight.data.files import open_files
from selfsight.data.listing import list_named
from selfsight.data.split import a_fifth, without_copies
from selfsight.errors import DataError
from selfsight.machine import cache_folder

__all__ = ["Annotated", "open_named", "two_parts"]


class Annotated(Opened):
    """Images, and something for each. Subclasses are final."""

    images: Source

    def __len__(self) -> int:
        return len(self.images)

    @property
    def skipped(self) -> Sequence[Skip]:
        """Images left out."""
        return self.images.skipped

    def subset(self, numbers: ArrayLike) -> Self:
        """The images of these numbers, in this order."""
        rows = np.asarray(numbers, np.int64)
        return self.reduced(self.images.subset(rows), rows)

    @abc.abstractmethod
    def reduced(self, images: Source, numbers: NDArray[np.int64]) -> Self:
        """`images`, which are those of these numbers, with what is said of them."""


Part = TypeVar("Part", bound=Annotated)


def two_parts(
    name: str, found: Sequence[Part], seed: int, duplicates: Literal["refuse", "drop"]
) -> tuple[Part, Part]:
    """The training and the test part; no image is in both.

    name: of the data, for messages
    found: the parts that the data declare, or the whole, of which a fifth is drawn
    duplicates: see `evaluation_split`
    """
    declared = len(found) == 2
    if declared:
        train, test = found
    else:
        (whole,) = found
        rest, drawn = a_fifth(len(whole), seed)
        train, test = whole.subset(rest), whole.subset(drawn)
    for part, which in ((train, "training"), (test, "test")):
        if len(part) == 0:
            raise DataError(f"{name} has no usable {which} images; annotate more")
    refuse = declared and duplicates == "refuse"
    images, rest = without_copies(train.images, test.images, refuse=refuse)
    return train.reduced(images, rest), test


def open_named(
    name: str,
    root: str | os.PathLike[str],
    origin: str,
    paths: Iterable[str],
    *,
    max_bad_fraction: float = 0.01,
    cache: str | os.PathLike[str] | None = None,
    follow_links: bool = False,
    progress: Progress | None = None,
    download: bool = False,
) -> Source:
    """The images that annotations name by their paths below `root`, in this order; the options
    are those of `open_source`.

    origin: tells listings of different making apart
    download: nothing is fetched; stands here because other data can be
    """
    return open_files(
        name,
        list_named(root, origin, paths, follow_links=follow_links),
        labels=False,
        max_bad_fraction=max_bad_fraction,
        cache=cache_folder(cache),
        progress=progress,
    )
