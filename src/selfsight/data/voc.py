"""What the files of a folder in Pascal VOC's layout say: JPEGImages/, Annotations/*.xml and
ImageSets/Main/*.txt. Untrusted: sizes are capped, and XML is read only without a document
type, so that nothing in it can expand or point elsewhere."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from selfsight.data.base import printable
from selfsight.data.decode import Undecodable, read_bytes
from selfsight.errors import DataError

__all__ = [
    "Annotation",
    "Object",
    "divided",
    "image_file",
    "image_sets",
    "is_voc",
    "read_annotation",
]

# A crowd of a thousand objects takes half of it.
_MAX_XML = 1 << 20
_MAX_LIST = 64 << 20
_SETS = ("train", "val", "trainval", "test")
_SUFFIXES = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG")
_YES, _NO = ("1", "true", "yes"), ("", "0", "false", "no")


@dataclass(frozen=True, slots=True)
class Object:
    """One object of an image.

    box: xmin, ymin, xmax, ymax as written: VOC counts pixels from 1 and includes the last;
        nothing says that xmin < xmax
    """

    name: str
    box: tuple[float, float, float, float]
    difficult: bool = False
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class Annotation:
    """size: height and width, if the file says them."""

    size: tuple[int, int] | None
    objects: tuple[Object, ...]


def is_voc(folder: Path) -> bool:
    """Whether it has the layout's three parts."""
    parts = ("JPEGImages", "Annotations", "ImageSets/Main")
    return all((folder / part).is_dir() for part in parts)


def image_sets(folder: Path) -> dict[str, list[str]]:
    """The images' names by set: those of train, val, trainval and test that there are."""
    found: dict[str, list[str]] = {}
    for name in _SETS:
        file = folder / "ImageSets" / "Main" / f"{name}.txt"
        if not file.exists():
            continue
        lines = [line.strip() for line in _text(file, _MAX_LIST).splitlines()]
        found[name] = [line for line in lines if line]
        for line in found[name]:
            if "/" in line or "\\" in line or "\0" in line or line in (".", ".."):
                raise DataError(f"{file} names {printable(line)[:80]}, which is no image's name")
        if len(set(found[name])) < len(found[name]):
            raise DataError(f"{file} names an image twice; keep one of the lines")
    if not any(found.values()):
        where = folder / "ImageSets" / "Main"
        raise DataError(f"{where} has no names in train, val, trainval or test.txt; write them")
    return found


def divided(folders: Sequence[Path]) -> list[list[tuple[Path, str]]]:
    """Folder and name of the images to train on, and of those to test on; or of all where no
    test is declared.

    Trained on are trainval, train and val where any folder has a test; otherwise val is the test,
    and the rest of each folder is trained on.
    """
    sets = {folder: image_sets(folder) for folder in folders}

    def union(*names: str) -> list[tuple[Path, str]]:
        found = [(f, one) for f in folders for name in names for one in sets[f].get(name, ())]
        return list(dict.fromkeys(found))

    test, train = union("test"), union("trainval", "train", "val")
    if not test:
        test = union("val")
        # What a folder lists as train and as val at once is told below.
        known = set(test) - set(union("train"))
        train = [one for one in union("train", "trainval") if one not in known]
    twice = set(train).intersection(test)
    if twice:
        folder, name = min(twice)
        raise DataError(
            f"{folder} names {printable(name)} for training and for the test; choose one"
        )
    return [part for part in (train, test) if part]


def image_file(folder: Path, name: str) -> Path:
    """Where the image of that name lies."""
    files = [folder / "JPEGImages" / f"{name}{suffix}" for suffix in _SUFFIXES]
    for file in files:
        if file.is_file():
            return file
    raise DataError(f"{files[0]} does not exist; restore it, or take its name off ImageSets/Main")


def read_annotation(path: Path) -> Annotation:
    """The objects of one image, in the file's order."""
    text = _text(path, _MAX_XML)
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise DataError(f"{path} declares a document type or entities; remove the declaration")
    try:
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError) as error:
        raise DataError(f"{path} is not XML: {error}") from None
    if root.tag != "annotation":
        raise DataError(f"{path} describes no image; its outermost element must be annotation")
    try:
        return Annotation(_size(root.find("size")), tuple(map(_object, root.findall("object"))))
    except ValueError as error:
        raise DataError(f"{path}: {error}") from None


def _object(element: Element) -> Object:
    name = (element.findtext("name") or "").strip()
    if not name:
        raise ValueError("an object has no name")
    box = element.find("bndbox")
    if box is None:
        raise ValueError(f"an object ({printable(name)[:80]}) has no bndbox")
    xmin, ymin, xmax, ymax = (_number(box, side) for side in ("xmin", "ymin", "xmax", "ymax"))
    return Object(
        name, (xmin, ymin, xmax, ymax), _flag(element, "difficult"), _flag(element, "truncated")
    )


def _size(element: Element | None) -> tuple[int, int] | None:
    if element is None:
        return None
    height, width = _number(element, "height"), _number(element, "width")
    # Some editors write 0 × 0 for what they did not look up.
    return (int(height), int(width)) if min(height, width) >= 1 else None


def _number(element: Element, name: str) -> float:
    text = (element.findtext(name) or "").strip()
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{name} is {printable(text)[:40] or 'missing'}, not a number")
    return value


def _flag(element: Element, name: str) -> bool:
    text = (element.findtext(name) or "").strip().lower()
    if text not in (*_YES, *_NO):
        raise ValueError(f"{name} is {printable(text)[:40]}, neither 0 nor 1")
    return text in _YES


def _text(path: Path, limit: int) -> str:
    try:
        content = read_bytes(path, limit + 1)[0]
    except Undecodable as error:
        raise DataError(f"{path}: {error}") from None
    if len(content) > limit:
        raise DataError(f"{path} is larger than {limit} bytes, which no such file needs")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{path} is not UTF-8; save it as UTF-8") from None
