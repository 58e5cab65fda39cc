"""JPEGs at speed: libjpeg-turbo called directly, where simplejpeg is installed.

It is the library inside Pillow, and both give the same pixels at every scale (a test
compares them), so the one installed shows in the time taken and in nothing else.
"""

import importlib
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["FAST", "fast", "scale", "scans_beyond"]

_simplejpeg: Any
try:
    _simplejpeg = importlib.import_module("simplejpeg")
# Its wheels do not cover every machine; Pillow decodes there.
except ImportError:
    _simplejpeg = None

# The decoder's name and version, empty without one.
FAST = "" if _simplejpeg is None else f"simplejpeg {_simplejpeg.__version__}"

_LEAST = 8
# Whatever follows 0xFF but stuffed zeros, fill bytes, restarts and the parameterless TEM.
_MARKER = re.compile(rb"\xff[^\x00\x01\xff\xd0-\xd7]")


def fast(data: bytes, size: tuple[int, int], scale: int) -> NDArray[np.uint8] | None:
    """RGB of a file with one or three components of this width and height, or None where
    libjpeg-turbo has the slightest doubt: the file may still be good enough for Pillow."""
    if _simplejpeg is None:
        return None
    width, height = (-(-side // scale) for side in size)
    try:
        pixels: NDArray[np.uint8] = _simplejpeg.decode_jpeg(
            data, "RGB", min_height=height, min_width=width, min_factor=scale
        )
    except ValueError:
        return None
    return pixels if pixels.shape == (height, width, 3) else None


def scale(size: tuple[int, int], least: int) -> int:
    """How many times smaller, 1, 2, 4 or 8, that leaves the short side `least` pixels.

    Never below 8: there the decoders no longer mean the same by a scale.
    """
    if least <= 0:
        return 1
    return next((by for by in (8, 4, 2) if -(-min(size) // by) >= max(least, _LEAST)), 1)


def scans_beyond(data: bytes, limit: int) -> bool:
    """Whether the file goes over its pixels more than `limit` times."""
    if data.count(b"\xff\xda") <= limit:
        return False
    found, at = 0, 2
    # Pictures follow one another in some files: only the first is decoded.
    while (marker := _MARKER.search(data, at)) and data[marker.start() + 1] != 0xD9:
        found += data[marker.start() + 1] == 0xDA
        if found > limit:
            return True
        at = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2])
    return False
