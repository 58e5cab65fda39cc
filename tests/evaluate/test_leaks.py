"""Planted leaks of each kind are refused, and honest data are not."""

import shutil
from collections.abc import Callable, Sized
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from selfsight.data import open_source
from selfsight.data.base import Arrays, Source
from selfsight.data.split import evaluation_split
from selfsight.data.synthetic import synthetic
from selfsight.encoders import create_encoder
from selfsight.errors import DataError
from selfsight.evaluate import (
    KNN,
    Protocol,
    Report,
    Score,
    Sight,
    create,
    evaluate,
    judge,
    openings,
)
from selfsight.evaluate.leaks import label_channels, shared_rows
from selfsight.extraction import pixels
from selfsight.features import Features


def features(n: int, seed: int, classes: int = 3, dim: int = 8) -> Features:
    draw = np.random.default_rng(seed)
    label = np.arange(n) % classes
    return Features(draw.normal(label[:, None], 2.0, (n, dim)).astype(np.float32), label)


TRAIN, TEST = features(60, 0), features(30, 1)


def measured(train: Features, test: Features, **how: str) -> Report:
    return evaluate(train, test, [KNN(k=3)], **how)  # type: ignore[arg-type]


def appended(part: Features, columns: np.ndarray) -> Features:
    return replace(part, embedding=np.hstack([part.embedding, columns]))


def one_hot(label: np.ndarray) -> np.ndarray:
    return np.eye(3)[label]


def number(label: np.ndarray) -> np.ndarray:
    return label[:, None] / 7


def bits(label: np.ndarray) -> np.ndarray:
    return np.stack([label & 1, label >> 1], axis=1)


@pytest.mark.parametrize(
    ("column", "words"),
    [(one_hot, "channels 8, 9, 10 hardly"), (number, "channel 8 hardly"), (bits, "channels 8, 9")],
)
def test_channels_that_say_the_class_are_refused(column: object, words: str) -> None:
    parts = [appended(part, column(part.label)) for part in (TRAIN, TEST)]  # type: ignore[operator]
    with pytest.raises(DataError, match=rf"the labels are in the features: {words}") as caught:
        measured(*parts)
    assert "\n" not in str(caught.value)
    # Scaling hides nothing.
    scaled = [replace(part, embedding=3 * part.embedding - 1) for part in parts]
    with pytest.raises(DataError, match="the labels are in the features"):
        measured(*scaled)


def test_honest_channels_are_not_refused() -> None:
    draw = np.random.default_rng(2)
    for n, dim in ((4, 512), (12, 512), (100, 64)):
        label = np.arange(n) % 2
        codes = draw.integers(0, 2, (2, n, dim)).astype(np.float32)
        assert label_channels(codes[0], label, codes[1], label) == []
    # Units that never fire, and one that tells one class of three.
    dead = [appended(part, np.zeros((len(part), 4))) for part in (TRAIN, TEST)]
    part_of_it = [appended(part, part.label[:, None] == 1) for part in (TRAIN, TEST)]
    for parts in (dead, part_of_it):
        assert measured(*parts)["knn"].n == 30
    # In training alone it is no leak, and helps nobody.
    labels = TRAIN.label, TEST.label
    columns = [one_hot(labels[0]), one_hot(np.roll(labels[1], 1))]  # type: ignore[arg-type]
    found = label_channels(columns[0], labels[0], columns[1], labels[1])  # type: ignore[arg-type]
    assert found == []


def drawn(seed: int, classes: int, images: int, strength: float) -> list[tuple[Any, Any, Any]]:
    """(embedding, label, generator) of two parts, by normal features of 48 channels."""
    draw = np.random.default_rng(seed)
    centre = draw.normal(0, strength, (classes, 48))
    labels = [np.arange(n) % classes for n in (images, images // 2 + classes)]
    return [(centre[label] + draw.normal(size=(len(label), 48)), label, draw) for label in labels]


LEAKS: dict[str, Callable[[np.ndarray, int, np.random.Generator], np.ndarray]] = {
    "tiny": lambda label, classes, draw: 1e-4 * label[:, None] + 0.3,
    "negated": lambda label, classes, draw: -7.0 * label[:, None],
    "far away": lambda label, classes, draw: 1000 + 0.25 * label[:, None],
    "noise of each value": lambda label, classes, draw: (
        (1.0 + label[:, None]) * draw.normal(1, 1e-3, (len(label), 1))
    ),
    "noise": lambda label, classes, draw: (
        label[:, None] + draw.normal(0, 1e-3 * (classes - 1), (len(label), 1))
    ),
    "one per class, noise": lambda label, classes, draw: (
        np.eye(classes)[label] + draw.normal(0, 1e-3, (len(label), classes))
    ),
    "rotated": lambda label, classes, draw: np.random.default_rng(9).normal(
        size=(classes, classes)
    )[label],
    "bits": lambda label, classes, draw: label[:, None] >> np.arange(9) & 1,
    "float16": lambda label, classes, draw: (
        label[:, None] / 7 + draw.normal(0, 1e-4 * classes, (len(label), 1))
    ).astype(np.float16),
}


@pytest.mark.parametrize("classes", [2, 3, 40, 300])
@pytest.mark.parametrize("kind", LEAKS)
def test_a_disguised_label_is_seen(kind: str, classes: int) -> None:
    for seed in range(8 if classes < 40 else 1):
        planted: list[np.ndarray] = []
        for embedding, label, draw in drawn(seed, classes, 24 + 3 * classes, 2.0):
            column = LEAKS[kind](label, classes, draw)
            planted += [np.hstack([column, embedding]).astype(np.float32), label]
        found = label_channels(*planted)  # type: ignore[arg-type]
        assert found
        assert max(found) < planted[0].shape[1] - 48


HONEST: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "plain": lambda x: x,
    "mostly zero": lambda x: np.maximum(x - 8, 0),
    "signs": np.sign,
    "codes": lambda x: (x > 0) * 1.0,
    "few levels": lambda x: np.clip(np.rint(x / 10), -2, 2),
    "unit length": lambda x: x / np.linalg.norm(x, axis=1, keepdims=True),
    "heavy tails": lambda x: x**5,
    "enormous": lambda x: 1e36 * x,
}


@pytest.mark.parametrize("kind", HONEST)
@pytest.mark.parametrize(
    ("classes", "images", "strength"),
    [(2, 10, 30), (2, 22, 30), (2, 200, 30), (3, 60, 5), (20, 24, 20), (20, 200, 30)],
)
def test_honest_features_of_good_encoders_pass(
    kind: str, classes: int, images: int, strength: float
) -> None:
    # The deviation within a class is down to a thirtieth of that between classes.
    for seed in range(10):
        parts = [(HONEST[kind](x), label) for x, label, _ in drawn(seed, classes, images, strength)]
        given = [array for x, label in parts for array in (x.astype(np.float32), label)]
        assert label_channels(*given) == []


def test_an_image_far_from_all_others_hides_nothing_and_shows_nothing() -> None:
    (train, label, _), (test, other, _) = drawn(0, 2, 4000, 3)
    train[7] = 1e6
    parts = [train.astype(np.float32), label, test.astype(np.float32), other]
    assert label_channels(*parts) == []
    parts[0], parts[2] = (
        np.hstack([parts[0], label[:, None]]),
        np.hstack([parts[2], other[:, None]]),
    )
    assert label_channels(*parts) == [48]


def test_equal_rows_are_refused_or_dropped() -> None:
    planted = TRAIN.embedding.copy()
    planted[[4, 7, 9]] = TEST.embedding[[2, 2, 5]]
    label = np.where(np.isin(np.arange(60), [4, 7]), 2, TRAIN.label)
    train = replace(TRAIN, embedding=planted, label=label)
    words = "2 of 30 test features are training features, too, the first is 2, equal to 4; remove"
    with pytest.raises(DataError, match=words) as caught:
        measured(train, TEST)
    assert "--duplicates drop" in str(caught.value)
    report = measured(train, TEST, duplicates="drop")
    assert report["knn"].details["copies_left_out"] == 3
    rest = np.setdiff1d(np.arange(60), [4, 7, 9])
    assert report["knn"].value == measured(train.subset(rest), TEST)["knn"].value
    whole = replace(TEST, embedding=TEST.embedding + 0)
    with pytest.raises(DataError, match="every training feature is equal"):
        measured(whole, TEST, duplicates="drop")


def test_rows_that_different_images_share_are_not_copies() -> None:
    label = np.arange(40) % 2
    collapsed = np.tile(np.random.default_rng(0).normal(size=16), (40, 1)).astype(np.float32)
    codes = (np.arange(40)[:, None] >> np.arange(4) & 1).astype(np.float32)
    for rows in (collapsed, codes, np.zeros((40, 16), np.float32)):
        assert not len(shared_rows(rows, label, rows)[1])
    assert measured(Features(collapsed, label), Features(collapsed, label))["knn"].n == 40


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    images, labels, _ = synthetic(60, size=32)
    labels = labels % 2
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        place = tmp_path / "photos" / ("train" if index < 40 else "test") / f"class{label}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{index:02}.png")
    return tmp_path / "photos"


def some(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.png"))


def test_test_images_among_the_training_images_are_refused_or_dropped(photos: Path) -> None:
    assert [len(part) for part in evaluation_split(photos)] == [40, 20]
    for number, file in enumerate(some(photos / "test")[:3]):
        shutil.copy(file, photos / "train" / "class0" / f"again{number}.png")
    words = r"3 of 20 test images of .*test are training images, too, the first is .*png, equal to "
    with pytest.raises(DataError, match=words + ".*again0.png; remove") as caught:
        evaluation_split(photos)
    assert "\n" not in str(caught.value)
    sight = Sight(create_encoder("test_resnet", size=32, seed=0), 32)
    with pytest.raises(DataError, match=words):
        judge(sight, photos, [KNN(k=3)])
    report = judge(sight, photos, [KNN(k=3)], duplicates="drop")
    assert report["knn"].details["copies_left_out"] == 3
    for copy in (photos / "train").rglob("again*"):
        copy.unlink()
    clean = judge(sight, photos, [KNN(k=3)])
    assert "copies_left_out" not in clean["knn"].details
    assert clean["knn"].value == report["knn"].value
    assert clean["knn"].images != report["knn"].images


def test_a_split_of_our_own_keeps_equal_images_apart(photos: Path) -> None:
    files = some(photos / "train")
    for number, file in enumerate(files[:20]):
        shutil.copy(file, file.with_name(f"again{number}.png"))
    train, test = evaluation_split(photos / "train")
    contents = [{part.digest(i) for i in range(len(part))} for part in (train, test)]
    assert not contents[0] & contents[1]
    assert len(contents[0] | contents[1]) == 40
    skipped = [skip for skip in train.skipped if skip.reason == "equal to a test image"]
    assert len(train) + len(test) + len(skipped) == 60
    assert skipped


def named(images: np.ndarray, labels: np.ndarray) -> Source:
    return Arrays("named", images, labels, ("a", "b"))


def test_equal_arrays_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels, _ = synthetic(48, size=32)
    stored = {
        "set": named(images[:32], labels[:32] % 2),
        "set:test": named(images[30:], labels[30:] % 2),
    }
    monkeypatch.setattr("selfsight.data.split.parts", lambda data: ("set", "set:test"))
    monkeypatch.setattr("selfsight.data.split.open_source", lambda name, **_: stored[name])
    with pytest.raises(
        DataError, match=r"2 of 18 test images .* is named\[0\], equal to named\[30\]"
    ):
        evaluation_split("set")
    train, test = evaluation_split("set", duplicates="drop")
    assert (len(train), len(test)) == (30, 18)
    # One pixel that a glance may miss makes another image.
    stored["set"] = named(images[:32].copy(), labels[:32] % 2)
    stored["set"].images[[30, 31], 1, 1] ^= 1  # type: ignore[attr-defined]
    assert len(evaluation_split("set")[0]) == 32


def test_a_set_of_one_image_leaves_nothing() -> None:
    same = np.zeros((20, 8, 8, 3), np.uint8)
    with pytest.raises(DataError, match="nothing is left to learn from"):
        evaluation_split(Arrays("one", same, np.arange(20) % 2, ("a", "b")))


def test_honest_sets_are_not_refused(photos: Path) -> None:
    sight = Sight(create_encoder("test_resnet", size=32, seed=0), 32)
    images, labels, classes = synthetic(96, size=32)
    source = Arrays("synthetic", images, labels, tuple(classes))
    train, test = evaluation_split(source)
    assert len(train) + len(test) == 96
    assert evaluate(sight.embed(train), sight.embed(test), [KNN(k=3)])["knn"].n == len(test)
    assert evaluate(pixels(train), pixels(test), [KNN(k=3)])["knn"].n == len(test)
    small = open_source(photos / "train", labels=True).subset(range(0, 40, 8))
    assert len(evaluation_split(small)[1]) == 2


def with_masks(root: Path, images: np.ndarray) -> Path:
    """Two images to train on and two to test on, the last of which is the first."""
    for number, image in enumerate(images[[0, 1, 2, 0]]):
        for part in ("images", "masks", "targets"):
            folder = root / ("train" if number < 2 else "test") / part
            folder.mkdir(parents=True, exist_ok=True)
            content = image if part == "images" else image[..., 0] // 128
            Image.fromarray(content).save(folder / f"{number}.png")
    return root


def with_boxes(root: Path, images: np.ndarray) -> Path:
    """The same in Pascal VOC's layout."""
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / part).mkdir(parents=True)
    sides = zip(("xmin", "ymin", "xmax", "ymax"), (2, 3, 20, 18), strict=True)
    box = "".join(f"<{side}>{value}</{side}>" for side, value in sides)
    text = f"<annotation><object><name>cat</name><bndbox>{box}</bndbox></object></annotation>"
    for number, image in enumerate(images[[0, 1, 2, 0]]):
        Image.fromarray(image).save(root / "JPEGImages" / f"{number}.png")
        (root / "Annotations" / f"{number}.xml").write_text(text)
    (root / "ImageSets" / "Main" / "train.txt").write_text("0\n1\n")
    (root / "ImageSets" / "Main" / "test.txt").write_text("2\n3\n")
    return root


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("dense", with_masks),
        ("detection", with_boxes),
        ("multilabel", with_boxes),
        ("segmentation", with_masks),
    ],
)
def test_copies_with_masks_boxes_and_labels(
    name: str,
    written: Callable[[Path, np.ndarray], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    protocol = create(name)

    def counted(self: Protocol, sight: Sight, train: Sized, test: Sized) -> list[Score]:
        return [Score(name, name, len(train), 0, 9, len(test))]

    monkeypatch.setattr(type(protocol), "measure", counted)
    data = written(tmp_path / "data", synthetic(3, size=32)[0])
    sight = Sight(create_encoder("test_resnet", size=32, seed=0), 32)
    words = r"1 of 2 test images .*3\.png, equal to .*0\.png; .* part with --duplicates drop"
    with pytest.raises(DataError, match=words) as caught:
        judge(sight, data, [protocol])
    assert "\n" not in str(caught.value)
    (score,) = judge(sight, data, [protocol], duplicates="drop").scores
    assert (score.value, score.n) == (1, 2)
    assert score.details == {"copies_left_out": 1}
    assert len(score.images) == 64


def test_what_trains_on_nothing_refuses_no_copies(photos: Path) -> None:
    file = some(photos)[0]
    shutil.copy(file, file.with_name("again.png"))
    for duplicates in ("refuse", "drop"):
        ((_, images),) = openings([create("throughput")], photos, duplicates)  # type: ignore[arg-type]
        assert len(images) == 61
