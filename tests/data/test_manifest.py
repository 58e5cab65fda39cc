"""An unchanged folder is decoded once; nothing that happens to the manifest is noticed."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from selfsight.data import Source, files, open_source
from selfsight.machine import cache_folder

Photos = Callable[..., Path]


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The length of each content that the opening pass decoded."""
    lengths: list[int] = []
    decode = files.decode

    def counting(data: bytes) -> np.ndarray:
        lengths.append(len(data))
        return decode(data)

    monkeypatch.setattr(files, "decode", counting)
    return lengths


def same(one: Source, other: Source) -> bool:
    return (
        [one.path(i) for i in range(len(one))] == [other.path(i) for i in range(len(other))]
        and one.fingerprint == other.fingerprint
        and one.skipped == other.skipped
        and one.classes == other.classes
        and np.array_equal(one.sizes, other.sizes)
        and np.array_equal(one.labels, other.labels)
        and all(one.digest(i) == other.digest(i) for i in range(len(one)))
        and all(one.format(i) == other.format(i) for i in range(len(one)))
    )


def test_the_second_opening_decodes_nothing(photos: Photos, decoded: list[int]) -> None:
    root = photos(9, classes=2)
    (root / "class0" / os.fsdecode(b"\xff.jpg")).write_bytes(b"")
    first = open_source(root, labels=True)
    assert len(decoded) == 10
    assert same(first, open_source(root, labels=True))
    assert len(decoded) == 10
    assert isinstance(open_source(root).sizes.base, np.memmap)


def test_any_change_is_seen(photos: Photos, decoded: list[int], cache: Path) -> None:
    root = photos(4)
    open_source(root)
    os.utime(root / "0001.jpg", (1, 1))
    open_source(root)
    assert len(decoded) == 8
    (root / "0001.jpg").unlink()
    assert len(open_source(root)) == 3
    assert len(decoded) == 11
    # What was replaced is gone, and so is what was left unfinished long ago.
    [folder] = (cache / "manifests").iterdir()
    (folder / ".tmp-old").mkdir()
    os.utime(folder / ".tmp-old", (1, 1))
    os.utime(root / "0002.jpg", (1, 1))
    open_source(root)
    assert len(list(folder.iterdir())) == 1


def test_a_damaged_manifest_is_made_anew(photos: Photos, decoded: list[int], cache: Path) -> None:
    root = photos(3)
    first = open_source(root)
    for name in sorted(path.name for path in cache.glob("manifests/*/*/*")):
        for damage in (b"", b"[]", b"{}", None)[:: 1 if name == "head.json" else 3]:
            [path] = cache.glob(f"manifests/*/*/{name}")
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 1
            path.unlink()
            path.write_bytes(bytes(data) if damage is None else damage)
            before = len(decoded)
            assert same(first, open_source(root))
            assert len(decoded) == before + 3
            assert same(first, open_source(root))
            assert len(decoded) == before + 3


def test_no_place_for_a_manifest(
    photos: Photos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoded: list[int]
) -> None:
    root = photos(3)
    (tmp_path / "occupied").write_text("a file, not a folder")
    first = open_source(root, cache=tmp_path / "occupied")
    assert same(first, open_source(root, cache=tmp_path / "occupied"))
    assert len(decoded) == 6

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    assert same(first, open_source(root, cache=tmp_path / "full"))
    assert not list((tmp_path / "full").glob("manifests/*/*"))


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.delenv("SELFSIGHT_CACHE")
    assert cache_folder() == tmp_path / ".cache" / "selfsight"
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_folder() == Path("/x/selfsight")
    monkeypatch.setenv("SELFSIGHT_CACHE", "~/mine")
    assert cache_folder() == tmp_path / "mine"
    assert cache_folder("/given") == Path("/given")


def test_a_file_that_changed_is_not_what_was_opened(photos: Photos) -> None:
    root = photos(3)
    source = open_source(root)
    shown = source.read(1)
    os.utime(root / "0001.jpg", (1, 1))
    np.testing.assert_array_equal(source.read(1), shown)
    shutil.copy(root / "0002.jpg", root / "0001.jpg")
    with pytest.raises(files.Undecodable, match="changed since"):
        source.read(1)


RESIDENT = """
import os, sys
from pathlib import Path
from selfsight.data.files import Files
from selfsight.data.manifest import Manifest

def anonymous():
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return 1024 * int(status["RssAnon"].split()[0])

before = anonymous()
source = Files("big", "/", Manifest.load(Path(sys.argv[1])), False)
assert len(source) == 400_000
for i in range(0, len(source), 7919):
    assert source.path(i) == f"{i:012}.jpg"
    assert tuple(source.sizes[i]) == (i % 500, 640)
print((anonymous() - before) / len(source))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_many_images_stay_out_of_memory(tmp_path: Path) -> None:
    from selfsight.data.manifest import Manifest

    n = 400_000
    number = np.arange(n)
    digits = np.stack([number // 10**k % 10 + 48 for k in range(11, -1, -1)], 1)
    suffix = np.broadcast_to(np.frombuffer(b".jpg", np.uint8), (n, 4))
    big = Manifest(
        paths=np.concatenate([digits.astype(np.uint8), suffix], 1).ravel(),
        offsets=16 * np.arange(n + 1),
        sizes=np.stack([number % 500, np.full(n, 640)], 1).astype(np.int32),
        labels=np.zeros(n, np.int32),
        lengths=number,
        modified=number,
        digests=np.zeros((n, 32), np.uint8),
        formats=np.zeros(n, np.uint8),
        classes=(),
        fingerprint="",
        skipped=(),
        bad=0,
    )
    big.save(tmp_path)
    command = [sys.executable, "-c", RESIDENT, str(tmp_path)]
    told = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    assert float(told.stdout) < 16
