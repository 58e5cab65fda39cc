"""Images in tar files are found where they lie, with their labels, once."""

import io
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from tars import END, Jpeg, Photos, digests, filled, header, names, reasons, tar

from selfsight.data import Undecodable, evaluation_split, files, open_source, shards
from selfsight.errors import DataError


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_formats(tmp_path: Path, jpeg: Jpeg, kind: int) -> None:
    long = "/".join(["folder" * 8] * 3) + "/long.jpg"
    wanted = ["cat/1.jpg", long, "dog/é.jpg", os.fsdecode(b"dog/\xff.jpg"), "z.jpg"]
    entries = [(name, jpeg(number)) for number, name in enumerate(wanted)]
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=kind, errors="surrogateescape") as file:
        for name, data in entries:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 1.5
            file.addfile(info, io.BytesIO(data))
    source = open_source(path)
    assert names(source) == [f"a.tar/{name}" for name in wanted]
    assert [source.content(i) for i in range(5)] == [data for _, data in entries]
    assert not source.skipped
    for i, (_, data) in enumerate(entries):
        np.testing.assert_array_equal(source.read(i), files.decode(data))
        assert source.read(i).shape == (*source.sizes[i], 3)
        assert source.format(i) == "JPEG"


def test_the_oldest_format_and_signed_sums(tmp_path: Path, jpeg: Jpeg) -> None:
    data = jpeg(0)
    old = header(b"old.jpg", len(data), b"\0", magic=b"")
    name = "é.jpg".encode()
    whole = header(name, len(data))
    signed = sum(whole[:148]) + 256 + sum(whole[156:]) - 256 * sum(b > 127 for b in whole)
    blocks = [old, filled(data), header(name, len(data), sum_=signed), filled(data)]
    (tmp_path / "a.tar").write_bytes(b"".join(blocks) + END)
    assert names(open_source(tmp_path / "a.tar")) == ["a.tar/old.jpg", "a.tar/é.jpg"]


def test_a_size_in_base_256_or_in_a_pax_header(tmp_path: Path, jpeg: Jpeg) -> None:
    data = jpeg(0)
    large = b"\x80" + len(data).to_bytes(11)
    words = b"%d size=%d\n" % (len(b"11 size=999\n"), len(data))
    blocks = [header(b"a.jpg", large), filled(data)]
    blocks += [header(b"x", len(words), b"x"), filled(words), header(b"b.jpg"), filled(data)]
    (tmp_path / "a.tar").write_bytes(b"".join(blocks) + END)
    source = open_source(tmp_path / "a.tar")
    assert names(source) == ["a.tar/a.jpg", "a.tar/b.jpg"]
    assert [source.content(0), source.content(1)] == [data, data]


def test_a_folder_of_shards(tmp_path: Path, jpeg: Jpeg) -> None:
    root = tmp_path / "set"
    tar(root / "b.tar", [("2.jpg", jpeg(2)), ("1.jpg", jpeg(1))])
    tar(root / "a.tar", [("9.jpg", jpeg(9))])
    tar(root / "deep" / "c.TAR", [("./1.jpg", jpeg(3))])
    tar(root / ".hidden.tar", [("1.jpg", jpeg(4))])
    (root / "index.json").write_text("{}")
    seen: list[tuple[int, int]] = []
    source = open_source(root, max_bad_fraction=0, progress=lambda *at: seen.append(at))
    assert names(source) == ["a.tar/9.jpg", "b.tar/2.jpg", "b.tar/1.jpg", "deep/c.TAR/1.jpg"]
    assert reasons(source) == {"index.json": "neither a shard nor an image"}
    assert seen[-1] == (4, 4)
    copied = shutil.copytree(root, tmp_path / "copy", copy_function=shutil.copyfile)
    assert open_source(copied).fingerprint == source.fingerprint
    tar(copied / "a.tar", [("9.jpg", jpeg(8))])
    assert open_source(copied).fingerprint != source.fingerprint


def test_tars_beside_images_are_left_alone(photos: Photos, jpeg: Jpeg) -> None:
    root = photos(3)
    tar(root / "unpacked.tar", [("0000.jpg", jpeg(0))])
    source = open_source(root, max_bad_fraction=0)
    assert names(source) == ["0000.jpg", "0001.jpg", "0002.jpg"]
    assert reasons(source) == {"unpacked.tar": "a tar file beside images; open it by its name"}
    assert len(open_source(root / "unpacked.tar")) == 1


def test_webdataset_conventions(tmp_path: Path, jpeg: Jpeg) -> None:
    entries = []
    for number in range(4):
        entries += [(f"{number:04}.cls", b"%d" % (10 - number)), (f"{number:04}.jpg", jpeg(number))]
        entries += [(f"{number:04}.json", b"{}"), (f"{number:04}.txt", b"a cat")]
    entries += [("0004.left.jpg", jpeg(5)), ("0004.cls", b"9\n"), ("lone.json", b"[]")]
    source = open_source(tar(tmp_path / "a.tar", entries), labels=True, max_bad_fraction=0)
    assert [Path(name).name for name in names(source)] == [
        *(f"{number:04}.jpg" for number in range(4)),
        "0004.left.jpg",
    ]
    assert source.classes == ("7", "8", "9", "10")
    np.testing.assert_array_equal(source.labels, [3, 2, 1, 0, 2])
    assert reasons(source) == {"a.tar/lone.json": "not an image"}


def test_labels(tmp_path: Path, jpeg: Jpeg) -> None:
    folders = tar(tmp_path / "a.tar", [("dog/1.jpg", jpeg(1)), ("cat/deep/2.jpg", jpeg(2))])
    source = open_source(folders, labels=True)
    assert source.classes == ("cat", "dog")
    np.testing.assert_array_equal(source.labels, [1, 0])
    assert open_source(folders).labels is None
    # One label anywhere, and folders mean nothing.
    root = tmp_path / "set"
    tar(root / "0.tar", [("x/1.jpg", jpeg(1)), ("x/1.cls", "Käfer".encode())])
    tar(root / "1.tar", [("x/1.jpg", jpeg(2))])
    with pytest.raises(DataError, match=r"1 of 2 images, .* 1.tar/x/1.jpg; write .* KEY.cls"):
        open_source(root, labels=True)
    assert open_source(root, labels=None).labels is None
    trap = b"\x80\x04K\x07."
    for text in (b"", b"two\nlines", b"\0", trap, b"x" * 5000):
        tar(root / "1.tar", [("x/1.jpg", jpeg(2)), ("x/1.cls", text)])
        assert open_source(root, labels=None).labels is None
        assert reasons(open_source(root)) == {"1.tar/x/1.cls": "not a label in one line of text"}
    tar(root / "1.tar", [("x/1.jpg", jpeg(2)), ("x/1.cls", b"Ameise\r\n")])
    assert open_source(root, labels=True).classes == ("Ameise", "Käfer")


def test_the_split_that_shards_declare(tmp_path: Path, jpeg: Jpeg) -> None:
    for part, first in {"train": 0, "val": 20}.items():
        entries = [(f"c{i % 2}/{i}.jpg", jpeg(first + i)) for i in range(4)]
        tar(tmp_path / "set" / part / "0.tar", entries)
    train, test = evaluation_split(tmp_path / "set")
    assert (len(train), len(test), train.classes) == (4, 4, ("c0", "c1"))


def test_headers_are_read_once(tmp_path: Path, jpeg: Jpeg, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tar(tmp_path / "a.tar", [(f"{i}.jpg", jpeg(i)) for i in range(3)])
    first = open_source(path)
    walked: list[object] = []
    monkeypatch.setattr(shards, "_walk", lambda *shard: walked.append(shard) or iter(()))
    again = open_source(path)
    assert names(again) == names(first)
    assert again.fingerprint == first.fingerprint
    assert digests(again) == digests(first)
    assert isinstance(again._found.members.base, np.memmap)
    np.testing.assert_array_equal(again.read(2), first.read(2))
    assert not walked
    os.utime(path, (1, 1))
    with pytest.raises(DataError, match="is empty"):
        open_source(path)
    assert walked


def test_a_shard_that_changed_is_not_what_was_opened(tmp_path: Path, jpeg: Jpeg) -> None:
    path = tar(tmp_path / "a.tar", [("1.jpg", jpeg(7)), ("2.jpg", jpeg(14))])
    source = open_source(path)
    shown = source.read(0)
    os.utime(path, (1, 1))
    np.testing.assert_array_equal(source.read(0), shown)
    data = bytearray(path.read_bytes())
    data[600] ^= 1
    path.write_bytes(data)
    with pytest.raises(Undecodable, match="changed since"):
        source.read(0)
    assert source.read(1).shape == (*source.sizes[1], 3)
    os.truncate(path, 1500)
    with pytest.raises(Undecodable, match="changed since the data set was opened: the shard is"):
        source.read(1)
    path.unlink()
    with pytest.raises(Undecodable, match="No such file"):
        source.read(1)
    os.mkfifo(path)
    with pytest.raises(Undecodable, match="not a regular file"):
        source.read(1)


def test_reading_from_many_threads(tmp_path: Path, jpeg: Jpeg) -> None:
    from concurrent.futures import ThreadPoolExecutor

    count = len(os.listdir("/dev/fd"))
    source = open_source(tar(tmp_path / "a.tar", [(f"{i}.jpg", jpeg(i)) for i in range(20)]))
    order = np.random.default_rng(0).integers(0, 20, 400).tolist()
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(source.content, order)) == [jpeg(i) for i in order]
    assert len(os.listdir("/dev/fd")) <= count
