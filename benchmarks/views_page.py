"""The sections of docs/benchmarks.md on views, training, embedding and loading, which
losses_page.py writes."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

__all__ = ["extraction", "loading", "neighbours", "sections", "training", "views"]

Result = Mapping[str, Any]

ALONE = ", step alone"


def sections(folder: Path) -> str:
    """Of what has been measured."""
    made = {
        "views.json": views,
        "end_to_end.json": training,
        "extraction.json": extraction,
        "neighbours.json": neighbours,
        "loading_memory.json": loading,
    }
    found = ((folder / name, section) for name, section in made.items())
    return "".join(
        section(json.loads(file.read_bytes())) + "\n" for file, section in found if file.is_file()
    )


def rate(found: Result) -> str:
    """`186,000 (181,000 to 190,000)`"""
    digits = 0 if found["median"] >= 100 else 1
    median, least, most = (f"{found[k]:,.{digits}f}" for k in ("median", "min", "max"))
    return f"{median} ({least} to {most})"


def circumstances(result: Result, *packages: str) -> str:
    named = ", ".join(f"{package} {result[package]}" for package in packages)
    return f"{result['cpu']}, {result['threads']} threads, Python {result['python']}, {named}."


def speeds(cases: Mapping[str, Result]) -> str:
    """The machine's, before and after each case."""
    probes = [" and ".join(f"{p:.0f}" for p in case["probe_gflops"]) for case in cases.values()]
    return f"Probe before and after: {'; '.join(probes)} GFLOP/s."


def views(result: Result) -> str:
    packages = [k for k in result if k not in _NOT_PACKAGES]
    jpegs = result["jpegs"]
    turns = {case["turns"] for case in result["cases"].values()}
    tables = "\n\n".join(_case(case) for case in result["cases"].values())
    return f"""\
## Views

Images per second, all views of an image made and put into float32 batches, unless it says
bfloat16; the median over {_numbers(turns)} turns, with the least and the greatest. All sides keep
their pages. Ours is one process with two threads; each other library has two processes with a
thread each, which keep the batches they made, or where it says so two threads of one process. The
last column says how many times as fast `selfsight` is. The {jpegs["count"]} JPEGs weigh
{jpegs["bytes"] / 1000:.0f} kB on average and lie in memory; simplejpeg decodes for albumentations
and for us. The colours of `torch` are jittered in one fixed order, which is less work.

{tables}

{circumstances(result, *packages)} {speeds(result["cases"])}

```text
{result["command"]} --out benchmarks/results/views.json
```
"""


_NOT_PACKAGES = ("command", "python", "selfsight", "cpu", "threads", "load", "cases", "jpegs")


def _numbers(values: set[int]) -> str:
    return " or ".join(map(str, sorted(values)))


def _case(case: Result) -> str:
    ours = case["rates"]["selfsight"]["median"]
    return f"""\
{case["title"][0].upper()}{case["title"][1:]}:

| | images/s | selfsight against it |
| - | - | - |
""" + "\n".join(
        f"| {name} | {rate(found)} | {ours / found['median']:.1f} |"
        for name, found in case["rates"].items()
    )


def training(result: Result) -> str:
    tables = "\n\n".join(_trained(case) for case in result["cases"].values())
    return f"""\
## Training

Images per second of SimCLR with a ResNet-18 (ImageNet's stem), lightly's documented example beside
our loader and training loop with the same parameters, loss, optimizer and batch, each view in a
forward pass of its own. A turn is an epoch; the figures are medians over the turns, with the least
and the greatest. lightly ran with the allocator as it is and keeping its pages, ours keeps them as
`selfsight pretrain` does. `auto` is the precision that `selfsight pretrain` chooses here. The last
columns say how many times as fast ours is, in float32 and in `auto`, and what share of the rate
without a loader (`step alone`) it has.

{tables}

{circumstances(result, "torch", "torchvision", "lightly")} {speeds(result["cases"])}

```text
{result["command"]} --out benchmarks/results/end_to_end.json
```
"""


def _trained(case: Result) -> str:
    return f"""\
{case["title"][0].upper()}{case["title"][1:]}, {case["turns"]} turns of {case["steps"]} steps:

| | images/s | fp32 against it | auto against it | share of the step alone |
| - | - | - | - | - |
""" + "\n".join(_rows(case["rates"]))


def _rows(rates: Mapping[str, Result]) -> Iterator[str]:
    ours = [rates[f"selfsight, {precision}"]["median"] for precision in ("fp32", "auto")]
    for name, found in rates.items():
        faster = " | ".join(
            f"{own / found['median']:.2f}" if name.startswith("lightly") else "" for own in ours
        )
        alone = rates.get(name + ALONE)
        share = f"{100 * found['median'] / alone['median']:.1f}%" if alone else ""
        yield f"| {name} | {rate(found)} | {faster} | {share} |"


def extraction(result: Result) -> str:
    tables = "\n\n".join(_embedded(name, case) for name, case in result["cases"].items())
    case = next(iter(result["cases"].values()))
    return f"""\
## Embedding

Images per second of a ResNet-18 at {case["size"]} px, from {case["images"]} float32 images in
memory; the median over {case["turns"]} turns, with the least and the greatest. `torch` is the
encoder as it is, `selfsight` the form of it that embeds, with normalisation, shortcut and
rectification inside the convolutions. All keep their pages. The third column says how many times
as fast `selfsight, bf16` is; apart is how far the embeddings lie from those of float32, as a share
of their norm.

{tables}

{circumstances(result, "torch", "timm", "openvino", "onnxruntime")} {speeds(result["cases"])}

```text
{result["command"]} --out benchmarks/results/extraction.json
```
"""


def _embedded(name: str, case: Result) -> str:
    ours = case["rates"]["selfsight, bf16"]["median"]
    return f"""\
In {name}:

| | images/s | selfsight, bf16 against it | apart |
| - | - | - | - |
""" + "\n".join(
        f"| {side} | {rate(found)} | {ours / found['median']:.2f} | {case['apart'][side]:.0e} |"
        for side, found in case["rates"].items()
    )


def neighbours(result: Result) -> str:
    rows = "\n".join(
        f"| {name} | {_seconds(case['faiss_s'])} | {_seconds(case['selfsight_s'])} | "
        f"{case['faster']:.2f} | {100 * case['agree']:.3f}% |"
        for name, case in result["cases"].items()
    )
    turns = _numbers({case["turns"] for case in result["cases"].values()})
    return f"""\
## Nearest neighbours

Seconds from two float32 arrays, normal about a hundred centres, to the k nearest rows of each
query, beside faiss's exact search with filling its index; the median over {turns} turns, with the
least and the greatest. Both keep their pages. The last columns say how many times as fast
selfsight is, and what share of the neighbours are the same.

| queries × rows | faiss | selfsight | faster | the same |
| - | - | - | - | - |
{rows}

{circumstances(result, "torch", "faiss-cpu")} {speeds(result["cases"])}

```text
{result["command"]} --out benchmarks/results/neighbours.json
```
"""


def _seconds(found: Result) -> str:
    return "{median:.2f} ({min:.2f} to {max:.2f})".format(**found)


def loading(result: Result) -> str:
    rows = "\n".join(
        f"| {name} | {case['opening_s']:.1f} | {case['open_mib']:.1f} | {case['most_mib']:.1f} | "
        f"{case['bytes_per_image']:.0f} | {case['growth_mib']:+.1f} |"
        for name, case in result["cases"].items()
    )
    case = next(iter(result["cases"].values()))
    return f"""\
## Memory of a long list

Resident memory above what the process held before it opened a list of {case["images"]:,} JPEGs, in
MiB: once it is open, and at most while {case["batches"]:,} batches of {case["batch"]} are made with
nothing decoded being kept. `opening` checks every file, `reopening` reads the manifest. Growth is
from a fifth of the batches to the end.

| | seconds | open | at most | bytes an image | growth |
| - | - | - | - | - | - |
{rows}

{circumstances(result, "torch", "numpy")}

```text
{result["command"]} --out benchmarks/results/loading_memory.json
```
"""
