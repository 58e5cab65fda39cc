"""L-BFGS on many smooth convex problems side by side."""

import abc
from collections import deque
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

__all__ = ["MEMORY", "Problems", "minimise"]

# Pairs that the inverse Hessian is made of.
MEMORY = 10


class Problems(abc.ABC):
    """P problems, each in weights of the shape (…); w: (P, …)."""

    @abc.abstractmethod
    def objective(self, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Value (P,), gradient (P, …), and what inverts the Hessian before a step has told more:
        a factor for each weight, which broadcasts to (P, …)."""

    @abc.abstractmethod
    def limit(self, w: Tensor) -> Tensor:
        """(P,) the norm of the gradient at which a problem is solved."""

    @abc.abstractmethod
    def of(self, kept: Tensor) -> Self:
        """Those where kept (P,) is true."""


@torch.no_grad()
def minimise(problems: Problems, w: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Weights (P, …), and whether each problem was solved, (P,); w: where they start.

    Nocedal 1980, with steps that are halved until the value falls.
    """
    best, number = w.clone(), torch.arange(len(w), device=w.device)
    solved = torch.zeros(len(w), dtype=torch.bool, device=w.device)
    stuck = torch.zeros_like(solved)
    value, gradient, inverse = problems.objective(w)
    memory: deque[tuple[Tensor, Tensor, Tensor]] = deque(maxlen=MEMORY)
    rounding = 4 * torch.finfo(w.dtype).eps
    for _ in range(steps):
        done = _dot(gradient, gradient).flatten().sqrt() <= problems.limit(w)
        solved[number[done]] = True
        going = ~(done | stuck)
        if not going.all():  # the others cost no more
            problems, number, w = problems.of(going), number[going], w[going]
            value, gradient, inverse = value[going], gradient[going], inverse[going]
            for _ in range(len(memory)):
                a, b, c = memory.popleft()
                memory.append((a[going], b[going], c[going]))
        if len(number) == 0:
            break
        direction = -_inverse_hessian(gradient, inverse, memory)
        slope = _dot(gradient, direction).flatten()
        length = torch.ones_like(slope)
        while True:
            w_new = w + length.view(-1, *[1] * (w.ndim - 1)) * direction
            value_new, gradient_new, inverse = problems.objective(w_new)
            uphill = value_new > value + 1e-4 * length * slope + rounding * value
            if not uphill.any() or length.min() < 1e-6:
                break
            length = torch.where(uphill, length / 2, length)
        stuck = uphill  # no step is small enough: what is left of the gradient is rounding
        step, change = w_new - w, gradient_new - gradient
        memory.append((step, change, _dot(step, change)))
        w, value, gradient = w_new, value_new, gradient_new
        best[number] = w
    return best, solved


def _inverse_hessian(
    gradient: Tensor, inverse: Tensor, memory: Sequence[tuple[Tensor, Tensor, Tensor]]
) -> Tensor:
    """The two loops over (step, change, their product), applied to the gradient."""
    shares = []
    for step, change, product in reversed(memory):
        # A problem that stood still has no product, and the pair says nothing about it.
        share = torch.where(product > 0, _dot(step, gradient) / product, 0)
        gradient = gradient - share * change
        shares.append(share)
    if memory:
        # Scaled to what the newest step has met.
        _, change, product = memory[-1]
        scale = product / _dot(change * inverse, change)
        inverse = torch.where(product > 0, scale, 1) * inverse
    gradient = inverse * gradient
    for (step, change, product), share in zip(memory, reversed(shares), strict=True):
        back = _dot(change, gradient) / product
        gradient = gradient + torch.where(product > 0, share - back, 0) * step
    return gradient


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """(P, 1, …): the product of each problem's own."""
    return (a * b).sum(dim=tuple(range(1, a.ndim)), keepdim=True)
