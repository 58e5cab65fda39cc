"""A checkpoint is whole or absent, and says so."""

import hashlib
import io
import json
import os
import pickletools
import random
import resource
import shutil
import subprocess
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from selfsight.errors import CheckpointError, StorageError
from selfsight.optim import Recipe, build, set_rates
from selfsight.train import checkpoint
from selfsight.train.checkpoint import Checkpoint

FILES = ["manifest.json", "method.safetensors", "optimizer.safetensors", "state.json"]


def network(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))
    net.register_buffer("queue", torch.zeros(0, 2, 8))
    net.register_buffer("place", torch.tensor(3))
    return net.to(memory_format=torch.channels_last)


def example(step=5, seed=0):
    net = network(seed)
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.ones(2, 3, 4, 4)).square().sum().backward()
    optimizer.step()
    tensors = checkpoint.optimizer_tensors(optimizer, net)
    return Checkpoint(step, net.state_dict(), tensors, {"rejected": 2})


def silent(_):
    raise AssertionError("nothing should be passed over")


def same(one, other):
    return (
        (one.step, one.state) == (other.step, other.state)
        and one.method.keys() == other.method.keys()
        and one.optimizer.keys() == other.optimizer.keys()
        and all(torch.equal(one.method[k], other.method[k]) for k in one.method)
        and all(torch.equal(one.optimizer[k], other.optimizer[k]) for k in one.optimizer)
    )


def test_round_trip(tmp_path):
    saved = example()
    path = checkpoint.save(tmp_path / "checkpoints", saved)
    assert path.name == "step-00000005"
    assert sorted(p.name for p in path.iterdir()) == FILES
    found = checkpoint.load(path)
    assert same(found, saved)
    assert found.optimizer["0.weight/step"].shape == ()
    assert {k: t.dtype for k, t in found.method.items()} == {
        k: t.dtype for k, t in saved.method.items()
    }


@pytest.mark.parametrize("optimizer", ["sgd", "lars", "larc", "adamw"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_optimizer_goes_on_as_if_nothing_had_happened(tmp_path, optimizer, dtype):
    recipe = Recipe(optimizer=optimizer, lr=0.1, weight_decay=1e-2)

    def steps(net, inner, first, last):
        for step in range(first, last):
            generator = torch.Generator().manual_seed(step)
            x = torch.randn(4, 3, 4, 4, generator=generator, dtype=dtype)
            set_rates(inner, recipe, 0.1, step, 10, 2)
            net(x).square().sum().backward()
            inner.step()
            inner.zero_grad()

    undisturbed, first, second = (network(seed).to(dtype) for seed in (0, 0, 1))
    one = build([{"params": list(undisturbed.parameters())}], recipe)
    steps(undisturbed, one, 0, 6)
    two = build([{"params": list(first.parameters())}], recipe)
    steps(first, two, 0, 3)
    tensors = checkpoint.optimizer_tensors(two, first)
    path = checkpoint.save(tmp_path / "c", Checkpoint(3, first.state_dict(), tensors, {}))

    found = checkpoint.load(path)
    three = build([{"params": list(second.parameters())}], recipe)
    second.load_state_dict(found.method)
    checkpoint.restore_optimizer(three, second, found.optimizer)
    assert second[0].weight.is_contiguous(memory_format=torch.channels_last)
    for state in three.state.values():
        for value in state.values():
            strided = value.ndim == 4
            assert not strided or value.is_contiguous(memory_format=torch.channels_last)
    steps(second, three, 3, 6)
    for key, value in undisturbed.state_dict().items():
        assert torch.equal(value, second.state_dict()[key]), key
    before = checkpoint.optimizer_tensors(one, undisturbed)
    after = checkpoint.optimizer_tensors(three, second)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_foreign_optimizer_is_not_half_restored():
    net = network()
    inner = torch.optim.AdamW(net.parameters())
    with pytest.raises(KeyError):
        checkpoint.restore_optimizer(inner, net, {"9.weight/step": torch.tensor(1.0)})


def test_the_manifest_is_written_last(tmp_path, monkeypatch):
    written = []

    def noting(path, content):
        written.append(path.name)
        path.write_bytes(content)

    monkeypatch.setattr(checkpoint, "write_durably", noting)
    checkpoint.save(tmp_path / "c", example())
    assert sorted(written) == FILES
    assert written[-1] == "manifest.json"


def test_no_file_holds_a_pickle(tmp_path):
    path = checkpoint.save(tmp_path / "c", example())
    for file in path.iterdir():
        content = file.read_bytes()
        with pytest.raises((ValueError, IndexError)):
            pickletools.dis(content, out=io.StringIO())
        assert not content.startswith((b"PK", b"\x80"))
        # safetensors: the length of a JSON header; the others are JSON throughout.
        header = content
        if file.suffix == ".safetensors":
            header = content[8 : 8 + int.from_bytes(content[:8], "little")]
        assert isinstance(json.loads(header), dict)


def damages():
    draw = random.Random(0)

    def truncate(content):
        return content[: draw.randrange(1, len(content))]

    def flip(content):
        place = draw.randrange(len(content))
        return (
            content[:place]
            + bytes([content[place] ^ 1 << draw.randrange(8)])
            + content[place + 1 :]
        )

    foreign = [
        b"",
        b"[]",
        b"{}",
        b"null",
        b"7",
        b"[" * 100_000,
        b'{"a": 1}',
        b"\0" * 64,
        b"\xff\xfe",
    ]
    kinds = [(f"truncated {k}", truncate) for k in range(5)]
    kinds += [(f"flipped {k}", flip) for k in range(20)]
    kinds += [(f"replaced {text[:8]!r}", lambda _, text=text: text) for text in foreign]
    return kinds


@pytest.mark.parametrize("file", FILES)
def test_no_damage_is_loaded_silently(tmp_path, file):
    folder = tmp_path / "c"
    checkpoint.save(folder, example(5))
    path = checkpoint.save(folder, example(10, seed=1))
    whole = (path / file).read_bytes()
    for kind, damage in damages():
        content = damage(whole)
        assert content != whole
        (path / file).write_bytes(content)
        with pytest.raises(CheckpointError) as caught:
            checkpoint.load(path)
        assert "step-00000010" in str(caught.value), kind
        assert "\n" not in str(caught.value), kind
    (path / file).unlink()
    with pytest.raises(CheckpointError, match="step-00000010"):
        checkpoint.load(path)

    said = []
    found = checkpoint.newest(folder, said.append)
    assert found is not None
    assert same(found, example(5))
    assert len(said) == 1
    assert "step-00000010" in said[0]


@pytest.mark.parametrize("state", [b"[]", b"{}", b'{"step": 9}', b'{"step": "5"}', b"null", b"3"])
def test_a_state_that_does_not_belong_is_refused_even_with_its_sum(tmp_path, state):
    path = checkpoint.save(tmp_path / "c", example(5))
    (path / "state.json").write_bytes(state)
    sums = json.loads((path / "manifest.json").read_bytes())
    sums["state.json"] = hashlib.sha256(state).hexdigest()
    (path / "manifest.json").write_text(json.dumps(sums))
    with pytest.raises(CheckpointError):
        checkpoint.load(path)


def test_damaged_ones_do_not_count_as_kept(tmp_path):
    """Else the step after a fall-back is dropped in favour of what cannot be read."""
    folder = tmp_path / "c"
    for step in (5, 10, 15):
        checkpoint.save(folder, example(step), keep=3)
    for step in (10, 15):
        (folder / checkpoint.name(step) / "method.safetensors").write_bytes(b"")
    said = []
    found = checkpoint.newest(folder, said.append)
    assert found is not None
    assert found.step == 5
    assert len(said) == 2
    checkpoint.save(folder, example(6))
    names = sorted(p.name for p in folder.iterdir())
    assert [name.partition("-")[0] for name in names] == ["damaged", "damaged", "step", "step"]
    assert names[2:] == ["step-00000005", "step-00000006"]
    found = checkpoint.newest(folder, silent)
    assert found is not None
    assert found.step == 6


def test_when_all_are_damaged_there_is_none(tmp_path):
    folder = tmp_path / "c"
    for step in (5, 10):
        shutil.rmtree(checkpoint.save(folder, example(step)), ignore_errors=True)
        (folder / checkpoint.name(step)).mkdir()
    said = []
    assert checkpoint.newest(folder, said.append) is None
    assert len(said) == 2
    assert checkpoint.newest(tmp_path / "nothing", silent) is None


@pytest.mark.parametrize("keep", [-1, 0, 1, 2, 3])
def test_at_least_two_are_kept(tmp_path, keep):
    folder = tmp_path / "c"
    for step in range(1, 6):
        checkpoint.save(folder, example(step), keep=keep)
    kept = sorted(p.name for p in folder.iterdir())
    assert kept == [checkpoint.name(step) for step in range(1, 6)][-max(2, keep) :]


class Killed(BaseException):
    """What stops a process, as far as the code in it can tell."""


def killed_at(monkeypatch, k):
    """Die at the k-th call that touches the disk; a write dies half done."""
    calls = iter(range(10_000))
    real_write = checkpoint.write_durably

    def dying(function):
        def call(*arguments, **options):
            if next(calls) == k:
                raise Killed
            return function(*arguments, **options)

        return call

    def write(path, content):
        if next(calls) == k:
            Path(path).write_bytes(content[: len(content) // 2])
            raise Killed
        real_write(path, content)

    monkeypatch.setattr(checkpoint, "write_durably", write)
    monkeypatch.setattr(os, "fsync", dying(os.fsync))
    for name in ("mkdir", "rename", "unlink"):
        monkeypatch.setattr(Path, name, dying(getattr(Path, name)))
    monkeypatch.setattr(os, "rmdir", dying(os.rmdir))
    monkeypatch.setattr(os, "unlink", dying(os.unlink))


def test_killed_at_any_call_of_a_save_a_valid_checkpoint_stands(tmp_path):
    old, new = example(10), example(15, seed=1)
    outcomes = []
    for k in range(1000):
        folder = tmp_path / str(k)
        checkpoint.save(folder, example(5))
        checkpoint.save(folder, old)
        done = True
        with pytest.MonkeyPatch.context() as patch:
            killed_at(patch, k)
            try:
                checkpoint.save(folder, new)
            except Killed:
                done = False
        found = checkpoint.newest(folder, silent)
        assert found is not None
        outcomes.append(found.step)
        assert same(found, old if found.step == 10 else new)
        # What the kill left behind goes with the next save.
        checkpoint.save(folder, example(20))
        whole = [checkpoint.load(path).step for path in sorted(folder.iterdir())]
        assert whole == [found.step, 20]
        shutil.rmtree(folder)
        if done:
            break
    assert done
    assert len(outcomes) > 15
    assert outcomes == sorted(outcomes)
    assert {10, 15} == set(outcomes)


@contextmanager
def small_files(folder):
    folder.mkdir()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def small_disk(folder):
    folder.mkdir()
    mounted = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", folder]
    if shutil.which("mount") is None or subprocess.run(mounted, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")

    def fill(left):
        (folder / "filler").unlink(missing_ok=True)
        free = shutil.disk_usage(folder).free
        (folder / "filler").write_bytes(b"\0" * (free - left // 4096 * 4096))

    try:
        yield fill
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("place", [small_files, small_disk])
def test_a_full_disk_leaves_the_old_checkpoint_and_no_debris(tmp_path, place):
    folder = tmp_path / "disk"
    big = example(10)
    big = replace(big, method={**big.method, "wide": torch.ones(30_000)})
    with place(folder) as limit:
        checkpoints = folder / "checkpoints"
        checkpoint.save(checkpoints, example(5))
        for left in (0, 50, 4_000, 20_000, 100_000):
            limit(left)
            with pytest.raises(StorageError) as caught:
                checkpoint.save(checkpoints, big)
            text = str(caught.value)
            assert str(checkpoints) in text
            assert "bytes" in text or "No space" in text
            assert "\n" not in text
            assert [p.name for p in checkpoints.iterdir()] == ["step-00000005"]
            found = checkpoint.newest(checkpoints, silent)
            assert found is not None
            assert same(found, example(5))
        limit(resource.RLIM_INFINITY) if place is small_files else (folder / "filler").unlink()
        assert same(checkpoint.load(checkpoint.save(checkpoints, big)), big)


def test_a_run_folder_that_has_vanished_is_an_error(tmp_path):
    with pytest.raises(StorageError, match="No such file"):
        checkpoint.save(tmp_path / "gone" / "checkpoints", example())
    assert not (tmp_path / "gone").exists()
