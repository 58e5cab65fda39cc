"""What a record is compared with, and what may keep a source and us apart."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from golden.records import Arrays, Record, deviations

__all__ = ["Relation", "Unaccounted", "problems", "run", "stale", "wrong"]

# Takes a record's inputs and hyper-parameters by name, returns its outputs by name; what is
# recorded as grad_x is derived from "loss", grad_a_x from "a" or "a_x".
Adapter = Callable[..., Mapping[str, Any]]


class Unaccounted(Exception):
    """A record that nothing here explains."""


def _as_recorded(outputs: Arrays) -> Arrays:
    return outputs


@dataclass(frozen=True, kw_only=True)
class Relation:
    """How one source's convention for one method stands to ours.

    ours: our functions as our methods call them
    note: how the source differs, if it does
    theirs: our functions put together as the source does; None: its convention is not
        offered, and `differs` names the outputs that it changes
    when: where the note applies, by the record's inputs and hyper-parameters; None: it may
        apply anywhere
    aside: outputs that we have no counterpart of, and why
    read: brings the source's outputs into the form of ours
    """

    ours: Adapter
    note: str = ""
    theirs: Adapter | None = None
    differs: tuple[str, ...] = ()
    when: Callable[[Mapping[str, Any]], bool] | None = None
    aside: Mapping[str, str] = field(default_factory=dict)
    read: Callable[[Arrays], Arrays] = _as_recorded

    @property
    def optional(self) -> bool:
        """The note allows a difference without demanding one."""
        return bool(self.note) and self.theirs is None and self.when is None

    def applies(self, record: Record) -> bool:
        return bool(self.note) and (
            self.when is None or self.when({**record.inputs, **record.hyper})
        )


def run(adapter: Adapter, record: Record, wanted: set[str]) -> Arrays:
    """Our values of the wanted outputs."""
    inputs = {name: torch.tensor(value) for name, value in record.inputs.items()}
    try:
        inspect.signature(adapter).bind(**inputs, **record.hyper)
    except TypeError as error:
        raise Unaccounted(f"the adapter does not fit the record: {error}") from None
    grads = {name: _differentiated(name, set(inputs)) for name in wanted if name[:5] == "grad_"}
    for x in {x for _, x in grads.values()}:
        inputs[x].requires_grad_()
    outputs = dict(adapter(**inputs, **record.hyper))
    for name, (scalar, x) in grads.items():
        if name not in outputs:
            loss = outputs[scalar] if scalar in outputs else outputs[f"{scalar}_{x}"]
            (outputs[name],) = torch.autograd.grad(
                loss.sum(), inputs[x], retain_graph=True, allow_unused=True, materialize_grads=True
            )
    missing = sorted(wanted - set(outputs))
    if missing:
        raise Unaccounted(f"the adapter returns no {', '.join(missing)}")
    return {
        name: value.detach().numpy() if isinstance(value, Tensor) else np.asarray(value)
        for name, value in outputs.items()
    }


def _differentiated(name: str, inputs: set[str]) -> tuple[str, str]:
    """grad_x → (loss, x); grad_a_x → (a, x)."""
    rest = name.removeprefix("grad_")
    if rest in inputs:
        return "loss", rest
    for x in sorted(inputs, key=len, reverse=True):
        if rest.endswith(f"_{x}"):
            return rest.removesuffix(f"_{x}"), x
    raise Unaccounted(f"{name} belongs to none of the inputs {', '.join(sorted(inputs))}")


def wrong(adapter: Adapter, relation: Relation, record: Record) -> dict[str, str]:
    """Outputs that the adapter misses, with the first thing wrong with each."""
    recorded = {
        name: value
        for name, value in relation.read(record.outputs).items()
        if name.split("__")[0] not in relation.aside
    }
    ours = run(adapter, record, record.wanted - set(relation.aside))
    answered = sorted(set(relation.aside) & set(ours))
    if answered:
        raise Unaccounted(f"{', '.join(answered)} has a counterpart after all")
    return dict(reversed(list(deviations(record, recorded, ours))))


def problems(relation: Relation, record: Record) -> list[str]:
    """Why the record is not accounted for; empty when it is."""
    try:
        if not relation.applies(record):
            return list(wrong(relation.ours, relation, record).values())
        if relation.theirs is not None:
            return list(wrong(relation.theirs, relation, record).values())
        off = wrong(relation.ours, relation, record)
    except (Unaccounted, AssertionError) as error:
        return [str(error)]
    found = [text for name, text in off.items() if name not in relation.differs]
    if not relation.optional and not set(off) & set(relation.differs):
        found.append(f"agrees, although noted: {relation.note}")
    return found


def stale(relation: Relation, records: list[Record]) -> bool:
    """Whether a note stands beside a source that agrees with us wherever it applies; of a
    difference that is only allowed, one record alone tells nothing."""
    noted = [record for record in records if record.finite and relation.applies(record)]
    if len(noted) <= relation.optional:
        return False
    return not any(wrong(relation.ours, relation, record) for record in noted)
