"""The learning benchmark on 60 drawn images, and its page from invented results."""

import io
import json
import re
from dataclasses import replace

import learn
import learn_page
import numpy as np
import pytest
import torch
from PIL import Image
from protocol import ENTRIES, FAILURES, PROTOCOL, Entry, Protocol, fingerprint

from selfsight.data.base import Arrays
from selfsight.data.synthetic import synthetic
from selfsight.errors import ConfigError, Diverged
from selfsight.methods import METHODS, options
from selfsight.train.config import Settings, resolve

TINY = Protocol(per_class=6, tuning=2, batch=16, epochs=2, seeds=(0, 1))
ENTRY = Entry(name="simclr", method="simclr", options={"dim": 8}, encoder="test_resnet", warmup=0)
MAE = Entry(
    name="mae", method="mae", options={"depth": 1, "width": 16, "heads": 2}, encoder="vit_32",
    optimizer="adamw", views=1, measure="linear", beats_pixels=False, warmup=0,
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def drawn(count, split="train"):
    images, labels, _ = synthetic(count, size=32, split=split)
    labels = np.arange(count) % 10  # the drawing leaves the classes uneven
    return Arrays(split, images, labels.astype(np.int64))


@pytest.fixture(scope="module")
def data():
    return learn.Data(drawn(60), drawn(40, "test"))


def jpegs(split, count):
    source = drawn(count)
    content = []
    for image in source.images:
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, "JPEG")
        content.append(stream.getvalue())
    return {
        f"{split}_jpeg": np.frombuffer(b"".join(content), np.uint8),
        f"{split}_offsets": np.cumsum([0, *map(len, content)]),
        f"{split}_labels": source.labels.astype(np.uint8),
    }


def test_a_job_is_done_once_and_again_when_the_protocol_changes(data, tmp_path, capsys):
    assert learn.perform(ENTRY, 0, TINY, data, tmp_path)
    assert "simclr seed 0: trained" in capsys.readouterr().out
    file = tmp_path / "simclr-0.json"
    result = json.loads(file.read_bytes())
    assert {path.name for path in tmp_path.iterdir()} == {"simclr-0.json", "raw.json"}
    assert set(result["scores"]) == {"trained", "untrained", "lr0", "raw"}
    for scores in result["scores"].values():
        for probe in learn.PROBES:
            right = learn.unpacked(scores[probe]["correct"], 40)
            assert scores[probe]["n"] == 40
            assert scores[probe]["accuracy"] == right.mean()
            # Ten classes, of which a probe of five answers would name half.
            assert scores[probe]["metric"] == "accuracy"
    assert result["epochs"] == 2
    assert [row["step"] for row in result["readings"]] == list(range(6))
    assert set(learn.verdict(result)) == {"h", "z"}
    assert learn.verdict(result, steps=1)["h"].state == "uncertain"
    assert result["diverged"] is None

    before = file.read_bytes()
    assert not learn.perform(ENTRY, 0, TINY, data, tmp_path)
    assert file.read_bytes() == before

    changed = replace(ENTRY, lr=0.5)
    assert learn.perform(changed, 0, TINY, data, tmp_path)
    assert json.loads(file.read_bytes())["config"]["lr"] == 0.5
    assert not learn.is_done(ENTRY, 0, TINY, tmp_path)


def test_equal_views_mean_twice_the_epochs_for_one_view(data, tmp_path):
    assert learn.perform(MAE, 0, TINY, data, tmp_path)
    result = json.loads((tmp_path / "mae-0.json").read_bytes())
    assert result["epochs"] == 4
    assert result["readings"][-1]["step"] == 4 * (60 // 16) - 1
    # Without BatchNorm nothing moves at a learning rate of zero.
    assert result["scores"]["lr0"] == result["scores"]["untrained"]


def test_the_control_is_training_at_a_rate_of_zero(data, tmp_path):
    run = learn.selfsight.pretrain(
        data.train.images, out=tmp_path / "run", method="simclr", encoder="test_resnet", size=32,
        epochs=2, batch=16, lr=0.0, optimizer="sgd", precision="fp32", quiet=True, threads=1,
        options={"dim": 8},
    )  # fmt: skip
    wanted, found = run.model.state_dict(), learn.unmoved(run, data.train).state_dict()
    assert set(wanted) == set(found)
    moved = run.untrained().state_dict()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value)
    mean = next(name for name in wanted if name.endswith("running_mean"))
    assert not torch.equal(moved[mean], wanted[mean])


def test_a_diverged_run_is_a_result_and_another_error_none(data, tmp_path, monkeypatch):
    pretrain = learn.selfsight.pretrain

    def diverging(*args, **facts):
        pretrain(*args, **facts)
        raise Diverged("the loss was not finite")

    monkeypatch.setattr(learn.selfsight, "pretrain", diverging)
    assert learn.perform(ENTRY, 0, TINY, data, tmp_path)
    result = json.loads((tmp_path / "simclr-0.json").read_bytes())
    assert result["diverged"] == "the loss was not finite"
    assert "trained" not in result["scores"]
    assert result["readings"]
    (row,) = learn_page.rows([ENTRY], TINY, {"simclr": {0: result}})
    assert (row["knn"], row["passes"], row["diverged"]) == (None, False, 1)

    def interrupted(*args, **facts):
        raise KeyboardInterrupt

    monkeypatch.setattr(learn.selfsight, "pretrain", interrupted)
    with pytest.raises(KeyboardInterrupt):
        learn.perform(ENTRY, 1, TINY, data, tmp_path)
    assert not (tmp_path / "simclr-1.json").exists()


def test_bits_survive_packing():
    for n in (1, 8, 13, 10_000):
        right = np.random.default_rng(n).random(n) < 0.5
        assert (learn.unpacked(learn.packed(right), n) == right).all()


def test_tuning_sees_neither_the_test_images_nor_those_trained_on(tmp_path):
    file = tmp_path / "jpegs.npz"
    np.savez(file, **jpegs("train", 100), **jpegs("test", 30))
    final = learn.opened(file, TINY, tune=False)
    tuning = learn.opened(file, TINY, tune=True)
    assert len(final.train) == 60
    assert len(final.test) == 30
    assert len(tuning.test) == 20
    assert (final.train.images == tuning.train.images).all()
    assert np.bincount(tuning.test.labels).tolist() == [2] * 10
    labels = np.arange(100) % 10
    assert not set(learn.first_of_each(labels, 6)) & set(learn.first_of_each(labels, 2, after=6))


def test_trials_and_results_do_not_mix(tmp_path):
    assert learn.place(ENTRY, 0, TINY, learn.RESULTS).name == "simclr-0.json"
    trials = {learn.place(replace(ENTRY, lr=lr), 0, TINY, learn.TUNING) for lr in (0.1, 0.2)}
    assert len(trials) == 2
    with pytest.raises(ConfigError, match="for --tune"):
        learn.main(["--data", "x.npz", "--only", "simclr", "--lr", "1"])
    with pytest.raises(ConfigError, match="did you mean simclr"):
        learn.main(["--data", "x.npz", "--only", "simclt"])


def test_the_order_serves_the_first_look():
    order = [(entry.name, seed) for entry, seed in learn.ordered(ENTRIES, FAILURES, (0, 1))]
    assert order[0] == ("simclr", 0)
    assert order[len(ENTRIES)] == (FAILURES[0].name, 0)
    assert order[len(ENTRIES) + len(FAILURES)] == ("simclr", 1)


def test_the_protocol_is_consistent():
    assert {entry.method for entry in ENTRIES} == set(METHODS)
    names = [entry.name for entry in [*ENTRIES, *FAILURES]]
    assert len(set(names)) == len(names)
    twins = {entry.name: entry for entry in ENTRIES}
    for failure in FAILURES:
        twin = twins[failure.twin]
        assert failure.options != twin.options
        facts = {"name": twin.name, "twin": None, "expect": twin.expect}
        assert replace(failure, options=twin.options, **facts) == twin
    for entry in [*ENTRIES, *FAILURES]:
        assert set(entry.options) <= set(options(entry.method))
        assert entry.epochs(PROTOCOL) * entry.views * PROTOCOL.images == PROTOCOL.views
    first = ENTRIES[0]
    assert fingerprint(first, PROTOCOL) == fingerprint(replace(first, expect="x"), PROTOCOL)
    assert fingerprint(first, PROTOCOL) != fingerprint(replace(first, lr=1.0), PROTOCOL)
    longer = replace(PROTOCOL, epochs=PROTOCOL.epochs + 1)
    assert fingerprint(first, PROTOCOL) != fingerprint(first, longer)
    fewer = replace(PROTOCOL, seeds=(0,))
    assert fingerprint(first, PROTOCOL) == fingerprint(first, fewer)


N = 1000


def invented(entry, seed, *, collapsed=False, **percents):
    """A result with these accuracies, whose right answers overlap as far as they can."""
    accuracies = {"raw": 30, "untrained": 25, "lr0": 26, **percents}
    scores = {}
    for who, percent in accuracies.items():
        right = np.arange(N) < N * percent // 100
        scores[who] = {
            probe: {"accuracy": float(right.mean()), "n": N, "correct": learn.packed(right)}
            for probe in learn.PROBES
        }
    rows = [{"step": s, "loss": 1.0 / (s + 1)} for s in range(5)]
    for row in rows:
        for name, low in (("h", False), ("z", collapsed)):
            row |= {f"{name}_spread": 1e-6 if low else 0.12, f"{name}_samples": 64,
                    f"{name}_centred_rank": 1.0 if low else 50.0, f"{name}_dim": 64}  # fmt: skip
    return {
        "name": entry.name, "seed": seed, "fingerprint": fingerprint(entry, TINY),
        "diverged": None, "scores": scores, "readings": rows,
        "config": {"precision": "fp32"}, "seconds": {"train": 1.0, "measure": 1.0},
        "versions": {"torch": "2"}, "cpu": "a CPU", "threads": 1,
    }  # fmt: skip


BETTER = replace(ENTRY, name="better")
WORSE = replace(ENTRY, name="worse", lr=0.01)
BROKEN = replace(ENTRY, name="broken", twin="better", expect="collapse", lr=0.02)
ROBUST = replace(ENTRY, name="robust", twin="better", expect="collapse", lr=0.03)
INVENTED = [
    (ENTRY, {"trained": 40}),
    (BETTER, {"trained": 45}),
    (WORSE, {"trained": 28}),
    (MAE, {"trained": 29}),
    (BROKEN, {"trained": 27, "collapsed": True}),
    (ROBUST, {"trained": 45}),
]


@pytest.fixture
def published(tmp_path):
    for entry, facts in INVENTED:
        for seed in TINY.seeds:
            content = json.dumps(invented(entry, seed, **facts))
            (tmp_path / f"{entry.name}-{seed}.json").write_text(content)
    return tmp_path


def test_who_passes(published):
    entries = [entry for entry, _ in INVENTED]
    results = learn_page.gathered(entries, TINY, published)
    found = {row["name"]: row for row in learn_page.rows(entries, TINY, results)}
    assert {name: row["passes"] for name, row in found.items()} == {
        "simclr": True, "better": True, "worse": False, "mae": True, "broken": False,
        "robust": True,
    }  # fmt: skip
    better = found["better"]
    assert better["seeds"] == [0, 1]
    assert better["knn"]["mean"] == pytest.approx(0.45)
    assert better["effects"]["lr0"]["value"] == pytest.approx(0.19)
    assert better["simclr"]["value"] == pytest.approx(0.05)
    # Above what it was before training, and not above raw pixels, which mae need not be.
    assert found["worse"]["effects"]["raw"]["high"] < 0
    assert found["worse"]["effects"]["lr0"]["low"] > 0
    assert found["mae"]["effects"]["raw"]["high"] < 0
    assert (found["broken"]["reproduced"], found["broken"]["seen"]) == (True, True)
    assert (found["robust"]["reproduced"], found["robust"]["seen"]) == (False, False)
    assert better["reproduced"] is None


def test_two_seeds_on_the_same_images_are_no_more_images(published):
    results = learn_page.gathered([BETTER], TINY, published)["better"]
    one = learn_page.difference({0: results[0]}, {0: results[0]}, "knn", against="raw")
    both = learn_page.difference(results, results, "knn", against="raw")
    assert both == pytest.approx(one)


def test_results_of_another_protocol_are_not_shown(published):
    changed = replace(WORSE, lr=0.5)
    assert learn_page.gathered([changed], TINY, published) == {}


def test_the_page(published):
    intact = [entry for entry, _ in INVENTED if entry.twin is None]
    broken = [entry for entry, _ in INVENTED if entry.twin is not None]
    results = learn_page.gathered([*intact, *broken], TINY, published)
    text = learn_page.page(intact, broken, TINY, results)
    assert "3 of 4 methods pass; 1 of 2 predicted failures come about." in text
    assert re.search(r"^\| worse \|.*\| \*\*no\*\* \|$", text, re.MULTILINE)
    assert re.search(r"^\| robust \|.*\*\*not at this scale\*\*", text, re.MULTILINE)
    assert re.search(r"^\| broken \|.*complete collapse.*\| yes \| no \|$", text, re.MULTILINE)
    curves = text.partition("## Curves")[2]
    for name in ("worse, seed 0", "robust, seed 0", "better, seed 0"):
        assert name in curves
    assert "broken, seed 0" not in curves
    assert "all are done" in text
    assert max(map(len, re.sub(r"^\|.*$", "", text, flags=re.MULTILINE).splitlines())) <= 130


def test_the_page_is_current():
    results = learn_page.gathered([*ENTRIES, *FAILURES], PROTOCOL, learn.RESULTS)
    current = learn_page.PAGE.read_text(encoding="utf-8") == learn_page.page(
        ENTRIES, FAILURES, PROTOCOL, results
    )
    assert current, "run python benchmarks/learn.py --table"


def test_a_page_without_results():
    text = learn_page.page(ENTRIES, FAILURES, PROTOCOL, {})
    assert "0 of 0 methods pass" in text
    assert "There are no results yet." in text


@pytest.mark.parametrize("entry", [*ENTRIES, *FAILURES], ids=lambda entry: entry.name)
def test_every_entry_can_be_built(entry):
    encoder = entry.encoder if entry.encoder == "vit_32" else "test_resnet"
    labels = np.arange(1000) % 10
    settings = Settings(
        method=entry.method, encoder=encoder, size=32, epochs=2, batch=16, seed=0, device="cpu",
        optimizer=entry.optimizer, lr=entry.lr, weight_decay=entry.weight_decay,
        warmup=entry.warmup, options=entry.options, view=entry.view,
    )  # fmt: skip
    built = resolve(settings, Arrays("none", np.zeros((1000, 32, 32, 3), np.uint8), labels))
    # Nobody has small crops; a jigsaw is cut from a view that is a little larger.
    assert all(32 <= view.size <= 40 for view in built.method.views)
    assert sum(view.count for view in built.method.views) >= entry.views / 2
