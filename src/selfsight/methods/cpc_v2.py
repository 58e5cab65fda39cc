"""CPC v2: from the patches on one side of an image predict those on the other, among all patches.

Hénaff et al. 2019, https://arxiv.org/abs/1905.09272
Loss: Σ over directions and distances k of −log softmax(W_k c·z/τ) at the patch k rows from c
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsight.distributed import gather, places
from selfsight.encoders.base import Encoder
from selfsight.errors import ConfigError
from selfsight.heads import row_context
from selfsight.losses import info_nce
from selfsight.methods.base import Batch, Clock, Key, Method, Output
from selfsight.optim import Recipe
from selfsight.patches import grid
from selfsight.philox import Purpose
from selfsight.ranges import Count, Positive, Share, Whole
from selfsight.views.spec import View

__all__ = ["CPCV2"]

# Quarter turns after which a direction points downwards.
_TURNS = {"down": (0,), "vertical": (0, 2), "all": (0, 1, 2, 3)}


class CPCV2(Method):
    """Contrastive predictive coding on 7 × 7 overlapping patches, each encoded alone.

    A patch has a quarter of the image's side and starts an eighth after the one before: choose
    256 px for the paper's 64.

    temperature: τ by which products of unnormalised vectors are divided
    directions: of the predictions: down, vertical (up as well) or all four
    skip: nearest rows that are not predicted: the next row's patches overlap the context's
    steps: rows after these that are
    layers, hidden: blocks of the context network, and their inner width
    dim: width in which predictions and patches are compared
    gray: share of the patches of which one colour alone is seen
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        temperature: Positive = 10.0,
        directions: Literal["down", "vertical", "all"] = "all",
        skip: Whole = 2,
        steps: Count = 3,
        layers: Count = 5,
        hidden: Count = 256,
        dim: Count = 64,
        gray: Share = 0.8,
    ) -> None:
        super().__init__(encoder)
        if skip + steps > 6:
            raise ConfigError("cpc_v2 has 6 rows to predict below the first; lower "
                              "--method.skip or --method.steps")  # fmt: skip
        # Differs from the paper: layer norm follows the encoder; inside it, where the paper has
        # it too, a ResNet keeps BatchNorm, by which patches tell of each other.
        self.norm = nn.LayerNorm(encoder.dim)
        self.target = nn.Linear(encoder.dim, dim)
        self.turns, self.skip, self.steps = _TURNS[directions], skip, steps
        self.contexts = nn.ModuleList(row_context(encoder.dim, hidden, layers) for _ in self.turns)
        self.predictors = nn.ModuleList(nn.Linear(encoder.dim, steps * dim) for _ in self.turns)
        self.temperature, self.gray = temperature, gray
        # Differs from the paper: patches lose colours but are not otherwise augmented one by one.
        self.views = [View(crop=(0.73, 0.73), ratio=(1.0, 1.0), jitter_p=0, gray=0, blur=0)]
        # The rate, the decay and the share of grey patches are from general knowledge.
        self.recipe = Recipe(optimizer="adamw", lr=4e-4, batch=512, weight_decay=1e-5, epochs=200)

    def forward(self, batch: Batch, clock: Clock) -> Output:
        (x,) = batch.views
        n, side = len(x), x.shape[2] // 4
        if side % self.encoder.multiple:
            raise ConfigError(f"cpc_v2 cuts {x.shape[2]} px into patches of {side}, no multiple of "
                              f"the encoder's {self.encoder.multiple}; change --size")  # fmt: skip
        h = self.encoder(self.decoloured(grid(x, side, x.shape[2] // 8), batch.key))
        rows = math.isqrt(len(h) // n)
        z = self.norm(h)
        targets = gather(self.target(z))
        here = places(z).view(n, rows, rows)
        z = z.view(n, rows, rows, -1).movedim(3, 1)
        losses = []
        # Differs from the paper: of three distances that its appendix predicts at, the code there
        # adds the loss of the first alone; all are added here.
        for turn, context, predict in zip(self.turns, self.contexts, self.predictors, strict=True):
            c = context(z.rot90(turn, (2, 3))).movedim(1, 3)
            at = here.rot90(turn, (1, 2))
            for k, p in enumerate(predict(c).chunk(self.steps, 3), self.skip + 1):
                losses.append(self.contrast(p[:, :-k], targets, at[:, k:]))
        return Output(torch.stack(losses).sum(), embedding=h.view(n, rows**2, -1).mean(1))

    @property
    def smallest(self) -> int:
        return self.views[0].size // 4

    def contrast(self, p: Tensor, targets: Tensor, at: Tensor) -> Tensor:
        return info_nce(p.flatten(0, 2), targets, at.flatten(), temperature=self.temperature,
                        normalize=False)  # fmt: skip

    def decoloured(self, patches: Tensor, key: Key) -> Tensor:
        """Two of a patch's colours give its place away by the lens's fringes: drop them."""
        u = key.per_sample(Purpose.PATCH, 2 * len(patches) // len(key.position))
        u = u.to(patches.device).view(-1, 2)
        one = F.one_hot((3 * u[:, 0]).long(), 3)
        seen = torch.where(u[:, 1:] < self.gray, one, 1).to(patches.dtype)
        return patches * seen[:, :, None, None]
