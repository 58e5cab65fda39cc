"""Whatever is opened has the same numbering, names and refusals everywhere."""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from selfsight.data import files, open_source
from selfsight.data.base import printable
from selfsight.data.synthetic import synthetic
from selfsight.errors import ConfigError, DataError

Photos = Callable[..., Path]
Jpeg = Callable[[int], bytes]


def names(source: files.Source) -> list[str]:
    return [source.path(i) for i in range(len(source))]


def test_a_folder(photos: Photos) -> None:
    root = photos(7)
    (root / "deep" / "er").mkdir(parents=True)
    shutil.copy(root / "0003.jpg", root / "deep" / "er" / "x")
    (root / ".hidden").mkdir()
    shutil.copy(root / "0003.jpg", root / ".hidden" / "y.jpg")
    shutil.copy(root / "0003.jpg", root / ".z.jpg")
    before = sorted(os.walk(root))
    seen: list[tuple[int, int]] = []
    source = open_source(root, progress=lambda done, total: seen.append((done, total)))
    assert names(source) == [f"000{i}.jpg" for i in range(7)] + ["deep/er/x"]
    assert seen[-1] == (8, 8)
    assert source.sizes.dtype == np.int32
    for i in range(8):
        image = source.read(i)
        assert image.shape == (*source.sizes[i], 3)
        assert source.format(i) == "JPEG"
    assert source.labels is None
    assert source.name == str(root)
    assert sorted(os.walk(root)) == before


def test_order_is_by_bytes(tmp_path: Path, jpeg: Jpeg) -> None:
    wanted = [b"A.jpg", b"B.jpg", b"a/z.jpg", b"a.jpg", "é.jpg".encode(), "é.jpg".encode()]
    wanted += ["😀\n\"'.jpg".encode(), b"\xff.jpg"]
    for number, name in enumerate(wanted):
        path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/in/" + name))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(number))
    source = open_source(tmp_path / "in")
    assert [os.fsencode(name) for name in names(source)] == sorted(set(wanted))
    again = open_source(tmp_path / "in")
    assert names(again) == names(source)
    assert [source.read(i).shape for i in range(len(source))]
    assert printable(source.path(len(source) - 1)) == "\\udcff.jpg"
    assert printable("a\nb 😀") == "a\\nb 😀"


def test_labels_are_the_sub_folders(photos: Photos) -> None:
    root = photos(6, classes=3)
    source = open_source(root, labels=True)
    assert source.classes == ("class0", "class1", "class2")
    np.testing.assert_array_equal(source.labels, [0, 0, 1, 1, 2, 2])
    assert open_source(root).labels is None
    assert open_source(root, labels=None).labels is not None
    shutil.copy(root / "class0" / "0000.jpg", root / "stray.jpg")
    with pytest.raises(DataError, match=r"no label for 1 of 7 images, the first is stray.jpg"):
        open_source(root, labels=True)
    assert open_source(root, labels=None).labels is None


def bad_files(root: Path, jpeg: Jpeg) -> set[str]:
    whole = jpeg(99)
    bad = {
        "0002a.jpg": b"",
        "0003a.jpg": whole[: len(whole) // 2],
        "0004a.jpg": b"<!doctype html><html>not found</html>",
        "0005a.png": np.random.default_rng(0).bytes(400),
        "0006a.heic": b"\0\0\0\x18ftypheic" + bytes(40),
        "0007a": whole[:60],
    }
    for name, data in bad.items():
        (root / name).write_bytes(data)
    return set(bad)


def test_bad_files_leave_no_trace_in_the_numbering(photos: Photos, jpeg: Jpeg) -> None:
    clean = open_source(photos(20, "clean"))
    root = photos(20, "dirty")
    bad = bad_files(root, jpeg)
    dirty = open_source(root, max_bad_fraction=0.5)
    assert {skip.path for skip in dirty.skipped} == bad
    assert all(skip.reason and "\n" not in skip.reason for skip in dirty.skipped)
    assert names(dirty) == names(clean)
    assert dirty.fingerprint == clean.fingerprint
    np.testing.assert_array_equal(dirty.sizes, clean.sizes)
    for i in range(20):
        np.testing.assert_array_equal(dirty.read(i), clean.read(i))
    with pytest.raises(DataError, match=r"6 of 26 .* 0002a.jpg \(an empty.*--max-bad-fraction"):
        open_source(root)


def test_one_bad_file_is_allowed(photos: Photos) -> None:
    root = photos(20)
    (root / "0005.jpg").write_bytes(b"")
    assert len(open_source(root)) == 19
    with pytest.raises(DataError, match="1 of 20"):
        open_source(root, max_bad_fraction=0)
    (root / "0006.jpg").write_bytes(b"")
    with pytest.raises(DataError, match="2 of 20"):
        open_source(root)
    assert len(open_source(root, max_bad_fraction=0.1)) == 18
    assert [files.allowed_bad(0.01, n) for n in (5, 100, 199, 200, 300)] == [1, 1, 1, 2, 3]
    assert files.allowed_bad(0.29, 100) == 29


def test_other_files_are_listed_but_not_bad(photos: Photos) -> None:
    root = photos(4)
    others = {"notes.txt", "labels.csv", "film.mp4", "README", "0000.xml"}
    for name in others:
        (root / name).write_bytes(b"words, words")
    source = open_source(root, max_bad_fraction=0)
    assert len(source) == 4
    assert {skip.path for skip in source.skipped} == others


def test_links(photos: Photos, tmp_path: Path) -> None:
    root, outside = photos(3), photos(2, "outside", first=50)
    (root / "sub").mkdir()
    (root / "sub" / "loop").symlink_to(root, target_is_directory=True)
    (root / "self").symlink_to(root / "self")
    (root / "again.jpg").symlink_to(root / "0001.jpg")
    (root / "broken.jpg").symlink_to(root / "none.jpg")
    (root / ".store").mkdir()
    (root / "0002.jpg").rename(root / ".store" / "content")
    (root / "0002.jpg").symlink_to(root / ".store" / "content")
    (root / "out").symlink_to(outside, target_is_directory=True)
    (root / "out.jpg").symlink_to(outside / "0000.jpg")
    source = open_source(root)
    assert names(source) == ["0000.jpg", "0001.jpg", "0002.jpg"]
    reasons = {skip.path: skip.reason for skip in source.skipped}
    assert reasons.keys() == {"self", "broken.jpg", "out", "out.jpg"}
    assert "leads out" in reasons["out"]
    follow = open_source(root, follow_links=True)
    assert names(follow) == [*names(source), "out/0000.jpg", "out/0001.jpg"]
    only = tmp_path / "only"
    only.mkdir()
    (only / "a.jpg").symlink_to(outside / "0000.jpg")
    with pytest.raises(DataError, match="--follow-links"):
        open_source(only)


def test_special_files_are_never_opened(photos: Photos) -> None:
    root = photos(2)
    os.mkfifo(root / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(root / "s.jpg"))
        source = open_source(root, max_bad_fraction=0)
    assert len(source) == 2
    assert {skip.reason for skip in source.skipped} == {"not a regular file"}


UNPRIVILEGED = """
import os, sys
from selfsight.data import open_source
os.seteuid(65534)
source = open_source(sys.argv[1], max_bad_fraction=1)
print([source.path(i) for i in range(len(source))])
print([(skip.path, skip.reason) for skip in source.skipped])
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="dropping rights needs them")
@pytest.mark.usefixtures("public")
def test_what_may_not_be_read_is_listed(photos: Photos) -> None:
    root = photos(3)
    (root / "closed").mkdir()
    shutil.copy(root / "0001.jpg", root / "closed" / "a.jpg")
    (root / "closed").chmod(0)
    (root / "0002.jpg").chmod(0)
    command = [sys.executable, "-c", UNPRIVILEGED, str(root)]
    told = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    assert told.startswith("['0000.jpg', '0001.jpg']")
    assert "('closed', 'cannot be read: Permission denied')" in told
    assert "('0002.jpg', 'cannot be read: Permission denied')" in told


def test_a_folder_without_images(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("a")
    (tmp_path / "photo.jpg").write_bytes(b"x")
    for data, reason in {
        "empty": "is empty",
        "texts": r"no usable image among 1 files, the first is a.txt \(not an image\)",
        "none": "does not exist",
        "photo.jpg": "is not a folder, a list",
    }.items():
        with pytest.raises(DataError, match=reason) as error:
            open_source(tmp_path / data)
        assert "\n" not in str(error.value)
    with pytest.raises(DataError, match="did you mean cifar10"):
        open_source("cifar1O")
    with pytest.raises(ConfigError, match="fraction"):
        open_source(tmp_path, max_bad_fraction=2)


def test_lists(photos: Photos, tmp_path: Path) -> None:
    root = photos(4)
    odd = os.fsdecode(b"\xff, 1.jpg")
    (root / "0003.jpg").rename(root / odd)
    text = tmp_path / "list.txt"
    lines = ["photos/0002.jpg", "", str(root / "0000.jpg"), f"photos/{odd}"]
    text.write_bytes(os.fsencode("\n".join(lines)))
    source = open_source(text)
    assert names(source) == [line for line in lines if line]
    table = tmp_path / "list.csv"
    rows = ["path,label", "photos/0002.jpg,10", "photos/0000.jpg,9", f'"photos/{odd}",10']
    table.write_bytes(os.fsencode("\r\n".join(rows)))
    source = open_source(table, labels=True)
    assert source.classes == ("9", "10")
    np.testing.assert_array_equal(source.labels, [1, 0, 1])
    np.testing.assert_array_equal(source.read(0), Image.open(root / "0002.jpg"))


def test_lists_that_are_none(photos: Photos, tmp_path: Path) -> None:
    photos(2)
    cases = {
        "empty.txt": (b"\n\n", "names no image"),
        "words.txt": (b"all work\nno play\n", "no usable image"),
        "other.csv": (b"file,class\na,b\n", "no column `path`"),
        "binary.csv": (bytes(range(256)) * 4, "no column `path`|not a CSV"),
        "gone.csv": (b"path\nphotos/0000.jpg\ngone1.jpg\ngone2.jpg\n", "2 of 3"),
    }
    for name, (data, reason) in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match=reason) as error:
            open_source(tmp_path / name)
        assert "\n" not in str(error.value)
    (tmp_path / "half.csv").write_bytes(b"path,label\nphotos/0000.jpg,cat\nphotos/0001.jpg,\n")
    with pytest.raises(DataError, match="no label for 1 of 2"):
        open_source(tmp_path / "half.csv", labels=True)


def test_arrays(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 9, 3), np.uint8)
    labels = np.array(["b", "a", "b", "c", "a"])
    np.savez(tmp_path / "a.npz", images=images, labels=labels)
    np.save(tmp_path / "a.npy", images)
    packed = open_source(tmp_path / "a.npz", labels=True)
    assert packed.classes == ("a", "b", "c")
    np.testing.assert_array_equal(packed.labels, [1, 0, 1, 2, 0])
    sources = [packed, *map(open_source, (tmp_path / "a.npy", images, torch.from_numpy(images)))]
    sources.append(open_source(images.transpose(0, 3, 1, 2)))
    sources.append(open_source(images.astype(np.float32) / 255))
    sources.append(open_source(images.astype(np.uint16) * 257))
    for source in sources:
        np.testing.assert_array_equal(source.sizes, [(8, 9)] * 5)
        for i in range(5):
            np.testing.assert_array_equal(source.read(i), images[i])
        assert source.fingerprint == packed.fingerprint
    assert open_source(images[::-1]).fingerprint != packed.fingerprint
    gray = open_source(images[..., 0])
    np.testing.assert_array_equal(gray.read(2), images[2][..., :1].repeat(3, -1))
    assert open_source(packed) is packed
    with pytest.raises(DataError, match="no labels"):
        open_source(tmp_path / "a.npy", labels=True)


def test_arrays_that_are_no_images(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
            return os.mkdir, (str(tmp_path / "sprung"),)

    np.save(tmp_path / "object.npy", np.array([Trap()], object), allow_pickle=True)
    np.savez(tmp_path / "object.npz", images=np.array([Trap()], object))
    np.savez(tmp_path / "names.npz", pictures=np.zeros((2, 4, 4, 3), np.uint8))
    (tmp_path / "torn.npz").write_bytes(b"PK\3\4 and no more")
    (tmp_path / "torn.npy").write_bytes(b"\x93NUMPY")
    for name in ("object.npy", "object.npz", "torn.npz", "torn.npy", "names.npz"):
        with pytest.raises(DataError, match=r"cannot be read|no array named images"):
            open_source(tmp_path / name)
    assert not (tmp_path / "sprung").exists()
    for images in (
        np.zeros((4, 5)),
        np.zeros((0, 5, 5, 3), np.uint8),
        np.zeros((2, 5, 5, 4), np.uint8),
        np.zeros((2, 5, 5, 3), np.int64),
        np.full((2, 5, 5, 3), 3.0),
        np.full((2, 5, 5, 3), np.nan),
        np.zeros((2, 5, 5, 3), np.uint32),
    ):
        with pytest.raises(DataError):
            open_source(images)
    for labels in (np.zeros(3, int), np.zeros(2)):
        np.savez(tmp_path / "a.npz", images=np.zeros((2, 5, 5, 3), np.uint8), labels=labels)
        with pytest.raises(DataError, match="labels of shape"):
            open_source(tmp_path / "a.npz")


def test_fingerprint(photos: Photos, tmp_path: Path, jpeg: Jpeg) -> None:
    root = photos(5)
    first = open_source(root).fingerprint
    shutil.copytree(root, tmp_path / "copy", copy_function=shutil.copyfile)
    assert open_source(tmp_path / "copy").fingerprint == first
    seen = {first}

    def changed() -> bool:
        fingerprint = open_source(root).fingerprint
        new = fingerprint not in seen
        seen.add(fingerprint)
        return new

    (root / "new.jpg").write_bytes(jpeg(70))
    assert changed()
    (root / "new.jpg").rename(root / "newer.jpg")
    assert changed()
    (root / "0001.jpg").write_bytes(jpeg(71))
    assert changed()
    (root / "0001.jpg").unlink()
    assert changed()
    os.utime(root / "0002.jpg", (1, 1))
    assert not changed()


def test_subset(photos: Photos) -> None:
    source = open_source(photos(6, classes=2), labels=True)
    part = source.subset([4, 1, 1])
    assert len(part) == 3
    assert part.path(0) == source.path(4)
    np.testing.assert_array_equal(part.labels, source.labels[[4, 1, 1]])
    np.testing.assert_array_equal(part.read(1), source.read(1))
    np.testing.assert_array_equal(part.sizes, source.sizes[[4, 1, 1]])
    assert part.digest(0) == source.digest(4)
    assert part.fingerprint != source.subset([1, 4, 1]).fingerprint
    assert part.subset([2]).path(0) == source.path(1)


def test_sets_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets

    with pytest.raises(DataError, match=r"cifar10 is not in .*cache/torchvision: .*--download"):
        open_source("cifar10")
    monkeypatch.setenv("SELFSIGHT_DATA", str(tmp_path / "sets"))
    with pytest.raises(DataError, match=r"cifar10 is not in .*sets"):
        open_source("cifar10:test")
    with pytest.raises(ConfigError, match=r"train, test, not tst; did you mean test"):
        open_source("cifar10:tst")
    asked = []

    def fake(shape: tuple[int, ...], labels: str) -> Callable[..., SimpleNamespace]:
        def make(**options: object) -> SimpleNamespace:
            asked.append(options)
            data = {"data": np.zeros((3, *shape), np.uint8), labels: [2, 0, 1]}
            return SimpleNamespace(**data, **({"classes": list("abc")} if shape[0] < 32 else {}))

        return make

    monkeypatch.setattr(datasets, "STL10", fake((3, 96, 96), "labels"))
    monkeypatch.setattr(datasets, "SVHN", fake((32, 32, 3), "labels"))
    monkeypatch.setattr(datasets, "MNIST", fake((28, 28), "targets"))
    for name, size in {"stl10": 96, "svhn:test": 32, "mnist:test": 28}.items():
        source = open_source(name, labels=True, download=True)
        np.testing.assert_array_equal(source.sizes, [(size, size)] * 3)
        np.testing.assert_array_equal(source.labels, [2, 0, 1])
        assert source.classes[:1] == (("0",) if name == "svhn:test" else ("a",))
        assert source.read(0).shape == (size, size, 3)
    assert open_source("stl10:unlabeled").labels is None
    root = tmp_path / "sets"
    assert asked[0] == {"root": root, "download": True, "split": "train"}
    assert asked[2] == {"root": root, "download": True, "train": False}
    assert asked[3] == {"root": root, "download": False, "split": "unlabeled"}


def test_synthetic(monkeypatch: pytest.MonkeyPatch) -> None:
    from selfsight.data import sources

    monkeypatch.setattr(sources, "SYNTHETIC", {"train": 24, "test": 12})
    train, test = open_source("synthetic", labels=True), open_source("synthetic:test")
    images, labels, classes = synthetic(24)
    np.testing.assert_array_equal(train.read(5), images[5])
    np.testing.assert_array_equal(train.labels, labels)
    assert train.classes == classes
    assert len(test) == 12
    assert train.fingerprint != test.fingerprint
    with pytest.raises(ConfigError, match="splits"):
        open_source("synthetic:val")
