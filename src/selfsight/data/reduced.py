"""Photos much larger than any view of them, resized once and kept.

A file of the cache is a JPEG with 32 bytes after its end: a hash of the rule, the photo's
own digest and the JPEG. A file that does not bear out its hash is made anew.
"""

import contextlib
import errno
import hashlib
import io
import os
import shutil
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from selfsight.data.base import Pixels, Progress, Source
from selfsight.data.decode import Undecodable, decode, read_bytes
from selfsight.errors import StorageError

__all__ = ["Reduced", "reduce"]

# Raise the number when the same photo and size give another file.
_RULE = "reduced, rules 1"
_SEAL = 32
_LONGEST = 65_500
_ABANDONED = 3600  # seconds after which an unfinished file is somebody's who was killed


class Reduced(Source):
    """Another source whose photos have at most `short` pixels on their short side.

    What the cache lacks is made when it is read. The first reading, too, gives the pixels
    of the stored JPEG.
    """

    def __init__(self, source: Source, short: int, cache: Path) -> None:
        self.name, self.labels, self.classes = source.name, source.labels, source.classes
        self.skipped = source.skipped
        reduced = _reduced_sizes(source.sizes, short)
        # What is too long for a JPEG stays as it is.
        self.large = (source.sizes.min(axis=1) > short) & (reduced.max(axis=1) <= _LONGEST)
        self.sizes = np.where(self.large[:, None], reduced, source.sizes)
        self.source, self.short = source, short
        self.folder = cache / "reduced" / str(short)

    def read(self, index: int, least: int = 0) -> Pixels:
        if not self.is_reduced(index):
            return self.source.read(index, least)
        stored = self._stored(index)
        return decode(self._make(index) if stored is None else stored, least)

    def path(self, index: int) -> str:
        return self.source.path(index)

    def digest(self, index: int) -> bytes:
        return self.source.digest(index)

    def format(self, index: int) -> str:
        return self.source.format(index)

    @property
    def fingerprint(self) -> str:
        text = f"{self.source.fingerprint} {_RULE}, short side {self.short}"
        return hashlib.sha256(text.encode()).hexdigest()

    def is_reduced(self, index: int) -> bool:
        """Whether the image comes from the cache."""
        return bool(self.large[index])

    def fill(self, threads: int, progress: Progress | None = None) -> None:
        """Makes every file that is not there yet; photos that have gone bad are left to
        whoever reads them."""
        self._sweep()
        large = np.flatnonzero(self.large).tolist()
        missing = [index for index in large if not os.path.exists(self._place(index))]
        # A bounded number at a time: Ctrl-C should not wait for many photos.
        step = 16 * threads
        with ThreadPoolExecutor(threads, "selfsight-reduce") as pool:
            for start in range(0, len(missing), step):
                part = missing[start : start + step]
                for _ in pool.map(self._try, part):
                    pass
                if progress is not None:
                    progress(start + len(part), len(missing))

    def _try(self, index: int) -> None:
        with contextlib.suppress(Undecodable):
            self._make(index)

    def _make(self, index: int) -> bytes:
        """The JPEG, which is now in the cache."""
        height, width = self.sizes[index].tolist()
        photo = Image.fromarray(self.source.read(index, self.short))
        # Without negative lobes as long as Lanczos': rings would be learnt as edges. A box
        # would weigh neighbours unevenly between whole factors.
        photo = photo.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=None)
        out = io.BytesIO()
        photo.save(out, "JPEG", quality=95, subsampling="4:4:4")
        self._store(index, out.getvalue())
        return out.getvalue()

    def _stored(self, index: int) -> bytes | None:
        try:
            data, _ = read_bytes(self._place(index))
        except Undecodable:
            return None
        image, seal = data[:-_SEAL], data[-_SEAL:]
        return image if seal == self._seal(index, image) else None

    def _store(self, index: int, image: bytes) -> None:
        """Under its name all at once; whoever else stores it at this moment stores the same."""
        place, unfinished = self._place(index), ""
        try:
            _private(self._unfinished)
            _private(place.parent)
            number, unfinished = tempfile.mkstemp(dir=self._unfinished)
            with open(number, "wb") as file:
                file.write(image + self._seal(index, image))
                file.flush()
                os.fsync(file.fileno())
            os.replace(unfinished, place)
            unfinished = ""
        except OSError as error:
            raise StorageError(
                f"cannot keep reduced photos in {self.folder}: {error.strerror or error}"
                f"{_free(self.folder, error)}; name another folder with --cache, or "
                "leave photos as they are with --whole"
            ) from None
        finally:
            if unfinished:
                _remove(unfinished)

    def _seal(self, index: int, image: bytes) -> bytes:
        head = f"{_RULE}, short side {self.short}\0".encode()
        return hashlib.sha256(head + self.digest(index) + image).digest()

    def _place(self, index: int) -> Path:
        name = self.digest(index).hex()
        return self.folder / name[:2] / f"{name}.jpg"

    @property
    def _unfinished(self) -> Path:
        return self.folder / ".tmp"

    def _sweep(self) -> None:
        # Nothing there yet, or another process sweeps as well.
        with contextlib.suppress(OSError), os.scandir(self._unfinished) as entries:
            for entry in entries:
                if entry.stat().st_mtime < time.time() - _ABANDONED:
                    _remove(entry.path)


def reduce(
    source: Source, short: int, cache: Path, *, threads: int, progress: Progress | None = None
) -> Source:
    """The source with its larger photos reduced to a short side of `short`, all of them in
    the cache; the source itself where there is none, or where reading costs no decoding.

    progress: of the photos that were not in the cache
    """
    if source.resident or not len(source) or source.sizes.min(axis=1).max() <= short:
        return source
    reduced = Reduced(source, short, cache)
    reduced.fill(threads, progress)
    return reduced


def _reduced_sizes(sizes: NDArray[np.int32], short: int) -> NDArray[np.int32]:
    """The long side rounded, halves up: in whole numbers, so the same everywhere."""
    sides = sizes.astype(np.int64)
    least = sides.min(axis=1, keepdims=True)
    return np.where(least > short, (2 * sides * short + least) // (2 * least), sides).astype(
        np.int32
    )


def _private(folder: Path) -> None:
    """With its parents, the cache's own included, closed to others where they are made here."""
    if not folder.is_dir():
        if folder.parent != folder:
            _private(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)


def _remove(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)


def _free(folder: Path, error: OSError) -> str:
    """`, 12345 bytes free`, of the nearest folder that exists, where that is the trouble."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return ""
    for place in (folder, *folder.parents):
        try:
            return f", {shutil.disk_usage(place).free} bytes free"
        except OSError:
            continue
    return ""
