"""Videos as folders of frames, with a mask of numbered objects for each frame.

A folder holds `frames/CLIP/…` and `masks/CLIP/….png`, or DAVIS's `JPEGImages/480p/CLIP/…` and
`Annotations/480p/CLIP/….png`. A mask has its frame's name but for the suffix, and its size.
"""

import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from selfsight.data.base import Source, printable
from selfsight.data.decode import Undecodable, decode_mask, read_bytes
from selfsight.data.files import Files
from selfsight.data.layouts import CLIPS
from selfsight.data.masks import Map, Paired, matched, root_of
from selfsight.data.sources import Data, open_source
from selfsight.errors import DataError

__all__ = ["VOID", "open_clips"]

# The value that masks give to pixels of no known object; in masks of 0 and 255 it is the object.
VOID = 255

_LEAST = 3  # frames: the first is given, and the last is not counted
_LIST_BYTES = 1 << 20


def open_clips(data: Data, **options: Any) -> list[Paired]:
    """Each clip's frames, in the order of the numbers in their names, with raw masks.

    Where DAVIS's ImageSets name the clips for validation, these alone.
    options: those of `open_source`
    """
    root = root_of(data, "frames/ and masks/")
    frames, masks = _layout(root)
    images = open_source(frames, labels=False, **options)
    files = open_source(masks, labels=False, **options)
    assert isinstance(files, Files)
    names = [files.path(i) for i in range(len(files))]
    pairs = matched(images, str(masks), names, files.skipped)
    members: dict[str, list[tuple[int, int]]] = {}
    for pair in sorted(pairs, key=lambda pair: _natural(images.path(pair[0]))):
        members.setdefault(os.path.dirname(images.path(pair[0])), []).append(pair)
    if "" in members:
        first = printable(images.path(members[""][0][0]))
        raise DataError(f"{frames}/{first} is of no clip; put frames in one folder per clip")
    listed = _listed(root)
    clips = []
    for name, found in members.items():
        if listed is not None and name not in listed:
            continue
        if len(found) < _LEAST:
            raise DataError(f"{frames}/{name} has {len(found)} frames; a clip needs {_LEAST}")
        clips.append(_clip(name, images, files, found))
    if not clips:
        raise DataError(f"{root} has none of the clips that its ImageSets name")
    return clips


def _clip(name: str, images: Source, files: Files, found: list[tuple[int, int]]) -> Paired:
    chosen, places = np.array(found, np.int64).T
    sizes = np.concatenate([images.sizes[chosen], files.sizes[places]])
    if (sizes != sizes[0]).any():
        raise DataError(f"{images.name}/{printable(name)} has frames or masks of different sizes")

    def read(index: int) -> Map:
        return decode_mask(files.content(int(places[index])))

    mark = f"{files.fingerprint} {places.tolist()}"
    return Paired(name, images.subset(chosen), read, mark)


def _layout(root: Path) -> tuple[Path, Path]:
    for frames, masks in CLIPS:
        if (root / frames).is_dir() and (root / masks).is_dir():
            return root / frames, root / masks
    raise DataError(
        f"{root} holds no clips; it needs frames/ and masks/, or JPEGImages/480p and "
        "Annotations/480p, each with one folder per clip"
    )


def _listed(root: Path) -> set[str] | None:
    for year in ("2017", "2016"):
        file = root / "ImageSets" / year / "val.txt"
        if file.exists():
            try:
                lines = read_bytes(file, _LIST_BYTES)[0].decode("utf-8", "replace").splitlines()
            except Undecodable as error:
                raise DataError(f"{file} {error}") from None
            # One list has a clip in each line, the other a frame and its mask.
            words = [line.split()[0] for line in lines if line.strip()]
            return {Path(word).parent.name if "/" in word else word for word in words}
    return None


def _natural(path: str) -> list[tuple[int, str]]:
    """Sorts 9 before 10."""
    parts = re.findall(r"\d+|\D+", path)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]
