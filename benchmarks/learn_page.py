"""From the results of learn.py to docs/learning.md and results/learn.json."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from learn import HERE, PROBES, RESULTS, unpacked, verdict
from protocol import ENTRIES, FAILURES, PROTOCOL, Entry, Protocol, fingerprint

from selfsight.evaluate import interval, paired

PAGE = HERE.parent / "docs" / "learning.md"
ROWS = HERE / "results" / "learn.json"
CONTROLS = {"lr0": "lr = 0", "untrained": "untrained", "raw": "raw pixels"}

Result = dict[str, Any]


def gathered(
    entries: Sequence[Entry], protocol: Protocol, folder: Path
) -> dict[str, dict[int, Result]]:
    """name → seed → result, of those that were made under this protocol."""
    found: dict[str, dict[int, Result]] = {}
    for entry in entries:
        for seed in protocol.seeds:
            file = folder / f"{entry.name}-{seed}.json"
            if file.is_file():
                result = json.loads(file.read_bytes())
                if result["fingerprint"] == fingerprint(entry, protocol):
                    found.setdefault(entry.name, {})[seed] = result
    return found


def correct(result: Result, who: str, probe: str) -> np.ndarray:
    score = result["scores"][who][probe]
    return unpacked(score["correct"], score["n"])


def accuracy(results: dict[int, Result], who: str, probe: str) -> dict[str, Any] | None:
    """Mean over the seeds; None when there are none or one diverged."""
    if not results or any(who not in result["scores"] for result in results.values()):
        return None
    seeds = [correct(result, who, probe) for result in results.values()]
    low, high = np.mean([interval(right) for right in seeds], axis=0).tolist()
    each = [float(right.mean()) for right in seeds]
    return {"mean": float(np.mean(each)), "low": low, "high": high, "each": each}


def difference(
    a: dict[int, Result], b: dict[int, Result], probe: str, *, against: str = "trained"
) -> dict[str, float] | None:
    """Paired on the same images and seed, then the mean over the seeds that both have.

    Every seed is tested on the same images, so three seeds are not three times the evidence:
    the mean of their intervals is right if their errors agree wholly, and too wide otherwise.
    """
    both = sorted(set(a) & set(b))
    if not both or any("trained" not in a[s]["scores"] or against not in b[s]["scores"]
                       for s in both):  # fmt: skip
        return None
    found = [paired(correct(a[s], "trained", probe), correct(b[s], against, probe)) for s in both]
    return {name: float(np.mean([getattr(d, name) for d in found]))
            for name in ("value", "low", "high")}  # fmt: skip


def states(results: dict[int, Result], steps: int | None) -> dict[str, list[str]]:
    """h, z → the verdict of each seed after so many steps, or at the end."""
    told: dict[str, list[str]] = {}
    for result in results.values():
        for name, found in verdict(result, steps).items():
            told.setdefault(name, []).append(found.state)
    return told


def judged(entry: Entry, effects: dict[str, Any]) -> bool:
    """The rule of protocol.py."""
    needed = ["lr0", "untrained", *(["raw"] if entry.beats_pixels else [])]
    return all(effects[name] is not None and effects[name]["low"] > 0 for name in needed)


def rows(
    entries: Sequence[Entry], protocol: Protocol, results: dict[str, dict[int, Result]]
) -> list[dict[str, Any]]:
    """One per entry that has a result, in the protocol's order."""
    found = []
    for entry in entries:
        own = results.get(entry.name)
        if own is None:
            continue
        effects = {name: difference(own, own, entry.measure, against=name) for name in CONTROLS}
        twin = results.get(entry.twin or "", {})
        below = difference(own, twin, entry.measure)
        simclr = results.get("simclr", {}) if entry.name != "simclr" else {}
        per_epoch = protocol.images // protocol.batch
        # The reading at step `per_epoch` sees the weights as the first epoch left them.
        told = {"first": states(own, per_epoch + 1), "last": states(own, None)}
        said = {s for when in told.values() for each in when.values() for s in each}
        diverged = sum(result["diverged"] is not None for result in own.values())
        found.append({
            "name": entry.name,
            "method": entry.method,
            "encoder": entry.encoder,
            "seeds": sorted(own),
            "views": protocol.views,
            "measure": entry.measure,
            **{probe: accuracy(own, "trained", probe) for probe in PROBES},
            "effects": effects,
            "simclr": difference(own, simclr, entry.measure),
            "passes": judged(entry, effects),
            "diverged": diverged,
            "twin": entry.twin,
            "twin_knn": accuracy({s: twin[s] for s in own if s in twin}, "trained", "knn"),
            "expect": entry.expect,
            "difference": below,
            "reproduced": bool(diverged or (below and below["high"] < 0)) if twin else None,
            "verdict": told,
            "seen": bool(said - {"healthy", "uncertain"}),
        })  # fmt: skip
    return found


def percent(score: dict[str, Any] | None) -> str:
    """`47.0 [46.0, 48.0]`"""
    if score is None:
        return "diverged"
    return f"{100 * score['mean']:.1f} [{100 * score['low']:.1f}, {100 * score['high']:.1f}]"


def spread(score: dict[str, Any] | None) -> str:
    """Each seed's accuracy."""
    return " ".join(f"{100 * each:.1f}" for each in score["each"]) if score else "–"


def points(effect: dict[str, float] | None) -> str:
    """`+4.1 [+3.2, +5.0]`"""
    if effect is None:
        return "–"
    return "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * effect[k] for k in ("value", "low", "high")))


def shown(told: dict[str, list[str]]) -> str:
    """`h healthy, z dimensional collapse 2/3`: how many seeds, where they disagree."""
    parts = []
    for name, each in told.items():
        counts = {state: each.count(state) for state in sorted(set(each), key=each.index)}
        if len(counts) == 1:
            parts.append(f"{name} {each[0]}")
        else:
            said = " or ".join(f"{state} {n}/{len(each)}" for state, n in counts.items())
            parts.append(f"{name} {said}")
    return ", ".join(parts)


def table(columns: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [columns, ["-"] * len(columns), *body])


def sparkline(values: Sequence[float]) -> str:
    """Eight heights between the least and the greatest."""
    finite = [v for v in values if np.isfinite(v)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    scale = 7 / (high - low) if high > low else 0.0
    return "".join("▁▂▃▄▅▆▇█"[round((v - low) * scale)] if np.isfinite(v) else "×" for v in values)


def curves(name: str, result: Result) -> list[str]:
    """Loss, spread and rank of one run, from its first reading to its last."""
    lines = []
    for key in ("loss", "h_spread", "h_centred_rank", "z_spread", "z_centred_rank",
                "teacher_entropy"):  # fmt: skip
        values = [float(p[key]) for p in result["readings"] if p.get(key) is not None]
        if values:
            ends = f"{values[0]:>8.3g} → {values[-1]:<8.3g}"
            lines.append(
                f"{name:<34} {key:<16} {ends} {sparkline(values[:: len(values) // 30 + 1])}"
            )
    return lines


def intact_table(found: Sequence[dict[str, Any]]) -> str:
    columns = ["method", "encoder", "seeds", "kNN %", "each seed", "linear %", "counted by",
               *(f"− {label}" for label in CONTROLS.values()), "− SimCLR", "verdict at the end",
               "passes"]  # fmt: skip
    body = [
        [row["name"], row["encoder"], str(len(row["seeds"])), percent(row["knn"]),
         spread(row["knn"]), percent(row["linear"]), row["measure"],
         *(points(row["effects"][name]) for name in CONTROLS), points(row["simclr"]),
         shown(row["verdict"]["last"]), "yes" if row["passes"] else "**no**"]
        for row in found
    ]  # fmt: skip
    return table(columns, body)


def failure_table(found: Sequence[dict[str, Any]], twins: dict[str, dict[str, Any]]) -> str:
    columns = ["ablation", "the paper", "seeds", "kNN %", "twin's kNN %", "difference",
               "reproduced", "verdict after epoch 1", "at the end", "twin after epoch 1",
               "twin at the end", "seen", "passes"]  # fmt: skip
    body = []
    for row in found:
        twin = twins.get(row["twin"])
        answer = {True: "yes", False: "**not at this scale**", None: "–"}[row["reproduced"]]
        beside = [shown(twin["verdict"][when]) if twin else "–" for when in ("first", "last")]
        body.append(
            [row["name"], row["expect"], str(len(row["seeds"])), percent(row["knn"]),
             percent(row["twin_knn"]) if twin else "–", points(row["difference"]), answer,
             shown(row["verdict"]["first"]), shown(row["verdict"]["last"]), *beside,
             "yes" if row["seen"] else "no", "yes" if row["passes"] else "no"]
        )  # fmt: skip
    return table(columns, body)


def recipe_table(entries: Sequence[Entry], protocol: Protocol) -> str:
    columns = ["entry", "epochs", "optimizer", "lr", "weight decay", "warm-up", "options", "views"]
    body = []
    for entry in entries:
        told = [" ".join(f"{k}={v}" for k, v in part.items()) or "the paper's"
                for part in (entry.options, entry.view)]  # fmt: skip
        body.append([entry.name, str(entry.epochs(protocol)), entry.optimizer, f"{entry.lr:g}",
                     f"{entry.weight_decay:g}", f"{entry.warmup:g}", *told])  # fmt: skip
    return table(columns, body)


def circumstances(results: dict[str, dict[int, Result]]) -> str:
    """What the numbers were made with."""
    every = [result for seeds in results.values() for result in seeds.values()]
    if not every:
        return "There are no results yet."
    cpus = sorted({result["cpu"] for result in every})
    versions = sorted({" ".join(f"{k} {v}" for k, v in r["versions"].items()) for r in every})
    precisions = sorted({result["config"]["precision"] for result in every})
    threads = sorted({result["threads"] for result in every})
    hours = sum(sum(result["seconds"].values()) for result in every) / 3600
    return (
        f"Made on {', '.join(cpus)}, {'/'.join(map(str, threads))} thread per run, "
        f"{'/'.join(precisions)}, in {hours:.1f} hours of processes; {'; '.join(versions)}."
    )


def page(
    entries: Sequence[Entry],
    failures: Sequence[Entry],
    protocol: Protocol,
    results: dict[str, dict[int, Result]],
) -> str:
    intact, broken = rows(entries, protocol, results), rows(failures, protocol, results)
    missing = [e.name for e in [*entries, *failures]
               if len(results.get(e.name, {})) < len(protocol.seeds)]  # fmt: skip
    n = next((r["scores"]["raw"]["knn"]["n"] for s in results.values() for r in s.values()), 0)
    raw = next((r["scores"]["raw"] for s in results.values() for r in s.values()), None)
    passed = sum(row["passes"] for row in intact)
    came = sum(bool(row["reproduced"]) for row in broken)
    surprising = [row for row in intact if not row["passes"]]
    surprising += [row for row in broken if not row["reproduced"]]
    lines = []
    for row in surprising:
        for name in dict.fromkeys([row["name"], row["twin"]]):
            for seed, result in list(results.get(name or "", {}).items())[:1]:
                lines += [*curves(f"{name}, seed {seed}", result), ""]
    shown_curves = "\n".join(lines).rstrip() or "None."
    pixel = ""
    if raw:
        knn, linear = (100 * raw[probe]["accuracy"] for probe in PROBES)
        pixel = f"\nRaw pixels reach {knn:.1f}% by kNN and {linear:.1f}% by the linear probe."
    seeds = ", ".join(map(str, protocol.seeds))
    state = f"not all are done for {', '.join(missing)}" if missing else "all are done"
    return f"""\
# Does it learn?

<!-- Written by benchmarks/learn.py --table from benchmarks/results/learn; do not edit. -->

{passed} of {len(intact)} methods pass; {came} of {len(broken)} predicted failures come about.

Each method had the same small budget: {protocol.images:,} unlabelled training images of CIFAR-10
at {protocol.size} px (the first {protocol.per_class:,} of each class) and {protocol.views:,}
back-propagated views in batches of {protocol.batch}: two per image, or as many as the method
takes, with epochs to match: twice as many for one view, half for four; no multi-crop. That is far
less than any paper spends: the table asks whether a method learns, not which is best. Probes learn
from the same {protocol.images:,} images with their labels and are tested on {n:,} test images,
which nothing was tuned on. CIFAR-10 was read from JPEGs, which costs some accuracy against
published numbers.{pixel}

```text
python benchmarks/learn.py --data cifar10_jpeg.npz --jobs 2
python benchmarks/learn.py --table
```

{circumstances(results)}
Seeds: {seeds}; {state}.

## Methods

A method passes when the 95% interval of its paired difference lies above zero: against the
encoder before training, against the same steps at a learning rate of zero, in which only
BatchNorm's statistics move, and, unless it paints what was hidden, against raw pixels. `counted
by` says by which probe; the differences are in points of its accuracy. Against SimCLR the budget
of back-propagated views is equal; the encoder of a masked autoencoder is another one.

{intact_table(intact)}

An accuracy is the mean over the seeds. All seeds are tested on the same images, so an interval is
the mean of the seeds' intervals, as if their errors agreed: it is of the images, {n:,} of them,
and the spread over seeds stands beside it. Lower-case h is the encoder's output, z the
projection; [evaluate.md](evaluate.md) tells how they are judged.

## Failures that papers predict

Each ablation differs from its intact twin in what its name says and in nothing else. It is
reproduced when the 95% interval of the paired difference lies below zero, or when it diverged; the
twin's accuracy is over the same seeds;
`seen` says whether a verdict on h or z, after the first epoch or at the end, called it collapsed
or diverging. `passes` is the rule above: some ablations do worse and still learn.

{failure_table(broken, {row["name"]: row for row in intact})}

## Curves of what did not come out as expected

Methods that do not pass, and ablations that do no worse at this scale, beside their twins: first
and last value, then the course between the least and the greatest. Spread is that of ẑ per
channel, 1/√D when isotropic; rank is the centred effective rank.

```text
{shown_curves}
```

## How each was run

Learning rates and options were tuned with `--tune` on {protocol.tuning * protocol.classes:,} other
images of the training set. What is not listed is the [method's own](methods.md); at
{protocol.size} px the blur is left out.

{recipe_table([*entries, *failures], protocol)}
"""


def publish() -> None:
    everything = [*ENTRIES, *FAILURES]
    results = gathered(everything, PROTOCOL, RESULTS)
    ROWS.write_text(json.dumps(rows(everything, PROTOCOL, results), indent=1) + "\n", "utf-8")
    PAGE.write_text(page(ENTRIES, FAILURES, PROTOCOL, results), encoding="utf-8")
