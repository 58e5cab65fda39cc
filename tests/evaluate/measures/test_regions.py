"""Agreement of regions, by literals worked by hand and by the plain definitions."""

import math

import numpy as np
import pytest

from selfsight.evaluate.measures.regions import (
    areas,
    boundary,
    boundary_f,
    confusion,
    ious,
    region_j,
)


def square(top: int, left: int, side: int = 20, size: int = 60) -> np.ndarray:
    region = np.zeros((size, size), bool)
    region[top : top + side, left : left + side] = True
    return region


# Mean IoU


def test_confusion_leaves_ignored_pixels_out() -> None:
    target = np.array([[0, 0, 1], [1, 2, -1]], np.int16)
    answer = np.array([[0, 1, 1], [1, 0, 2]], np.int16)
    counts = confusion(target, answer, 4)
    assert counts.tolist() == [[1, 1, 0, 0], [0, 2, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    assert areas(counts).tolist() == [[1, 2, 0, 0], [2, 2, 1, 0], [2, 3, 0, 0]]
    np.testing.assert_allclose(ious(areas(counts)), [1 / 3, 2 / 3, 0, np.nan])


# Region


def test_region() -> None:
    assert region_j(square(0, 0), square(0, 0)) == 1
    assert region_j(square(0, 0), square(0, 10)) == 200 / 600
    assert region_j(square(0, 0), square(30, 30)) == 0
    empty = square(0, 0, side=0)
    assert region_j(empty, empty) == 1
    assert region_j(empty, square(0, 0)) == region_j(square(0, 0), empty) == 0


# Boundary


def test_boundary_of_a_square() -> None:
    region = np.zeros((4, 4), bool)
    region[1:3, 1:3] = True
    assert boundary(region).astype(int).tolist() == [
        [1, 1, 1, 0],
        [1, 0, 1, 0],
        [1, 1, 1, 0],
        [0, 0, 0, 0],
    ]
    # The picture's own edge is no boundary.
    assert not boundary(np.ones((3, 3), bool)).any()
    left = np.zeros((3, 3), bool)
    left[:, 0] = True
    assert boundary(left).astype(int).tolist() == [[1, 0, 0]] * 3


def test_a_square_moved_by_less_than_the_tolerance_matches() -> None:
    # 0.008 of a diagonal of 84.9 is 0.68: the radius is 1.
    assert boundary_f(square(20, 20), square(20, 20)) == 1
    assert boundary_f(square(20, 20), square(20, 21)) == 1
    # A boundary is a ring of 80 pixels. Of one moved by 2, 20 pixels of each horizontal line
    # lie near the other's, and the ends of one vertical line near its corners: 42.
    assert boundary_f(square(20, 20), square(20, 22)) == pytest.approx(42 / 80)
    assert boundary_f(square(20, 20), square(20, 22), tolerance=0.02) == 1


def test_lines_by_hand() -> None:
    # Left parts of a picture: the boundary of each is one column of 8 pixels.
    def left(columns: int) -> np.ndarray:
        region = np.zeros((8, 100), bool)
        region[:, :columns] = True
        return region

    # 0.008 of 100.3 is 0.8, so the radius is 1.
    assert boundary_f(left(50), left(51)) == 1
    assert boundary_f(left(50), left(52)) == 0
    # Half of the answer's boundary (columns 49 and 79) is right, all of the target's is found.
    both = left(50)
    both[:, 80:] = True
    assert boundary_f(left(50), both) == pytest.approx(2 * 0.5 * 1 / 1.5)
    assert boundary_f(both, left(50)) == pytest.approx(2 * 0.5 * 1 / 1.5)


def test_no_boundary() -> None:
    empty = square(0, 0, side=0)
    assert boundary_f(empty, empty) == 1
    assert boundary_f(empty, square(9, 9)) == boundary_f(square(9, 9), empty) == 0


@pytest.mark.parametrize("shape", [(40, 70), (5, 90), (70, 3)])
def test_boundaries_by_the_definition(shape: tuple[int, int]) -> None:
    draw = np.random.default_rng(3)
    tolerance = 0.05
    radius = math.ceil(tolerance * math.hypot(*shape))
    for share in (0.02, 0.5):
        target, answer = draw.random((2, *shape)) < share
        a, b = np.argwhere(boundary(target)), np.argwhere(boundary(answer))
        near = ((a[:, None] - b[None]) ** 2).sum(axis=2) <= radius**2
        recall, precision = near.any(axis=1).mean(), near.any(axis=0).mean()
        expected = 2 * precision * recall / (precision + recall)
        assert boundary_f(target, answer, tolerance) == pytest.approx(expected)
        assert expected < 1 or share == 0.5
