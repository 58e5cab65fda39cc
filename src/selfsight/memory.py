"""What methods remember between steps; buffers, so checkpoints carry them."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsight import philox
from selfsight.distributed import all_sum, world
from selfsight.philox import Purpose

__all__ = ["Bank", "Center", "Queue"]


class Queue(nn.Module):
    """The newest `length` rows, first in, first out; a queue of length 0 stays empty.

    rows: (length, *shape); filled: how many rows are real.
    """

    rows: Tensor
    filled: Tensor

    def __init__(self, length: int, *shape: int) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(length, *shape))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))

    @classmethod
    def random(cls, length: int, dim: int) -> "Queue":
        """Filled with random unit vectors, for losses that read it from the first step on."""
        queue = cls(length, dim)
        queue.push(F.normalize(torch.randn(length, dim), dim=1))
        return queue

    @property
    def full(self) -> bool:
        """Every row is real, and there are some."""
        return 0 < len(self.rows) == int(self.filled)

    @torch.no_grad()
    def push(self, rows: Tensor) -> None:
        """Newest first; what exceeds the length falls off the end."""
        length = len(self.rows)
        self.rows.copy_(torch.cat([rows.to(self.rows.dtype), self.rows])[:length])
        self.filled.copy_((self.filled + len(rows)).clamp_max(length))


class Bank(nn.Module):
    """One row per sample of the data set. rows: (samples, *shape)."""

    rows: Tensor

    def __init__(self, samples: int, *shape: int) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(samples, *shape))

    @classmethod
    def random(cls, samples: int, dim: int) -> "Bank":
        """Filled with random unit vectors, for losses that read it from the first step on."""
        bank = cls(samples, dim)
        bank.rows.copy_(F.normalize(torch.randn(samples, dim), dim=1))
        return bank

    def drawn(self, seed: int, step: int, count: int) -> Tensor:
        """(count,) numbers of rows for this step, with repetition, the same on all ranks."""
        at = torch.tensor(step, device=self.rows.device)
        words: Tensor = philox.integers(seed, at, Purpose.NEGATIVES, count)
        return (words * len(self.rows)) >> 32

    @torch.no_grad()
    def write(self, index: Tensor, rows: Tensor) -> None:
        self.rows[index] = rows.to(self.rows.dtype)

    @torch.no_grad()
    def follow(self, index: Tensor, rows: Tensor, momentum: float) -> None:
        """v ← momentum · v + (1 − momentum) · row, put back on the sphere (Wu et al. 2018)."""
        moved = rows.to(self.rows.dtype).lerp(self.rows[index], momentum)
        self.rows[index] = F.normalize(moved, dim=1)


class Center(nn.Module):
    """Running mean of a teacher's outputs, taken off them so that no one output wins (DINO).

    mean: (1, dim)
    """

    mean: Tensor

    def __init__(self, dim: int, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("mean", torch.zeros(1, dim))

    def forward(self, t: Tensor) -> Tensor:
        return t - self.mean

    @torch.no_grad()
    def follow(self, means: Tensor) -> None:
        """means: (parts, dim), over equally many samples of this rank each."""
        mean = all_sum(means.mean(0, keepdim=True)) / world()
        self.mean.lerp_(mean.to(self.mean), 1 - self.decay)
