"""What files of instances in COCO's JSON say, and where they lie. Untrusted: sizes are capped,
and every field that is used is checked."""

import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from selfsight.data.base import printable
from selfsight.errors import DataError

__all__ = [
    "Instance",
    "Instances",
    "Picture",
    "image_folder",
    "instance_files",
    "read_instances",
]

# That of COCO's own training images takes 450 MB.
_MAX_JSON = 1 << 30


@dataclass(frozen=True, slots=True)
class Instance:
    """One object, or a crowd of them. box: x, y, width, height, from 0.

    label: number of its class
    area: of its outline, in square pixels, if the file says it
    """

    label: int
    box: tuple[float, float, float, float]
    crowd: bool = False
    area: float | None = None


@dataclass(frozen=True, slots=True)
class Picture:
    """An image by its path below a folder; size: height and width, if the file says them."""

    path: str
    size: tuple[int, int] | None
    instances: list[Instance] = field(default_factory=list)


@dataclass(frozen=True)
class Instances:
    """classes: names, by rising number of their category."""

    classes: tuple[str, ...]
    pictures: tuple[Picture, ...]


def read_instances(path: Path) -> Instances:
    """The images in the file's order, each with what was outlined on it."""
    content = _parsed(path)
    try:
        classes = _categories(_list(content, "categories"))
        pictures: dict[int, Picture] = {}
        paths: set[str] = set()
        for where, entry in _list(content, "images"):
            number, picture = _whole(where, entry, "id"), _picture(where, entry)
            if number in pictures or picture.path in paths:
                raise ValueError(f"{where} is an image that stands there before; keep one")
            pictures[number] = picture
            paths.add(picture.path)
        labels = {number: label for label, number in enumerate(sorted(classes))}
        for where, entry in _list(content, "annotations"):
            number = _whole(where, entry, "image_id")
            if number not in pictures:
                raise ValueError(f"{where}.image_id is {number}, which is no image's id")
            pictures[number].instances.append(_instance(where, entry, labels))
    except ValueError as error:
        raise DataError(f"{path}: {error}") from None
    return Instances(tuple(classes[k] for k in sorted(classes)), tuple(pictures.values()))


def instance_files(root: Path) -> list[Path]:
    """COCO's files: of the training part and of the test part, or one of all."""
    if not root.is_dir():
        return [root]
    folder = root / "annotations"
    if folder.is_dir():
        files = sorted(folder.glob("*.json"))
        # Captions and key points of the same images lie beside them.
        files = [f for f in files if "instances" in f.stem] or files
        trains = [f for f in files if "train" in f.stem]
        tests = [f for f in files if "test" in f.stem] or [f for f in files if "val" in f.stem]
        if len(trains) == len(tests) == 1:
            return trains + tests
        where, wanted = folder, "one of train and one of val or test"
    else:
        parts = [[*(root / n).glob("*.json")] for n in ("train", "test", "val", "valid")]
        declared = next((part for part in parts[1:] if part), [])
        if len(parts[0]) == len(declared) == 1:
            return parts[0] + declared
        files, where, wanted = sorted(root.glob("*.json")), root, "one beside the images"
    if len(files) == 1:
        return files
    if not files:
        raise DataError(f"{root} has neither VOC's layout (JPEGImages, Annotations and "
                        "ImageSets/Main) nor COCO's (annotations/*.json)")  # fmt: skip
    names = ", ".join(printable(f.name) for f in files[:4])
    raise DataError(f"{where} holds {len(files)} JSON files ({names}); give {wanted}")


def image_folder(file: Path, path: str) -> Path:
    """The folder below which a JSON's images lie, by the first of them."""
    base = file.parent
    bases = [base, base / "images"]
    if base.name == "annotations":
        # instances_val2017.json speaks of val2017/.
        part = file.stem.rpartition("_")[2]
        above = base.parent
        bases = [above / part, above / "images" / part, above / "images", above]
    for folder in bases:
        if os.path.isfile(folder / path):
            return folder
    tried = ", ".join(map(str, bases))
    raise DataError(f"{file}: {printable(path)} is in none of {tried}; put the images there")


def _parsed(path: Path) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            data = file.read(_MAX_JSON + 1)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    if len(data) > _MAX_JSON:
        raise DataError(f"{path} is larger than {_MAX_JSON >> 20} MiB; split it")
    try:
        content = json.loads(data)
    except RecursionError:
        raise DataError(f"{path} is nested too deeply to be COCO's instances") from None
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise DataError(f"{path} is not COCO's JSON: it holds a {type(content).__name__}")
    return content


Entry = tuple[str, dict[str, Any]]


def _list(content: dict[str, Any], name: str) -> list[Entry]:
    """The entries of a list, and where each stands."""
    entries = content.get(name)
    if not isinstance(entries, list):
        raise ValueError(f"there is no list `{name}`; COCO's instances have images, "
                         "annotations and categories")  # fmt: skip
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise ValueError(f"{name}[{number}] is {_said(entry)}, not an object with fields")
    return [(f"{name}[{number}]", entry) for number, entry in enumerate(entries)]


def _categories(entries: list[Entry]) -> dict[int, str]:
    found: dict[int, str] = {}
    for where, entry in entries:
        number, name = _whole(where, entry, "id"), _text(where, entry, "name")
        if number in found or name in found.values():
            raise ValueError(f"{where} is a category that stands there before; keep one")
        found[number] = name
    if not found:
        raise ValueError("there are no categories; name the classes")
    return found


def _picture(where: str, entry: dict[str, Any]) -> Picture:
    path = _text(where, entry, "file_name")
    parts = PurePosixPath(path.replace("\\", "/")).parts
    if "\0" in path or ".." in parts or parts[:1] == ("/",):
        raise ValueError(f"{where}.file_name is {_said(path)}, which leads out of the folder")
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        raise ValueError(f"{where}.file_name is {_said(path)}, which no file can have") from None
    size = (entry.get("height"), entry.get("width"))
    if size in ((None, None), (0, 0)):
        return Picture(path, None)
    height, width = (_whole(where, entry, side) for side in ("height", "width"))
    if height < 1 or width < 1:
        raise ValueError(f"{where} is of {height} × {width} pixels")
    return Picture(path, (height, width))


def _instance(where: str, entry: dict[str, Any], labels: dict[int, int]) -> Instance:
    number = _whole(where, entry, "category_id")
    if number not in labels:
        raise ValueError(f"{where}.category_id is {number}, which is no category's id")
    box = entry.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        raise ValueError(f"{where}.bbox is {_said(box)}; give [x, y, width, height] in pixels")
    crowd, area = entry.get("iscrowd", 0), entry.get("area")
    if crowd not in (0, 1):
        raise ValueError(f"{where}.iscrowd is {_said(crowd)}; give 0 or 1")
    if area is not None and not (_is_number(area) and area >= 0):
        raise ValueError(f"{where}.area is {_said(area)}; give square pixels")
    x, y, width, height = (float(side) for side in box)
    return Instance(labels[number], (x, y, width, height), bool(crowd), area)


def _whole(where: str, entry: dict[str, Any], name: str) -> int:
    value = entry.get(name)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{where}.{name} is {_said(value)}, not a whole number")
    return value


def _text(where: str, entry: dict[str, Any], name: str) -> str:
    value = entry.get(name)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where}.{name} is {_said(value)}, not a name")
    return value


def _is_number(value: Any) -> bool:
    # What floats hold of a whole number of any length is infinite.
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and abs(value) < 1e9 and math.isfinite(value)


def _said(value: Any) -> str:
    if value is None:
        return "missing"
    return printable(repr(value))[:60]
