"""What is measured on embeddings."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from golden.records import Arrays
from selfsight.evaluate.protocols.knn import KNN
from selfsight.meters import effective_rank, spread
from selfsight.whitening import whitening_matrix

Outputs = Mapping[str, Any]


def knn(
    train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, *, k: int, T: float,
    num_classes: int | None = None, normalise: str = "L2 before", epsilon: float | None = None,
) -> Outputs:  # fmt: skip
    """epsilon belongs to the source's Euclidean distance, which is not asked for here."""
    assert normalise == "L2 before", f"unknown normalisation {normalise}"
    fitted = KNN(k, T).fit(train, train_labels)
    votes = fitted.proba(test)
    unseen = max(0, (num_classes or 0) - votes.shape[1])
    return {
        "class_scores": np.pad(votes, ((0, 0), (0, unseen))),
        "pred": fitted.predict(test),
        "top1": 100 * fitted.score(test, test_labels),
    }


def knn_euclidean(
    train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, *, k: int, T: None,
    epsilon: float,
) -> Outputs:  # fmt: skip
    assert epsilon == 1e-5, f"ours is 1e-5, not {epsilon}"
    fitted = KNN(k, metric="euclidean").fit(train, train_labels)
    return {"pred": fitted.predict(test), "top1": 100 * fitted.score(test, test_labels)}


def knn_majority(
    train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, *, k: int
) -> Outputs:
    fitted = KNN(k, metric="euclidean", vote="majority").fit(train, train_labels)
    return {"acc": fitted.score(test, test_labels)}


def shares(outputs: Arrays) -> Arrays:
    """Votes as shares, as ours are."""
    if "class_scores" not in outputs:
        return outputs
    votes = outputs["class_scores"]
    return {**outputs, "class_scores": votes / votes.sum(1, keepdims=True)}


def rankme(x: Tensor, *, eps: float) -> Outputs:
    return {"rankme": effective_rank(x, eps=eps)}


def rankme_default(x: Tensor, *, eps: float) -> Outputs:
    return {"rankme": effective_rank(x)}


def rankme_definition(x: Tensor, *, eps: str) -> Outputs:
    assert eps == "0 and 1e-7", f"unknown variants {eps}"
    return {
        "effective_rank": effective_rank(x, eps=0.0),
        "rankme_eps1e7": effective_rank(x),
        "rankme_centered_eps1e7": effective_rank(x, centred=True),
    }


def deviation(x: Tensor) -> Outputs:
    return {"value": spread(x)}


def whitening(x: Tensor, *, ddof: int) -> Outputs:
    cov = x.T.cov(correction=ddof)
    found = {
        f"W_{kind}": whitening_matrix(cov, kind)
        for kind in ("zca", "pca", "cholesky", "zca_cor", "pca_cor")
    }
    return {**found, "W_wmse_lower_inv_chol": whitening_matrix(cov, "cholesky_lower")}


def zca_about_scalar(x: Tensor) -> Outputs:
    """Centred by one number, the mean of all entries; ε = 1e-5 on the diagonal."""
    centred = x - x.mean()
    second = centred.T @ centred / len(x)
    ridge = 1e-5 * torch.eye(len(second), dtype=x.dtype)
    return {"y": centred @ whitening_matrix(second + ridge, "zca").T}


def zca(x: Tensor) -> Outputs:
    return {"y": (x - x.mean(0)) @ whitening_matrix(x.T.cov(), "zca").T}
