"""Tar files of images, written by the book or by hand."""

import io
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

from selfsight.data import Source

Photos = Callable[..., Path]
Jpeg = Callable[[int], bytes]
Entries = Iterable[tuple[str, bytes]]

END = bytes(1024)


def names(source: Source) -> list[str]:
    return [source.path(i) for i in range(len(source))]


def digests(source: Source) -> list[bytes]:
    return [source.digest(i) for i in range(len(source))]


def reasons(source: Source) -> dict[str, str]:
    return {skip.path: skip.reason for skip in source.skipped}


def tar(path: Path, entries: Entries, kind: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=kind) as file:
        for name, data in entries:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def header(
    name: bytes = b"a.jpg",
    size: bytes | int = 0,
    kind: bytes = b"0",
    *,
    magic: bytes = b"ustar\00000",
    tail: bytes = b"",
    sum_: int | None = None,
) -> bytes:
    """A block written by hand; size: the field's 12 bytes, or the number in them."""
    field = b"%011o\0" % size if isinstance(size, int) else size
    first = name.ljust(100, b"\0") + b"0000644\0" + bytes(16) + field + bytes(12)
    last = (kind + bytes(100) + magic + tail).ljust(356, b"\0")
    total = sum(first) + 256 + sum(last) if sum_ is None else sum_
    return first + b"%06o\0 " % total + last


def filled(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def inside(source: Source) -> list[str]:
    return [name.partition("/")[2] for name in names(source)]
