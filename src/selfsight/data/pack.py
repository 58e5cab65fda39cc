"""Any data as tar shards: the same bytes in the same order, and twice the same shards."""

import hashlib
import io
import os
import secrets
import shutil
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from PIL import Image

from selfsight.data.base import Progress, Source, Subset, printable
from selfsight.data.decode import Undecodable
from selfsight.data.files import Files
from selfsight.data.listing import SHARD, promises_image
from selfsight.data.manifest import flush_folder
from selfsight.data.shards import BLOCK, LABEL, plain_label
from selfsight.errors import ConfigError, DataError, StorageError

__all__ = ["SHARD_BYTES", "empty_folder", "pack"]

SHARD_BYTES = 256 << 20

_END = bytes(2 * BLOCK)
_SHORT_NAME = 100
_SUFFIX = {"JPEG": ".jpg"}


def pack(
    source: Source,
    out: str | os.PathLike[str],
    *,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress | None = None,
) -> list[Path]:
    """Writes the images into shard-000000.tar, … in `out`, a new or empty folder, which is
    there once all are; returns the shards.

    Files keep their bytes and, below the data's root, their paths; arrays become PNG. With
    labels, a member `7.cls` that holds the class follows `7.jpg`.

    shard_bytes: a shard is no longer than that, unless it holds one image only
    """
    place = empty_folder(out)
    within = _folder(source)
    if within and place.is_relative_to(within):
        raise ConfigError(f"--out {os.fspath(out)} lies inside the data; choose a place outside")
    unfinished = place.with_name(f".{place.name}.{secrets.token_hex(4)}")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        unfinished.mkdir()
        names = _write(source, unfinished, shard_bytes, progress)
        flush_folder(unfinished)
        os.rename(unfinished, place)
        flush_folder(place.parent)
    except OSError as error:
        told = f"{os.fspath(out)} cannot be written: {error.strerror}; nothing of it is kept"
        raise StorageError(told) from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return [Path(out) / name for name in names]


def empty_folder(out: str | os.PathLike[str]) -> Path:
    """Where `out` really is; raises ConfigError where something is there."""
    place = Path(os.path.realpath(Path(out).expanduser()))
    if place.is_dir():
        if any(place.iterdir()):
            raise ConfigError(f"--out {os.fspath(out)} is not empty; choose a new folder")
    elif place.exists():
        raise ConfigError(f"--out {os.fspath(out)} is not a folder; choose a new one")
    return place


def _write(source: Source, folder: Path, limit: int, progress: Progress | None) -> list[str]:
    number = filled = done = 0

    def shard(sample: bytes) -> int:
        nonlocal number, filled
        if filled and filled + len(sample) + len(_END) > limit:
            number, filled = number + 1, 0
        filled += len(sample)
        return number

    names = []
    for count, samples in groupby(_samples(source), key=shard):
        names.append(f"shard-{count:06}{SHARD}")
        with open(folder / names[-1], "xb") as file:
            for sample in samples:
                file.write(sample)
                done += 1
                if progress is not None:
                    progress(done, len(source))
            file.write(_END)
            file.flush()
            os.fsync(file.fileno())
    return names


def _samples(source: Source) -> Iterator[bytes]:
    """Each image as a member, followed by its label."""
    classes, taken = _classes(source), set[str]()
    for index in range(len(source)):
        try:
            name, data = _content(source, index)
        except Undecodable as error:
            path = printable(source.path(index))
            raise DataError(f"{path} can no longer be read: {error}; pack again") from None
        # The label belongs to the name without its suffix, so that must be one image's alone.
        first, suffix = os.path.splitext(name)
        chosen = first
        while chosen in taken:
            chosen = f"{first}-{index}" if chosen == first else f"{chosen}-"
        taken.add(chosen)
        sample = _member(chosen + suffix, data)
        if source.labels is not None:
            sample += _member(chosen + LABEL, classes[source.labels[index]])
        yield sample


def _content(source: Source, index: int) -> tuple[str, bytes]:
    while isinstance(source, Subset):
        index = int(source.indices[index])
        source = source.source
    if not isinstance(source, Files):
        file = io.BytesIO()
        Image.fromarray(source.read(index)).save(file, "PNG")
        return f"{index:08}.png", file.getvalue()
    data = source.content(index)
    if hashlib.sha256(data).digest() != source.digest(index):
        raise Undecodable("changed since the data set was opened")
    name = _safe(source.member(index))
    if not promises_image(name):
        kind = source.format(index)
        name += _SUFFIX.get(kind, f".{kind.lower()}")
    return name, data


def _folder(source: Source) -> Path | None:
    """Where files lie that shards must not be put beside."""
    while isinstance(source, Subset):
        source = source.source
    return Path(source.root) if isinstance(source, Files) else None


def _safe(name: str) -> str:
    """A relative name without hidden parts, which would be left out when it is read."""
    parts = [part.lstrip(".") for part in name.split("/")]
    return "/".join(part for part in parts if part) or "image"


def _classes(source: Source) -> list[bytes]:
    """The names of the classes, or their numbers where a name would not come back."""
    if source.labels is not None and len(source.classes) <= source.labels.max():
        return [b"%d" % number for number in range(int(source.labels.max()) + 1)]
    names = [os.fsencode(name) for name in source.classes]
    kept = tuple(map(plain_label, names)) == source.classes
    if kept and len(set(names)) == len(names):
        return names
    return [b"%d" % number for number in range(len(names))]


def _member(name: str, data: bytes) -> bytes:
    encoded, before = os.fsencode(name), b""
    if len(encoded) > _SHORT_NAME:
        words = _record(b"path", encoded)
        if name.encode("utf-8", "replace") != encoded:
            words = _record(b"hdrcharset", b"BINARY") + words
        before = _header(b"././@PaxHeader", len(words), b"x") + _filled(words)
    return before + _header(encoded[:_SHORT_NAME], len(data), b"0") + _filled(data)


def _header(name: bytes, size: int, kind: bytes) -> bytes:
    """A ustar header: mode 0644, and owner and time 0."""
    words = b"%s0000644\0" % name.ljust(_SHORT_NAME, b"\0") + b"0000000\0" * 2
    words += b"%011o\0%011o\0" % (size, 0)
    rest = kind + bytes(100) + b"ustar\00000"
    total = sum(words) + 8 * ord(" ") + sum(rest)
    return (words + b"%06o\0 " % total + rest).ljust(BLOCK, b"\0")


def _record(key: bytes, value: bytes) -> bytes:
    """A pax record, whose length counts its own digits."""
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    length = rest + len(str(length))
    return b"%d %s=%s\n" % (length, key, value)


def _filled(data: bytes) -> bytes:
    return data + bytes(-len(data) % BLOCK)
