"""Images in files: the pass that checks them once, and the source that reads them after."""

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from selfsight.data import manifest, shards
from selfsight.data.base import Pixels, Progress, Skip, Source, printable
from selfsight.data.decode import FORMATS, MAX_BYTES, Undecodable, decode, read_bytes, sniff
from selfsight.data.listing import LEADS_OUT, Entry, Listing, promises_image
from selfsight.data.manifest import Manifest
from selfsight.errors import DataError
from selfsight.machine import cores

__all__ = ["Files", "allowed_bad", "open_files"]

_HEAD = 16


class Files(Source):
    """Regular files below a root, or members of tar files there, checked and numbered by the
    opening pass."""

    def __init__(self, name: str, root: str, found: Manifest, labels: bool | None) -> None:
        """labels: True when there must be, None when there may be."""
        self.name, self.sizes, self.skipped = name, found.sizes, found.skipped
        self.root, self._found = root, found
        if labels is False:
            return
        missing = np.flatnonzero(found.labels < 0)
        if len(missing) == 0:
            self.labels, self.classes = found.labels.astype(np.int64), found.classes
        elif labels:
            advice = (
                "put images in one sub-folder per class, or give a CSV with the columns path,label"
            )
            if len(found.members):
                advice = f"write the class of KEY.jpg into a member KEY{shards.LABEL} beside it"
            raise DataError(
                f"{name} has no label for {len(missing)} of {len(found)} images, the first is "
                f"{printable(self.path(int(missing[0])))}; {advice}"
            )

    def read(self, index: int, least: int = 0) -> Pixels:
        return decode(self.content(index), least)

    def content(self, index: int) -> bytes:
        """The bytes the opening pass found; raises Undecodable when they are gone."""
        found = self._found
        path, size, offset = found.place(index)
        data, status = _read(self.root, path, offset, int(found.lengths[index]))
        if (status.st_size, status.st_mtime_ns) != (size, found.modified[index]) and (
            hashlib.sha256(data).digest() != self.digest(index)
        ):
            raise Undecodable("changed since the data set was opened")
        return data

    def member(self, index: int) -> str:
        """Its path; in a shard, its name there."""
        shard, _, offset = self._found.place(index)
        return self.path(index)[len(shard) + 1 :] if offset else shard

    def path(self, index: int) -> str:
        return self._found.path(index)

    def digest(self, index: int) -> bytes:
        return bytes(self._found.digests[index])

    def format(self, index: int) -> str:
        return FORMATS[self._found.formats[index]]

    @property
    def fingerprint(self) -> str:
        return self._found.fingerprint


def open_files(
    name: str,
    listing: Listing,
    *,
    labels: bool | None,
    max_bad_fraction: float,
    cache: Path,
    progress: Progress | None,
) -> Files:
    """The usable files of a listing, from its manifest or by reading each once."""
    found = manifest.fetch(listing, cache)
    if found is None:
        # What lies in shards is looked up once, too: the manifest is known by the shards.
        images = shards.members(listing) if listing.shards else listing
        found = _examine_all(name, images, progress)
        manifest.store(found, listing, cache)
    allowed = allowed_bad(max_bad_fraction, len(found) + found.bad)
    if found.bad > allowed:
        first = found.skipped[0]
        raise DataError(
            f"{name}: {found.bad} of {len(found) + found.bad} image files cannot be used, the "
            f"first is {printable(first.path)} ({first.reason}); mend or remove them, or raise "
            f"--max-bad-fraction (now {max_bad_fraction:g})"
        )
    return Files(name, listing.root, found, labels)


def allowed_bad(fraction: float, count: int) -> int:
    """How many of `count` files may be bad: one always may, unless none is asked for."""
    # The addend makes 0.29 of 100 files 29.
    return max(1, int(fraction * count + 1e-9)) if fraction > 0 else 0


@dataclass(frozen=True, slots=True)
class _Finding:
    """What one file turned out to be: an image, or the reason why not."""

    size: tuple[int, int] = (0, 0)
    digest: bytes = b""
    format: str = ""
    reason: str = ""
    meant: bool = True


def _examine_all(name: str, listing: Listing, progress: Progress | None) -> Manifest:
    entries, kept, findings = listing.entries, [], []
    bad, others = list(listing.unreadable), list(listing.refused)
    for entry, finding in _examine_each(listing, progress):
        if not finding.reason:
            kept.append(entry)
            findings.append(finding)
        else:
            skips = bad if finding.meant else others
            skips.append(Skip(entry.path, finding.reason))
    skipped = bad + others
    if not kept:
        raise DataError(_no_image(name, len(entries), skipped))
    return Manifest.build(
        kept,
        [finding.size for finding in findings],
        [finding.digest for finding in findings],
        [finding.format for finding in findings],
        skipped,
        bad=len(bad),
    )


def _examine_each(listing: Listing, progress: Progress | None) -> Iterable[tuple[Entry, _Finding]]:
    threads = cores()
    done, total = 0, len(listing.entries)
    # A bounded number at a time: a million waiting tasks would weigh a gigabyte, and
    # Ctrl-C should not wait for many photos.
    step = 32 * threads
    with ThreadPoolExecutor(threads, "selfsight-examine") as pool:
        for start in range(0, total, step):
            part = listing.entries[start : start + step]
            yield from zip(part, pool.map(lambda e: _examine(listing, e), part), strict=True)
            done += len(part)
            if progress is not None:
                progress(done, total)


def _examine(listing: Listing, entry: Entry) -> _Finding:
    place = listing.root, entry.shard or entry.path, entry.offset, entry.size
    named = listing.explicit or promises_image(entry.path)
    try:
        if not named and sniff(_read(*place, _HEAD)[0]) is None:
            return _Finding(reason="not an image", meant=False)
        data, _ = _read(*place)
        height, width, _ = decode(data).shape
    except Undecodable as error:
        return _Finding(reason=str(error))
    return _Finding((height, width), hashlib.sha256(data).digest(), sniff(data) or "")


def _read(
    root: str, path: str, offset: int, length: int, first: int = 0
) -> tuple[bytes, os.stat_result]:
    """A file, or from an offset on `length` bytes of one; of either only its `first` bytes."""
    whole = os.path.join(root, path)
    if offset:
        return shards.read_range(whole, offset, min(length, first or length))
    return read_bytes(whole, first or MAX_BYTES)


def _no_image(name: str, count: int, skipped: list[Skip]) -> str:
    if not skipped:
        return f"{name} is empty; put images in it, or in folders below it"
    first = f"{printable(skipped[0].path)} ({skipped[0].reason})"
    outside = sum(skip.reason == LEADS_OUT for skip in skipped)
    advice = f"; {outside} links lead out of it: follow them with --follow-links" * (outside > 0)
    return f"{name} holds no usable image among {len(skipped)} files, the first is {first}{advice}"
