"""What is packed comes back: bytes, names, labels, order and so views."""

import os
import resource
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tars import Jpeg, Photos, digests, inside, names

from selfsight.data import Arrays, Source, open_source
from selfsight.data.loader import Loader
from selfsight.data.pack import empty_folder, pack
from selfsight.errors import ConfigError, DataError, StorageError
from selfsight.methods.base import Batch
from selfsight.views import IMAGENET_MEAN, IMAGENET_STD, View

VIEWS = [View(size=12, blur_sigma=(0.1, 1.0)), View(size=8, crop=(0.1, 0.4), count=2)]


def same(one: Source, other: Source) -> None:
    assert digests(one) == digests(other)
    np.testing.assert_array_equal(one.sizes, other.sizes)
    for i in range(len(one)):
        np.testing.assert_array_equal(one.read(i), other.read(i))


def test_a_packed_folder(photos: Photos, tmp_path: Path) -> None:
    root = photos(30, classes=3)
    source = open_source(root, labels=True)
    seen: list[tuple[int, int]] = []
    out = pack(source, tmp_path / "out", shard_bytes=8 << 10, progress=lambda *a: seen.append(a))
    assert [path.name for path in out] == sorted(os.listdir(tmp_path / "out"))
    assert len(out) > 3
    assert all(path.stat().st_size <= 8 << 10 for path in out)
    assert seen == [(i, 30) for i in range(1, 31)]
    packed = open_source(tmp_path / "out", labels=True, max_bad_fraction=0)
    same(source, packed)
    assert inside(packed) == names(source)
    assert packed.classes == source.classes
    np.testing.assert_array_equal(packed.labels, source.labels)
    assert not packed.skipped
    # What other programs see.
    with tarfile.open(out[0]) as file:
        first, label = file.getmembers()[:2]
        assert (first.name, label.name) == ("class0/0000.jpg", "class0/0000.cls")
        assert (first.mtime, first.uid, first.gid, first.mode) == (0, 0, 0, 0o644)
        content = file.extractfile(label)
        assert content is not None
        assert content.read() == b"class0"
    bytes_ = [path.read_bytes() for path in out]
    os.utime(root / "class0" / "0000.jpg", (1, 1))
    again = pack(open_source(root, labels=True), tmp_path / "again", shard_bytes=8 << 10)
    assert [path.read_bytes() for path in again] == bytes_
    # Shards of shards are cut anew and are otherwise the same.
    whole = pack(packed, tmp_path / "whole", shard_bytes=1 << 30)
    assert len(whole) == 1
    cut = pack(open_source(whole[0], labels=True), tmp_path / "cut", shard_bytes=8 << 10)
    assert [path.read_bytes() for path in cut] == bytes_


def joined(source: Source, world: int, threads: int, step: int) -> list[torch.Tensor]:
    """What the ranks see of one step."""
    settings = {"batch": 8, "seed": 3, "mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    batches: list[Batch] = [
        Loader(
            source, VIEWS, **settings, rank=rank, world=world, threads=threads, ram_bytes=0
        ).batch(step)
        for rank in range(world)
    ]
    parts = [[*batch.views, batch.boxes, batch.index, batch.key.position] for batch in batches]
    return [torch.cat(part) for part in zip(*parts, strict=True)]


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("threads", [1, 2])
def test_training_sees_the_same(photos: Photos, tmp_path: Path, world: int, threads: int) -> None:
    folder = open_source(photos(20, classes=2))
    pack(folder, tmp_path / "out", shard_bytes=8 << 10)
    packed = open_source(tmp_path / "out")
    for step in (0, 3):
        wanted = joined(folder, 1, 1, step)
        assert all(map(torch.equal, joined(packed, world, threads, step), wanted))


def test_odd_names_survive(tmp_path: Path, jpeg: Jpeg) -> None:
    long = b"/".join([b"d" * 60] * 4)
    wanted = [b"\xff/\xfe.jpg", b"a b/c\nd.jpg", long + b"/e.jpg", long + b"/\xff.jpg"]
    wanted += ["é/😀.jpg".encode(), b"x" * 96 + b".jpg", b"x" * 97 + b".jpg", b"v1.2.jpg"]
    for number, name in enumerate(wanted):
        path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/in/" + name))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(number))
    source = open_source(tmp_path / "in")
    [shard] = pack(source, tmp_path / "out")
    packed = open_source(tmp_path / "out")
    same(source, packed)
    assert inside(packed) == names(source)
    with tarfile.open(shard, errors="surrogateescape") as file:
        assert file.getnames() == names(source)


def test_names_that_cannot_stay(tmp_path: Path, jpeg: Jpeg) -> None:
    root = tmp_path / "in"
    (root / ".store").mkdir(parents=True)
    stored = [".store/.a.jpg", "b", "c.jpg", "c.png", "c-3.png", "d.dat", "e.jpg", "e.json.jpg"]
    for number, name in enumerate(stored):
        (root / name).write_bytes(jpeg(number))
    listed = [*stored, str(root / "c.jpg"), "../in/c.jpg"]
    rows = [f"{name},{number % 3}" for number, name in enumerate(listed)]
    (root / "list.csv").write_text("path,label\n" + "\n".join(rows))
    source = open_source(root / "list.csv", labels=True)
    pack(source, tmp_path / "out")
    packed = open_source(tmp_path / "out", labels=True, max_bad_fraction=0)
    same(source, packed)
    np.testing.assert_array_equal(packed.labels, source.labels)
    assert inside(packed)[:8] == [
        *("store/a.jpg", "b.jpg", "c.jpg", "c-3.png", "c-3-4.png", "d.dat.jpg", "e.jpg"),
        "e.json.jpg",
    ]
    assert inside(packed)[8:] == [str(root / "c.jpg")[1:], "in/c.jpg"]


def test_packed_arrays(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (12, 8, 9, 3), np.uint8)
    labels = np.arange(12) % 3
    for classes, kept in {
        ("b", "a", "c"): ("a", "b", "c"),
        ("b", "b", "c"): ("0", "1", "2"),
        ("b", "", "c"): ("0", "1", "2"),
        ("b\n", "a", "c"): ("0", "1", "2"),
    }.items():
        np.savez(tmp_path / "a.npz", images=images, labels=labels, classes=np.array(classes))
        source = open_source(tmp_path / "a.npz")
        pack(source, tmp_path / "out")
        packed = open_source(tmp_path / "out", labels=True)
        assert packed.classes == kept
        for i in range(12):
            np.testing.assert_array_equal(packed.read(i), images[i])
            number = classes.index("b") if kept[0] == "a" else 0
            assert (packed.labels[i] == packed.labels[number]) == (labels[i] == labels[number])
        assert inside(packed)[11] == "00000011.png"
        shutil.rmtree(tmp_path / "out")
    part = open_source(images).subset([5, 2, 5])
    pack(part, tmp_path / "part")
    packed = open_source(tmp_path / "part")
    assert packed.labels is None
    for i, number in enumerate([5, 2, 5]):
        np.testing.assert_array_equal(packed.read(i), images[number])


def test_bad_files_are_not_packed(photos: Photos, tmp_path: Path) -> None:
    root = photos(6)
    (root / "0001.jpg").write_bytes(b"")
    source = open_source(root)
    pack(source, tmp_path / "out")
    same(source, open_source(tmp_path / "out", max_bad_fraction=0))


def test_a_file_that_goes_bad_ends_it(photos: Photos, tmp_path: Path) -> None:
    root = photos(4)
    source = open_source(root)
    status = (root / "0002.jpg").stat()
    data = bytearray((root / "0002.jpg").read_bytes())
    data[-5] ^= 1
    (root / "0002.jpg").write_bytes(data)
    # Even where size and time say that nothing has happened.
    os.utime(root / "0002.jpg", ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(DataError, match=r"0002.jpg can no longer be read: changed since"):
        pack(source, tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == ["cache", "photos"]


def test_out_must_be_new_or_empty(photos: Photos, tmp_path: Path) -> None:
    source = open_source(photos(2))
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "empty", target_is_directory=True)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="file is not a folder; choose a new one"):
        pack(source, tmp_path / "file")
    with pytest.raises(ConfigError, match="photos is not empty; choose a new folder"):
        empty_folder(tmp_path / "photos")
    [shard] = pack(source, tmp_path / "link")
    assert shard == tmp_path / "link" / "shard-000000.tar"
    assert len(open_source(tmp_path / "empty")) == 2
    assert len(pack(source, tmp_path / "new" / "deep")) == 1


def test_a_full_disk(photos: Photos, tmp_path: Path) -> None:
    source = open_source(photos(40))
    (tmp_path / "out").mkdir()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16 << 10, before[1]))
    try:
        with pytest.raises(StorageError, match="out cannot be written: File too large; nothing"):
            pack(source, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert sorted(os.listdir(tmp_path)) == ["cache", "out", "photos"]
    assert os.listdir(tmp_path / "out") == []


def test_shards_are_not_put_into_the_data(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(data / "1.png")
    with pytest.raises(ConfigError, match="lies inside the data; choose a place outside"):
        pack(open_source(data), data / "shards")
    assert [path.name for path in data.iterdir()] == ["1.png"]


def test_labels_without_names_are_packed_as_numbers(tmp_path):
    images = np.zeros((3, 8, 8, 3), np.uint8)
    pack(Arrays("x", images, np.array([0, 1, 0])), tmp_path / "shards")
    packed = open_source(tmp_path / "shards", labels=True)
    assert packed.classes == ("0", "1")
    assert packed.labels.tolist() == [0, 1, 0]
