"""What is and what is not a difference between encoders that were judged alike.

An interval over test images says how far a number may lie on other images of the kind; it
knows nothing of how far another seed of the same training would. Runs that differ only in
their seed are therefore one row, and its interval is over the seeds.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from selfsight.evaluate.report import Score, shown
from selfsight.evaluate.statistics import (
    Difference,
    drawn_p_value,
    holm,
    p_value,
    paired,
    spread,
    student_interval,
    welch,
)
from selfsight.evaluate.stored import Evaluation

__all__ = ["Comparison", "Entry", "Group", "Pair", "compare", "difference"]

Over = Literal["test images", "seeds"]

_LIMIT = 0.05
_COVERS = {
    "test images": "over test images: how far a number may lie on other images like these; "
    "another seed of the training may lie farther",
    "seeds": "over seeds: how far a mean may lie from that of ever more seeds, on these test "
    "images; other images are not covered",
}


@dataclass(frozen=True)
class Entry:
    """An encoder's evaluation.

    recipe: equal for runs that differ only in their seed; empty if not known
    notes: what must be known of it
    """

    name: str
    evaluation: Evaluation
    recipe: str = ""
    seed: int | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Group:
    """One encoder, or the same training with several seeds.

    members: the names of all
    over: what the interval covers
    """

    name: str
    members: tuple[str, ...]
    scores: tuple[Score, ...]
    value: float
    low: float
    high: float
    over: Over


@dataclass(frozen=True)
class Pair:
    """Two rows: the number of `first` minus that of `second`.

    difference: None if nothing can be said
    p: the smallest 1 - level whose interval holds zero; adjusted: for all pairs together
    words: what may be concluded
    """

    first: str
    second: str
    difference: Difference | None
    over: Over | None
    p: float
    adjusted: float
    words: str


@dataclass(frozen=True)
class Comparison:
    """What one protocol says of several encoders.

    options: of the protocol; apart: the names of those that tell it from others beside it
    notes: what the intervals cover, and what else must be known
    """

    protocol: str
    options: Mapping[str, Any]
    metric: str
    data: str
    n: int
    groups: tuple[Group, ...]
    pairs: tuple[Pair, ...]
    notes: tuple[str, ...]
    apart: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        options = ", ".join(f"{name}={self.options[name]}" for name in self.apart)
        protocol = f"{self.protocol} ({options})" if options else self.protocol
        return f"{protocol}, {self.metric} on {self.data} (n={self.n:,})"

    def values(self) -> list[tuple[str, str, str, str]]:
        """Rows of (name, value, interval, over what)."""
        return [
            (group.name, *shown(self.metric, group.value, group.low, group.high), group.over)
            for group in self.groups
        ]

    def differences(self) -> list[tuple[str, str, str, str, str]]:
        """Rows of (who minus whom, difference, interval, over what, words)."""
        rows: list[tuple[str, str, str, str, str]] = []
        for pair in self.pairs:
            found, number, span = pair.difference, "", ""
            if found is not None:
                number, span = shown(self.metric, found.value, found.low, found.high, signed=True)
            rows.append(
                (f"{pair.first} - {pair.second}", number, span, pair.over or "", pair.words)
            )
        return rows

    def json(self) -> dict[str, Any]:
        return {
            "protocol": self.protocol,
            "options": dict(self.options),
            "metric": self.metric,
            "data": self.data,
            "n": self.n,
            "level": 0.95,
            "runs": [
                {
                    "name": group.name,
                    "members": list(group.members),
                    "values": [score.value for score in group.scores],
                    "value": group.value,
                    "low": group.low,
                    "high": group.high,
                    "over": group.over,
                }
                for group in self.groups
            ],
            "pairs": [
                {
                    "first": pair.first,
                    "second": pair.second,
                    **({} if pair.difference is None else _numbers(pair.difference)),
                    "over": pair.over,
                    "p": pair.p,
                    "adjusted": pair.adjusted,
                    "words": pair.words,
                }
                for pair in self.pairs
            ],
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        lines = [self.title]
        for rows in (self.values(), self.differences()):
            widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
            lines += [
                "  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)).rstrip()
                for row in rows
            ]
        return "\n".join([*lines, *self.notes])


def compare(entries: Sequence[Entry]) -> Comparison:
    """Every pair of encoders, or of groups of seeds; all were evaluated alike."""
    groups = [_group(members) for members in _grouped(entries)]
    pairs = _worded([_pair(a, b) for a, b in itertools.combinations(groups, 2)])
    first = entries[0].evaluation
    notes = [_COVERS[over] for over in _COVERS if any(group.over == over for group in groups)]
    notes += [f"{g.name}: {', '.join(g.members)}" for g in groups if len(g.members) > 1]
    told = sum(pair.difference is not None for pair in pairs)
    if told > 1:
        notes.append(
            "the words hold for the pairs of one table together (Holm), not over several tables; "
            "an interval for itself alone"
        )
    notes += _unlike(entries)
    notes += [f"{entry.name}: {note}" for entry in entries for note in entry.notes]
    score = first.score
    return Comparison(
        score.protocol, score.options, score.metric, first.data, score.n,
        tuple(groups), tuple(pairs), tuple(notes),
    )  # fmt: skip


def difference(a: Score, b: Score, level: float = 0.95) -> Difference | None:
    """The number of a minus that of b on the same images, with an interval over the images;
    None where nothing is known of single images.

    Right or wrong by Newcombe's interval, other numbers of each image by Student's, resampled
    ones by percentiles of the differences.
    """
    if (a.protocol, a.metric, a.images, a.n) != (b.protocol, b.metric, b.images, b.n):
        return None
    if a.each is not None and b.each is not None and len(a.each) == len(b.each):
        if all(np.isin(each, (0, 1)).all() for each in (a.each, b.each)):
            return paired(a.each, b.each, level)
        low, high = student_interval(np.subtract(a.each, b.each, dtype=np.float64), level)
        return Difference(a.value - b.value, low, high, a.n)
    draws = _paired_draws(a, b)
    if draws is None:
        return None
    return Difference(a.value - b.value, *spread(draws, level), a.n)


def _unlike(entries: Sequence[Entry]) -> Iterator[str]:
    """In what the encoders were not judged alike."""
    judged = [(entry.name, entry.evaluation.judged) for entry in entries]
    for what, each in (
        ("the images were of different sizes", [f"{one.size or '?'} px" for _, one in judged]),
        ("the precisions differ", [one.precision or "?" for _, one in judged]),
        ("the versions of selfsight differ", [one.version or "?" for _, one in judged]),
    ):
        if len(set(each)) > 1:
            names = (f"{name} {how}" for (name, _), how in zip(judged, each, strict=True))
            yield f"{what}: {', '.join(names)}"


def _grouped(entries: Sequence[Entry]) -> list[list[Entry]]:
    """Runs that differ only in their seed together; the same seed twice tells nothing new."""
    groups: list[list[Entry]] = []
    for entry in entries:
        for group in groups:
            alike = entry.recipe and entry.recipe == group[0].recipe
            if alike and entry.seed not in [other.seed for other in group]:
                group.append(entry)
                break
        else:
            groups.append([entry])
    return groups


def _group(members: list[Entry]) -> Group:
    scores = tuple(entry.evaluation.score for entry in members)
    name, names = members[0].name, tuple(entry.name for entry in members)
    if len(members) == 1:
        one = scores[0]
        return Group(name, names, scores, one.value, one.low, one.high, "test images")
    values = [score.value for score in scores]
    low, high = student_interval(values)
    name = f"{name} ({len(members)} seeds)"
    return Group(name, names, scores, float(np.mean(values)), low, high, "seeds")


def _pair(a: Group, b: Group) -> Pair:
    """Not yet worded, which needs all pairs."""
    if a.over != b.over:
        one = a.name if a.over == "test images" else b.name
        return Pair(
            a.name, b.name, None, None, 1, 1, f"cannot tell: {one} has one seed, train more"
        )
    at: Callable[[float], Difference | None]
    if a.over == "seeds":
        at = partial(_welch, a, b)
    else:
        at = partial(difference, a.scores[0], b.scores[0])
    found = at(0.95)
    if found is None:
        words = "cannot tell: the results of single test images are missing"
        return Pair(a.name, b.name, None, None, 1, 1, words)
    draws = None if a.over == "seeds" else _paired_draws(a.scores[0], b.scores[0])
    if draws is None:
        p = p_value(lambda level: (wider := at(level)) is not None and wider.significant)
    else:
        p = drawn_p_value(draws, found.n)
    return Pair(a.name, b.name, found, a.over, p, p, "")


def _welch(a: Group, b: Group, level: float) -> Difference:
    ours, theirs = ([score.value for score in group.scores] for group in (a, b))
    return welch(ours, theirs, level)


def _paired_draws(a: Score, b: Score) -> NDArray[np.float64] | None:
    """The difference on each of the resamples, where only those are known."""
    if a.each is not None and b.each is not None and len(a.each) == len(b.each):
        return None
    if a.draws is None or b.draws is None or len(a.draws) != len(b.draws):
        return None
    draws: NDArray[np.float64] = a.draws - b.draws
    return draws


def _worded(pairs: Sequence[Pair]) -> list[Pair]:
    """With what may be concluded, for all pairs together that can be told."""
    told = [place for place, pair in enumerate(pairs) if pair.difference is not None]
    adjusted = holm([pairs[place].p for place in told])
    worded = list(pairs)
    for place, p in zip(told, adjusted, strict=True):
        pair = pairs[place]
        assert pair.difference is not None
        # Of one comparison the interval decides, which is shown.
        found = pair.difference.significant if len(told) == 1 else p < _LIMIT
        words = "a difference" if found else "no difference shown"
        worded[place] = replace(pair, adjusted=p, words=words)
    return worded


def _numbers(found: Difference) -> dict[str, float]:
    return {"difference": found.value, "low": found.low, "high": found.high}
