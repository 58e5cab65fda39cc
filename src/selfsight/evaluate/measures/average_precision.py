"""Average precision of boxes: COCO's and Pascal VOC's, from plain arrays.

Detections and objects are matched once per image; from then on a detection is a score and a
verdict, so that resampled test images cost a sum each and no matching.

Boxes are x1, y1, x2, y2 where x2 − x1 is the width, without VOC's extra pixel: reading its
files adds it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from selfsight.data.boxes import Objects

__all__ = [
    "AREAS",
    "THRESHOLDS",
    "Found",
    "Matches",
    "Rule",
    "average_precision",
    "box_iou",
    "match_coco",
    "match_voc",
    "mean_precision",
]

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Rule = Literal["coco", "voc", "voc07"]

# COCO's: overlaps .50, .55, … .95; recalls 0, .01, … 1; areas in square pixels, both ends in.
THRESHOLDS: Floats = np.linspace(0.5, 0.95, 10)
_RECALLS: Floats = np.linspace(0.0, 1.0, 101)
AREAS: dict[str, tuple[float, float]] = {
    "all": (0.0, 1e10),
    "small": (0.0, 32.0**2),
    "medium": (32.0**2, 96.0**2),
    "large": (96.0**2, 1e10),
}


@dataclass(frozen=True)
class Found:
    """What a detector says of one image: boxes (n, 4), scores (n,), labels (n,)."""

    boxes: NDArray[np.floating]
    scores: NDArray[np.floating]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class Matches:
    """Detections of one class in all images, by falling score; of equals the earlier image's.

    image: (n,) where each was found
    hit: (T, n) whether it is the first to find an object, at each overlap asked for
    ignored: (T, n) whether it counts neither for nor against
    objects: (N,) how many each image has to be found
    """

    image: NDArray[np.int64]
    hit: Flags
    ignored: Flags
    objects: NDArray[np.int64]

    @cached_property
    def steps(self) -> "list[_Steps]":
        """What each of the T curves is made of; recall moves at hits and nowhere else."""
        return [
            _Steps(np.flatnonzero(hit), np.flatnonzero(ignored))
            for hit, ignored in zip(self.hit, self.ignored, strict=True)
        ]


@dataclass(frozen=True)
class _Steps:
    """Places of the hits and of what is ignored, and how many of these precede each hit."""

    hits: NDArray[np.int64]
    ignored: NDArray[np.int64]
    before: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "before", np.searchsorted(self.ignored, self.hits))


def match_coco(
    found: Sequence[Found],
    truth: Sequence[Objects],
    classes: int,
    *,
    area: tuple[float, float] = AREAS["all"],
    thresholds: Floats = THRESHOLDS,
    most: int = 100,
) -> list[Matches]:
    """COCO's matching, class by class; found and truth: one per image.

    A detection takes the free object that it overlaps most, one that counts before one that
    does not: crowds, objects outside the area's range and, in data of VOC's, difficult ones. A
    crowd is never used up, and an overlap with one is the share of the detection that it
    covers. What finds nothing and is itself outside the range is ignored.

    most: detections per image and class, the best first
    """

    def one(boxes: Floats, objects: Objects) -> tuple[Flags, Flags, Flags]:
        crowd = objects.crowd
        ignore = crowd | objects.difficult | (objects.area < area[0]) | (objects.area > area[1])
        size = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        outside = (size < area[0]) | (size > area[1])
        overlap = box_iou(boxes, objects.boxes.astype(np.float64), crowd)
        hit, ignored, missed = _take_free(overlap, ignore, crowd, thresholds)
        return hit, ignored | (missed & outside), ~ignore

    return _match(found, truth, classes, len(thresholds), most, one)


def match_voc(
    found: Sequence[Found],
    truth: Sequence[Objects],
    classes: int,
    thresholds: Floats = THRESHOLDS[:1],
) -> list[Matches]:
    """Pascal VOC's matching, class by class.

    A detection stands for the object that it overlaps most, free or not: a second one of the
    same object is false. Difficult objects count neither way.
    """

    def one(boxes: Floats, objects: Objects) -> tuple[Flags, Flags, Flags]:
        hit, ignored = np.zeros((2, len(thresholds), len(boxes)), np.bool_)
        overlap = box_iou(boxes, objects.boxes.astype(np.float64))
        for number, threshold in enumerate(thresholds if len(objects.boxes) else ()):
            best = overlap.argmax(axis=1)
            near = overlap.max(axis=1) >= threshold
            ignored[number] = near & objects.difficult[best]
            at = np.flatnonzero(near & ~ignored[number])
            # The first of each object, as detections come by falling score.
            hit[number, at[np.unique(best[at], return_index=True)[1]]] = True
        return hit, ignored, ~objects.difficult

    return _match(found, truth, classes, len(thresholds), None, one)


def average_precision(
    matches: Matches, times: NDArray[np.integer] | None = None, rule: Rule = "coco"
) -> Floats:
    """(T,) area under precision over recall; nan where there is nothing to find.

    Precision at a recall is the best at that recall or any higher one.

    times: (N,) how often each image counts; none means once
    rule: the mean over 101 recalls (coco), over 11 (voc07, until 2009), or the area itself
        (voc, since 2010)
    """
    weight = np.ones(len(matches.objects), np.int64) if times is None else times
    objects = int(weight @ matches.objects)
    if objects == 0:
        return np.full(len(matches.hit), np.nan)
    count = weight[matches.image]
    total = np.cumsum(count)
    value = np.zeros(len(matches.hit))
    for number, steps in enumerate(matches.steps):
        if len(steps.hits) == 0:
            continue
        right = np.cumsum(count[steps.hits])
        left_out = np.concatenate([[0], np.cumsum(count[steps.ignored])])[steps.before]
        precision = right / np.maximum(total[steps.hits] - left_out, 1)
        precision = np.maximum.accumulate(precision[::-1])[::-1]
        value[number] = _area(right / objects, precision, rule)
    return value


def mean_precision(
    matches: Sequence[Matches], times: NDArray[np.integer] | None = None, rule: Rule = "coco"
) -> float:
    """The mean over overlaps and over those classes that have objects; nan if none has."""
    each = np.array([average_precision(one, times, rule).mean() for one in matches])
    known = each[~np.isnan(each)]
    return float(known.mean()) if len(known) else float("nan")


def box_iou(a: Floats, b: Floats, crowd: Flags | None = None) -> Floats:
    """(n, m): intersection over union of boxes (n, 4) and (m, 4); where b is a crowd (m,),
    over the area of a."""
    side = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
    both = side.clip(0).prod(axis=2)
    own, other = ((box[:, 2:] - box[:, :2]).prod(axis=1) for box in (a, b))
    union = own[:, None] + other - both
    if crowd is not None:
        union = np.where(crowd, own[:, None], union)
    # Two boxes without area share nothing.
    overlap: Floats = both / np.where(union > 0, union, 1.0)
    return overlap


def _area(recall: Floats, precision: Floats, rule: Rule) -> float:
    if rule == "voc":
        return float((np.diff(recall, prepend=0.0) * precision).sum())
    wanted = _RECALLS if rule == "coco" else _RECALLS[::10]
    at = np.searchsorted(recall, wanted, side="left")
    return float(np.append(precision, 0.0)[at].sum() / len(wanted))


def _take_free(
    overlap: Floats, ignore: Flags, crowd: Flags, thresholds: Floats
) -> tuple[Flags, Flags, Flags]:
    """overlap: (n, m) of detections by falling score. Of each, at each threshold (T, n): it is
    a hit; it took what is ignored; it took nothing."""
    count, rows = len(overlap), np.arange(len(thresholds))
    taken = np.full((len(thresholds), count), -1)
    free = np.ones((len(thresholds), len(ignore)), np.bool_)
    # Of equal overlaps COCO's code takes the last, and what is ignored only for want of other.
    order = np.lexsort((-np.arange(len(ignore)), ignore))
    overlap = overlap[:, order]
    regular = int((~ignore).sum())
    near = np.flatnonzero(overlap.max(axis=1, initial=0.0) >= thresholds.min())
    for detection in near.tolist():
        fits = np.where(free & (overlap[detection] >= thresholds[:, None]), overlap[detection], -1)
        for part in (slice(0, regular), slice(regular, None)):
            if fits[:, part].shape[1] == 0:
                continue
            best = fits[:, part].argmax(axis=1) + part.start
            use = (fits[rows, best] >= 0) & (taken[:, detection] < 0)
            taken[use, detection] = order[best[use]]
            free[rows[use], best[use]] = crowd[order[best[use]]]
    nothing = taken < 0
    if len(ignore) == 0:
        return ~nothing, ~nothing, nothing
    aside = ~nothing & ignore[taken]
    return ~nothing & ~aside, aside, nothing


def _match(
    found: Sequence[Found],
    truth: Sequence[Objects],
    classes: int,
    depth: int,
    most: int | None,
    one: Callable[[Floats, Objects], tuple[Flags, Flags, Flags]],
) -> list[Matches]:
    """one: what becomes of a class's detections in one image, and which objects count."""
    objects = np.zeros((classes, len(truth)), np.int64)
    image: list[list[NDArray[np.int64]]] = [[] for _ in range(classes)]
    score: list[list[Floats]] = [[] for _ in range(classes)]
    hit: list[list[Flags]] = [[] for _ in range(classes)]
    ignored: list[list[Flags]] = [[] for _ in range(classes)]
    for number, (here, there) in enumerate(zip(found, truth, strict=True)):
        for label in np.union1d(here.labels, there.labels).astype(np.int64).tolist():
            own = np.flatnonzero(here.labels == label)
            own = own[np.argsort(-here.scores[own], kind="stable")][:most]
            right, aside, counts = one(
                here.boxes[own].astype(np.float64), there.subset(there.labels == label)
            )
            objects[label, number] = counts.sum()
            image[label].append(np.full(len(own), number))
            score[label].append(here.scores[own].astype(np.float64))
            hit[label].append(right)
            ignored[label].append(aside)
    matches = []
    for label in range(classes):
        scores = np.concatenate([np.empty(0), *score[label]])
        order = np.argsort(-scores, kind="stable")
        none = np.empty((depth, 0), np.bool_)
        matches.append(
            Matches(
                np.concatenate([np.empty(0, np.int64), *image[label]])[order],
                np.concatenate([none, *hit[label]], axis=1)[:, order],
                np.concatenate([none, *ignored[label]], axis=1)[:, order],
                objects[label],
            )
        )
    return matches
