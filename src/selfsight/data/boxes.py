"""Images and the boxes of what is on them: folders in Pascal VOC's layout, COCO's JSON."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from selfsight.data import coco, voc
from selfsight.data.annotated import Annotated, open_named, two_parts
from selfsight.data.base import Skip, Source, printable
from selfsight.data.files import allowed_bad
from selfsight.errors import DataError

__all__ = ["Boxes", "Objects", "open_boxes"]

# Thinner than that, in pixels or relative to the image, has no area: training divides by sides,
# in single precision.
_LEAST, _SHARE = 0.01, 1e-5


@final
@dataclass(frozen=True, eq=False)
class Objects:
    """What is on one image.

    boxes: (n, 4) float32 x1, y1, x2, y2 in pixels: the whole of an image is 0, 0, width, height
    labels: (n,) numbers of classes
    difficult: (n,) VOC's; crowd: (n,) COCO's
    area: (n,) square pixels, of the outline where there is one
    clipped, dropped: boxes that crossed the border, and those left out because nothing of them
        was left inside, or nothing was there
    """

    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    difficult: NDArray[np.bool_]
    crowd: NDArray[np.bool_]
    area: NDArray[np.float64]
    clipped: int = 0
    dropped: int = 0

    @classmethod
    def inside(
        cls,
        size: tuple[int, int],
        boxes: ArrayLike,
        labels: ArrayLike,
        *,
        difficult: ArrayLike | None = None,
        crowd: ArrayLike | None = None,
        area: Sequence[float | None] | None = None,
    ) -> "Objects":
        """Boxes cut at the border of an image of height and width `size`; those that nothing
        is left of are dropped. area: where it is None, the box's own."""
        given = np.asarray(boxes, np.float64).reshape(-1, 4)
        height, width = size
        cut = given.clip(0, (width, height, width, height))
        sides = cut[:, 2:] - cut[:, :2]
        kept = (sides >= max(_LEAST, _SHARE * max(size))).all(axis=1)
        crossed = (cut != given).any(axis=1) & kept
        none = np.zeros(len(given), np.bool_)
        size_of = sides.prod(axis=1)
        if area is not None:
            size_of = np.array([b if a is None else a for a, b in zip(area, size_of, strict=True)])
        return cls(
            cut[kept].astype(np.float32),
            np.asarray(labels, np.int64)[kept],
            none[kept] if difficult is None else np.asarray(difficult, np.bool_)[kept],
            none[kept] if crowd is None else np.asarray(crowd, np.bool_)[kept],
            size_of.astype(np.float64)[kept],
            int(crossed.sum()),
            int((~kept).sum()),
        )

    def subset(self, chosen: NDArray[Any]) -> "Objects":
        """Those of these numbers, or where `chosen` is true."""
        return Objects(
            self.boxes[chosen],
            self.labels[chosen],
            self.difficult[chosen],
            self.crowd[chosen],
            self.area[chosen],
        )


@final
@dataclass(frozen=True, eq=False)
class Boxes(Annotated):
    """Images with the objects of each.

    kind: whose rules the objects follow
    """

    images: Source
    objects: tuple[Objects, ...]
    classes: tuple[str, ...]
    kind: Literal["coco", "voc"] = "coco"

    def __post_init__(self) -> None:
        if len(self.images) != len(self.objects):
            raise DataError(f"{len(self.images)} images need the objects of as many, "
                            f"got {len(self.objects)}")  # fmt: skip
        for number, objects in enumerate(self.objects):
            if len(objects.labels) and not 0 <= objects.labels.min() <= objects.labels.max() < len(
                self.classes
            ):
                raise DataError(
                    f"labels on {self.images.path(number)} do not number the "
                    f"{len(self.classes)} classes from 0"
                )

    @property
    def counts(self) -> dict[str, int]:
        """Boxes in use, cut at the border, and dropped."""
        return {
            "boxes": sum(len(objects.boxes) for objects in self.objects),
            "clipped": sum(objects.clipped for objects in self.objects),
            "dropped": sum(objects.dropped for objects in self.objects),
        }

    def reduced(self, images: Source, numbers: NDArray[np.int64]) -> "Boxes":
        objects = tuple(self.objects[i] for i in numbers.tolist())
        return Boxes(images, objects, self.classes, self.kind)


def open_boxes(
    data: Any,
    *,
    seed: int = 0,
    duplicates: Literal["refuse", "drop"] = "refuse",
    max_bad_fraction: float = 0.01,
    **options: Any,
) -> tuple[Boxes, Boxes]:
    """The training and the test part of a folder, each file checked.

    data: a folder in VOC's layout, or one that holds several such (VOC2007/, VOC2012/), of
        which trainval is trained on where there is a test, otherwise train with val for a test;
        a folder with annotations/*.json, or train/ and test/, val/ or valid/ with a JSON each; a
        JSON beside its images, or a folder with one
    seed: what declares no test part is split, four fifths to one fifth
    duplicates: see `evaluation_split`
    max_bad_fraction, options: those of `open_source`
    """
    advice = "boxes are read from a folder in VOC's layout, or with COCO's JSON"
    if not isinstance(data, str | os.PathLike):
        raise DataError(f"an array holds no boxes; {advice}")
    root = Path(data).expanduser()
    if not root.exists():
        raise DataError(f"{data} does not exist; {advice}")
    how = _Opening(max_bad_fraction, options)
    folders = _voc_folders(root)
    if folders:
        parts = _open_voc(root, folders, how)
    else:
        files = coco.instance_files(root)
        parts = [_open_coco(file, how) for file in files]
        if len(parts) == 2 and parts[0].classes != parts[1].classes:
            raise DataError(f"{files[0]} and {files[1]} have different categories; give both "
                            "the same")  # fmt: skip
    train, test = two_parts(str(root), parts, seed, duplicates)
    for part, name in ((train, "training"), (test, "test")):
        if part.counts["boxes"] == 0:
            raise DataError(f"{root}: there is no box on any {name} image")
    return train, test


@dataclass(frozen=True)
class _Opening:
    """How files are opened."""

    max_bad_fraction: float
    options: dict[str, Any]


@dataclass(frozen=True)
class _Named:
    """An image by its path below a root, and what is said of it."""

    path: str
    size: tuple[int, int] | None
    boxes: list[tuple[float, float, float, float]]
    labels: list[int]
    difficult: list[bool] | None = None
    crowd: list[bool] | None = None
    area: list[float | None] | None = None


def _assemble(
    name: str,
    root: Path,
    named: Iterable[_Named],
    classes: tuple[str, ...],
    kind: Literal["coco", "voc"],
    how: _Opening,
) -> Boxes:
    """Opens the images and cuts the boxes at their borders. An image of another size than
    its annotation says is of something else, or was turned: it counts as bad."""
    by_path = {one.path: one for one in named}
    source = open_named(
        name, root, f"boxes {name}", by_path,
        max_bad_fraction=how.max_bad_fraction, **how.options,
    )  # fmt: skip
    skipped, kept, objects = list(source.skipped), [], []
    for index in range(len(source)):
        one, size = by_path[source.path(index)], tuple(source.sizes[index].tolist())
        if one.size not in (None, size):
            said = f"its annotation is of {_pixels(one.size)}, the image of {_pixels(size)}"
            skipped.append(Skip(one.path, said))
            continue
        kept.append(index)
        objects.append(
            Objects.inside(
                size, one.boxes, one.labels,
                difficult=one.difficult, crowd=one.crowd, area=one.area,
            )
        )  # fmt: skip
    if len(skipped) > allowed_bad(how.max_bad_fraction, len(by_path)):
        raise DataError(
            f"{name}: {len(skipped)} of {len(by_path)} images cannot be used, the first is "
            f"{printable(skipped[0].path)} ({skipped[0].reason}); mend or remove them, or raise "
            f"--max-bad-fraction (now {how.max_bad_fraction:g})"
        )
    images = source.subset(kept)
    images.skipped = tuple(skipped)
    return Boxes(images, tuple(objects), classes, kind)


def _pixels(size: tuple[int, int] | None) -> str:
    return f"{size[1]}×{size[0]} pixels" if size else "unknown size"


def _voc_folders(root: Path) -> list[Path]:
    """The folder itself, or those in it, that have VOC's layout."""
    if not root.is_dir():
        return []
    return [root] if voc.is_voc(root) else [f for f in sorted(root.iterdir()) if voc.is_voc(f)]


def _open_voc(root: Path, folders: list[Path], how: _Opening) -> list[Boxes]:
    parts = voc.divided(folders)
    read = [
        {one: voc.read_annotation(one[0] / "Annotations" / f"{one[1]}.xml") for one in part}
        for part in parts
    ]
    names = {thing.name for part in read for found in part.values() for thing in found.objects}
    classes = tuple(sorted(names))
    number = {name: label for label, name in enumerate(classes)}
    return [
        _assemble(
            str(root),
            root,
            [
                _Named(
                    os.path.relpath(voc.image_file(*one), root),
                    found.size,
                    [_corners(*thing.box) for thing in found.objects],
                    [number[thing.name] for thing in found.objects],
                    difficult=[thing.difficult for thing in found.objects],
                )
                for one, found in part.items()
            ],
            classes,
            "voc",
            how,
        )
        for part in read
    ]


def _corners(x1: float, y1: float, x2: float, y2: float) -> tuple[float, float, float, float]:
    """VOC counts pixels from 1 and includes the last. Yet a point or a line is no object of
    one pixel but a slip, and stays without area."""
    return (x1 - 1, y1 - 1, x2, y2) if x1 < x2 and y1 < y2 else (x1, y1, x1, y1)


def _open_coco(file: Path, how: _Opening) -> Boxes:
    found = coco.read_instances(file)
    if not found.pictures:
        raise DataError(f"{file} names no image")
    root = coco.image_folder(file, found.pictures[0].path)
    named = []
    for picture in found.pictures:
        instances = picture.instances
        corners = [(x, y, x + w, y + h) for x, y, w, h in (one.box for one in instances)]
        named.append(
            _Named(
                picture.path,
                picture.size,
                corners,
                [one.label for one in instances],
                crowd=[one.crowd for one in instances],
                area=[one.area for one in instances],
            )
        )
    return _assemble(str(file), root, named, found.classes, "coco", how)
