"""The demo: its text, its picture, and (at length) its promise."""

import json

import numpy as np
import pytest
from PIL import Image

from selfsight import demo
from selfsight.data.base import Arrays
from selfsight.features import Features


def test_a_small_demo_says_all_it_promises(tmp_path, monkeypatch):
    monkeypatch.setitem(demo.RECIPE, "epochs", 1)
    monkeypatch.setitem(demo.SYNTHETIC, "train", 256)
    monkeypatch.setitem(demo.SYNTHETIC, "test", 96)
    result = demo.run(tmp_path / "run", quiet=True)
    text = str(result)
    for part in ("raw pixels", "untrained", "trained", "96 held-out images", "Verdict", "[", "h: "):
        assert part in text
    for path in (result.path, result.path / "model", result.sheet):
        assert path.exists()
        assert str(path) in text
    assert "pretrain photos/ --out runs/photos" in text
    for name, report in result.reports.items():
        row = next(line for line in text.splitlines() if line.startswith(name))
        assert all("  ".join(report[probe].shown()) in row for probe in ("knn", "linear"))
        assert report["linear"].metric == "accuracy"
    facts = json.loads(json.dumps(result.json()))
    assert list(facts["results"]) == ["raw pixels", "untrained", "trained"]
    record = json.loads((result.path / "run.json").read_text())
    assert record["config"]["view"] == {"blur": 0.0, "gray": 0.5}
    assert "knn" not in (result.path / "metrics.jsonl").read_text()  # it saw no label
    with Image.open(result.sheet) as sheet:
        assert sheet.width > 1000


def test_a_demo_never_takes_the_place_of_another(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(demo._free(None)) == "runs/demo"
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    assert str(demo._free(None)) == "runs/demo-2"


def test_the_sheet_shows_the_nearest_first_and_frames_the_class():
    shades = np.array([10, 200, 12, 90], np.uint8)
    images = np.broadcast_to(shades[:, None, None, None], (4, 8, 8, 3))
    labels = np.array([0, 1, 0, 1])
    angles = np.array([0.0, 1.5, 0.1, 0.8])
    found = Features(np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32), labels)
    source = Arrays("test", images, labels, ("a", "b"))
    sheet = np.asarray(demo.neighbour_sheet(source, {"angle": found}, queries=1, neighbours=3))
    middle = 18 + 32
    assert [int(sheet[middle, x, 0]) for x in (32, 112, 176, 240)] == [10, 12, 90, 200]
    frame = [tuple(int(v) for v in sheet[middle, x]) for x in (80, 144, 208)]
    assert frame == [(0, 255, 0), (90, 90, 90), (200, 200, 200)]


@pytest.mark.heavy
def test_training_adds_25_points_of_knn_to_either_control(tmp_path):
    result = demo.run(tmp_path / "run", seed=7, quiet=True)
    knn = {name: report["knn"].value for name, report in result.reports.items()}
    assert knn["trained"] > knn["raw pixels"] + 0.25
    assert knn["trained"] > knn["untrained"] + 0.25
    assert {v.state for v in result.verdict.values()} == {"healthy"}
