"""From the results, losses.json first, to docs/benchmarks.md: python benchmarks/losses_page.py"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from views_page import sections

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "losses.json"
PAGE = HERE.parent / "docs" / "benchmarks.md"

_ALLOCATORS = {"default": "as it is", "pages_kept": "keeps pages"}


def times(found: dict[str, float]) -> str:
    """`0.46 s (0.44 to 0.51)`"""
    return "{median:.3g} s ({min:.3g} to {max:.3g})".format(**found)


def speed(cases: dict[str, Any]) -> Iterator[str]:
    for name, case in cases.items():
        for allocator, label in _ALLOCATORS.items():
            t = case[allocator]
            probes = " and ".join(f"{p:.0f}" for p in t["probe_gflops"])
            yield (
                f"| {name} | {label} | {times(t['lightly_s'])} | {times(t['selfsight_s'])} | "
                f"{t['faster']:.1f} | {t['turns']} | {probes} |"
            )


def memory(cases: dict[str, Any]) -> Iterator[str]:
    for name, case in cases.items():
        extra, t = case["extra_mib"], case["default"]
        gradient = "" if t["gradient_apart"] is None else f"{t['gradient_apart']:.0e}"
        yield (
            f"| {name} | {extra['lightly']:.0f} | {extra['selfsight']:.0f} | "
            f"{case['lighter']:.1f} | {t['value_apart']:.0e} | {gradient} |"
        )


def page(results: dict[str, Any]) -> str:
    cases = results["cases"]
    return f"""\
# Benchmarks

<!-- Written by benchmarks/losses_page.py from benchmarks/results; do not edit. -->

## Losses

Four losses beside those of lightly {results["lightly"]}, in one process and environment, turn by
turn, forward and backward in float32 (Sinkhorn: forward) with {results["threads"]} threads on
{results["cpu"]}, torch {results["torch"]}, Python {results["python"]}. A time is the median over
the turns, with the least and the greatest. Both sides ran once with the allocator as it is and
once with one that keeps its pages, as `selfsight pretrain` sets it. The probe is the speed of a
2048³ float32 product before and after, in GFLOP/s: where it is low, so was the machine.

| loss | allocator | lightly | selfsight | times faster | turns | probe |
| - | - | - | - | - | - | - |
{chr(10).join(speed(cases))}

Extra memory is how far one call raises the peak of a fresh process, in MiB; one such call was
made for each. Apart is how far the two sides' values, and their gradients, lie from one another,
as a share of the largest entry.

| loss | lightly MiB | selfsight MiB | times less | values apart | gradients apart |
| - | - | - | - | - | - |
{chr(10).join(memory(cases))}

```text
.venv/bin/pip install -e ".[bench]"
python benchmarks/losses.py --out benchmarks/results/losses.json
python benchmarks/losses_page.py
```

{sections(RESULTS.parent)}\
Whether the methods learn is measured in [learning.md](learning.md).
"""


if __name__ == "__main__":
    PAGE.write_text(page(json.loads(RESULTS.read_bytes())), encoding="utf-8")
