"""Photos much larger than the views are reduced once, told, recorded and held to."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import selfsight
from selfsight.data import decode
from selfsight.errors import ConfigError

SMALL = {
    "encoder": "test_resnet",
    "size": 32,
    "batch": 4,
    "epochs": 1,
    "precision": "fp32",
    "options": {"dim": 8},
}


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for i, (height, width) in enumerate([(96, 128), (120, 90), (64, 80), (40, 60)] * 2):
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.jpg")
    return tmp_path


def record(run):
    return json.loads((Path(run.path) / "run.json").read_text())


def test_large_photos_are_reduced_once_and_the_run_says_so(folder, tmp_path_factory, capsys):
    cache, out = tmp_path_factory.mktemp("cache"), tmp_path_factory.mktemp("out")
    run = selfsight.pretrain(folder, out=out / "a", cache=cache, **SMALL)
    kept = sorted((cache / "reduced" / "64").rglob("*.jpg"))
    # Twice the views' side: the photos of 96 and 90 px are larger, those of 64 and 40 are not.
    assert len(kept) == 4
    assert {min(decode(path).shape[:2]) for path in kept} == {64}
    told = capsys.readouterr().err
    assert f"4 photos to a short side of 64 px, kept in {cache}/reduced/64; --whole" in told
    assert record(run)["data"]["reduced"] == 64

    times = [path.stat().st_mtime_ns for path in kept]
    again = selfsight.pretrain(folder, out=out / "b", cache=cache, **SMALL)
    assert [path.stat().st_mtime_ns for path in kept] == times
    losses = [(Path(r.path) / "metrics.jsonl").read_text() for r in (run, again)]
    assert losses[0] == losses[1]


def test_whole_reads_them_as_they_are(folder, tmp_path_factory, capsys):
    cache, out = tmp_path_factory.mktemp("cache"), tmp_path_factory.mktemp("out")
    run = selfsight.pretrain(folder, out=out / "a", cache=cache, whole=True, **SMALL)
    assert not (cache / "reduced").exists()
    assert "short side" not in capsys.readouterr().err
    assert record(run)["data"]["reduced"] is None


def test_a_run_is_not_resumed_on_other_pixels(folder, tmp_path_factory):
    cache, out = tmp_path_factory.mktemp("cache"), tmp_path_factory.mktemp("out")
    selfsight.pretrain(folder, out=out / "a", cache=cache, quiet=True, **SMALL)
    said = "large photos were reduced to 64 px, are read whole"
    with pytest.raises(ConfigError, match=said):
        selfsight.pretrain(
            folder, out=out / "a", cache=cache, whole=True, resume=True, quiet=True, **SMALL
        )
    selfsight.resume(out / "a", quiet=True)


def test_a_run_by_time_takes_the_same_encoder(folder, tmp_path_factory):
    """What is chosen by the images' size is chosen by that of the photos."""
    cache, out = tmp_path_factory.mktemp("cache"), tmp_path_factory.mktemp("out")
    settings = {**SMALL, "encoder": None, "epochs": None}
    run = selfsight.pretrain(folder, out=out / "a", cache=cache, time="1s", quiet=True, **settings)
    assert record(run)["config"]["encoder"] == "resnet18"
