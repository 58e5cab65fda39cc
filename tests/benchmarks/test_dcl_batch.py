"""The benchmark of decoupling against the batch: its runs, and its page from invented results."""

import json

import dcl_batch
import dcl_batch_page
import learn
import numpy as np
import pytest
from dcl_batch import BATCHES, LOSSES, RUNS
from protocol import ENTRIES, PROTOCOL, fingerprint

from selfsight.errors import ConfigError

N = 1000
SIMCLR = next(entry for entry in ENTRIES if entry.name == "simclr")


def result(name, seed, right, q=0.5):
    entry, protocol = RUNS[name]
    correct = np.arange(N) < right
    score = {"accuracy": right / N, "n": N, "correct": learn.packed(correct)}
    return {
        "name": name, "seed": seed, "fingerprint": fingerprint(entry, protocol), "diverged": None,
        "scores": {"trained": {"knn": score, "linear": score}},
        "readings": [{"step": s, "coupling": q, "coupling_variation": 0.2} for s in range(4)],
        "config": {"precision": "fp32"}, "seconds": {"train": 1.0, "measure": 1.0},
        "versions": {"torch": "2"}, "cpu": "a CPU", "threads": 1,
    }  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """DCL gains 80, 60, 40, 20 and 0 images of a thousand, DCLW always 50."""
    for place, batch in enumerate(BATCHES):
        gains = {"simclr": 0, "dcl": 20 * (4 - place), "dclw": 50}
        for loss, gain in gains.items():
            for seed in (0, 1):
                content = result(f"{loss}_{batch}", seed, 400 + 10 * place + gain)
                (tmp_path / f"{loss}_{batch}-{seed}.json").write_text(json.dumps(content))
    return tmp_path


def test_the_runs_differ_in_loss_batch_and_rate_alone():
    assert len(RUNS) == len(BATCHES) * len(LOSSES)
    for name, (entry, protocol) in RUNS.items():
        loss, batch = name.split("_")
        assert protocol.batch == int(batch)
        assert entry.epochs(protocol) == PROTOCOL.epochs
        assert entry.lr == pytest.approx(SIMCLR.lr * (protocol.batch / 64) ** 0.5)
        assert set(entry.options) - set(SIMCLR.options) <= set(LOSSES[loss][1])
        assert (entry.view, entry.optimizer) == (SIMCLR.view, SIMCLR.optimizer)
    assert RUNS["simclr_64"][0].lr == SIMCLR.lr
    assert len({fingerprint(*run) for run in RUNS.values()}) == len(RUNS)


def test_the_gains_and_whether_they_shrink(folder):
    results = dcl_batch_page.collected(RUNS, folder)
    assert set(results) == set(RUNS)
    shrunk = dcl_batch_page.shrinkage(results, "dcl")
    assert shrunk["value"] == pytest.approx(0.08)
    assert 0 < shrunk["low"] < 0.08 < shrunk["high"]
    same = dcl_batch_page.shrinkage(results, "dclw")
    assert same["value"] == pytest.approx(0.0)
    assert same["low"] < 0 < same["high"]
    text = dcl_batch_page.page(results)
    assert "| dcl | +8.0 [" in text
    assert "| it shrinks |" in text
    assert "| dclw | +0.0 [" in text
    assert "not resolved at this scale" in text
    assert "| 32 | +8.0 [" in text
    assert "0.50, 0.20" in text


def test_what_is_missing_is_said(folder):
    for file in folder.glob("dcl_512-*.json"):
        file.unlink()
    results = dcl_batch_page.collected(RUNS, folder)
    assert dcl_batch_page.shrinkage(results, "dcl") is None
    text = dcl_batch_page.page(results)
    assert "not yet known" in text
    assert "dcl_512" in text


def test_no_results_no_page(tmp_path):
    dcl_batch_page.publish(tmp_path / "page.md", tmp_path)
    assert not (tmp_path / "page.md").exists()


def test_an_unknown_run_is_named():
    with pytest.raises(ConfigError, match="did you mean dcl_32"):
        dcl_batch.main(["--data", "x.npz", "--only", "dcl_33"])


def test_the_page_is_current():
    results = dcl_batch_page.collected()
    if results:
        text = dcl_batch_page.PAGE.read_text(encoding="utf-8")
        assert text == dcl_batch_page.page(results), "run python benchmarks/dcl_batch.py --table"
