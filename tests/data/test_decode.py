"""Every kind of file that a folder can hold becomes known RGB or is refused with a reason."""

import io
import os
import socket
import struct
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from selfsight.data.decode import MAX_PIXELS, Undecodable, decode, sniff

RAMP = np.add.outer(np.arange(24), 2 * np.arange(40)).astype(np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, rows: int, *, interlace: int = 0) -> bytes:
    """A grey PNG whose proper zlib stream holds only `rows` rows."""
    stream = zlib.compress((b"\0" + bytes(range(width))) * rows)
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, interlace)
    ends = chunk(b"IDAT", stream) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + ends


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_come_back_exactly(kind: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (13, 17, 3), np.uint8)
    data = encoded(Image.fromarray(pixels), kind)
    assert sniff(data) == kind
    decoded = decode(data)
    assert decoded.dtype == np.uint8
    assert decoded.flags.c_contiguous
    np.testing.assert_array_equal(decoded, pixels)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "GIF"])
def test_lossy_formats_come_back_nearly(kind: str) -> None:
    pixels = np.stack([RAMP] * 3, -1)
    decoded = decode(encoded(Image.fromarray(pixels), kind))
    assert np.abs(decoded.astype(int) - pixels).mean() < 4


def test_content_decides_not_the_name(tmp_path: Path) -> None:
    path = tmp_path / "really.txt"
    path.write_bytes(encoded(Image.fromarray(RAMP)))
    assert decode(path).shape == (24, 40, 3)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "an empty file"),
        (b"<html><body>404</body></html>", "known format"),
        (np.random.default_rng(1).bytes(2000), "known format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "known format"),
        (b"\xc5\xd0\xd3\xc6" + bytes(60), "known format"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "known format"),
        (b"8BPS\0\1" + bytes(60), "known format"),
        (b"SIMPLE  =                    T" + bytes(60), "known format"),
        (b"\xff\xd8\xff\xe0" + np.random.default_rng(2).bytes(500), "damaged JPEG"),
        (b"\x89PNG\r\n\x1a\n", "damaged PNG"),
        (b"GIF89a", "damaged GIF"),
        (b"II*\0", "damaged TIFF"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "damaged WEBP"),
        (b"BM\0\0\0\0\0\0\0\0", "damaged BMP"),
        (b"P6 4 4 255\n123", "damaged PPM"),
    ],
)
def test_refused_with_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(Undecodable, match=reason) as refusal:
        decode(data)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM"])
def test_half_a_file_is_refused(kind: str) -> None:
    rng = np.random.default_rng(3)
    data = encoded(Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)), kind)
    for fraction in (0.1, 0.5, 0.9):
        with pytest.raises(Undecodable):
            decode(data[: int(len(data) * fraction)])


def test_random_damage_never_escapes() -> None:
    """Whatever a decoder stumbles upon, the caller sees pixels or Undecodable."""
    rng = np.random.default_rng(4)
    refused = 0
    for kind in ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM"):
        data = encoded(Image.fromarray(RAMP).convert("RGB"), kind)
        for _ in range(60):
            bad = bytearray(data)
            for at in rng.integers(0, len(bad), 4):
                bad[at] = rng.integers(0, 256)
            try:
                assert decode(bytes(bad)).shape[2] == 3
            except Undecodable:
                refused += 1
    assert refused > 50


def test_png_with_missing_rows_is_refused() -> None:
    assert decode(png(20, 10, 10)).shape == (10, 20, 3)
    for rows in (0, 5, 9):
        with pytest.raises(Undecodable, match=r"rows are missing|damaged"):
            decode(png(20, 10, rows))


def test_interlaced_png_with_a_missing_pass_is_refused() -> None:
    # The seven passes of 5 × 9 pixels by hand, then without the last (every second row).
    widths = [(1, 2), (1, 2), (2, 1), (1, 3), (3, 2), (2, 5), (5, 4)]
    rows = [b"\0" + bytes(width) for width, count in widths for _ in range(count)]
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 5, 9, 8, 0, 0, 0, 1))

    def build(kept: int) -> bytes:
        data = chunk(b"IDAT", zlib.compress(b"".join(rows[:kept])))
        return b"\x89PNG\r\n\x1a\n" + header + data + chunk(b"IEND", b"")

    assert decode(build(len(rows))).shape == (9, 5, 3)
    with pytest.raises(Undecodable, match="rows are missing"):
        decode(build(len(rows) - 4))


def test_gif_that_ends_early_is_refused() -> None:
    # Two colours: clear, one pixel, end of stream, for an image of four pixels.
    head = b"GIF89a" + struct.pack("<HHBBB", 2, 2, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    frame = b"," + struct.pack("<HHHHB", 0, 0, 2, 2, 0) + b"\x02"

    def build(*codes: int) -> bytes:
        bits = sum(code << (3 * i) for i, code in enumerate(codes))
        body = bits.to_bytes(-(-3 * len(codes) // 8), "little")
        return head + frame + bytes([len(body)]) + body + b"\0;"

    whole = decode(build(4, 1, 0, 4, 1, 0, 5))
    np.testing.assert_array_equal(whole[..., 0], [[255, 0], [255, 0]])
    with pytest.raises(Undecodable):
        decode(build(4, 1, 5))


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr"])
def test_modes_become_rgb(mode: str) -> None:
    image = Image.fromarray(np.stack([RAMP, RAMP, RAMP], -1)).convert(mode)
    kind = "TIFF" if mode in ("CMYK", "YCbCr") else "PNG"
    np.testing.assert_array_equal(decode(encoded(image, kind)), np.asarray(image.convert("RGB")))


def test_cmyk_jpeg() -> None:
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    red = decode(encoded(image, "JPEG", quality=95))
    assert red[..., 0].min() > 230
    assert red[..., 1:].max() < 30


def test_transparency_lies_on_white() -> None:
    rgba = Image.new("RGBA", (3, 1))
    rgba.putdata([(10, 20, 30, 255), (10, 20, 30, 0), (0, 0, 0, 128)])
    expected = [[10, 20, 30], [255, 255, 255], [127, 127, 127]]
    for kind in ("PNG", "TIFF"):
        np.testing.assert_array_equal(decode(encoded(rgba, kind))[0], expected)
    gray = Image.new("LA", (2, 1))
    gray.putdata([(40, 255), (40, 0)])
    np.testing.assert_array_equal(decode(encoded(gray))[0, :, 0], [40, 255])
    palette = Image.new("P", (2, 1))
    palette.putpalette([9, 9, 9, 200, 0, 0])
    palette.putdata([0, 1])
    for transparency in (1, bytes([255, 0])):
        data = encoded(palette, transparency=transparency)
        np.testing.assert_array_equal(decode(data)[0], [[9, 9, 9], [255, 255, 255]])
    deep = Image.fromarray(np.array([[257, 514]], np.uint16))
    np.testing.assert_array_equal(decode(encoded(deep, transparency=514))[0, :, 0], [1, 255])


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_scaled(kind: str) -> None:
    ramp = np.linspace(0, 65535, 4096).astype(np.uint16).reshape(64, 64)
    pixels = decode(encoded(Image.fromarray(ramp), kind))
    assert len(np.unique(pixels)) == 256
    assert (np.diff(pixels[..., 0].ravel().astype(int)) >= 0).all()


def test_sixteen_bit_colour_png() -> None:
    row = np.stack([np.linspace(0, 65535, 512)] * 3, -1).astype(">u2")
    header = struct.pack(">IIBBBBB", 512, 1, 16, 2, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(b"\0" + row.tobytes())) + chunk(b"IEND", b"")
    pixels = decode(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body)
    assert len(np.unique(pixels)) >= 200


def test_twelve_bits_in_a_tiff_fill_the_range() -> None:
    values = np.linspace(0, 4095, 64).astype(int)
    pairs = zip(values[::2].tolist(), values[1::2].tolist(), strict=True)
    body = b"".join(bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in pairs)
    tags = [(256, 64), (257, 1), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1)]
    tags.append((279, len(body)))
    offset = 8 + len(body)
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    pixels = decode(b"II*\0" + struct.pack("<I", offset) + body + directory)[0, :, 0]
    assert pixels.min() == 0
    assert pixels.max() == 255
    assert len(np.unique(pixels)) == 64


def test_floats_are_scaled_from_their_range() -> None:
    unit = np.linspace(0.25, 0.75, 256, dtype=np.float32).reshape(16, 16)
    pixels = decode(encoded(Image.fromarray(unit), "TIFF"))
    assert (pixels.min(), pixels.max()) == (64, 191)
    wide = decode(encoded(Image.fromarray(unit * 1000 - 500), "TIFF"))
    assert (wide.min(), wide.max()) == (0, 255)
    unit[0, 0] = np.nan
    with pytest.raises(Undecodable, match="not numbers"):
        decode(encoded(Image.fromarray(unit), "TIFF"))


def test_integers_beyond_sixteen_bits_are_scaled_from_their_range() -> None:
    values = np.linspace(-1000, 10**6, 256).astype(np.int32).reshape(16, 16)
    assert len(np.unique(decode(encoded(Image.fromarray(values), "TIFF")))) == 256


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_of_many(kind: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("#f00", "#0f0", "#00f")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    np.testing.assert_array_equal(decode(data), np.full((16, 16, 3), (255, 0, 0)))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_exif_orientation(kind: str) -> None:
    upright = np.kron(np.array([[0, 60, 120], [180, 220, 255]], np.uint8), np.ones((8, 8)))
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright),
        7: upright[::-1, ::-1].T,
        8: np.rot90(upright, -1),
    }
    options = {"lossless": True} if kind == "WEBP" else {}
    for orientation, pixels in stored.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        image = Image.fromarray(pixels.astype(np.uint8)).convert("RGB")
        decoded = decode(encoded(image, kind, exif=exif, **options))
        assert decoded.shape == (16, 24, 3), orientation
        assert np.abs(decoded[..., 0] - upright.astype(float)).max() <= 4, orientation


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_is_no_reason_to_lose_an_image() -> None:
    data = encoded(Image.fromarray(RAMP), "JPEG", exif=b"Exif\0\0MM\0*" + b"\xff" * 40)
    assert decode(data).shape == (24, 40, 3)


@pytest.mark.parametrize("shape", [(1, 1), (1, 50_000), (50_000, 1)])
def test_extreme_shapes(shape: tuple[int, int]) -> None:
    assert decode(encoded(Image.fromarray(np.zeros(shape, np.uint8)))).shape[:2] == shape


BOMB = """
import resource, sys
from selfsight.data.decode import Undecodable, decode
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[1:]:
    try:
        decode(path)
    except Undecodable as error:
        assert "pixels" in str(error), error
    else:
        raise AssertionError(path)
assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000
"""


def test_bombs_are_refused_before_they_are_allocated(tmp_path: Path) -> None:
    assert MAX_PIXELS < 30_000 * 30_000
    gif = b"GIF89a" + struct.pack("<HHBBB", 30_000, 30_000, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    gif += b"," + struct.pack("<HHHHB", 0, 0, 30_000, 30_000, 0) + b"\x02\x01\x44\0;"
    webp = b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + b"\x2f\x75\0" * 2
    bmp = b"BM" + struct.pack("<IIIIiiHHIIiiII", 54, 0, 54, 40, 30000, 30000, 1, 24, *[0] * 6)
    files = {
        "a.png": png(30_000 % 256, 1, 1).replace(
            struct.pack(">II", 30_000 % 256, 1), struct.pack(">II", 30_000, 30_000)
        ),
        "b.gif": gif,
        "c.webp": webp,
        "d.bmp": bmp,
        "e.ppm": b"P6 30000 30000 255\n",
    }
    body = bytearray(files["a.png"])
    body[29:33] = struct.pack(">I", zlib.crc32(body[12:29]))
    files["a.png"] = bytes(body)
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    paths = [str(tmp_path / name) for name in files]
    subprocess.run([sys.executable, "-c", BOMB, *paths], check=True, timeout=60)


def test_large_images_within_the_cap_do_not_warn() -> None:
    data = encoded(Image.new("1", (12_000, 8_000)))
    assert decode(data).shape == (8_000, 12_000, 3)


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    pipe, link = tmp_path / "pipe.jpg", tmp_path / "link.jpg"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s.jpg"))
        paths = [pipe, link, tmp_path / "s.jpg", tmp_path, Path("/dev/zero")]
        refused = []

        def read_all() -> None:
            for path in paths:
                with pytest.raises(Undecodable, match="not a regular file"):
                    decode(path)
                refused.append(path)

        reader = threading.Thread(target=read_all, daemon=True)
        reader.start()
        reader.join(10)
    assert refused == paths


def test_unreadable_paths(tmp_path: Path) -> None:
    with pytest.raises(Undecodable, match="No such file"):
        decode(tmp_path / "none.jpg")
    with pytest.raises(Undecodable, match="null"):
        decode("a\0b.jpg")


def test_names_of_any_bytes(tmp_path: Path) -> None:
    data = encoded(Image.fromarray(RAMP))
    for name in (b"\xff\xfe.png", "😀\n\"'.png".encode(), b"a" * 251 + b".png"):
        path = os.fsdecode(os.fsencode(tmp_path) + b"/" + name)
        Path(path).write_bytes(data)
        assert decode(path).shape == (24, 40, 3)
