"""How good an embedding is: accuracies on labelled images, with their intervals."""

from collections.abc import Callable, Sequence

import numpy as np

from selfsight.errors import ConfigError, DataError, suggestion
from selfsight.evaluate.knn import KNN
from selfsight.evaluate.linear import LinearProbe
from selfsight.evaluate.report import Report, Score
from selfsight.evaluate.statistics import interval, paired
from selfsight.features import Features

__all__ = [
    "KNN",
    "PROTOCOLS",
    "LinearProbe",
    "Report",
    "Score",
    "check_protocols",
    "evaluate",
    "interval",
    "paired",
]


def evaluate(
    train: Features,
    test: Features,
    protocols: Sequence[str] = ("knn", "linear"),
    seed: int = 0,
) -> Report:
    """Fit each protocol to the labelled training features and count on the test ones.

    protocols: names of PROTOCOLS
    seed: of whatever a protocol draws
    """
    check_protocols(protocols)
    x, y = _labelled(train, "training")
    test_x, test_y = _labelled(test, "test")
    if train.dim != test.dim:
        raise DataError(
            f"training features have {train.dim} channels and test features {test.dim}; "
            "embed both with the same encoder"
        )
    if train.classes != test.classes and train.classes and test.classes:
        odd = sorted(set(train.classes) ^ set(test.classes))
        raise DataError(
            "training and test images have different classes: "
            + (f"only one of them has {', '.join(odd[:5])}" if odd else "the order differs")
        )
    if len(np.unique(y)) < 2:
        raise DataError("all training images have one class; evaluation needs two or more")
    return Report(PROTOCOLS[name](x, y, test_x, test_y, seed) for name in protocols)


def check_protocols(protocols: Sequence[str]) -> None:
    """Refuse an unknown name, or none at all."""
    if isinstance(protocols, str) or not protocols:
        raise ConfigError(f"protocols is a list of names, got {protocols!r}; try ['knn', 'linear']")
    for protocol in protocols:
        if protocol not in PROTOCOLS:
            near = suggestion(protocol, PROTOCOLS) or f"; known: {', '.join(PROTOCOLS)}"
            raise ConfigError(f"unknown protocol {protocol}{near}")


def _labelled(features: Features, which: str) -> tuple[np.ndarray, np.ndarray]:
    if len(features) == 0:
        raise DataError(f"there are no {which} images")
    if features.label is None:
        raise DataError(f"the {which} images have no labels; sort them into a folder per class")
    bad = np.flatnonzero(~np.isfinite(features.embedding).all(axis=1))
    if len(bad):
        raise DataError(
            f"{len(bad)} {which} embeddings are not finite, the first of {features.path[bad[0]]}; "
            "embed again with fp32"
        )
    return features.embedding, features.label


def _knn(x: np.ndarray, y: np.ndarray, test_x: np.ndarray, test_y: np.ndarray, seed: int) -> Score:
    probe = KNN()
    if len(x) < probe.k:
        raise DataError(
            f"kNN with k={probe.k} needs as many training images, got {len(x)}; label more, "
            "or use KNN(k=…) itself"
        )
    correct = probe.fit(x, y).predict(test_x) == test_y
    name = f"kNN (k={probe.k}, T={probe.temperature:g})"
    return _score(name, "knn", correct, k=probe.effective_k, temperature=probe.temperature)


def _linear(
    x: np.ndarray, y: np.ndarray, test_x: np.ndarray, test_y: np.ndarray, seed: int
) -> Score:
    probe = LinearProbe(seed=seed).fit(x, y)
    correct = probe.predict(test_x) == test_y
    name = f"linear (L2={probe.strength:.2g})"
    return _score(
        name,
        "linear",
        correct,
        strength=probe.strength,
        at_edge=probe.at_edge,
        tuned=probe.tuned,
        converged=probe.converged,
        seed=seed,
    )


def _score(name: str, protocol: str, correct: np.ndarray, **details: object) -> Score:
    low, high = interval(correct)
    return Score(name, protocol, float(correct.mean()), low, high, len(correct), details, correct)


PROTOCOLS: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int], Score]] = {
    "knn": _knn,
    "linear": _linear,
}
