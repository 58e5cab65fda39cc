"""Dense regression, as of depth: a head on the encoder's feature maps answers with a number per
pixel."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from selfsight.data.masks import Map, Paired, open_targets
from selfsight.data.sources import Data
from selfsight.errors import DataError
from selfsight.evaluate.base import OnImages, Sight
from selfsight.evaluate.learners.maps import Kind, Training, enlarged
from selfsight.evaluate.report import Score
from selfsight.ranges import Count, Positive, Several, Weight, Whole

__all__ = ["Dense", "errors"]

_FACTOR = 1.25
_NEAR = "δ<1.25"


class Dense(OnImages):
    """Root of the mean squared error of each image's pixels, in the targets' unit; with it the
    error relative to the target, and the share of pixels within a factor of 1.25, both over
    pixels with targets above 0.

    head: linear, each place of the last feature map by itself; or upernet, of all levels
    loss: of targets brought to mean 0 and deviation 1: l1, l2, or log, l2 of their logarithms
    unit: what 1 in a PNG of targets stands for; .npy targets are taken as they are
    zero: whether 0 in a PNG is a value, or says that it is unknown
    tuned: train the encoder, too
    lr: None is 0.01 for a linear head by adamw, ten times that by sgd, a tenth for upernet
    hidden: width of the upernet head
    seed: of the head, the order and the crops, and of a split that the data do not declare
    """

    name: ClassVar[str] = "dense"

    def __init__(
        self,
        head: Kind = "linear",
        *,
        loss: Literal["l1", "l2", "log"] = "l1",
        unit: Positive = 1.0,
        zero: Literal["value", "unknown"] = "value",
        tuned: bool = False,
        epochs: Count = 40,
        batch: Several = 16,
        optimizer: Literal["adamw", "sgd"] = "adamw",
        lr: Positive | None = None,
        weight_decay: Weight = 1e-4,
        hidden: Count = 256,
        seed: Whole = 0,
    ) -> None:
        self.training = Training(
            head, tuned, hidden, epochs, batch, optimizer, lr, weight_decay, seed
        )
        self.loss, self.unit, self.zero = loss, unit, zero

    def open(
        self, data: Data, *, duplicates: Literal["refuse", "drop"] = "refuse", **options: Any
    ) -> tuple[Paired, Paired]:
        return open_targets(
            data, unit=self.unit, zero=self.zero == "value", seed=self.training.seed,
            duplicates=duplicates, **options,
        )  # fmt: skip

    def measure(self, sight: Sight, train: Paired, test: Paired) -> list[Score]:
        scale, known = _surveyed(train, self.loss == "log")
        network = self.training.fit(sight, train.subset(known), test, 1, scale.loss(self.loss))
        rows = []
        for answer, target in network.answers(sight, test):
            (whole,) = enlarged(answer, target.shape, 1)
            rows.append(errors(target, scale.back(whole[0]).cpu().numpy()))
        found = np.array(rows)
        found = found[~np.isnan(found[:, 0])]
        if len(found) == 0:
            raise DataError(f"no pixel of {test.name} has a target; there is nothing to count")
        details = {
            "rate": self.training.rate,
            "size": sight.size,
            "without_target": len(rows) - len(found),
        }
        name = f"dense ({self.training.name}, {self.loss})"
        metrics = ("RMSE", "relative error", _NEAR)
        return [
            Score.mean(
                name,
                self.name,
                column[~np.isnan(column)],
                metric,
                details if number == 0 else {},
                most=1.0 if metric == _NEAR else np.inf,
            )
            for number, (metric, column) in enumerate(zip(metrics, found.T, strict=True))
            if not np.isnan(column).all()
        ]


def errors(target: Map, answer: NDArray[np.float32]) -> tuple[float, float, float]:
    """(H, W) each, nan where the target is unknown. Root of the mean squared error; then, over
    targets above 0, the mean of |error| / target and the share of answers within a factor of
    1.25. nan where there is no such pixel."""
    known = ~np.isnan(target)
    t, a = target[known].astype(np.float64), answer[known].astype(np.float64)
    if len(t) == 0:
        return np.nan, np.nan, np.nan
    rmse = float(np.sqrt(((a - t) ** 2).mean()))
    t, a = t[t > 0], a[t > 0]
    if len(t) == 0:
        return rmse, np.nan, np.nan
    near = (a < _FACTOR * t) & (_FACTOR * a > t)
    return rmse, float((np.abs(a - t) / t).mean()), float(near.mean())


@dataclass(frozen=True)
class _Scale:
    """Targets, or their logarithms, as numbers of mean 0 and deviation 1, and back; answers
    never leave the range of the training targets."""

    logarithmic: bool
    mean: float
    deviation: float
    low: float
    high: float

    def loss(self, kind: str) -> Callable[[Tensor, Tensor], Tensor]:
        """Of (N, 1, H, W) answers and (N, H, W) targets: the mean over known pixels."""

        def loss(answer: Tensor, target: Tensor) -> Tensor:
            known = ~target.isnan()
            wanted = (self._raised(target[known]) - self.mean) / self.deviation
            error = answer[:, 0][known] - wanted
            return (error.abs() if kind == "l1" else error.square()).sum() / max(len(error), 1)

        return loss

    def back(self, answer: Tensor) -> Tensor:
        value = (answer * self.deviation + self.mean).clamp(self.low, self.high)
        return value.exp() if self.logarithmic else value

    def _raised(self, target: Tensor) -> Tensor:
        return target.log() if self.logarithmic else target


def _surveyed(train: Paired, logarithmic: bool) -> tuple[_Scale, NDArray[np.int64]]:
    """The scale of the targets, and the numbers of the images that have some."""
    known: list[int] = []
    count, total, squares, low, high = 0, 0.0, 0.0, np.inf, -np.inf
    for index, target in train.maps():
        values = target[~np.isnan(target)].astype(np.float64)
        if len(values) == 0:
            continue
        known.append(index)
        if logarithmic and values.min() <= 0:
            raise DataError(
                f"{train.shown(index)} has targets that are not above 0, which have no logarithm; "
                "say --dense.zero unknown if 0 means that, or take the loss l1"
            )
        values = np.log(values) if logarithmic else values
        count += len(values)
        total += float(values.sum())
        squares += float((values**2).sum())
        low, high = min(low, float(values.min())), max(high, float(values.max()))
    if not known:
        raise DataError(f"no pixel of {train.name} has a target; there is nothing to learn from")
    mean = total / count
    deviation = max(squares / count - mean**2, 0.0) ** 0.5
    # A constant target has none; its answer is the mean.
    return _Scale(logarithmic, mean, deviation or 1.0, low, high), np.array(known)
