"""Supervised: classify every crop by its image's label, as a bound for methods without labels.

Goyal et al. 2017, https://arxiv.org/abs/1706.02677; multi-crop: Caron et al. 2020,
https://arxiv.org/abs/2006.09882
Loss: −log softmax(W h + b) at the label, averaged over crops
"""

import torch
import torch.nn.functional as F
from torch import nn

from selfsight.encoders.base import Encoder
from selfsight.losses import full_precision
from selfsight.methods.base import Batch, Clock, Method, Output, per_resolution
from selfsight.optim import Recipe
from selfsight.ranges import Share, Whole
from selfsight.views.presets import crops
from selfsight.views.spec import View

__all__ = ["Supervised"]


class Supervised(Method):
    """Cross-entropy with the labels, on the crops that self-supervised methods see.

    smoothing: share of the target that is spread over all classes
    multi_crop: small crops beside two crops of 160/224 (SwAV, table 3); 0 for two full views
    """

    supervised = True

    def __init__(
        self, encoder: Encoder, *, classes: int, smoothing: Share = 0.0, multi_crop: Whole = 0
    ) -> None:
        super().__init__(encoder)
        self.classifier = nn.Linear(encoder.dim, classes)
        self.smoothing = smoothing
        view = View(jitter_p=0.0, gray=0.0, blur=0.0, size=160 if multi_crop else 224)
        # Differs from the paper: two crops of an image in a batch, as other methods have them.
        self.views = crops(view, multi_crop)
        self.recipe = Recipe(
            optimizer="sgd", lr=0.1, weight_decay=1e-4, warmup=5, drops=(1 / 3, 2 / 3, 8 / 9),
            epochs=90,
        )  # fmt: skip

    def forward(self, batch: Batch, clock: Clock) -> Output:
        assert batch.labels is not None, "a supervised method's batch has labels"
        h = per_resolution(self.encoder, batch.views)
        logits = self.classifier(torch.cat(h))
        target = batch.labels.repeat(len(h))
        loss = full_precision(F.cross_entropy)(logits, target, label_smoothing=self.smoothing)
        metrics = {"accuracy": (logits.argmax(1) == target).float().mean()}
        # What the classifier reads stands for z: its outputs are as many as there are classes.
        return Output(loss, embedding=h[0], projections=tuple(h), metrics=metrics)
