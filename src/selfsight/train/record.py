"""run.json: what a run is, and whether it still is that."""

import hashlib
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from selfsight.data.base import Source
from selfsight.data.decode import DECODER
from selfsight.data.reduced import Reduced
from selfsight.data.sources import Data
from selfsight.distributed import world
from selfsight.errors import ConfigError
from selfsight.machine import versions
from selfsight.train.config import Built, differences

__all__ = ["record", "refuse_changes"]


def record(built: Built, data: Data, source: Source, habits: dict[str, Any]) -> dict[str, Any]:
    """Everything that another machine needs to know to do it again."""
    config = built.config
    reopens = isinstance(data, str | Path)
    name = source.name
    if isinstance(data, str | Path) and Path(data).expanduser().exists():
        name = str(Path(data).expanduser().resolve())
    return {
        "config": config.json(),
        "reasons": config.reasons,
        "habits": {**habits, "cache": _absolute(habits["cache"])},
        "reopens": reopens,
        "data": {
            "name": name,
            "images": len(source),
            "classes": source.class_count,
            "labels": _labels(source),
            "fingerprint": source.fingerprint,
            "skipped": len(source.skipped),
            "reduced": _short(source),
        },
        "supervised": built.method.supervised,
        "views": [asdict(view) for view in built.method.views],
        "recipe": asdict(built.recipe),
        "argv": sys.argv,
        "versions": versions(),
        "topology": {"world": world(), "threads": torch.get_num_threads()},
        "decoder": DECODER,
    }


def refuse_changes(recorded: dict[str, Any], built: Built, source: Source) -> None:
    """Raises ConfigError with a line of all that differs."""
    changes = differences(recorded["config"], built.config)
    old = recorded["data"]
    reduced = _short(source)
    if old.get("reduced") != reduced:
        changes.append(f"large photos were {_read_how(old.get('reduced'))}, are "
                       f"{_read_how(reduced)}")  # fmt: skip
    elif old["fingerprint"] != source.fingerprint:
        changes.append(f"the data were {old['images']:,} images, are {len(source):,}, and differ")
    elif built.method.supervised and old["labels"] != _labels(source):
        changes.append("the labels differ")
    if changes:
        raise ConfigError(
            f"cannot resume, the run has changed: {'; '.join(changes)}. "
            "Restore it, or start anew in another --out"
        )


def _absolute(cache: str | None) -> str | None:
    return cache and str(Path(cache).expanduser().resolve())


def _labels(source: Source) -> str | None:
    """Their hash: the fingerprint of an array has only the images in it."""
    return None if source.labels is None else hashlib.sha256(source.labels.tobytes()).hexdigest()


def _short(source: Source) -> int | None:
    return source.short if isinstance(source, Reduced) else None


def _read_how(short: int | None) -> str:
    return "read whole" if short is None else f"reduced to {short} px"
