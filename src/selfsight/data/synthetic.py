"""An embedded set of images drawn by arithmetic, so that a first run needs no download."""

from collections.abc import Callable
from typing import Literal

import numpy as np

from selfsight.errors import ConfigError
from selfsight.philox import Purpose, uniform

__all__ = ["CLASSES", "synthetic"]

# Everything below is sums, products, quotients and square roots of float32 without a
# reduction: IEEE 754 rounds each of them the same way on every machine. Sines, powers
# and matrix products would not be.
Array = np.ndarray
_CHUNK = 32  # images at a time: the working set stays in the cache
_OBJECTS, _LINES, _SPECKS, _COARSE, _FINE = 4, 3, 5, 5, 13
_DRAWS = 420  # as many as an image takes, rounded up


def _max(*d: Array) -> Array:
    out = d[0]
    for other in d[1:]:
        out = np.maximum(out, other)
    return out


def _length(x: Array, y: Array) -> Array:
    length: Array = np.sqrt(x * x + y * y)
    return length


def _box(x: Array, y: Array, a: float, b: float) -> Array:
    distance: Array = np.maximum(np.abs(x) - a, np.abs(y) - b)
    return distance


def _triangle(x: Array, y: Array) -> Array:
    return _max(y - 0.5, 0.866 * np.abs(x) - 0.5 * y - 0.5)


def _star(x: Array, y: Array) -> Array:
    """Five points: fold the plane into one tenth, then one edge remains."""
    x = np.abs(x)
    for a, b in ((0.809017, -0.587785), (-0.809017, -0.587785)):
        over = 2 * np.maximum(a * x + b * y, 0)
        x, y = x - over * a, y - over * b
    # From the tip (0, 1) to the notch at 36 degrees and radius 0.42.
    ex, ey = 0.246870, -0.660213
    distance: Array = (ey * np.abs(x) - ex * (y - 1)) / -0.704861
    return distance


# Signed distance (negative inside) of each shape, about one unit in radius.
_SHAPES: dict[str, Callable[[Array, Array], Array]] = {
    "disk": lambda x, y: _length(x, y) - 0.78,
    "ring": lambda x, y: np.abs(_length(x, y) - 0.7) - 0.2,
    "square": lambda x, y: _box(x, y, 0.7, 0.7),
    "frame": lambda x, y: np.abs(_box(x, y, 0.65, 0.65)) - 0.18,
    "triangle": _triangle,
    "star": _star,
    "cross": lambda x, y: np.minimum(_box(x, y, 0.92, 0.27), _box(x, y, 0.27, 0.92)),
    "crescent": lambda x, y: _max(_length(x, y) - 0.92, 0.75 - _length(x - 0.5, y)),
    "bowtie": lambda x, y: _max(np.abs(x) - 0.85, (np.abs(y) - 0.9 * np.abs(x) - 0.06) * 0.74),
    "chevron": lambda x, y: _max(np.abs(y - np.abs(x) + 0.4) * 0.7071 - 0.24, np.abs(x) - 0.85),
    "bars": lambda x, y: _box(x, np.abs(y) - 0.48, 0.9, 0.23),
    "dots": lambda x, y: np.minimum(_length(x, y - 0.6), _length(np.abs(x) - 0.52, y + 0.3)) - 0.38,
}
CLASSES: tuple[str, ...] = tuple(_SHAPES)


def synthetic(
    count: int, *, size: int = 48, split: Literal["train", "test"] = "train", seed: int = 0
) -> tuple[Array, Array, tuple[str, ...]]:
    """`count` images (N, size, size, 3) uint8, their labels (N,) int64, the classes' names.

    Image i shows four objects of one shape, class i mod 12, on clutter. Everything else
    is drawn anew for each image from Philox at position i, so the first images do not
    depend on `count`, and the two splits draw at different addresses.

    background: a gray of lightness 0.42 to 0.58, smooth noise of 5 × 5 values per channel
        and of 13 × 13 in all channels, three lines, five specks
    objects: on the corners of a square turned by any angle, each shifted, scaled and
        turned on its own; three in five carry stripes
    colour: one for an image's objects, lighter or darker than the background by 0.3 to
        0.42, in every class alike
    light: a linear gradient over the whole image, then grain on every pixel
    """
    if split not in ("train", "test"):
        raise ConfigError(f"synthetic has the splits train and test, got {split!r}")
    if count < 1 or size < 16:
        raise ConfigError(f"synthetic needs count ≥ 1 and size ≥ 16, got {count}, {size}")
    position = np.arange(count, dtype=np.int64)
    labels = position % len(CLASSES)
    images = np.empty((count, size, size, 3), np.uint8)
    for start in range(0, count, _CHUNK):
        part = slice(start, start + _CHUNK)
        images[part] = _draw(position[part], labels[part], size, seed, 2 * (split == "test"))
    return images, labels, CLASSES


def _draw(position: Array, labels: Array, size: int, seed: int, view: int) -> Array:
    n = len(position)
    draws = iter(uniform(seed, position, Purpose.SYNTHETIC, _DRAWS, view).T)

    def take(low: float, high: float) -> Array:
        """One number for each image, ready to spread over its pixels."""
        value: Array = low + np.float32(high - low) * next(draws)[:, None, None]
        return value

    def colour(light: Array) -> list[Array]:
        """A random hue and saturation at this lightness."""
        r, g, b = take(-0.1, 0.1), take(-0.1, 0.1), take(-0.1, 0.1)
        gray = 0.3 * r + 0.59 * g + 0.11 * b
        return [light + r - gray, light + g - gray, light + b - gray]

    def turn() -> tuple[Array, Array]:
        """A direction: the half-angle formula in one octant, then the octant."""
        t, octant = take(0, 0.41421356), np.floor(take(0, 8))
        c, s = (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)
        c, s = np.where(octant % 2 >= 1, s, c), np.where(octant % 2 >= 1, c, s)
        c = np.where(octant % 4 >= 2, -c, c)
        return c, np.where(octant >= 4, -s, s)

    def noise(cells: int) -> Array:
        """Smooth noise in [-1, 1]: random values on a grid, interpolated."""
        grid = np.stack([take(-1, 1)[:, 0, 0] for _ in range(cells * cells)], -1)
        grid = grid.reshape(n, cells, cells)
        at = np.arange(size, dtype=np.float32) * np.float32((cells - 1) / size)
        low = at.astype(np.int64)
        w = at - low.astype(np.float32)
        rows = grid[:, low] * (1 - w)[:, None] + grid[:, low + 1] * w[:, None]
        values: Array = rows[:, :, low] * (1 - w) + rows[:, :, low + 1] * w
        return values

    # The frame is [-1, 1] x [-1, 1]; one pixel is 2 / size wide.
    axis = (np.arange(size, dtype=np.float32) * 2 + 1) / size - 1
    x, y = axis[None, None, :], axis[None, :, None]
    light = take(0.42, 0.58)
    picture = [light + 0.08 * noise(_COARSE) for _ in range(3)]
    fine = noise(_FINE) * take(0.0, 0.12)
    picture = [c + fine for c in picture]

    def paint(distance: Array, fill: list[Array]) -> None:
        cover = np.clip(0.5 - distance * (size / 2), 0, 1)
        for channel, value in enumerate(fill):
            picture[channel] += cover * (value - picture[channel])

    for _ in range(_LINES):
        (c, s), where, end, wide = turn(), take(-0.9, 0.9), take(-1.2, 1.2), take(0.01, 0.03)
        along, across = c * x + s * y, c * y - s * x
        paint(_max(np.abs(across - where) - wide, along - end), colour(light + take(-0.2, 0.2)))
    for _ in range(_SPECKS):
        px, py, radius = take(-1, 1), take(-1, 1), take(0.03, 0.09)
        paint(_length(x - px, y - py) - radius, colour(light + take(-0.2, 0.2)))

    contrast = take(0.3, 0.42) * np.where(take(0, 1) < 0.5, -1, 1).astype(np.float32)
    paintwork = colour(light + contrast)
    c, s = turn()
    for number in range(_OBJECTS):
        a, b = (0.46, 0.46) if number % 2 else (0.46, -0.46)
        a, b = (a, b) if number < 2 else (-a, -b)
        px, py = c * a - s * b + take(-0.12, 0.12), c * b + s * a + take(-0.12, 0.12)
        radius, (ca, sa) = take(0.36, 0.46), turn()
        u = (ca * (x - px) + sa * (y - py)) / radius
        v = (ca * (y - py) - sa * (x - px)) / radius
        distance = np.empty((n, size, size), np.float32)
        for label in np.unique(labels):
            members = labels == label
            distance[members] = _SHAPES[CLASSES[label]](u[members], v[members])
        period, pattern, strength = take(1.5, 3.5), take(0, 1), take(0.04, 0.10)
        wave = u * period
        stripes = np.where(wave - np.floor(wave) < 0.5, strength, -strength)
        texture = np.where(pattern < 0.6, stripes, np.float32(0))
        paint(distance * radius, [value + texture for value in paintwork])

    tilt, slant, grain = take(-0.3, 0.3), take(-0.3, 0.3), take(0.01, 0.06)
    shade = 1 + tilt * x + slant * y
    pixels = uniform(seed, position, Purpose.SYNTHETIC, size * size, view + 1)
    speckle = (2 * pixels.reshape(n, size, size) - 1) * grain
    image = np.stack([c * shade + speckle for c in picture], -1)
    rounded: Array = np.floor(np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)
    return rounded
