"""Which files a folder or a list names, in an order that does not depend on the machine."""

import csv
import heapq
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from selfsight.data.base import Skip, printable
from selfsight.errors import DataError

__all__ = [
    "LEADS_OUT",
    "SHARD",
    "Entry",
    "Listing",
    "list_file",
    "list_folder",
    "list_named",
    "list_shard",
    "promises_image",
]

LEADS_OUT = "a link that leads out of the folder"
SHARD = ".tar"

# Names that promise an image, readable here or not. A file with another name that holds no
# known format (notes, annotations, films) is listed as skipped but is not a bad image.
_SUFFIXES = (
    *(".apng", ".avif", ".bmp", ".dib", ".eps", ".fits", ".gif", ".heic", ".heif", ".j2k"),
    *(".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".jxl", ".pbm", ".pfm", ".pgm", ".png"),
    *(".pnm", ".ppm", ".ps", ".psd", ".svg", ".tga", ".tif", ".tiff", ".webp"),
)


@dataclass(frozen=True, slots=True)
class Entry:
    """A file by its path relative to the root, or by an absolute one.

    size, modified: as found, in bytes and nanoseconds; -1 when the file cannot be seen
    label: the name of its class, empty when it has none
    shard, offset, shard_size: of a member of a tar file, which file that is, where in it the
        `size` bytes begin, and its length; `path` is then the shard's and the member's name
    """

    path: str
    size: int
    modified: int
    label: str
    shard: str = ""
    offset: int = 0
    shard_size: int = 0


@dataclass
class Listing:
    """root: absolute; entries in their final order; refused: what was not even tried.

    unreadable: folders that could not be looked into
    origin: tells listings of different making apart
    explicit: somebody wrote the entries down, so each is meant to be an image
    shards: the entries are tar files, and the images are their members
    """

    root: str
    origin: str
    explicit: bool = False
    shards: bool = False
    entries: list[Entry] = field(default_factory=list)
    refused: list[Skip] = field(default_factory=list)
    unreadable: list[Skip] = field(default_factory=list)


def list_folder(root: Path, *, follow_links: bool = False) -> Listing:
    """Every regular file below `root`, sorted by the bytes of its relative path.

    Hidden names are left out. A link inside the folder adds a file only when the walk
    has not met it under its own name; a link that leads outside needs `follow_links`.
    The label of a file is the first folder on its path. A folder with tar files and not one
    file that is named as an image is a folder of shards.
    """
    walk = _Walk(os.path.realpath(root), follow_links)
    walk.run()
    found = walk.listing
    _part_tars(found)
    found.entries.sort(key=lambda entry: os.fsencode(entry.path))
    found.refused.sort(key=lambda skip: os.fsencode(skip.path))
    return found


def list_shard(file: Path) -> Listing:
    """One tar file."""
    root, status = os.path.realpath(file.parent), os.stat(file)
    listing = Listing(root, f"shard {os.path.join(root, file.name)}", shards=True)
    listing.entries.append(Entry(file.name, status.st_size, status.st_mtime_ns, ""))
    return listing


def promises_image(path: str) -> bool:
    """Its name is that of an image."""
    return os.path.splitext(path)[1].lower() in _SUFFIXES


def _part_tars(found: Listing) -> None:
    """Shards or loose images, never both: a tar file that lies beside images is as a rule
    what they were unpacked from."""
    tars = [entry for entry in found.entries if entry.path.lower().endswith(SHARD)]
    if not tars:
        return
    rest = [entry for entry in found.entries if not entry.path.lower().endswith(SHARD)]
    found.shards = not any(promises_image(entry.path) for entry in rest)
    if found.shards:
        found.origin = f"shards in {found.origin}"
        found.entries, others, reason = tars, rest, "neither a shard nor an image"
    else:
        found.entries, others, reason = rest, tars, "a tar file beside images; open it by its name"
    found.refused += [Skip(entry.path, reason) for entry in others]


class _Walk:
    def __init__(self, root: str, follow_links: bool) -> None:
        self.listing = Listing(root, f"folder{' with links' * follow_links} {root}")
        self.follow_links = follow_links
        self.links: list[tuple[bytes, str]] = []  # a heap: links are met in order
        self.folders: set[str] = set()
        self.files: set[str] = set()

    def run(self) -> None:
        self.folder("")
        if not self.links:
            return
        # Files under their own names come first, so that they keep those names.
        self.files = {os.path.join(self.listing.root, e.path) for e in self.listing.entries}
        while self.links:
            self.link(heapq.heappop(self.links)[1])

    def real(self, path: str) -> str:
        return os.path.realpath(os.path.join(self.listing.root, path))

    def folder(self, path: str) -> None:
        stack = [path]
        while stack:
            path = stack.pop()
            real = self.real(path)
            if real in self.folders:
                continue
            self.folders.add(real)
            try:
                with os.scandir(os.path.join(self.listing.root, path)) as entries:
                    stack += [inner for entry in entries if (inner := self.enter(path, entry))]
            except OSError as error:
                skip = Skip(path or ".", f"cannot be read: {error.strerror}")
                self.listing.unreadable.append(skip)

    def enter(self, path: str, entry: "os.DirEntry[str]") -> str | None:
        """Takes note of one name; returns it when it is a folder to walk."""
        if entry.name.startswith("."):
            return None
        relative = os.path.join(path, entry.name)
        if entry.is_symlink():
            heapq.heappush(self.links, (os.fsencode(relative), relative))
        elif entry.is_dir(follow_symlinks=False):
            return relative
        else:
            self.file(relative, entry.stat(follow_symlinks=False))
        return None

    def file(self, path: str, status: os.stat_result) -> None:
        if not stat.S_ISREG(status.st_mode):
            self.listing.refused.append(Skip(path, "not a regular file"))
            return
        label = path.split(os.sep, 1)[0] if os.sep in path else ""
        self.listing.entries.append(Entry(path, status.st_size, status.st_mtime_ns, label))

    def link(self, path: str) -> None:
        real, root = self.real(path), self.listing.root
        if not self.follow_links and os.path.commonpath([real, root]) != root:
            self.listing.refused.append(Skip(path, LEADS_OUT))
            return
        try:
            status = os.stat(real)
        except OSError as error:
            self.listing.refused.append(Skip(path, f"a broken link: {error.strerror}"))
            return
        if stat.S_ISDIR(status.st_mode):
            before = len(self.listing.entries)
            self.folder(path)
            self.keep_new(before)
        elif real not in self.files:
            self.files.add(real)
            self.file(path, status)

    def keep_new(self, before: int) -> None:
        """A linked folder may hold files that are known by other names."""
        found = self.listing.entries[before:]
        del self.listing.entries[before:]
        for entry in found:
            real = self.real(entry.path)
            if real not in self.files:
                self.files.add(real)
                self.listing.entries.append(entry)


def list_file(file: Path) -> Listing:
    """The paths of a .txt (one per line) or a .csv (columns path and, optionally, label),
    relative to the list's own folder, in the list's order."""
    root = os.path.realpath(file.parent)
    try:
        with open(file, encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
            if file.suffix.lower() == ".csv":
                rows = _csv_rows(file, csv.DictReader(lines))
            else:
                rows = [(line.rstrip("\r\n"), "") for line in lines if line.strip()]
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}") from None
    except csv.Error as error:
        raise DataError(f"{file} is not a CSV of image paths: {error}") from None
    if not rows:
        raise DataError(f"{file} names no image; write one path per line")
    listing = Listing(root, f"list {os.path.join(root, file.name)}", explicit=True)
    listing.entries += [_entry(root, path, label) for path, label in rows]
    return listing


def list_named(
    root: str | os.PathLike[str], origin: str, paths: Iterable[str], *, follow_links: bool = False
) -> Listing:
    """The images that annotations of `root` name, by their paths relative to it. What leads out
    of it, by a link or by its name, needs `follow_links`."""
    listing = Listing(os.path.realpath(root), origin, explicit=True)
    for path in paths:
        if not follow_links and _leads_out(listing.root, path):
            shown = printable(os.path.join(listing.root, path))
            raise DataError(f"{shown} leads out of the folder; follow it with --follow-links")
        listing.entries.append(_entry(listing.root, path))
    return listing


def _leads_out(root: str, path: str) -> bool:
    try:
        real = os.path.realpath(os.path.join(root, path))
    except ValueError:  # a null byte: no file has such a name
        return False
    return os.path.commonpath([real, root]) != root


def _entry(root: str, path: str, label: str = "") -> Entry:
    try:
        status = os.stat(os.path.join(root, path))
        return Entry(path, status.st_size, status.st_mtime_ns, label)
    except (OSError, ValueError):
        return Entry(path, -1, -1, label)


def _csv_rows(file: Path, rows: "csv.DictReader[str]") -> list[tuple[str, str]]:
    names = rows.fieldnames or []
    if "path" not in names:
        raise DataError(f"{file} has no column `path`; its first line must be path or path,label")
    return [(row["path"] or "", row.get("label") or "") for row in rows]
