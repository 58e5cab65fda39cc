"""Several labels per image: a support vector machine for each, judged by average precision."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from selfsight.data.sources import Data
from selfsight.data.tags import Tags, open_tags
from selfsight.errors import ConfigError, DataError
from selfsight.evaluate.base import OnImages, Sight
from selfsight.evaluate.learners.svm import COSTS, LinearSVM
from selfsight.evaluate.measures.ranking import Points, Ranking
from selfsight.evaluate.report import Score
from selfsight.ranges import Positive, Whole

__all__ = ["MultiLabel"]


class MultiLabel(OnImages):
    """Mean average precision over classes, of one linear machine each on frozen features.

    The protocol of VOC07 in Goyal et al. 2019, https://arxiv.org/abs/1905.01235. Images that
    show a class only in objects marked difficult count neither way for it, in training nor
    in the test. (The code of the paper trains on them as on images without the class.)

    costs: see `LinearSVM`, as for the two that follow
    positive: how much more an image with the class costs than one without
    seed: of the folds in which the costs are chosen; and of the split, where the data declare
        none
    points: `all` is the area under the curve, as in the code of the paper; `11` is the mean at
        recalls 0, 0.1, …, 1, which VOC used until 2009 and SimCLR and BYOL report
    """

    name: ClassVar[str] = "multilabel"

    def __init__(
        self,
        costs: Sequence[float] = COSTS,
        *,
        positive: Positive = 2.0,
        points: Points = "all",
        seed: Whole = 0,
    ) -> None:
        if not costs or not all(0 < cost < np.inf for cost in costs):
            raise ConfigError(f"the machines need costs > 0, got {list(costs)}")
        self.costs = tuple(sorted(costs))
        self.positive = positive
        self.points = points
        self.seed = seed

    def open(
        self, data: Data, *, duplicates: Literal["refuse", "drop"] = "refuse", **options: Any
    ) -> tuple[Tags, Tags]:
        return open_tags(data, seed=self.seed, duplicates=duplicates, **options)

    def measure(self, sight: Sight, train: Tags, test: Tags) -> list[Score]:
        if train.classes != test.classes:
            raise DataError("training and test images have different classes")
        classes = _counted(test)
        machine = LinearSVM(self.costs, positive=self.positive, seed=self.seed)
        machine.fit(_embedded(sight, train), train.tags)
        answers = machine.decide(_embedded(sight, test))
        known = test.tags >= 0
        rankings = [Ranking(answers[:, c], test.tags[:, c] == 1) for c in classes]

        def each(times: NDArray[np.int64], points: Points) -> NDArray[np.float64]:
            return np.array(
                [
                    ranking.average_precision(times * known[:, c], points)
                    for ranking, c in zip(rankings, classes, strict=True)
                ]
            )

        def mean(rows: NDArray[np.int64]) -> float:
            precision = each(np.bincount(rows, minlength=len(test)), self.points)
            return float(np.nanmean(precision)) if not np.isnan(precision).all() else np.nan

        once = np.ones(len(test), np.int64)
        precision = each(once, self.points)
        names = [test.classes[c] for c in classes]
        costs, edge = machine.cost[classes].tolist(), machine.at_edge[classes]
        found = {
            "per_class": dict(zip(names, precision.tolist(), strict=True)),
            "map_11_points": float(each(once, "11").mean()),
            "map_all_points": float(each(once, "all").mean()),
            "costs": dict(zip(names, costs, strict=True)),
            "at_edge": [name for name, at in zip(names, edge, strict=True) if at],
            "tuned": bool(machine.tuned[classes].all()),
            "converged": bool(machine.converged[classes].all()),
            "left_out": [c for c in test.classes if c not in names],
        }
        title = f"multi-label SVM ({len(classes)} classes)"
        metric = "mAP" if self.points == "all" else "mAP (11 points)"
        return [Score.resampled(title, self.name, mean, len(test), metric, found, seed=self.seed)]


def _embedded(sight: Sight, tags: Tags) -> torch.Tensor:
    return torch.from_numpy(sight.embed(tags.images).embedding).to(sight.device)


def _counted(test: Tags) -> list[int]:
    """Classes of which the test has images with and without."""
    both = (test.tags == 1).any(axis=0) & (test.tags == 0).any(axis=0)
    if not both.any():
        raise DataError("no class is in some test images and missing from others; label more")
    return np.flatnonzero(both).tolist()
