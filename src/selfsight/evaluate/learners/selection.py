"""Compiled parts of the search for neighbours: which rows may be among the nearest by rough
scores, and which are by exact ones.

Scores are compared as whole numbers, their keys: the bits of a float, those below the sign
turned over where it is negative, rise as the float does.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from selfsight.views.compiled import exact, kernel, loose

__all__ = ["LANES", "NOTHING", "collect16", "collect32", "decoded", "refine"]

# Scores that are compared at once; a row of candidates keeps room for as many.
LANES = 64
# The order key of no row.
NOTHING = np.iinfo(np.int64).min

_FARTHEST = float(np.finfo(np.float32).max)


@intrinsic
def _reaching(typing: Any, bits: Any, index: Any, bar: Any) -> Any:
    """Which of the floats whose bits are bits[index : index + LANES] have a key ≥ bar: the
    first in the lowest bit."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        array, place, low = values
        kind = signature.args[0]
        lane = ir.IntType(kind.dtype.bitwidth)
        vector = ir.VectorType(lane, LANES)

        def each(number: int) -> Any:
            return ir.Constant(vector, [number] * LANES)

        data = context.make_array(kind)(context, builder, array).data
        loaded = builder.load(builder.bitcast(builder.gep(data, [place]), vector.as_pointer()))
        loaded.align = lane.width // 8
        negative = builder.ashr(loaded, each(lane.width - 1))
        keys = builder.xor(loaded, builder.and_(negative, each(2 ** (lane.width - 1) - 1)))
        first = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
        one = builder.insert_element(each(0), low, ir.Constant(ir.IntType(32), 0))
        reached = builder.icmp_signed(">=", keys, builder.shuffle_vector(one, one, first))
        return builder.bitcast(reached, ir.IntType(LANES))

    return types.uint64(bits, types.uint64, bits.dtype), generate


@intrinsic
def _lowest(typing: Any, mask: Any) -> Any:
    """The number of the lowest bit that is set."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.cttz(values[0], ir.Constant(ir.IntType(1), 1))

    return types.uint64(types.uint64), generate


@exact
def _turned(bits: Any) -> Any:
    """The key of a float32's bits, and the bits of a key."""
    return np.int32(bits ^ ((bits >> 31) & 0x7FFFFFFF))


@exact
def _key(number: Any) -> Any:
    """Of a float64 rounded to float32; adding zero leaves one zero of two."""
    return np.int64(_turned(np.float32(np.float32(number) + np.float32(0)).view(np.int32)))


@exact
def _kth(keys: Any, k: int) -> Any:
    """The k-th largest, bit by bit: counting is a few instructions, and sorting is not."""
    top = (1 << (8 * keys.itemsize - 1)) - 1
    low, high = -top - 1, top
    while low < high:
        middle = low + (high - low + 1) // 2
        bar, count = keys.dtype.type(middle), 0
        for i in range(len(keys)):  # numba makes vectors of this, and not of a loop over keys
            count += keys[i] >= bar
        if count >= k:
            low = middle
        else:
            high = middle - 1
    return low


@exact
def _compact(columns: Any, keys: Any, count: int, k: int, slack: float, rounding: float) -> Any:
    """Keep those that may be among the k nearest; how many they are, and the bar for more."""
    shift = 32 - 8 * keys.itemsize
    kth = _kth(keys[:count], k)
    # A negative float's lower bits are turned over too.
    wide = np.int32((kth << shift) | ((1 << shift) - 1 if kth < 0 else 0))
    score = np.float64(np.int32(_turned(wide)).view(np.float32))
    least = score - abs(score) * rounding - slack
    key = _key(least) >> shift
    # Cutting bits off brings a negative float nearer to zero, and the bar is not to rise.
    bar = key - (1 if least < 0 and shift else 0)
    kept: Any = 0
    for i in range(count):
        columns[kept], keys[kept] = columns[i], keys[i]
        kept += np.int64(keys[i] >= bar)
    return kept, bar


def _collect(
    bits: Any, first: int, last: bool, own: Any, k: int, slack: Any, rounding: float,
    columns: Any, keys: Any, count: Any, bars: Any,
) -> None:  # fmt: skip
    """Add a block's columns that may be among the k best scores of their rows.

    bits: (N, W) of scores whose columns are numbered from `first`; last: there are no more
    own: (N,) columns that do not count
    slack, rounding: how far below the k-th score, absolutely and relative to it, a row must
        be to be out
    columns, keys, count, bars: the candidates so far; count is −1 where they were too many
    """
    width, room = bits.shape[1], columns.shape[1]
    top = (1 << (8 * bits.itemsize - 1)) - 1
    for row in range(len(bits)):
        found, bar, line = count[row], bars[row], bits[row]
        if found < 0:
            continue
        for start in range(0, width, LANES):
            if start + LANES <= width:
                mask = _reaching(line, np.uint64(start), bar)
            else:
                mask = np.uint64(0)
                for j in range(start, width):
                    reached = (line[j] ^ ((line[j] >> 31) & top)) >= bar
                    mask |= np.uint64(reached) << np.uint64(j - start)
            while mask:
                place = start + np.int64(_lowest(mask))
                columns[row, found] = first + place
                keys[row, found] = line[place] ^ ((line[place] >> 31) & top)
                found += first + place != own[row]
                mask &= mask - np.uint64(1)
            if found > room - LANES:
                found, bar = _compact(columns[row], keys[row], found, k, slack[row], rounding)
                if found > room // 2:
                    found = -1
                    break
        if last and found >= 0:
            found, bar = _compact(columns[row], keys[row], found, k, slack[row], rounding)
        count[row], bars[row] = found, bar


def _collecting(kind: Any) -> Any:
    table = kind[:, ::1]
    return kernel(
        table, types.int64, types.boolean, types.int64[::1], types.int64, types.float64[::1],
        types.float64, types.int32[:, ::1], table, types.int64[::1], kind[::1],
    )(_collect)  # fmt: skip


collect16, collect32 = _collecting(types.int16), _collecting(types.int32)


@loose
def _product(a: Any, b: Any) -> Any:
    total = 0.0
    for i in range(len(a)):
        total += np.float64(a[i]) * np.float64(b[i])
    return total


@loose
def _distance(a: Any, b: Any) -> Any:
    total = 0.0
    for i in range(len(a)):
        apart = np.float64(a[i]) - np.float64(b[i])
        total += apart * apart
    return min(np.sqrt(total), _FARTHEST)


@kernel(
    types.float32[:, ::1], types.float32[:, ::1], types.boolean,
    types.Array(types.int32, 2, "A", readonly=True), types.int64[::1], types.int64[::1],
    types.int64, types.int64[:, ::1],
)  # fmt: skip
def refine(
    q: Any, x: Any, euclidean: bool, columns: Any, count: Any, own: Any, stretch: int, order: Any
) -> None:
    """Order keys of q's rows with candidates among x's: those of nearer rows are larger, and of
    equals that of the lower number. Every similarity there is comes from this one loop.

    columns, count: (N, C) numbers of candidates, rising, and how many of them there are
    stretch: rows of x that stay in the cache while every query is compared with them
    order: (N, C), NOTHING where nothing is written
    """
    done = np.zeros(len(q), np.int64)
    for end in range(stretch, len(x) + stretch, stretch):
        for row in range(len(q)):
            i = done[row]
            while i < count[row] and columns[row, i] < end:
                j = np.int64(columns[row, i])
                if j != own[row]:
                    near = -_distance(q[row], x[j]) if euclidean else _product(q[row], x[j])
                    order[row, i] = (_key(near) << 32) | (0xFFFFFFFF - j)
                i += 1
            done[row] = i


def decoded(order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Similarities (float32) and numbers (int64) that order keys stand for."""
    key = (order >> 32).astype(np.int32)
    bits = key ^ ((key >> 31) & 0x7FFFFFFF)
    return bits.view(np.float32), 0xFFFFFFFF - (order & 0xFFFFFFFF)
