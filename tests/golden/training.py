"""Optimizers, schedules and moving averages."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from selfsight.momentum import Teacher
from selfsight.optim import Recipe, build, set_rates
from selfsight.schedules import cosine

Outputs = Mapping[str, Any]


def lars(
    param_w: Tensor, param_conv: Tensor, param_zero_w: Tensor, param_bias: Tensor,
    param_bn: Tensor, grad_seq_w: Tensor, grad_seq_conv: Tensor, grad_seq_zero_w: Tensor,
    grad_seq_bias: Tensor, grad_seq_bn: Tensor, *, lr: float, weight_decay: float,
    momentum: float, eta: float, steps: int, excluded: str,
    form: Literal["lars", "larc"] = "lars", adapt_undecayed: bool = True,
    decay_idle: bool = True, eps: float = 0.0,
) -> Outputs:  # fmt: skip
    """adapt_undecayed: use the trust ratio without weight decay too
    decay_idle: decay parameters that are, or whose gradient is, exactly 0
    eps: added to what the trust ratio divides by
    """
    assert excluded.startswith("1-D parameters"), f"we spare 1-D parameters, not {excluded}"
    starts = {
        "w": param_w, "conv": param_conv, "zero_w": param_zero_w, "bias": param_bias,
        "bn": param_bn,
    }  # fmt: skip
    grads = {
        "w": grad_seq_w, "conv": grad_seq_conv, "zero_w": grad_seq_zero_w,
        "bias": grad_seq_bias, "bn": grad_seq_bn,
    }  # fmt: skip
    params = {name: nn.Parameter(start.clone()) for name, start in starts.items()}
    recipe = Recipe(optimizer=form, lr=lr, weight_decay=weight_decay, momentum=momentum)
    optimizer = build([{"params": [p]} for p in params.values()], recipe)
    paths: dict[str, list[Tensor]] = {name: [] for name in params}
    for step in range(steps):
        set_rates(optimizer, recipe, lr, 0, 1, 0)
        for (name, p), group in zip(params.items(), optimizer.param_groups, strict=True):
            p.grad = g = grads[name][step].clone()
            at = p.detach()
            idle = not (decay_idle or (at.norm() > 0 and g.norm() > 0))
            decay = group["weight_decay"] = 0.0 if idle else group["weight_decay"]
            joint = (g + decay * at).norm() if form == "lars" else g.norm() + decay * at.norm()
            group["trust"] = eta * float(joint / (joint + eps)) if eps else eta
            group["adapt"] = group["decays"] and (adapt_undecayed or weight_decay > 0) and not idle
        optimizer.step()
        for name, p in params.items():
            paths[name].append(p.detach().clone())
    return {f"traj_{name}": torch.stack(path) for name, path in paths.items()}


# (step, total, warm-up) as the source has them → as ours take them.
Clock = Callable[[int, int, int], tuple[float, int, int]]


def ours(step: int, total: int, warmup: int) -> tuple[float, int, int]:
    return step, total, warmup


def peak_twice(step: int, total: int, warmup: int) -> tuple[float, int, int]:
    """The warm-up ends a step early: the base rate is reached at warmup − 1 and at warmup."""
    return step * warmup / max(1, warmup - 1) if step < warmup else step, total, warmup


def one_ahead(step: int, total: int, warmup: int) -> tuple[float, int, int]:
    """The first step already is the second."""
    return step + 1, total, warmup


def ends_reached(step: int, total: int, warmup: int) -> tuple[float, int, int]:
    """The warm-up starts a step in, and the last step has the last rate."""
    return step + 1 if step < warmup else step, total - 1, warmup


def _rates(
    steps: Tensor, recipe: Recipe, batch: int, total: int, warmup: int, clock: Clock,
    groups: Sequence[Mapping[str, Any]] = ({},),
) -> Outputs:  # fmt: skip
    """The rates of the groups that a method asks for, (steps, groups) or (steps,)."""
    optimizer = build([{"params": [nn.Parameter(torch.zeros(1, 1))], **g} for g in groups], recipe)
    values = []
    for step in steps.tolist():
        step, end, rise = clock(step, total, warmup)
        set_rates(optimizer, recipe, recipe.rate(batch), step, end, rise)
        values.append([group["lr"] for group in optimizer.param_groups])
    return {"values": torch.tensor(values, dtype=torch.float64).squeeze(1)}


def _sgd(lr: float, **facts: Any) -> Recipe:
    return Recipe(optimizer="sgd", lr=lr, weight_decay=0.0, **facts)


def rate_barlow_twins(
    step: Tensor, *, epochs: int, iters_per_epoch: int, batch_size: int, lr_weights: float,
    lr_biases: float, warmup_epochs: int,
) -> Outputs:  # fmt: skip
    n = iters_per_epoch
    groups = [{}, {"lr_scale": lr_biases / lr_weights}]
    recipe = _sgd(lr_weights, last=1e-3)
    return _rates(step, recipe, batch_size, epochs * n, warmup_epochs * n, ours, groups)


def rate_vicreg(
    step: Tensor, *, epochs: int, iters_per_epoch: int, batch_size: int, base_lr: float,
    warmup_epochs: int,
) -> Outputs:  # fmt: skip
    n = iters_per_epoch
    recipe = _sgd(base_lr, last=1e-3)
    return _rates(step, recipe, batch_size, epochs * n, warmup_epochs * n, ours)


def rate_scaled(
    step: Tensor, *, lr: float, epochs: int, iters_per_epoch: int, warmup_epochs: int,
    min_lr: float = 0.0,
) -> Outputs:  # fmt: skip
    n = iters_per_epoch
    return _rates(step, _sgd(lr, last=min_lr / lr), 256, epochs * n, warmup_epochs * n, ours)


def rate_dino(
    step: Tensor, *, base_value: float, final_value: float, epochs: int, niter_per_ep: int,
    warmup_epochs: int, start_warmup_value: float, clock: Clock = ours,
) -> Outputs:  # fmt: skip
    n = niter_per_ep
    facts = {"last": final_value / base_value, "warmup_from": start_warmup_value / base_value}
    recipe = _sgd(base_value, **facts)
    return _rates(step, recipe, 256, epochs * n, warmup_epochs * n, clock)


def rate_swav(
    step: Tensor, *, base_lr: float, final_lr: float, epochs: int, iters_per_epoch: int,
    warmup_epochs: int, start_warmup: float, clock: Clock = ours,
) -> Outputs:  # fmt: skip
    return rate_dino(
        step, base_value=base_lr, final_value=final_lr, epochs=epochs,
        niter_per_ep=iters_per_epoch, warmup_epochs=warmup_epochs,
        start_warmup_value=start_warmup, clock=clock,
    )  # fmt: skip


def rate_decorrelation(
    step: Tensor, *, batch_size: int, warmup_epochs: int, warmup_lr: float, num_epochs: int,
    base_lr: float, final_lr: float, iter_per_epoch: int, clock: Clock = ours,
) -> Outputs:  # fmt: skip
    n = iter_per_epoch
    recipe = _sgd(base_lr, last=final_lr / base_lr, warmup_from=warmup_lr / base_lr)
    return _rates(step, recipe, batch_size, num_epochs * n, warmup_epochs * n, clock)


def rate_solo(
    step: Tensor, *, warmup_steps: int, max_steps: int, warmup_start_lr: float, base_lr: float,
    eta_min: float, clock: Clock = ours,
) -> Outputs:  # fmt: skip
    recipe = _sgd(base_lr, last=eta_min / base_lr, warmup_from=warmup_start_lr / base_lr)
    return _rates(step, recipe, 256, max_steps, warmup_steps, clock)


def rate_simsiam(step: Tensor, *, init_lr: float, epochs: int) -> Outputs:
    groups: list[dict[str, Any]] = [{}, {"constant": True}]
    return _rates(step, _sgd(init_lr), 256, epochs, 0, ours, groups)


def rate_moco(
    step: Tensor, *, lr: float, cos: bool, epochs: int, schedule: Sequence[int] = ()
) -> Outputs:
    drops = () if cos else tuple(epoch / epochs for epoch in schedule)
    return _rates(step, _sgd(lr, drops=drops), 256, epochs, 0, ours)


def rate_ressl(
    step: Tensor, *, base_lr: float, warm_up: int, epochs: int, iters_per_epoch: int
) -> Outputs:
    n = iters_per_epoch
    return _rates(step, _sgd(base_lr), 256, epochs * n, warm_up * n, ours)


def rate_vicregl(
    step: Tensor, *, batch_size: int, base_lr: float, end_lr_ratio: float, total_steps: int,
    warmup_steps: int,
) -> Outputs:  # fmt: skip
    recipe = _sgd(base_lr, last=end_lr_ratio)
    return _rates(step, recipe, batch_size, total_steps, warmup_steps, ours)


def rate_byol(
    step: Tensor, *, batch_size: int, base_learning_rate: float, total_steps: int,
    warmup_steps: int,
) -> Outputs:  # fmt: skip
    return _rates(step, _sgd(base_learning_rate), batch_size, total_steps, warmup_steps, ours)


def rate_ijepa(
    step: Tensor, *, warmup_steps: int, start_lr: float, ref_lr: float, T_max: int,
    final_lr: float, clock: Clock = ours,
) -> Outputs:  # fmt: skip
    recipe = _sgd(ref_lr, last=final_lr / ref_lr, warmup_from=start_lr / ref_lr)
    return _rates(step, recipe, 256, T_max, warmup_steps, clock)


def rate_lightly(
    step: Tensor, *, warmup_steps: int, start_value: float, end_value: float,
    max_steps: int | None = None, warmup_start_value: float | None = None, clock: Clock = ours,
) -> Outputs:  # fmt: skip
    """Without max_steps, a rise from start_value to end_value, which then stays."""
    if max_steps is None:
        recipe = _sgd(end_value, last=1.0, warmup_from=start_value / end_value)
        return _rates(step, recipe, 256, len(step), warmup_steps, clock)
    first, last = (warmup_start_value or 0.0) / start_value, end_value / start_value
    recipe = _sgd(start_value, last=last, warmup_from=first)
    return _rates(step, recipe, 256, max_steps, warmup_steps, clock)


def moving(step: Tensor, first: float, last: float, total: int, clock: Clock = ours) -> Outputs:
    """A cosine from first to last, as momenta and weight decays follow it."""
    places = [clock(s, total, 0) for s in step.tolist()]
    values = [cosine(first, last, s / end) for s, end, _ in places]
    return {"values": torch.tensor(values, dtype=torch.float64)}


def moving_mocov3(step: Tensor, *, moco_m: float, epochs: int, iters_per_epoch: int) -> Outputs:
    return moving(step, moco_m, 1.0, epochs * iters_per_epoch)


def moving_dino(
    step: Tensor, *, base_value: float, final_value: float, epochs: int, niter_per_ep: int
) -> Outputs:
    return moving(step, base_value, final_value, epochs * niter_per_ep)


def moving_lightly(
    step: Tensor, *, max_steps: int, start_value: float, end_value: float, clock: Clock = ours
) -> Outputs:
    return moving(step, start_value, end_value, max_steps, clock)


def moving_solo(step: Tensor, *, base_tau: float, final_tau: float, max_steps: int) -> Outputs:
    return moving(step, base_tau, final_tau, max_steps)


def moving_htdt(step: Tensor, *, byol_tau: float, progress: str) -> Outputs:
    assert progress == "step/total", f"unknown progress {progress}"
    return moving(step, byol_tau, 1.0, len(step))


def moving_pixpro(step: Tensor, *, pixpro_momentum: float, K: int) -> Outputs:
    return moving(step, pixpro_momentum, 1.0, K)


def moving_byol(step: Tensor, *, base_ema: float, max_steps: int) -> Outputs:
    return moving(step, base_ema, 1.0, max_steps)


def moving_tico(step: Tensor, *, m: float, max_iter: int, half: bool = False) -> Outputs:
    """half: the second half of a cosine that begins at 2m − 1, a quarter of a sine wave; the
    last step has the last value."""
    if not half:
        return moving(step, m, 1.0, max_iter)
    return moving(step + max_iter - 1, 2 * m - 1, 1.0, 2 * max_iter - 1, ends_reached)


def moving_ijepa(
    step: Tensor, *, ref_wd: float, T_max: int, final_wd: float, clock: Clock = ours
) -> Outputs:
    return moving(step, ref_wd, final_wd, T_max, clock)


class _Weight(nn.Module):
    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.clone())


def ema_update(online: Tensor, target: Tensor, *, m: list[float]) -> Outputs:
    """One move after the other."""
    student, teacher = _Weight(online), Teacher(_Weight(target))
    after = []
    for decay in m:
        teacher.update(student, decay)
        after.append(next(teacher.parameters()).clone())
    return {"target_after": torch.stack(after)}
