"""DirectPred: BYOL whose linear predictor is not trained but set from its inputs' correlation.

Tian, Chen and Ganguli 2021, https://arxiv.org/abs/2102.06810
Loss: −2 Σ over both directions of cos(W_p z, t), W_p = U (√(S/max S) + ε) Uᵀ, E[z zᵀ] = U S Uᵀ
"""

import copy
from typing import Any, Literal

import torch
from torch import Tensor, nn

from selfsight import predictors
from selfsight.encoders.base import Encoder
from selfsight.heads import Head, mlp, shape
from selfsight.losses import negative_cosine
from selfsight.methods.base import Batch, Clock, Method, Output, apart, pairs
from selfsight.momentum import Teacher
from selfsight.optim import Recipe
from selfsight.ranges import Count, Positive, Share, Weight, Whole
from selfsight.views.presets import crops, simclr_view

__all__ = ["DirectPred"]


class DirectPred(Method):
    """Dynamics of self-supervised learning without contrastive pairs.

    predictor: "direct", set from F = E[z zᵀ] with its eigenvalues raised; "copy", set to F + εI
        (Wang et al. 2021, https://arxiv.org/abs/2110.04947); or trained: "linear", or "nonlinear"
        with two layers and BatchNorm
    freq: steps from one setting to the next; in between the gradient trains it
    rho: decay of F, which starts as the first batch's; None weighs all steps alike
    epsilon, exponent: ε, and the power to which eigenvalues are raised, a root
    boost: where ε stands: "outside" the root of s/max s, as in the code; "inside" it; or, as in
        the "paper" (equation 18), in √s + ε max s
    centred: F is the covariance
    symmetric: after each step W_p ← (W_p + W_pᵀ)/2; of two layers, W₀ ← (W₀ + W₁ᵀ)/2 ← W₁ᵀ
    bias: of the predictor
    predictor_lr: the predictor's rate, as a multiple of the others'
    predictor_decay: its weight decay; None: the others'
    momentum: decay of the target, which starts from weights of its own; 0 copies the online
        network
    head, layers: projector behind the encoder: none, linear or nonlinear with so many layers
    hidden, dim: widths of the heads' inner layers and of z
    multi_crop: small crops beside the two large ones, which alone are targets
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        predictor: Literal["direct", "copy", "linear", "nonlinear"] = "direct",
        freq: Count = 1,
        rho: Share | None = 0.3,
        epsilon: Weight = 0.01,
        exponent: Positive = 0.5,
        boost: Literal["outside", "inside", "paper"] = "outside",
        centred: bool = False,
        symmetric: bool = False,
        bias: bool = False,
        predictor_lr: Positive = 1.0,
        predictor_decay: Weight | None = None,
        momentum: Share = 0.996,
        head: Head = "nonlinear",
        layers: Count = 2,
        hidden: Count = 512,
        dim: Count = 128,
        multi_crop: Whole = 0,
    ) -> None:
        super().__init__(encoder)
        widths = shape(head, encoder.dim, hidden, layers, dim)
        self.projector = mlp(*widths, affine=False)
        z, inner = widths[-1], [hidden] if predictor == "nonlinear" else []
        self.predictor = mlp(z, *inner, z, bias=bias, last_bias=bias, affine=False)
        start = copy.deepcopy(encoder) if encoder.pretrained else encoder.fresh()
        self.teacher = Teacher(nn.Sequential(start, mlp(*widths, affine=False)))
        self.correlation = predictors.Correlation(z, rho)
        self.kind, self.freq, self.momentum = predictor, freq, momentum
        self.boost = (epsilon, exponent, boost)
        self.centred, self.symmetric = centred, symmetric
        self.predictor_lr, self.predictor_decay = predictor_lr, predictor_decay
        self.views = crops(simclr_view(), multi_crop)
        self.recipe = Recipe(optimizer="sgd", lr=0.03, batch=128, weight_decay=4e-4, warmup=0,
                             last=1.0, exempt="none")  # fmt: skip

    def forward(self, batch: Batch, clock: Clock) -> Output:
        # Each view has a BatchNorm pass of its own, in both networks.
        h = [self.encoder(x) for x in batch.views]
        z = [self.projector(h_i) for h_i in h]
        p = [self.predictor(z_i) for z_i in z]
        t = [self.teacher(x) for x in batch.views[:2]]
        loss = 4 * torch.stack([negative_cosine(p[j], t[i]) for i, j in pairs(len(p))]).mean()
        carry = {"z": torch.stack(z, 1).detach()}
        return Output(loss, h[0], tuple(z), carry, {} if self.kind == "nonlinear" else self.axes())

    def axes(self) -> dict[str, Tensor]:
        """How far W_p is from symmetric, and from sharing its eigenvectors with F."""
        w = predictors.weights(self.predictor)[0].detach()
        commutator = predictors.commutator(w, self.correlation())
        return {"asymmetry": predictors.asymmetry(w), "commutator": commutator}

    def closed(self, f: Tensor) -> Tensor:
        """W_p for the correlation F."""
        if self.kind == "copy":
            return f + self.boost[0] * torch.eye(len(f), dtype=f.dtype, device=f.device)
        return predictors.spectral(f, lambda s: predictors.boosted(s, *self.boost))

    @torch.no_grad()
    def after_step(self, carry: dict[str, Tensor], clock: Clock) -> None:
        self.correlation.follow(carry["z"].flatten(0, 1))
        if self.kind in ("direct", "copy") and clock.step % self.freq == 0:
            predictors.weights(self.predictor)[0].copy_(self.closed(self.correlation(self.centred)))
        if self.symmetric:
            predictors.symmetrise(self.predictor)
        self.teacher.update(nn.Sequential(self.encoder, self.projector), self.momentum)

    def groups(self) -> list[dict[str, Any]]:
        return apart(super().groups(), self.predictor.parameters(),
                     lr_scale=self.predictor_lr, decay=self.predictor_decay)  # fmt: skip
