"""Stand-ins for networks, so that a method's own forward runs on given embeddings."""

import torch
from torch import Tensor, nn

from selfsight.encoders.base import Encoder
from selfsight.methods.base import Batch, Clock, Key, Method, Output

__all__ = ["START", "Given", "Half", "forward"]

START = Clock(step=0, total=1, per_epoch=1)


class Given(Encoder):
    """What goes in comes out."""

    def __init__(self, dim: int, multiple: int = 1, size: int = 1) -> None:
        super().__init__()
        self.name, self.dim, self.token_dim = "given", dim, dim
        self.size, self.multiple, self.maskable = size, multiple, True
        self.mean, self.std, self.crop_pct = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), 1.0

    def forward(self, x: Tensor) -> Tensor:
        return x

    def fresh(self, name: str | None = None, seed: int | None = None) -> "Given":
        return Given(self.dim, self.multiple, self.size)

    def grid(self, x: Tensor) -> tuple[int, int]:
        return x.shape[2] // self.multiple, x.shape[3] // self.multiple

    @property
    def patch_projection(self) -> nn.Conv2d:
        return nn.Conv2d(3, self.dim, self.multiple)

    def fix_positions(self, positions: Tensor) -> None:
        pass


class Half(nn.Module):
    """One of the two halves of what goes in."""

    def __init__(self, which: int) -> None:
        super().__init__()
        self.which = which

    def forward(self, x: Tensor) -> Tensor:
        return x.chunk(2, 1)[self.which]


def forward(
    method: Method, *views: Tensor, index: Tensor | None = None, clock: Clock = START,
    labels: Tensor | None = None,
) -> Output:  # fmt: skip
    """The method's output for these embeddings."""
    own = torch.arange(len(views[0])) if index is None else index
    boxes = torch.zeros(len(own), len(views), 4)
    output: Output = method(Batch(list(views), own, boxes, Key(0, clock.step, own), labels), clock)
    return output
