"""Which patches an encoder may not see.

Each function turns uniform draws (N, T + 4·BLOCKS) into an order (N, T) of the patches of a
rows × columns map: what is hidden comes last, so keeping k patches is taking the first k.
"""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["BLOCKS", "ORDERS", "block_order", "grid_order", "random_order"]

BLOCKS = 32  # rectangles drawn per sample; together they hide more than is ever asked for


def random_order(u: Tensor, rows: int, columns: int) -> Tensor:
    """Every patch alike."""
    return u[:, : rows * columns].argsort(1)


def block_order(u: Tensor, rows: int, columns: int) -> Tensor:
    """Rectangles of an eighth to a half of each side, hidden one after the other."""
    noise, box = u[:, : rows * columns], u[:, rows * columns :].reshape(len(u), 4, BLOCKS)
    sides = torch.tensor([rows, columns], device=u.device)[:, None]
    extent = ((0.125 + 0.375 * box[:, :2]) * sides).ceil()
    start = (box[:, 2:] * (sides - extent + 1)).floor()
    y = torch.arange(rows, device=u.device)[:, None]
    x = torch.arange(columns, device=u.device)[:, None]
    inside_y = (y >= start[:, None, 0]) & (y < (start + extent)[:, None, 0])
    inside_x = (x >= start[:, None, 1]) & (x < (start + extent)[:, None, 1])
    covered = (inside_y[:, :, None] & inside_x[:, None]).flatten(1, 2)
    # A patch is hidden by the first rectangle that covers it, or after all of them.
    uncovered = ~covered.any(2)
    first = covered.to(torch.uint8).argmax(2) + BLOCKS * uncovered
    order: Tensor = (first + noise).argsort(1, descending=True)
    return order


def grid_order(u: Tensor, rows: int, columns: int) -> Tensor:
    """One patch of every 2 × 2 is kept before any of the others."""
    y = torch.arange(rows, device=u.device)[:, None]
    x = torch.arange(columns, device=u.device)
    hidden = ((y % 2 + x % 2) > 0).flatten()
    order: Tensor = (hidden + u[:, : rows * columns]).argsort(1)
    return order


ORDERS: dict[str, Callable[[Tensor, int, int], Tensor]] = {
    "block": block_order,
    "grid": grid_order,
    "random": random_order,
}
