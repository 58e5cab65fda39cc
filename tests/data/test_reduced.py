"""Large photos come from the cache at one size, whoever made the file and whatever befell it."""

import errno
import io
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from selfsight.data.base import Arrays, Pixels, Source, pixel_digest
from selfsight.data.decode import Undecodable, decode
from selfsight.data.reduced import Reduced, _reduced_sizes, reduce
from selfsight.data.sources import open_source
from selfsight.errors import StorageError

SHORT = 32
SIZES = [(200, 130), (90, 301), (64, 64), (40, 33), (500, 31), (32, 900), (31, 20)]  # W, H
LARGE = (0, 1, 2, 3)


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (5, 7, 3), np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for number, size in enumerate(SIZES):
        where = folder / "ab"[number % 2]
        where.mkdir(parents=True, exist_ok=True)
        exif = Image.Exif()
        exif[0x0112] = 1 + number  # the second half of them lies on its side
        kind = {"format": "JPEG", "exif": exif, "quality": 90} if number % 3 else {"format": "PNG"}
        picture(*size, number).save(where / f"{number}.img", **kind)
    return folder


@pytest.fixture
def source(photos: Path) -> Source:
    listed = sorted(photos.rglob("*.img"), key=lambda path: path.name)
    lines = "".join(f"{path.relative_to(photos)},{path.parent.name}\n" for path in listed)
    (photos / "list.csv").write_text("path,label\n" + lines)
    return open_source(photos / "list.csv", labels=True)


def files(cache: Path) -> dict[str, bytes]:
    found = sorted((cache / "reduced").rglob("*"))
    return {str(p.relative_to(cache)): p.read_bytes() for p in found if p.is_file()}


def all_of(source: Source) -> list[Pixels]:
    return [source.read(index) for index in range(len(source))]


def same(one: list[Pixels], other: list[Pixels]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_large_photos_shrink_to_the_short_side(source: Source, cache: Path) -> None:
    reduced = reduce(source, SHORT, cache, threads=2)
    assert isinstance(reduced, Reduced)
    for index, pixels in enumerate(all_of(reduced)):
        assert pixels.shape[:2] == tuple(reduced.sizes[index])
        height, width = source.sizes[index]
        if index in LARGE:
            assert min(pixels.shape[:2]) == SHORT
            assert max(pixels.shape[:2]) == round(max(height, width) * SHORT / min(height, width))
            plain = Image.fromarray(source.read(index)).resize(pixels.shape[1::-1])
            assert np.abs(pixels - np.asarray(plain).astype(int)).mean() < 3, index
        else:
            np.testing.assert_array_equal(pixels, source.read(index))
    assert len(files(cache)) == len(LARGE)


def test_everything_else_passes_through(source: Source, cache: Path) -> None:
    reduced = reduce(source, SHORT, cache, threads=1)
    assert (reduced.name, reduced.classes) == (source.name, source.classes)
    assert reduced.skipped == source.skipped
    assert not reduced.resident
    np.testing.assert_array_equal(reduced.labels, source.labels)
    for index in range(len(source)):
        assert reduced.path(index) == source.path(index)
        assert reduced.digest(index) == source.digest(index)
        assert reduced.format(index) == source.format(index)
    part = reduced.subset([5, 0])
    np.testing.assert_array_equal(part.sizes, reduced.sizes[[5, 0]])
    np.testing.assert_array_equal(part.read(1), reduced.read(0))
    other = Reduced(source, SHORT + 1, cache)
    assert len({source.fingerprint, reduced.fingerprint, other.fingerprint}) == 3
    assert Reduced(source, SHORT, cache / "elsewhere").fingerprint == reduced.fingerprint


def test_least_reaches_the_decoder(source: Source, cache: Path) -> None:
    reduced = reduce(source, SHORT, cache, threads=1)
    assert reduced.read(0, 16).shape[:2] == (16, 25)
    assert reduced.read(4, 16).shape[:2] == source.read(4, 16).shape[:2]


def test_the_first_reading_gives_the_stored_pixels(source: Source, cache: Path) -> None:
    lazy = Reduced(source, SHORT, cache)
    assert files(cache) == {}
    fresh = all_of(lazy)
    assert len(files(cache)) == len(LARGE)
    assert same(fresh, all_of(lazy))
    assert same(fresh, all_of(reduce(source, SHORT, cache, threads=1)))
    assert same(fresh, all_of(reduce(source, SHORT, cache / "other", threads=3)))


@pytest.mark.parametrize("seed", range(5))
def test_sizes_are_rounded_half_up(seed: int) -> None:
    sizes = np.random.default_rng(seed).integers(1, 20_000, (200, 2)).astype(np.int32)
    out = _reduced_sizes(sizes, 448)
    assert out.dtype == np.int32
    for before, after in zip(sizes.tolist(), out.tolist(), strict=True):
        by = max(Fraction(1), Fraction(min(before), 448))
        assert after == [math.floor(side / by + Fraction(1, 2)) for side in before]
    half = np.array([[1000, 1001], [1001, 1000]], np.int32)
    np.testing.assert_array_equal(_reduced_sizes(half, 500), [[500, 501], [501, 500]])


def test_a_second_opening_makes_nothing(
    source: Source, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[tuple[int, int]] = []
    first = all_of(reduce(source, SHORT, cache, threads=2, progress=lambda *d: said.append(d)))
    assert said == [(4, 4)]
    monkeypatch.setattr(Reduced, "_make", pytest.fail)
    again = reduce(source, SHORT, cache, threads=2, progress=lambda *d: said.append(d))
    assert same(first, all_of(again))
    assert said == [(4, 4)]


def test_nothing_to_reduce(source: Source, cache: Path) -> None:
    assert reduce(source, 1000, cache, threads=1) is source
    array = Arrays("array", np.zeros((3, 90, 90, 3), np.uint8))
    assert reduce(array, SHORT, cache, threads=1) is array
    empty = source.subset([])
    assert reduce(empty, SHORT, cache, threads=1) is empty
    assert not (cache / "reduced").exists()


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "truncated": lambda data: data[: len(data) // 2],
    "without its hash": lambda data: data[:-32],
    "a changed bit": lambda data: data[:400] + bytes([data[400] ^ 1]) + data[401:],
    "no image": lambda data: b"<html>",
    "grown": lambda data: data + b"\0",
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=list(DAMAGE))
def test_damaged_files_are_made_anew(
    source: Source, cache: Path, damage: Callable[[bytes], bytes]
) -> None:
    reduced = reduce(source, SHORT, cache, threads=1)
    pixels, intact = all_of(reduced), files(cache)
    for name, data in intact.items():
        (cache / name).write_bytes(damage(data))
    assert same(pixels, all_of(reduced))
    assert files(cache) == intact


def test_foreign_files_are_made_anew(source: Source, cache: Path) -> None:
    """Another photo's file of the same size, another rule's file, a whole JPEG of anyone's."""
    reduced = reduce(source, SHORT, cache, threads=1)
    pixels, intact = all_of(reduced), files(cache)
    names = list(intact)
    (cache / names[0]).write_bytes(intact[names[1]])
    out = io.BytesIO()
    picture(SHORT, SHORT).save(out, "JPEG")
    (cache / names[2]).write_bytes(out.getvalue())
    assert same(pixels, all_of(reduced))
    assert files(cache) == intact
    other = all_of(reduce(source, SHORT + 8, cache, threads=1))
    assert len(files(cache)) > len(intact)
    for name in files(cache):
        twin = name.replace(f"/{SHORT + 8}/", f"/{SHORT}/")
        if twin != name and twin in intact:
            (cache / name).write_bytes(intact[twin])
    assert same(other, all_of(Reduced(source, SHORT + 8, cache)))


def test_folders_are_private(source: Source, cache: Path) -> None:
    reduce(source, SHORT, cache, threads=1)
    folders = [cache / "reduced", *(p for p in (cache / "reduced").rglob("*") if p.is_dir())]
    assert len(folders) > 3
    assert {folder.stat().st_mode & 0o777 for folder in folders} == {0o700}


@pytest.mark.parametrize(
    ("module", "call", "number"),
    [
        (os, "fsync", errno.ENOSPC),
        (os, "replace", errno.EIO),
        (os, "mkdir", errno.EROFS),
        (tempfile, "mkstemp", errno.EACCES),
    ],
    ids=["full", "failing", "read-only", "forbidden"],
)
def test_a_cache_that_takes_nothing_is_said_in_one_line(
    source: Source,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    module: ModuleType,
    call: str,
    number: int,
) -> None:
    def fails(*given: object, **options: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(module, call, fails)
        with pytest.raises(StorageError) as raised:
            reduce(source, SHORT, cache, threads=2)
    said = str(raised.value)
    assert "\n" not in said
    assert str(cache / "reduced" / str(SHORT)) in said
    assert os.strerror(number) in said
    assert ("bytes free" in said) == (number == errno.ENOSPC)
    assert "--cache" in said
    assert not files(cache)
    assert len(all_of(reduce(source, SHORT, cache, threads=2))) == len(source)


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only to root")
def test_a_read_only_folder(source: Source, cache: Path) -> None:
    cache.mkdir(exist_ok=True)
    cache.chmod(0o500)
    try:
        with pytest.raises(StorageError, match="--cache"):
            reduce(source, SHORT, cache, threads=1)
    finally:
        cache.chmod(0o700)


def test_a_cache_that_is_a_file(source: Source, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(StorageError, match=r"taken.*--cache"):
        reduce(source, SHORT, tmp_path / "taken", threads=1)
    assert (tmp_path / "taken").read_text() == "mine"


def test_a_full_cache_that_became_read_only_still_serves(
    source: Source, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = all_of(reduce(source, SHORT, cache, threads=1))
    monkeypatch.setattr(Reduced, "_store", pytest.fail)
    assert same(pixels, all_of(reduce(source, SHORT, cache, threads=1)))


def test_damaged_photos_are_left_to_the_reader(source: Source, photos: Path, cache: Path) -> None:
    path = photos / source.path(1)
    path.write_bytes(path.read_bytes()[:200])
    reduced = reduce(source, SHORT, cache, threads=2)
    assert len(files(cache)) == len(LARGE) - 1
    with pytest.raises(Undecodable):
        reduced.read(1)
    assert reduced.read(0).shape[:2] == tuple(reduced.sizes[0])


def test_a_fill_that_was_interrupted_goes_on(
    source: Source, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = all_of(reduce(source, SHORT, cache / "whole", threads=1))
    make, made = Reduced._make, []

    def interrupted(self: Reduced, index: int) -> bytes:
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(index)
        return make(self, index)

    with monkeypatch.context() as patch:
        patch.setattr(Reduced, "_make", interrupted)
        with pytest.raises(KeyboardInterrupt):
            reduce(source, SHORT, cache, threads=1)
    assert len(files(cache)) == 2
    said: list[tuple[int, int]] = []
    reduced = reduce(source, SHORT, cache, threads=1, progress=lambda *done: said.append(done))
    assert said == [(2, 2)]
    assert same(expected, all_of(reduced))


FILL = """
import os, sys, time
from pathlib import Path
from selfsight.data.reduced import reduce
from selfsight.data.sources import open_source
slow, fsync = float(sys.argv[3]), os.fsync
os.fsync = lambda number: (time.sleep(slow), fsync(number))
print("ready", flush=True)
sys.stdin.readline()
reduce(open_source(sys.argv[1]), 32, Path(sys.argv[2]), threads=2)
"""


def filler(photos: Path, cache: Path, slow: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", FILL, str(photos), str(cache), str(slow)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, **pipes)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_killed_while_writing_and_two_at_once(photos: Path, cache: Path, tmp_path: Path) -> None:
    for number in range(20):
        picture(90, 70, 100 + number).save(photos / f"{number}.png")
    source = open_source(photos)
    expected = all_of(reduce(source, SHORT, tmp_path / "alone", threads=1))
    whole = files(tmp_path / "alone")

    with filler(photos, cache, 0.05) as first:
        first.stdin.write("\n")
        first.stdin.flush()
        deadline = time.monotonic() + 30
        while len(list((cache / "reduced").rglob("*.jpg"))) < 4 and time.monotonic() < deadline:
            time.sleep(0.005)
        first.send_signal(signal.SIGKILL)
    left = {name: data for name, data in files(cache).items() if "/.tmp/" not in name}
    assert 4 <= len(left) < len(whole)
    assert left.items() <= whole.items()

    for path in (cache / "reduced" / str(SHORT) / ".tmp").iterdir():
        os.utime(path, (0, 0))  # long ago
    with filler(photos, cache, 0.0) as first, filler(photos, cache, 0.0) as second:
        for process in (first, second):
            process.stdin.write("\n")
            process.stdin.flush()
        assert (first.wait(60), second.wait(60)) == (0, 0)
    assert files(cache) == whole
    assert same(expected, all_of(reduce(source, SHORT, cache, threads=1)))


class Drawn(Source):
    """Images that lie in no files."""

    def __init__(self) -> None:
        self.name = "drawn"
        self.sizes = np.array([[70, 90], [20, 90], [200, 100]], np.int32)

    def read(self, index: int, least: int = 0) -> Pixels:
        height, width = self.sizes[index].tolist()
        return np.asarray(picture(width, height, index))

    def path(self, index: int) -> str:
        return f"drawn {index}"

    def digest(self, index: int) -> bytes:
        return pixel_digest(self.read(index))

    @property
    def fingerprint(self) -> str:
        return "drawn"


def test_any_source_will_do(cache: Path) -> None:
    reduced = reduce(Drawn(), SHORT, cache, threads=2)
    np.testing.assert_array_equal(reduced.sizes, [[32, 41], [20, 90], [64, 32]])
    assert [pixels.shape[:2] for pixels in all_of(reduced)] == [(32, 41), (20, 90), (64, 32)]
    part = reduce(Drawn().subset([2, 1]), SHORT, cache, threads=1)
    np.testing.assert_array_equal(part.read(0), reduced.read(2))


def test_a_photo_of_twelve_megapixels(tmp_path: Path, cache: Path) -> None:
    folder = tmp_path / "camera"
    folder.mkdir()
    picture(4000, 3000).save(folder / "one.jpg", quality=90)
    picture(60, 40).save(folder / "two.jpg")
    source = open_source(folder)
    reduced = reduce(source, 448, cache, threads=1)
    np.testing.assert_array_equal(reduced.sizes, [[448, 597], [40, 60]])
    small = reduced.read(0)
    plain = Image.fromarray(source.read(0)).resize((597, 448), Image.Resampling.BICUBIC)
    assert np.abs(small - np.asarray(plain).astype(int)).mean() < 1
    ((_, stored),) = files(cache).items()
    np.testing.assert_array_equal(decode(stored), small)


def test_a_photo_too_long_for_a_jpeg_stays_as_it_is(tmp_path):
    images = np.zeros((1, 100, 70_000, 3), np.uint8)

    class Long(Arrays):
        resident = False

    reduced = reduce(Long("long", images), 64, tmp_path, threads=1)
    # 64 / 100 of 70,000 would do; of a longer one it would not.
    assert isinstance(reduced, Reduced)
    assert reduced.sizes.tolist() == [[64, 44_800]]
    longer = Reduced(Long("longer", np.broadcast_to(images[:, :, :1], (1, 100, 110_000, 3))), 64,
                     tmp_path)  # fmt: skip
    assert not longer.is_reduced(0)
    assert longer.sizes.tolist() == [[100, 110_000]]
    assert longer.read(0).shape == (100, 110_000, 3)
