"""Draws a view's parameters: one row of numbers per sample, all samples at once."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from selfsight.errors import DataError
from selfsight.views.draw import DRAWS, Numbers, draw
from selfsight.views.spec import View

__all__ = ["COLUMNS", "DRAWS", "ORDERS", "Table", "boxes", "center", "sample"]

_KEY = 2**64 - 1

# top, left, height, width: the crop in source pixels
# flip, gray, solarize, equalize, sobel: 0 or 1
# turns: quarter turns, counter-clockwise
# order: row of ORDERS; brightness, contrast, saturation: factors, 1 does nothing;
# hue: a shift as a fraction of the circle, 0 does nothing
# sigma: of the blur in pixels, 0 does nothing
# cutout_x, cutout_y: the square's centre as a fraction of the side, or -1
# noise: standard deviation, 0 does nothing
COLUMNS = (
    *("top", "left", "height", "width", "flip", "turns"),
    *("order", "brightness", "contrast", "saturation", "hue"),
    *("gray", "sigma", "solarize", "equalize"),
    *("cutout_x", "cutout_y", "noise", "sobel"),
)

# Brightness, contrast, saturation and hue are 0, 1, 2 and 3.
ORDERS = np.array(list(itertools.permutations(range(4))))


@dataclass(frozen=True, eq=False)
class Table:
    """What every executor of a view consumes.

    values: (N, len(COLUMNS)) float32; seed, position (N,) and index (which crop of the
    batch) address the noise's pixels
    """

    values: np.ndarray
    seed: int
    position: np.ndarray
    index: int

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, column: str) -> np.ndarray:
        return self.values[:, COLUMNS.index(column)]

    def take(self, rows: np.ndarray | slice) -> "Table":
        return Table(self.values[rows], self.seed, self.position[rows], self.index)

    @classmethod
    def joined(cls, tables: Sequence["Table"]) -> "Table":
        """The rows of one table after another's, of the same crop."""
        values = np.concatenate([table.values for table in tables])
        position = np.concatenate([table.position for table in tables])
        return cls(values, tables[0].seed, position, tables[0].index)

    def moved(self, top: np.ndarray, left: np.ndarray) -> "Table":
        """The same crops of images whose first rows and columns have been cut off."""
        values = self.values.copy()
        values[:, COLUMNS.index("top")] -= top
        values[:, COLUMNS.index("left")] -= left
        return Table(values, self.seed, self.position, self.index)


def sample(view: View, sizes: np.ndarray, *, seed: int, position: np.ndarray, index: int) -> Table:
    """The parameters of crop `index` for images of `sizes` (N, 2), heights and widths."""
    position = np.ascontiguousarray(position, np.int64)
    extents = np.ascontiguousarray(sizes, np.int64).reshape(-1, 2)
    if len(extents) != len(position):
        raise DataError(f"{len(extents)} sizes for {len(position)} positions of a view's table")
    values = np.empty((len(position), len(COLUMNS)), np.float32)
    draw(_numbers(view), extents, int(seed) & _KEY, position, index, values)
    return Table(values, seed, position, index)


def _numbers(view: View) -> Numbers:
    values = (
        *(*view.crop, *view.ratio, view.flip, view.rotate, *view.jitter, view.jitter_p),
        *(view.gray, view.blur, *view.blur_sigma, view.solarize, view.equalize),
        *(view.cutout, view.noise, view.sobel),
    )
    return Numbers(*map(float, values))


def center(size: int, sizes: np.ndarray, fraction: float = 1.0) -> Table:
    """The evaluation view: the central square that remains when the short side is resized
    to size / fraction and `size` pixels are kept; no photometry."""
    height, width = np.asarray(sizes, np.float64).reshape(-1, 2).T
    short = np.minimum(height, width)
    side = np.maximum(1, np.rint(short * size / np.floor(size / fraction)))
    values = np.zeros((len(side), len(COLUMNS)), np.float32)
    fixed = {
        "top": np.floor((height - side) / 2),
        "left": np.floor((width - side) / 2),
        "height": side,
        "width": side,
        **dict.fromkeys(("brightness", "contrast", "saturation"), 1),
        **dict.fromkeys(("cutout_x", "cutout_y"), -1),
    }
    for name, column in fixed.items():
        values[:, COLUMNS.index(name)] = column
    return Table(values, 0, np.zeros(len(side), np.int64), 0)


def boxes(table: Table) -> np.ndarray:
    """(N, 4) float32: x0, y0, x1, y1 in source pixels, x0 > x1 when flipped. Quarter
    turns are not in it."""
    left, right = table["left"], table["left"] + table["width"]
    top, bottom = table["top"], table["top"] + table["height"]
    flip = table["flip"] > 0
    columns = [np.where(flip, right, left), top, np.where(flip, left, right), bottom]
    return np.stack(columns, axis=1)
