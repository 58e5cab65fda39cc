"""Crop, resize and flip on the CPU: interleaved bytes to three planes of floats."""

import math
from typing import Any

import numpy as np

from selfsight.views.compiled import bytes16, load4, loose, plus, store, store_planes, times

__all__ = ["most_taps", "resample"]

_ZERO, _ONE, _TWO, _THREE, _FOUR = map(np.uint64, range(5))
_UNIT = np.float32(1 / 255)


@loose
def most_taps(extent, size):  # type: ignore[no-untyped-def]
    """Taps that any crop of up to `extent` pixels may need at `size` pixels."""
    return 2 * (extent // size + 2)


@loose
def resample(image, full, crop, flip, size, planes, lines, places, weights):  # type: ignore[no-untyped-def]
    """The reference's antialiased bilinear resize, rows first.

    image: uint8, rows of `full` pixels; crop: top, left, height and width
    planes: three rows of float32 to be filled, in [0, 1]
    lines: room for two rows of the image
    places, weights: room for each output row's, and each output column's, first tap and
        weights; columns in multiples of four
    """
    top, left, height, width = crop
    down, across = places
    down_w, across_w = weights
    rows = _taps(height, size, False, down, down_w)
    columns = _taps(width, size, flip, across, across_w)
    across[size:] = across[size - 1]
    across_w[size:] = across_w[size - 1]
    padded = (size + 3) // 4 * 4
    for y in range(0, size, 2):  # two rows share the loads of places and weights
        for i in range(2):
            row = min(y + i, size - 1)
            start = 3 * ((top + int(down[row])) * full + left)
            # Where the second tap has no weight it may have no row either.
            pitch = 0 if int(down[row]) == height - 1 else 3 * full
            _row(image, start, pitch, 3 * width, down_w[row], rows, lines[i])
        if columns == 2:
            _two(lines, across, across_w, columns, y * padded, padded, planes)
        elif columns == 3:
            _three(lines, across, across_w, columns, y * padded, padded, planes)
        elif columns == 4:
            _four(lines, across, across_w, columns, y * padded, padded, planes)
        else:
            _many(lines, across, across_w, columns, y * padded, padded, planes)
    if padded > size:
        for plane in planes:
            for y in range(1, size):
                for x in range(size):
                    plane[y * size + x] = plane[y * padded + x]


@loose
def _taps(extent, size, flip, places, weights):  # type: ignore[no-untyped-def]
    """Where each output pixel's taps begin inside the crop, and their weights; how many."""
    scale = np.float32(extent) / np.float32(size)
    if extent <= size:
        for i in range(size):
            j = size - 1 - i if flip else i
            at = (np.float32(j) + np.float32(0.5)) * scale - np.float32(0.5)
            at = min(max(at, np.float32(0)), np.float32(extent - 1))
            first = max(min(int(at), extent - 2), 0)
            share = at - np.float32(first)
            places[i] = first
            weights[i, 0] = np.float32(1) - share
            weights[i, 1] = share
        return 2
    count = min(math.ceil(2 * scale), extent)
    for i in range(size):
        centre = (i + 0.5) * extent / size
        first = min(max(math.floor(centre - scale + 0.5), 0), extent - count)
        j = size - 1 - i if flip else i
        total = np.float32(0)
        for k in range(count):
            away = np.float32(abs(first + k + 0.5 - centre))
            weight = max(np.float32(1) - away / scale, np.float32(0))
            weights[j, k] = weight
            total += weight
        for k in range(count):
            weights[j, k] /= total
        places[j] = first
    return count


@loose
def _row(pixels, start, pitch, length, weight, taps, line):  # type: ignore[no-untyped-def]
    """The weighted sum of `taps` rows of the crop."""
    if length < 16:
        for i in range(length):
            total = weight[0] * np.float32(pixels[start + i])
            total += weight[1] * np.float32(pixels[start + pitch + i])
            for k in range(2, taps):
                total += weight[k] * np.float32(pixels[start + k * pitch + i])
            line[i] = _UNIT * total
        return
    u, v = _UNIT * weight[0], _UNIT * weight[1]
    for block in range(0, length, 16):
        i = min(block, length - 16)  # the last block overlaps the one before
        a = np.uint64(start + i)
        total = plus(times(bytes16(pixels, a), u), times(bytes16(pixels, a + np.uint64(pitch)), v))
        for k in range(2, taps):
            c = bytes16(pixels, a + np.uint64(k * pitch))
            total = plus(total, times(c, _UNIT * weight[k]))
        store(line, np.uint64(i), total)


def _columns(unrolled: int) -> Any:
    """The pass along two lines, four pixels at a time, for a number of taps known when it is
    compiled, or for any (0)."""

    @loose
    def columns(lines, places, weights, taps, start, padded, planes):  # type: ignore[no-untyped-def]
        r, g, b = planes
        # Indices without a sign: numba has a negative one count from the end.
        for x in range(_ZERO, np.uint64(padded), _FOUR):
            for i in range(2):
                p0 = _sum(lines[i], places[x], weights[x], taps)
                p1 = _sum(lines[i], places[x + _ONE], weights[x + _ONE], taps)
                p2 = _sum(lines[i], places[x + _TWO], weights[x + _TWO], taps)
                p3 = _sum(lines[i], places[x + _THREE], weights[x + _THREE], taps)
                store_planes(r, g, b, np.uint64(start + i * padded) + x, p0, p1, p2, p3)

    @loose
    def _sum(line, place, weight, taps):  # type: ignore[no-untyped-def]
        first = _THREE * place
        total = plus(
            times(load4(line, first), weight[0]), times(load4(line, first + _THREE), weight[1])
        )
        for k in range(2, unrolled or taps):
            total = plus(total, times(load4(line, first + _THREE * np.uint64(k)), weight[k]))
        return total

    return columns


_two, _three, _four, _many = map(_columns, (2, 3, 4, 0))
