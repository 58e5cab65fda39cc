"""Runs whose encoder is compiled: the same files, the same steps to rounding, whole failures."""

import functools
import json

import numpy as np
import pytest
import torch
import torch._inductor.config
from processes import finish, images
from safetensors.torch import load_file

import selfsight
from selfsight.cli import main
from selfsight.data.base import Arrays
from selfsight.encoders import create_encoder
from selfsight.errors import ConfigError, Stopped
from selfsight.train import checkpoint, pretrain
from selfsight.train import config as subject
from selfsight.train.config import Settings, resolve
from selfsight.train.signals import Signals

# torch hides this warning by a filter that "error" comes before.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")

CROPS = {"hidden": 16, "dim": 8, "multi_crop": 2}
ASKED = {"encoder": "test_resnet", "size": 32, "epochs": 2, "batch": 8, "quiet": True}
METHODS = {
    "simclr": {"options": {"dim": 8}},
    "byol": {"options": {"hidden": 16, "dim": 8}},
    "moco_v2": {"options": {"dim": 8, "queue": 16, "norm_groups": 2}},
    "swav": {"options": {"prototypes": 6, "queue": 16, "queue_from": 0, **CROPS}},
    "deepcluster_v2": {"options": {"clusters": 5, **CROPS}},
    "dino": {"options": {"hidden": 16, "bottleneck": 8, "prototypes": 8, "multi_crop": 2}},
    "dino of a ViT": {"options": {"hidden": 16, "bottleneck": 8, "prototypes": 8, "multi_crop": 2},
                      "encoder": "test_vit", "size": 64},
    "mae": {"options": {"depth": 1, "width": 16, "heads": 2}, "encoder": "test_vit"},
    "mae with tokens": {"options": {"depth": 1, "width": 16, "heads": 2, "mask_token": True},
                        "encoder": "test_vit"},
}  # fmt: skip


@pytest.fixture(autouse=True)
def _fresh(monkeypatch, tmp_path):
    """Nothing compiled is left from one test to the next."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "torch"))
    torch.compiler.reset()


@pytest.fixture
def traced(monkeypatch):
    """Graphs are captured and differentiated as always, but run by torch: seconds, not minutes.

    Answers how many graphs were captured.
    """
    from torch._dynamo.utils import counters

    compile = functools.partial(torch.compile, backend="aot_eager")
    monkeypatch.setattr(torch, "compile", compile)
    counters.clear()
    return lambda: counters["stats"]["unique_graphs"]


def train(out, data=None, **asked):
    name = asked.pop("method", "simclr")
    known = {"method": name.partition(" ")[0], **METHODS[name]}
    return selfsight.pretrain(images(16) if data is None else data, out=out,
                              **{**ASKED, **known, **asked})  # fmt: skip


def tensors(out):
    last = sorted((out / "checkpoints").glob("step-*"))[-1]
    found = checkpoint.load(last)
    model = load_file(out / "model" / "model.safetensors")
    return {**found.method, **found.optimizer, **{f"model {key}": t for key, t in model.items()}}


def close(plain, compiled):
    """The same losses and gradients, under the same names the same values, to rounding."""
    assert len(plain.metrics) == len(compiled.metrics) > 0
    for before, after in zip(plain.metrics, compiled.metrics, strict=True):
        for value in ("loss", "gradient"):
            assert after[value] == pytest.approx(before[value], rel=1e-3)
    before, after = tensors(plain.path), tensors(compiled.path)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        # Adam's moments of a gradient that should be zero are rounding alone.
        if "/" not in name:
            apart = (after[name].double() - tensor.double()).norm()
            assert apart <= 1e-3 * tensor.double().norm() + 1e-5, name


HERE = {"swav", "dino", "mae"}  # every kind of thing that is compiled; the others are slow


@pytest.mark.parametrize(
    "method", [pytest.param(m, marks=[] if m in HERE else pytest.mark.heavy) for m in METHODS]
)
def test_every_method_computes_the_same(tmp_path, traced, method):
    """Two sizes of crops, teachers, sweeps in eval mode, masks."""
    plain = train(tmp_path / "plain", method=method, epochs=1)
    assert traced() == 0
    compiled = train(tmp_path / "compiled", method=method, epochs=1, compile=True)
    assert traced() > 0
    close(plain, compiled)


def test_what_it_says_watches_and_exports(tmp_path, traced, capsys):
    data = Arrays("labelled", images(16), np.arange(16) % 2)
    run = train(tmp_path / "run", data, compile=True, labels=True, quiet=False)
    assert "compile       True                     given\n" in capsys.readouterr().err
    assert any("knn" in row for row in run.metrics)
    captured = traced()
    encoder = create_encoder("test_resnet", size=32, pretrained=tmp_path / "run" / "model")
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(run.model.eval()(x), encoder.eval()(x))
    assert traced() == captured  # what is exported needs no compiler


class Impatient(Signals):
    """As if a signal came in the third step of this process."""

    def __init__(self):
        self.left = 4

    @property
    def code(self):
        self.left -= 1
        return 75 if self.left == 0 else 0


def test_a_stopped_run_goes_on_as_if_nothing_had_happened(tmp_path, traced, monkeypatch):
    train(tmp_path / "whole", compile=True, epochs=4)
    with monkeypatch.context() as patch:
        patch.setattr(pretrain, "Signals", Impatient)
        with pytest.raises(Stopped, match="after step 3"):
            train(tmp_path / "parts", compile=True, epochs=4)
    captured = traced()
    torch.compiler.reset()
    train(tmp_path / "parts", epochs=4, resume=True)  # what it was is recorded
    assert traced() > captured
    whole, parts = tensors(tmp_path / "whole"), tensors(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_it_is_frozen(tmp_path, traced):
    train(tmp_path / "run", epochs=1)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["config"]["compile"] is False
    with pytest.raises(ConfigError, match="changed: compile was False, is True"):
        train(tmp_path / "run", epochs=1, resume=True, compile=True)
    # A run of a version without the choice was not compiled.
    del record["config"]["compile"]
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    train(tmp_path / "run", epochs=1, resume=True)
    assert traced() == 0


def test_the_command_line(tmp_path, capsys):
    words = ["pretrain", "synthetic", "--encoder", "test_resnet", "--print-config"]
    assert main(words) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("compile")]
    assert line.split()[:3] == ["compile", "false", "compiled"]
    assert main([*words, "--compile", "--json"]) == 0
    config = capsys.readouterr().out
    assert json.loads(config)["compile"] is True
    (tmp_path / "asked.json").write_text(config)
    assert main(["pretrain", "--config", str(tmp_path / "asked.json"), "--print-config"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("compile")]
    assert line.split() == ["compile", "true", "given"]


@pytest.mark.parametrize("method", ["simclr", "deepcluster_v2"])  # the second begins by a sweep
def test_a_missing_compiler_is_one_line_and_leaves_nothing(tmp_path, method):
    absent = torch._inductor.config.patch("cpp.cxx", ("no-such-compiler",))
    with absent, pytest.raises(ConfigError, match=r"failed \(.* C\+\+ .*\); install") as caught:
        train(tmp_path / "run", method=method, compile=True)
    assert str(caught.value).startswith("--compile failed (")
    assert "\n" not in str(caught.value)
    assert "or train without --compile" in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_cache_that_others_can_write_to_is_not_used(monkeypatch):
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    monkeypatch.setattr(subject, "kernels_folder", lambda: None)
    with pytest.raises(ConfigError, match="set SELFSIGHT_CACHE to a folder of your own"):
        resolve(Settings(compile=True, encoder="test_resnet"), Arrays("photos", images(16)))


def traced_command(words):
    from selfsight.cli import main

    torch.compile = functools.partial(torch.compile, backend="aot_eager")
    return main(words)


@pytest.mark.heavy
def test_two_ranks(tmp_path, photos):
    """BatchNorm talks to the other rank from inside of what is compiled."""
    words = ["pretrain", photos, "--encoder", "test_resnet", "--size", 32, "--batch", 16,
             "--epochs", 1, "--method.dim", 8]  # fmt: skip
    for name, more in (("plain", []), ("compiled", ["--compile"])):
        log = tmp_path / f"{name}.log"
        ranked = [*words, *more, "--out", tmp_path / name]
        assert finish(log, *ranked, ranks=2, function=traced_command) == [0, 0], log.read_text()
    close(selfsight.load(tmp_path / "plain"), selfsight.load(tmp_path / "compiled"))


@pytest.mark.heavy
@pytest.mark.parametrize("method", ["swav", "mae"])
def test_the_real_compiler(tmp_path, method):
    plain = train(tmp_path / "plain", method=method, epochs=1)
    close(plain, train(tmp_path / "compiled", method=method, epochs=1, compile=True))
