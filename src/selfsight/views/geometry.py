"""Crop, resize and flip on the CPU: interleaved bytes to three planes of floats."""

import math
from typing import Any

import numpy as np

from selfsight.views.compiled import (
    load16,
    loose,
    pixels4,
    plus,
    store_columns,
    store_planes,
    times,
)

__all__ = ["resample", "workspace"]

_ZERO, _THREE, _FOUR, _SIXTEEN = map(np.uint64, (0, 3, 4, 16))
_HALF, _ONE = np.float32(0.5), np.float32(1)
_BEYOND = 64  # bytes that may be read behind the last pixel


@loose
def workspace(height, width, size):  # type: ignore[no-untyped-def]
    """What `resample` works with: four rows of an image up to this large, a copy of its end,
    and each output row's and column's first tap, bytes to the second, and weights."""
    taps, padded = 2 * (height // size + 2), _multiple_of_four(size)
    line = np.empty(16 * (_multiple_of_four(width) + 4), np.float32)
    end = np.empty(3 * width * (taps + 3 * (height // size) + 7) + 2 * _BEYOND, np.uint8)
    places = np.empty((3, padded), np.uint64)
    down = np.empty((padded, taps), np.float32)
    across = np.empty((padded, 2 * (width // size + 2)), np.float32)
    return line, end, places, down, across


@loose
def resample(image, full, crop, flip, size, planes, work):  # type: ignore[no-untyped-def]
    """The reference's antialiased bilinear resize, by rows and then by columns.

    image: uint8, rows of `full` pixels; crop: top, left, height and width
    planes: three rows of float32 to be filled, in [0, 1]; three rows of pixels are spilt
    """
    top, left, height, width = crop
    line, end, places, down, across = work
    start, second, column = places
    pitch, padded = 3 * full, _multiple_of_four(size)
    rows = _taps(height, size, False, start, down)
    columns = _taps(width, size, flip, column, across)
    for y in range(padded):
        # Where the second tap has no weight it may have no row either.
        second[y] = 0 if int(start[y]) == height - 1 else pitch
        start[y] = (top + int(start[y])) * pitch + 3 * left
        for k in range(rows):
            down[y, k] /= np.float32(255)
    reach = (rows - 1) * pitch + 3 * _multiple_of_four(width) + 4
    for y in range(0, padded, 4):
        pixels = image
        if int(start[y + 3]) + reach > len(image):
            first = int(start[y])
            for i in range(first, len(image)):
                end[i - first] = image[i]
            for i in range(y, y + 4):
                start[i] -= np.uint64(first)
            pixels = end
        quarter = slice(y, y + 4)
        _down(pixels, start[quarter], second[quarter], pitch, down[quarter], rows, width, line)
        _across(line, column, across, columns, y * padded, padded, planes)
    if padded > size:
        for plane in planes:
            for y in range(1, size):
                for x in range(size):
                    plane[y * size + x] = plane[y * padded + x]


@loose
def _multiple_of_four(n):  # type: ignore[no-untyped-def]
    return (n + 3) // 4 * 4


@loose
def _taps(extent, size, flip, places, weights):  # type: ignore[no-untyped-def]
    """Where each output pixel's taps begin inside the crop, and their weights; how many."""
    scale = np.float32(extent) / np.float32(size)
    count = 2
    if extent <= size:
        for i in range(size):
            j = size - 1 - i if flip else i
            at = (np.float32(j) + _HALF) * scale - _HALF
            at = min(max(at, np.float32(0)), np.float32(extent - 1))
            first = max(min(int(at), extent - 2), 0)
            share = at - np.float32(first)
            places[i] = first
            weights[i, 0] = _ONE - share
            weights[i, 1] = share
    else:
        count = min(math.ceil(2 * scale), extent)
        for i in range(size):
            centre = (i + 0.5) * extent / size
            first = min(max(math.floor(centre - scale + 0.5), 0), extent - count)
            j = size - 1 - i if flip else i
            total = np.float32(0)
            for k in range(count):
                away = np.float32(abs(first + k + 0.5 - centre))
                weight = max(_ONE - away / scale, np.float32(0))
                weights[j, k] = weight
                total += weight
            for k in range(count):
                weights[j, k] /= total
            places[j] = first
    for i in range(size, len(places)):
        places[i] = places[size - 1]
        weights[i] = weights[size - 1]
    return count


# A pass is compiled for each small number of taps, and for any (0).


def _rows(unrolled: int) -> Any:
    @loose
    def rows(pixels, start, second, pitch, weights, taps, width, line):  # type: ignore[no-untyped-def]
        """Four rows of weighted sums, four pixels at a time, side by side in `line`: a
        pixel of each row, and its neighbours' after them."""
        for x in range(_ZERO, np.uint64(width), _FOUR):
            a = total(pixels, start[0] + _THREE * x, second[0], pitch, weights[0], taps)
            b = total(pixels, start[1] + _THREE * x, second[1], pitch, weights[1], taps)
            c = total(pixels, start[2] + _THREE * x, second[2], pitch, weights[2], taps)
            d = total(pixels, start[3] + _THREE * x, second[3], pitch, weights[3], taps)
            store_columns(line, _SIXTEEN * x, a, b, c, d)

    @loose
    def total(pixels, at, second, pitch, weight, taps):  # type: ignore[no-untyped-def]
        found = plus(
            times(pixels4(pixels, at), weight[0]), times(pixels4(pixels, at + second), weight[1])
        )
        for k in range(2, unrolled or taps):
            row = pixels4(pixels, at + np.uint64(k) * np.uint64(pitch))
            found = plus(found, times(row, weight[k]))
        return found

    return rows


def _columns(unrolled: int) -> Any:
    @loose
    def columns(line, places, weights, taps, start, padded, planes):  # type: ignore[no-untyped-def]
        """Four rows of the planes, four pixels at a time."""
        r, g, b = planes
        for x in range(_ZERO, np.uint64(padded), _FOUR):
            p = total(line, places[x], weights[x], taps)
            q = total(line, places[x + _PLUS[1]], weights[x + _PLUS[1]], taps)
            s = total(line, places[x + _PLUS[2]], weights[x + _PLUS[2]], taps)
            t = total(line, places[x + _PLUS[3]], weights[x + _PLUS[3]], taps)
            store_planes(r, g, b, np.uint64(start) + x, np.uint64(padded), p, q, s, t)

    @loose
    def total(line, place, weight, taps):  # type: ignore[no-untyped-def]
        at = _SIXTEEN * place
        found = plus(
            times(load16(line, at), weight[0]), times(load16(line, at + _SIXTEEN), weight[1])
        )
        for k in range(2, unrolled or taps):
            found = plus(found, times(load16(line, at + _SIXTEEN * np.uint64(k)), weight[k]))
        return found

    return columns


_PLUS = tuple(map(np.uint64, range(4)))
_rows2, _rows3, _rows4, _rows_any = map(_rows, (2, 3, 4, 0))
_columns2, _columns3, _columns4, _columns_any = map(_columns, (2, 3, 4, 0))


@loose
def _down(pixels, start, second, pitch, weights, taps, width, line):  # type: ignore[no-untyped-def]
    if taps == 2:
        _rows2(pixels, start, second, pitch, weights, taps, width, line)
    elif taps == 3:
        _rows3(pixels, start, second, pitch, weights, taps, width, line)
    elif taps == 4:
        _rows4(pixels, start, second, pitch, weights, taps, width, line)
    else:
        _rows_any(pixels, start, second, pitch, weights, taps, width, line)


@loose
def _across(line, places, weights, taps, start, padded, planes):  # type: ignore[no-untyped-def]
    if taps == 2:
        _columns2(line, places, weights, taps, start, padded, planes)
    elif taps == 3:
        _columns3(line, places, weights, taps, start, padded, planes)
    elif taps == 4:
        _columns4(line, places, weights, taps, start, padded, planes)
    else:
        _columns_any(line, places, weights, taps, start, padded, planes)
