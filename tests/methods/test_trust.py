"""No code is loaded because a file names it."""

import json
import shutil

import numpy as np
import pytest

import selfsight
from selfsight.cli import main
from selfsight.errors import ConfigError

PAYLOAD = "import pathlib\npathlib.Path('canary').write_text('ran')\nclass X: pass\n"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trust")
    images = np.random.default_rng(0).integers(0, 256, (32, 32, 32, 3), np.uint8)
    np.savez(folder / "set.npz", images=images)
    selfsight.pretrain(folder / "set.npz", out=folder / "run", encoder="test_resnet", epochs=1,
                       batch=16, quiet=True)  # fmt: skip
    return folder


@pytest.fixture
def hostile(run, tmp_path, monkeypatch):
    """A run whose record names code that lies beside it."""
    shutil.copytree(run, tmp_path / "got")
    folder = tmp_path / "got" / "run"
    (folder / "payload.py").write_text(PAYLOAD)
    record = json.loads((folder / "run.json").read_text())
    record["config"]["method"] = "got.run.payload:X"
    (folder / "run.json").write_text(json.dumps(record))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert not (tmp_path / "canary").exists()


def test_resume_does_not_load_what_a_record_names(hostile, capsys):
    assert main(["resume", "got/run"]) == 2
    assert "name it yourself" in capsys.readouterr().err


def test_pretrain_resume_does_not_either(hostile):
    with pytest.raises(ConfigError, match="name it yourself"):
        selfsight.pretrain(hostile / "got" / "set.npz", out="got/run", resume=True, quiet=True)


def test_measuring_works_without_it(hostile):
    run = selfsight.load("got/run")
    assert run.untrained().dim == run.model.dim


def test_the_users_own_word_loads(run, tmp_path, monkeypatch):
    (tmp_path / "trusted_by_word.py").write_text(
        "from selfsight.methods.simclr import SimCLR\nclass Mine(SimCLR):\n    pass\n"
    )
    monkeypatch.chdir(tmp_path)
    words = [
        "pretrain",
        str(run / "set.npz"),
        "--method",
        "trusted_by_word:Mine",
        "--encoder",
        "test_resnet",
    ]
    words += ["--epochs", "1", "--batch", "16", "--quiet", "--out", "run"]
    assert main(words) == 0
    assert main([*words, "--resume"]) == 0
    assert main(["resume", "run"]) == 2
