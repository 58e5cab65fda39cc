"""No tar file does harm: each gives its images, or one line."""

import io
import os
import tarfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tars import END, Jpeg, digests, filled, header, names, reasons, tar

from selfsight.data import open_source
from selfsight.data.pack import pack
from selfsight.errors import DataError


def test_names_lead_nowhere(tmp_path: Path, jpeg: Jpeg) -> None:
    wanted = ["../up.jpg", "/etc/top.jpg", "a/../../b.jpg", "a\nb.jpg"]
    (tmp_path / "in").mkdir()
    (tmp_path / "up.jpg").write_bytes(b"not this one")
    path = tar(tmp_path / "in" / "a.tar", [(name, jpeg(i)) for i, name in enumerate(wanted)])
    source = open_source(path)
    assert [source.content(i) for i in range(4)] == [jpeg(i) for i in range(4)]
    assert sorted(os.listdir(tmp_path)) == ["cache", "in", "up.jpg"]
    pack(source, tmp_path / "out")
    packed = open_source(tmp_path / "out")
    inside = [name.partition("/")[2] for name in names(packed)]
    assert inside == ["up.jpg", "etc/top.jpg", "a/b.jpg", "a\nb.jpg"]


def test_what_is_no_image_is_left_alone(tmp_path: Path, jpeg: Jpeg) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as file:
        for name, kind in {
            "dir.jpg": tarfile.DIRTYPE,
            "hard.jpg": tarfile.LNKTYPE,
            "soft.jpg": tarfile.SYMTYPE,
            "char.jpg": tarfile.CHRTYPE,
            "block.jpg": tarfile.BLKTYPE,
            "pipe.jpg": tarfile.FIFOTYPE,
        }.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            file.addfile(info)
        for name in ("1.jpg", "1.jpg", "._1.jpg", ".x/2.jpg", "3.bin"):
            info = tarfile.TarInfo(name)
            info.size = len(jpeg(0))
            file.addfile(info, io.BytesIO(jpeg(0)))
    source = open_source(path, max_bad_fraction=0)
    # What has no image's name is known by its content.
    assert names(source) == ["a.tar/1.jpg", "a.tar/3.bin"]
    links = dict.fromkeys(["a.tar/hard.jpg", "a.tar/soft.jpg"], "a link")
    devices = ["a.tar/char.jpg", "a.tar/block.jpg", "a.tar/pipe.jpg"]
    assert reasons(source) == {
        **links,
        **dict.fromkeys(devices, "not a regular file"),
        "a.tar/1.jpg": "the name of an earlier member",
    }


def test_pickles_are_never_loaded(tmp_path: Path, jpeg: Jpeg) -> None:
    import pickle

    class Trap:
        def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
            return os.mkdir, (str(tmp_path / "sprung"),)

    trap = pickle.dumps(Trap())
    suffixes = ["pyd", "pkl", "pickle", "pth", "cls", "json", "npy", "jpg"]
    entries = [("0.jpg", jpeg(0)), *((f"0.{suffix}", trap) for suffix in suffixes[:-1])]
    entries += [(f"{i}.{suffix}", trap) for i, suffix in enumerate(suffixes, 1)]
    source = open_source(tar(tmp_path / "a.tar", entries), labels=None)
    assert names(source) == ["a.tar/0.jpg"]
    assert reasons(source)["a.tar/8.jpg"].startswith("not an image of a known format")
    source.read(0)
    assert not (tmp_path / "sprung").exists()


def test_sparse_members(tmp_path: Path, jpeg: Jpeg) -> None:
    data = jpeg(0)
    more = header(b"a.jpg", len(data), b"S", magic=b"ustar  \0")
    more = bytearray(more[:482] + b"\1" + more[483:])
    more[148:156] = b"%06o\0 " % (sum(more[:148]) + 256 + sum(more[156:]))
    chained = bytes(504) + b"\1" + bytes(7) + bytes(512)
    words = b"22 GNU.sparse.major=1\n"
    blocks = [bytes(more), chained, filled(data), header(b"b.jpg", len(data)), filled(data)]
    blocks += [header(b"x", len(words), b"x"), filled(words), header(b"c.jpg", len(data))]
    blocks += [filled(data), header(b"d.jpg", len(data)), filled(data)]
    (tmp_path / "a.tar").write_bytes(b"".join(blocks) + END)
    source = open_source(tmp_path / "a.tar", max_bad_fraction=0)
    assert names(source) == ["a.tar/b.jpg", "a.tar/d.jpg"]
    assert set(reasons(source).values()) == {"a sparse member"}


def test_a_truncated_shard(tmp_path: Path, jpeg: Jpeg) -> None:
    whole = tar(tmp_path / "whole.tar", [(f"{i}.jpg", jpeg(i)) for i in range(4)])
    data = whole.read_bytes()
    with tarfile.open(whole) as file:
        offsets = [info.offset for info in file] + [file.offset]
    source = open_source(whole)
    for end in range(offsets[1], offsets[4] + 1, 128):
        path = tmp_path / f"{end}.tar"
        path.write_bytes(data[:end])
        part = open_source(path)
        # A member that lacks only its padding is whole.
        complete = sum(offsets[i] + 512 + len(jpeg(i)) <= end for i in range(4))
        assert digests(part) == digests(source)[:complete]
        [skip] = part.skipped
        torn = any(offsets[i] < end < offsets[i] + 512 + len(jpeg(i)) for i in range(4))
        wanted = f"truncated at byte {end:,}, inside" if torn else "has no end mark"
        assert (skip.path, skip.reason.startswith(wanted)) == (path.name, True), skip
        if torn:
            with pytest.raises(DataError, match="truncated at byte"):
                open_source(path, max_bad_fraction=0)


def test_joined_shards_are_told(tmp_path: Path, jpeg: Jpeg) -> None:
    one = tar(tmp_path / "1.tar", [("1.jpg", jpeg(1))]).read_bytes()
    (tmp_path / "1.tar").write_bytes(one + one)
    [skip] = open_source(tmp_path / "1.tar").skipped
    assert "more follows its end" in skip.reason


def test_what_is_no_tar_file(tmp_path: Path, jpeg: Jpeg) -> None:
    import gzip

    whole = tar(tmp_path / "whole.tar", [("a.jpg", jpeg(0))]).read_bytes()
    cases = {
        "empty": (b"", "an empty file"),
        "zeros": (bytes(10240), "is empty"),
        "photo": (jpeg(0), "not a tar file"),
        "noise": (np.random.default_rng(0).bytes(5000), "not a tar file"),
        "text": (b"all work and no play\n" * 99, "not a tar file"),
        "short": (whole[:100], "truncated at byte 100, inside a header"),
        "packed": (gzip.compress(whole), "not a tar file|compressed by gzip"),
        "zipped": (gzip.compress(np.random.default_rng(0).bytes(5000)), "compressed by gzip"),
    }
    for name, (data, reason) in cases.items():
        (tmp_path / f"{name}.tar").write_bytes(data)
        with pytest.raises(DataError, match=reason) as error:
            open_source(tmp_path / f"{name}.tar")
        assert "\n" not in str(error.value)
    (tmp_path / "a.tgz").write_bytes(b"")
    with pytest.raises(DataError, match="not compressed"):
        open_source(tmp_path / "a.tgz")


def pax(words: bytes) -> bytes:
    return header(b"x", len(words), b"x") + filled(words)


HOSTILE = {
    "negative size": header(size=b"\xff" * 12),
    "minus": header(size=b"-0000000001\0"),
    "letters": header(size=b"12g45678901\0"),
    "underscore": header(size=b"0000000_001\0"),
    "huge": header(size=0o77777777777),
    "huger": header(size=b"\x80" + b"\xff" * 11),
    "beyond the file": header(size=10_000),
    "wrong sum": header(sum_=7),
    "no sum": header()[:148] + b"        " + header()[156:],
    "huge name": header(b"x", 1 << 30, b"L"),
    "endless name": header(b"x", b"\x80" + b"\xff" * 11, b"L"),
    "huge pax": header(b"x", b"\x80" + b"\xff" * 11, b"x"),
    "pax without length": pax(b"path=a.jpg\n"),
    "pax of length 0": pax(b"0 path=a.jpg\n"),
    "pax of length 3": pax(b"3 path=a.jpg\n"),
    "pax beyond itself": pax(b"9999999 path=a.jpg\n"),
    "pax of many digits": pax(b"9" * 100_000 + b" path=a.jpg\n"),
    "pax without a line's end": pax(b"15 path=a.jpg\0\n"),
    "pax of negative size": pax(b"12 size=-12\n") + header(),
    "pax of huge size": pax(b"25 size=9999999999999999\n") + header(),
    "pax of endless size": pax(b"100009 size=" + b"9" * 99_996 + b"\n") + header(),
    "pax of no size": pax(b"8 size=\n") + header(),
    "pax and no more": pax(b"14 path=a.jpg\n"),
    "sparse for ever": (lambda b: b[:482] + b"\1" + b[483:])(header(kind=b"S")),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_headers(tmp_path: Path, jpeg: Jpeg, name: str) -> None:
    data = jpeg(0)
    good = header(b"good.jpg", len(data)) + filled(data)
    path = tmp_path / "a.tar"
    path.write_bytes(good + HOSTILE[name] + good.replace(b"good", b"late") + END)
    tracemalloc.start()
    try:
        source = open_source(path)
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()
    assert names(source)[0] == "a.tar/good.jpg"
    assert source.skipped
    assert all(skip.reason and "\n" not in skip.reason for skip in source.skipped)
    path.write_bytes(HOSTILE[name] + END)
    with pytest.raises(DataError) as error:
        open_source(path)
    assert "\n" not in str(error.value)


def test_long_chains_take_no_long_time(tmp_path: Path, jpeg: Jpeg) -> None:
    data, started = jpeg(0), time.monotonic()
    last = header(b"a.jpg", len(data)) + filled(data) + END
    path = tmp_path / "a.tar"
    # Each would be one more call on the stack of a reader that calls itself.
    path.write_bytes(pax(b"13 comment=a\n") * 5_000 + last)
    assert names(open_source(path)) == ["a.tar/a.jpg"]
    path.write_bytes((header(b"x", 2, b"L") + filled(b"b\0")) * 5_000 + last)
    assert names(open_source(path)) == ["a.tar/b"]
    path.write_bytes(b"".join(header(b"%d.txt" % i) for i in range(5_000)) + last)
    source = open_source(path)
    assert (len(source), len(source.skipped)) == (1, 5_000)
    path.write_bytes(b"".join(header(b"%d.jpg" % i) for i in range(2_000)) + last)
    with pytest.raises(DataError, match=r"2000 of 2001 .* a.tar/0.jpg \(an empty file\)"):
        open_source(path)
    assert time.monotonic() - started < 20


def test_a_hole_of_many_gigabytes(tmp_path: Path, jpeg: Jpeg) -> None:
    path = tar(tmp_path / "a.tar", [("1.jpg", jpeg(1))])
    os.truncate(path, 1 << 38)
    assert len(open_source(path)) == 1
    first = header(b"1.jpg", len(jpeg(1))) + filled(jpeg(1))
    large = header(b"2.jpg", b"\x80" + (1 << 34).to_bytes(11))
    path.unlink()
    path.write_bytes(first + large)
    os.truncate(path, 1 << 38)
    source = open_source(path)
    assert names(source) == ["a.tar/1.jpg"]
    assert reasons(source)["a.tar/2.jpg"].startswith("larger than")


@pytest.mark.parametrize("seed", range(3))
def test_any_flipped_bytes(tmp_path: Path, jpeg: Jpeg, seed: int) -> None:
    """Whatever a damaged shard gives is an image of it, or one line."""
    entries = [(f"class/{'long' * 30}/{i}.jpg", jpeg(i)) for i in range(3)]
    entries += [(f"class/{'long' * 30}/{i}.cls", b"a") for i in range(3)]
    whole = tar(tmp_path / "a.tar", entries).read_bytes()
    rng = np.random.default_rng(seed)
    for _ in range(40):
        data = bytearray(whole)
        for place in rng.integers(0, len(data) // 512, 3) * 512 + rng.integers(0, 512, 3):
            data[place] = rng.integers(256)
        (tmp_path / "a.tar").write_bytes(data)
        try:
            source = open_source(tmp_path / "a.tar", max_bad_fraction=1, labels=None)
        except DataError as error:
            assert "\n" not in str(error)
        else:
            assert all(source.content(i) in data for i in range(len(source)))
