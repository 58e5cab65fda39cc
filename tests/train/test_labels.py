"""A method that learns from labels, through the command line: a folder with class sub-folders."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

import selfsight
from selfsight.cli import main
from selfsight.data.base import Arrays
from selfsight.errors import ConfigError, DataError
from selfsight.methods import METHODS, method_class


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three classes of 8 images that differ in brightness."""
    folder = tmp_path_factory.mktemp("photos")
    noise = np.random.default_rng(0).integers(0, 60, (24, 40, 40, 3), np.uint8)
    for i, pixels in enumerate(noise):
        where = folder / f"class {i % 3}"
        where.mkdir(exist_ok=True)
        Image.fromarray(pixels + 60 * np.uint8(i % 3)).save(where / f"{i}.png")
    return folder


@pytest.fixture
def flat(folder, tmp_path):
    """The same images in no sub-folders."""
    flat = tmp_path / "flat"
    flat.mkdir()
    for file in folder.glob("*/*.png"):
        shutil.copy(file, flat)
    return flat


def words(data, method, *more):
    return ["pretrain", str(data), "--method", method, "--encoder", "test_resnet", "--size", "32",
            "--batch", "8", "--quiet", *map(str, more)]  # fmt: skip


def weights(run):
    return load_file(run / "model" / "model.safetensors")


@pytest.mark.parametrize("name", ["supcon", "supervised"])
def test_from_a_folder_to_a_model_and_on(folder, tmp_path, name, capsys):
    """What is saved half-way goes on to the same end."""
    whole, half = tmp_path / "whole", tmp_path / "half"
    more = ("--epochs", 2, "--save-every", 4)
    assert main(words(folder, name, *more, "--out", whole)) == 0
    record = json.loads((whole / "run.json").read_text())
    assert record["config"]["method"] == name
    assert record["habits"]["labels"] is True
    assert record["data"]["classes"] == 3
    assert len(record["data"]["labels"]) == 64
    shutil.copytree(whole, half)
    shutil.rmtree(sorted((half / "checkpoints").glob("step-*"))[-1])
    shutil.rmtree(half / "model")
    assert main(["resume", str(half), "--quiet"]) == 0
    assert all((weights(whole)[key] == value).all() for key, value in weights(half).items())
    assert (half / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    # `pretrain --resume` without the method's name knows what is needed, too.
    again = [w for w in words(folder, name) if w not in ("--method", name)]
    assert main([*again, "--epochs", "2", "--out", str(half), "--resume"]) == 0
    capsys.readouterr()


def test_labels_are_learned(folder, tmp_path):
    run = selfsight.pretrain(
        folder, method="supervised", encoder="test_resnet", size=32, batch=8, epochs=10,
        optimizer="adamw", lr=3e-3, view={"crop": (0.5, 1.0)}, out=tmp_path / "run", quiet=True,
    )  # fmt: skip
    assert np.mean([row["loss"] for row in run.metrics[-3:]]) < 0.7 < run.metrics[0]["loss"]
    assert np.mean([row["accuracy"] for row in run.metrics[-3:]]) > 0.7


@pytest.mark.parametrize("name", [n for n in METHODS if method_class(n).supervised])
def test_without_labels_it_says_what_to_do(flat, tmp_path, name, capsys):
    for more in (("--out", tmp_path / "run"), ("--print-config",)):
        assert main(words(flat, name, "--epochs", 1, *more)) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert "sub-folder per class" in err
    assert not (tmp_path / "run" / "run.json").exists()
    images = np.zeros((16, 40, 40, 3), np.uint8)
    facts = {"method": name, "encoder": "test_resnet", "quiet": True}
    with pytest.raises(DataError, match="has no labels"):
        selfsight.pretrain(images, out=tmp_path / "array", **facts)
    single = Arrays("single", images, labels=np.zeros(16, np.int64))
    with pytest.raises(DataError, match=rf"{name} learns from labels of 2 classes .* has 1"):
        selfsight.pretrain(single, out=tmp_path / "single", **facts)


def test_an_option_may_ask_for_labels(folder, flat, tmp_path, capsys):
    """They are not read unasked then; a refusal leaves nothing that bars the next try."""
    out = tmp_path / "run"
    asked = words(folder, "debiased", "--method.unbiased", "true", "--epochs", 1, "--out", out)
    assert main(asked) == 2
    assert "and add --labels" in capsys.readouterr().err
    assert not out.exists()
    assert main([*asked, "--labels"]) == 0
    assert json.loads((out / "run.json").read_text())["supervised"] is True
    out = tmp_path / "other"
    asked = words(flat, "debiased", "--method.unbiased", "true", "--labels", "--out", out)
    assert main(asked) == 2
    assert not out.exists()


def test_the_choice_is_shown_without_training(folder, capsys):
    assert main([*words(folder, "supervised"), "--print-config", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["method"] == "supervised"


def test_other_labels_are_another_run(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (16, 40, 40, 3), np.uint8)

    def train(labels, method, out, **more):
        return selfsight.pretrain(
            Arrays("set", images, labels=np.array(labels)), method=method, size=32, batch=8,
            encoder="test_resnet", epochs=1, out=tmp_path / out, quiet=True, **more,
        )  # fmt: skip

    train([0, 1] * 8, "supervised", "a")
    with pytest.raises(ConfigError, match="the labels differ"):
        train([1, 0] * 8, "supervised", "a", resume=True)
    train([0, 1] * 8, "supervised", "a", resume=True)
    # Where they are only watched, they may be mended.
    train([0, 1] * 8, "simclr", "b")
    train([1, 0] * 8, "simclr", "b", resume=True)
