"""A step that is not finite on one rank is skipped on all, and too many end the run."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from processes import finish, images

import selfsight
from selfsight import philox
from selfsight.distributed import gather, rank, world
from selfsight.errors import Diverged
from selfsight.methods.simclr import SimCLR
from selfsight.philox import Purpose
from selfsight.train import checkpoint, pretrain

BATCH, EPOCHS, STEPS = 8, 6, 36


def poison(patch, kind, steps, where):
    """Let the loss or only its gradient be broken at some steps of one rank."""
    forward = SimCLR.forward

    def poisoned(self, batch, clock):
        out = forward(self, batch, clock)
        if clock.step not in steps or rank() != where:
            return out
        if kind == "gradient":
            out.embedding.register_hook(lambda g: g * torch.nan)
            return out
        return replace(out, loss=out.loss * {"nan": torch.nan, "inf": torch.inf}[kind])

    patch.setattr(SimCLR, "forward", poisoned)


def command(words):
    """In a process of its own; afterwards all ranks must hold the same weights."""
    from selfsight.cli import main

    kind, steps, *words = words
    run = pretrain.run

    def compared(engine, *arguments, **options):
        try:
            run(engine, *arguments, **options)
        finally:
            for key, value in engine.method.state_dict().items():
                copies = gather(value.double().flatten()).view(world(), -1)
                assert copies.isfinite().all(), key
                assert (copies == copies[0]).all(), f"{key} differs between ranks"

    with pytest.MonkeyPatch.context() as patch:
        poison(patch, kind, set(json.loads(steps)), where=world_size() - 1)
        patch.setattr(pretrain, "run", compared)
        return main(words)


def world_size():
    return int(os.environ.get("WORLD_SIZE", "1"))


def words(photos, out, *more):
    return ("pretrain", photos, "--encoder", "test_resnet", "--batch", BATCH, "--epochs", EPOCHS,
            "--method.dim", 8, "--resume", "--precision", "fp32", "--out", out, *more)  # fmt: skip


def expected_samples(step):
    order = philox.permutation(0, step * BATCH // 48, Purpose.ORDER, 48)
    return sorted(order[step * BATCH % 48 :][:BATCH].tolist())


@pytest.mark.parametrize(("kind", "ranks"), [("nan", 1), ("nan", 2), ("inf", 2), ("gradient", 2)])
def test_a_broken_step_is_skipped_everywhere(tmp_path, photos, kind, ranks):
    out, broken = tmp_path / "run", [0, 7, 8, STEPS - 1]
    asked = (kind, json.dumps(broken), *words(photos, out, "--save-every", STEPS - 1))
    assert finish(tmp_path / "log", *asked, ranks=ranks, function=command) == [0] * ranks, (
        tmp_path / "log"
    ).read_text()
    rows = selfsight.load(out).metrics
    assert [row["step"] for row in rows if row.get("rejected")] == broken
    for row in rows:
        if row["step"] in broken:
            assert sorted(row["samples"]) == expected_samples(row["step"])
            assert "loss" not in row
        else:
            assert np.isfinite([row["loss"], row["gradient"]]).all()
    # The last step left no trace.
    before, after = (
        checkpoint.load(out / "checkpoints" / checkpoint.name(step)) for step in (STEPS - 1, STEPS)
    )
    for key, value in before.method.items():
        assert torch.equal(value, after.method[key]), key
    for key, value in before.optimizer.items():
        assert torch.equal(value, after.optimizer[key]), key
    assert (before.state["rejected"], after.state["rejected"]) == (0, 1)


def test_too_many_in_a_row_end_the_run_at_its_last_good_checkpoint(tmp_path, photos):
    out, log = tmp_path / "run", tmp_path / "log"
    asked = words(photos, out, "--save-every", 5)
    broken = json.dumps([3, *range(12, STEPS)])
    assert finish(log, "nan", broken, *asked, ranks=2, function=command) == [3, 3], log.read_text()
    assert "not finite in 10 steps in a row, the last of them 21" in log.read_text()
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row.get("rejected")] == [3, *range(12, 22)]
    assert not (out / "model").exists()
    said = []
    last = checkpoint.newest(out / "checkpoints", said.append)
    assert (last.step, last.state["rejected"], said) == (20, 8, [])
    # A second try goes on counting, and ends at once and alike.
    metrics = (out / "metrics.jsonl").read_bytes()
    assert finish(log, "nan", broken, *asked, ranks=2, function=command) == [3, 3]
    assert (out / "metrics.jsonl").read_bytes() == metrics
    # With the cause gone the run can be finished.
    assert finish(log, *asked, ranks=2) == [0, 0]
    assert len(selfsight.load(out).metrics) == STEPS


def test_from_python_it_is_an_error_with_a_code(tmp_path, monkeypatch):
    poison(monkeypatch, "nan", range(100), where=0)
    with pytest.raises(Diverged, match="Try a lower --lr") as caught:
        selfsight.pretrain(images(16), out=tmp_path, encoder="test_resnet", batch=8, epochs=9,
                           quiet=True, precision="fp32")  # fmt: skip
    assert caught.value.exit_code == 3
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 10
    assert selfsight.load(tmp_path).verdict["h"].state == "diverging"


def test_a_short_run_without_one_good_step_is_no_success(tmp_path, monkeypatch):
    poison(monkeypatch, "nan", range(100), where=0)
    with pytest.raises(Diverged, match="not finite in any step"):
        selfsight.pretrain(images(16), out=tmp_path, encoder="test_resnet", batch=8, epochs=1,
                           quiet=True, precision="fp32")  # fmt: skip
    assert not (tmp_path / "model").exists()


def resident(words):
    """The run, with this process's memory after each step written beside it."""
    from selfsight.cli import main
    from selfsight.train.journal import Journal

    step = Journal.step
    out = words[-1]

    def measured(self, done):
        step(self, done)
        with open("/proc/self/statm") as file:
            pages = file.read().split()[1]
        with open(f"{out}.memory", "a") as file:
            file.write(f"{int(pages) * os.sysconf('SC_PAGE_SIZE')}\n")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "step", measured)
        return main(words)


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs Linux's /proc")
def test_memory_does_not_grow_with_the_steps(tmp_path, photos):
    out = tmp_path / "run"
    asked = ("pretrain", photos, "--encoder", "test_resnet", "--batch", 4, "--epochs", 40,
             "--method.dim", 8, "--save-every", 60, "--quiet", "--out", out)  # fmt: skip
    assert finish(tmp_path / "log", *asked, function=resident) == [0]
    used = [int(line) for line in (tmp_path / "run.memory").read_text().split()]
    assert len(used) == 480
    # Both windows hold saves, whose memory is kept after the first.
    assert max(used[360:]) - max(used[130:240]) < 4 << 20
