"""A run that was killed, stopped or damaged ends with the bytes of one that was not."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from PIL import Image
from processes import codes, finish, images, lines, running, wait_for
from safetensors.torch import load_file

import selfsight
from selfsight.errors import ConfigError, Stopped, StorageError
from selfsight.train import checkpoint, pretrain
from selfsight.train.signals import Signals

STEPS = 36


def words(photos, out, *more, save_every=5):
    return ("pretrain", photos, "--encoder", "test_resnet", "--batch", 8, "--epochs", 6,
            "--method.dim", 8, "--save-every", save_every, "--out", out, *more)  # fmt: skip


def result(out):
    """Everything that must not depend on interruptions: bytes, and the model's tensors, since
    the header of its file names its metadata in any order."""
    last = sorted((out / "checkpoints").glob("step-*"))[-1]
    files = [out / "metrics.jsonl", *last.iterdir()]
    found = {str(file.relative_to(out)): file.read_bytes() for file in files}
    weights = load_file(out / "model" / "model.safetensors")
    found |= {f"model: {name}": tensor.numpy().tobytes() for name, tensor in weights.items()}
    config = json.loads((out / "model" / "config.json").read_bytes())
    del config["selfsight"]["sha256"]
    return {**found, "model": config}


def contents(out):
    """All files but the lock, which names its last holder."""
    files = [p for p in out.rglob("*") if p.is_file() and p.name != "lock"]
    return {str(p.relative_to(out)): p.read_bytes() for p in files}


def saved(out):
    return [int(p.name[5:]) for p in sorted((out / "checkpoints").glob("step-*"))]


def undisturbed(tmp_path_factory, photos, ranks):
    folder = tmp_path_factory.mktemp("undisturbed")
    code = finish(folder / "log", *words(photos, folder / "run"), ranks=ranks)
    assert code == [0] * ranks, (folder / "log").read_text()
    return folder / "run"


@pytest.fixture(scope="module")
def alone(tmp_path_factory, photos):
    return undisturbed(tmp_path_factory, photos, 1)


@pytest.fixture(scope="module")
def together(tmp_path_factory, photos):
    return undisturbed(tmp_path_factory, photos, 2)


def test_the_undisturbed_run_is_what_it_should_be(alone):
    assert lines(alone / "metrics.jsonl") == STEPS
    assert saved(alone) == [35, 36]
    assert selfsight.load(alone).metrics[-1]["step"] == STEPS - 1


def test_two_runs_are_equal_to_the_byte(tmp_path, photos, alone):
    assert finish(tmp_path / "log", *words(photos, tmp_path / "run", save_every=7)) == [0]
    assert result(tmp_path / "run") == result(alone)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("inside", [False, True], ids=["anywhere", "inside saves"])
def test_killed_three_times(tmp_path, photos, alone, seed, inside):
    draw = random.Random(seed)
    out, log = tmp_path / "run", tmp_path / "log"
    killed = []
    for first, last in [(2, 9), (14, 20), (25, 30)]:
        at, delay = draw.randrange(first, last), draw.random() * 0.05
        print(f"seed {seed}: killed at line {at} + {1000 * delay:.0f} ms")  # shown on failure
        with running(log, *words(photos, out, "--resume", save_every=2)) as (process,):
            wait_for(lambda at=at: lines(out / "metrics.jsonl") >= at, [process])
            if inside:
                writing = (out / "checkpoints").glob
                wait_for(lambda writing=writing: any(writing(".tmp-*/*")), [process])
            else:
                time.sleep(delay)
            process.kill()
            killed += codes([process])
    assert killed.count(-9) >= 2, killed
    assert finish(log, "resume", out) == [0], log.read_text()
    assert result(out) == result(alone)
    assert not list((out / "checkpoints").glob(".tmp-*"))


def test_killed_before_the_first_checkpoint(tmp_path, photos, alone):
    out, log = tmp_path / "run", tmp_path / "log"
    with running(log, *words(photos, out, "--resume", save_every=30)) as (process,):
        wait_for(lambda: lines(out / "metrics.jsonl") >= 3, [process])
        process.kill()
        assert codes([process]) == [-9]
    assert saved(out) == []
    assert finish(log, *words(photos, out, "--resume", save_every=30)) == [0]
    assert result(out) == result(alone)


def test_killed_before_the_run_was_written_down(tmp_path, photos, alone):
    out = tmp_path / "run"
    out.mkdir()
    for debris in ("lock", "run.tmp"):
        (out / debris).write_text("{")
    assert finish(tmp_path / "log", *words(photos, out, "--resume")) == [0]
    assert result(out) == result(alone)


@pytest.mark.parametrize("victim", [0, 1])
def test_one_of_two_ranks_killed(tmp_path, photos, together, victim):
    """Its survivor ends, too, and both continue."""
    out, log = tmp_path / "run", tmp_path / "log"
    with running(log, *words(photos, out, "--resume"), ranks=2) as ranks:
        wait_for(lambda: lines(out / "metrics.jsonl") >= 8 + 9 * victim, ranks)
        ranks[victim].kill()
        ended = codes(ranks)
    assert ended[victim] == -9
    assert ended[1 - victim] not in (0, None)
    assert finish(log, "resume", out, ranks=2) == [0, 0], log.read_text()
    assert result(out) == result(together)


def test_ranks_see_the_same_samples_as_one_process(alone, together):
    one, two = selfsight.load(alone).metrics, selfsight.load(together).metrics
    assert [row["step"] for row in one] == [row["step"] for row in two]
    assert one[0]["loss"] == pytest.approx(two[0]["loss"], rel=1e-2)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 75), (signal.SIGINT, 130)]
)
def test_a_signal_finishes_the_step_and_saves(tmp_path, photos, alone, number, code):
    out, log = tmp_path / "run", tmp_path / "log"
    with running(log, *words(photos, out, save_every=30)) as (process,):
        wait_for(lambda: lines(out / "metrics.jsonl") >= 4, [process])
        os.kill(process.pid, number)
        assert codes([process]) == [code]
    (step,) = saved(out)
    assert 4 <= step < 30
    assert lines(out / "metrics.jsonl") == step
    assert f"stopped by {number.name} after step {step}" in log.read_text()
    assert not (out / "model").exists()
    assert finish(log, *words(photos, out, "--resume", save_every=30)) == [0]
    assert f"continuing after step {step} of {STEPS}" in log.read_text()
    assert result(out) == result(alone)


def test_a_signal_to_one_rank_stops_both(tmp_path, photos, together):
    out, log = tmp_path / "run", tmp_path / "log"
    with running(log, *words(photos, out, save_every=30), ranks=2) as ranks:
        wait_for(lambda: lines(out / "metrics.jsonl") >= 4, ranks)
        os.kill(ranks[1].pid, signal.SIGTERM)
        assert codes(ranks) == [143, 143]
    assert saved(out) == [lines(out / "metrics.jsonl")]
    assert finish(log, "resume", out, ranks=2) == [0, 0]
    assert result(out) == result(together)


def test_a_second_signal_aborts(tmp_path, photos, alone):
    out, log = tmp_path / "run", tmp_path / "log"
    with running(log, *words(photos, out, save_every=30)) as (process,):
        wait_for(lambda: lines(out / "metrics.jsonl") >= 4, [process])
        # Both wait until the process goes on, so that no step ends between them.
        for number in (signal.SIGSTOP, signal.SIGTERM, signal.SIGINT, signal.SIGCONT):
            os.kill(process.pid, number)
        assert codes([process]) in ([-signal.SIGTERM], [-signal.SIGINT])
    assert saved(out) == []
    assert finish(log, "resume", out) == [0]
    assert result(out) == result(alone)


def test_the_real_command_line(tmp_path, photos, alone):
    out = tmp_path / "run"
    program = [sys.executable, "-m", "selfsight"]
    start = [*program, *map(str, words(photos, out))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(start, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            while lines(out / "metrics.jsonl") < 4 and process.poll() is None:
                time.sleep(0.01)
            process.send_signal(signal.SIGINT)
            _, told = process.communicate(timeout=120)
        finally:
            process.kill()
    assert process.returncode == 130, told
    assert re.search(r"^selfsight pretrain: stopped by SIGINT after step \d+", told, re.M)
    again = subprocess.run(
        [*program, "resume", out], env=environment, capture_output=True, text=True, timeout=120
    )
    assert (again.returncode, again.stdout) == (0, f"{out}\n"), again.stderr
    assert result(out) == result(alone)


@pytest.fixture
def copy(tmp_path, alone):
    """A finished run to spoil."""
    return shutil.copytree(alone, tmp_path / "copy")


def test_a_finished_run_is_not_trained_again(tmp_path, photos, copy):
    before, steps = result(copy), (copy / "timing.jsonl").read_bytes()
    assert finish(tmp_path / "log", *words(photos, copy, "--resume")) == [0]
    assert finish(tmp_path / "log", "resume", copy) == [0]
    assert result(copy) == before
    assert (copy / "timing.jsonl").read_bytes() == steps


def test_a_run_is_never_written_over(tmp_path, photos, copy):
    before = contents(copy)
    assert finish(tmp_path / "log", *words(photos, copy)) == [2]
    assert "already holds a run; add --resume to continue it" in (tmp_path / "log").read_text()
    assert contents(copy) == before


@pytest.mark.parametrize(
    ("changed", "diff"),
    [
        (("--lr", 0.5), "lr was 0.009375, is 0.5"),
        (("--method.dim", 16), "options was {'dim': 8}, is {'dim': 16}"),
        (("--seed", 1, "--epochs", 7), "epochs was 6, is 7; seed was 0, is 1"),
    ],
)
def test_a_changed_configuration_is_refused_with_the_difference(
    tmp_path, photos, copy, changed, diff
):
    before = contents(copy)
    assert finish(tmp_path / "log", *words(photos, copy, "--resume", *changed)) == [2]
    assert f"cannot resume, the run has changed: {diff}" in (tmp_path / "log").read_text()
    assert contents(copy) == before


@pytest.mark.parametrize("damaged", [1, 2])
@pytest.mark.parametrize("how", ["truncated", "flipped", "missing", "empty"])
def test_damaged_checkpoints_are_passed_over(tmp_path, alone, copy, damaged, how):
    shutil.rmtree(copy / "model")
    for step in saved(copy)[-damaged:]:
        file = copy / "checkpoints" / checkpoint.name(step) / "optimizer.safetensors"
        whole = file.read_bytes()
        file.write_bytes(
            {
                "truncated": whole[:-9],
                "empty": b"",
                "missing": b"",
                "flipped": whole[:500] + bytes([whole[500] ^ 4]) + whole[501:],
            }[how]
        )
        if how == "missing":
            file.unlink()
    assert finish(tmp_path / "log", "resume", copy) == [0]
    told = (tmp_path / "log").read_text()
    assert told.count("; trying the one before") == damaged
    assert ("continuing after step 35" in told) is (damaged == 1)
    assert result(copy) == result(alone)


def test_a_checkpoint_of_another_method_is_refused(tmp_path, copy):
    path = copy / "checkpoints" / checkpoint.name(STEPS)
    found = checkpoint.load(path)
    shutil.rmtree(path)
    state = {**found.method, "stranger": torch.ones(3)}
    strange = checkpoint.Checkpoint(STEPS, state, found.optimizer, found.state)
    checkpoint.save(copy / "checkpoints", strange)
    assert finish(tmp_path / "log", "resume", copy) == [74]
    assert "does not fit the method" in (tmp_path / "log").read_text()


def test_changed_data_are_refused(tmp_path):
    folder, out = tmp_path / "photos", tmp_path / "run"
    folder.mkdir()
    for number, image in enumerate(images(9)[:-1]):
        Image.fromarray(image).save(folder / f"{number}.png")
    asked = {"out": out, "encoder": "test_resnet", "epochs": 1, "batch": 8, "quiet": True,
             "options": {"dim": 8}}  # fmt: skip
    selfsight.pretrain(folder, **asked)
    before = contents(out)
    Image.fromarray(images(9)[-1]).save(folder / "8.png")
    for again in (lambda: selfsight.resume(out, quiet=True),
                  lambda: selfsight.pretrain(folder, resume=True, **asked)):  # fmt: skip
        with pytest.raises(ConfigError, match="the data were 8 images, are 9, and differ"):
            again()
    (folder / "8.png").unlink()
    Image.fromarray(images(9)[-1]).save(folder / "0.png")
    with pytest.raises(ConfigError, match="the data were 8 images, are 8, and differ"):
        selfsight.resume(out, quiet=True)
    Image.fromarray(images(9)[0]).save(folder / "0.png")
    (folder / "7.png").unlink()
    with pytest.raises(ConfigError):
        selfsight.resume(out, quiet=True)
    assert contents(out) == before


def test_an_array_is_to_be_given_again(tmp_path):
    asked = {"out": tmp_path, "encoder": "test_resnet", "epochs": 1, "batch": 8, "quiet": True}
    selfsight.pretrain(images(8), **asked)
    with pytest.raises(ConfigError, match=r"array in memory; call selfsight\.pretrain with it"):
        selfsight.resume(tmp_path)
    selfsight.pretrain(images(8), resume=True, **asked)


def test_paths_may_be_path_objects(tmp_path, photos):
    run = selfsight.pretrain(
        photos, out=tmp_path / "run", encoder="test_resnet", epochs=1, quiet=True,
        cache=tmp_path / "cache",
    )  # fmt: skip
    assert run.record["habits"]["cache"] == str(tmp_path / "cache")


def test_signals_are_caught_for_a_while():
    before = signal.getsignal(signal.SIGUSR1)
    signals = Signals()
    with signals.caught():
        assert signals.code == 0
        os.kill(os.getpid(), signal.SIGUSR1)
        assert signals.code == 75
        assert Signals.name(75) == "SIGUSR1"
    assert signal.getsignal(signal.SIGUSR1) == before


class Impatient(Signals):
    """As if a signal came in the n-th step of this process."""

    steps = 0

    def __init__(self):
        # A run looks once before its first step.
        self.left = Impatient.steps and Impatient.steps + 1

    @property
    def code(self):
        self.left -= 1
        return 75 if self.left == 0 else 0


CROPS = {"hidden": 16, "dim": 8, "multi_crop": 2}
METHODS = {
    "simclr": {"options": {"dim": 8, "multi_crop": 2}, "accumulate": 2, "optimizer": "adamw",
               "lr": 0.01, "seed": 5},
    "byol": {"options": {"hidden": 16, "dim": 8}},
    "swav": {"options": {"prototypes": 6, "queue": 16, "queue_from": 0, "freeze": 0.5, **CROPS}},
    "deepcluster_v2": {"options": {"clusters": 5, **CROPS}},
    "mae": {"options": {"depth": 1, "width": 16, "heads": 2}, "encoder": "test_vit"},
}  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_every_method_goes_on_as_if_nothing_had_happened(tmp_path, monkeypatch, method):
    asked = {"method": method, "encoder": "test_resnet", "epochs": 4, "batch": 8, "quiet": True,
             "save_every": 100, **METHODS[method]}  # fmt: skip
    data = images(24)
    selfsight.pretrain(data, out=tmp_path / "whole", **asked)
    monkeypatch.setattr(pretrain, "Signals", Impatient)
    for steps, done in [(1, 1), (4, 5), (2, 7)]:
        Impatient.steps = steps
        with pytest.raises(Stopped, match=f"after step {done}") as caught:
            selfsight.pretrain(data, out=tmp_path / "parts", resume=True, **asked)
        assert caught.value.exit_code == 75
    Impatient.steps = 0
    selfsight.pretrain(data, out=tmp_path / "parts", resume=True, **asked)
    assert result(tmp_path / "parts") == result(tmp_path / "whole")


def test_a_run_folder_that_vanishes_is_a_clean_failure(tmp_path, monkeypatch):
    class Thief(Signals):
        @property
        def code(self):
            shutil.rmtree(tmp_path / "run", ignore_errors=True)
            return 0

        @code.setter
        def code(self, value):
            pass

    monkeypatch.setattr(pretrain, "Signals", Thief)
    with pytest.raises(StorageError, match="cannot write"):
        selfsight.pretrain(images(16), out=tmp_path / "run", encoder="test_resnet",
                           epochs=3, batch=8, quiet=True, save_every=2)  # fmt: skip
    assert not (tmp_path / "run").exists()
