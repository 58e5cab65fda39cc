"""What every data set is: numbered images, their sizes, and labels where there are any."""

import abc
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Arrays",
    "Counting",
    "Opened",
    "Pixels",
    "Progress",
    "Skip",
    "Source",
    "Subset",
    "pixel_digest",
    "printable",
]

Pixels = NDArray[np.uint8]
Progress = Callable[[int, int], None]  # (done, total)
Counting = Callable[[str], Progress]  # of what is counted


@dataclass(frozen=True)
class Skip:
    """A file that is not part of the data set, and why."""

    path: str
    reason: str


class Opened(abc.ABC):
    """A part of a data set."""

    @abc.abstractmethod
    def __len__(self) -> int:
        """How many images."""

    @property
    @abc.abstractmethod
    def skipped(self) -> Sequence[Skip]:
        """Files left out when it was opened."""


class Source(Opened):
    """Numbered images.

    name: what the user called it
    sizes: (N, 2) int32, height and width of each image
    labels: (N,) int64 numbers of classes, or None
    classes: names, in the order of their numbers
    skipped: files left out when it was opened
    resident: reading an image costs no decoding
    """

    name: str
    sizes: NDArray[np.int32]
    labels: NDArray[np.int64] | None = None
    classes: tuple[str, ...] = ()
    skipped: Sequence[Skip] = ()
    resident = False

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def class_count(self) -> int:
        """How many classes the labels number; 0 without labels."""
        return 0 if self.labels is None else max(len(self.classes), int(self.labels.max()) + 1)

    @property
    def decoded(self) -> float:
        """Pixels that reading an image decodes, by the first thousand."""
        return 0.0 if self.resident else float(self.sizes[:1000].prod(axis=1).mean())

    @abc.abstractmethod
    def read(self, index: int, least: int = 0) -> Pixels:
        """uint8 (H, W, 3), not to be written to; raises Undecodable when a file has
        gone bad since.

        least: a half, a quarter or an eighth of the image will do while its short side
            keeps that many pixels; 0 asks for the whole
        """

    def stack(self) -> Pixels | None:
        """All images as one (N, H, W, 3) array where they lie in memory as such."""
        return None

    @abc.abstractmethod
    def path(self, index: int) -> str:
        """A name to show; bytes that are not UTF-8 appear as surrogate escapes."""

    @abc.abstractmethod
    def digest(self, index: int) -> bytes:
        """SHA-256 of the stored content: the file's, or the pixels' of an array."""

    @property
    @abc.abstractmethod
    def fingerprint(self) -> str:
        """Hash of the images, their names and their order; a copy has the same one."""

    def format(self, index: int) -> str:
        """JPEG, PNG, …, or `array`."""
        return "array"

    def subset(self, indices: Any) -> "Source":
        """The images of these numbers, in this order."""
        return Subset(self, np.asarray(indices, np.int64))


class Arrays(Source):
    """Images in memory, or in a memory-mapped file."""

    resident = True

    def __init__(
        self,
        name: str,
        images: NDArray[Any],
        labels: NDArray[np.int64] | None = None,
        classes: tuple[str, ...] = (),
    ) -> None:
        """images: (N, H, W, 3), (N, 3, H, W), (N, H, W, 1) or (N, H, W); uint8, uint16,
        or floats in [0, 1]."""
        self.name, self.labels, self.classes = name, labels, classes
        if images.ndim == 4 and images.shape[3] not in (1, 3) and images.shape[1] in (1, 3):
            images = images.transpose(0, 2, 3, 1)
        self.images = images if images.ndim == 4 else images[..., None]
        size = np.array(self.images.shape[1:3], np.int32)
        self.sizes = np.broadcast_to(size, (len(images), 2))

    def read(self, index: int, least: int = 0) -> Pixels:
        image = self.images[index]
        if image.dtype == np.uint16:
            image = np.rint(image / np.float32(257)).astype(np.uint8)
        elif image.dtype != np.uint8:
            image = np.rint(image.astype(np.float32) * 255).astype(np.uint8)
        return np.ascontiguousarray(np.broadcast_to(image, (*image.shape[:2], 3)))

    def stack(self) -> Pixels | None:
        plain = self.images.dtype == np.uint8 and self.images.shape[3] == 3
        return self.images if plain else None

    def path(self, index: int) -> str:
        return f"{self.name}[{index}]"

    def digest(self, index: int) -> bytes:
        return pixel_digest(self.read(index))

    @cached_property
    def fingerprint(self) -> str:
        total = hashlib.sha256()
        for index in range(len(self)):
            total.update(self.digest(index))
        return total.hexdigest()


class Subset(Source):
    """Some images of another source."""

    def __init__(self, source: Source, indices: NDArray[np.int64]) -> None:
        self.name, self.classes, self.skipped = source.name, source.classes, source.skipped
        self.resident = source.resident
        self.sizes = source.sizes[indices]
        self.labels = None if source.labels is None else source.labels[indices]
        self.source, self.indices = source, indices

    def read(self, index: int, least: int = 0) -> Pixels:
        return self.source.read(int(self.indices[index]), least)

    def path(self, index: int) -> str:
        return self.source.path(int(self.indices[index]))

    def digest(self, index: int) -> bytes:
        return self.source.digest(int(self.indices[index]))

    def format(self, index: int) -> str:
        return self.source.format(int(self.indices[index]))

    @cached_property
    def fingerprint(self) -> str:
        chosen = self.source.fingerprint.encode() + self.indices.tobytes()
        return hashlib.sha256(chosen).hexdigest()


def pixel_digest(pixels: Pixels) -> bytes:
    """SHA-256 of an image's shape and values."""
    return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).digest()


def printable(path: str) -> str:
    """A path that fits in one line of any terminal."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in path)
