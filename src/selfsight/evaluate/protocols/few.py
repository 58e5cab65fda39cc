"""Few labels: a linear probe that is shown the labels of a share, a number, or a published list
of the training images."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray

from selfsight import philox
from selfsight.errors import ConfigError, DataError
from selfsight.evaluate.base import OnFeatures
from selfsight.evaluate.measures.classified import classified
from selfsight.evaluate.protocols.linear import STRENGTHS, LinearProbe
from selfsight.evaluate.report import Score, within
from selfsight.evaluate.statistics import student_interval
from selfsight.features import Features
from selfsight.philox import Purpose
from selfsight.ranges import Count, Range, Whole

__all__ = ["Few", "listed"]

# Where a class has one label, so that no other is left to choose by.
_STRENGTH = 0.01

Rows = NDArray[np.int64]


class Few(OnFeatures):
    """The linear probe of `linear`, of few labels, over several draws of them.

    labels: a share of each class in (0, 1), of which at least one image is taken; a whole
        number of images of each class; or a text file that names images, one in a line
    seeds: how many draws; a file is one
    seed: of the draws

    The strength of the penalty is chosen by cross-validation inside the labels that were
    drawn, and is 0.01 where a class has but one. The embeddings of all training images
    standardise the channels: that takes no label.
    """

    name: ClassVar[str] = "few"

    def __init__(
        self,
        labels: Count | Annotated[float, Range(0, 1, above=True)] | str = 0.1,
        *,
        seeds: Count = 5,
        seed: Whole = 0,
    ) -> None:
        if not isinstance(labels, str) and not (
            0 < labels < 1 or (labels >= 1 and isinstance(labels, int))
        ):
            raise ConfigError(
                f"labels are a share between 0 and 1, a whole number of images per class, or a "
                f"file that lists images, got {labels}"
            )
        # Read here, so that a wrong one is told before the images are embedded.
        self.names = _read(labels) if isinstance(labels, str) else []
        if self.names:
            # A list is what it names, wherever it lies.
            content = os.fsencode("\n".join(sorted(self.names)))
            self.options["labels"] = f"list {hashlib.sha256(content).hexdigest()[:16]}"
        self.labels, self.seeds, self.seed = labels, seeds, seed

    def measure(self, train: Features, test: Features) -> list[Score]:
        assert train.label is not None
        assert test.label is not None
        draws = self.draw(train)
        found: dict[str, object] = {"images": [len(rows) for rows in draws]}
        if isinstance(self.labels, str):
            found["unmatched"] = len(self.names) - len(draws[0])
        name = f"few ({self._amount(train, len(draws[0]))})"
        each: list[list[Score]] = []
        for rows in draws:
            # Held-out images that show only the larger classes would choose a penalty so strong
            # that the biases, which are free, answer with those.
            alone = np.unique(train.label[rows], return_counts=True)[1].min() == 1
            strengths = (_STRENGTH,) if alone else STRENGTHS
            probe = LinearProbe(strengths, folds=5, seed=self.seed)
            answers = probe.fit(
                train.embedding[rows], train.label[rows], among=train.embedding
            ).logits(test.embedding)
            how = {"strength": probe.strength, "at_edge": probe.at_edge, "tuned": probe.tuned}
            each.append(
                classified(name, self.name, answers, test.label, test.classes, **found, **how)
            )
        return each[0] if len(draws) == 1 else _joined(each)

    def draw(self, train: Features) -> list[Rows]:
        """For each draw the numbers of the images whose labels are shown."""
        assert train.label is not None
        if isinstance(self.labels, str):
            return [listed(self.names, train, self.labels)]
        draws = []
        for number in range(self.seeds):
            seed = philox.seed_for(self.seed, number, Purpose.SUBSET)
            parts = []
            for label in np.unique(train.label).tolist():
                members = np.flatnonzero(train.label == label)
                count = self._count(len(members), train, label)
                order = philox.permutation(seed, label, Purpose.SUBSET, len(members))
                parts.append(members[order[:count]])
            draws.append(np.sort(np.concatenate(parts)))
        return draws

    def _count(self, size: int, train: Features, label: int) -> int:
        assert not isinstance(self.labels, str)
        if self.labels < 1:
            return max(1, round(self.labels * size))
        if self.labels > size:
            raise DataError(
                f"few labels: {self.labels} of each class were asked for, and class "
                f"{_class(train, label)} has {size} training images; ask for at most {size}"
            )
        return int(self.labels)

    def _amount(self, train: Features, count: int) -> str:
        if isinstance(self.labels, str):
            return f"{Path(self.labels).name}, {count:,} labels"
        if self.labels >= 1:
            return f"{self.labels} per class"
        return f"{100 * self.labels:g}%"


def listed(names: list[str], train: Features, source: str) -> Rows:
    """The numbers of the training images that `names` name, each by the last components of its
    path; those not among the training images are passed over, as in a list of a larger set.

    source: where the names are from, for messages
    """
    assert train.label is not None
    paths: dict[str, list[tuple[tuple[str, ...], int]]] = defaultdict(list)
    for number, path in enumerate(train.path):
        parts = PurePosixPath(path).parts
        if parts:
            paths[parts[-1]].append((parts, number))
    found = set()
    for name in names:
        wanted = PurePosixPath(name).parts
        same = [
            number for parts, number in paths.get(wanted[-1], ()) if parts[-len(wanted) :] == wanted
        ]
        if len(same) > 1:
            raise DataError(
                f"{source}: {name} may be {train.path[same[0]]} or {train.path[same[1]]}; write "
                "more of its path"
            )
        found.update(same)
    if not found:
        raise DataError(
            f"{source} names none of the {len(train):,} training images; the first line is "
            f"{names[0]!r}, the first image {train.path[0]}"
        )
    rows = np.array(sorted(found), np.int64)
    left = sorted(set(train.label.tolist()) - set(train.label[rows].tolist()))
    if left:
        raise DataError(
            f"{source} names no image of class {_class(train, left[0])}"
            + (f" and of {len(left) - 1} others" if len(left) > 1 else "")
            + "; each class needs one"
        )
    return rows


def _class(train: Features, label: int) -> str:
    return train.classes[label] if label < len(train.classes) else str(label)


def _read(file: str) -> list[str]:
    """The lines of a list, without those that are blank and without repetitions."""
    try:
        # Paths that are not UTF-8 appear in features with the same escapes.
        text = os.fsdecode(Path(file).expanduser().read_bytes())
    except OSError as error:
        raise ConfigError(
            f"labels {file}: {error.strerror}; they are a share between 0 and 1, a whole number "
            "of images per class, or a file that lists images"
        ) from None
    names = dict.fromkeys(line.strip() for line in text.split("\n"))
    lines = [line for line in names if PurePosixPath(line).parts]
    if not lines:
        raise DataError(f"{file} names no images; write one name in a line")
    return lines


def _joined(each: list[list[Score]]) -> list[Score]:
    """The scores of several draws as their means, with intervals over the test images; then the
    accuracy's interval over the draws."""
    scores = [_mean(same) for same in zip(*each, strict=True)]
    first, values = scores[0], np.array([same[0].value for same in each])
    # Of draws as if they were independent; they share the training images.
    low, high = within(student_interval(values), 0.0, 1.0)
    details = {"interval": "Student's, over draws of the labels", "draws": values.tolist()}
    over = Score(
        first.name, first.protocol, first.value, low, high, len(values), "over draws", details
    )
    return [*scores, over]


def _mean(same: Sequence[Score]) -> Score:
    """One metric of several draws, on the same test images."""
    first = same[0]
    right = np.mean([score.each for score in same if score.each is not None], axis=0)
    details = dict(first.details)
    if details:
        for key in ("strength", "at_edge", "tuned"):
            details[key] = [score.details[key] for score in same]
        recalls = [score.details["per_class"] for score in same]
        details["per_class"] = {
            name: float(np.mean([recall[name] for recall in recalls])) for name in recalls[0]
        }
        details["class_mean"] = float(np.mean([score.details["class_mean"] for score in same]))
        tables = [score.details["confusion"] for score in same if "confusion" in score.details]
        details["confusion"] = _summed(tables)
        details["interval"] = "over test images, of the mean over draws"
    return Score.mean(first.name, first.protocol, right, first.metric, details)


def _summed(tables: list[list[list[int]]]) -> list[list[int]]:
    """Confusion over all draws; a class that no answer reached may be missing in some."""
    size = max(map(len, tables), default=0)
    total = np.zeros((size, size), np.int64)
    for table in tables:
        total[: len(table), : len(table)] += np.array(table, np.int64)
    whole: list[list[int]] = total.tolist()
    return whole
