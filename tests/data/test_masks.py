"""Masks and targets beside their images, and one clear line for what does not fit."""

import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from selfsight.data.base import Skip
from selfsight.data.decode import Undecodable, decode_mask
from selfsight.data.masks import IGNORED, open_masks, open_targets
from selfsight.data.split import COPY
from selfsight.errors import DataError

MASK = np.array([[0, 1, 1, 255], [0, 0, 1, 2]], np.uint8)


def write(folder: Path, name: str, values: np.ndarray, kind: str = "masks") -> None:
    for place in ("images", kind):
        (folder / place).mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(zlib.crc32(f"{folder.name}/{name}".encode()))
    image = draw.integers(256, size=(*values.shape, 3), dtype=np.uint8)
    Image.fromarray(image).save(folder / "images" / f"{name}.png")
    if values.dtype.kind == "f":
        np.save(folder / kind / f"{name}.npy", values)
    else:
        Image.fromarray(values).save(folder / kind / f"{name}.png")


def divided(root: Path, mask: np.ndarray = MASK) -> Path:
    for part in ("train", "test"):
        for name in ("a", "b"):
            write(root / part, name, mask)
    return root


def png(bits: int, colour: int, rows: bytes, width: int, height: int) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


# Decoding


def test_a_palette_gives_its_indices(tmp_path: Path) -> None:
    image = Image.fromarray(MASK, "P")
    image.putpalette([10 * i % 256 for i in range(768)])
    image.save(tmp_path / "p.png")
    assert decode_mask(tmp_path / "p.png").tolist() == MASK.tolist()


def test_every_depth_gives_the_numbers_it_stores(tmp_path: Path) -> None:
    assert decode_mask(png(1, 0, b"\0\x40", 2, 1)).tolist() == [[0, 1]]
    assert decode_mask(png(2, 0, b"\0\x1b", 4, 1)).tolist() == [[0, 1, 2, 3]]
    assert decode_mask(png(4, 0, b"\0\x1f", 2, 1)).tolist() == [[1, 15]]
    assert decode_mask(png(16, 0, b"\0\x01\x02\xff\xff", 2, 1)).tolist() == [[258, 65535]]


def test_what_is_no_mask(tmp_path: Path) -> None:
    with pytest.raises(Undecodable, match="RGB colours; a mask has one number per pixel"):
        decode_mask(png(8, 2, b"\0\1\2\3", 1, 1))
    with pytest.raises(Undecodable, match=r"truncated|damaged"):
        decode_mask(png(8, 0, b"\0\1", 1, 2))
    Image.fromarray(MASK).save(tmp_path / "m.jpg")
    with pytest.raises(Undecodable, match=r"known format \(PNG\)"):
        decode_mask(tmp_path / "m.jpg")


# Masks


def test_classes_by_the_values_of_training_masks(tmp_path: Path) -> None:
    train, test = open_masks(divided(tmp_path))
    assert (len(train), len(test)) == (2, 2)
    assert train.classes == test.classes == ("0", "1", "2")
    pixels, mask = test.read(1)
    assert pixels.shape == (2, 4, 3)
    assert mask.tolist() == [[0, 1, 1, IGNORED], [0, 0, 1, 2]]


def test_gaps_between_values_are_closed(tmp_path: Path) -> None:
    train, _ = open_masks(divided(tmp_path, np.array([[7, 40]], np.uint8)))
    assert train.classes == ("7", "40")
    assert train.read(0)[1].tolist() == [[0, 1]]


@pytest.mark.parametrize(
    "legend", [["sky", "void(ignore)", "road"], {"classes": ["sky", "?", "road"], "ignore": 1}]
)
def test_labels_name_the_classes(tmp_path: Path, legend: object) -> None:
    divided(tmp_path)
    (tmp_path / "labels.json").write_text(json.dumps(legend))
    train, _ = open_masks(tmp_path)
    assert train.classes == ("sky", "road")
    assert train.read(0)[1].tolist() == [[0, -1, -1, -1], [0, 0, -1, 1]]


def test_a_folder_without_parts_is_split(tmp_path: Path) -> None:
    for index in range(10):
        write(tmp_path, f"{index}", np.array([[index % 3, 255]], np.uint8))
    train, test = open_masks(tmp_path)
    assert (len(train), len(test)) == (8, 2)
    assert train.classes == ("0", "1", "2")
    for part in (train, test):
        for i in range(len(part)):
            number = int(Path(part.images.path(i)).stem)
            assert part.read(i)[1].tolist() == [[number % 3, -1]]
    paths = [part.images.path(i) for part in (train, test) for i in range(len(part))]
    assert sorted(paths) == [f"{i}.png" for i in range(10)]
    other = [open_masks(tmp_path, seed=s)[1].images.path(0) for s in range(5)]
    assert len(set(other)) > 1


def test_an_image_whose_mask_is_truncated_is_left_out(tmp_path: Path) -> None:
    write(divided(tmp_path) / "train", "c", MASK)
    bad = tmp_path / "train" / "masks" / "c.png"
    bad.write_bytes(bad.read_bytes()[:-30])
    train, _ = open_masks(tmp_path)
    assert [train.images.path(i) for i in range(len(train))] == ["a.png", "b.png"]
    with pytest.raises(DataError, match=r"1 of 3 image files cannot be used.*c\.png"):
        open_masks(tmp_path, max_bad_fraction=0)


def test_equal_images_on_both_sides_are_refused(tmp_path: Path) -> None:
    train, test = (divided(tmp_path) / part / "images" for part in ("train", "test"))
    (test / "b.png").write_bytes((train / "a.png").read_bytes())
    words = r"1 of 2 test images .* training images, too, the first is b\.png, equal to a\.png"
    refused(tmp_path, words)
    left, tested = open_masks(tmp_path, duplicates="drop")
    assert [left.images.path(i) for i in range(len(left))] == ["b.png"]
    assert len(tested) == 2
    assert left.skipped == (Skip("a.png", COPY),)
    assert left.read(0)[0].shape == (*left.read(0)[1].shape, 3)


def test_equal_images_of_a_drawn_split_are_only_tested_on(tmp_path: Path) -> None:
    for index in range(10):
        write(tmp_path, f"{index}", np.array([[0, 1]], np.uint8))
        if index % 2:
            first = (tmp_path / "images" / f"{index - 1}.png").read_bytes()
            (tmp_path / "images" / f"{index}.png").write_bytes(first)
    train, test = open_masks(tmp_path)
    assert not {train.images.digest(i) for i in range(len(train))} & {
        test.images.digest(i) for i in range(len(test))
    }
    assert len(test) == 2
    assert 6 <= len(train) <= 8


def refused(root: Path, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        open_masks(root)
    assert "\n" not in str(caught.value)


def test_what_does_not_fit(tmp_path: Path) -> None:
    refused(tmp_path / "none", "is not a folder; give one that holds images/ and masks/")
    (tmp_path / "bare").mkdir()
    refused(tmp_path / "bare", "has no folder images; it needs images/ and masks/")

    root = divided(tmp_path / "missing")
    (root / "test" / "masks" / "a.png").unlink()
    refused(root, r"a\.png has no mask: there is no .*masks/a\.png")

    root = divided(tmp_path / "extra")
    (root / "train" / "images" / "a.png").unlink()
    refused(root, r"masks/a\.png has no image of that name")

    root = divided(tmp_path / "sizes")
    Image.fromarray(MASK.T.copy()).save(root / "train" / "masks" / "b.png")
    refused(root, r"b\.png has 4 × 2 pixels and its map 2 × 4")

    root = divided(tmp_path / "colours")
    Image.fromarray(np.zeros((2, 4, 3), np.uint8)).save(root / "train" / "masks" / "b.png")
    refused(root, r"b\.png cannot be used: RGB colours")

    root = divided(tmp_path / "one", np.zeros((2, 2), np.uint8))
    refused(root, "masks of 1 class; segmentation needs two or more")

    root = divided(tmp_path / "strange")
    write(root / "test", "b", MASK + 3)
    refused(root, "mask with the value 3, which is no class of the training masks")

    root = divided(tmp_path / "unnamed")
    (root / "labels.json").write_text('["sky", "road"]')
    refused(root, r"the value 2, which is no class of .*labels\.json")


@pytest.mark.parametrize(
    "text", ["[1, 2]", "{}", "{", '{"classes": ["a"], "ignore": "b"}', "[" * 9999]
)
def test_labels_that_cannot_be_read(tmp_path: Path, text: str) -> None:
    divided(tmp_path)
    (tmp_path / "labels.json").write_text(text)
    refused(tmp_path, r"labels\.json (should be a list of names|cannot be read)")


# Targets


def test_the_mark_stands_for_the_content(tmp_path: Path) -> None:
    marks = []
    for name, changed in (("one", 0), ("two", 0), ("three", 1)):
        root = divided(tmp_path / name)
        mask = MASK.copy()
        mask[0, 0] = changed
        write(root / "test", "b", mask)
        marks.append(open_masks(root)[1].mark)
    assert marks[0] == marks[1] != marks[2]


def test_integer_targets(tmp_path: Path) -> None:
    divided_targets = np.array([[0, 256], [512, 1]], np.uint16)
    for part in ("train", "test"):
        write(tmp_path / part, "a", divided_targets, "targets")
    train, _ = open_targets(tmp_path, unit=1 / 256)
    assert train.read(0)[1].tolist() == [[0, 1], [2, 1 / 256]]
    _, test = open_targets(tmp_path, zero=False)
    found = test.read(0)[1]
    assert np.isnan(found[0, 0])
    assert found.dtype == np.float32
    assert found.ravel()[1:].tolist() == [256, 512, 1]


def test_array_targets(tmp_path: Path) -> None:
    stored = np.array([[0.5, np.nan, -2.0]])
    for part in ("train", "test"):
        write(tmp_path / part, "a", stored, "targets")
    _, test = open_targets(tmp_path, unit=7.0)
    np.testing.assert_array_equal(test.read(0)[1], stored)
    stored[0, 0] = np.inf
    write(tmp_path / "test", "a", stored, "targets")
    with pytest.raises(DataError, match=r"a\.png has infinite values; nan is unknown"):
        open_targets(tmp_path)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda b: b[:-8], "not an array: cannot reshape"),
        (lambda b: b[:20], "not an array"),
        (lambda b: b"PK" + b[2:], "not an array"),
        (lambda b: b.replace(b"(1, 3)", b"(9, 9)"), "not an array: cannot reshape"),
        (lambda b: b.replace(b"<f8", b"|O8"), "not an array|object of shape"),
        (lambda b: b.replace(b"(1, 3), }", b"(3,), }  "), "a target is"),
    ],
)
def test_broken_arrays(tmp_path: Path, spoil: Callable[[bytes], bytes], words: str) -> None:
    for part in ("train", "test"):
        write(tmp_path / part, "a", np.ones((1, 3)), "targets")
    file = tmp_path / "test" / "targets" / "a.npy"
    file.write_bytes(spoil(file.read_bytes()))
    with pytest.raises(DataError, match=words) as caught:
        open_targets(tmp_path)
    assert "\n" not in str(caught.value)
