"""AP against COCO's own code, and against cases worked by hand."""

import contextlib
import io
from collections.abc import Sequence

import numpy as np
import pytest

from selfsight.data.boxes import Objects
from selfsight.evaluate.measures.average_precision import (
    AREAS,
    THRESHOLDS,
    Found,
    Matches,
    average_precision,
    box_iou,
    match_coco,
    match_voc,
    mean_precision,
)


def found(*rows: tuple[Sequence[float], float, int]) -> Found:
    """(box, score, label) of each detection."""
    boxes = np.array([row[0] for row in rows], np.float64).reshape(-1, 4)
    return Found(boxes, np.array([row[1] for row in rows]), np.array([row[2] for row in rows], int))


def objects(
    boxes: Sequence[Sequence[float]], labels: Sequence[int] | None = None, **flags: Sequence[bool]
) -> Objects:
    return Objects.inside((10**6, 10**6), boxes, labels or [0] * len(boxes), **flags)


def drawn(seed: int, images: int, classes: int) -> tuple[list[Found], list[Objects]]:
    """Crowded scenes on a coarse grid: overlaps and scores tie, images lack objects, findings
    or both, and one class may be nowhere."""
    draw = np.random.default_rng(seed)

    def boxes(n: int) -> np.ndarray:
        corner = draw.integers(0, 6, (n, 2)) * 10
        side = draw.choice([10, 20, 30, 40, 110, 140], (n, 2))
        return np.concatenate([corner, corner + side], axis=1).astype(np.float64)

    seen, truth = [], []
    for _ in range(images):
        n, m = draw.integers(0, 14, 2) * (draw.random(2) > 0.15)
        there = boxes(int(n))
        truth.append(
            Objects.inside(
                (1000, 1000), there, draw.integers(0, classes, n), crowd=draw.random(n) < 0.3
            )
        )
        near = there[draw.integers(0, n, m)] + draw.choice([0, 0, 2, 5, 10], (m, 4)) if n else None
        own = boxes(int(m)) if near is None else np.where(draw.random((m, 1)) < 0.8, near, boxes(m))
        own[:, 2:] = np.maximum(own[:, 2:], own[:, :2] + 1)
        scores = draw.integers(1, 8, m) / 8
        seen.append(Found(own, scores, draw.integers(0, classes, m)))
    return seen, truth


def pycocotools(
    seen: Sequence[Found], truth: Sequence[Objects], classes: int, most: int = 100
) -> np.ndarray:
    """COCO's table of precisions: overlap, recall, class, area."""
    coco = pytest.importorskip("pycocotools.coco")
    cocoeval = pytest.importorskip("pycocotools.cocoeval")

    def sides(box: np.ndarray) -> list[float]:
        return [*box[:2], *(box[2:] - box[:2])]

    annotations, results = [], []
    for image, (here, there) in enumerate(zip(seen, truth, strict=True)):
        for box, label, crowd, area in zip(
            there.boxes.astype(np.float64), there.labels, there.crowd, there.area, strict=True
        ):
            one = {"id": len(annotations) + 1, "image_id": image, "category_id": int(label)}
            one |= {"bbox": sides(box), "iscrowd": int(crowd), "area": float(area)}
            annotations.append(one)
        for box, score, label in zip(here.boxes, here.scores, here.labels, strict=True):
            one = {"image_id": image, "category_id": int(label), "bbox": sides(box)}
            results.append(one | {"score": float(score)})
    with contextlib.redirect_stdout(io.StringIO()):
        reference = coco.COCO()
        reference.dataset = {
            "images": [{"id": image} for image in range(len(truth))],
            "categories": [{"id": label} for label in range(classes)],
            "annotations": annotations,
            "info": {},
        }
        reference.createIndex()
        judge = cocoeval.COCOeval(reference, reference.loadRes(results), "bbox")
        judge.params.maxDets = [most]
        judge.evaluate()
        judge.accumulate()
    return judge.eval["precision"][..., 0]


@pytest.mark.parametrize("seed", range(25))
def test_equals_pycocotools(seed: int) -> None:
    classes, most = 1 + seed % 3, (100, 2)[seed % 5 == 0]
    seen, truth = drawn(seed, images=10, classes=classes)
    theirs = pycocotools(seen, truth, classes, most)
    for number, area in enumerate(AREAS.values()):
        ours = match_coco(seen, truth, classes, area=area, most=most)
        for label, matches in enumerate(ours):
            expected = theirs[:, :, label, number].mean(axis=1)
            value = average_precision(matches)
            if expected[0] == -1:
                assert np.isnan(value).all()
            else:
                np.testing.assert_allclose(value, expected, rtol=0, atol=1e-12)
        known = theirs[..., number][theirs[..., number] > -1]
        value = mean_precision(ours)
        assert np.isnan(value) if len(known) == 0 else value == pytest.approx(known.mean())


def test_resampled_images_are_those_images_again() -> None:
    """Weights stand for repeated images: the same as matching the repeated list."""
    for seed in range(8):
        seen, truth = drawn(seed, images=10, classes=2)
        # Without ties, whose order repetition changes.
        draw = np.random.default_rng(seed)
        seen = [Found(f.boxes, draw.random(len(f.scores)), f.labels) for f in seen]
        numbers = draw.integers(0, 10, 10)
        again = [seen[i] for i in numbers], [truth[i] for i in numbers]
        times = np.bincount(numbers, minlength=10)
        for rule in ("coco", "voc", "voc07"):
            for match in (match_coco, match_voc):
                for once, repeated in zip(match(seen, truth, 2), match(*again, 2), strict=True):
                    a, b = (
                        average_precision(once, times, rule),
                        average_precision(repeated, None, rule),
                    )
                    np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)


def test_by_hand() -> None:
    """Two objects. Of three findings the first hits, the second is nothing, the third hits:
    precision 1 up to recall 1/2 and 2/3 up to 1."""
    truth = [objects([[0, 0, 10, 10], [20, 0, 30, 10]])]
    seen = [
        found(([0, 0, 10, 10], 0.9, 0), ([50, 50, 60, 60], 0.8, 0), ([20, 0, 30, 10], 0.7, 0)),
    ]
    (voc,) = match_voc(seen, truth, 1)
    assert voc.hit.tolist() == [[True, False, True]]
    assert average_precision(voc, rule="voc") == pytest.approx([0.5 * 1 + 0.5 * 2 / 3])
    assert average_precision(voc, rule="voc07") == pytest.approx([(6 + 5 * 2 / 3) / 11])
    (coco,) = match_coco(seen, truth, 1)
    assert average_precision(coco) == pytest.approx([(51 + 50 * 2 / 3) / 101] * 10)


def test_overlaps_decide() -> None:
    """A finding shifted by 2 of 10 pixels overlaps by 80/120: it counts up to .65."""
    truth, seen = [objects([[0, 0, 10, 10]])], [found(([2, 0, 12, 10], 0.9, 0))]
    assert box_iou(np.array([[2.0, 0, 12, 10]]), np.array([[0.0, 0, 10, 10]])) == 80 / 120
    (matches,) = match_coco(seen, truth, 1)
    assert average_precision(matches).tolist() == [1.0] * 4 + [0.0] * 6
    assert THRESHOLDS[3] == pytest.approx(0.65)


def test_a_second_finding_is_false_in_voc_and_goes_elsewhere_in_coco() -> None:
    """Both findings overlap the first object most, and the second object well enough."""
    truth = [objects([[0, 0, 10, 10], [0, 3, 10, 13]])]
    seen = [found(([0, 0, 10, 10], 0.9, 0), ([0, 1, 10, 11], 0.8, 0))]
    assert match_voc(seen, truth, 1)[0].hit.tolist() == [[True, False]]
    assert match_coco(seen, truth, 1)[0].hit[0].tolist() == [True, True]


def test_difficult_objects_count_neither_way() -> None:
    truth = [objects([[0, 0, 10, 10], [20, 0, 30, 10]], difficult=[True, False])]
    seen = [found(([0, 0, 10, 10], 0.9, 0), ([20, 0, 30, 10], 0.8, 0))]
    (matches,) = match_voc(seen, truth, 1)
    assert matches.ignored.tolist() == [[True, False]]
    assert matches.objects.tolist() == [1]
    assert average_precision(matches, rule="voc").tolist() == [1.0]


def test_crowds_take_any_number() -> None:
    """Small findings inside a crowd are no errors; what overlaps it little is."""
    truth = [objects([[0, 0, 100, 100], [200, 0, 210, 10]], crowd=[True, False])]
    inside = [([10 * i, 0, 10 * i + 10, 10], 0.9, 0) for i in range(3)]
    seen = [found(*inside, ([200, 0, 210, 10], 0.5, 0), ([96, 0, 106, 10], 0.8, 0))]
    (matches,) = match_coco(seen, truth, 1)
    assert matches.ignored[0].sum() == 3
    assert average_precision(matches)[0] == 0.5


def test_nothing_to_find_and_nothing_found() -> None:
    none = found()
    empty, full = objects([]), objects([[0, 0, 10, 10]])
    for match in (match_coco, match_voc):
        first, second = match([none, none], [empty, full], 2)
        assert average_precision(first)[0] == 0
        assert np.isnan(average_precision(second)).all()
        assert mean_precision([first, second]) == 0
        assert np.isnan(mean_precision([second]))
        # A resample without the only image that has an object.
        assert np.isnan(mean_precision([first], np.array([2, 0])))


def test_scores_rank_across_images() -> None:
    """A confident error on another image comes first."""
    truth = [objects([[0, 0, 10, 10]]), objects([])]
    seen = [found(([0, 0, 10, 10], 0.4, 0)), found(([0, 0, 10, 10], 0.9, 0))]
    (matches,) = match_coco(seen, truth, 1)
    assert isinstance(matches, Matches)
    assert matches.image.tolist() == [1, 0]
    assert average_precision(matches)[0] == 0.5
    assert average_precision(matches, np.array([1, 0]))[0] == 1


@pytest.mark.parametrize(("order", "second"), [((0, 1), 10), ((1, 0), 6)])
def test_of_equal_overlaps_the_last_object_is_taken(order: tuple[int, int], second: int) -> None:
    """The first finding lies half-way between two objects, the second on one of them."""
    boxes = ([0, 0, 30, 10], [10, 0, 40, 10])
    truth = [objects([boxes[i] for i in order])]
    seen = [found(([5, 0, 35, 10], 0.9, 0), ([0, 0, 30, 10], 0.8, 0))]
    (matches,) = match_coco(seen, truth, 1)
    # 25 of 35 pixels' width is .71: five overlaps. Where its own object is taken, the second
    # finding has the other, by .50, and its own at the overlaps that the first does not reach.
    assert matches.hit.sum(axis=0).tolist() == [5, second]
    expected = pycocotools(seen, truth, 1)[:, :, 0, 0].mean(axis=1)
    np.testing.assert_allclose(average_precision(matches), expected, rtol=0, atol=1e-12)
