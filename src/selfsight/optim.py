"""Recipes, parameter groups and the optimizers that papers use."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from selfsight.errors import ConfigError, suggestion
from selfsight.schedules import cosine, steps, warmup_cosine

__all__ = ["LARS", "OPTIMIZERS", "Recipe", "build", "clip", "set_rates"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a paper optimises.

    optimizer: sgd, lars (official form, ‖g + λp‖), larc (apex's form, ‖g‖ + λ‖p‖) or adamw
    lr: rate for `batch` samples; `rule` scales it to another batch
    weight_decay, weight_decay_end: decay at the start and, if it moves, at the cosine's end
    warmup: epochs of linear warm-up from the fraction `warmup_from`
    last: fraction of the rate at the end of the cosine
    drops: shares of the run after which the rate falls to a tenth, instead of the cosine
    exempt: "1d" spares biases and norms decay and trust ratio, "none" spares nothing
    spared_rate: their rate under LARS, whose trust ratio they lack, as a fraction of lr
    clip: largest gradient norm, of all parameters together or, with clip_each, of each
    epochs: length of the paper's run
    """

    optimizer: Literal["sgd", "lars", "larc", "adamw"]
    lr: float
    weight_decay: float
    batch: int = 256
    rule: Literal["linear", "sqrt", "fixed"] = "linear"
    weight_decay_end: float | None = None
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.95)
    warmup: float = 10
    warmup_from: float = 0.0
    last: float = 0.0
    drops: tuple[float, ...] = ()
    exempt: Literal["1d", "none"] = "1d"
    spared_rate: float = 1.0
    clip: float | None = None
    clip_each: bool = False
    epochs: int = 100

    def rate(self, batch: int) -> float:
        """The base rate for a global batch."""
        ratio = batch / self.batch
        return self.lr * float({"linear": ratio, "sqrt": ratio**0.5, "fixed": 1.0}[self.rule])


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rates: You et al. 2017, https://arxiv.org/abs/1708.03888

    The momentum buffer holds no learning rate, as in the official Barlow Twins, VICReg,
    MoCo v3 and BYOL code.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.0,
        weight_decay: float = 0.0,
        momentum: float = 0.9,
        trust: float = 0.001,
        adapt: bool = True,
        joint: bool = True,
    ) -> None:
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "trust": trust,
            "adapt": adapt,
            "joint": joint,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._move(p, group)

    def _move(self, p: Tensor, group: dict[str, Any]) -> None:
        assert p.grad is not None
        decay = group["weight_decay"]
        update = p.grad.add(p, alpha=decay)
        if group["adapt"]:
            size = p.norm()
            change = update.norm() if group["joint"] else p.grad.norm() + decay * size
            ratio = group["trust"] * size / change
            update = update * torch.where((size > 0) & (change > 0), ratio, 1.0)
        state = self.state[p]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(p)
        buffer = state["momentum_buffer"]
        buffer.mul_(group["momentum"]).add_(update)
        p.sub_(buffer, alpha=group["lr"])


def _sgd(groups: list[dict[str, Any]], recipe: Recipe) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=0.0, momentum=recipe.momentum)


def _lars(groups: list[dict[str, Any]], recipe: Recipe) -> torch.optim.Optimizer:
    return LARS(groups, momentum=recipe.momentum, joint=recipe.optimizer == "lars")


def _adamw(groups: list[dict[str, Any]], recipe: Recipe) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=0.0, betas=recipe.betas)


OPTIMIZERS = {"adamw": _adamw, "larc": _lars, "lars": _lars, "sgd": _sgd}


def build(groups: list[dict[str, Any]], recipe: Recipe) -> torch.optim.Optimizer:
    """An optimizer over a method's groups.

    A group holds `params` and may say `lr_scale` (1), `constant` (False: follow the
    schedule; True: keep the base rate), `decay` (None: the recipe's), `exempt` (None: the
    recipe's rule).
    """
    if recipe.optimizer not in OPTIMIZERS:
        hint = suggestion(recipe.optimizer, OPTIMIZERS)
        raise ConfigError(f"unknown optimizer {recipe.optimizer}{hint}")
    parts: list[dict[str, Any]] = []
    for group in groups:
        rule = group.get("exempt") or recipe.exempt
        spared = [p for p in group["params"] if rule == "1d" and p.ndim <= 1]
        known = {id(p) for p in spared}
        rest = [p for p in group["params"] if id(p) not in known]
        adaptive = recipe.optimizer in ("lars", "larc")
        for params, decays in ((rest, True), (spared, False)):
            part = {
                "params": params, "lr_scale": group.get("lr_scale", 1.0), "decays": decays,
                "decay": group.get("decay"), "constant": group.get("constant", False),
            }  # fmt: skip
            if adaptive:
                part["adapt"] = decays
                part["lr_scale"] *= 1.0 if decays else recipe.spared_rate
            parts += [part] if params else []
    return OPTIMIZERS[recipe.optimizer](parts, recipe)


def set_rates(
    optimizer: torch.optim.Optimizer, recipe: Recipe, lr: float, step: int, total: int, warmup: int
) -> float:
    """Set every group's rate and decay for this step; returns the rate."""
    if recipe.drops and step >= warmup:
        factor = steps(step / total, recipe.drops)
    else:
        factor = warmup_cosine(step, total, warmup, first=recipe.warmup_from, last=recipe.last)
    end = recipe.weight_decay if recipe.weight_decay_end is None else recipe.weight_decay_end
    decay = cosine(recipe.weight_decay, end, step / total)
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"] * (1.0 if group["constant"] else factor)
        chosen = decay if group["decay"] is None else group["decay"]
        group["weight_decay"] = chosen if group["decays"] else 0.0
    return lr * factor


def clip(module: nn.Module, recipe: Recipe) -> None:
    """Bound the gradients by the recipe's norm."""
    if recipe.clip is None:
        return
    params = [p for p in module.parameters() if p.grad is not None]
    for bounded in [[p] for p in params] if recipe.clip_each else [params]:
        nn.utils.clip_grad_norm_(bounded, recipe.clip)
