"""How good an encoder is: numbers on labelled images, with their intervals."""

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from selfsight.data.base import Opened
from selfsight.data.sources import Data
from selfsight.data.split import COPY, evaluation_split
from selfsight.errors import ConfigError, DataError, suggestion
from selfsight.evaluate.base import OnFeatures, OnImages, Protocol, Sight
from selfsight.evaluate.leaks import without_leaks
from selfsight.evaluate.protocols.knn import KNN
from selfsight.evaluate.protocols.linear import LinearProbe
from selfsight.evaluate.report import Judged, Report, Score
from selfsight.evaluate.statistics import interval, paired
from selfsight.evaluate.stored import images_mark, weights_mark
from selfsight.features import Features
from selfsight.ranges import check

__all__ = [
    "DEFAULT",
    "KNN",
    "PROTOCOLS",
    "LinearProbe",
    "OnFeatures",
    "OnImages",
    "Protocol",
    "Report",
    "Score",
    "Sight",
    "create",
    "evaluate",
    "interval",
    "judge",
    "measure",
    "openings",
    "options",
    "paired",
    "select",
]

PROTOCOLS = {
    "clustering": "selfsight.evaluate.protocols.clustering:Clustering",
    "dense": "selfsight.evaluate.protocols.dense:Dense",
    "detection": "selfsight.evaluate.protocols.detection:Detection",
    "few": "selfsight.evaluate.protocols.few:Few",
    "finetune": "selfsight.evaluate.protocols.finetune:Finetune",
    "knn": "selfsight.evaluate.protocols.knn:KNN",
    "linear": "selfsight.evaluate.protocols.linear:LinearProbe",
    "multilabel": "selfsight.evaluate.protocols.multilabel:MultiLabel",
    "propagation": "selfsight.evaluate.protocols.propagation:Propagation",
    "recipe": "selfsight.evaluate.protocols.recipe:PaperRecipe",
    "retrieval": "selfsight.evaluate.protocols.retrieval:Retrieval",
    "segmentation": "selfsight.evaluate.protocols.segmentation:Segmentation",
    "sweep": "selfsight.evaluate.protocols.sweep:Sweep",
    "throughput": "selfsight.evaluate.protocols.throughput:Throughput",
}

DEFAULT = ("knn", "linear")


def evaluate(
    train: Features,
    test: Features,
    protocols: Sequence[str | Protocol] = DEFAULT,
    *,
    duplicates: Literal["refuse", "drop"] = "refuse",
) -> Report:
    """Fit each protocol to the labelled training features and count on the test ones.

    protocols: names, or protocols with options of one's own, as KNN(k=200)
    duplicates: what becomes of training features that are equal to test features: refused, or
        left out
    """
    chosen = select(protocols)
    _check_features(train, test)
    left = without_leaks(train, test, duplicates)
    return measure(left, test, chosen, copies=len(train) - len(left))


def measure(
    train: Features, test: Features, protocols: Sequence[str | Protocol], *, copies: int = 0
) -> Report:
    """The same for features that cannot hold labels, as raw pixels; copies: how many training
    features were left out."""
    told = {"copies_left_out": copies} if copies else {}
    chosen = select(protocols)
    for protocol in chosen:
        if not isinstance(protocol, OnFeatures):
            raise ConfigError(
                f"{protocol.name} needs images and the encoder, and features are neither; "
                "evaluate a run or a model"
            )
    _check_features(train, test)
    images = images_mark(*((part.path, part.label, part.classes) for part in (train, test)))
    return Report(
        _told(score, protocol, images, told)
        for protocol in chosen
        if isinstance(protocol, OnFeatures)
        for score in protocol.measure(train, test)
    )


def judge(
    sight: Sight,
    data: Data,
    protocols: Sequence[str | Protocol] = DEFAULT,
    *,
    duplicates: Literal["refuse", "drop"] = "refuse",
    each: Callable[[Report], None] | None = None,
    **opening: Any,
) -> Report:
    """Judge an encoder on data, which are opened as each protocol reads them.

    duplicates: see `evaluation_split`
    each: told all that is known whenever a protocol is done: a later one may fail
    opening: options of `open_source`
    """
    chosen = select(protocols)
    scores: list[Score] = []
    judged = Judged(sight.size, sight.precision, weights_mark(sight.encoder))
    features: tuple[Features, Features] | None = None
    # All data are opened before any are measured: what cannot be read is told at once.
    for protocol, parts in zip(chosen, openings(chosen, data, duplicates, **opening), strict=True):
        if isinstance(protocol, OnFeatures):
            if features is None:
                features = sight.embed(parts[0]), sight.embed(parts[1])
                _check_features(*features)
            found = protocol.measure(*features)
        else:
            assert isinstance(protocol, OnImages)
            found = protocol.measure(sight, *parts)
        about = _about(*parts)
        scores += [_told(score, protocol, *about) for score in found]
        if each is not None:
            each(Report(scores, judged))
    return Report(scores, judged)


def openings(
    protocols: Sequence[Protocol],
    data: Data,
    duplicates: Literal["refuse", "drop"] = "refuse",
    **opening: Any,
) -> list[tuple[Any, Any]]:
    """The training and the test part of `data` as each protocol reads them; those that judge
    embeddings share theirs."""
    shared: tuple[Any, Any] | None = None
    parts = []
    for protocol in protocols:
        if isinstance(protocol, OnImages):
            parts.append(protocol.open(data, duplicates=duplicates, **opening))
        else:
            shared = shared or evaluation_split(data, duplicates=duplicates, **opening)
            parts.append(shared)
    return parts


def _told(score: Score, protocol: Protocol, images: str, copies: dict[str, int]) -> Score:
    details = {**score.details, **copies}
    return replace(score, details=details, options=protocol.options, images=images)


def _about(train: Any, test: Any) -> tuple[str, dict[str, int]]:
    """What stands for the images; and how many were left out: those of the test from the training
    part, and files that cannot be used from either."""
    # Parts of one folder share what was skipped in it.
    skipped = {skip for part in (train, test) if isinstance(part, Opened) for skip in part.skipped}
    copies = sum(skip.reason == COPY for skip in skipped)
    counts = {"copies_left_out": copies, "unusable_left_out": len(skipped) - copies}
    return images_mark(train, test), {name: count for name, count in counts.items() if count}


def select(
    protocols: Sequence[str | Protocol], chosen: Mapping[str, Mapping[str, Any]] | None = None
) -> list[Protocol]:
    """The protocols, built where they are named.

    chosen: options by the protocol's name
    """
    if isinstance(protocols, str) or not protocols:
        raise ConfigError(f"protocols is a list of names, got {protocols!r}; try ['knn', 'linear']")
    return [
        protocol
        if isinstance(protocol, Protocol)
        else create(protocol, **(chosen or {}).get(protocol, {}))
        for protocol in protocols
    ]


def create(name: str, **chosen: Any) -> Protocol:
    """The protocol of that name with these options."""
    check(chosen, options(name), name, name)
    protocol: Protocol = _class(name)(**chosen)
    return protocol


def options(name: str) -> dict[str, inspect.Parameter]:
    """A protocol's options: the parameters of its constructor."""
    _, *parameters = inspect.signature(_class(name).__init__).parameters.items()
    return dict(parameters)


def _class(name: str) -> Any:
    if name not in PROTOCOLS:
        near = suggestion(name, PROTOCOLS) or f"; known: {', '.join(PROTOCOLS)}"
        raise ConfigError(f"unknown protocol {name}{near}")
    module, _, attribute = PROTOCOLS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def _check_features(train: Features, test: Features) -> None:
    """Whether any protocol can learn from the one and count on the other."""
    for features, which in ((train, "training"), (test, "test")):
        if len(features) == 0:
            raise DataError(f"there are no {which} images")
        if features.label is None:
            raise DataError(f"the {which} images have no labels; sort them into a folder per class")
        bad = np.flatnonzero(~np.isfinite(features.embedding).all(axis=1))
        if len(bad):
            raise DataError(
                f"{len(bad)} {which} embeddings are not finite, the first of "
                f"{features.path[bad[0]]}; embed again with fp32"
            )
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
    if len(np.unique(train.label)) < 2:  # type: ignore[arg-type]
        raise DataError("all training images have one class; evaluation needs two or more")
