"""Training and test images never mix, and their classes mean the same."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from selfsight.data import Source, check, duplicates, evaluation_split, open_source, sources
from selfsight.errors import DataError

Photos = Callable[..., Path]


def names(source: Source) -> set[str]:
    return {source.path(i) for i in range(len(source))}


@pytest.mark.parametrize("test", ["test", "val"])
def test_declared_parts(photos: Photos, test: str) -> None:
    photos(6, "root/train", classes=2)
    photos(4, f"root/{test}", classes=2, first=30)
    root = photos(1, "root/other").parent
    train, held = evaluation_split(root)
    assert (len(train), len(held)) == (6, 4)
    assert train.classes == held.classes == ("class0", "class1")
    assert held.name.endswith(test)


def test_classes_must_agree(photos: Photos) -> None:
    photos(6, "root/train", classes=3)
    root = photos(4, "root/test", classes=2).parent
    with pytest.raises(DataError, match=r"only .*train has class2"):
        evaluation_split(root)


def test_a_stratified_fifth(photos: Photos) -> None:
    root = photos(30, classes=3)
    shutil.copytree(root / "class0", root / "one")
    for extra in sorted((root / "one").iterdir())[1:]:
        extra.unlink()
    train, test = evaluation_split(root, seed=1)
    assert names(train) | names(test) == names(open_source(root))
    assert not names(train) & names(test)
    assert train.labels is not None
    assert test.labels is not None
    np.testing.assert_array_equal(np.bincount(train.labels), [8, 8, 8, 1])
    np.testing.assert_array_equal(np.bincount(test.labels), [2, 2, 2])
    assert names(evaluation_split(root, seed=1)[1]) == names(test)
    assert names(evaluation_split(root, seed=2)[1]) != names(test)


def test_labels_are_needed(photos: Photos) -> None:
    root = photos(4)
    with pytest.raises(DataError, match="one sub-folder per class, or give a CSV"):
        evaluation_split(root)
    single = photos(2, "single", classes=2)
    with pytest.raises(DataError, match="no class with two images"):
        evaluation_split(single)


@pytest.mark.parametrize(
    ("folders", "words"),
    [
        (("JPEGImages", "Annotations"), "boxes in VOC's layout, .* detection or multilabel$"),
        (("VOC2007/JPEGImages", "VOC2007/Annotations"), "detection or multilabel$"),
        (("train2017", "annotations/instances.json"), "boxes in COCO's JSON, .* detection$"),
        (("train/_annotations.coco.json", "valid/a"), "boxes in COCO's JSON, .* detection$"),
        (("train/images", "train/masks", "test/images"), "images with masks, .* segmentation$"),
        (("images", "targets"), "images with targets, .* dense$"),
        (("frames/bear", "masks/bear"), "clips with masks, .* propagation$"),
        (("JPEGImages/480p/bear", "Annotations/480p/bear"), "clips with masks, .* propagation$"),
    ],
)
def test_annotated_data_name_their_protocol(
    tmp_path: Path, folders: tuple[str, ...], words: str
) -> None:
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True)
    with pytest.raises(DataError, match=words) as caught:
        evaluation_split(tmp_path)
    assert "\n" not in str(caught.value)


def test_named_sets_have_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "SYNTHETIC", {"train": 24, "test": 12})
    train, test = evaluation_split("synthetic")
    assert (len(train), len(test)) == (24, 12)
    assert duplicates(train, test) == []
    part, rest = evaluation_split(open_source("synthetic"))
    assert (len(part), len(rest)) == (12, 12)


def test_duplicates(photos: Photos) -> None:
    train = open_source(photos(5, "train"))
    root = photos(3, "test", first=3)
    (root / "0009.jpg").write_bytes((root / "0001.jpg").read_bytes())
    test = open_source(root)
    assert duplicates(train, test) == [(3, 0), (4, 1), (4, 3)]
    # Each test image once, however many training images it is equal to.
    assert duplicates(test, train) == [(0, 3), (1, 4)]
    pixels = open_source(np.stack([train.read(3)]))
    assert duplicates(pixels, test.subset([2, 0])) == [(0, 1)]


def test_check(photos: Photos) -> None:
    photos(8, "root/train", classes=2)
    root = photos(3, "root/test", classes=2, first=7).parent
    (root / "train" / "class0" / "zz.png").write_bytes(b"")
    (root / "train" / "class0" / "twin.jpg").write_bytes(
        (root / "train" / "class1" / "0001.jpg").read_bytes()
    )
    found = check(root)
    assert found.images == 12
    assert found.formats == {"JPEG": 12}
    assert found.classes == {"class0": 7, "class1": 5}
    assert [skip.path for skip in found.skipped] == ["class0/zz.png"]
    assert found.duplicates == (("class0/twin.jpg", "class1/0001.jpg"),)
    assert found.leaks == (("class1/0007.jpg", "class0/0000.jpg"),)
    assert found.smallest == (16, 20)
    assert found.largest == (20, 26)
    assert found.max_size == 16
    assert found.json()["skipped"] == ({"path": "class0/zz.png", "reason": "an empty file"},)


def test_check_of_a_plain_folder(photos: Photos) -> None:
    root = photos(3)
    for number in range(3, 9):
        (root / f"000{number}.jpg").write_bytes(b"")
    found = check(root)
    assert (found.images, len(found.skipped)) == (3, 6)
    assert found.classes == {}
    assert found.leaks == ()
    assert check(np.zeros((4, 300, 200, 3), np.uint8)).max_size == 192
