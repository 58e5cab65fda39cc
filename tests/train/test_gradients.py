"""What a run tells of its layers' gradients when it is asked to."""

import numpy as np
import pytest
import torch
from processes import finish, images
from torch import nn

import selfsight
from selfsight.methods.simclr import SimCLR
from selfsight.train import loop

STEPS = 8


def train(out, data=None, **options):
    data = images(32, 32) if data is None else data
    return selfsight.pretrain(data, out=out, method="simclr", encoder="test_resnet",
                              size=32, epochs=4, batch=16, precision="fp32", quiet=True,
                              options={"dim": 8}, **options)  # fmt: skip


def blown_up(patch, step, factor):
    """Let the gradient of the encoder's first layer be multiplied at one step; its name."""
    forward, handles, names = SimCLR.forward, [], []

    def hooked(self, batch, clock):
        while handles:
            handles.pop().remove()
        name, layer = next(
            (name, m) for name, m in self.named_modules() if isinstance(m, nn.Conv2d)
        )
        names.append(name)
        if clock.step == step:
            handles.append(layer.weight.register_hook(lambda grad: grad * factor))
        return forward(self, batch, clock)

    patch.setattr(SimCLR, "forward", hooked)
    return names


def test_they_are_the_norms_before_clipping(tmp_path, monkeypatch):
    by_hand = []

    def clip(method, recipe):
        squares = {}
        for name, p in method.named_parameters():
            if p.grad is not None:
                layer = name.rpartition(".")[0]
                squares[layer] = squares.get(layer, 0.0) + p.grad.double().square().sum().item()
                p.grad.mul_(0.1)
        by_hand.append({layer: square**0.5 for layer, square in squares.items()})

    monkeypatch.setattr(loop.optim, "clip", clip)
    rows = train(tmp_path, gradients=True).metrics
    assert len(rows) == len(by_hand) == STEPS
    for row, norms in zip(rows, by_hand, strict=True):
        assert row["gradients"] == pytest.approx(norms, rel=1e-4, abs=1e-9)
        total = np.linalg.norm(list(row["gradients"].values()))
        assert total == pytest.approx(row["gradient"], rel=1e-4)


def test_a_spike_of_one_layer_stands_out(tmp_path, monkeypatch):
    names = blown_up(monkeypatch, 5, 1e4)
    rows = train(tmp_path, gradients=True).metrics
    usual = {layer: np.median([row["gradients"][layer] for row in rows])
             for layer in rows[0]["gradients"]}  # fmt: skip
    spikes = {(row["step"], layer) for row in rows for layer, norm in row["gradients"].items()
              if norm > 100 * usual[layer]}  # fmt: skip
    assert spikes == {(5, names[0])}


def test_a_rejected_step_tells_which_layer_it_was(tmp_path, monkeypatch):
    names = blown_up(monkeypatch, 3, torch.inf)
    row = train(tmp_path, gradients=True).metrics[3]
    assert row["rejected"]
    assert [layer for layer, norm in row["gradients"].items() if norm is None] == [names[0]]


def test_asking_changes_nothing_else(tmp_path):
    silent, asked = train(tmp_path / "silent"), train(tmp_path / "asked", gradients=True)
    for mute, row in zip(silent.metrics, asked.metrics, strict=True):
        assert "gradients" not in mute
        del row["gradients"]
        assert row == mute


def test_a_resumed_run_writes_the_same(tmp_path, monkeypatch, photos):
    whole = train(tmp_path / "whole", photos, gradients=True)

    def broken(self, batch, clock, forward=SimCLR.forward):
        if clock.step == 5:
            raise InterruptedError
        return forward(self, batch, clock)

    with monkeypatch.context() as patch:
        patch.setattr(SimCLR, "forward", broken)
        with pytest.raises(InterruptedError):
            train(tmp_path / "cut", photos, gradients=True, save_every=3)
    cut = selfsight.resume(tmp_path / "cut", quiet=True)
    assert cut.metrics == whole.metrics


def test_ranks_write_the_gradient_of_the_whole_batch(tmp_path, photos):
    first = []
    for ranks in (1, 2):
        out = tmp_path / f"run{ranks}"
        words = ("pretrain", photos, "--encoder", "test_resnet", "--batch", 8, "--epochs", 1,
                 "--method.dim", 8, "--precision", "fp32", "--gradients", "--out", out)  # fmt: skip
        log = tmp_path / "log"
        assert finish(log, *words, ranks=ranks) == [0] * ranks, log.read_text()
        first.append(selfsight.load(out).metrics[0]["gradients"])
    assert first[0] == pytest.approx(first[1], rel=1e-3, abs=1e-7)
