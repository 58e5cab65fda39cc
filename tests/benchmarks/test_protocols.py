"""The benchmark of the protocols: its cases, what it makes of the data, its jobs, and its page."""

import contextlib
import io
import json

import numpy as np
import protocols
import protocols_page
import pytest
from PIL import Image
from protocols import CASES, ENCODERS, RESULTS, Case

import selfsight
from selfsight.cli import main
from selfsight.data.synthetic import synthetic
from selfsight.errors import ConfigError
from selfsight.evaluate import PROTOCOLS, create
from selfsight.evaluate.stored import read

SIZE = 32


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """60 for training and 30 for the test, in three classes."""
    folder = tmp_path_factory.mktemp("photos")
    images, numbers, classes = synthetic(90, size=SIZE)
    for index, (pixels, number) in enumerate(zip(images, numbers, strict=True)):
        place = folder / ("train" if index < 60 else "test") / classes[number]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / f"{index:03}.png")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory, photos):
    out = tmp_path_factory.mktemp("runs") / "run"
    selfsight.pretrain(
        photos / "train", out=out, encoder="test_resnet", size=SIZE, batch=32, epochs=1,
        precision="fp32", quiet=True,
    )  # fmt: skip
    return out


def here(words):
    """What a process of its own would print."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main(words) == 0
    return out.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, run, photos):
    """A job's result for each encoder."""
    made = tmp_path_factory.mktemp("results")
    case = Case("knn", "imagenette_part", SIZE, {"k": 5})
    for encoder in ENCODERS:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(protocols, "shell", here)
            result = protocols.job(case, encoder, run, photos)
        # As if the case were the benchmark's own.
        result["fingerprint"] = CASES["knn"].fingerprint
        protocols.write(protocols.place("knn", encoder, made), result)
    return made


def test_every_protocol_has_a_case_that_can_be_built():
    assert set(CASES) == set(PROTOCOLS)
    for name, case in CASES.items():
        assert create(name, **case.options).options.items() >= case.options.items()
    assert {case.data for case in CASES.values()} <= {*protocols.DATA, *protocols.MADE}
    assert len({case.fingerprint for case in CASES.values()}) == len(CASES)


def test_a_case_is_a_command():
    words = Case("knn", "photos", 64, {"k": 5}).words("runs/photos", "photos", "out.json")
    assert " ".join(words) == (
        "evaluate runs/photos photos --size 64 --protocols knn --knn.k 5 --out out.json --json"
    )


def test_a_job_says_what_both_ways_found(folder, run):
    for encoder in ENCODERS:
        result = json.loads(protocols.place("knn", encoder, folder).read_bytes())
        (kept,) = read(protocols.place("knn", encoder, folder))
        assert result["python"][0]["value"] == kept.score.value
        assert kept.score.n == 30
        assert kept.data == "imagenette_part"
        assert result["weights"] == protocols.weights(run if encoder == "run" else None)
        assert str(folder.parent) not in json.dumps(result), "a path of this machine"


def test_how_the_run_was_made():
    argv = ["/x/__main__.py", "pretrain", "/x/photos/train", "--size", "96", "--out", "/x/run"]
    record = {"argv": argv, "data": {"name": "/x/photos/train"}}
    assert " ".join(protocols.pretraining(record)) == (
        "selfsight pretrain photos/train --size 96 --out runs/imagenette"
    )


def test_what_was_judged_with_other_weights_is_done_again(folder, run):
    case = CASES["knn"]
    assert protocols.is_done(case, "run", protocols.weights(run), folder)
    assert not protocols.is_done(case, "run", "others", folder)
    assert not protocols.is_done(case, "untrained", protocols.weights(run), folder)
    assert not protocols.is_done(Case("knn", "bccd", 96), "run", protocols.weights(run), folder)


def test_a_job_whose_ways_disagree_fails():
    one, other = ({"value": value, "details": {}} for value in (0.5, 0.5 + 1e-9))
    protocols.check_agreement(CASES["knn"], [one], [one])
    with pytest.raises(ConfigError, match="the command line says"):
        protocols.check_agreement(CASES["knn"], [one], [other])
    protocols.check_agreement(CASES["throughput"], [one], [other])
    with pytest.raises(ConfigError, match="throughput"):
        protocols.check_agreement(CASES["throughput"], [one], [{"value": 1.5}])


def test_the_distance_is_to_the_nearest_other_value():
    mask = np.random.default_rng(0).choice(3, (9, 7), p=[0.8, 0.1, 0.1]).astype(np.uint8)
    rows, columns = np.indices(mask.shape)
    steps = abs(rows[..., None, None] - rows) + abs(columns[..., None, None] - columns)
    expected = np.where(mask[..., None, None] == mask, 99, steps).min(axis=(2, 3))
    assert np.array_equal(protocols.distances(mask), expected)


def test_what_is_made_of_the_data(tmp_path, photos):
    source = tmp_path / "camvid"
    mask = np.array([[0, 0, 0, 1], [0, 0, 0, 1], [2, 2, 2, 2]], np.uint8)
    for shade, part in enumerate(("train", "test")):
        for kind in ("images", "masks"):
            (source / part / kind).mkdir(parents=True)
        Image.new("RGB", mask.shape[::-1], (shade, 0, 0)).save(source / part / "images" / "a.png")
        Image.fromarray(mask).save(source / part / "masks" / "a.png")
    (source / "labels.json").write_text('["sky", "road", "void(ignore)"]')
    found = {"imagenette224": photos, "camvid": source}
    made = protocols.prepared(found, tmp_path / "made")
    assert set(made) == {*found, *protocols.MADE}
    train, _ = create("dense", zero="unknown").open(made["camvid_distance"])
    (target,) = (target for _, target in train.maps())
    expected = [[2, 2, 1, 1], [1, 1, 1, 1], [np.nan] * 4]
    assert np.array_equal(target, expected, equal_nan=True)
    assert len(list(made["imagenette_part"].glob("*/*/*.png"))) == 90
    # A second time nothing is written.
    (made["imagenette_part"] / "seen").touch()
    assert (protocols.prepared(found, tmp_path / "made")["imagenette_part"] / "seen").exists()


def test_the_page(folder):
    results = protocols_page.collected(folder)
    text = protocols_page.page(results, folder)
    assert "| `knn` | 30 | accuracy |" in text
    assert "difference" in next(line for line in text.splitlines() if "`knn` | 30" in line)
    assert "Not yet done: of the run linear, sweep," in text
    assert "selfsight evaluate runs/imagenette imagenette_part --size 32 --protocols knn" in text
    protocols.place("knn", "run", folder).rename(folder / "aside")
    text = protocols_page.page(protocols_page.collected(folder), folder)
    (folder / "aside").rename(protocols.place("knn", "run", folder))
    assert "| `knn` | 30 | accuracy | – |" in text
    assert "Not yet done: of the run knn, linear," in text
    assert "; of the untrained linear, sweep," in text


def test_no_results_no_page(tmp_path):
    protocols_page.publish(tmp_path / "page.md", tmp_path)
    assert not (tmp_path / "page.md").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--only", "kn"], "there is no protocol kn; did you mean knn"),
        ([], "--run RUN: which run is judged"),
        (["--run", "x"], "which folder holds imagenette224"),
        (["--run", "x", "--data", "nowhere"], "nowhere/imagenette224 is no folder"),
    ],
)
def test_what_is_missing_is_named(words, message):
    with pytest.raises(ConfigError, match=message):
        protocols.main(words)


def test_the_run_is_one():
    results = protocols_page.collected(RESULTS)
    for encoder in ENCODERS:
        marks = {own[encoder]["weights"] for own in results.values() if encoder in own}
        assert len(marks) <= 1, encoder


def test_the_page_is_current():
    results = protocols_page.collected()
    if results:
        text = protocols_page.PAGE.read_text(encoding="utf-8")
        assert text == protocols_page.page(results), "run python benchmarks/protocols.py --table"
