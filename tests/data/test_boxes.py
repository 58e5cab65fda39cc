"""Boxes from VOC's and COCO's files: what is read, cut, split and refused."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from selfsight.data import coco
from selfsight.data.base import Arrays
from selfsight.data.boxes import Boxes, Objects, open_boxes
from selfsight.data.split import COPY
from selfsight.errors import DataError

Thing = tuple[str, tuple[int, int, int, int], bool]


def photo(path: Path, width: int = 20, height: int = 10, number: int | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = sum(path.stem.encode()) if number is None else number
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(path)


def voc(
    root: Path,
    images: dict[str, Sequence[Thing]],
    sets: dict[str, Sequence[str]],
    size: tuple[int, int] = (20, 10),
) -> Path:
    for name, things in images.items():
        photo(root / "JPEGImages" / f"{name}.png", *size)
        objects = "".join(
            f"<object><name>{kind}</name><difficult>{int(hard)}</difficult><bndbox>"
            + "".join(
                f"<{side}>{value}</{side}>"
                for side, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
            )
            + "</bndbox></object>"
            for kind, box, hard in things
        )
        extent = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>"
        (root / "Annotations").mkdir(exist_ok=True)
        text = f"<annotation>{extent}{objects}</annotation>"
        (root / "Annotations" / f"{name}.xml").write_text(text)
    (root / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
    for name, members in sets.items():
        (root / "ImageSets" / "Main" / f"{name}.txt").write_text("\n".join(members) + "\n")
    return root


def names(part: Boxes) -> list[str]:
    return [Path(part.images.path(i)).stem for i in range(len(part))]


CAT: Thing = ("cat", (3, 2, 8, 6), False)
DOG: Thing = ("dog", (1, 1, 20, 10), True)


def test_voc(tmp_path: Path) -> None:
    root = voc(tmp_path, {"a": [CAT, DOG], "b": [CAT]}, {"trainval": ["a"], "test": ["b"]})
    train, test = open_boxes(root)
    assert (names(train), names(test)) == (["a"], ["b"])
    assert train.classes == test.classes == ("cat", "dog")
    assert train.kind == "voc"
    (objects,) = train.objects
    # From 0, and the last pixel included.
    assert objects.boxes.tolist() == [[2, 1, 8, 6], [0, 0, 20, 10]]
    assert objects.boxes.dtype == np.float32
    assert objects.labels.tolist() == [0, 1]
    assert objects.difficult.tolist() == [False, True]
    assert not objects.crowd.any()
    assert objects.area.tolist() == [30, 200]
    assert train.images.read(0).shape == (10, 20, 3)
    assert train.counts == {"boxes": 2, "clipped": 0, "dropped": 0}


@pytest.mark.parametrize(
    ("sets", "train", "test"),
    [
        ({"train": "a", "val": "b", "trainval": "ab", "test": "c"}, "ab", "c"),
        ({"train": "a", "val": "b", "test": "c"}, "ab", "c"),
        ({"train": "ac", "val": "b", "trainval": "acb"}, "ac", "b"),
    ],
)
def test_declared_parts(tmp_path: Path, sets: dict[str, str], train: str, test: str) -> None:
    root = voc(tmp_path, {name: [CAT] for name in "abc"}, {k: list(v) for k, v in sets.items()})
    assert [names(part) for part in open_boxes(root)] == [list(train), list(test)]


def test_several_years_are_one_set(tmp_path: Path) -> None:
    voc(tmp_path / "VOC2007", {"a": [CAT], "b": [CAT]}, {"trainval": ["a"], "test": ["b"]})
    voc(tmp_path / "VOC2012", {"c": [DOG]}, {"trainval": ["c"]})
    train, test = open_boxes(tmp_path)
    assert (names(train), names(test)) == (["a", "c"], ["b"])
    assert train.classes == test.classes == ("cat", "dog")


def test_a_split_is_drawn_where_none_is_declared(tmp_path: Path) -> None:
    members = [f"i{number}" for number in range(10)]
    root = voc(tmp_path, {name: [CAT] for name in members}, {"trainval": members})
    train, test = open_boxes(root)
    assert sorted(names(train) + names(test)) == members
    assert len(test) == 2
    assert names(open_boxes(root)[1]) == names(test)
    assert any(names(open_boxes(root, seed=seed)[1]) != names(test) for seed in (1, 2))


def test_boxes_are_cut_and_dropped() -> None:
    boxes = [(-3, 2, 5, 30), (0, 0, 20, 10), (4, 4, 4, 9), (25, 0, 30, 5), (9, 9, 3, 3)]
    objects = Objects.inside((10, 20), boxes, [0, 1, 2, 3, 4], area=[7, None, 1, 1, 1])
    assert objects.boxes.tolist() == [[0, 2, 5, 10], [0, 0, 20, 10]]
    assert objects.labels.tolist() == [0, 1]
    assert objects.area.tolist() == [7, 200]
    assert (objects.clipped, objects.dropped) == (1, 3)
    assert len(Objects.inside((10, 20), [], []).boxes) == 0
    # So far out single precision tells no hundredths of a pixel apart.
    assert Objects.inside((10, 10**6), [(900_000, 0, 900_000.02, 5)], [0]).dropped == 1


def test_points_are_counted(tmp_path: Path) -> None:
    point: Thing = ("cat", (5, 5, 5, 5), False)
    large: Thing = ("cat", (0, 1, 25, 10), False)
    root = voc(tmp_path, {"a": [CAT, point, large], "b": [CAT]}, {"train": ["a"], "val": ["b"]})
    assert open_boxes(root)[0].counts == {"boxes": 2, "clipped": 1, "dropped": 1}


def test_an_image_in_both_parts(tmp_path: Path) -> None:
    root = voc(tmp_path, {"a": [CAT], "b": [CAT]}, {"trainval": ["a", "b"], "test": ["b"]})
    with pytest.raises(DataError, match="names b for training and for the test"):
        open_boxes(root)


def test_copies_of_test_images(tmp_path: Path) -> None:
    sets = {"train": ["a", "b"], "val": ["c"]}
    root = voc(tmp_path, {name: [CAT] for name in "abc"}, sets)
    photo(root / "JPEGImages" / "a.png", number=ord("c"))
    with pytest.raises(DataError, match=r"1 of 1 test images of .* are training images.*a\.png"):
        open_boxes(root)
    train, _ = open_boxes(root, duplicates="drop")
    assert names(train) == ["b"]
    assert len(train.objects) == 1
    assert [(Path(skip.path).stem, skip.reason) for skip in train.skipped] == [("a", COPY)]


def test_an_annotation_of_another_picture(tmp_path: Path) -> None:
    root = voc(tmp_path, {name: [CAT] for name in "abc"}, {"train": ["a", "b"], "val": ["c"]})
    photo(root / "JPEGImages" / "a.png", 10, 20)
    train, _ = open_boxes(root)
    assert names(train) == ["b"]
    assert train.skipped[0].reason == "its annotation is of 20×10 pixels, the image of 10×20 pixels"
    with pytest.raises(DataError, match="1 of 2 images cannot be used"):
        open_boxes(root, max_bad_fraction=0)


def document(**changes: Any) -> dict[str, Any]:
    """Two images, categories 7 and 3."""
    box = {"image_id": 5, "category_id": 7, "bbox": [2, 1, 6, 5], "iscrowd": 0, "area": 11.5}
    crowd = {"image_id": 5, "category_id": 3, "bbox": [0, 0, 20.5, 4], "iscrowd": 1}
    far = {"image_id": 9, "category_id": 3, "bbox": [1, 1, 3, 3]}
    return {
        "images": [
            {"id": 5, "file_name": "a.png", "width": 20, "height": 10},
            {"id": 9, "file_name": "sub/b.png"},
        ],
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
        "annotations": [box, crowd, far],
    } | changes


def coco_folder(root: Path, content: Any = None, name: str = "boxes.json") -> Path:
    for file in ("a.png", "sub/b.png"):
        photo(root / file, number=len(str(root)) + len(file))
    path = root / name
    path.write_text(json.dumps(document() if content is None else content))
    return path


def test_coco(tmp_path: Path) -> None:
    path = coco_folder(tmp_path)
    for data in (tmp_path, path):
        parts = open_boxes(data)
        assert sorted(part.images.path(0) for part in parts) == ["a.png", "sub/b.png"]
        first = next(part for part in parts if part.images.path(0) == "a.png")
        assert first.classes == ("cat", "dog")
        assert first.kind == "coco"
        assert first.objects[0].boxes.tolist() == [[2, 1, 8, 6], [0, 0, 20, 4]]
        assert first.objects[0].labels.tolist() == [1, 0]
        assert first.objects[0].crowd.tolist() == [False, True]
        assert first.objects[0].area.tolist() == [11.5, 80]
        assert first.counts == {"boxes": 2, "clipped": 1, "dropped": 0}


def test_coco_with_parts(tmp_path: Path) -> None:
    """COCO's own layout, and the one of exports with a folder per part."""
    for number, part in enumerate(("train", "val")):
        photo(tmp_path / "one" / f"{part}2017" / "x.png", number=number)
        photo(tmp_path / "two" / part / "x.png", number=number)
        content = document(
            images=[{"id": 5, "file_name": "x.png"}], annotations=document()["annotations"][:2]
        )
        for path in (
            tmp_path / "one" / "annotations" / f"instances_{part}2017.json",
            tmp_path / "one" / "annotations" / f"captions_{part}2017.json",
            tmp_path / "two" / part / "_annotations.coco.json",
        ):
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(content))
    for layout in ("one", "two"):
        train, test = open_boxes(tmp_path / layout)
        assert (train.images.read(0) != test.images.read(0)).any()
        assert len(train.objects[0].boxes) == 2
    other = document(categories=[{"id": 7, "name": "cow"}, {"id": 3, "name": "cat"}])
    other["images"], other["annotations"] = [{"id": 5, "file_name": "x.png"}], []
    (tmp_path / "two" / "val" / "_annotations.coco.json").write_text(json.dumps(other))
    with pytest.raises(DataError, match="have different categories"):
        open_boxes(tmp_path / "two")


def entry(kind: str, **changes: Any) -> dict[str, Any]:
    """The document with the first entry of a list changed; missing where it says ..."""
    content = document()
    first = {**content[kind][0], **changes}
    content[kind][0] = {key: value for key, value in first.items() if value is not ...}
    return content


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([], "holds a list"),
        ({"images": []}, "there is no list `categories`"),
        (document(annotations={}), "there is no list `annotations`"),
        (document(annotations=[3]), r"annotations\[0\] is 3, not an object with fields"),
        (document(images=[]), r"annotations\[0\].image_id is 5, which is no image's id"),
        (document(images=[], annotations=[]), "names no image"),
        (document(categories=[]), "there are no categories"),
        (document(annotations=[]), "no box on any training image"),
        (entry("categories", id="7"), r"categories\[0\].id is '7', not a whole number"),
        (entry("categories", name=" "), r"categories\[0\].name is ' ', not a name"),
        (entry("categories", id=3), r"categories\[1\] is a category that stands there before"),
        (entry("categories", name="cat"), r"categories\[1\] is a category that stands there"),
        (entry("images", id=True), r"images\[0\].id is True"),
        (entry("images", id=9), r"images\[1\] is an image that stands there before"),
        (entry("images", file_name="sub/b.png"), r"images\[1\] is an image that stands there"),
        (entry("images", file_name=...), r"images\[0\].file_name is missing"),
        (entry("images", file_name="../a.png"), "leads out of the folder"),
        (entry("images", file_name="/a.png"), "leads out of the folder"),
        (entry("images", file_name="..\\a.png"), "leads out of the folder"),
        (entry("images", file_name="a\0.png"), "leads out of the folder"),
        (entry("images", file_name="\ud800.png"), "which no file can have"),
        (entry("images", file_name="a\n" + 300 * "b"), r"a\\nbbb\w+ is in none of"),
        (entry("images", width=...), r"images\[0\].width is missing"),
        (entry("images", width=-4), r"images\[0\] is of 10 × -4 pixels"),
        (entry("annotations", image_id=4), r"image_id is 4, which is no image's id"),
        (entry("annotations", category_id=4), r"category_id is 4, which is no category's id"),
        (entry("annotations", bbox=...), r"annotations\[0\].bbox is missing; give \[x, y"),
        (entry("annotations", bbox=[1, 2, 3]), r"bbox is \[1, 2, 3\]"),
        (entry("annotations", bbox=[1, 2, 3, "4"]), "bbox is"),
        (entry("annotations", bbox=[1, 2, 3, float("nan")]), "bbox is"),
        (entry("annotations", bbox=[1, 2, 3, 10**400]), "bbox is"),
        (entry("annotations", iscrowd=2), "iscrowd is 2; give 0 or 1"),
        (entry("annotations", iscrowd=[]), "iscrowd is"),
        (entry("annotations", area=-1), "area is -1; give square pixels"),
        (entry("annotations", area=float("inf")), "area is inf"),
    ],
)
def test_wrong_fields(tmp_path: Path, content: Any, words: str) -> None:
    path = coco_folder(tmp_path, content)
    with pytest.raises(DataError, match=words) as caught:
        open_boxes(path)
    assert "\n" not in str(caught.value)
    assert path.name in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"{", "is not JSON"),
        (b"\xff\xfe\xfd", "is not JSON"),
        (b"[" * 200_000, "nested too deeply"),
    ],
)
def test_what_is_no_json(tmp_path: Path, text: bytes, words: str) -> None:
    (tmp_path / "x.json").write_bytes(text)
    with pytest.raises(DataError, match=words):
        open_boxes(tmp_path / "x.json")


def test_a_file_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = coco_folder(tmp_path)
    monkeypatch.setattr(coco, "_MAX_JSON", 1 << 8)
    with pytest.raises(DataError, match="is larger than"):
        open_boxes(path)


def test_links_that_lead_out(tmp_path: Path) -> None:
    path = coco_folder(tmp_path / "data")
    photo(tmp_path / "secret.png")
    (tmp_path / "data" / "a.png").unlink()
    (tmp_path / "data" / "a.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(DataError, match="follow it with --follow-links"):
        open_boxes(path)
    assert len(open_boxes(path, follow_links=True)[0]) == 1


def files(tmp_path: Path) -> Path:
    (tmp_path / "a.json").write_text("{}")
    (tmp_path / "b.json").write_text("{}")
    return tmp_path


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path / "none", "does not exist; boxes are read from"),
        (lambda path: np.zeros((3, 8, 8, 3)), "an array holds no boxes"),
        (lambda path: path, "has neither VOC's layout"),
        (files, r"holds 2 JSON files \(a.json, b.json\); give one beside the images"),
    ],
)
def test_what_holds_no_boxes(tmp_path: Path, make: Callable[[Path], Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        open_boxes(make(tmp_path))


def test_missing_images_are_bounded(tmp_path: Path) -> None:
    members = list("abcd")
    root = voc(tmp_path, {name: [CAT] for name in members}, {"train": "abc", "val": "d"})
    (root / "JPEGImages" / "b.png").write_bytes(b"no image")
    train, _ = open_boxes(root)
    assert names(train) == ["a", "c"]
    (root / "JPEGImages" / "a.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="2 of 3 image files cannot be used"):
        open_boxes(root)


def test_boxes_fit_together() -> None:
    images = Arrays("x", np.zeros((2, 8, 8, 3), np.uint8))
    one = Objects.inside((8, 8), [(0, 0, 4, 4)], [1])
    with pytest.raises(DataError, match="2 images need the objects of as many, got 1"):
        Boxes(images, (one,), ("a", "b"))
    with pytest.raises(DataError, match="do not number the 1 classes"):
        Boxes(images, (one, one), ("a",))
    both = Boxes(images, (one, one.subset(np.array([False]))), ("a", "b"))
    assert [len(o.boxes) for o in both.subset([1, 0]).objects] == [0, 1]
