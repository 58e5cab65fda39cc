"""selfsight pack, from the words to the exit code."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from selfsight.cli import main
from selfsight.data import open_source, pack

Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SELFSIGHT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    noise = np.random.default_rng(0).integers(0, 256, (8, 300, 300, 3), np.uint8)
    for number, pixels in enumerate(noise):
        place = folder / ("cat", "dog")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / f"{number}.png")
    return folder


def words(photos: Path, out: Path, *more: str) -> list[str]:
    return ["pack", str(photos), "--out", str(out), *more]


def test_pack(photos: Path, tmp_path: Path, capsys: Captured) -> None:
    out = tmp_path / "deep" / "shards"
    (photos / "notes.txt").write_text("no image")
    assert main(words(photos, out, "--shard-size", "1")) == 0
    told = capsys.readouterr()
    assert told.out == f"{out}\n"
    assert "8 images in 3 shards, labels of 2 classes\n1 file left out" in told.err
    assert sorted(os.listdir(out)) == [f"shard-00000{i}.tar" for i in range(3)]
    assert all(path.stat().st_size <= 1 << 20 for path in out.iterdir())
    packed = open_source(out, labels=True)
    assert packed.classes == ("cat", "dog")
    assert main(["check", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["classes"] == {"cat": 4, "dog": 4}


def test_json(photos: Path, tmp_path: Path, capsys: Captured) -> None:
    out = tmp_path / "shards"
    assert main(words(photos / "cat", out, "--json")) == 0
    assert json.loads(capsys.readouterr().out) == {
        "out": str(out),
        "images": 4,
        "shards": ["shard-000000.tar"],
        "classes": [],
        "skipped": 0,
    }
    assert open_source(out).labels is None


def test_labels_that_are_missing(photos: Path, tmp_path: Path, capsys: Captured) -> None:
    assert main(words(photos / "cat", tmp_path / "shards", "--labels")) == 2
    assert "has no label for 4 of 4 images" in capsys.readouterr().err
    assert not (tmp_path / "shards").exists()


def test_out_that_is_taken(
    photos: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Told before anything is opened.
    monkeypatch.setattr("selfsight.data.sources.open_source", None)
    assert main(words(photos, photos)) == 2
    expected = f"selfsight pack: --out {photos} is not empty; choose a new folder\n"
    assert capsys.readouterr().err == expected
    assert main(words(photos, photos / "cat" / "0.png")) == 2
    assert "is not a folder" in capsys.readouterr().err


def test_too_many_bad_files(photos: Path, tmp_path: Path, capsys: Captured) -> None:
    for number in (0, 2):
        (photos / "cat" / f"{number}.png").write_bytes(b"")
    assert main(words(photos, tmp_path / "shards")) == 2
    assert "2 of 8 image files cannot be used" in capsys.readouterr().err
    assert main(words(photos, tmp_path / "shards", "--max-bad-fraction", "0.5")) == 0
    assert len(open_source(tmp_path / "shards", max_bad_fraction=0)) == 6


def test_a_full_disk(
    photos: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(number: int) -> None:
        raise OSError(28, "No space left on device")

    main(["check", str(photos)])
    capsys.readouterr()
    monkeypatch.setattr(pack.os, "fsync", full)
    assert main(words(photos, tmp_path / "shards")) == 74
    assert capsys.readouterr().err.endswith(
        f"selfsight pack: {tmp_path / 'shards'} cannot be written: No space left on device; "
        "nothing of it is kept\n"
    )
    assert sorted(os.listdir(tmp_path)) == ["cache", "photos"]


def test_ctrl_c(
    photos: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pack, "_member", stopped)
    assert main(words(photos, tmp_path / "shards")) == 130
    assert capsys.readouterr().err.endswith("interrupted\n")
    assert sorted(os.listdir(tmp_path)) == ["cache", "photos"]
