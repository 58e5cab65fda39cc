"""The verdict on a run: states told apart by meters that were read while it trained.

What the limits rest on, with s = spread · √D (1 isotropic, 0 constant), r the centred
effective rank, m = min(N − 1, D) the most it can be, and c the scale of z before it is
normalised. The runs are those of benchmarks/learn.py with seed 0 (N = 64, 10 or 20 epochs of
10,000 CIFAR-10 images, eleven methods and twelve ablations), and shorter ones before them, N to
128; the limits were chosen in view of them, and the other seeds were not looked at.

- s of z falls to 0.25 of its first value, 0.2, while all is well (DINO, the lowest; 0.44
  DeepCluster-v2). After an epoch of what collapses it has fallen to 0.19 (SwAV without
  equipartition) and to 0.04 to 0.07 (BYOL without predictor, DINO without centring or
  sharpening). Constant plus noise of 0.001 has s = 0.001, yet full r: so s counts beside r.
- r of z falls to 0.18 of its first value and 0.11 m while all is well (SwAV, the lowest).
  Without stop-gradient SimSiam's falls to 0.06, 0.05 m, within an epoch, while the last
  BatchNorm still keeps s at 0.5: so a fall of r counts too.
- Only if the loss improves meanwhile, or is not known: DINO's r of z falls to 0.11 of its first
  value and 4 of 63, at a loss that stands still, and DINO learns. SimSiam's collapse is what
  lowers its loss. For the same reason an r that was always low proves nothing.
- r of h is no such sign: a masked autoencoder's falls from 28 to 6.4 of 63 while all is
  well. Hence its lower limit.
- A loss that does not normalise z can shrink it to nothing, which neither s nor r sees: VICReg
  without its variance term, c at 0.06 of its first value after an epoch (0.72 with the term). So
  a fall of c counts.
- A low reading may precede a recovery: the last three have to agree and not to rise. An s that
  was low from the first reading on lost nothing, and is believed after twenty.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from selfsight.errors import ConfigError, suggestion

__all__ = ["HEALTHY_IS_NOT_USEFUL", "Reading", "State", "Verdict", "verdict", "verdicts"]

State = Literal["healthy", "dimensional collapse", "complete collapse", "diverging", "uncertain"]

HEALTHY_IS_NOT_USEFUL = (
    "Healthy is not the same as useful: label 100 images and run `selfsight evaluate`."
)

_AGREEING = 3  # readings that have to agree
_PATIENCE = 20  # readings after which what was always low is believed
_SAMPLES = 32  # fewer samples bound the rank too much to say anything
_CHANNELS = 8
_CONSTANT = 0.005  # s that rounding, not images, explains
_ONE_DIRECTION = 1.5  # r of what varies along one direction, with some noise
_KEPT = 0.2  # of the first reading's s
_KEPT_RANK = 0.12  # of the first reading's r
_SHRUNK = 0.1  # of the first reading's c
_RISING = 1.25  # over the readings that have to agree
_RISEN = 3.0  # times the early loss; losses that follow a teacher may rise by themselves


@dataclass(frozen=True)
class _Limits:
    """spread: of s; share: of r, as a part of m. Lower is low."""

    spread: float
    share: float


_LIMITS = {"h": _Limits(spread=0.02, share=0.02), "z": _Limits(spread=0.18, share=0.12)}
_ALWAYS = 0.05  # s of z that was never higher


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Meters of one embedding at one step.

    spread: mean channel deviation of ẑ, uncentred (`meters.spread`)
    rank: centred effective rank (`meters.effective_rank(…, centred=True)`)
    dim, n: channels, and samples that the meters saw
    loss: of the step, if known
    scale: mean channel deviation of z itself (`meters.scale`), if known
    correlation, alignment, uniformity: shown, not judged
    """

    step: int
    spread: float
    rank: float
    dim: int
    n: int
    loss: float | None = None
    scale: float | None = None
    correlation: float | None = None
    alignment: float | None = None
    uniformity: float | None = None

    @property
    def isotropy(self) -> float:
        """s: 1 isotropic, 0 constant."""
        return self.spread * math.sqrt(self.dim)

    @property
    def attainable(self) -> int:
        """m: the most that a centred rank can be."""
        return min(self.n - 1, self.dim)


@dataclass(frozen=True)
class Verdict:
    """evidence: the numbers beside their limits; advice: what to do. One line each."""

    name: str
    state: State
    evidence: str
    advice: str

    def __str__(self) -> str:
        return f"{self.name}: {self.state}. {self.evidence}. {self.advice}"


def verdict(readings: Sequence[Reading], name: Literal["h", "z"] = "z") -> Verdict:
    """Judge one embedding by its history, oldest reading first.

    name: h, the encoder's embedding, or z, the projection
    """
    if name not in _LIMITS:
        raise ConfigError(f"unknown embedding {name}; known: h, z{suggestion(name, _LIMITS)}")
    if not readings:
        return _uncertain(name, "no readings")
    loss = _loss(readings)
    if loss is not None:
        return Verdict(name, "diverging", loss, _ADVICE["diverging"])
    last, newest = readings[-_AGREEING:], readings[-1]
    if not all(math.isfinite(r.spread) and math.isfinite(r.rank) for r in last):
        return Verdict(
            name, "diverging", f"{name} is not finite at step {newest.step}", _ADVICE["diverging"]
        )
    if len(last) < _AGREEING:
        why = f"too short a run to judge: {len(readings)} of {_AGREEING} readings"
        return Verdict(name, "uncertain", why, "Train longer.")
    if newest.n < _SAMPLES or newest.dim < _CHANNELS:
        why = f"{newest.n} samples of {newest.dim} channels, too few to judge"
        advice = f"Train with a batch of {_SAMPLES} or more."
        return Verdict(name, "uncertain", why, advice)
    return _judged(name, readings)


def verdicts(metrics: Iterable[Mapping[str, Any]]) -> dict[str, Verdict]:
    """One for h and, where the run has one, one for z, from what the watchers logged.

    metrics: one row per step, oldest first: step, loss and, in the steps that were looked
        at, h_spread, h_centred_rank, h_dim, h_samples and so on
    """
    rows = list(metrics)
    names: list[Literal["h", "z"]] = ["h", "z"]
    found: dict[str, Verdict] = {}
    for name in names:
        readings = [_reading(row, name) for row in rows if row.get(f"{name}_dim")]
        if not readings and name == "z":
            continue
        found[name] = verdict(readings, name)
        if len(rows) >= _AGREEING and all(row.get("rejected") for row in rows[-_AGREEING:]):
            why = f"loss or gradients of the last steps, up to {rows[-1]['step']}, are not finite"
            found[name] = Verdict(name, "diverging", why, _ADVICE["diverging"])
    return found


def _reading(row: Mapping[str, Any], name: str) -> Reading:
    def number(key: str) -> float:
        # JSON has no nan: a meter or a loss that was not finite may be null.
        value = row.get(key)
        return math.nan if value is None else float(value)

    return Reading(
        step=int(row["step"]),
        spread=number(f"{name}_spread"),
        rank=number(f"{name}_centred_rank"),
        dim=int(row[f"{name}_dim"]),
        n=int(row[f"{name}_samples"]),
        loss=number("loss") if "loss" in row else None,
        scale=number(f"{name}_scale") if f"{name}_scale" in row else None,
        correlation=row.get(f"{name}_correlation"),
        alignment=row.get(f"{name}_alignment"),
        uniformity=row.get(f"{name}_uniformity"),
    )


def _judged(name: str, readings: Sequence[Reading]) -> Verdict:
    limits, newest = _LIMITS[name], readings[-1]
    few = max(_ONE_DIRECTION, limits.share * newest.attainable)
    s, r = [reading.isotropy for reading in readings], [reading.rank for reading in readings]
    evidence = (
        f"spread·√D {s[-1]:.3g} (limit {limits.spread:g}), centred rank {r[-1]:.3g} of "
        f"{newest.attainable} (limit {few:.3g}; {r[0]:.3g} at first) at step {newest.step}"
    )
    found: list[tuple[bool | None, State]] = [
        (max(s[-_AGREEING:]) < _CONSTANT, "complete collapse"),
        (_collapsed(s, limits.spread, _KEPT, always=min(limits.spread, _ALWAYS)),
         "complete collapse"),
        (_collapsed(r, _ONE_DIRECTION, _KEPT, always=_ONE_DIRECTION), "complete collapse"),
        (name == "z" and _shrunk(readings), "complete collapse"),
        (_collapsed(r, few, _KEPT_RANK if _improved(readings) else 0.0), "dimensional collapse"),
    ]  # fmt: skip
    for answer, state in found:
        if answer:
            return Verdict(name, state, evidence, _ADVICE[state])
    if any(answer is None for answer, _ in found):
        return _uncertain(name, f"low, but from the start or rising: {evidence}")
    return Verdict(name, "healthy", evidence, _ADVICE["healthy"])


def _collapsed(
    values: Sequence[float], limit: float, kept: float, always: float = 0.0
) -> bool | None:
    """Whether `values` are below `limit` and have fallen to a `kept` share of the first, or
    were below `always` for long; None where they are low without proof."""
    last = values[-_AGREEING:]
    if max(last) >= limit:
        return False
    if last[-1] > _RISING * last[0]:
        return None
    return last[-1] < kept * values[0] or _long(values, always) or None


def _shrunk(readings: Sequence[Reading]) -> bool:
    """Whether z has lost nearly all of its scale while the loss got better."""
    scales = [r.scale for r in readings if r.scale is not None]
    if len(scales) < len(readings) or not _improved(readings):
        return False
    return max(scales[-_AGREEING:]) < _SHRUNK * scales[0]


def _long(values: Sequence[float], limit: float) -> bool:
    return len(values) >= _PATIENCE and max(values[-_PATIENCE:]) < limit


def _improved(readings: Sequence[Reading]) -> bool:
    """The loss fell by a tenth of itself, or of one; unknown losses count as fallen."""
    losses = [r.loss for r in readings if r.loss is not None and math.isfinite(r.loss)]
    if len(losses) < _AGREEING:
        return True
    return statistics.median(losses[-_AGREEING:]) < losses[0] - 0.1 * max(abs(losses[0]), 1)


def _loss(readings: Sequence[Reading]) -> str | None:
    """What is wrong with the loss, if anything."""
    newest = readings[-1]
    if newest.loss is not None and not math.isfinite(newest.loss):
        return f"the loss is {newest.loss} at step {newest.step}"
    losses = [r.loss for r in readings if r.loss is not None and math.isfinite(r.loss)]
    if len(losses) < 2 * _AGREEING:
        return None
    early = max(abs(loss) for loss in losses[:_AGREEING])
    late = statistics.median(losses[-_AGREEING:])
    # Plus one, as a loss may start at almost nothing.
    limit = _RISEN * early + 1
    if late <= limit:
        return None
    return f"the loss rose from {early:.3g} to {late:.3g} (limit {limit:.3g}) at step {newest.step}"


def _uncertain(name: str, why: str) -> Verdict:
    return Verdict(name, "uncertain", why, _ADVICE["uncertain"])


_ADVICE: dict[State, str] = {
    "healthy": HEALTHY_IS_NOT_USEFUL,
    "dimensional collapse": (
        "Few directions are used: lower the learning rate, enlarge the batch, weaken the views, "
        "or try another method."
    ),
    "complete collapse": (
        "All images map to one place: check that the images differ, that stop-gradient, teacher "
        "and predictor are in place, and lower the learning rate."
    ),
    "diverging": "Lower the learning rate, lengthen the warm-up, or train in fp32.",
    "uncertain": "Train on and ask again; if it stays so after the warm-up, look at the images.",
}
