"""Several labels per image: from a folder in Pascal VOC's layout, or from a list."""

import csv
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
from numpy.typing import NDArray

from selfsight.data import voc
from selfsight.data.annotated import Annotated, open_named, two_parts
from selfsight.data.base import Source, printable
from selfsight.data.sources import Data
from selfsight.errors import DataError

__all__ = ["Tags", "open_tags"]

_SETS = ("train", "val", "test")


@final
@dataclass(frozen=True, eq=False)
class Tags(Annotated):
    """Images, and which of the classes each shows.

    tags: (N, C) int8: 1 yes; 0 no; −1 left out of the count, as what VOC calls difficult
    """

    images: Source
    tags: NDArray[np.int8]
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        tags = np.asarray(self.tags)
        wanted = (len(self.images), len(self.classes))
        if tags.shape != wanted or not self.classes or not np.isin(tags, (-1, 0, 1)).all():
            raise DataError(
                f"{wanted[0]} images and {wanted[1]} classes need as many rows and columns of "
                f"1, 0 and −1, got shape {tags.shape}"
            )
        object.__setattr__(self, "tags", tags.astype(np.int8))

    def reduced(self, images: Source, numbers: NDArray[np.int64]) -> "Tags":
        return Tags(images, self.tags[numbers], self.classes)


def open_tags(
    data: Data,
    *,
    seed: int = 0,
    duplicates: Literal["refuse", "drop"] = "refuse",
    **options: Any,
) -> tuple[Tags, Tags]:
    """Training and test part.

    data: a folder with JPEGImages/, Annotations/ and ImageSets/Main/; or a .csv with the
        columns path (relative to the list), labels (as cat;dog, or nothing) and perhaps split
        (train, val or test). Trained on are train and val if there is a test, otherwise train
        alone, and val is the test. Without a split a fifth, drawn by `seed`, is the test
    duplicates: see `evaluation_split`
    options: those of `open_source`
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
    source = open_named(str(data), found.root, f"tags {path}", found.tags, **options)
    return two_parts(str(data), _parts(found, source), seed, duplicates)


@dataclass(frozen=True)
class _Found:
    """What files say, by the image's path relative to the root.

    tags: the classes of an image: True, or False where they are left out of the count
    sets: which set it is in; empty if none is declared
    """

    root: str
    tags: Mapping[str, Mapping[str, bool]]
    sets: Mapping[str, str]


def _parts(found: _Found, source: Source) -> list[Tags]:
    """Both, or the whole where none is declared."""
    classes = tuple(sorted({name for names in found.tags.values() for name in names}))
    if not classes:
        raise DataError(f"{source.name} has no labels; write one or more for each image")
    number = {name: i for i, name in enumerate(classes)}
    tags = np.zeros((len(source), len(classes)), np.int8)
    for row in range(len(source)):
        for name, plain in found.tags[source.path(row)].items():
            tags[row, number[name]] = 1 if plain else -1
    whole = Tags(source, tags, classes)
    if not found.sets:
        return [whole]
    sets = np.array([found.sets[source.path(row)] for row in range(len(source))])
    test = sets == "test" if "test" in found.sets.values() else sets == "val"
    return [whole.subset(np.flatnonzero(~test)), whole.subset(np.flatnonzero(test))]


def _voc(folder: Path) -> _Found:
    parts = voc.divided([folder])
    # By name, whichever part they are in.
    sets = {
        name: which
        for part, which in zip(parts, ("train", "test"), strict=False)
        for _, name in part
    }
    tags: dict[str, dict[str, bool]] = {}
    role: dict[str, str] = {}
    for name in sorted(sets):
        file = os.path.relpath(voc.image_file(folder, name), folder)
        shown: dict[str, bool] = {}
        for one in voc.read_annotation(folder / "Annotations" / f"{name}.xml").objects:
            shown[one.name] = shown.get(one.name, False) or not one.difficult
        tags[file], role[file] = shown, sets[name]
    return _Found(os.path.realpath(folder), tags, role if len(parts) == 2 else {})


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
