"""MAE: hide most patches, encode the rest, paint what was hidden.

He et al. 2021, https://arxiv.org/abs/2111.06377
Loss: mean over hidden patches of ‖predicted − true‖² / values per patch
"""

from typing import Literal

import torch
from torch import Tensor, nn

from selfsight.distributed import broadcast
from selfsight.encoders.base import Encoder
from selfsight.errors import ConfigError
from selfsight.heads import Decoder, sincos_positions
from selfsight.losses import full_precision, patch_mse
from selfsight.masking import BLOCKS, ORDERS
from selfsight.methods.base import Batch, Clock, Method, Output, Sweep
from selfsight.optim import Recipe
from selfsight.philox import Purpose
from selfsight.ranges import Count
from selfsight.views.spec import View

__all__ = ["MAE"]

# Differs from the paper: crops are resized by an antialiased bilinear filter, not bicubic.
_CROPS = {
    "none": View(jitter_p=0, gray=0, blur=0, crop=(1.0, 1.0), ratio=(1.0, 1.0), flip=0),
    "fixed": View(jitter_p=0, gray=0, blur=0, crop=(0.765, 0.765), ratio=(1.0, 1.0)),
    "random": View(jitter_p=0, gray=0, blur=0, crop=(0.2, 1.0)),
    "jitter": View(jitter=(0.4, 0.4, 0.4, 0.1), gray=0, blur=0, crop=(0.2, 1.0)),
}


class MAE(Method):
    """Masked auto-encoding.

    ratio: share of patches that is hidden (figure 5)
    masking: which patches are hidden: random, block or grid (table 1f)
    target: pixels of a patch: as they are, normalised per patch ("norm"), or the `components`
        leading principal components ("pca") (table 1d)
    depth, width, heads: of the decoder (tables 1a, 1b)
    mask_token: show mask tokens to the encoder too (table 1c)
    augment: crops and colours (table 1e): none, fixed crops, random crops, or jitter as well
    """

    needs_tokens = True
    basis: Tensor

    def __init__(
        self,
        encoder: Encoder,
        *,
        ratio: float = 0.75,
        masking: Literal["random", "block", "grid"] = "random",
        target: Literal["pixel", "norm", "pca"] = "norm",
        components: Count = 96,
        depth: Count = 8,
        width: Count = 512,
        heads: Count = 16,
        mask_token: bool = False,
        augment: Literal["none", "fixed", "random", "jitter"] = "random",
    ) -> None:
        super().__init__(encoder)
        if not 0 < ratio < 1:
            raise ConfigError(f"mae hides a share between 0 and 1, not --method.ratio {ratio}")
        if not encoder.pretrained:  # trained weights know their own positions
            grid = encoder.grid(torch.empty(1, 3, encoder.size, encoder.size))
            encoder.fix_positions(sincos_positions(encoder.token_dim, *grid))
        self.patches = nn.Unfold(encoder.multiple, stride=encoder.multiple)
        values = 3 * encoder.multiple**2
        self.decoder = Decoder(encoder.token_dim, width, depth, heads, values)
        self.token = nn.Parameter(torch.zeros(1, 1, encoder.token_dim)) if mask_token else None
        self.register_buffer("basis", torch.zeros(values, components if target == "pca" else 0))
        self.ratio, self.order, self.target = ratio, ORDERS[masking], target
        self.views = [_CROPS[augment]]
        self.recipe = Recipe(optimizer="adamw", lr=1.5e-4, weight_decay=0.05, warmup=40, epochs=800)

    def forward(self, batch: Batch, clock: Clock) -> Output:
        (x,) = batch.views
        grid = self.encoder.grid(x)
        patches = grid[0] * grid[1]
        u = batch.key.per_sample(Purpose.MASK, patches + 4 * BLOCKS).to(x.device)
        keep = self.order(u, *grid)[:, : int(patches * (1 - self.ratio))]
        masked = torch.ones_like(u[:, :patches]).scatter(1, keep, 0.0)
        if self.token is None:
            h, tokens = self.encoder.tokens(x, keep)
        else:
            h, tokens = self.encoder.tokens(x, mask=masked.bool(), mask_token=self.token)
            keep = torch.arange(patches, device=x.device).expand(len(x), -1)
        prediction = self.decoder(h, tokens, keep, grid)
        return Output(patch_mse(prediction, self.targets(x), masked), embedding=h)

    @full_precision
    def targets(self, x: Tensor) -> Tensor:
        """(N, T, 3 · patch²)"""
        t: Tensor = self.patches(x).mT
        if self.target == "norm":
            var, mean = torch.var_mean(t, 2, keepdim=True)
            t = (t - mean) / (var + 1e-6).sqrt()
        return t @ self.basis @ self.basis.T if self.target == "pca" else t

    def prepare(self, clock: Clock, sweep: Sweep) -> None:
        if self.target == "pca" and clock.step == 0:
            moment = self.basis.new_zeros(len(self.basis), len(self.basis), dtype=torch.float64)
            for _, t in sweep(self.patches, self.views[0]):
                moment += t.double().mT.flatten(0, 1).T @ t.double().mT.flatten(0, 1)
            vectors = torch.linalg.eigh(moment)[1][:, -self.basis.shape[1] :]
            self.basis.copy_(broadcast(vectors.to(self.basis)))
