"""Each command on small data, through `main`."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from selfsight import __version__, doctor
from selfsight.cli import main
from selfsight.cli.output import plain, table
from selfsight.features import Features

Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of 15 images that differ in colour, one of them twice, and a broken file."""
    folder = tmp_path_factory.mktemp("photos")
    noise = np.random.default_rng(0).integers(0, 60, (30, 40, 48, 3), np.uint8)
    for i, pixels in enumerate(noise):
        kind = ("red", "blue")[i % 2]
        (folder / kind).mkdir(exist_ok=True)
        pixels[..., 2 * (i % 2)] += 150
        Image.fromarray(pixels).save(folder / kind / f"{i}.png")
    (folder / "red" / "again.png").write_bytes((folder / "red" / "0.png").read_bytes())
    (folder / "red" / "torn.png").write_bytes((folder / "red" / "0.png").read_bytes()[:300])
    return folder


def document(capsys: Captured) -> Any:
    """What stdout holds is one JSON document and nothing else."""
    return json.loads(capsys.readouterr().out, parse_constant=pytest.fail)


def test_methods(capsys: Captured) -> None:
    from selfsight.methods import FAMILIES, METHODS

    assert main(["methods", "--json"]) == 0
    rows = document(capsys)
    assert sorted(row["name"] for row in rows) == sorted(METHODS)
    assert {row["family"] for row in rows} == set(FAMILIES)
    assert all(row["title"] and row["what"] and 1990 < int(row["year"]) < 2100 for row in rows)
    assert main(["methods"]) == 0
    lines = capsys.readouterr().out.splitlines()
    # A heading, the columns and an empty line for each family, and a last line.
    assert len(lines) == 3 * len(FAMILIES) + len(METHODS) + 1
    assert lines[0] == next(iter(FAMILIES))
    assert lines[1].split() == ["name", "title", "year", "what"]


def test_one_method(capsys: Captured) -> None:
    assert main(["methods", "simclr", "--json"]) == 0
    facts = document(capsys)
    assert facts["options"]["temperature"] == 0.1
    assert facts["equation"].startswith("Σ")
    assert main(["methods", "simclr"]) == 0
    out = capsys.readouterr().out
    assert "--method.temperature  0.1" in out
    assert "Chen et al. 2020" in out
    assert f"\nLoss: {facts['equation']}\n" in out
    assert "Differs from the paper" in out
    assert main(["methods", "simcrl"]) == 2
    expected = "selfsight methods: unknown method simcrl; did you mean simclr?\n"
    assert capsys.readouterr().err == expected


def test_views(photos: Path, tmp_path: Path, capsys: Captured) -> None:
    out = tmp_path / "views.png"
    words = ["views", str(photos), "--out", str(out), "--size", "32"]
    assert main([*words, "--count", "3", "--method.multi_crop", "2"]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    first = out.read_bytes()
    with Image.open(out) as mosaic:
        # The image, two large crops and two small ones; three images.
        assert mosaic.size == (5 * 27 - 4, 3 * 27 - 4)
        assert mosaic.getpixel((3 * 27 + 20, 20)) == (255, 255, 255)
        red, _, blue = mosaic.getpixel((11, 11))
        assert abs(red - blue) > 60
    assert main(words) == 2
    assert capsys.readouterr().err.endswith("views.png exists; --force overwrites a file\n")
    assert out.read_bytes() == first
    assert main([*words, "--force", "--method", "byol"]) == 0
    assert out.read_bytes() != first
    assert main([*words[:-2], "--force", "--out", str(tmp_path / "views.jpg")]) == 2


@pytest.mark.parametrize(("queue", "said"), [(60, False), (64, True)])
def test_a_queue_that_the_run_does_not_fill_is_said(
    photos: Path, tmp_path: Path, capsys: Captured, queue: int, said: bool
) -> None:
    words = ["pretrain", str(photos), "--encoder", "test_resnet", "--size", "32", "--batch", "8"]
    words += ["--epochs", "2", "--max-bad-fraction", "0.1", "--out", str(tmp_path / "run")]
    words += ["--method", "moco_v2", "--method.norm_groups", "2", "--method.queue", str(queue)]
    assert main(words) == 0
    line = "queue         of 64: 62 images in this run do not fill it; lower --method.queue"
    assert (line in capsys.readouterr().err) is said


def test_check(photos: Path, capsys: Captured) -> None:
    assert main(["check", str(photos), "--json"]) == 0
    found = document(capsys)
    assert (found["images"], found["classes"]) == (31, {"blue": 15, "red": 16})
    assert main(["check", str(photos)]) == 0
    out = capsys.readouterr().out
    assert "from 40 × 48 to 40 × 48" in out
    assert "torn.png: " in out
    assert "again.png" in out


def test_check_of_nothing(tmp_path: Path, capsys: Captured) -> None:
    assert main(["check", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_embed(photos: Path, tmp_path: Path, capsys: Captured) -> None:
    out = tmp_path / "h.npz"
    words = ["embed", "resnet18_small", str(photos), "--size", "32", "--out", str(out)]
    assert main([*words, "--json"]) == 0
    assert document(capsys) == {"out": str(out), "images": 31, "dim": 512}
    features = Features.load(out)
    assert features.embedding.shape == (31, 512)
    assert features.classes == ("blue", "red")
    kept = out.read_bytes()
    assert main(words) == 2
    assert out.read_bytes() == kept
    assert main([*words, "--force"]) == 0
    out, err = capsys.readouterr()
    assert out == f"{words[-1]}\n"
    assert "random weights" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["resnet18_smal"], "resnet18_small"),
        (["runs/none"], "runs/none does not exist"),
        (["."], ". is neither a run (no run.json) nor a model (no config.json)"),
        ([".", "--pretrained"], "--pretrained is for the name of an architecture"),
    ],
)
def test_a_wrong_subject(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Captured,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["embed", *words, "photos", "--out", "h.npz"]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_evaluate(photos: Path, tmp_path: Path, capsys: Captured) -> None:
    out = tmp_path / "report.json"
    words = ["evaluate", "resnet18_small", str(photos), "--size", "32", "--protocols", "knn,linear"]
    assert main([*words, "--controls", "--json", "--out", str(out)]) == 0
    facts = document(capsys)
    written = json.loads(out.read_text())
    assert len(written.pop("evaluations")) == 2
    assert written.pop("versions")["selfsight"] == __version__
    assert written.pop("device") == "cpu"
    assert written.pop("precision") in ("fp32", "bf16")
    assert written.pop("argv") == sys.argv
    assert facts == written
    assert list(facts["results"]) == ["raw pixels", "untrained", "resnet18_small"]
    for report in facts["results"].values():
        assert [score["protocol"] for score in report["scores"]] == ["knn", "linear"]
    # Red against blue is easy for pixels.
    assert facts["results"]["raw pixels"]["scores"][1]["value"] == 1
    assert main([*words[:-1], "linear"]) == 0
    told = capsys.readouterr()
    assert "1 files cannot be used and were left out; see selfsight check" in told.err
    lines = told.out.splitlines()
    assert len(lines) == 2
    assert lines[1].split()[0] == "resnet18_small"
    assert main([*words[:-1], "knn,linaer"]) == 2
    assert "unknown protocol linaer; did you mean linear?" in capsys.readouterr().err


def test_a_protocol_that_fails_leaves_the_numbers_before_it(
    photos: Path, tmp_path: Path, capsys: Captured
) -> None:
    out = tmp_path / "report.json"
    words = ["evaluate", "resnet18_small", str(photos), "--size", "32", "--out", str(out)]
    words += ["--protocols", "linear,knn,retrieval", "--knn.k", "1000"]
    assert main(words) == 2
    told = capsys.readouterr()
    assert "kNN with k=1000 needs as many training images" in told.err
    lines = told.out.splitlines()
    assert {line.split()[1] for line in lines[1:]} == {"linear"}
    scores = json.loads(out.read_text())["results"]["resnet18_small"]["scores"]
    assert {score["protocol"] for score in scores} == {"linear"}


def test_precision_and_device_are_as_told(photos: Path, tmp_path: Path, capsys: Captured) -> None:
    found = {}
    for precision in ("fp32", "bf16"):
        out = tmp_path / f"{precision}.npz"
        words = ["embed", "resnet18_small", str(photos), "--size", "32", "--out", str(out)]
        assert main([*words, "--precision", precision, "--device", "cpu"]) == 0
        found[precision] = Features.load(out).embedding
    assert not np.array_equal(found["fp32"], found["bf16"])
    assert np.abs(found["fp32"] - found["bf16"]).max() < 0.05 * np.abs(found["fp32"]).max()
    capsys.readouterr()
    assert main([*words[:-1], "x.npz", "--device", "gpu"]) == 2
    assert "unknown device gpu; it is auto, cpu or cuda" in capsys.readouterr().err


def test_controls_say_which_protocols_raw_pixels_cannot_have(
    photos: Path, capsys: Captured
) -> None:
    words = ["evaluate", "resnet18_small", str(photos), "--size", "32", "--controls", "--json"]
    words += [
        "--protocols",
        "throughput",
        "--throughput.seconds",
        "0.01",
        "--throughput.batch",
        "4",
    ]
    assert main(words) == 0
    told = capsys.readouterr()
    assert "raw pixels are not judged by throughput" in told.err
    assert list(json.loads(told.out)["results"]) == ["untrained", "resnet18_small"]


def test_doctor(capsys: Captured) -> None:
    assert main(["doctor", "--json"]) == 0
    findings = {finding["name"]: finding for finding in document(capsys)}
    assert findings["torch + torchvision"]["status"] == "ok"
    assert findings["cache"]["status"] == "ok"
    assert main(["doctor"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(findings)


def test_doctor_fails_on_what_is_broken(
    monkeypatch: pytest.MonkeyPatch, capsys: Captured, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SELFSIGHT_CACHE", str(tmp_path / "file" / "cache"))

    def nms(*tensors: object) -> None:
        raise RuntimeError("operator torchvision::nms does not exist\nmore")

    monkeypatch.setattr("torchvision.ops.nms", nms)
    monkeypatch.setattr(doctor.platform, "system", lambda: 1 / 0)
    assert main(["doctor", "--json"]) == 2
    findings = {finding["name"]: finding for finding in document(capsys)}
    failed = {name for name, finding in findings.items() if finding["status"] == "fail"}
    assert failed == {"torch + torchvision", "cache", "system"}
    pair = findings["torch + torchvision"]
    assert pair["value"] == "do not match: operator torchvision::nms does not exist"
    assert "force-reinstall torch torchvision" in pair["advice"]
    assert "SELFSIGHT_CACHE" in findings["cache"]["advice"]


@pytest.mark.parametrize(
    ("version", "requirement", "fit"),
    [
        ("2.15.0+cpu", "torch!=2.13.0,>=2.10", True),
        ("2.13.0", "torch!=2.13.0,>=2.10", False),
        ("2.9.1", "torch!=2.13.0,>=2.10", False),
        ("1.0.31", "timm<1.1,>=1.0.31", True),
        ("1.1", "timm<1.1,>=1.0.31", False),
        ("13.0.0rc1", "pillow>=13; extra == 'x<1'", True),
    ],
)
def test_versions(version: str, requirement: str, fit: bool) -> None:
    assert doctor.fits(version, requirement) is fit


def test_demo_passes_on_what_was_given(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    import selfsight

    seen: list[dict[str, object]] = []

    def run(**given: object) -> SimpleNamespace:
        seen.append(given)
        return SimpleNamespace(json=lambda: {"gain": 0.1})

    monkeypatch.setattr(selfsight, "demo", SimpleNamespace(run=run), raising=False)
    assert main(["demo"]) == 0
    capsys.readouterr()
    assert main(["demo", "--out", "run", "--seed", "3", "--json"]) == 0
    assert document(capsys) == {"gain": 0.1}
    assert seen == [{}, {"out": "run", "seed": 3}]


def test_print_config_is_what_config_takes(photos: Path, tmp_path: Path, capsys: Captured) -> None:
    words = ["pretrain", str(photos), "--max-bad-fraction", "0.1", "--lr", "0.25"]
    words += ["--size", "32", "--method.temperature", "0.2"]
    assert main([*words, "--print-config"]) == 0
    rows = [line.split(maxsplit=2) for line in capsys.readouterr().out.splitlines()]
    assert ["lr", "0.25", "given"] in rows
    assert ["method.temperature", "0.2", "given"] in rows
    assert all(len(row) == 3 for row in rows)
    assert main([*words, "--print-config", "--json"]) == 0
    first = document(capsys)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(first))
    assert main(["pretrain", "--config", str(file), "--print-config", "--json"]) == 0
    assert document(capsys) == first
    assert main(["pretrain", "--config", str(file), "--print-config", "--lr", "1"]) == 0
    assert ["lr", "1.0", "given"] in [
        line.split(maxsplit=2) for line in capsys.readouterr().out.splitlines()
    ]
    assert list(tmp_path.iterdir()) == [file]


def test_plain_values() -> None:
    value = {1: (np.float32(0.5), np.int64(3), float("nan")), "p": Path("a"), "b": True}
    assert plain(value) == {"1": [0.5, 3, None], "p": "a", "b": True}
    assert plain(doctor.Finding("a", "ok", "b"))["status"] == "ok"
    with pytest.raises(TypeError):
        plain(object())


def test_a_method_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    (tmp_path / "mine.py").write_text(
        "from selfsight.methods.base import Method\n"
        "class Mine(Method):\n"
        "    def __init__(self, encoder, *, depth: int = 1): ...\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    words = ["pretrain", "synthetic", "--out", "run", "--method", "mine:Mine"]
    assert main([*words, "--method.depht", "2"]) == 2
    expected = "unknown option --method.depht for mine:Mine; did you mean depth?"
    assert expected in capsys.readouterr().err


def test_from_photos_to_a_measured_encoder(photos: Path, tmp_path: Path, capsys: Captured) -> None:
    run = tmp_path / "run"
    words = ["pretrain", str(photos), "--out", str(run), "--max-bad-fraction", "0.1", "--quiet"]
    words += ["--encoder", "resnet18_small", "--size", "32", "--batch", "8", "--epochs", "1"]
    assert main([*words, "--json"]) == 0
    facts = document(capsys)
    assert facts["run"] == str(run)
    assert facts["config"]["batch"] == 8
    assert set(facts["verdict"]) == {"h", "z"}
    assert main(words) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert main(["resume", str(run), "--quiet"]) == 0
    assert capsys.readouterr().out == f"{run}\n"
    assert main(["evaluate", str(run), str(photos), "--protocols", "linear", "--json"]) == 0
    assert document(capsys)["size"] == 32
    out = tmp_path / "h.parquet"
    assert main(["embed", str(run / "model"), str(photos), "--out", str(out)]) == 0
    assert len(Features.load(out)) == 31


def test_a_table_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "40")
    # What looks like markup, or would move the cursor, is shown as it is.
    table(("name", "what"), [("[bold]a[/bold]", "b\x1b[2J")])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["[bold]a[/bold]", "b\\x1b[2J"] in lines
