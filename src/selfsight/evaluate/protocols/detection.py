"""Where things are: a detector is trained over a copy of the encoder."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from selfsight import optim
from selfsight.data.base import printable
from selfsight.data.boxes import Boxes, open_boxes
from selfsight.data.sources import Data
from selfsight.errors import ConfigError, DataError
from selfsight.evaluate.base import OnImages, Sight
from selfsight.evaluate.learners.detector import Design, Schedule, build, find, fit
from selfsight.evaluate.measures.average_precision import (
    AREAS,
    THRESHOLDS,
    Found,
    Matches,
    Rule,
    average_precision,
    match_coco,
    match_voc,
    mean_precision,
)
from selfsight.evaluate.report import Score
from selfsight.evaluate.seeds import over_seeds
from selfsight.ranges import Count, Part, Positive, Share, Weight, Whole

__all__ = ["RECIPES", "Detection", "Preset", "scores"]

# Learning rates are said for that many images.
_BATCH = 16
_RATES = {"adamw": 1e-4, "sgd": 0.02}
_DECAYS = {"adamw": 0.1, "sgd": 1e-4}
_LARGEST = 800
_LONG = 1333 / 800


@dataclass(frozen=True, kw_only=True)
class Preset:
    """iterations, or epochs; drops: shares of the run after which the rate falls to a tenth;
    sizes: short sides that training draws from, or none: that of the training images"""

    iterations: int | None = None
    epochs: float | None = None
    batch: int
    warmup: int
    drops: tuple[float, ...]
    sizes: tuple[int, ...] = ()


# Differs from the paper: MoCo's recipes are for a detector on the fourth stage's map, the fifth
# stage as its head (R50-C4). Here the pyramid stands for both, as it fits any encoder. What is
# kept: nothing is frozen, BatchNorm sees the whole batch and is trained, also behind the encoder,
# and the schedules.
RECIPES = {
    "default": Preset(epochs=12, batch=8, warmup=100, drops=(8 / 12, 11 / 12)),
    "voc": Preset(
        iterations=24_000,
        batch=16,
        warmup=100,
        drops=(18 / 24, 22 / 24),
        sizes=tuple(range(480, 801, 32)),
    ),
    "coco": Preset(
        iterations=180_000,
        batch=16,
        warmup=1000,
        drops=(12 / 18, 16 / 18),
        sizes=tuple(range(640, 801, 32)),
    ),
}


class Detection(OnImages):
    """Average precision of a Faster R-CNN that is trained on boxes.

    of: `voc` and `coco` are MoCo's recipes; the other options replace their numbers
    iterations, epochs: how long, one or the other
    batch: images at a time
    optimizer: None is SGD for a CNN and AdamW for an encoder of patches
    lr: rate for 16 images, from there in proportion; None is 0.02 for SGD and 0.0001 for AdamW
    weight_decay: spares biases and norms; None is 0.0001 for SGD and 0.1 for AdamW
    momentum: of SGD
    warmup: iterations in which the rate rises, at most a tenth of all
    size, max_size: the images' short side, as far as the long side allows; None is the recipe's
        or, by default, the median short side of the training images, 800 at most. Small objects
        need a larger one
    anchor: side of the boxes that proposals start from, in cells of each map
    frozen: the encoder is not trained, only what stands on it
    flip: probability of a mirrored training image
    levels: so many of a CNN's last maps, if it has as many
    width: channels of the pyramid
    seed: of new weights, order, flips and sampled proposals; and of the split, where the data
        declare none
    seeds: how many trainings, by this seed and those after it, of which the mean is reported
    """

    name: ClassVar[str] = "detection"

    def __init__(
        self,
        of: Literal["default", "voc", "coco"] = "default",
        *,
        iterations: Count | None = None,
        epochs: Positive | None = None,
        batch: Count | None = None,
        optimizer: Literal["adamw", "sgd"] | None = None,
        lr: Positive | None = None,
        weight_decay: Weight | None = None,
        momentum: Part = 0.9,
        warmup: Whole | None = None,
        size: Count | None = None,
        max_size: Count | None = None,
        anchor: Positive = 8.0,
        frozen: bool = False,
        flip: Share = 0.5,
        levels: Count = 4,
        width: Count = 256,
        seed: Whole = 0,
        seeds: Count = 1,
    ) -> None:
        if iterations is not None and epochs is not None:
            raise ConfigError("detection takes iterations or epochs, not both")
        self.of, self.iterations, self.epochs, self.batch = of, iterations, epochs, batch
        self.optimizer, self.lr, self.weight_decay = optimizer, lr, weight_decay
        self.momentum, self.warmup = momentum, warmup
        self.size, self.max_size, self.anchor = size, max_size, anchor
        self.frozen, self.flip, self.levels, self.width = frozen, flip, levels, width
        self.seed, self.seeds = seed, seeds

    def open(
        self, data: Data, *, duplicates: Literal["refuse", "drop"] = "refuse", **options: Any
    ) -> tuple[Boxes, Boxes]:
        return open_boxes(data, seed=self.seed, duplicates=duplicates, **options)

    def measure(self, sight: Sight, train: Boxes, test: Boxes) -> list[Score]:
        if train.classes != test.classes:
            raise DataError("training and test images have different classes")
        for part, which in ((train, "training"), (test, "test")):
            if not any((~o.crowd & ~o.difficult).any() for o in part.objects):
                raise DataError(f"there is no box on any {which} image, crowds and difficult apart")
        design = self._design(train)
        for part in (train, test):
            _check_shapes(part, design)
        return over_seeds(
            [
                self._trained(design, seed, sight, train, test)
                for seed in range(self.seed, self.seed + self.seeds)
            ]
        )

    def _trained(
        self, design: Design, seed: int, sight: Sight, train: Boxes, test: Boxes
    ) -> list[Score]:
        encoder = sight.encoder.copied()
        schedule = self._schedule(train, encoder.multiple > 1, seed)
        half = sight.precision == "bf16"
        model = build(encoder, len(train.classes), design, half, seed)
        loss = fit(model, sight, train, schedule)
        found = find(model, sight, test)
        details = {
            "iterations": schedule.total,
            "epochs": schedule.total * schedule.batch / len(train),
            "batch": schedule.batch,
            "optimizer": schedule.recipe.optimizer,
            "lr": schedule.recipe.rate(schedule.batch),
            "weight_decay": schedule.recipe.weight_decay,
            "warmup": schedule.warmup,
            "sizes": list(design.sizes),
            "max_size": design.max_size,
            "loss": loss,
            "train": {"images": len(train), **train.counts, "skipped": len(train.skipped)},
            "test": {"images": len(test), **test.counts, "skipped": len(test.skipped)},
        }
        name = "Faster R-CNN" + " (frozen)" * self.frozen
        return scores(name, found, test, details)

    def _design(self, train: Boxes) -> Design:
        sizes = RECIPES[self.of].sizes
        if self.size is not None:
            sizes = (self.size,)
        elif not sizes:
            sizes = (min(_LARGEST, int(np.median(train.images.sizes.min(axis=1)))),)
        longest = self.max_size or round(_LONG * sizes[-1])
        return Design(self.levels, self.width, self.anchor, self.frozen, sizes, longest)

    def _schedule(self, train: Boxes, adaptive: bool, seed: int) -> Schedule:
        preset = RECIPES[self.of]
        batch = self.batch or preset.batch
        total = self.iterations or preset.iterations
        if total is None or self.epochs is not None:
            epochs = self.epochs or preset.epochs
            assert epochs is not None
            total = max(1, math.ceil(epochs * len(train) / batch))
        optimizer = self.optimizer or ("adamw" if adaptive else "sgd")
        recipe = optim.Recipe(
            optimizer=optimizer,
            lr=self.lr or _RATES[optimizer],
            weight_decay=_DECAYS[optimizer] if self.weight_decay is None else self.weight_decay,
            batch=_BATCH,
            momentum=self.momentum,
            betas=(0.9, 0.999),
            drops=preset.drops,
            warmup_from=0.001,
        )
        warmup = min(preset.warmup if self.warmup is None else self.warmup, total // 10)
        return Schedule(recipe, total, batch, warmup, self.flip, seed)


def scores(name: str, found: Sequence[Found], test: Boxes, details: dict[str, Any]) -> list[Score]:
    """AP, AP50 and AP75 as COCO counts; of data of VOC's also its own AP50."""
    classes = len(test.classes)
    matches = match_coco(found, test.objects, classes)
    at = {"AP": slice(None), "AP50": slice(0, 1), "AP75": slice(5, 6)}
    parts = {metric: [_only(one, which) for one in matches] for metric, which in at.items()}
    each = {
        metric: {
            label: _known(average_precision(one).mean())
            for label, one in zip(test.classes, parts[metric], strict=True)
        }
        for metric in ("AP", "AP50")
    }
    by_area = {
        area: _known(mean_precision(match_coco(found, test.objects, classes, area=limits)))
        for area, limits in AREAS.items()
        if area != "all"
    }
    detections = sum(len(one.scores) for one in found)
    shown = {**details, "detections": detections, "per_class": each["AP"], "areas": by_area}
    shown["per_class_AP50"] = each["AP50"]
    rules: dict[str, Rule] = dict.fromkeys(parts, "coco")
    if test.kind == "voc":
        by_voc = match_voc(found, test.objects, classes, THRESHOLDS)
        parts["VOC-AP50"], rules["VOC-AP50"] = [_only(one, slice(0, 1)) for one in by_voc], "voc"
        # What detectron2 prints for VOC07, and papers report as AP, AP50 and AP75.
        shown["voc07"] = {
            metric: _known(mean_precision([_only(one, which) for one in by_voc], rule="voc07"))
            for metric, which in at.items()
        }
    return [
        _score(name, metric, parts[metric], rules[metric], shown if metric == "AP" else {})
        for metric in parts
    ]


def _check_shapes(part: Boxes, design: Design) -> None:
    """Nothing is left of a strip that is shrunk until its long side fits."""
    short, long = part.images.sizes.min(axis=1), part.images.sizes.max(axis=1)
    thin = np.flatnonzero(short * design.max_size < long)
    if len(thin):
        height, width = part.images.sizes[thin[0]].tolist()
        raise DataError(
            f"{printable(part.images.path(int(thin[0])))} has {width} × {height} pixels, of which "
            f"none are left at a long side of {design.max_size}; leave it out"
        )


def _score(
    name: str, metric: str, matches: Sequence[Matches], rule: Rule, details: dict[str, Any]
) -> Score:
    n = len(matches[0].objects)

    def precision(images: NDArray[np.int64]) -> float:
        return mean_precision(matches, np.bincount(images, minlength=n), rule)

    return Score.resampled(name, Detection.name, precision, n, metric, details)


def _only(matches: Matches, which: slice) -> Matches:
    """At some of the overlaps."""
    hit, ignored = matches.hit[which], matches.ignored[which]
    return Matches(matches.image, hit, ignored, matches.objects)


def _known(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
