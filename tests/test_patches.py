"""Pieces of images: which pixels they hold, and in what order they come."""

import pytest
import torch

from selfsight import philox
from selfsight.errors import ConfigError
from selfsight.patches import PIECES, grid, jigsaw
from selfsight.philox import Purpose


def draws(n):
    return philox.uniform(0, torch.arange(n), Purpose.PATCH, 3 * PIECES).view(n, 3, PIECES)


def coordinates(n, height, width):
    """(n, 3, H, W): each pixel's image, row and column."""
    axes = torch.arange(n), torch.arange(height), torch.arange(width)
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), 1).float()


def test_a_grid_goes_over_an_image_row_by_row_before_the_next():
    squares = grid(coordinates(2, 5, 7), 3, 2)
    assert squares.shape == (2 * 2 * 3, 3, 3, 3)
    corners = squares[:, :, 0, 0].tolist()
    assert corners == [[i, y, x] for i in (0, 1) for y in (0, 2) for x in (0, 2, 4)]
    assert torch.equal(squares[7], coordinates(2, 5, 7)[1, :, 0:3, 2:5])


def test_a_grid_of_one_square_is_the_image():
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(grid(x, 8, 4), x)
    with pytest.raises(ConfigError, match=r"9 px do not fit into 8 × 8"):
        grid(x, 9, 1)


@pytest.mark.parametrize(("side", "multiple", "piece"), [(255, 1, 64), (73, 1, 18), (80, 16, 16),
                                                        (36, 4, 8), (3, 1, 1)])  # fmt: skip
def test_a_jigsaw_has_one_square_from_each_cell(side, multiple, piece):
    pieces = jigsaw(coordinates(40, side, side), draws(40), multiple)
    assert pieces.shape == (40 * 9, 3, piece, piece)
    image, top, left = pieces[:, :, 0, 0].view(40, 9, 3).long().unbind(2)
    assert torch.equal(image, torch.arange(40)[:, None].expand(-1, 9))
    cell = side // 3
    cells = top // cell * 3 + left // cell
    assert torch.equal(cells.sort(1).values, torch.arange(9).expand(40, -1))
    for corner, axis in ((top, 1), (left, 2)):
        # Squares, whole and in place, and anywhere in their cell.
        last = pieces[:, axis, -1, -1].view(40, 9).long()
        assert torch.equal(last, corner + piece - 1)
        assert (last // cell == corner // cell).all()
        assert set((corner % cell).flatten().tolist()) == set(range(cell - piece + 1))
    assert len({tuple(row) for row in cells.tolist()}) > 30


def test_pieces_below_the_encoders_patch_are_refused():
    with pytest.raises(ConfigError, match=r"3 × 3 pieces of 40 × 40 px .* patch of 16; raise"):
        jigsaw(torch.zeros(1, 3, 40, 40), draws(1), 16)
