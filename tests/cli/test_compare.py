"""selfsight compare, and what evaluate keeps for it."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import selfsight
from selfsight.cli import main
from selfsight.data.synthetic import synthetic
from selfsight.features import Features
from selfsight.run import Run

Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four runs, a and b with two seeds each, and labelled images; nothing is measured yet."""
    folder = tmp_path_factory.mktemp("desk")
    images, labels, classes = synthetic(100, size=32)
    np.savez(folder / "labelled.npz", images=images, labels=labels, classes=np.array(classes))
    np.savez(folder / "others.npz", images=images[:80], labels=labels[:80] % 2)
    for seed in (0, 1):
        selfsight.pretrain(
            images, out=folder / f"a{seed}", encoder="test_resnet", batch=32, epochs=1, seed=seed,
            precision="fp32", quiet=True,
        )  # fmt: skip
        # As it were another method: its weights are those of the other seed.
        shutil.copytree(folder / f"a{seed}", folder / f"b{1 - seed}")
        path = folder / f"b{1 - seed}" / "run.json"
        record = json.loads(path.read_text())
        record["config"] |= {"method": "byol", "seed": 1 - seed}
        path.write_text(json.dumps(record))
    return folder


@pytest.fixture
def here(desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = Path(shutil.copytree(desk, tmp_path / "here"))
    monkeypatch.chdir(folder)
    return folder


def told(capsys: Captured, *words: str) -> Any:
    capsys.readouterr()
    assert main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out, parse_constant=pytest.fail)


def refused(capsys: Captured, *words: str) -> str:
    capsys.readouterr()
    assert main([*words]) in (2, 74)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


def test_what_was_kept_is_compared(here: Path, capsys: Captured) -> None:
    err = refused(capsys, "compare", "a0", "b0")
    assert "selfsight compare a0 b0 --data DATA" in err
    for run in ("a0", "b0"):
        facts = told(capsys, "evaluate", run, "labelled.npz", "--protocols", "knn", "--knn.k", "5")
        (kept,) = facts["kept"]
        assert Path(kept).parent == Path(run) / "evaluations"
    (found,) = told(capsys, "compare", "a0", "b0")
    assert (found["protocol"], found["metric"]) == ("knn", "accuracy")
    assert found["data"] == str(here / "labelled.npz")
    (pair,) = found["pairs"]
    assert (pair["first"], pair["second"], pair["over"]) == ("a0", "b0", "test images")
    assert pair["words"] in ("a difference", "no difference shown")
    assert pair["low"] <= pair["difference"] <= pair["high"]
    values = [run["value"] for run in found["runs"]]
    assert pair["difference"] == pytest.approx(values[0] - values[1])
    assert told(capsys, "compare", "a0", "b0", "--protocols", "knn", "--knn.k", "5") == [found]
    assert "by knn in common" in refused(
        capsys, "compare", "a0", "b0", "--protocols", "knn", "--knn.k", "6"
    )
    assert "by linear in common" in refused(capsys, "compare", "a0", "b0", "--protocols", "linear")
    assert main(["compare", "a0", "b0"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"knn, accuracy on {here / 'labelled.npz'} (n={found['n']})"
    assert lines[1].split() == ["encoder", "value", "95%", "interval", "over"]
    assert lines[5].startswith("pair ")
    assert lines[6].startswith("a0 - b0 ")
    assert lines[6].endswith(pair["words"])
    assert lines[-1].startswith("over test images: ")


def test_what_is_missing_is_measured(here: Path, capsys: Captured) -> None:
    words = ["--data", "labelled.npz", "--protocols", "knn"]
    assert main(["evaluate", "a0", "labelled.npz", "--protocols", "knn"]) == 0
    (kept,) = (here / "a0" / "evaluations").iterdir()
    before = kept.stat().st_mtime_ns
    (found,) = told(capsys, "compare", "a0", "b0", *words)
    assert kept.stat().st_mtime_ns == before
    assert len(list((here / "b0" / "evaluations").iterdir())) == 1
    assert told(capsys, "compare", "a0", "b0") == [found]
    # Other images and options are another comparison, and both are kept.
    (other,) = told(
        capsys, "compare", "a0", "b0", "--data", "others.npz", "--protocols", "knn", "--knn.k", "3"
    )
    assert other["n"] != found["n"]
    assert told(capsys, "compare", "a0", "b0") == [other, found]
    assert told(capsys, "compare", "a0", "b0", "--protocols", "knn") == [other, found]
    assert main(["compare", "a0", "b0"]) == 0
    titles = [line for line in capsys.readouterr().out.splitlines() if " on " in line]
    assert titles[0].startswith(f"knn (k=3), accuracy on {here / 'others.npz'}")
    assert titles[1].startswith(f"knn (k=20), accuracy on {here / 'labelled.npz'}")
    assert told(capsys, "compare", "a0", "b0", *words) == [found]


def test_seeds_are_one_row(here: Path, capsys: Captured) -> None:
    (found,) = selfsight.compare(["a0", "b0", Run("a1"), "b1"], "labelled.npz", protocols=["knn"])
    assert [group.name for group in found.groups] == ["a0 (2 seeds)", "b0 (2 seeds)"]
    (pair,) = found.pairs
    # b's seeds are a's the other way round.
    assert pair.difference is not None
    assert pair.difference.value == pytest.approx(0)
    assert (pair.over, pair.words) == ("seeds", "no difference shown")
    assert "over seeds" in str(found)
    (mixed,) = told(capsys, "compare", "a0", "a1", "b0")
    assert mixed["pairs"][0]["words"] == "cannot tell: b0 has one seed, train more"


def test_a_file_of_evaluate_is_as_good_as_a_run(here: Path, capsys: Captured) -> None:
    words = ["labelled.npz", "--protocols", "knn"]
    assert main(["evaluate", "test_resnet", *words, "--size", "32", "--out", "name.json"]) == 0
    assert main(["evaluate", "b0", *words, "--out", "b0.json"]) == 0
    (found,) = told(capsys, "compare", "a0", "name.json", "--data", *words)
    assert [run["name"] for run in found["runs"]] == ["a0", "name.json"]
    assert found["pairs"][0]["over"] == "test images"
    runs, files = (told(capsys, "compare", "a0", name)[0]["pairs"][0] for name in ("b0", "b0.json"))
    assert runs | {"second": ""} == files | {"second": ""}
    err = refused(
        capsys, "compare", "a0", "name.json", "--data", "others.npz", "--protocols", "knn"
    )
    assert "a file cannot be measured again" in err
    Path("damaged.json").write_text('{"evaluations": [{}]}')
    assert "damaged.json cannot be read" in refused(capsys, "compare", "a0", "damaged.json")


def test_features_are_compared_by_their_names(here: Path, capsys: Captured) -> None:
    draw = np.random.default_rng(0)
    label = np.arange(80) % 2
    names = tuple(f"{i}.jpg" for i in range(80))
    for name, noise in (("good", 0.1), ("bad", 9.0)):
        rows = 2 * label[:, None] - 1 + noise * draw.normal(size=(80, 8))
        Features(rows.astype(np.float32), label, names).save(f"{name}.npz")
        words = ["evaluate", f"{name}.npz", f"{name}.npz", "--protocols", "knn"]
        assert main([*words, "--out", f"{name}.json"]) == 0
    (found,) = told(capsys, "compare", "good.json", "bad.json")
    assert found["pairs"][0]["words"] == "a difference"


def test_a_run_that_cannot_be_written_to_is_measured_all_the_same(
    here: Path, capsys: Captured
) -> None:
    (here / "a0" / "evaluations").touch()
    assert main(["evaluate", "a0", "labelled.npz", "--protocols", "knn"]) == 0
    out, err = capsys.readouterr()
    assert "kNN" in out
    assert "are not kept: cannot write a0/evaluations/" in err
    with pytest.warns(UserWarning, match="are not kept: cannot write a0/evaluations/"):
        assert Run("a0").evaluate("labelled.npz", ["knn"])["knn"].n > 0
    (here / "a0" / "evaluations").unlink()
    (here / "b0" / "evaluations").symlink_to("nowhere")
    (found,) = selfsight.compare(["a0", "b0"], "labelled.npz", ["knn"])
    assert [note for note in found.notes if "are not kept: cannot write b0/evaluations/" in note]


def test_numbers_of_other_weights_are_not_taken(here: Path, capsys: Captured) -> None:
    words = ["compare", "a0", "b1", "--data", "labelled.npz", "--protocols", "knn"]
    # b1 has the weights of a0.
    (before,) = told(capsys, *words)
    assert before["pairs"][0]["p"] == pytest.approx(1)
    assert main(["evaluate", "a0", "others.npz", "--protocols", "knn"]) == 0
    # As if it were trained further.
    shutil.rmtree("a0/model")
    shutil.copytree("a1/model", "a0/model")
    err = refused(capsys, "compare", "a0", "b1")
    assert "a0: evaluations of other weights, left out: 2" in err
    (after,) = told(capsys, *words)
    (expected,) = told(capsys, "compare", "a1", *words[2:])
    assert after["runs"][0]["value"] == expected["runs"][0]["value"]
    assert after["pairs"] == [expected["pairs"][0] | {"first": "a0"}]
    (kept,) = told(capsys, "compare", "a0", "b1")
    assert kept["pairs"] == after["pairs"]
    assert "a0: evaluations of other weights, left out: 1" in kept["notes"]
    # Without its model, or in a file of an earlier form, the weights are not known.
    shutil.rmtree("a0/model")
    for file in Path("b1/evaluations").iterdir():
        document = json.loads(file.read_text())
        del document["weights"], document["precision"], document["version"]
        file.write_text(json.dumps(document))
    (unsure,) = told(capsys, "compare", "a0", "b1")
    for name in ("a0", "b1"):
        assert any(f"{name}: it is not known" in note for note in unsure["notes"])
    assert unsure["pairs"] == after["pairs"]


def test_encoders_are_measured_and_not_kept(here: Path, capsys: Captured) -> None:
    shutil.copytree("a0/model", "model")
    encoders = ["compare", "a0", "model", "test_resnet", "--size", "32"]
    (found,) = told(capsys, *encoders, "--data", "labelled.npz", "--protocols", "knn")
    assert [run["name"] for run in found["runs"]] == ["a0", "model", "test_resnet"]
    assert found["pairs"][0]["p"] == pytest.approx(1)
    assert not (here / "model" / "evaluations").exists()
    assert len(list((here / "a0" / "evaluations").iterdir())) == 1
    err = refused(capsys, *encoders)
    assert "model is neither a run nor a file of evaluate --out" in err
    assert "--data DATA" in err
    # Runs are seen at that size as well.
    other = ["a0", "b0", "--size", "48", "--data", "labelled.npz", "--protocols", "knn"]
    assert told(capsys, "compare", *other)[0]["pairs"]
    sizes = [one.judged.size for one in Run("a0").evaluations]
    assert sizes == [48, 32]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "name two or more runs"),
        (["a0"], "name two or more runs"),
        (["a0", "./a0"], "two or more different encoders"),
        (["a0", "none"], "none is neither a run nor a file of evaluate --out"),
        (["a0", "none.json"], "cannot read none.json: No such file"),
        (["a0", "b0", "--pretrained"], "--pretrained is for the name of an architecture"),
        (["a0", "resnet81", "--data", "labelled.npz"], "resnet81"),
        (["a0", "b0", "--protocols", "knnn"], "unknown protocol knnn; did you mean knn?"),
        (["a0", "b0", "--knn.k", "3"], "knn is not among --protocols"),
        (["a0", "b0", "--data", "none"], "none does not exist"),
        (["a0", "b0", "--duplicates", "keep"], "--duplicates"),
    ],
)
def test_one_line_says_what_is_wrong(
    here: Path, capsys: Captured, words: list[str], said: str
) -> None:
    assert said in refused(capsys, "compare", *words)


def test_copies_are_refused_or_left_out_and_told(here: Path, capsys: Captured) -> None:
    from PIL import Image

    images, labels, _ = synthetic(60, size=32)
    for index, (image, label) in enumerate(zip(images, labels % 2, strict=True)):
        for part in ["train"] if index < 38 else ["test"] if index > 40 else ["train", "test"]:
            place = here / "photos" / part / str(label)
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(place / f"{index}.png")
    words = ["evaluate", "a0", "photos", "--protocols", "knn"]
    assert "3 of 22 test images" in refused(capsys, *words)
    assert main([*words, "--duplicates", "drop"]) == 0
    assert "3 training images are equal to test images and were left out" in capsys.readouterr().err
