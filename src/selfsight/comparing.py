"""Comparing encoders: runs, what `evaluate --out` wrote, and encoders that are measured now.

What was kept is taken where it is of the same protocol, options and images, and of the weights
that the run has now; what is missing is measured where data are given. What the numbers then say
is in `evaluate.comparison`.
"""

import abc
import itertools
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

from selfsight.data.base import Counting
from selfsight.data.sources import Data
from selfsight.errors import ConfigError, DataError, StorageError
from selfsight.evaluate import DEFAULT, Protocol, Report, Sight, judge, openings, select
from selfsight.evaluate.comparison import Comparison, Entry, compare
from selfsight.evaluate.stored import (
    Evaluation,
    alike,
    data_name,
    evaluations,
    images_mark,
    read,
    weights_mark,
)
from selfsight.run import Run

__all__ = ["Candidate", "compare_encoders"]

_DOUBT = (
    "it is not known whether its numbers are of the weights that it has now; evaluate it again if "
    "it was trained since"
)


@dataclass(frozen=True)
class Candidate:
    """An encoder that is measured for the comparison and not kept; name: what its row is
    called."""

    name: str
    sight: Sight


def compare_encoders(
    encoders: Sequence[str | Path | Run | Candidate],
    data: Data | None = None,
    protocols: Sequence[str | Protocol] | None = None,
    *,
    size: int | None = None,
    progress: Counting | None = None,
    **opening: Any,
) -> list[Comparison]:
    """What is and what is not a difference between encoders, by each protocol.

    encoders: runs, or their folders; files of `selfsight evaluate --out`; and candidates
    data: on which what was not kept is measured; None takes what all have kept
    protocols: a name stands for all of its options that were kept, with data for those by default;
        None takes all that were kept, or nearest neighbours and the linear probe on data
    size: side of the images that runs see; None takes each run's own, and any that was kept
    opening: as of `evaluate`
    """
    compared = [_compared(encoder, size) for encoder in encoders]
    if len({each.place for each in compared}) < max(2, len(compared)):
        raise ConfigError("a comparison needs two or more different encoders")
    if data is None:
        keys = _common(compared, protocols)
    else:
        chosen = select(DEFAULT if protocols is None else protocols)
        keys = _keys(chosen, data, **opening)
        for each in compared:
            missing = [p for p, key in zip(chosen, keys, strict=True) if key not in each.found]
            if missing:
                report = each.measure(data, missing, progress, **opening)
                each.found |= {one.key: one for one in evaluations(report, data)}
    return _told_apart([compare([each.entry(key) for each in compared]) for key in keys])


class _Compared(abc.ABC):
    """One of those that are compared.

    place: where it is, so that none is compared with itself
    recipe, seed: see Entry
    found: its evaluations by their key
    doubtful: the keys of those that may be of other weights than it has now
    notes: what must be known of it
    """

    def __init__(self, name: str, kept: Sequence[Evaluation], size: int | None) -> None:
        self.name, self.place = name, Path(name).resolve()
        self.recipe, self.seed = "", None
        self.found: dict[str, Evaluation] = {}
        self.doubtful: set[str] = set()
        self.notes: list[str] = []
        for one in kept:
            if size in (None, one.judged.size):
                self.found.setdefault(one.key, one)

    @abc.abstractmethod
    def measure(
        self, data: Data, protocols: list[Protocol], progress: Counting | None, **opening: Any
    ) -> Report:
        """What these protocols say of it on the data."""

    def entry(self, key: str) -> Entry:
        notes = (*self.notes, *([_DOUBT] if key in self.doubtful else []))
        return Entry(self.name, self.found[key], self.recipe, self.seed, notes)


@final
class _File(_Compared):
    """What `evaluate --out` wrote of any encoder."""

    def __init__(self, file: Path, size: int | None) -> None:
        super().__init__(str(file), read(file), size)

    def measure(
        self, data: Data, protocols: list[Protocol], progress: Counting | None, **opening: Any
    ) -> Report:
        names = ", ".join(protocol.name for protocol in protocols)
        raise DataError(
            f"{self.name} does not hold {names} on these images with these options, and a file "
            "cannot be measured again; name the encoder instead"
        )


@final
class _Measured(_Compared):
    """An encoder of which nothing is kept."""

    def __init__(self, candidate: Candidate) -> None:
        super().__init__(candidate.name, (), None)
        self.sight = candidate.sight

    def measure(
        self, data: Data, protocols: list[Protocol], progress: Counting | None, **opening: Any
    ) -> Report:
        return judge(replace(self.sight, progress=progress), data, protocols, **opening)


@final
class _Kept(_Compared):
    """A run, and what it keeps of the weights that it has now."""

    def __init__(self, run: Run, size: int | None) -> None:
        kept = run.evaluations
        weights = weights_mark(run.model) if kept and (run.path / "model").is_dir() else ""
        ours = [one for one in kept if not weights or one.judged.weights in ("", weights)]
        super().__init__(str(run.path), ours, size)
        self.run, self.size = run, size
        config = dict(run.config)
        self.seed = config.pop("seed", None)
        self.recipe = json.dumps([config, run.record["data"]["fingerprint"]], sort_keys=True)
        self.doubtful = {
            key for key, one in self.found.items() if not weights or not one.judged.weights
        }
        if others := len(kept) - len(ours):
            self.notes.append(f"evaluations of other weights, left out: {others}")

    def measure(
        self, data: Data, protocols: list[Protocol], progress: Counting | None, **opening: Any
    ) -> Report:
        report = judge(self.run.sight(self.size, progress), data, protocols, **opening)
        try:
            self.run.keep(report, data)
        except StorageError as error:
            self.notes.append(f"the results of single images are not kept: {error}")
        return report


def _compared(encoder: str | Path | Run | Candidate, size: int | None) -> _Compared:
    if isinstance(encoder, Candidate):
        return _Measured(encoder)
    if isinstance(encoder, Run):
        return _Kept(encoder, size)
    path = Path(encoder)
    named = path.is_file() or path.suffix == ".json"
    return _File(path, size) if named else _Kept(Run(path), size)


def _keys(protocols: list[Protocol], data: Data, **opening: Any) -> list[str]:
    """Of what the protocols would measure on the data as they are now."""
    return [
        alike(protocol.name, protocol.options, images_mark(*parts) or data_name(data))
        for protocol, parts in zip(protocols, openings(protocols, data, **opening), strict=True)
    ]


def _common(compared: list[_Compared], protocols: Sequence[str | Protocol] | None) -> list[str]:
    """The evaluations that all have, those of one protocol beside each other, the newest first;
    of images that changed under their name only the newest."""
    first, *others = compared
    newest: dict[str, Evaluation] = {}
    for key, one in first.found.items():
        if all(key in each.found for each in others):
            newest.setdefault(alike(one.score.protocol, one.score.options, one.data), one)
    if protocols is None:
        protocols = sorted({one.score.protocol for one in newest.values()})
    wanted = [[one.key for one in newest.values() if _is(protocol, one)] for protocol in protocols]
    for protocol, keys in zip(protocols, wanted, strict=True):
        if not keys:
            raise _nothing(
                compared, f" by {protocol if isinstance(protocol, str) else protocol.name}"
            )
    if not wanted:
        raise _nothing(compared, "")
    return list(dict.fromkeys(itertools.chain(*wanted)))


def _is(protocol: str | Protocol, one: Evaluation) -> bool:
    """Whether it was asked for; a name stands for any options."""
    score = one.score
    if isinstance(protocol, str):
        return protocol == score.protocol
    return alike(protocol.name, protocol.options, score.images or one.data) == one.key


def _nothing(compared: list[_Compared], by: str) -> DataError:
    names = [each.name for each in compared]
    notes = "".join(f"{each.name}: {note}; " for each in compared for note in each.notes)
    return DataError(
        f"{', '.join(names)} have no evaluation{by} in common, of the same images with the same "
        f"options; {notes}measure them alike: selfsight compare {shlex.join(names)} --data DATA"
    )


def _told_apart(comparisons: list[Comparison]) -> list[Comparison]:
    """With the names of the options in which those of one protocol differ."""
    options: dict[str, dict[str, set[str]]] = {}
    for one in comparisons:
        for name, value in one.options.items():
            options.setdefault(one.protocol, {}).setdefault(name, set()).add(repr(value))
    return [
        replace(one, apart=tuple(n for n in one.options if len(options[one.protocol][n]) > 1))
        for one in comparisons
    ]
