"""Batches are a function of the step: of no thread, rank, interruption or history."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from selfsight.data import Source, open_source
from selfsight.data.loader import Loader, free_memory
from selfsight.errors import ConfigError, DataError
from selfsight.methods.base import Batch
from selfsight.views import IMAGENET_MEAN, IMAGENET_STD, View, apply, cpu

Photos = Callable[..., Path]
VIEWS = [View(size=12, blur_sigma=(0.1, 1.0)), View(size=8, crop=(0.1, 0.4), count=2)]


def loader(source: Source, **options: object) -> Loader:
    settings = {"batch": 8, "seed": 3, "mean": IMAGENET_MEAN, "std": IMAGENET_STD, "ahead": 2}
    settings |= options
    return Loader(source, VIEWS, **settings)


def equal(one: Batch, other: Batch) -> bool:
    return (
        all(map(torch.equal, one.views, other.views))
        and torch.equal(one.index, other.index)
        and torch.equal(one.boxes, other.boxes)
        and torch.equal(one.key.position, other.key.position)
        and (one.key.seed, one.key.step) == (other.key.seed, other.key.step)
    )


def joined(parts: list[Batch]) -> Batch:
    first = parts[0]
    return Batch(
        views=[torch.cat(views) for views in zip(*(part.views for part in parts), strict=True)],
        index=torch.cat([part.index for part in parts]),
        boxes=torch.cat([part.boxes for part in parts]),
        key=type(first.key)(
            first.key.seed, first.key.step, torch.cat([part.key.position for part in parts])
        ),
    )


@pytest.fixture(scope="module", autouse=True)
def kernels(_own_cache: None) -> str:
    """The cache of all tests, in which the views are compiled once."""
    cpu.compile_kernels(lambda _: None)
    return os.environ["SELFSIGHT_CACHE"]


@pytest.fixture
def source(photos: Photos) -> Source:
    return open_source(photos(20, classes=2), labels=True)


def test_what_a_batch_holds(source: Source) -> None:
    batch = loader(source).batch(1)
    assert [tuple(view.shape) for view in batch.views] == [(8, 3, 12, 12), *[(8, 3, 8, 8)] * 2]
    assert all(view.dtype == torch.float32 for view in batch.views)
    assert batch.boxes.shape == (8, 3, 4)
    assert batch.boxes.dtype == torch.float32
    assert batch.key.position.tolist() == list(range(8, 16))
    assert batch.labels is None
    supervised = loader(source, supervised=True).batch(1)
    assert supervised.labels is not None
    assert source.labels is not None
    np.testing.assert_array_equal(supervised.labels, source.labels[supervised.index])
    assert not torch.equal(batch.views[1], batch.views[2])


def test_an_epoch_shows_each_image_at_most_once(source: Source) -> None:
    batches = loader(source)
    assert batches.per_epoch == 2
    epochs = []
    for epoch in range(3):
        shown = joined([batches.batch(2 * epoch + step) for step in range(2)]).index.tolist()
        assert len(set(shown)) == 16
        assert shown == batches.order(epoch)[:16].tolist()
        assert sorted(batches.order(epoch).tolist()) == list(range(20))
        epochs.append(shown)
    assert epochs[0] != epochs[1] != epochs[2]
    assert loader(source, seed=4).order(0).tolist() != batches.order(0).tolist()


def test_a_pure_function_of_the_step(source: Source) -> None:
    forward, backward = loader(source), loader(source, ram_bytes=0)
    one = [forward.batch(step) for step in range(7)]
    other = [backward.batch(step) for step in reversed(range(7))][::-1]
    assert all(map(equal, one, other))


@pytest.mark.parametrize("threads", [2, 5])
def test_threads_change_nothing(source: Source, threads: int) -> None:
    one, other = loader(source), loader(source, threads=threads, ram_bytes=0)
    assert all(equal(one.batch(step), other.batch(step)) for step in range(5))


@pytest.fixture(params=["files", "stack", "list"])
def images(
    request: pytest.FixtureRequest, photos: Photos, monkeypatch: pytest.MonkeyPatch
) -> Source:
    """Sources of every kind that a loader treats differently."""
    if request.param == "files":
        return open_source(photos(20))
    arrays = open_source(np.random.default_rng(0).integers(0, 256, (20, 22, 31, 3), np.uint8))
    if request.param == "list":
        monkeypatch.setattr(arrays, "stack", lambda: None)
    return arrays


@pytest.fixture
def many_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even two small images are then a thread's whole task."""
    monkeypatch.setattr(cpu, "_TASK", 2e-6)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_views_are_the_same_for_any_threads_and_ranks(
    images: Source, world: int, many_parts: None
) -> None:
    whole = [loader(images, ram_bytes=0).batch(step) for step in (0, 3)]
    for threads in (1, 2, 4):
        ranks = [
            loader(images, rank=rank, world=world, threads=threads, ram_bytes=0)
            for rank in range(world)
        ]
        for step, expected in zip((0, 3), whole, strict=True):
            assert equal(joined([rank.batch(step) for rank in ranks]), expected)


def test_a_stack_and_a_list_of_the_same_images_are_painted_equally(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (12, 18, 25, 3), np.uint8)
    (tmp_path / "photos").mkdir()
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / "photos" / f"{number:02}.png")
    np.save(tmp_path / "photos.npy", pixels)
    wanted, position = np.array([3, 0, 11, 5, 5]), np.array([7, 2**40, 1, 9, 10])
    rendered = []
    for data in (
        pixels,
        tmp_path / "photos",
        tmp_path / "photos.npy",
        pixels.transpose(0, 3, 1, 2),
    ):
        batches = loader(open_source(data), batch=4)
        rendered.append(batches.render(wanted, position, batches.views, 5))
    subset = open_source(np.concatenate([pixels[::-1], pixels])).subset(np.arange(12, 24))
    for _ in range(2):
        batches = loader(subset, batch=4)
        rendered.append(batches.render(wanted, position, batches.views, 5))
        monkeypatch.setattr(subset, "stack", lambda: None)
    index, views, corners = rendered[0]
    assert index.tolist() == wanted.tolist()
    assert not torch.equal(views[0][3], views[0][4])
    for other, again, boxes in rendered[1:]:
        assert np.array_equal(other, index)
        assert all(map(torch.equal, views, again))
        assert np.array_equal(boxes, corners)


def test_views_are_those_of_apply(source: Source) -> None:
    batches = loader(source, batch=8)
    for step in (0, 5):
        batch = batches.batch(step)
        images = [source.read(index) for index in batch.index.tolist()]
        views = apply(images, VIEWS, seed=3, position=step)
        assert all(map(torch.equal, batch.views, views))


def test_many_crops_come_from_one_decoding(source: Source, many_parts: None) -> None:
    reads: list[int] = []
    read = source.read
    source.read = lambda i, least=0: (reads.append(i), read(i, least))[1]  # type: ignore[method-assign]
    for threads in (1, 4):
        batches = loader(source, threads=threads, ram_bytes=0)
        for step in range(3):
            reads.clear()
            batch = batches.batch(step)
            assert len(batch.views) == 3
            assert sorted(reads) == sorted(set(batch.index.tolist()))


def test_torch_threads_change_nothing(source: Source) -> None:
    before, batches = torch.get_num_threads(), loader(source)
    try:
        torch.set_num_threads(1)
        one = batches.batch(0)
        torch.set_num_threads(3)
        assert equal(one, batches.batch(0))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("world", "micros"), [(2, 1), (4, 1), (1, 4), (2, 2), (8, 1)])
def test_ranks_and_micro_batches_are_slices(source: Source, world: int, micros: int) -> None:
    whole = loader(source)
    ranks = [loader(source, rank=rank, world=world) for rank in range(world)]
    for step in (0, 3):
        parts = [rank.batch(step, micro, micros) for rank in ranks for micro in range(micros)]
        assert equal(joined(parts), whole.batch(step))


def test_sizes_of_data_and_batch(photos: Photos) -> None:
    images = np.zeros((40, 4, 4, 3), np.uint8)
    for n in range(1, 12):
        source = open_source(images[:n])
        for batch in range(17):
            for world in (1, 2, 4):
                if n < 2:
                    with pytest.raises(DataError, match="two at least"):
                        loader(source, batch=batch, world=world)
                elif batch < 1 or batch > n:
                    with pytest.raises(ConfigError, match=f"use --batch from 1 to {n}"):
                        loader(source, batch=batch, world=world)
                elif batch % world:
                    with pytest.raises(ConfigError, match=f"{world} ranks"):
                        loader(source, batch=batch, world=world)
                else:
                    assert loader(source, batch=batch, world=world).per_epoch == n // batch >= 1
    with pytest.raises(ConfigError, match="use a multiple of 6"):
        loader(open_source(images), world=2).batch(0, 0, 3)
    with pytest.raises(DataError, match="no labels"):
        loader(open_source(images), supervised=True)


def prefetchers() -> int:
    return sum("selfsight-prefetch" in thread.name for thread in threading.enumerate())


def test_the_stream_is_the_batches(source: Source) -> None:
    batches = loader(source, threads=2)
    steps = list(batches.stream(1, 6, micros=2))
    assert [step for step, _ in steps] == [1, 2, 3, 4, 5]
    for step, parts in steps:
        assert equal(joined(parts), batches.batch(step))
    assert list(batches.stream(4, 4)) == []
    assert prefetchers() == 0


def test_the_stream_runs_ahead_by_a_bounded_number(source: Source) -> None:
    asked: list[int] = []
    arrived = threading.Event()
    batches = loader(source)
    batch = batches.batch

    def watched(step: int, micro: int = 0, micros: int = 1) -> Batch:
        asked.append(step)
        if step == 2:
            arrived.set()
        return batch(step, micro, micros)

    batches.batch = watched  # type: ignore[method-assign]
    stream = batches.stream(0, 100)
    next(stream)
    assert arrived.wait(20)
    stream.close()
    assert asked == [0, 1, 2]
    assert prefetchers() == 0


def test_on_a_cpu_nothing_runs_beside_the_step(source: Source) -> None:
    batches = loader(source, ahead=None)
    stream = batches.stream(0, 3)
    step, parts = next(stream)
    assert prefetchers() == 0
    assert step == 0
    assert equal(parts[0], batches.batch(0))
    assert [step for step, _ in stream] == [1, 2]


def test_errors_reach_the_consumer(source: Source) -> None:
    batches = loader(source)
    batch = batches.batch

    def failing(step: int, micro: int = 0, micros: int = 1) -> Batch:
        if step == 3:
            raise RuntimeError("step three")
        return batch(step, micro, micros)

    batches.batch = failing  # type: ignore[method-assign]
    seen = []
    stream = batches.stream(0, 9)
    with pytest.raises(RuntimeError, match="step three"):
        seen.extend(step for step, _ in stream)
    assert seen == [0, 1, 2]
    assert prefetchers() == 0


ABANDON = """
import numpy as np, sys
from selfsight.data import open_source
from selfsight.data.loader import Loader
from selfsight.views import View
images = np.zeros((64, 32, 32, 3), np.uint8)
batches = Loader(open_source(images), View(size=16), batch=8, seed=0, mean=(0, 0, 0),
                 std=(1, 1, 1), threads=2, ahead=2)
stream = batches.stream(0, 10_000)
next(stream)
raise SystemExit(7)
"""


def test_an_abandoned_stream_does_not_hold_the_process(kernels: str) -> None:
    environment = {**os.environ, "SELFSIGHT_CACHE": kernels}
    done = subprocess.run([sys.executable, "-c", ABANDON], env=environment, timeout=300)
    assert done.returncode == 7


def test_a_file_lost_in_mid_run_is_replaced_by_the_next(photos: Photos) -> None:
    root = photos(20)
    source = open_source(root)
    whole = loader(source, batch=20, ram_bytes=0).batch(0)
    (root / "0004.jpg").unlink()
    (root / "0005.jpg").write_bytes((root / "0006.jpg").read_bytes())
    (root / "0019.jpg").write_bytes((root / "0019.jpg").read_bytes()[:50])
    reports = []
    for threads in (1, 4):
        skipped: list[tuple[str, str]] = []
        batches = loader(
            source,
            batch=20,
            threads=threads,
            on_skip=lambda path, reason, skipped=skipped: skipped.append((path, reason)),
            max_bad_fraction=0.2,
            ram_bytes=0,
        )
        batch = batches.batch(0)
        expected = whole.index.clone()
        for lost, found in {4: 6, 5: 6, 19: 0}.items():
            expected[whole.index == lost] = found
        assert torch.equal(batch.index, expected)
        kept = (batch.index == whole.index).nonzero()[:, 0]
        assert len(kept) == 17
        assert torch.equal(batch.views[0][kept], whole.views[0][kept])
        assert equal(batch, batches.batch(0))
        assert batches.failures == len(skipped) == 3
        reports.append(skipped)
    assert reports[0] == reports[1]
    reasons = dict(reports[0])
    assert "No such file" in reasons["0004.jpg"]
    assert reasons["0005.jpg"] == reasons["0019.jpg"] == "changed since the data set was opened"


def test_a_lost_file_is_replaced_equally_for_any_threads_and_ranks(
    photos: Photos, many_parts: None
) -> None:
    root = photos(20)
    source = open_source(root)
    for name, content in (("0004.jpg", b""), ("0005.jpg", b"no image"), ("0019.jpg", b"\xff\xd8")):
        (root / name).write_bytes(content)
    options = {"batch": 16, "max_bad_fraction": 0.2, "ram_bytes": 0}
    whole = [loader(source, **options).batch(step) for step in range(4)]
    assert not {4, 5, 19} & set(joined(whole).index.tolist())
    for world in (1, 2, 4):
        for threads in (1, 2, 4):
            parts = [loader(source, **options, rank=rank, world=world, threads=threads)
                     for rank in range(world)]  # fmt: skip
            for step, expected in enumerate(whole):
                assert equal(joined([part.batch(step) for part in parts]), expected)


def test_too_many_lost_files_end_the_run(photos: Photos) -> None:
    root = photos(20)
    source = open_source(root)
    for number in (3, 4):
        (root / f"000{number}.jpg").unlink()
    with pytest.raises(DataError, match=r"can no longer be read.*--max-bad-fraction") as error:
        list(loader(source, batch=20, ram_bytes=0, threads=3).stream(0, 3))
    assert "\n" not in str(error.value)
    for path in root.iterdir():
        path.unlink()
    with pytest.raises(DataError, match="can no longer be read"):
        loader(source, batch=4, max_bad_fraction=1).batch(0)


def test_small_sets_are_decoded_once(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = 3 * int(source.sizes.prod(axis=1).sum())
    reads: list[int] = []
    read = source.read
    monkeypatch.setattr(source, "read", lambda i: (reads.append(i), read(i))[1])
    kept, fresh = loader(source, ram_bytes=needed), loader(source, ram_bytes=needed - 1)
    for epoch in range(4):
        assert equal(kept.batch(2 * epoch), kept.batch(2 * epoch))
    assert len(reads) == len(set(reads))
    reads.clear()
    fresh.batch(0)
    fresh.batch(0)
    assert len(reads) == 16
    assert free_memory() > 2**20
