"""torchvision's sets by name, as arrays.

The CIFAR archives are Python's own object format. They are read by torchvision's classes
only, which check the MD5 of every file first; nothing else here reads that format.
"""

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from selfsight.data.base import Arrays
from selfsight.errors import ConfigError, DataError, suggestion

__all__ = ["NAMES", "open_named"]

_BY_FLAG: dict[str, dict[str, Any]] = {"train": {"train": True}, "test": {"train": False}}
_SETS: dict[str, tuple[str, dict[str, dict[str, Any]]]] = {
    "cifar10": ("CIFAR10", _BY_FLAG),
    "cifar100": ("CIFAR100", _BY_FLAG),
    "fashion_mnist": ("FashionMNIST", _BY_FLAG),
    "mnist": ("MNIST", _BY_FLAG),
    "stl10": ("STL10", {split: {"split": split} for split in ("train", "test", "unlabeled")}),
    "svhn": ("SVHN", {split: {"split": split} for split in ("train", "test")}),
}
NAMES = tuple(_SETS)


def open_named(name: str, split: str, cache: Path, download: bool) -> Arrays:
    """The training split unless another is named; from $SELFSIGHT_DATA, else from the
    folder `torchvision` in the cache."""
    kind, splits = _SETS[name]
    split = split or "train"
    if split not in splits:
        raise ConfigError(
            f"{name} has the splits {', '.join(splits)}, not {split}{suggestion(split, splits)}"
        )
    root = Path(os.environ.get("SELFSIGHT_DATA") or cache / "torchvision").expanduser()
    # torchvision takes a second to import.
    from torchvision import datasets

    try:
        with warnings.catch_warnings():
            # numpy warns of how the CIFAR archives were written.
            warnings.simplefilter("ignore")
            data = getattr(datasets, kind)(root=root, download=download, **splits[split])
    except ImportError as error:
        raise DataError(f"{name} needs {error.name}: pip install {error.name}") from None
    except (OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        advice = "try again later" if download else "fetch it with --download"
        raise DataError(f"{name} is not in {root}: {reason}; {advice}") from None
    return _arrays(f"{name}:{split}" if split != "train" else name, data, split)


def _arrays(name: str, data: Any, split: str) -> Arrays:
    members = vars(data)
    images = np.asarray(members["data"])
    targets = np.asarray(members["targets" if "targets" in members else "labels"], np.int64)
    if split == "unlabeled":
        return Arrays(name, images)
    # SVHN alone has no names: its classes are digits.
    names = tuple(getattr(data, "classes", None) or map(str, range(10)))
    return Arrays(name, images, targets, names)
