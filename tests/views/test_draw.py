"""The compiled draw against the same formulas in numpy."""

from dataclasses import replace

import numpy as np
import pytest
from scenes import anything

from selfsight import philox
from selfsight.philox import Purpose
from selfsight.views import View, presets
from selfsight.views.draw import DRAWS, uniforms
from selfsight.views.sample import COLUMNS, sample

SEEDS = (0, 1, 2**31, 2**32 + 5, 2**62 + 3, 2**63 - 1, 2**63, 2**64 - 1)
POSITIONS = (0, 1, 2**31, 2**32 - 1, 2**32, 2**32 + 7, 2**62 + 1, 2**63 - 1)


@pytest.mark.parametrize("seed", SEEDS)
def test_uniforms_are_philoxs(seed):
    for position in POSITIONS:
        for purpose, view in ((Purpose.VIEW, 0), (Purpose.NOISE, 1), (Purpose.VIEW, 65535)):
            for count in (4, 44, 1000):
                ours = np.empty(count, np.float32)
                uniforms(np.uint64(seed), position, int(purpose), view, ours)
                theirs = philox.uniform(seed, position, purpose, count, view)
                assert ours.tobytes() == theirs.tobytes()
                assert 0 <= ours.min() <= ours.max() < 1


def test_uniforms_are_not_the_same_everywhere():
    first = np.empty(40, np.float32)
    uniforms(np.uint64(3), 2**40, 1, 2, first)
    for other in ((4, 2**40, 1, 2), (3 + 2**40, 2**40, 1, 2), (3, 2**41, 1, 2), (3, 5, 1, 2),
                  (3, 2**40, 2, 2), (3, 2**40, 1, 3)):  # fmt: skip
        ours = np.empty(40, np.float32)
        uniforms(np.uint64(other[0]), *other[1:], ours)
        assert not np.isin(ours, first).any()


def expected(
    view: View, sizes: np.ndarray, seed: int, position: np.ndarray, index: int
) -> dict[str, np.ndarray]:
    """Each column of the table, all samples at once, in double precision."""
    numbers = philox.uniform(seed, position, Purpose.VIEW, len(DRAWS), index).astype(np.float64)
    u = dict(zip(DRAWS, numbers.T, strict=True))
    height, width = np.asarray(sizes, np.float64).T
    n = len(position)

    def between(low: float, high: float, u: np.ndarray) -> np.ndarray:
        return low + (high - low) * u

    # The first of ten attempts that fits, or else the largest part of the centre.
    h = np.minimum(height, np.maximum(1, np.rint(width / view.ratio[0])))
    w = np.minimum(width, np.maximum(1, np.rint(height * view.ratio[1])))
    central = np.ones(n, bool)
    for i in reversed(range(10)):
        area = between(*view.crop, u[f"area{i}"]) * (height * width)
        ratio = np.exp(between(*np.log(view.ratio), u[f"ratio{i}"]))
        tall, wide = np.rint(np.sqrt(area / ratio)), np.rint(np.sqrt(area * ratio))
        fits = (tall > 0) & (tall <= height) & (wide > 0) & (wide <= width)
        h, w, central = np.where(fits, tall, h), np.where(fits, wide, w), central & ~fits
    jitter = u["jitter"] < view.jitter_p

    def factor(name: str, strength: float) -> np.ndarray:
        drawn = between(max(0.0, 1 - strength), 1 + strength, u[name])
        return np.where(jitter, drawn, 1)

    def when(name: str, probability: float, value: np.ndarray | float = 1, otherwise: float = 0):
        return np.where(u[name] < probability, value, otherwise)

    return {
        "top": np.floor(np.where(central, (height - h) / 2, u["top"] * (height - h + 1))),
        "left": np.floor(np.where(central, (width - w) / 2, u["left"] * (width - w + 1))),
        "height": h,
        "width": w,
        "flip": when("flip", view.flip),
        "turns": when("rotate", view.rotate, 1 + np.floor(3 * u["turn"])),
        "order": np.where(jitter, np.floor(24 * u["order"]), 0),
        "brightness": factor("brightness", view.jitter[0]),
        "contrast": factor("contrast", view.jitter[1]),
        "saturation": factor("saturation", view.jitter[2]),
        "hue": np.where(jitter, view.jitter[3] * (2 * u["hue"] - 1), 0),
        "gray": when("gray", view.gray),
        "sigma": when("blur", view.blur, between(*view.blur_sigma, u["sigma"])),
        "solarize": when("solarize", view.solarize),
        "equalize": when("equalize", view.equalize),
        "cutout_x": when("cutout", view.cutout, u["cutout_x"], -1),
        "cutout_y": when("cutout", view.cutout, u["cutout_y"], -1),
        "noise": when("noise", view.noise, 0.1),
        "sobel": when("sobel", view.sobel),
    }


def check(view: View, sizes: np.ndarray, seed: int, position: np.ndarray, index: int) -> None:
    ours = sample(view, sizes, seed=seed, position=position, index=index)
    theirs = expected(view, sizes, seed, position, index)
    assert tuple(theirs) == COLUMNS
    for name, column in theirs.items():
        differs = np.flatnonzero(ours[name] != column.astype(np.float32))
        assert not len(differs), (name, ours[name][differs[0]], column[differs[0]])


def extents(rng: np.random.Generator, n: int) -> np.ndarray:
    return np.maximum(1, np.exp(rng.uniform(0, np.log(20_000), (n, 2)))).astype(np.int64)


@pytest.mark.parametrize("seed", SEEDS)
def test_any_views_tables_are_these_formulas(seed):
    rng = np.random.default_rng(seed)
    for _ in range(40):
        position = rng.integers(0, rng.choice([100, 2**40, 2**62]), 50)
        check(anything(rng), extents(rng, 50), seed, position, int(rng.integers(0, 2**16)))


def test_papers_tables_are_these_formulas():
    rng = np.random.default_rng(0)
    papers = [presets.simclr_view(), presets.moco_view(1), *presets.dino_views(6), View(rotate=1)]
    for view in papers:
        for sizes in (extents(rng, 3000), np.full((3000, 2), 32), np.full((3000, 2), (1, 900))):
            check(view, sizes, 5, np.arange(3000), 1)


def test_a_negative_seed_is_its_last_64_bits():
    position = np.arange(50)
    sizes = np.full((50, 2), 100)
    one = sample(View(), sizes, seed=-3, position=position, index=0)
    other = sample(View(), sizes, seed=2**64 - 3, position=position, index=0)
    assert np.array_equal(one.values, other.values)
    check(View(), sizes, -3, position, 0)


@pytest.mark.parametrize(
    "change",
    [
        {"crop": (0.081, 1.0)},
        {"ratio": (0.75, 1.35)},
        {"jitter": (0.8, 0.8, 0.81, 0.2)},
        {"blur_sigma": (0.1, 2.001)},
        {"flip": 0.53},
    ],
)
def test_the_formulas_tell_neighbours_apart(change):
    sizes, position = np.full((200, 2), 500), np.arange(200)
    theirs = expected(replace(View(), **change), sizes, 1, position, 0)
    ours = sample(View(), sizes, seed=1, position=position, index=0)
    assert any((ours[c] != theirs[c].astype(np.float32)).any() for c in COLUMNS)
