"""Draws a view's parameters: one row of numbers per sample, all samples at once."""

import itertools
from dataclasses import dataclass

import numpy as np

from selfsight import philox
from selfsight.philox import Purpose
from selfsight.views.spec import View

__all__ = ["COLUMNS", "DRAWS", "ORDERS", "Table", "boxes", "center", "sample"]

_ATTEMPTS = 10
_NOISE = 0.1

# One uniform per name, at its place in the sample's stream, whether or not the view uses
# it: so no option moves another's draw. Part of the format: never reorder, only append.
DRAWS = (
    *("top", "left", "flip", "rotate", "turn"),
    *("jitter", "order", "brightness", "contrast", "saturation", "hue"),
    *("gray", "blur", "sigma", "solarize", "equalize"),
    *("cutout", "cutout_x", "cutout_y", "noise", "sobel"),
    *(f"area{i}" for i in range(_ATTEMPTS)),
    *(f"ratio{i}" for i in range(_ATTEMPTS)),
)

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


def sample(view: View, sizes: np.ndarray, *, seed: int, position: np.ndarray, index: int) -> Table:
    """The parameters of crop `index` for images of `sizes` (N, 2), heights and widths."""
    position = np.asarray(position, np.int64)
    draws = philox.uniform(seed, position, Purpose.VIEW, len(DRAWS), index).astype(np.float64)
    u = dict(zip(DRAWS, draws.T, strict=True))
    height, width = np.asarray(sizes, np.float64).reshape(-1, 2).T
    h, w, central = _crop(view, height, width, draws)
    jitter = u["jitter"] < view.jitter_p
    cutout = u["cutout"] < view.cutout

    def factor(name: str, strength: float) -> np.ndarray:
        low = max(0.0, 1 - strength)
        return np.where(jitter, low + (1 + strength - low) * u[name], 1)

    values = {
        "top": np.floor(np.where(central, (height - h) / 2, u["top"] * (height - h + 1))),
        "left": np.floor(np.where(central, (width - w) / 2, u["left"] * (width - w + 1))),
        "height": h,
        "width": w,
        "flip": u["flip"] < view.flip,
        "turns": np.where(u["rotate"] < view.rotate, 1 + np.floor(3 * u["turn"]), 0),
        "order": np.where(jitter, np.floor(len(ORDERS) * u["order"]), 0),
        "brightness": factor("brightness", view.jitter[0]),
        "contrast": factor("contrast", view.jitter[1]),
        "saturation": factor("saturation", view.jitter[2]),
        "hue": np.where(jitter, view.jitter[3] * (2 * u["hue"] - 1), 0),
        "gray": u["gray"] < view.gray,
        "sigma": np.where(u["blur"] < view.blur, _between(view.blur_sigma, u["sigma"]), 0),
        "solarize": u["solarize"] < view.solarize,
        "equalize": u["equalize"] < view.equalize,
        "cutout_x": np.where(cutout, u["cutout_x"], -1),
        "cutout_y": np.where(cutout, u["cutout_y"], -1),
        "noise": np.where(u["noise"] < view.noise, _NOISE, 0),
        "sobel": u["sobel"] < view.sobel,
    }
    columns = [values[name] for name in COLUMNS]
    return Table(np.stack(columns, axis=1).astype(np.float32), seed, position, index)


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


def _crop(
    view: View, height: np.ndarray, width: np.ndarray, draws: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Height and width of the first attempt that fits, else of the central crop."""
    first = DRAWS.index("area0")
    area = _between(view.crop, draws[:, first : first + _ATTEMPTS])
    area = area * (height * width)[:, None]
    low, high = np.log(view.ratio)
    ratio = np.exp(_between((low, high), draws[:, first + _ATTEMPTS : first + 2 * _ATTEMPTS]))
    h, w = np.rint(np.sqrt(area / ratio)), np.rint(np.sqrt(area * ratio))
    fits = (w > 0) & (w <= width[:, None]) & (h > 0) & (h <= height[:, None])
    chosen = fits.argmax(axis=1)[:, None]
    h, w = (np.take_along_axis(side, chosen, axis=1)[:, 0] for side in (h, w))
    central = ~fits.any(axis=1)
    tallest = np.maximum(1, np.rint(width / view.ratio[0]))
    widest = np.maximum(1, np.rint(height * view.ratio[1]))
    h = np.where(central, np.minimum(height, tallest), h)
    w = np.where(central, np.minimum(width, widest), w)
    return h, w, central


def _between(limits: tuple[float, float], u: np.ndarray) -> np.ndarray:
    low, high = limits
    return low + (high - low) * u
