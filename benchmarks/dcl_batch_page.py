"""From the results of dcl_batch.py to docs/dcl_batch.md."""

from collections.abc import Mapping
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from dcl_batch import BATCHES, HERE, LOSSES, RESULTS, RUNS
from learn_page import (
    accuracy,
    circumstances,
    correct,
    difference,
    gathered,
    percent,
    points,
    spread,
    table,
)
from protocol import Entry, Protocol

PAGE = HERE.parent / "docs" / "dcl_batch.md"
PROBE = "knn"

Runs = Mapping[str, tuple[Entry, Protocol]]
Results = dict[str, dict[int, dict[str, Any]]]  # name of a run → seed → result


def collected(runs: Runs = RUNS, folder: Path = RESULTS) -> Results:
    found: Results = {}
    for entry, protocol in runs.values():
        found |= gathered([entry], protocol, folder)
    return found


def shrinkage(results: Results, loss: str) -> dict[str, float] | None:
    """The gain over SimCLR in the smallest batch less that in the largest, on the same images.

    A mean over the seeds of each image, with the interval of its mean over the images.
    """
    names = [f"{name}_{batch}" for batch in (BATCHES[0], BATCHES[-1]) for name in (loss, "simclr")]
    seeds = set.intersection(*(set(results.get(name, {})) for name in names))
    each = []
    for seed in sorted(seeds):
        four = [results[name][seed] for name in names]
        if any("trained" not in result["scores"] for result in four):
            return None
        a, b, c, d = (correct(result, "trained", PROBE).astype(float) for result in four)
        each.append((a - b) - (c - d))
    if not each:
        return None
    images = np.mean(each, axis=0)
    value = float(images.mean())
    reach = NormalDist().inv_cdf(0.975) * float(images.std(ddof=1)) / len(images) ** 0.5
    return {"value": value, "low": value - reach, "high": value + reach}


def answer(shrunk: dict[str, float] | None) -> str:
    if shrunk is None:
        return "not yet known"
    if shrunk["low"] > 0:
        return "it shrinks"
    return "it grows" if shrunk["high"] < 0 else "not resolved at this scale"


def coupling(results: dict[int, dict[str, Any]]) -> str:
    """Mean and variation of q over the second half of training, `0.62, 0.41`."""
    found = []
    for result in results.values():
        rows = [row for row in result["readings"] if "coupling" in row]
        found += [(row["coupling"], row["coupling_variation"]) for row in rows[len(rows) // 2 :]]
    return ", ".join(f"{value:.2f}" for value in np.mean(found, axis=0)) if found else "–"


def accuracy_table(results: Results) -> str:
    body = []
    for batch in BATCHES:
        row = [str(batch)]
        for loss in LOSSES:
            own = results.get(f"{loss}_{batch}", {})
            score = accuracy(own, "trained", PROBE)
            row += [percent(score) if own else "–", spread(score)]
        body.append(row)
    columns = ["batch", *(word for loss in LOSSES for word in (f"{loss} kNN %", "each seed"))]
    return table(columns, body)


def gain_table(results: Results) -> str:
    body = []
    for batch in BATCHES:
        twin = results.get(f"simclr_{batch}", {})
        gains = [
            points(difference(results.get(f"{loss}_{batch}", {}), twin, PROBE))
            for loss in LOSSES if loss != "simclr"
        ]  # fmt: skip
        told = [coupling(results.get(f"{loss}_{batch}", {})) for loss in LOSSES]
        body.append([str(batch), *gains, *told])
    gains = [f"{loss} − simclr" for loss in LOSSES if loss != "simclr"]
    return table(["batch", *gains, *(f"q of {loss}" for loss in LOSSES)], body)


def page(results: Results, runs: Runs = RUNS) -> str:
    entry, protocol = next(iter(runs.values()))
    missing = [name for name, (_, own) in runs.items()
               if len(results.get(name, {})) < len(own.seeds)]  # fmt: skip
    state = f"not all are done for {', '.join(missing)}" if missing else "all are done"
    seeds = ", ".join(map(str, protocol.seeds))
    rates = ", ".join(f"{runs[f'simclr_{batch}'][0].lr:.2g} at {batch}" for batch in BATCHES)
    claims = [
        [loss, points(shrinkage(results, loss)), answer(shrinkage(results, loss))]
        for loss in LOSSES if loss != "simclr"
    ]  # fmt: skip
    options = " ".join(f"{name}={value}" for name, value in entry.options.items())
    return f"""\
# Decoupling and the batch

<!-- Written by benchmarks/dcl_batch.py --table from benchmarks/results/dcl_batch; do not edit. -->

InfoNCE's gradient is that of the decoupled loss ([`dcl`](methods/dcl.md)) times q, one less the
probability of the positive. In a small batch the positive soon stands out among few negatives: q
is near 0 for many images, which then teach nothing. So, says the paper (Yeh et al. 2021), what DCL
gains over SimCLR shrinks as the batch grows.

{table(["loss", f"gain at {BATCHES[0]} less gain at {BATCHES[-1]}", ""], claims)}

In points of kNN accuracy on the test images, the mean over the seeds, with the 95% interval over
the images of that mean.

## Gains

{gain_table(results)}

A gain is the paired difference on the same images and seed, and its interval the mean of the
seeds' intervals: it is of the images. q is given as its mean and its deviation over its mean, over
the second half of training.

## Accuracies

{accuracy_table(results)}

## How it was run

{protocol.images:,} training images of CIFAR-10 at {protocol.size} px for {protocol.epochs} epochs,
whatever the batch, so that a larger one takes fewer steps. {entry.optimizer}, at a rate that
follows the root of the batch: {rates}. {options} and the rate at 64 were tuned for SimCLR, nothing
for DCL; else as in [learning.md](learning.md). Seeds: {seeds}; {state}. {circumstances(results)}

```text
python benchmarks/dcl_batch.py --data cifar10_jpeg.npz --jobs 2
python benchmarks/dcl_batch.py --table
```
"""


def publish(page_file: Path = PAGE, folder: Path = RESULTS) -> None:
    results = collected(RUNS, folder)
    if results:
        page_file.write_text(page(results), encoding="utf-8")
