"""From the results of protocols.py to docs/protocols.md."""

import json
import shlex
from pathlib import Path
from typing import Any

from learn_page import table
from protocols import CASES, ENCODERS, HERE, PER_CLASS, RESULTS, RUN, place

from selfsight import compare
from selfsight.evaluate.report import shown

PAGE = HERE.parent / "docs" / "protocols.md"

Results = dict[str, dict[str, dict[str, Any]]]  # protocol → encoder → result


def collected(folder: Path = RESULTS) -> Results:
    """Those that were made with the options as they are now."""
    found: Results = {}
    for protocol, case in CASES.items():
        for encoder in ENCODERS:
            file = place(protocol, encoder, folder)
            if file.is_file():
                result = json.loads(file.read_bytes())
                if result["fingerprint"] == case.fingerprint:
                    found.setdefault(protocol, {})[encoder] = result
    return found


def told(score: dict[str, Any] | None) -> str:
    if score is None:
        return "–"
    value, span = shown(*(score[name] for name in ("metric", "value", "low", "high")))
    return f"{value} {span}"


def compared(protocol: str, folder: Path) -> tuple[str, str]:
    """The run less the untrained encoder, and what may be concluded, as `selfsight compare`."""
    (found,) = compare([place(protocol, encoder, folder) for encoder in ENCODERS])
    ((_, number, span, _, words),) = found.differences()
    return f"{number} {span}".strip() or "–", words.partition(":")[0]


def score_table(results: Results, folder: Path) -> str:
    body = []
    for protocol, own in results.items():
        each = {encoder: result["python"] for encoder, result in own.items()}
        whole = compared(protocol, folder) if len(own) == len(ENCODERS) else ("–", "")
        for number, score in enumerate(next(iter(each.values()))):
            scores = [each[encoder][number] if encoder in each else None for encoder in ENCODERS]
            first = number == 0
            body.append([
                f"`{protocol}`" if first else "", f"{score['n']:,}", score["metric"],
                *map(told, scores), *(whole if first else ("", "")),
            ])  # fmt: skip
    columns = ["protocol", "n", "metric", "run", "untrained", "run − untrained", ""]
    return table(columns, body)


def time_table(results: Results) -> str:
    body = []
    for protocol, own in results.items():
        row = [f"`{protocol}`"]
        for encoder in ENCODERS:
            seconds = own[encoder]["seconds"] if encoder in own else {}
            row += [f"{seconds[way]:.0f}" if way in seconds else "–"
                    for way in ("command line", "Python")]  # fmt: skip
        body.append(row)
    columns = ["protocol", *(f"{who}, {way}" for who in ENCODERS for way in ("shell", "Python"))]
    return table(columns, body)


def commands(results: Results) -> str:
    """Of each protocol the one for the run, else for the other."""
    lines = [next(iter(own.values()))["command"] for own in results.values()]
    return "\n".join(shlex.join(line) for line in lines)


def pretraining(results: Results) -> str:
    for own in results.values():
        if "run" in own:
            return shlex.join(own["run"]["pretraining"])
    return "selfsight pretrain …"


def circumstances(results: Results) -> str:
    every = [result for own in results.values() for result in own.values()]
    cpus = sorted({result["cpu"] for result in every})
    threads = sorted({str(result["threads"]) for result in every})
    loads = [result["load"] for result in every]
    versions = sorted({" ".join(f"{k} {v}" for k, v in r["versions"].items()) for r in every})
    minutes = sum(sum(result["seconds"].values()) for result in every) / 60
    return (
        f"Made on {', '.join(cpus)} with {'/'.join(threads)} thread of torch in {minutes:.0f} "
        f"minutes; {'; '.join(versions)}. The machine had other work: its load was "
        f"{min(loads)} to {max(loads)}, and the seconds are what they were under it."
    )


def page(results: Results, folder: Path = RESULTS) -> str:
    missing = [
        f"of the {encoder} {', '.join(left)}" for encoder in ENCODERS
        if (left := [name for name in CASES if encoder not in results.get(name, {})])
    ]  # fmt: skip
    state = f"Not yet done: {'; '.join(missing)}." if missing else "All are done."
    train, test = PER_CLASS["train"], PER_CLASS["test"]
    return f"""\
# Every protocol, both ways

<!-- Written by benchmarks/protocols.py --table from benchmarks/results/protocols; do not edit. -->

Each of the {len(CASES)} [protocols](evaluate.md#protocols) on a run and on the same architecture
with random weights, by `selfsight evaluate` and from Python. These are short trainings on small
images, their options chosen to be short: they show that the protocols run, what they say and how
long it takes. They are no records.

Both ways said the same, to the last digit of each number, interval and detail; a job that finds
otherwise fails and leaves no row. Only `throughput` measures a time, and may differ twofold.

## Scores

{score_table(results, folder)}

With 95% intervals: `n` is of test images, of `propagation` clips, of `throughput` repeats. The last
two columns are what `selfsight compare` says of the first number of both, paired on the same
images. Less is better of RMSE and relative error, more of all others. Each word holds for itself;
of {len(CASES)} comparisons one may be wrong. It is one run of one seed. {state}

## How it was run

The run comes from

```text
{pretraining(results)}
```

and the other encoder is that architecture as timm draws its weights, with seed 0. The images are as
large as `--size` says.

- `imagenette_part`: of each class of imagenette224 the first {train} photographs of `train/` and
  the first {test} of `test/`. The run saw those of `train/`, without labels.
- `bccd`: blood cells in three classes, in VOC's layout; `camvid`: streets in eleven classes.
- `camvid_distance`: camvid's photographs. The target is not measured but made of the masks: how
  many steps across and down, in pixels, it is from each pixel to the nearest of another class. Void
  pixels have none. It is wide in the middle of a road and narrow at a pole.
- `davis2016_frames`: 20 clips of up to 40 frames with the mask of one object.

```text
{commands(results)}
```

For the untrained encoder the same with `resnet18` in place of `{RUN}`; then, of each
protocol,

```text
selfsight compare knn-run.json knn-untrained.json
```

All of it, where DIR holds the data; the results are files that `compare` reads, too:

```text
python benchmarks/protocols.py --data DIR --run {RUN}
python benchmarks/protocols.py --table
selfsight compare benchmarks/results/protocols/knn-run.json \\
    benchmarks/results/protocols/knn-untrained.json
```

From Python, a run and an architecture by its name:

```python
import selfsight
from selfsight.encoders import create_encoder
from selfsight.evaluate import create, judge
from selfsight.run import sight

protocol = create("few", labels=2)
print(selfsight.load("runs/photos").evaluate("labelled/", [protocol], size=32))
encoder = create_encoder("resnet18", size=32, seed=0)
print(judge(sight(encoder, 32), "labelled/", [protocol]))
```

## Seconds

{time_table(results)}

From the shell these are of a whole process, with the imports. {circumstances(results)}
"""


def publish(page_file: Path = PAGE, folder: Path = RESULTS) -> None:
    results = collected(folder)
    if results:
        page_file.write_text(page(results, folder), encoding="utf-8")
