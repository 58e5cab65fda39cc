"""Images and, for each, a map with one number per pixel: the mask of a segmentation, or the
target of a dense regression.

A folder holds `images` and `masks` (or `targets`), or `train` and `test` (or `val`) that do. A
map has its image's name but for the suffix, and its size. Masks and integer targets are PNGs,
which are checked as images are; targets may also be .npy arrays.
"""

import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
from numpy.typing import NDArray

from selfsight.data import split
from selfsight.data.annotated import Annotated, two_parts
from selfsight.data.base import Pixels, Skip, Source, printable
from selfsight.data.decode import Undecodable, decode_mask, read_bytes
from selfsight.data.files import Files
from selfsight.data.listing import list_folder
from selfsight.data.sources import Data, open_source
from selfsight.errors import DataError
from selfsight.machine import cores

__all__ = ["IGNORED", "LEGEND", "Map", "Paired", "matched", "open_masks", "open_targets", "root_of"]

Map = NDArray[Any]

IGNORED = -1
LEGEND = "labels.json"

_VOID = 255  # the value that masks by custom give to pixels of no class
_CLASSES = 1024
_LEGEND_BYTES = 1 << 20


@final
@dataclass(frozen=True)
class Paired(Annotated):
    """Images and their maps.

    read_map: (H, W) of the image's number: of a mask int16 numbers of classes, IGNORED where
        there is none; of a target float32, nan where it is unknown
    mark: stands for the content of the maps
    classes: of masks, their names
    """

    name: str = field(compare=False)
    images: Source
    read_map: Callable[[int], Map] = field(compare=False)
    mark: str
    classes: tuple[str, ...] = ()

    def read(self, index: int, least: int = 0) -> tuple[Pixels, Map]:
        """The image, as `Source.read`, and its map at its own size."""
        try:
            return self.images.read(index, least), self.read_map(index)
        except Undecodable as error:
            raise DataError(f"{self.shown(index)} has gone bad: {error}; restore it") from None

    def maps(self) -> Iterator[tuple[int, Map]]:
        """(number, map) of every image, a bounded number ahead; each checked against its image."""
        with ThreadPoolExecutor(cores()) as pool:
            step = 8 * cores()
            for start in range(0, len(self), step):
                numbers = range(start, min(start + step, len(self)))
                yield from zip(numbers, pool.map(self._checked, numbers), strict=True)

    def changed(
        self, change: Callable[[Map], Map], how: bytes, classes: tuple[str, ...] = ()
    ) -> "Paired":
        """The same images with maps made of these; `how` stands for the change."""

        def read(index: int) -> Map:
            return change(self.read_map(index))

        return Paired(self.name, self.images, read, _mark(self.mark, how), classes)

    def reduced(self, images: Source, numbers: NDArray[np.int64]) -> "Paired":
        def read(index: int) -> Map:
            return self.read_map(int(numbers[index]))

        mark = _mark(self.mark, numbers.tobytes())
        return Paired(self.name, images, read, mark, self.classes)

    def _checked(self, index: int) -> Map:
        try:
            found = self.read_map(index)
        except Undecodable as error:
            raise DataError(f"the map of {self.shown(index)} cannot be used: {error}") from None
        height, width = self.images.sizes[index].tolist()
        if found.shape != (height, width):
            raise DataError(
                f"{self.shown(index)} has {width} × {height} pixels and its map "
                f"{found.shape[1]} × {found.shape[0]}; give both the same size"
            )
        return found

    def shown(self, index: int) -> str:
        """The path of an image, for a message."""
        return f"{self.images.name}/{printable(self.images.path(index))}"


def open_masks(
    data: Data,
    seed: int = 0,
    *,
    duplicates: Literal["refuse", "drop"] = "refuse",
    **options: Any,
) -> tuple[Paired, Paired]:
    """Training and test part with masks: the data's own, otherwise four fifths and one fifth.

    The classes are those of labels.json: a list of names in the order of the masks' values,
    those called void or ignore being of no class, or {"classes": […], "ignore": 11}. Without
    it, the values that occur in training masks. 255 is of no class unless labels.json names it.

    duplicates: see `evaluation_split`
    options: those of `open_source`
    """
    root = root_of(data, "images/ and masks/")
    parts = _parts(root, "masks", options)
    declared = len(parts) == 2
    train, test = two_parts(str(root), parts, seed, duplicates)
    counted = [{value: i for i, m in part.maps() for value in _values(m)} for part in (train, test)]
    legend = _legend(root)
    if legend is None:
        known = set(counted[0]) | (set() if declared else set(counted[1]))
        values = sorted(known - {_VOID})
        names, void = {value: str(value) for value in values}, {_VOID}
        if len(values) > _CLASSES:
            raise DataError(f"{root} has masks of {len(values)} values, which are no classes")
    else:
        names, void = legend
    for part, found in zip((train, test), counted, strict=True):
        for value in sorted(set(found) - set(names) - void):
            raise DataError(
                f"{part.shown(found[value])} has a mask with the value {value}, which is no class "
                + ("of the training masks" if legend is None else f"of {root / LEGEND}")
                + f"; name the classes in {LEGEND}, or write {_VOID} where there is none"
            )
    if len(names) < 2:
        raise DataError(
            f"{root} has masks of {len(names)} class; segmentation needs two or more "
            f"({_VOID} stands for none, unless {LEGEND} names it)"
        )
    table = np.full(1 << 16, IGNORED, np.int16)
    table[list(names)] = np.arange(len(names))
    classes = tuple(names.values())
    how = table.tobytes()
    train, test = (part.changed(table.__getitem__, how, classes) for part in (train, test))
    return train, test


def open_targets(
    data: Data,
    *,
    unit: float = 1.0,
    zero: bool = True,
    seed: int = 0,
    duplicates: Literal["refuse", "drop"] = "refuse",
    **options: Any,
) -> tuple[Paired, Paired]:
    """Training and test part with targets: the data's own, otherwise four fifths and one fifth.

    unit: of an integer target, the value of 1
    zero: a 0 of an integer target is a value, otherwise unknown
    duplicates: see `evaluation_split`
    options: those of `open_source`
    """

    def scaled(target: Map) -> Map:
        values = target.astype(np.float32)
        if target.dtype.kind == "u":
            values *= np.float32(unit)
            if not zero:
                values[target == 0] = np.nan
        return values

    root = root_of(data, "images/ and targets/")
    both = two_parts(str(root), _parts(root, "targets", options), seed, duplicates)
    how = f"{unit} {zero}".encode()
    train, test = (part.changed(scaled, how) for part in both)
    for part in (train, test):
        for index, target in part.maps():
            if np.isinf(target).any():
                raise DataError(
                    f"the target of {part.shown(index)} has infinite values; nan is unknown"
                )
    return train, test


def root_of(data: Data, holds: str) -> Path:
    """The folder that `data` names."""
    if not isinstance(data, str | os.PathLike) or not Path(data).expanduser().is_dir():
        shown = data if isinstance(data, str | os.PathLike) else type(data).__name__
        raise DataError(f"{shown} is not a folder; give one that holds {holds}")
    return Path(data).expanduser()


def matched(
    images: Source, maps: str, names: Sequence[str], skipped: Sequence[Skip]
) -> list[tuple[int, int]]:
    """(number of the image, number of the map) for equal names but for the suffix. Where one of
    both is a bad file, which the opening pass lists and bounds, the other is left out.

    maps: the folder with the `names`
    """
    place = {_stem(name): number for number, name in enumerate(names)}
    lost = {_stem(skip.path) for skip in skipped}
    pairs = []
    for index in range(len(images)):
        stem = _stem(images.path(index))
        if stem in place:
            pairs.append((index, place.pop(stem)))
        elif stem not in lost:
            path = printable(images.path(index))
            raise DataError(
                f"{images.name}/{path} has no {os.path.basename(maps).rstrip('s')}: there is no "
                f"{printable(f'{maps}/{stem}')}.png"
            )
    alone = set(place) - {_stem(skip.path) for skip in images.skipped}
    if alone:
        name = printable(names[place[min(alone)]])
        raise DataError(f"{maps}/{name} has no image of that name in {images.name}")
    return pairs


def _parts(root: Path, kind: str, options: Any) -> list[Paired]:
    """Those that the folder declares, or the whole."""
    return [_open(Path(str(part)), kind, options) for part in split.parts(root) or (root,)]


def _open(part: Path, kind: str, options: Any) -> Paired:
    """The images and raw maps of a folder."""
    for folder in ("images", kind):
        if not (part / folder).is_dir():
            raise DataError(f"{part} has no folder {folder}; it needs images/ and {kind}/")
    images = open_source(part / "images", labels=False, **options)
    maps = part / kind
    names, skipped, read, mark = _arrays(maps, options) or _pngs(maps, options)
    pairs = matched(images, str(maps), names, skipped)
    chosen, places = np.array(pairs, np.int64).reshape(-1, 2).T
    whole = _mark(mark, places.tobytes())
    return Paired(str(part), images.subset(chosen), lambda i: read(int(places[i])), whole)


# Names, bad files, how one is read by its number, and what stands for the content of all.
_Maps = tuple[Sequence[str], Sequence[Skip], Callable[[int], Map], str]


def _pngs(folder: Path, options: Any) -> _Maps:
    files = open_source(folder, labels=False, **options)
    assert isinstance(files, Files)
    names = [files.path(i) for i in range(len(files))]
    return names, files.skipped, lambda i: decode_mask(files.content(i)), files.fingerprint


def _arrays(folder: Path, options: Any) -> _Maps | None:
    """The .npy files of a folder that holds some."""
    listing = list_folder(folder, follow_links=options.get("follow_links", False))
    names = [entry.path for entry in listing.entries if entry.path.lower().endswith(".npy")]
    if not names:
        return None
    paths = [os.path.join(listing.root, name) for name in names]
    total = hashlib.sha256()
    for name, path in zip(names, paths, strict=True):
        try:
            total.update(os.fsencode(name) + b"\0" + hashlib.sha256(read_bytes(path)[0]).digest())
        except Undecodable as error:
            raise DataError(f"{printable(path)} {error}") from None
    return names, listing.refused, lambda i: _array(paths[i]), total.hexdigest()


def _array(path: str) -> Map:
    """float32 (H, W) of a .npy file; nothing is allocated that its bytes do not hold."""
    stored, _ = read_bytes(path)
    stream = io.BytesIO(stored)
    try:
        version = np.lib.format.read_magic(stream)
        header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, by_columns, kind = header(stream)
        if kind.kind not in "fiu" or len(shape) != 2:
            raise Undecodable(f"{kind} of shape {shape}; a target is (height, width) numbers")
        values = np.frombuffer(stored, kind, offset=stream.tell())
        found = values.reshape(shape, order="F" if by_columns else "C")
    except (ValueError, KeyError, TypeError) as error:
        raise Undecodable(f"not an array: {str(error).splitlines()[0]}") from None
    return found.astype(np.float32)


def _values(mask: Map) -> list[int]:
    found: list[int] = np.flatnonzero(np.bincount(mask.ravel())).tolist()
    return found


def _legend(root: Path) -> tuple[dict[int, str], set[int]] | None:
    """Names of the classes by their values, and the values that are of no class."""
    file = root / LEGEND
    if not file.exists():
        return None
    try:
        said = json.loads(read_bytes(file, _LEGEND_BYTES)[0])
    except (Undecodable, ValueError, RecursionError) as error:
        raise DataError(f"{file} cannot be read: {str(error).splitlines()[0]}") from None
    listed: Any = said.get("classes") if isinstance(said, dict) else said
    given = said.get("ignore", []) if isinstance(said, dict) else []
    ignore = given if isinstance(given, list) else [given]
    named = isinstance(listed, list) and all(isinstance(name, str) for name in listed)
    if not named or len(listed) > _CLASSES or not all(type(value) is int for value in ignore):
        raise DataError(
            f'{file} should be a list of names of classes, or {{"classes": […], "ignore": 11}}'
        )
    void = set(ignore)
    if not isinstance(said, dict):
        words = re.compile(r"\b(void|ignored?)\b", re.IGNORECASE)
        void = {value for value, name in enumerate(listed) if words.search(name)}
    names = {value: name for value, name in enumerate(listed) if value not in void}
    return names, void | ({_VOID} - set(names))


def _mark(mark: str, how: bytes) -> str:
    return hashlib.sha256(mark.encode() + how).hexdigest()


def _stem(path: str) -> str:
    return os.path.splitext(path)[0]
