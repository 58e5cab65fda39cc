"""Semantic segmentation: a head on the encoder's feature maps names the class of each pixel."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from selfsight.data.masks import IGNORED, Paired, open_masks
from selfsight.data.sources import Data
from selfsight.errors import DataError
from selfsight.evaluate.base import OnImages, Sight
from selfsight.evaluate.learners.maps import Kind, Training, likeliest
from selfsight.evaluate.measures.regions import areas, confusion, ious
from selfsight.evaluate.report import Score
from selfsight.evaluate.seeds import over_seeds
from selfsight.ranges import Count, Positive, Several, Weight, Whole

__all__ = ["Segmentation", "cross_entropy"]

# A confusion matrix of a thousand classes would fill megabytes of JSON.
_SHOWN = 200


class Segmentation(OnImages):
    """Mean IoU over the classes, on whole images at the resolution of their masks.

    head: linear, each place of the last feature map by itself; or upernet, of all levels
    tuned: train the encoder, too
    lr: None is 0.01 for a linear head by adamw, ten times that by sgd, a tenth for upernet
    hidden: width of the upernet head
    seed: of the head, the order and the crops, and of a split that the data do not declare
    seeds: how many trainings, by this seed and those after it, of which the mean is reported
    """

    name: ClassVar[str] = "segmentation"

    def __init__(
        self,
        head: Kind = "linear",
        *,
        tuned: bool = False,
        epochs: Count = 40,
        batch: Several = 16,
        optimizer: Literal["adamw", "sgd"] = "adamw",
        lr: Positive | None = None,
        weight_decay: Weight = 1e-4,
        hidden: Count = 256,
        seed: Whole = 0,
        seeds: Count = 1,
    ) -> None:
        self.seeds = seeds
        self.training = Training(
            head, tuned, hidden, epochs, batch, optimizer, lr, weight_decay, seed
        )

    def open(
        self, data: Data, *, duplicates: Literal["refuse", "drop"] = "refuse", **options: Any
    ) -> tuple[Paired, Paired]:
        return open_masks(data, self.training.seed, duplicates=duplicates, **options)

    def measure(self, sight: Sight, train: Paired, test: Paired) -> list[Score]:
        first = self.training.seed
        return over_seeds(
            [
                self._trained(replace(self.training, seed=seed), sight, train, test)
                for seed in range(first, first + self.seeds)
            ]
        )

    def _trained(
        self, training: Training, sight: Sight, train: Paired, test: Paired
    ) -> list[Score]:
        classes = len(test.classes)
        network = training.fit(sight, train, test, classes, cross_entropy)
        total = np.zeros((classes, classes), np.int64)
        sizes = np.empty((len(test), 3, classes), np.int64)
        for index, (answer, mask) in enumerate(network.answers(sight, test)):
            counts = confusion(mask, likeliest(answer, mask.shape), classes)
            total += counts
            sizes[index] = areas(counts)
        if not total.any():
            raise DataError(f"no pixel of {test.name} has a class; there is nothing to count")
        found = ious(areas(total))
        details = {
            "rate": training.rate,
            "size": sight.size,
            "per_class": {
                name: float(iou)
                for name, iou in zip(test.classes, found, strict=True)
                if not np.isnan(iou)
            },
            "pixel_accuracy": float(total.trace() / max(total.sum(), 1)),
        }
        if classes <= _SHOWN:
            details["confusion"] = total.tolist()
        return [
            Score.resampled(
                f"segmentation ({training.name})",
                self.name,
                _mean_iou(sizes),
                len(test),
                "mIoU",
                details,
            )
        ]


def cross_entropy(answer: Tensor, mask: Tensor) -> Tensor:
    """answer: (N, C, H, W); mask: (N, H, W). The mean over pixels that have a class."""
    loss = F.cross_entropy(answer, mask.long(), ignore_index=IGNORED, reduction="sum")
    # A crop may hold nothing but ignored pixels.
    return loss / (mask != IGNORED).sum().clamp_min(1)


def _mean_iou(sizes: NDArray[np.int64]) -> Callable[[NDArray[np.int64]], float]:
    """sizes: (N, 3, C) of each image. Of (n,) numbers of images, the mean IoU over classes."""
    n, flat = len(sizes), sizes.reshape(len(sizes), -1).astype(np.float64)

    def statistic(chosen: NDArray[np.int64]) -> float:
        found = ious((np.bincount(chosen, minlength=n) @ flat).reshape(sizes.shape[1:]))
        return float(np.nanmean(found)) if not np.isnan(found).all() else np.nan

    return statistic
