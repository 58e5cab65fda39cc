"""How papers fine-tune: the numbers of their recipes."""

from dataclasses import dataclass, replace
from typing import Literal

from selfsight.optim import Recipe

__all__ = ["TUNINGS", "Of", "Tuning"]

# fmt: off
Of = Literal[
    "default", "barlow_twins_1pct", "mae_base", "mae_huge", "mae_large", "simclr_v2_1pct",
    "simclr_v2_10pct", "swav_1pct", "swav_10pct", "vicreg_1pct", "vicreg_10pct",
]
# fmt: on


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """`Finetune` says what each number is."""

    labels: int | float | str | None = None
    epochs: int = 50
    batch: int = 64
    optimizer: Literal["adamw", "lars", "sgd"] = "adamw"
    lr: float = 2e-3
    head_lr: float | None = 2e-2
    rule: Literal["linear", "sqrt", "fixed"] = "linear"
    weight_decay: float = 0.05
    warmup: float = 0.1
    schedule: Literal["cosine", "steps"] = "cosine"
    layer_decay: float = 0.75
    drop_path: float = 0.0
    crop: float = 0.08
    mixup: float = 0.0
    cutmix: float = 0.0
    smoothing: float = 0.1
    erase: float = 0.0
    average: bool = False
    head: Literal["drawn", "probe"] = "drawn"
    head_std: float = 0.01

    @property
    def recipe(self) -> Recipe:
        # The steps are a factor on a rate that stays.
        return Recipe(
            optimizer=self.optimizer, lr=self.lr, weight_decay=self.weight_decay, rule=self.rule,
            betas=(0.9, 0.999), last=1.0 if self.schedule == "steps" else 0.0,
        )  # fmt: skip


# Few labels: no weight decays, and trunk and head have rates of their own.
_FEW = Tuning(
    epochs=20, batch=256, optimizer="sgd", lr=0.01, head_lr=None, rule="fixed", weight_decay=0.0,
    warmup=0.0, layer_decay=1.0, smoothing=0.0,
)  # fmt: skip
_SWAV = replace(_FEW, schedule="steps")
# Differs from the paper: the head reads the encoder's output, and the projector, of which the
# paper keeps the first layer, is not there. The rate is 0.005 · √batch, 0.08 for 256.
_SIMCLR = replace(_FEW, batch=1024, optimizer="lars", lr=0.08, rule="sqrt", head_std=0.0)
# Differs from the paper: no RandAugment, erased parts become the mean colour rather than noise,
# and the rate ends at 0 rather than at 1e-6.
_MAE = Tuning(
    epochs=100, batch=1024, lr=5e-4, head_lr=None, warmup=0.05, layer_decay=0.65, drop_path=0.1,
    mixup=0.8, cutmix=1.0, erase=0.25, average=True, head_std=2e-5,
)  # fmt: skip
_MAE_LARGE = replace(_MAE, epochs=50, lr=1e-3, warmup=0.1, layer_decay=0.75, drop_path=0.2)

# Barlow Twins: https://arxiv.org/abs/2103.03230, MAE: 2111.06377, SimCLR v2: 2006.10029, SwAV:
# 2006.09882, VICReg: 2105.04906; where they differ, as in the code.
# Differs from the code: the number is that of the last epoch, not of the best on the test part.
TUNINGS: dict[Of, Tuning] = {
    # Differs from the code: its README gives the trunk 0.002.
    "barlow_twins_1pct": replace(_FEW, labels=0.01, lr=0.005, head_lr=0.5),
    "default": Tuning(),
    "mae_base": _MAE,
    "mae_huge": replace(_MAE_LARGE, drop_path=0.3),
    "mae_large": _MAE_LARGE,
    "simclr_v2_1pct": replace(_SIMCLR, labels=0.01, epochs=60),
    "simclr_v2_10pct": replace(_SIMCLR, labels=0.1, epochs=30),
    "swav_1pct": replace(_SWAV, labels=0.01, lr=0.02, head_lr=5.0),
    "swav_10pct": replace(_SWAV, labels=0.1, lr=0.01, head_lr=0.2),
    "vicreg_1pct": replace(_FEW, labels=0.01, lr=0.03, head_lr=0.08),
    "vicreg_10pct": replace(_FEW, labels=0.1, lr=0.01, head_lr=0.1),
}
