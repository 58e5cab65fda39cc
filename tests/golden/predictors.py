"""Predictors that are set: DirectPred's own forward and step, on the projections of a record."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from golden.given import Given, Half, forward
from golden.relations import Relation
from selfsight.methods.base import Clock
from selfsight.methods.directpred import DirectPred
from selfsight.momentum import Teacher
from selfsight.predictors import boosted, spectral, weights

__all__ = ["RELATIONS", "byol", "following", "setting", "trial"]

Outputs = Mapping[str, Any]


def byol(p1: Tensor, p2: Tensor, z1: Tensor, z2: Tensor) -> Outputs:
    """The loss of two directions, on predictions and targets."""
    method = DirectPred(Given(p1.shape[1]), head="none", predictor="nonlinear")
    method.predictor, method.teacher = Half(0), Teacher(Half(1))
    return {"loss": forward(method, torch.cat([p1, z1], 1), torch.cat([p2, z2], 1)).loss}


def setting(
    F: Tensor, *, balance_type: str, dyn_convert: float, dyn_eps: float, dyn_eps_inside: bool,
    dyn_reg: float | None, corr_eigen_decomp: bool,
) -> Outputs:  # fmt: skip
    method = DirectPred(
        Given(len(F)), head="none", predictor="copy" if balance_type == "direct" else "direct",
        epsilon=dyn_eps, exponent=1 / dyn_convert,
        boost="inside" if dyn_eps_inside else "outside",
    )  # fmt: skip
    return {"Wp": method.closed(F)}


def _no_table(facts: Mapping[str, Any]) -> bool:
    """What the source can do and nothing published shows."""
    plain = facts["balance_type"] in ("boost_scale", "direct")
    return not (plain and facts["corr_eigen_decomp"]) or facts["dyn_reg"] is not None


def trial(
    F: Tensor, *, balance_type: str, dyn_convert: float, dyn_eps: float, dyn_eps_inside: bool,
    dyn_reg: float | None, corr_eigen_decomp: bool,
) -> Outputs:  # fmt: skip
    """Other rules for the eigenvalues, or F's diagonal in their place; W_p times 1 − reg."""

    def rule(s: Tensor) -> Tensor:
        reg = dyn_reg or 0.0
        if balance_type == "clamp":
            return s.clamp(0, 1 - reg)
        if balance_type == "shrink2mean":
            return (s + s.mean()) / 2
        assert balance_type == "boost_scale", f"unknown balance_type {balance_type}"
        form = "inside" if dyn_eps_inside else "outside"
        return (1 - reg) * boosted(s, dyn_eps, 1 / dyn_convert, form)

    return {"Wp": spectral(F, rule) if corr_eigen_decomp else rule(F.diagonal()).diag()}


def following(
    x: Tensor, *, dyn_lambda: float | None, dyn_zero_mean: bool, dyn_convert: float,
    dyn_eps: float, predictor_freq: int, balance_type: str,
) -> Outputs:  # fmt: skip
    """Some steps, from x: (steps, views, N, D); F and W_p after each."""
    assert balance_type == "boost_scale", f"we raise eigenvalues, not {balance_type}"
    method = DirectPred(
        Given(x.shape[-1]), head="none", rho=dyn_lambda, centred=dyn_zero_mean,
        epsilon=dyn_eps, exponent=1 / dyn_convert, freq=predictor_freq,
    ).double()  # fmt: skip
    correlations, predictors = [], []
    for step, views in enumerate(x):
        clock = Clock(step, len(x), len(x))
        method.after_step(forward(method, *views, clock=clock).carry, clock)
        correlations.append(method.correlation().clone())
        predictors.append(weights(method.predictor)[0].detach().clone())
    return {"F": torch.stack(correlations), "Wp": torch.stack(predictors)}


_LUCK = "facebookresearch/luckmatters@625b5f7"

RELATIONS = {
    "directpred_ema": {_LUCK: Relation(ours=following)},
    "directpred_wp": {
        _LUCK: Relation(
            ours=setting, theirs=trial, when=_no_table,
            note="trials of no table: other rules for the eigenvalues, the diagonal alone, a scale",
        )
    },
}  # fmt: skip
