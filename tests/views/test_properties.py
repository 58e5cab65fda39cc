"""What holds for any view of any images."""

import numpy as np
import pytest
import torch
from scenes import anything, photo, photos
from torch import Tensor

from selfsight.views import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    View,
    apply,
    cpu,
    presets,
    reference,
    render,
)
from selfsight.views.sample import Table, sample

IMAGENET = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
CASES = 15  # of each test's seed


def painted(images: list[np.ndarray] | np.ndarray, drawn: Table, view: View, **options) -> Tensor:
    return cpu.render(images, drawn, view, **IMAGENET, **options)


def case(rng: np.random.Generator, *, alike: bool) -> tuple[View, list[np.ndarray], Table]:
    view, images = anything(rng), photos(rng, int(rng.integers(1, 12)), alike=alike)
    drawn = sample(
        view,
        reference.sizes(images),
        seed=int(rng.integers(2**62)),
        position=rng.integers(2**62, size=len(images)),
        index=int(rng.integers(20)),
    )
    return view, images, drawn


@pytest.mark.parametrize("alike", [False, True], ids=["mixed", "alike"])
@pytest.mark.parametrize("seed", range(8))
def test_any_view(seed, alike, monkeypatch):
    rng = np.random.default_rng([seed, alike])
    for _ in range(CASES):
        view, images, drawn = case(rng, alike=alike)
        n = len(images)
        whole = painted(images, drawn, view)
        assert whole.shape == (n, 3, view.size, view.size)
        assert whole.dtype == torch.float32
        assert whole.is_contiguous(memory_format=torch.channels_last)
        assert torch.isfinite(whole).all()
        if view.space == "raw":
            assert whole.min() >= 0
            assert whole.max() <= 1 + 1e-6
        with monkeypatch.context() as patch:
            patch.setattr(cpu, "_TASK", 1e-9)  # as many tasks as there are images
            for threads in (1, 2, 4):
                assert torch.equal(painted(images, drawn, view, threads=threads), whole)
        shuffled, backwards, thrice = rng.permutation(n), np.arange(n)[::-1], np.zeros(3, int)
        for rows in (shuffled, shuffled[: n // 2], shuffled[:1], backwards, thrice):
            part = painted([images[i] for i in rows], drawn.take(rows), view)
            assert torch.equal(part, whole[rows.tolist()])
        if alike:
            assert torch.equal(painted(np.stack(images), drawn, view), whole)
            assert torch.equal(painted(torch.from_numpy(np.stack(images)), drawn, view), whole)
        half = painted(images, drawn, view, dtype=torch.bfloat16)
        assert torch.equal(half, whole.to(torch.bfloat16))


def test_any_view_is_the_references():
    rng = np.random.default_rng(7)
    off = []
    for number in range(150):
        view, images, drawn = case(rng, alike=number % 2 == 0)
        far = (
            painted(images, drawn, view) - reference.render(images, drawn, view, **IMAGENET)
        ).abs()
        # Lab enlarges the colours' differences, and so do the deviations that divide.
        unit = {"raw": 1, "rgb": 1 / min(IMAGENET_STD), "lab": 5}[view.space]
        off.append((far > unit / 255).any(dim=1).flatten())
    assert torch.cat(off).float().mean() < 1e-3


def test_threads_of_their_usual_length_change_nothing():
    view = presets.simclr_view()
    images = [photo(150 + i, 260 - i, i) for i in range(40)]
    drawn = sample(view, reference.sizes(images), seed=0, position=np.arange(40), index=0)
    whole = painted(images, drawn, view)
    for threads in (2, 3, 4):
        assert torch.equal(painted(images, drawn, view, threads=threads), whole)


def test_apply_and_render_are_the_same_pixels():
    rng = np.random.default_rng(3)
    for alike in (False, True):
        images = photos(rng, 9, alike=alike)
        views = [anything(rng) for _ in range(3)]
        for threads in (1, 2, 4):
            given = apply(images, views, seed=5, position=2, threads=threads)
            for index, (view, x) in enumerate(zip(views, given, strict=True)):
                drawn = sample(
                    view,
                    reference.sizes(images),
                    seed=5,
                    position=18 + np.arange(9),
                    index=index,
                )
                assert torch.equal(render(images, drawn, view, **IMAGENET), x)


def test_a_failure_in_a_thread_reaches_the_caller():
    def task(part: slice) -> int:
        if part.start == 30:
            raise ValueError("image thirty")
        return part.start

    pixels = 40 * 224**2  # one image is worth a thread's while
    for threads in (1, 4):
        assert cpu.in_parts(task, 28, pixels, threads) == list(range(28))
        with pytest.raises(ValueError, match="image thirty"):
            cpu.in_parts(task, 40, pixels, threads)


def test_parts_cover_every_image_once_and_in_order():
    for size in (1, 32, 224, 1000):
        for count in (0, 1, 2, 9, 10, 11, 1000):
            for threads in (1, 2, 3):
                parts = cpu.in_parts(lambda part: part, count, size**2, threads)
                rows = [row for part in parts for row in range(count)[part]]
                assert rows == list(range(count))
                assert all(part.stop > part.start for part in parts)
