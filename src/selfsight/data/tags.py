"""Several labels per image: from a folder in Pascal VOC's layout, or from a list."""

import csv
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from selfsight import philox
from selfsight.data import split, voc
from selfsight.data.base import Progress, Skip, Source, printable
from selfsight.data.files import open_files
from selfsight.data.listing import list_named
from selfsight.data.sources import Data
from selfsight.errors import DataError
from selfsight.machine import cache_folder
from selfsight.philox import Purpose

__all__ = ["Tags", "open_tags"]

_SETS = ("train", "val", "test")
_TEST_FRACTION = 0.2


@dataclass(frozen=True, eq=False)
class Tags:
    """Images, and which of the classes each shows.

    tags: (N, C) int8: 1 yes; 0 no; −1 left out of the count, as what VOC calls difficult
    """

    source: Source
    tags: NDArray[np.int8]
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        tags = np.asarray(self.tags)
        wanted = (len(self.source), len(self.classes))
        if tags.shape != wanted or 0 in wanted or not np.isin(tags, (-1, 0, 1)).all():
            raise DataError(
                f"{wanted[0]} images and {wanted[1]} classes need as many rows and columns of "
                f"1, 0 and −1, got shape {tags.shape}"
            )
        object.__setattr__(self, "tags", tags.astype(np.int8))

    def __len__(self) -> int:
        return len(self.source)

    @property
    def skipped(self) -> Sequence[Skip]:
        """Images left out."""
        return self.source.skipped

    def subset(self, indices: ArrayLike) -> "Tags":
        """The images of these numbers, in this order."""
        rows = np.asarray(indices, np.int64)
        return Tags(self.source.subset(rows), self.tags[rows], self.classes)


def open_tags(
    data: Data,
    *,
    seed: int = 0,
    duplicates: Literal["refuse", "drop"] = "refuse",
    max_bad_fraction: float = 0.01,
    cache: str | os.PathLike[str] | None = None,
    follow_links: bool = False,
    progress: Progress | None = None,
    **others: Any,
) -> tuple[Tags, Tags]:
    """Training and test part.

    data: a folder with JPEGImages/, Annotations/ and ImageSets/Main/; or a .csv with the
        columns path (relative to the list), labels (as cat;dog, or nothing) and perhaps split
        (train, val or test). Trained on are train and val if there is a test, otherwise train
        alone, and val is the test. Without a split a fifth, drawn by `seed`, is the test
    duplicates: see `evaluation_split`
    others: options of `open_source` that say nothing here
    """
    path = Path(data).expanduser() if isinstance(data, str | os.PathLike) else None
    if path is not None and path.is_dir() and voc.is_voc(path):
        found = _voc(path)
    elif path is not None and path.is_file() and path.suffix.lower() == ".csv":
        found = _listed(path)
    else:
        raise DataError(
            "several labels per image come from a folder with JPEGImages, Annotations and "
            "ImageSets/Main, or from a .csv with the columns path,labels; got "
            f"{data if path else 'neither'}"
        )
    where = cache_folder(cache)
    listing = list_named(found.root, f"tags {path}", found.tags, follow_links=follow_links)
    source = open_files(
        str(data),
        listing,
        labels=False,
        max_bad_fraction=max_bad_fraction,
        cache=where,
        progress=progress,
    )
    train, test = _split(found, source, seed)
    refuse = bool(found.sets) and duplicates == "refuse"
    images, rest = split.without_copies(train.source, test.source, refuse=refuse)
    return replace(train.subset(rest), source=images), test


@dataclass(frozen=True)
class _Found:
    """What files say, by the image's path relative to the root.

    tags: the classes of an image: True, or False where they are left out of the count
    sets: which set it is in; empty if none is declared
    """

    root: str
    tags: Mapping[str, Mapping[str, bool]]
    sets: Mapping[str, str]


def _split(found: _Found, source: Source, seed: int) -> tuple[Tags, Tags]:
    classes = tuple(sorted({name for names in found.tags.values() for name in names}))
    if not classes:
        raise DataError(f"{source.name} has no labels; write one or more for each image")
    number = {name: i for i, name in enumerate(classes)}
    tags = np.zeros((len(source), len(classes)), np.int8)
    for row in range(len(source)):
        for name, plain in found.tags[source.path(row)].items():
            tags[row, number[name]] = 1 if plain else -1
    whole = Tags(source, tags, classes)
    if found.sets:
        sets = np.array([found.sets[source.path(row)] for row in range(len(source))])
        test = sets == "test" if (sets == "test").any() else sets == "val"
    else:
        order = philox.permutation(seed, 0, Purpose.SPLIT, len(source))
        test = np.isin(np.arange(len(source)), order[: round(_TEST_FRACTION * len(source))])
    for part, which in ((~test, "training"), (test, "test")):
        if not part.any():
            raise DataError(
                f"{source.name} has no usable {which} images; name train and test, or train and val"
            )
    return whole.subset(np.flatnonzero(~test)), whole.subset(np.flatnonzero(test))


def _voc(folder: Path) -> _Found:
    named = voc.image_sets(folder)
    train, val, trainval, test = (
        named.get(name, []) for name in ("train", "val", "trainval", "test")
    )
    if test:
        training = [*train, *val, *trainval]
    else:
        # All that is named is split by chance if there is no val either.
        training, test = (train or sorted({*trainval} - {*val})) if val else train + trainval, val
    both = set(training).intersection(test)
    if both:
        raise DataError(
            f"{folder} names {printable(min(both))} for training and for the test; choose one"
        )
    roles = dict.fromkeys(training, "train") | dict.fromkeys(test, "test")
    tags: dict[str, dict[str, bool]] = {}
    role: dict[str, str] = {}
    for name in sorted(roles):
        file = os.path.relpath(voc.image_file(folder, name), folder)
        shown: dict[str, bool] = {}
        for one in voc.read_annotation(folder / "Annotations" / f"{name}.xml").objects:
            shown[one.name] = shown.get(one.name, False) or not one.difficult
        tags[file], role[file] = shown, roles[name]
    return _Found(os.path.realpath(folder), tags, role if test else {})


def _listed(file: Path) -> _Found:
    tags: dict[str, dict[str, bool]] = {}
    sets: dict[str, str] = {}
    for line, row in enumerate(_rows(file), 2):
        path, part = row["path"] or "", (row.get("split") or "").strip()
        if not path or path in tags:
            what = "names no image" if not path else f"names {printable(path)} again"
            raise DataError(f"{file}, line {line}, {what}; give each image one line")
        labels = [label.strip() for label in (row["labels"] or "").split(";")]
        tags[path] = dict.fromkeys(filter(None, labels), True)
        if "split" in row:
            if part not in _SETS:
                raise DataError(
                    f"{file}, line {line}, has split {printable(part)}; write train, val or test"
                )
            sets[path] = part
    if not tags:
        raise DataError(f"{file} names no image; write one per line")
    return _Found(os.path.realpath(file.parent), tags, sets)


def _rows(file: Path) -> Sequence[dict[str, str | None]]:
    try:
        with open(file, encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
            reader = csv.DictReader(lines)
            missing = {"path", "labels"} - set(reader.fieldnames or ())
            if missing:
                raise DataError(
                    f"{file} has no column {min(missing)}; its first line must be path,labels or "
                    "path,labels,split"
                )
            return list(reader)
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}") from None
    except csv.Error as error:
        raise DataError(f"{file} is not a CSV of images: {error}") from None
