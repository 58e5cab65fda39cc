"""The embedded set: the same everywhere, balanced, and not to be told by colour or pixels."""

import zlib

import numpy as np
import pytest

from selfsight.data import synthetic as module
from selfsight.data.synthetic import CLASSES, synthetic
from selfsight.errors import ConfigError

Array = np.ndarray


@pytest.fixture(scope="module")
def drawn() -> tuple[Array, Array, Array, Array]:
    train, labels, _ = synthetic(960, size=32)
    test, answers, _ = synthetic(480, size=32, split="test")
    return train, labels, test, answers


def nearest(x: Array, y: Array, new: Array, k: int = 20) -> Array:
    """The majority among the k nearest by Euclidean distance."""
    distance = (x * x).sum(1) - 2 * new @ x.T
    votes = y[np.argsort(distance, axis=1, kind="stable")[:, :k]]
    counts = (votes[:, :, None] == np.arange(len(CLASSES))).sum(1)
    return counts.argmax(1)


def test_form() -> None:
    images, labels, classes = synthetic(25, size=32)
    assert images.shape == (25, 32, 32, 3)
    assert images.dtype == np.uint8
    assert labels.shape == (25,)
    assert labels.dtype == np.int64
    assert classes == CLASSES
    assert len(set(classes)) == len(classes) >= 10


def test_default_size() -> None:
    assert synthetic(1)[0].shape == (1, 48, 48, 3)


@pytest.mark.parametrize(
    ("split", "seed", "checksum"),
    [
        ("train", 0, 3554738837),
        ("test", 0, 3889354872),
        ("train", 1, 2270713524),
        ("train", 2**40, 2006072285),
    ],
)
def test_the_same_on_every_machine(split: str, seed: int, checksum: int) -> None:
    images, _, _ = synthetic(24, split=split, seed=seed)  # type: ignore[arg-type]
    assert zlib.crc32(images.tobytes()) == checksum


def test_first_images_do_not_depend_on_count() -> None:
    # 70 images take three pieces, 40 two, 5 one: their borders fall differently.
    images, labels, _ = synthetic(70, size=24)
    for count in (5, 40):
        fewer, known, _ = synthetic(count, size=24)
        assert np.array_equal(fewer, images[:count])
        assert np.array_equal(known, labels[:count])


def test_pieces_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    images, _, _ = synthetic(30, size=24)
    monkeypatch.setattr(module, "_CHUNK", 7)
    assert np.array_equal(synthetic(30, size=24)[0], images)


def test_balanced() -> None:
    for count in (960, 965):
        counts = np.bincount(synthetic(count, size=16)[1], minlength=len(CLASSES))
        assert counts.max() - counts.min() <= 1


def test_no_image_twice(drawn: tuple[Array, Array, Array, Array]) -> None:
    train, _, test, _ = drawn
    other, _, _ = synthetic(240, size=32, seed=1)
    everything = [image.tobytes() for part in (train, test, other) for image in part]
    assert len(set(everything)) == len(everything)


def test_splits_are_unrelated(drawn: tuple[Array, Array, Array, Array]) -> None:
    """Images of equal number and class share no more than any two of that class."""
    train, labels, test, _ = drawn
    x, z = (part[:480].reshape(480, -1).astype(np.float64) for part in (train, test))
    x, z = (v - v.mean(1, keepdims=True) for v in (x, z))
    x, z = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (x, z))
    same_number = (x * z).sum(1)
    same_class = (x * np.roll(z, len(CLASSES), axis=0)).sum(1)
    assert np.array_equal(labels[:480], np.roll(labels[:480], len(CLASSES)))
    assert abs(same_number.mean() - same_class.mean()) < 0.05
    assert same_number.max() < 0.9


def test_mean_colour_tells_nothing(drawn: tuple[Array, Array, Array, Array]) -> None:
    train, labels, test, answers = drawn
    x, z = (part.mean((1, 2)) for part in (train, test))
    right = (nearest(x, labels, z) == answers).mean()
    assert right < 2 / len(CLASSES)


def test_raw_pixels_tell_little(drawn: tuple[Array, Array, Array, Array]) -> None:
    train, labels, test, answers = drawn
    x, z = (part.reshape(len(part), -1).astype(np.float64) / 255 for part in (train, test))
    right = (nearest(x, labels, z) == answers).mean()
    assert right < 0.25


@pytest.mark.parametrize("number", range(len(CLASSES)))
def test_shapes_fit_their_radius(number: int) -> None:
    """Each has an inside, and none is cut: it ends within 1.25 units of its centre."""
    axis = np.linspace(-2, 2, 201, dtype=np.float32)
    x, y = np.meshgrid(axis, axis)
    inside = module._SHAPES[CLASSES[number]](x, y) < 0
    assert 0.1 < inside.mean() * 16 / np.pi < 0.9
    assert np.hypot(x[inside], y[inside]).max() < 1.25


@pytest.mark.parametrize(
    ("count", "size", "split"), [(0, 48, "train"), (12, 15, "train"), (12, 48, "val")]
)
def test_refuses(count: int, size: int, split: str) -> None:
    with pytest.raises(ConfigError, match="synthetic"):
        synthetic(count, size=size, split=split)  # type: ignore[arg-type]
