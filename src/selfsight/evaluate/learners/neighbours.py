"""The nearest rows, exactly, in the time of a product in bfloat16."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from selfsight.evaluate.learners.selection import (
    LANES,
    NOTHING,
    collect16,
    collect32,
    decoded,
    refine,
)
from selfsight.machine import native_bf16

__all__ = ["Metric", "Neighbours"]

Metric = Literal["cosine", "euclidean"]

# Queries and rows of one product: its scores fit a cache of 16 MiB.
_QUERIES, _ROWS = 1024, 8192
# Comparisons of whole blocks held at a time: 16 MiB, and 128 MiB in float64.
_BLOCK, _BLOCK64 = 1 << 21, 1 << 24
# Bytes of rows that are compared with every query before the next.
_STRETCH = 1 << 22
# Rows that are converted at a time.
_PIECE = 1024
# Outside these, squares of lengths might leave float32's range.
_LEAST, _MOST = 2.0**-50, 2.0**50
# A sum of n products is off by less than n units in any order. Four times as much allows for
# hardware that cuts rather than rounds, rounds products too, or takes tiny numbers for zero.
_UNIT = 4 * 2.0**-24


class Neighbours:
    """The rows that are nearest to queries.

    What counts is the cosine of the rows scaled to length 1, or minus the distance: summed in
    float64, rounded to float32, whatever the size of blocks, the threads and the position. Of
    equals the row with the lower number is nearer. Rows in float64 are not rounded.

    In float32 on a CPU, products of rounded rows first tell which rows may be among the
    nearest: those whose score is no further below the k-th than the errors of both together
    can reach. Only they are compared in earnest; all are where too many remain.
    """

    def __init__(self, x: Tensor, metric: Metric = "cosine") -> None:
        """x: (N, D) float32 or float64, finite."""
        self.metric = metric
        self.x = (x if metric == "euclidean" else _unit(x)).contiguous()
        self._approximations: dict[torch.dtype, _Approximation] = {}

    def search(
        self, q: Tensor, k: int, own: Tensor | None = None
    ) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Blocks of q's rows (M, D), each with its similarities (m, k), falling, and the
        numbers (m, k) of the rows that have them.

        k: at most N, or N − 1 with `own`
        own: (M,) a row for each query that is not its neighbour, as itself
        """
        q = (q.to(self.x) if self.metric == "euclidean" else _unit(q.to(self.x))).contiguous()
        compiled = self.x.device.type == "cpu" and self.x.dtype == torch.float32
        step = _QUERIES if compiled else max(1, _BLOCK64 // len(self.x))
        step = max(1, min(step, 4 * _BLOCK // _room(k)))  # each of many neighbours needs room
        for start in range(0, len(q), step):
            rows = slice(start, start + step)
            skipped = None if own is None else own[rows]
            if compiled:
                yield rows, *self._filtered(q[rows], k, skipped)
            else:
                yield rows, *self._sorted(q[rows], k, skipped)

    def _filtered(self, q: Tensor, k: int, skipped: Tensor | None) -> tuple[Tensor, Tensor]:
        own = np.full(len(q), -1) if skipped is None else skipped.numpy()
        order = np.empty((len(q), k), np.int64)
        left = np.arange(len(q))
        for kind in self._kinds(k):
            if len(left):
                columns, count = self._approximation(kind).candidates(q[left], k, own[left])
                order[left] = self._refined(q[left], k, own[left], columns, count)
                left = left[count < 0]
        everything = np.arange(len(self.x), dtype=np.int32)
        step = max(1, _BLOCK // len(self.x))
        for start in range(0, len(left), step):
            rows = left[start : start + step]
            columns = np.broadcast_to(everything, (len(rows), len(self.x)))
            count = np.full(len(rows), len(self.x))
            order[rows] = self._refined(q[rows], k, own[rows], columns, count)
        similarity, number = decoded(order)
        return torch.from_numpy(similarity), torch.from_numpy(number)

    def _kinds(self, k: int) -> tuple[torch.dtype, ...]:
        """Of the products that are worth trying."""
        if len(self.x) <= 2 * k:
            return ()
        return (torch.bfloat16, torch.float32) if native_bf16("cpu") else (torch.float32,)

    def _approximation(self, kind: torch.dtype) -> "_Approximation":
        if kind not in self._approximations:
            self._approximations[kind] = _approximation(self.x, self.metric, kind)
        return self._approximations[kind]

    def _refined(
        self,
        q: Tensor,
        k: int,
        own: NDArray[np.int64],
        columns: NDArray[np.int32],
        count: NDArray[np.int64],
    ) -> NDArray[np.int64]:
        """The k largest order keys (m, k) of each row's candidates."""
        order = np.full((len(q), max(k, int(count.max()))), NOTHING)
        queries, rows = q.numpy(), self.x.numpy()
        stretch = max(1, _STRETCH // (4 * self.x.shape[1]))

        def task(part: slice) -> None:
            refine(
                queries[part], rows, self.metric == "euclidean", columns[part], count[part],
                own[part], stretch, order[part],
            )  # fmt: skip

        _in_threads(task, len(q))
        largest: NDArray[np.int64] = torch.from_numpy(order).topk(k, dim=1).values.numpy()
        return largest

    @cached_property
    def _wide(self) -> Tensor:
        return self.x.double()

    def _sorted(self, q: Tensor, k: int, skipped: Tensor | None) -> tuple[Tensor, Tensor]:
        x, rows = self._wide, q.double()
        if self.metric == "euclidean":
            far = torch.cdist(rows, x, compute_mode="donot_use_mm_for_euclid_dist")
            near = -far.clamp_max(torch.finfo(q.dtype).max).to(q.dtype)
        else:
            near = (rows @ x.T).to(q.dtype)
        if skipped is not None:
            near.scatter_(1, skipped[:, None], -torch.inf)
        top, number = near.topk(k, dim=1)
        # topk takes any of several equals, in any order; a stable sort takes the first.
        tied = (near >= top[:, -1:]).sum(dim=1) > k
        tied |= (top[:, 1:] == top[:, :-1]).any(dim=1)
        if tied.any():
            number[tied] = near[tied].argsort(dim=1, descending=True, stable=True)[:, :k]
        return top, number


@dataclass(frozen=True)
class _Approximation:
    """Rows moved, which leaves the order of similarities as it is, and rounded to a type whose
    products are fast.

    rows: (N, D), or wider by three columns that hold −‖x‖²/2 (euclidean)
    centre: (D,) what was taken from x, and by the distance is taken from q too
    longest, off: no row is longer, and none has lost more to rounding
    largest, lost: the same for the sum of its three columns
    """

    metric: Metric
    rows: Tensor
    centre: Tensor
    longest: float
    off: float
    largest: float
    lost: float

    def candidates(
        self, q: Tensor, k: int, own: NDArray[np.int64]
    ) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Numbers (m, C) of rows that may be among the k nearest, rising, and how many there
        are; −1 where they are too many."""
        queries, error = self._queries(q)
        narrow = self.rows.dtype == torch.bfloat16
        key, collect = (np.int16, collect16) if narrow else (np.int32, collect32)
        kind = torch.int16 if narrow else torch.int32
        columns = np.empty((len(q), _room(k)), np.int32)
        keys = np.empty(columns.shape, key)
        bars = np.full(len(q), np.iinfo(key).min, key)
        count = np.where(np.isfinite(error), 0, -1)
        # A score in bfloat16 is itself rounded.
        rounding = 1.01 * 2.0**-8 if narrow else 2.0**-22
        space = torch.empty(len(q) * min(_ROWS, len(self.rows)), dtype=self.rows.dtype)
        for first in range(0, len(self.rows), _ROWS):
            block = self.rows[first : first + _ROWS]
            scores = space[: len(q) * len(block)].view(len(q), len(block))
            bits = torch.mm(queries, block.T, out=scores).view(kind).numpy()
            last = first + _ROWS >= len(self.rows)

            def task(
                part: slice, bits: NDArray[np.signedinteger] = bits, first: int = first,
                last: bool = last,
            ) -> None:  # fmt: skip
                collect(
                    bits[part], first, last, own[part], k, error[part], rounding,
                    columns[part], keys[part], count[part], bars[part],
                )  # fmt: skip

            _in_threads(task, len(q))
        return columns, count

    def _queries(self, q: Tensor) -> tuple[Tensor, NDArray[np.float64]]:
        """Rounded as the rows are, and how much a score may be below another one of the same
        query although its row is as near; not finite where that is not known."""
        euclidean = self.metric == "euclidean"
        rounded, square, off = _rounded(q, self.centre if euclidean else None, self.rows.dtype)
        length = square.sqrt()
        if euclidean:
            rounded = torch.cat([rounded, rounded.new_ones(len(q), 3)], dim=1)
            # Distances d(1 ± 2⁻²³) may be equal once rounded; scores are −d²/2.
            equal = (length + self.longest).square() * 2.0**-20
        else:
            equal = torch.full_like(length, 2.0**-22)
        summing = rounded.shape[1] * _UNIT + _float32_loss(self.rows.dtype)
        error = off * self.longest + (length + off) * self.off + self.lost
        error += summing * ((length + off) * (self.longest + self.off) + self.largest)
        error = (2 * error + equal) * (1 + 2.0**-10) + _LEAST * _LEAST
        unknown = (length >= _MOST) | (not _LEAST < self.longest < _MOST)
        return rounded, error.masked_fill(unknown, torch.inf).numpy()


def _approximation(x: Tensor, metric: Metric, kind: torch.dtype) -> _Approximation:
    centre = x.mean(dim=0)
    rounded, square, off = _rounded(x, centre, kind)
    longest, most, largest, lost = float(square.max().sqrt()), float(off.max()), 0.0, 0.0
    if metric == "euclidean":
        # In three parts, each what the ones before it have lost.
        rest, parts = (square.mean() - square) / 2, []
        largest = 2 * float(rest.abs().max())
        for _ in range(3):
            parts.append(rest.to(kind))
            rest = rest - parts[-1].double()
        rounded = torch.cat([rounded, torch.stack(parts, dim=1)], dim=1)
        lost = float(rest.abs().max())
    return _Approximation(metric, rounded, centre, longest, most, largest, lost)


def _rounded(x: Tensor, centre: Tensor | None, kind: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """x (N, D) less the centre in another type; the squared length (N,) that it had before and
    the length (N,) of what it lost, in float64."""
    rounded = torch.empty(x.shape, dtype=kind)
    square, off = torch.empty(2, len(x), dtype=torch.float64)
    for start in range(0, len(x), _PIECE):
        rows = slice(start, start + _PIECE)
        exact = x[rows].double()
        if centre is not None:
            exact -= centre
        rounded[rows] = exact
        square[rows] = torch.linalg.vecdot(exact, exact)
        exact -= rounded[rows]
        off[rows] = torch.linalg.vecdot(exact, exact).sqrt()
    return rounded, square, off


def _float32_loss(kind: torch.dtype) -> float:
    """What torch may lose of a float32 product where it was allowed to compute in less."""
    set_to = torch.backends.mkldnn.matmul.fp32_precision, torch.backends.fp32_precision  # type: ignore[attr-defined]
    exact = kind != torch.float32 or all(kept in ("ieee", "none") for kept in set_to)
    return 0.0 if exact else 2.0**-6


def _room(k: int) -> int:
    """For candidates of one query."""
    return 4 * k + 1024 + LANES


def _unit(x: Tensor) -> Tensor:
    """x: (N, D), each row at length 1, or 0."""
    length = x.norm(dim=1)
    unit: Tensor = x / length.clamp_min(_LEAST)[:, None]
    odd = (length < _LEAST) | (length > _MOST)
    if odd.any():
        # Their squares vanish or overflow.
        rows = x[odd].double()
        rows /= rows.abs().amax(dim=1, keepdim=True).clamp_min(5e-324)
        unit[odd] = (rows / rows.norm(dim=1, keepdim=True).clamp_min(1)).to(x.dtype)
    return unit


def _in_threads(task: Callable[[slice], None], count: int) -> None:
    """`task` on parts of range(count)."""
    threads = min(torch.get_num_threads(), count)
    cuts = [count * i // threads for i in range(threads + 1)]
    parts = [slice(*cut) for cut in pairwise(cuts)]
    if threads == 1:
        task(parts[0])
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(task, parts))
