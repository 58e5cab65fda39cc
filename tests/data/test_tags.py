"""Several labels per image, from a VOC folder and from a list."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from selfsight.data.base import Arrays
from selfsight.data.split import COPY
from selfsight.data.tags import Tags, open_tags
from selfsight.errors import DataError

Jpeg = Callable[[int], bytes]
OBJECT = (
    "<object><name>{}</name><difficult>{}</difficult><bndbox><xmin>1</xmin><ymin>1</ymin>"
    "<xmax>9</xmax><ymax>9</ymax></bndbox></object>"
)


@pytest.fixture
def folder(tmp_path: Path, jpeg: Jpeg) -> Path:
    """Six images: a has a cat; b a difficult cat; c both; d a dog; e nothing; f a dog."""
    root = tmp_path / "voc"
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / part).mkdir(parents=True)
    cat, hard, dog = OBJECT.format("cat", 0), OBJECT.format("cat", 1), OBJECT.format("dog", 0)
    shown = {"a": cat, "b": hard, "c": hard + cat + dog, "d": dog, "e": "", "f": dog}
    for number, (name, objects) in enumerate(shown.items()):
        (root / "JPEGImages" / f"{name}.jpg").write_bytes(jpeg(number))
        (root / "Annotations" / f"{name}.xml").write_text(f"<annotation>{objects}</annotation>")
    return root


def name_sets(folder: Path, **sets: str) -> Path:
    for file in (folder / "ImageSets" / "Main").iterdir():
        file.unlink()
    for name, images in sets.items():
        (folder / "ImageSets" / "Main" / f"{name}.txt").write_text("\n".join(images))
    return folder


def names(tags: Tags) -> str:
    return "".join(Path(tags.images.path(i)).stem for i in range(len(tags)))


def test_a_voc_folder(folder: Path) -> None:
    train, test = open_tags(name_sets(folder, trainval="dabc", test="ef"))
    assert train.classes == test.classes == ("cat", "dog")
    assert names(train) == "abcd"
    assert train.tags.tolist() == [[1, 0], [-1, 0], [1, 1], [0, 1]]
    assert names(test) == "ef"
    assert test.tags.tolist() == [[0, 0], [0, 1]]
    assert train.tags.dtype == np.int8
    assert train.images.read(0).ndim == 3


@pytest.mark.parametrize(
    ("sets", "training", "test"),
    [
        ({"train": "ab", "val": "cd", "trainval": "abcd", "test": "ef"}, "abcd", "ef"),
        ({"train": "ab", "val": "cd", "test": "ef"}, "abcd", "ef"),
        ({"train": "ab", "val": "cd", "trainval": "abcd"}, "ab", "cd"),
        ({"val": "cd", "trainval": "abcd"}, "ab", "cd"),
    ],
)
def test_which_sets_are_which(folder: Path, sets: dict[str, str], training: str, test: str) -> None:
    assert tuple(map(names, open_tags(name_sets(folder, **sets)))) == (training, test)


def test_without_sets_a_fifth_is_the_test(folder: Path) -> None:
    name_sets(folder, train="abcdef")
    splits = [tuple(map(names, open_tags(folder, seed=seed))) for seed in (0, 0, 1, 2, 3)]
    assert splits[0] == splits[1]
    assert len(set(splits)) > 1
    for train, test in splits:
        assert len(test) == 1
        assert sorted(train + test) == list("abcdef")


def test_an_image_on_both_sides(folder: Path) -> None:
    with pytest.raises(DataError, match="names b for training and for the test"):
        open_tags(name_sets(folder, train="ab", test="bc"))


def test_a_missing_image(folder: Path) -> None:
    (folder / "JPEGImages" / "b.jpg").unlink()
    with pytest.raises(DataError, match=r"b\.jpg does not exist"):
        open_tags(name_sets(folder, train="ab", test="cd"))


@pytest.fixture
def listed(tmp_path: Path, jpeg: Jpeg) -> Callable[[str], Path]:
    (tmp_path / "photos").mkdir()
    for number, name in enumerate("abcde"):
        (tmp_path / "photos" / f"{name}.jpg").write_bytes(jpeg(number))

    def write(text: str) -> Path:
        file = tmp_path / "photos" / "labels.csv"
        file.write_text(text)
        return file

    return write


def test_a_list(listed: Callable[[str], Path]) -> None:
    text = "path,split,labels\na.jpg,train,cat; dog\nb.jpg,val,\nc.jpg,test,dog\nd.jpg,train,cat;\n"
    train, test = open_tags(listed(text), download=True, follow_links=False)
    assert (names(train), names(test)) == ("abd", "c")
    assert train.classes == ("cat", "dog")
    assert train.tags.tolist() == [[1, 1], [0, 0], [1, 0]]
    assert test.tags.tolist() == [[0, 1]]
    train, test = open_tags(listed(text.replace("test", "val")))
    assert (names(train), names(test)) == ("ad", "bc")


def test_a_list_without_split(listed: Callable[[str], Path]) -> None:
    train, test = open_tags(listed("path,labels\n" + "".join(f"{n}.jpg,x\n" for n in "abcde")))
    assert (len(train), len(test)) == (4, 1)


def test_copies_of_test_images(folder: Path) -> None:
    images = folder / "JPEGImages"
    (images / "b.jpg").write_bytes((images / "f.jpg").read_bytes())
    name_sets(folder, trainval="abcd", test="ef")
    words = r"1 of 2 test images .* the first is JPEGImages/f\.jpg, equal to JPEGImages/b\.jpg; "
    with pytest.raises(DataError, match=words + ".*--duplicates drop"):
        open_tags(folder)
    train, test = open_tags(folder, duplicates="drop")
    assert (names(train), names(test)) == ("acd", "ef")
    assert train.tags.tolist() == [[1, 0], [1, 1], [0, 1]]
    assert [(Path(skip.path).stem, skip.reason) for skip in train.skipped] == [("b", COPY)]


def test_copies_are_kept_apart_in_a_split_of_our_own(listed: Callable[[str], Path]) -> None:
    file = listed("path,labels\n" + "".join(f"{n}.jpg,x\n" for n in "abcde"))
    _, (tested,) = (names(part) for part in open_tags(file))
    other = "a" if tested != "a" else "b"
    photo = file.with_name(f"{tested}.jpg").read_bytes()
    file.with_name(f"{other}.jpg").write_bytes(photo)
    train, test = open_tags(file)
    assert names(test) == tested
    assert names(train) == "abcde".replace(tested, "").replace(other, "")


def test_many_equal_frames(listed: Callable[[str], Path]) -> None:
    """Their pairs, a million here, are never written down."""
    file = listed("")
    rows = [f"{n}.jpg,x,{'test' if n % 2 else 'train'}" for n in range(2000)]
    for n in range(2000):
        file.with_name(f"{n}.jpg").hardlink_to(file.with_name("a.jpg"))
    file.write_text("\n".join(["path,labels,split", "b.jpg,x,train", *rows]))
    assert names(open_tags(file, duplicates="drop")[0]) == "b"


def test_links_that_lead_out(folder: Path, listed: Callable[[str], Path], tmp_path: Path) -> None:
    secret = tmp_path / "secret.jpg"
    secret.write_bytes((folder / "JPEGImages" / "a.jpg").read_bytes())
    file = listed("path,labels,split\na.jpg,x,train\nb.jpg,x,test\n")
    name_sets(folder, train="ab", test="cd")
    for data, link in ((folder, folder / "JPEGImages" / "a.jpg"), (file, file.parent / "a.jpg")):
        link.unlink()
        link.symlink_to(secret)
        with pytest.raises(
            DataError, match=r"a\.jpg leads out of .* with --follow-links"
        ) as caught:
            open_tags(data)
        assert "\n" not in str(caught.value)
        assert names(open_tags(data, follow_links=True)[0])[0] == "a"
    file.write_text("path,labels,split\n../secret.jpg,x,train\nb.jpg,x,test\n")
    with pytest.raises(DataError, match=r"secret\.jpg leads out of"):
        open_tags(file)


def test_a_bad_file_is_left_out_with_its_labels(listed: Callable[[str], Path]) -> None:
    file = listed("path,labels,split\na.jpg,x,train\nb.jpg,y,train\nc.jpg,y,test\nd.jpg,x,test\n")
    (file.parent / "a.jpg").write_bytes(b"torn")
    train, test = open_tags(file)
    assert [skip.path for skip in train.images.skipped] == ["a.jpg"]
    assert names(train) == "b"
    assert train.tags.tolist() == [[0, 1]]
    assert test.tags.tolist() == [[0, 1], [1, 0]]
    (file.parent / "b.jpg").write_bytes(b"torn")
    with pytest.raises(DataError, match="2 of 4 image files cannot be used"):
        open_tags(file)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("path,label\na.jpg,x\n", "has no column labels"),
        ("path,labels\n", "names no image"),
        ("path,labels\na.jpg,\nb.jpg,\n", "has no labels"),
        ("path,labels\na.jpg,x\na.jpg,y\n", r"line 3, names a\.jpg again"),
        ("path,labels\n,x\n", "line 2, names no image"),
        ("path,labels,split\na.jpg,x,dev\n", "has split dev; write train, val or test"),
        ("path,labels,split\na.jpg,x,train\n", "no usable test images"),
        ("path,labels,split\na.jpg,x,test\n", "no usable training images"),
        ("path,labels\na.jpg,x\n", "no usable test images"),
    ],
)
def test_lists_that_are_refused(listed: Callable[[str], Path], text: str, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        open_tags(listed(text))
    assert "\n" not in str(caught.value)


def test_data_without_several_labels(tmp_path: Path) -> None:
    for data in (tmp_path, tmp_path / "none.csv", np.zeros((2, 4, 4, 3), np.uint8), "cifar10"):
        with pytest.raises(DataError, match=r"a folder with JPEGImages, .* or from a \.csv"):
            open_tags(data)


def test_tags_fit_the_images() -> None:
    source = Arrays("a", np.zeros((2, 4, 4, 3), np.uint8))
    for tags in (np.zeros((3, 1)), np.zeros(2), np.full((2, 1), 2)):
        with pytest.raises(DataError, match="2 images and 1 classes need"):
            Tags(source, tags, ("x",))
