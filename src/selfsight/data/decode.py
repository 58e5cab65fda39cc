"""From the bytes of a file to RGB pixels, or a short reason why not.

Untrusted bytes meet only Pillow, and only seven of its formats, told apart by content.
JPEGs whose header it accepts meet libjpeg-turbo first; what that refuses or warns of is
Pillow's to judge.

- at most MAX_PIXELS pixels, refused before they are allocated (Pillow itself refuses
  WebP, TIFF and GIF beyond 179 million); of a JPEG at most MAX_SCANS scans, and no more
  pixels than its bytes can hold
- the first frame of animations and multi-page files
- EXIF orientation applied; colour profiles ignored: values are taken as stored
- transparency composited over WHITE
- integers of more than 8 bits scaled from the range of their type, so a ramp keeps its
  levels; other integers and floats outside [0, 1] scaled from their own range
- truncated files refused, also the PNGs and GIFs that Pillow fills up with zeros. What
  cannot be seen: a JPEG cut and closed with a proper end marker
"""

import contextlib
import io
import os
import re
import stat
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)
from PIL import __version__ as _pillow

from selfsight.data import jpeg

__all__ = [
    "DECODER",
    "FORMATS",
    "MAX_BYTES",
    "MAX_PIXELS",
    "MAX_SCANS",
    "WHITE",
    "Undecodable",
    "decode",
    "decode_mask",
    "read_bytes",
    "sniff",
]

Pixels = NDArray[np.uint8]

MAX_PIXELS = 200_000_000
MAX_BYTES = 8 * MAX_PIXELS  # the largest accepted image uncompressed, 16 bits and alpha
MAX_SCANS = 100  # of a JPEG; encoders make about ten
WHITE = (255, 255, 255)
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
# Goes into the manifest's key: raise the last number when the same bytes decode differently.
DECODER = ", ".join(filter(None, (f"pillow {_pillow}", jpeg.FAST, "rules 2")))

_ORIENTATION = 0x0112
_BITS_PER_SAMPLE = 258
# Adam7: first column, first row, column step, row step of each pass.
_ADAM7 = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)


class Undecodable(Exception):
    """Why a file gives no pixels; the message is the reason, without the path."""


def sniff(data: bytes) -> str | None:
    """The accepted format that the first bytes announce."""
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if data.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "TIFF"
    if data.startswith(b"BM") and data[6:10] == b"\0\0\0\0":
        return "BMP"
    if re.match(rb"P[1-6f]\s", data):
        return "PPM"
    return None


def read_bytes(
    path: str | os.PathLike[str], limit: int = MAX_BYTES
) -> tuple[bytes, os.stat_result]:
    """The first bytes of a regular file; pipes, sockets and devices are never opened."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise Undecodable("not a regular file")
        # O_NONBLOCK: should a pipe take the file's place in between, opening it must not wait.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise Undecodable("not a regular file")
            if status.st_size > MAX_BYTES and limit == MAX_BYTES:
                raise Undecodable(f"larger than {MAX_BYTES} bytes")
            return file.read(limit), status
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise Undecodable(f"cannot be read: {reason}") from None


def decode(source: bytes | str | os.PathLike[str], least: int = 0) -> Pixels:
    """uint8 (H, W, 3) from a file's content or path.

    least: a JPEG may come at a half, a quarter or an eighth of its size while its short
        side keeps that many pixels; 0 asks for the whole
    """
    with _opened(source, FORMATS) as (image, kind, data):
        if isinstance(image, JpegImagePlugin.JpegImageFile):
            pixels = _jpeg(image, data, least)
        else:
            _load(image, kind, data)
            pixels = _rgb(image)
        return np.ascontiguousarray(_upright(pixels, _orientation(image)))


def decode_mask(source: bytes | str | os.PathLike[str]) -> NDArray[Any]:
    """(H, W) uint8 or uint16 from a PNG's content or path: the numbers it stores, not the colours
    that its palette gives them."""
    with _opened(source, ("PNG",)) as (image, kind, data):
        _load(image, kind, data)
        if image.mode not in ("1", "L", "P", "I;16"):
            raise Undecodable(f"{image.mode} colours; a mask has one number per pixel")
        values: NDArray[Any] = np.asarray(image)
        if image.mode == "1":
            return values.astype(np.uint8)
        # Pillow spreads grey of 2 and 4 bits over 8.
        spread = {2: 85, 4: 17}.get(data[24], 1) if image.mode == "L" else 1
        numbers: NDArray[Any] = values // values.dtype.type(spread)
        return numbers


@contextlib.contextmanager
def _opened(
    source: bytes | str | os.PathLike[str], formats: tuple[str, ...]
) -> Iterator[tuple[ImageFile.ImageFile, str, bytes]]:
    """The image, not yet decoded, its format and its bytes; whatever goes wrong until it is
    left is Undecodable."""
    data = source if isinstance(source, bytes) else read_bytes(source)[0]
    if not data:
        raise Undecodable("an empty file")
    kind = sniff(data)
    if kind is None or kind not in formats:
        raise Undecodable(f"not an image of a known format ({', '.join(formats)})")
    try:
        with _open(kind, data) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise Undecodable(f"{width}×{height} is more than {MAX_PIXELS} pixels")
            yield image, kind, data
    except (Undecodable, MemoryError):
        raise
    except Image.DecompressionBombError:
        raise Undecodable("more pixels than Pillow accepts") from None
    # Decoders of damaged files raise whatever they stumble upon.
    except Exception as error:
        said = str(error).splitlines()
        raise Undecodable(f"damaged {kind}: {said[0] if said else type(error).__name__}") from None


def _open(kind: str, data: bytes) -> ImageFile.ImageFile:
    # The classes themselves, as Image.open would warn of large images through the
    # process-wide filters, which no thread can set for itself.
    classes: dict[str, type[ImageFile.ImageFile]] = {
        "BMP": BmpImagePlugin.BmpImageFile,
        "GIF": GifImagePlugin.GifImageFile,
        "JPEG": JpegImagePlugin.JpegImageFile,
        "PNG": PngImagePlugin.PngImageFile,
        "PPM": PpmImagePlugin.PpmImageFile,
        "TIFF": TiffImagePlugin.TiffImageFile,
        "WEBP": WebPImagePlugin.WebPImageFile,
    }
    return classes[kind](io.BytesIO(data))


def _jpeg(image: JpegImagePlugin.JpegImageFile, data: bytes, least: int) -> Pixels:
    _check_jpeg(image, data)
    scale = jpeg.scale(image.size, least)
    pixels = jpeg.fast(data, image.size, scale) if image.mode in ("L", "RGB") else None
    if pixels is None:
        image.draft(None, (image.width // scale, image.height // scale))
        pixels = _rgb(image)
    return pixels


def _load(image: ImageFile.ImageFile, kind: str, data: bytes) -> None:
    if kind == "GIF":
        _check_gif(image, data)
    image.load()
    if kind == "PNG":
        _check_png(data)


def _rgb(image: Image.Image) -> Pixels:
    if image.mode.startswith(("I", "F")):
        return np.repeat(_eight_bits(image)[..., None], 3, axis=2)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        ground = Image.new("RGB", image.size, WHITE)
        ground.paste(image, mask=image.getchannel("A"))
        image = ground
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _eight_bits(image: Image.Image) -> Pixels:
    values = np.asarray(image)
    if values.dtype.kind == "f":
        if not np.isfinite(values).all():
            raise Undecodable("values that are not numbers")
        low, high = float(values.min()), float(values.max())
        if low >= 0 and high <= 1:
            low, high = 0.0, 1.0
    else:
        low, high = 0.0, 2.0 ** _bits(image) - 1
        if values.min() < low or values.max() > high:
            low, high = float(values.min()), float(values.max())
    exact = np.float32 if values.dtype.itemsize == 2 else np.float64
    scaled = np.subtract(values, low, dtype=exact) * (255 / max(high - low, 1e-300))
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        scaled[values == transparent] = 255
    return np.asarray(np.rint(scaled), np.uint8)


def _bits(image: Image.Image) -> int:
    """Cameras and microscopes keep 10, 12 or 14 bits in 16."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return min(16, int(image.tag_v2.get(_BITS_PER_SAMPLE, (16,))[0]))
    return 16


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    # A damaged EXIF block says nothing about the pixels.
    except Exception:
        return 1


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def _check_jpeg(image: JpegImagePlugin.JpegImageFile, data: bytes) -> None:
    """A few hundred bytes can ask for gigabytes, or for hours."""
    assert image.fp is not None
    width, height = image.size
    header = data[: image.fp.tell()]
    # Each block of 8×8 takes a bit at least, except by arithmetic coding; uneven sampling
    # leaves some components fewer blocks, never fewer than half as many in all.
    arithmetic = b"\xff\xc9" in header or b"\xff\xca" in header
    if width * height > 1024 * len(data) and not arithmetic:
        raise Undecodable(f"truncated JPEG: {len(data)} bytes for {width}×{height} pixels")
    # A first scan with all components is the only one, except in progressive files.
    layers = image.layers
    first = b"\xff\xda" + struct.pack(">HB", 6 + 2 * layers, layers)
    alone = header.startswith(first, len(header) - 8 - 2 * layers)
    if ("progressive" in image.info or not alone) and jpeg.scans_beyond(data, MAX_SCANS):
        raise Undecodable(f"a JPEG of more than {MAX_SCANS} scans")


def _check_png(data: bytes) -> None:
    """Pillow accepts a stream that ends early; count what it holds."""
    at, stream, missing = 8, zlib.decompressobj(), 1
    while at + 8 <= len(data) and missing > 0:
        length, name = int.from_bytes(data[at : at + 4]), data[at + 4 : at + 8]
        body = data[at + 8 : at + 8 + length]
        if name == b"IHDR":
            missing = _png_size(body)
        if name == b"IDAT":
            while body and missing > 0:
                missing -= len(stream.decompress(body, 1 << 20))
                body = stream.unconsumed_tail
        at += 12 + length
    if missing > 0:
        raise Undecodable("truncated PNG: rows are missing")


def _png_size(header: bytes) -> int:
    width, height = int.from_bytes(header[:4]), int.from_bytes(header[4:8])
    bits = header[8] * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[header[9]]
    total = 0
    for x, y, dx, dy in _ADAM7 if header[12] else ((0, 0, 1, 1),):
        columns, rows = -(-max(width - x, 0) // dx), -(-max(height - y, 0) // dy)
        total += rows * (1 + -(-columns * bits // 8)) if columns else 0
    return total


def _check_gif(image: ImageFile.ImageFile, data: bytes) -> None:
    """Pillow accepts a stream that ends early: whatever it leaves untouched shows through
    when the frame is decoded over two different grounds."""
    _, box, offset, args = image.tile[0]
    if box is None or not isinstance(args, tuple):
        raise Undecodable("damaged GIF: no pixels")
    x0, y0, x1, y1 = box
    grounds = [Image.new("P", (x1 - x0, y1 - y0), colour) for colour in (0, 255)]
    for ground in grounds:
        ground.frombytes(data[offset:], "gif", (*args[:2], -1))
    if grounds[0].tobytes() != grounds[1].tobytes():
        raise Undecodable("truncated GIF: rows are missing")
