"""The fast JPEG decoder and Pillow are one decoder: the same pixels, the same refusals."""

import io
import json
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from selfsight.data import jpeg
from selfsight.data.decode import DECODER, MAX_PIXELS, MAX_SCANS, Undecodable, decode

FUZZ = Path(__file__).parents[2] / "benchmarks" / "fuzz_jpeg.py"

needs_fast = pytest.mark.skipif(not jpeg.FAST, reason="simplejpeg has no wheel for this machine")


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth colours with grain: every coefficient takes part."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (max(1, height // 16), max(1, width // 16), 3), np.uint8)
    large = np.asarray(Image.fromarray(small).resize((width, height))).astype(int)
    grain = rng.integers(-20, 21, large.shape)
    return Image.fromarray(np.clip(large + grain, 0, 255).astype(np.uint8))


def encoded(image: Image.Image, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", **{"quality": 85, **options})
    return out.getvalue()


def pillows(data: bytes, least: int = 0) -> np.ndarray:
    """The pixels where simplejpeg is not installed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jpeg, "_simplejpeg", None)
        return decode(data, least)


def replaced(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def frame(data: bytes) -> int:
    """Where the frame header begins."""
    at = 2
    while data[at + 1] not in (0xC0, 0xC2):
        at += 2 + struct.unpack_from(">H", data, at + 2)[0]
    return at


@needs_fast
@pytest.mark.parametrize("progressive", [False, True], ids=["baseline", "progressive"])
@pytest.mark.parametrize("kind", ["gray", "4:4:4", "4:2:2", "4:2:0", "4:1:1"])
def test_both_decoders_give_the_same_pixels(kind: str, progressive: bool) -> None:
    sizes = [(1, 1), (8, 8), (16, 16), (17, 33), (99, 101), (2, 50), (255, 9), (160, 120)]
    for number, size in enumerate(sizes):
        image = picture(*size, number)
        options = {"progressive": progressive, "quality": (30, 75, 95)[number % 3]}
        if number % 2:
            options["restart_marker_blocks"] = 3
        if kind == "gray":
            image = image.convert("L")
        else:
            options["subsampling"] = kind
        data = encoded(image, **options)
        for least in (0, 1, 8, 12, 25, 50):
            by = jpeg.scale(size, least)
            quick = jpeg.fast(data, size, by)
            assert quick is not None, (size, least)
            assert quick.shape == (-(-size[1] // by), -(-size[0] // by), 3)
            np.testing.assert_array_equal(quick, pillows(data, least))
            np.testing.assert_array_equal(quick, decode(data, least))


@needs_fast
def test_colours_kept_as_rgb_and_cmyk() -> None:
    rgb = encoded(picture(40, 30), keep_rgb=True)
    np.testing.assert_array_equal(decode(rgb), pillows(rgb))
    cmyk = encoded(picture(40, 32).convert("CMYK"))
    np.testing.assert_array_equal(decode(cmyk, 12), pillows(cmyk, 12))
    assert decode(cmyk, 12).shape == (16, 20, 3)


@needs_fast
def test_the_decoder_says_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert jpeg.FAST in DECODER
    monkeypatch.setattr(jpeg, "_simplejpeg", None)
    assert jpeg.fast(encoded(picture(9, 9)), (9, 9), 1) is None


ABSENT = """
import sys
sys.modules["simplejpeg"] = None
from selfsight.data.decode import DECODER, decode
assert "simplejpeg" not in DECODER and DECODER.startswith("pillow"), DECODER
print(decode(sys.argv[1], 30).shape)
"""


def test_without_simplejpeg(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(encoded(picture(150, 120)))
    command = [sys.executable, "-c", ABSENT, str(path)]
    said = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    assert said.stdout.strip() == "(30, 38, 3)"


@pytest.mark.parametrize(
    ("size", "least", "expected"),
    [
        ((400, 300), 0, 1),
        ((400, 300), 300, 1),
        ((400, 300), 151, 1),
        ((400, 300), 150, 2),
        ((300, 400), 76, 2),
        ((300, 400), 75, 4),
        ((400, 300), 38, 8),
        ((400, 300), 1, 8),
        ((400, 300), 1000, 1),
        ((401, 301), 151, 2),  # 151 is what half of 301 rounds to
        ((50, 4000), 1, 4),  # never below 8
        ((1, 1), 0, 1),
        ((1, 1), 1, 1),
    ],
)
def test_scale(size: tuple[int, int], least: int, expected: int) -> None:
    assert jpeg.scale(size, least) == expected


def test_a_scaled_photo_is_the_photo() -> None:
    data = encoded(picture(320, 240), quality=95)
    whole = Image.fromarray(decode(data))
    for least, size in ((120, (160, 120)), (60, (80, 60)), (30, (40, 30))):
        small = decode(data, least)
        assert small.shape == (size[1], size[0], 3)
        other = np.asarray(whole.resize(size, Image.Resampling.BOX)).astype(int)
        assert np.abs(small - other).mean() < 4


def test_other_formats_ignore_least() -> None:
    out = io.BytesIO()
    picture(64, 48).save(out, "PNG")
    np.testing.assert_array_equal(decode(out.getvalue(), 8), decode(out.getvalue()))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_scaled_photos_stand_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    xmp = f'<rdf tiff:Orientation="{orientation}"/>'.encode()
    image = picture(96, 64)
    for data in (encoded(image, exif=exif), encoded(image, xmp=xmp)):
        assert decode(data, 32).shape == ((32, 48, 3) if orientation < 5 else (48, 32, 3))
        np.testing.assert_array_equal(decode(data, 32), pillows(data, 32))
        np.testing.assert_array_equal(decode(data), pillows(data))


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("least", [0, 20])
def test_truncated_files_are_refused(progressive: bool, least: int) -> None:
    data = encoded(picture(90, 70), progressive=progressive)
    assert decode(data, least).ndim == 3
    for stop in range(3, len(data) - 2, 97):
        with pytest.raises(Undecodable):
            decode(data[:stop], least)


def test_what_the_fast_decoder_warns_of_is_pillows_to_judge() -> None:
    data = encoded(picture(48, 48), restart_marker_blocks=2)
    at = data.index(b"\xff\xd3")
    damaged = replaced(data, at + 1, b"\xd6")  # a restart out of turn
    assert jpeg.fast(damaged, (48, 48), 1) is None
    np.testing.assert_array_equal(decode(damaged), pillows(damaged))


def test_sizes_beyond_the_cap_reach_no_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jpeg, "fast", pytest.fail)
    data = encoded(picture(16, 16))
    assert MAX_PIXELS < 65_000 * 65_000
    huge = replaced(data, frame(data) + 5, struct.pack(">HH", 65_000, 65_000))
    with pytest.raises(Undecodable, match=f"more than {MAX_PIXELS} pixels"):
        decode(huge)


def test_more_pixels_than_the_bytes_can_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = encoded(Image.new("L", (4096, 4096)), optimize=True)
    assert len(plain) * 250 < 4096 * 4096  # two bits for each block, and decoded
    assert decode(plain).shape == (4096, 4096, 3)
    monkeypatch.setattr(jpeg, "fast", pytest.fail)
    data = encoded(picture(16, 16))
    large = replaced(data, frame(data) + 5, struct.pack(">HH", 10_000, 10_000))
    with pytest.raises(Undecodable, match="truncated JPEG"):
        decode(large)


def test_scans_without_end_are_refused() -> None:
    data = encoded(picture(64, 64), progressive=True)
    at = data.rindex(b"\xff\xda")
    last = data[at:-2]
    start = time.monotonic()
    with pytest.raises(Undecodable, match=f"more than {MAX_SCANS} scans"):
        decode(data[:-2] + 50_000 * last + b"\xff\xd9")
    assert time.monotonic() - start < 5
    # What follows the picture, in a panorama or a moving photo, does not count.
    np.testing.assert_array_equal(decode(data + 500 * b"\xff\xda\0\2"), decode(data))


@needs_fast
def test_decoding_leaves_other_threads_free() -> None:
    data = encoded(picture(1600, 1200), quality=95)
    image = threading.Thread(target=lambda: [jpeg.fast(data, (1600, 1200), 1) for _ in range(8)])
    image.start()
    turns = 0
    while image.is_alive():
        time.sleep(0.0005)
        turns += 1
    # A thread that keeps the interpreter to itself would allow one turn per picture.
    assert turns > 24


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory by Linux's rules")
def test_damaged_files_neither_crash_nor_hang_nor_divide_the_decoders(tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    command = [sys.executable, str(FUZZ), "--mutants", "600", "--seed", "1", "--out", str(out)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    found = json.loads(out.read_text())
    assert found["examples"] == {}
    assert sum(found["outcomes"].values()) == 600
    assert set(found["outcomes"]) <= {"decoded fast", "decoded by Pillow", "refused"}
    assert found["outcomes"]["refused"] > 100
