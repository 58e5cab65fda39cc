"""The trajectories from a bad temperature on 60 drawn images, and their page."""

import json
import xml.etree.ElementTree as ET
from dataclasses import replace

import learn
import numpy as np
import pytest
import torch
import trajectories
import trajectories_page
from protocol import Protocol
from trajectories import Course

from selfsight.data.base import Arrays
from selfsight.data.synthetic import synthetic

TINY = Protocol(per_class=6, batch=16, seeds=(0, 1))
COURSE = Course(start=1, then=2, hidden=16, dim=8)


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def drawn(count, split="train"):
    images, _, _ = synthetic(count, size=32, split=split)
    return Arrays(split, images, np.arange(count) % 10)


@pytest.fixture(scope="module")
def data():
    return learn.Data(drawn(60), drawn(40, "test"))


@pytest.fixture(scope="module")
def results(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trajectories")
    assert trajectories.perform(0, COURSE, TINY, data, folder)
    return folder


def test_the_branches_go_on_from_where_the_start_ended(results):
    points = trajectories.gathered(COURSE, TINY, results)[0]["points"]
    assert {name: [p["epoch"] for p in way] for name, way in points.items()} == {
        "start": [0, 1], "both": [0, 1, 2], "alignment": [0, 1, 2], "uniformity": [0, 1, 2],
    }  # fmt: skip
    for name in COURSE.branches:
        assert points[name][0] == {**points["start"][-1], "epoch": 0}
    ends = [points[name][-1] for name in COURSE.branches]
    assert len({end["alignment"] for end in ends}) == 3
    assert points["alignment"][-1]["uniformity"] > points["uniformity"][-1]["uniformity"]


def test_the_branches_differ_from_the_start_in_their_terms_alone():
    begins, branches = COURSE.begins, COURSE.branches
    assert (begins["contrast"], begins["temperature"]) == (1.0, 2.5)
    # What they do not say is the method's own: 1 for each term and no contrast.
    weights = {name: {k: v for k, v in options.items() if begins.get(k) != v or k not in begins}
               for name, options in branches.items()}  # fmt: skip
    assert all("contrast" not in options for options in branches.values())
    assert weights["both"] == {}
    assert branches["alignment"]["uniformity"] == branches["uniformity"]["alignment"] == 0.0
    assert "alignment" not in branches["alignment"]
    assert "uniformity" not in branches["uniformity"]


def test_a_seed_is_done_once_and_again_when_a_number_changes(results, data, capsys):
    assert not trajectories.perform(0, COURSE, TINY, data, results)
    changed = replace(COURSE, lr=0.5)
    assert trajectories.gathered(changed, TINY, results) == {}
    fewer = replace(TINY, seeds=(0,))
    assert trajectories.gathered(COURSE, fewer, results)


def invented(seed, gains):
    """A start to 30%, from where the branches gain these points."""

    def way(last):
        points = np.linspace(0.30, 0.30 + last / 100, 3)
        return [{"epoch": i, "alignment": 0.1 * i, "uniformity": -i, "knn": float(knn)}
                for i, knn in enumerate(points)]  # fmt: skip

    points = {"start": way(0)[:2], **{name: way(gain) for name, gain in gains.items()}}
    return {
        "seed": seed, "fingerprint": trajectories.fingerprint(COURSE, TINY), "points": points,
        "seconds": 60.0, "versions": {"torch": "2"}, "cpu": "a CPU", "threads": 1,
    }  # fmt: skip


def test_the_page_says_what_held(tmp_path):
    gains = [{"both": 4, "alignment": -5, "uniformity": -1},
             {"both": 2, "alignment": -3, "uniformity": 1}]  # fmt: skip
    for seed, gain in enumerate(gains):
        (tmp_path / f"seed-{seed}.json").write_text(json.dumps(invented(seed, gain)))
    page, figure = tmp_path / "page.md", tmp_path / "figure.svg"
    trajectories_page.publish(tmp_path, page, figure, COURSE, TINY)
    text = page.read_text(encoding="utf-8")
    assert "| both terms | 0.200 | -2.00 | 33.0 | +3.0 | +4.0 +2.0 | yes |" in text
    assert "| alignment alone | 0.200 | -2.00 | 26.0 | -4.0 | -5.0 -3.0 | yes |" in text
    assert "| -1.0 +1.0 | **not at this scale** |" in text
    assert "all are done" in text
    drawing = ET.fromstring(figure.read_text(encoding="utf-8"))
    lines = [line for line in drawing.iter() if line.tag.endswith("polyline")]
    assert len(lines) == 3 + 4


def test_without_results_nothing_is_written(tmp_path):
    trajectories_page.publish(tmp_path, tmp_path / "page.md", tmp_path / "f.svg", COURSE, TINY)
    assert list(tmp_path.iterdir()) == []


def test_the_page_is_current():
    results = trajectories.gathered(
        trajectories.COURSE, trajectories.PROTOCOL, trajectories.RESULTS
    )
    if not results:
        assert not trajectories_page.PAGE.exists()
        return
    text = trajectories_page.page(results, trajectories.COURSE, trajectories.PROTOCOL)
    current = trajectories_page.PAGE.read_text(encoding="utf-8") == text
    assert current, "run python benchmarks/trajectories.py --table"
