"""What an encoder may be on the command line, beside a run and a name: files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from selfsight.cli import main
from selfsight.features import Features

Captured = pytest.CaptureFixture[str]


def features(n: int = 60, seed: int = 0, dim: int = 4, **more: Any) -> Features:
    label = np.arange(n) % 2
    draw = np.random.default_rng(seed)
    given = {"label": label, "classes": ("cat", "dog"), **more}
    return Features(draw.normal(3.0 * label[:, None], 1.0, (n, dim)), **given)


def scores(capsys: Captured) -> list[Any]:
    results = json.loads(capsys.readouterr().out)["results"]
    assert len(results) == 1
    found: list[Any] = next(iter(results.values()))["scores"]
    return found


@pytest.mark.parametrize("ending", ["npz", "parquet"])
def test_features_for_an_encoder(
    ending: str, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    files = [f"train.{ending}", f"test.{ending}"]
    features().save(files[0])
    features(30, seed=1).save(files[1])
    assert main(["evaluate", *files, "--protocols", "knn,linear", "--knn.k", "5", "--json"]) == 0
    found = scores(capsys)
    assert [(score["protocol"], score["n"]) for score in found] == [("knn", 30), ("linear", 30)]
    assert all(score["value"] > 0.9 for score in found)
    # One file is split: a fifth of it is the test.
    assert main(["evaluate", files[0], f"./{files[0]}", "--protocols", "knn", "--json"]) == 0
    assert [score["n"] for score in scores(capsys)] == [12]
    assert main(["evaluate", *files, "--protocols", "knn"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[0] == files[0]


@pytest.mark.parametrize(
    ("train", "test", "words", "code", "message"),
    [
        ({}, {"dim": 5}, [], 2, "training features have 4 channels and test features 5"),
        ({}, {"label": None}, [], 2, "the test images have no labels"),
        ({"label": None}, {}, [], 2, "the training images have no labels"),
        ({}, {"classes": ("cat", "owl")}, [], 2, "only one of them has dog, owl"),
        ({"n": 3}, {}, [], 2, "kNN with k=20 needs as many training images, got 3"),
        ({}, {"bad": True}, [], 2, "1 test embeddings are not finite, the first of 7"),
        ({}, {}, ["--size", "32"], 2, "--size is for encoders, and train.npz holds embeddings"),
        ({}, {}, ["--controls"], 2, "--controls is for encoders"),
        ({}, {}, ["--pretrained"], 2, "--pretrained is for encoders"),
    ],
)
def test_unusable_features_are_one_line(
    train: dict[str, Any],
    test: dict[str, Any],
    words: list[str],
    code: int,
    message: str,
    tmp_path: Path,
    capsys: Captured,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    features(**train).save("train.npz")
    bad = test.get("bad", False)
    counted = features(20, seed=1, **{k: v for k, v in test.items() if k != "bad"})
    if bad:
        counted.embedding[7, 1] = np.nan
    counted.save("test.npz")
    assert main(["evaluate", "train.npz", "test.npz", "--protocols", "knn", *words]) == code
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["evaluate", "f.npz", "photos"], 2, "f.npz holds embeddings, and DATA those to test on"),
        (["evaluate", "f.npz", "absent.npz"], 74, "No such file"),
        (["evaluate", "absent.npz", "f.npz"], 74, "No such file"),
        (["evaluate", "photos.npz", "f.npz"], 74, "not a selfsight feature file"),
        (["embed", "f.npz", "photos", "--out", "h.npz"], 2, "f.npz holds embeddings, and an"),
        (["embed", "absent.onnx", "photos", "--out", "h.npz"], 2, "absent.onnx does not exist"),
        (["embed", "notes.txt", "photos", "--out", "h.npz"], 2, "notes.txt is no encoder"),
        (["evaluate", "a.safetensors", "photos"], 2, "selfsight convert a.safetensors"),
        (["evaluate", "absent.pth", "photos"], 2, "absent.pth does not exist"),
    ],
)
def test_other_files(
    words: list[str],
    code: int,
    message: str,
    tmp_path: Path,
    capsys: Captured,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    features().save("f.npz")
    np.savez("photos.npz", images=np.zeros((2, 8, 8, 3), np.uint8))
    for name in ("notes.txt", "a.safetensors"):
        Path(name).touch()
    assert main(words) == code
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_a_graph_for_an_encoder(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    body = helper.make_graph(
        [helper.make_node("GlobalAveragePool", ["x"], ["y"])],
        "mean colour",
        [helper.make_tensor_value_info("x", kind, ["n", 3, 16, 16])],
        [helper.make_tensor_value_info("y", kind, ["n", 3, 1, 1])],
    )
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    Path("mean.onnx").write_bytes(model.SerializeToString())
    pixels = np.random.default_rng(0).integers(0, 90, (40, 20, 20, 3), np.uint8)
    pixels[::2, ..., 0] += 120
    np.savez("data.npz", images=pixels, labels=np.arange(40) % 2)

    assert main(["embed", "mean.onnx", "data.npz", "--out", "h.npz"]) == 0
    assert "mean.onnx does not say how its images are normalised" in capsys.readouterr().err
    assert Features.load("h.npz").embedding.shape == (40, 3)
    assert main(["evaluate", "mean.onnx", "data.npz", "--protocols", "knn", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["size"] == 16
    assert facts["results"]["mean.onnx"]["scores"][0]["value"] == 1
    assert main(["evaluate", "mean.onnx", "data.npz", "--controls"]) == 2
    assert "no untrained twin" in capsys.readouterr().err
    assert main(["evaluate", "mean.onnx", "data.npz", "--size", "32"]) == 2
    assert "takes images of 16 pixels, not 32" in capsys.readouterr().err
