"""What the opening pass found out about a folder, kept so that it is found out once.

A manifest is a folder of plain .npy columns and a `head.json` that holds their checksums.
The columns are memory-mapped: what stays resident does not grow with the data set.
"""

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from selfsight.data.base import Skip
from selfsight.data.decode import DECODER, FORMATS
from selfsight.data.listing import Entry, Listing

__all__ = ["Manifest", "fetch", "flush_folder", "store"]

_VERSION = 2
_HEAD = "head.json"
_ABANDONED = 3600  # seconds after which an unfinished manifest is somebody's who was killed


@dataclass(frozen=True, eq=False)
class Manifest:
    """One row per usable image, in the data set's order.

    paths, offsets: the bytes of all relative paths, and where each begins
    sizes: (N, 2) height and width; labels: numbers of `classes`, -1 without one
    lengths, modified, digests: the file's bytes, its time in ns, SHA-256 of its content
    formats: numbers of FORMATS
    bad: how many of `skipped` were meant to be images
    members: (N, 3) of images in shards: how many bytes of the path name the shard, where in
        it the image begins, the shard's length (`modified` is the shard's, too); no rows for
        images in files of their own
    """

    paths: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int32]
    labels: NDArray[np.int32]
    lengths: NDArray[np.int64]
    modified: NDArray[np.int64]
    digests: NDArray[np.uint8]
    formats: NDArray[np.uint8]
    classes: tuple[str, ...]
    fingerprint: str
    skipped: tuple[Skip, ...]
    bad: int
    members: NDArray[np.int64] = field(default_factory=lambda: np.empty((0, 3), np.int64))

    @classmethod
    def build(
        cls,
        entries: Sequence[Entry],
        sizes: Sequence[tuple[int, int]],
        digests: Sequence[bytes],
        formats: Sequence[str],
        skipped: Sequence[Skip],
        bad: int,
    ) -> Self:
        """From the usable files of a listing and what decoding them told."""
        names = [os.fsencode(entry.path) for entry in entries]
        classes = _in_order({entry.label for entry in entries} - {""})
        number = {label: i for i, label in enumerate(classes)} | {"": -1}
        total = hashlib.sha256()
        for entry, name, digest in zip(entries, names, digests, strict=True):
            label = os.fsencode(entry.label)
            total.update(b"%s\0%s\0%d\0%s" % (name, label, entry.size, digest))
        members = [
            (len(os.fsencode(entry.shard)), entry.offset, entry.shard_size)
            for entry in entries
            if entry.shard
        ]
        return cls(
            paths=np.frombuffer(b"".join(names), np.uint8),
            offsets=np.cumsum([0, *map(len, names)], dtype=np.int64),
            sizes=np.array(sizes, np.int32).reshape(-1, 2),
            labels=np.array([number[entry.label] for entry in entries], np.int32),
            lengths=np.array([entry.size for entry in entries], np.int64),
            modified=np.array([entry.modified for entry in entries], np.int64),
            digests=np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32),
            formats=np.array([FORMATS.index(name) for name in formats], np.uint8),
            classes=classes,
            fingerprint=total.hexdigest(),
            skipped=tuple(skipped),
            bad=bad,
            members=np.array(members, np.int64).reshape(-1, 3),
        )

    def __len__(self) -> int:
        return len(self.sizes)

    def path(self, index: int) -> str:
        start, stop = self.offsets[index], self.offsets[index + 1]
        return os.fsdecode(self.paths[start:stop].tobytes())

    def place(self, index: int) -> tuple[str, int, int]:
        """Path and length of the file that holds it, and where in it: 0 for the whole."""
        if not len(self.members):
            return self.path(index), int(self.lengths[index]), 0
        named, offset, size = map(int, self.members[index])
        start = self.offsets[index]
        return os.fsdecode(self.paths[start : start + named].tobytes()), size, offset

    def save(self, folder: Path) -> None:
        """Into an existing folder; the head comes last."""
        head: dict[str, Any] = {
            "classes": self.classes,
            "fingerprint": self.fingerprint,
            "skipped": [[skip.path, skip.reason] for skip in self.skipped],
            "bad": self.bad,
            "columns": {},
        }
        for name in _COLUMNS:
            with open(folder / f"{name}.npy", "w+b") as file:
                np.save(file, getattr(self, name), allow_pickle=False)
                file.flush()
                os.fsync(file.fileno())
                head["columns"][name] = hashlib.file_digest(_rewound(file), "sha256").hexdigest()
        # ASCII: a name that is not UTF-8 has no other spelling that comes back.
        with open(folder / _HEAD, "w", encoding="ascii") as file:
            json.dump(head, file)
            file.flush()
            os.fsync(file.fileno())
        flush_folder(folder)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Memory-mapped; raises OSError, ValueError or KeyError when anything is amiss."""
        head = json.loads((folder / _HEAD).read_text("ascii"))
        columns = {}
        for name in _COLUMNS:
            with open(folder / f"{name}.npy", "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != head["columns"][name]:
                    raise ValueError(f"{name} is not what was written")
            columns[name] = np.asarray(
                np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
            )
        return cls(
            **columns,
            classes=tuple(head["classes"]),
            fingerprint=head["fingerprint"],
            skipped=tuple(Skip(path, reason) for path, reason in head["skipped"]),
            bad=head["bad"],
        )


_IN_HEAD = ("classes", "fingerprint", "skipped", "bad")
_COLUMNS = tuple(column.name for column in fields(Manifest) if column.name not in _IN_HEAD)


def fetch(listing: Listing, cache: Path) -> Manifest | None:
    """The manifest of exactly these files, if there is an intact one."""
    try:
        return Manifest.load(_place(listing, cache))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def store(manifest: Manifest, listing: Listing, cache: Path) -> None:
    """Writes it beside nothing else of this folder: what it replaces is out of date.

    A cache that cannot be written costs the next opening a pass, nothing more.
    """
    place = _place(listing, cache)
    try:
        place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        unfinished = Path(tempfile.mkdtemp(prefix=".tmp-", dir=place.parent))
    except OSError:
        return
    try:
        manifest.save(unfinished)
        for old in place.parent.iterdir():
            abandoned = old.stat().st_mtime < time.time() - _ABANDONED
            if not old.name.startswith(".tmp-") or abandoned:
                shutil.rmtree(old, ignore_errors=True)
        os.rename(unfinished, place)
        flush_folder(place.parent)
    except OSError:
        # Full disk, or another process was faster.
        shutil.rmtree(unfinished, ignore_errors=True)


def _place(listing: Listing, cache: Path) -> Path:
    origin = hashlib.sha256(os.fsencode(listing.origin)).hexdigest()
    key = hashlib.sha256(f"{_VERSION} {DECODER}\0".encode())
    for entry in listing.entries:
        name, label = os.fsencode(entry.path), os.fsencode(entry.label)
        key.update(b"%s\0%s\0%d\0%d\0" % (name, label, entry.size, entry.modified))
    for skip in (*listing.refused, *listing.unreadable):
        key.update(os.fsencode(f"{skip.path}\0{skip.reason}\0"))
    return cache / "manifests" / origin[:32] / key.hexdigest()[:32]


def _in_order(labels: set[str]) -> tuple[str, ...]:
    """Whole numbers by value, anything else by its bytes."""
    if all(label.isascii() and label.isdigit() for label in labels):
        return tuple(sorted(labels, key=lambda label: (int(label), label)))
    return tuple(sorted(labels, key=os.fsencode))


def _rewound(file: Any) -> Any:
    file.seek(0)
    return file


def flush_folder(folder: Path) -> None:
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
