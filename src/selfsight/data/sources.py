"""One way to open any data: a folder, shards, a list, an array file, a set by name, an array."""

import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from selfsight.data.base import Arrays, Progress, Skip, Source
from selfsight.data.files import open_files
from selfsight.data.listing import SHARD, list_file, list_folder, list_shard
from selfsight.data.named import NAMES, open_named
from selfsight.errors import ConfigError, DataError, suggestion
from selfsight.machine import cache_folder

__all__ = ["SYNTHETIC", "Data", "Skip", "Source", "open_source"]

Data = str | os.PathLike[str] | NDArray[Any] | torch.Tensor | Source

# Images of the embedded set: enough to learn from in minutes, drawn in seconds.
SYNTHETIC = {"train": 3_000, "test": 1_000}


def open_source(
    data: Data,
    *,
    labels: bool | None = False,
    max_bad_fraction: float = 0.01,
    download: bool = False,
    cache: str | os.PathLike[str] | None = None,
    follow_links: bool = False,
    progress: Progress | None = None,
) -> Source:
    """Whatever `data` is, numbered and checked.

    data: a folder, of images or of tar files that hold them; one .tar; a list (.txt with a
        path per line, .csv with the columns path and label); .npz with `images` and perhaps
        `labels` and `classes`; .npy; the name of a set, as cifar10 or cifar10:test; synthetic
        or synthetic:test; an array; a Source. A path that exists goes before a name
    labels: True requires them, a folder's being the names of its sub-folders; None takes them
        when every image has one; False ignores those of folders and lists
    max_bad_fraction: of the files that should be images; one is always allowed, except by 0
    """
    if not 0 <= max_bad_fraction <= 1:
        raise ConfigError(f"max_bad_fraction is a fraction from 0 to 1, got {max_bad_fraction}")
    if isinstance(data, Source):
        source = data
    elif isinstance(data, np.ndarray | torch.Tensor):
        images = data.detach().cpu().numpy() if isinstance(data, torch.Tensor) else data
        source = _checked("array", images, None, None)
    else:
        path, where = Path(data).expanduser(), cache_folder(cache)
        name, kind = os.fspath(data), path.suffix.lower()
        folder = os.path.isdir(path)
        if folder or (os.path.isfile(path) and kind in (".txt", ".csv", SHARD)):
            lister = list_shard if kind == SHARD else list_file
            source = open_files(
                name,
                list_folder(path, follow_links=follow_links) if folder else lister(path),
                labels=labels,
                max_bad_fraction=max_bad_fraction,
                cache=where,
                progress=progress,
            )
        elif os.path.isfile(path) and kind in (".npz", ".npy"):
            source = _open_arrays(path)
        elif os.path.exists(path):
            raise DataError(
                f"{name} is not a folder, a list of images (.txt, .csv), a tar file (.tar, not "
                "compressed) or an array file (.npz, .npy)"
            )
        else:
            source = _open_name(name, where, download)
    if labels and source.labels is None:
        raise DataError(
            f"{source.name} has no labels; put images in one sub-folder per class, or give a "
            "CSV with the columns path,label"
        )
    return source


def _open_name(data: str, cache: Path, download: bool) -> Source:
    name, _, split = data.partition(":")
    if name == "synthetic":
        split = split or "train"
        if split not in SYNTHETIC:
            raise ConfigError(f"synthetic has the splits {', '.join(SYNTHETIC)}, not {split}")
        from selfsight.data.synthetic import synthetic

        count = SYNTHETIC[split]
        drawn = synthetic(count, split="train" if split == "train" else "test")
        return Arrays(data, *drawn)
    if name in NAMES:
        return open_named(name, split, cache, download)
    raise DataError(f"{data} does not exist{suggestion(data, [*NAMES, 'synthetic'])}")


def _open_arrays(path: Path) -> Source:
    try:
        # Never objects: those files run code when they are read.
        if path.suffix.lower() == ".npy":
            stored = {"images": np.load(path, mmap_mode="r", allow_pickle=False)}
        else:
            # Opened here: numpy leaves a file open that is no archive.
            with open(path, "rb") as content, np.load(content, allow_pickle=False) as file:
                names = ("images", "labels", "classes")
                stored = {name: file[name] for name in names if name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read as arrays: {error}") from None
    if "images" not in stored:
        raise DataError(f"{path} has no array named images")
    return _checked(str(path), stored["images"], stored.get("labels"), stored.get("classes"))


def _checked(
    name: str,
    images: NDArray[Any],
    labels: NDArray[Any] | None,
    classes: NDArray[Any] | None,
) -> Arrays:
    colour = images.ndim == 3 or (
        images.ndim == 4 and (images.shape[3] in (1, 3) or images.shape[1] in (1, 3))
    )
    if not colour or 0 in images.shape or images.dtype.kind not in "uf":
        raise DataError(
            f"{name} is {images.dtype} of shape {images.shape}; images are uint8, uint16 or "
            "floats in [0, 1] of shape (N, height, width, 3), one channel or none for grey"
        )
    if images.dtype.kind == "u" and images.dtype.itemsize > 2:
        raise DataError(f"{name} is {images.dtype}; give uint8, uint16 or floats in [0, 1]")
    if images.dtype.kind == "f":
        for start in range(0, len(images), 256):
            part = images[start : start + 256]
            if not (part.min() >= 0 and part.max() <= 1):
                raise DataError(f"{name} has floats outside [0, 1]; scale them, or give uint8")
    if labels is None:
        return Arrays(name, images)
    if labels.shape != (len(images),) or labels.dtype.kind not in "iuU":
        raise DataError(
            f"{name} has {labels.dtype} labels of shape {labels.shape} for {len(images)} images; "
            "give one whole number or name per image"
        )
    values, numbers = np.unique(labels, return_inverse=True)
    if classes is None:
        return Arrays(name, images, numbers.astype(np.int64), tuple(map(str, values)))
    if labels.dtype.kind == "U" or values[0] < 0 or values[-1] >= len(classes):
        raise DataError(f"{name} has {len(classes)} classes but labels that do not number them")
    return Arrays(name, images, labels.astype(np.int64), tuple(map(str, classes)))
