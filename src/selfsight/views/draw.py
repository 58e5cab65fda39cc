"""Draws the rows of a view's table, compiled."""

import math
from typing import NamedTuple

import numpy as np
from numba import types

from selfsight.philox import Purpose
from selfsight.views.compiled import exact, kernel

__all__ = ["DRAWS", "Numbers", "draw", "uniforms"]

_ATTEMPTS = 10
_SD = 0.1  # standard deviation
_ORDERS = 24  # permutations of four

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
(
    _TOP, _LEFT, _FLIP, _ROTATE, _TURN,
    _JITTER, _ORDER, _BRIGHTNESS, _CONTRAST, _SATURATION, _HUE,
    _GRAY, _BLUR, _SIGMA, _SOLARIZE, _EQUALIZE,
    _CUTOUT, _CUTOUT_X, _CUTOUT_Y, _NOISE, _SOBEL,
    _AREA,
) = range(22)  # fmt: skip
_RATIO = _AREA + _ATTEMPTS

_PURPOSE = int(Purpose.VIEW)
_U = np.uint64
_MASK, _SHIFT, _EIGHT = _U(0xFFFFFFFF), _U(32), _U(8)
_M0, _M1, _W0, _W1 = _U(0xD2511F53), _U(0xCD9E8D57), _U(0x9E3779B9), _U(0xBB67AE85)
_UNIT = np.float32(2.0**-24)


class Numbers(NamedTuple):
    """A view as kernels take it."""

    smallest: float
    largest: float
    narrowest: float
    widest: float
    flip: float
    rotate: float
    brightness: float
    contrast: float
    saturation: float
    hue: float
    jitter: float
    gray: float
    blur: float
    sharpest: float
    softest: float
    solarize: float
    equalize: float
    cutout: float
    noise: float
    sobel: float


@exact
def uniforms(seed, position, purpose, view, out):  # type: ignore[no-untyped-def]
    """Fills `out`, a multiple of four long, with what philox.uniform gives for one position."""
    where, key = _U(position), _U(seed)
    low, high = where & _MASK, where >> _SHIFT
    what = (_U(purpose) << _U(16)) | _U(view)
    for block in range(out.size // 4):
        c0, c1, c2, c3 = _U(block), low, high, what
        k0, k1 = key & _MASK, key >> _SHIFT
        for _ in range(10):
            p0, p1 = _M0 * c0, _M1 * c2
            c0, c1, c2, c3 = (
                (p1 >> _SHIFT) ^ c1 ^ k0,
                p1 & _MASK,
                (p0 >> _SHIFT) ^ c3 ^ k1,
                p0 & _MASK,
            )
            k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
        out[4 * block] = np.float32(c0 >> _EIGHT) * _UNIT
        out[4 * block + 1] = np.float32(c1 >> _EIGHT) * _UNIT
        out[4 * block + 2] = np.float32(c2 >> _EIGHT) * _UNIT
        out[4 * block + 3] = np.float32(c3 >> _EIGHT) * _UNIT


@kernel(
    types.NamedUniTuple(types.float64, len(Numbers._fields), Numbers),
    *(types.int64[:, ::1], types.uint64, types.int64[::1], types.int64),
    types.float32[:, ::1],
)
def draw(view, sizes, seed, position, index, values):  # type: ignore[no-untyped-def]
    """One row of COLUMNS for each image."""
    u = np.empty(-(-len(DRAWS) // 4) * 4, np.float32)
    for i in range(len(position)):
        uniforms(seed, position[i], _PURPOSE, index, u)
        _row(view, float(sizes[i, 0]), float(sizes[i, 1]), u, values[i])


@exact
def _row(view, height, width, u, row):  # type: ignore[no-untyped-def]
    """In the order of sample.COLUMNS."""
    h, w, central = _crop(view, height, width, u)
    jitter, cutout = u[_JITTER] < view.jitter, u[_CUTOUT] < view.cutout
    row[0] = math.floor((height - h) / 2 if central else u[_TOP] * (height - h + 1))
    row[1] = math.floor((width - w) / 2 if central else u[_LEFT] * (width - w + 1))
    row[2], row[3] = h, w
    row[4] = u[_FLIP] < view.flip
    row[5] = 1 + math.floor(3 * u[_TURN]) if u[_ROTATE] < view.rotate else 0
    row[6] = math.floor(_ORDERS * u[_ORDER]) if jitter else 0
    row[7] = _factor(view.brightness, u[_BRIGHTNESS]) if jitter else 1
    row[8] = _factor(view.contrast, u[_CONTRAST]) if jitter else 1
    row[9] = _factor(view.saturation, u[_SATURATION]) if jitter else 1
    row[10] = view.hue * (2 * u[_HUE] - 1) if jitter else 0
    row[11] = u[_GRAY] < view.gray
    row[12] = _between(view.sharpest, view.softest, u[_SIGMA]) if u[_BLUR] < view.blur else 0
    row[13] = u[_SOLARIZE] < view.solarize
    row[14] = u[_EQUALIZE] < view.equalize
    row[15] = u[_CUTOUT_X] if cutout else -1
    row[16] = u[_CUTOUT_Y] if cutout else -1
    row[17] = _SD if u[_NOISE] < view.noise else 0
    row[18] = u[_SOBEL] < view.sobel


@exact
def _crop(view, height, width, u):  # type: ignore[no-untyped-def]
    """Height and width of the first attempt that fits, else of the central crop."""
    low, high = math.log(view.narrowest), math.log(view.widest)
    for i in range(_ATTEMPTS):
        area = _between(view.smallest, view.largest, u[_AREA + i]) * (height * width)
        ratio = math.exp(_between(low, high, u[_RATIO + i]))
        h, w = np.rint(math.sqrt(area / ratio)), np.rint(math.sqrt(area * ratio))
        if 0 < h <= height and 0 < w <= width:
            return h, w, False
    tallest = max(1.0, np.rint(width / view.narrowest))
    widest = max(1.0, np.rint(height * view.widest))
    return min(height, tallest), min(width, widest), True


@exact
def _factor(strength, u):  # type: ignore[no-untyped-def]
    low = max(0.0, 1 - strength)
    return low + (1 + strength - low) * u


@exact
def _between(low, high, u):  # type: ignore[no-untyped-def]
    return low + (high - low) * u
