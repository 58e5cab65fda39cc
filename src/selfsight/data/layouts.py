"""Which folders hold more than images, by their layout."""

import os
from pathlib import Path

from selfsight.data.sources import Data

__all__ = ["CLIPS", "annotations"]

# Where the frames of clips lie, and their masks.
CLIPS = (
    ("frames", "masks"),
    ("JPEGImages/480p", "Annotations/480p"),
    ("JPEGImages/Full-Resolution", "Annotations/Full-Resolution"),
)


def annotations(data: Data) -> tuple[str, str] | None:
    """What is said of the images of a folder, and the protocols that read it; None where its
    sub-folders may be classes."""
    if not isinstance(data, str | os.PathLike):
        return None
    root = Path(data).expanduser()

    def has(*folders: str) -> bool:
        return any(all((part / f).is_dir() for f in folders) for part in (root, root / "train"))

    if any(has(*places) for places in CLIPS):
        return "clips with masks", "propagation"
    if has("JPEGImages", "Annotations") or any(root.glob("*/JPEGImages")):
        return "boxes in VOC's layout", "detection or multilabel"
    if any((root / "annotations").glob("*.json")) or any(root.glob("train/*.coco.json")):
        return "boxes in COCO's JSON", "detection"
    if has("images", "masks"):
        return "images with masks", "segmentation"
    if has("images", "targets"):
        return "images with targets", "dense"
    return None
