"""Golden records: inputs, hyper-parameters and what somebody's code returned for them."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

__all__ = ["Arrays", "Record", "deviations", "load"]

Arrays = Mapping[str, np.ndarray]

# What is left of a large array: <output>__<digest>.
DIGESTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "first3rows": lambda a: a.reshape(-1, a.shape[-1])[:3],
    "l2norm": lambda a: np.sqrt(np.square(a).sum()),
    "sum": lambda a: a.sum(),
}


@dataclass(frozen=True, eq=False)
class Record:
    """single: outputs that were stored in float32; rows: how many leading rows a digested
    array had, where another source's copy of it tells."""

    method: str
    source: str
    case: str
    finite: bool
    hyper: Mapping[str, object]
    tolerance: Mapping[str, float]
    inputs: Arrays
    outputs: Arrays
    single: frozenset[str]
    rows: Mapping[str, int]

    @property
    def name(self) -> str:
        return f"{self.method}-{self.source}-{self.case}"

    @property
    def wanted(self) -> set[str]:
        """The outputs by name, digests counted as what they are digests of."""
        return {name.split("__")[0] for name in self.outputs}


def load(folder: Path) -> list[Record]:
    """Every record of the folder's index. An output of size 0 was not recorded."""
    entries = json.loads((folder / "index.json").read_text("utf-8"))["records"]
    files = {}
    for name in sorted({entry["file"] for entry in entries}):
        with np.load(folder / name, allow_pickle=False) as stored:
            files[name] = {key: stored[key] for key in stored.files}
    lengths: dict[tuple[str, str], dict[str, int]] = {}
    for entry in entries:
        whole = lengths.setdefault((entry["method"], entry["case"]), {})
        for name, key in entry["outputs"].items():
            array = files[entry["file"]][key]
            if array.ndim and "__" not in name:
                whole[name] = len(array)
    return [
        Record(
            *(entry[name] for name in ("method", "source", "case", "finite")),
            hyper=entry["hyper_parameters"],
            tolerance=entry["tolerance"],
            inputs={name: files[entry["file"]][key] for name, key in entry["inputs"].items()},
            outputs={
                name: files[entry["file"]][key]
                for name, key in entry["outputs"].items()
                if files[entry["file"]][key].size
            },
            single=frozenset(n for n, key in entry["outputs"].items() if key.endswith("@f32")),
            rows=lengths[entry["method"], entry["case"]],
        )
        for entry in entries
    ]


def deviations(record: Record, recorded: Arrays, ours: Arrays) -> Iterator[tuple[str, str]]:
    """(output, what is wrong with it) for every recorded output that ours misses."""
    for name, theirs in recorded.items():
        base, _, digest = name.partition("__")
        if digest and digest not in DIGESTS:
            yield base, f"{name}: unknown digest"
            continue
        array = np.asarray(ours[base], np.float64)
        if not np.isfinite(array).all():
            yield base, f"{name}: ours is not finite"
        elif record.finite:
            # Of many steps a source may have kept the gradient of the first alone.
            rows = record.rows.get(base) if digest else len(theirs) if theirs.ndim else None
            if base.startswith("grad_") and array.ndim and rows:
                array = array[:rows]
            wrong = _distance(record, name, array, np.asarray(theirs, np.float64), digest)
            if wrong:
                yield base, f"{name}: {wrong}"


def _distance(record: Record, name: str, ours: np.ndarray, theirs: np.ndarray, digest: str) -> str:
    grad = "grad_" if name.startswith("grad_") else ""
    rtol, atol = record.tolerance[f"{grad}rtol"], record.tolerance[f"{grad}atol"]
    if name in record.single:
        rtol = max(rtol, 1e-6)
    largest = np.abs(ours).max(initial=0) if digest else np.abs(theirs).max(initial=0)
    allowed = atol + rtol * largest
    if digest:
        # An error of every entry adds up in a norm and in a sum.
        allowed *= {"first3rows": 1, "l2norm": np.sqrt(ours.size), "sum": ours.size}[digest]
        ours = DIGESTS[digest](ours)
    if ours.shape != theirs.shape:
        return f"shape {ours.shape}, recorded {theirs.shape}"
    distance = np.abs(ours - theirs).max(initial=0)
    return "" if distance <= allowed else f"off by {distance:.3g}, allowed {allowed:.3g}"
