"""From the results of trajectories.py to docs/trajectories.md and its figure."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from learn import HERE
from learn_page import table
from protocol import PROTOCOL, Protocol
from trajectories import COURSE, RESULTS, Course, Point, gathered

PAGE = HERE.parent / "docs" / "trajectories.md"
FIGURE = HERE.parent / "docs" / "images" / "trajectories.svg"

COLOURS = {"start": "#999999", "both": "#1a7f37", "alignment": "#0969da", "uniformity": "#cf222e"}
# Of a panel of the figure, in pixels.
WIDTH, HEIGHT, MARGIN = 360, 300, 55

Results = dict[int, dict[str, Any]]


def mean(results: Results, way: str) -> list[Point]:
    """The way's points, each a mean over the seeds."""
    ways = zip(*(result["points"][way] for result in results.values()), strict=True)
    return [{key: float(np.mean([p[key] for p in points])) for key in points[0]} for points in ways]


def gains(results: Results, way: str) -> list[float]:
    """What each seed's accuracy gained on the way, as a share."""
    ways = [result["points"][way] for result in results.values()]
    return [points[-1]["knn"] - points[0]["knn"] for points in ways]


def held(results: Results, way: str) -> bool:
    """Whether every seed moved as the paper says: up by both terms, down by one of them."""
    return all((gain > 0) is (way == "both") for gain in gains(results, way))


def ends_table(results: Results, course: Course) -> str:
    columns = ["from the start by", "alignment", "uniformity", "kNN %", "gained", "each seed",
               "as the paper says"]  # fmt: skip
    last = mean(results, "start")[-1]
    body = [["(the start)", *numbers(last), "", "", ""]]
    for way in course.branches:
        each = gains(results, way)
        told = " ".join(f"{100 * gain:+.1f}" for gain in each)
        name = "both terms" if way == "both" else f"{way} alone"
        answer = "yes" if held(results, way) else "**not at this scale**"
        gain = f"{100 * np.mean(each):+.1f}"
        body.append([name, *numbers(mean(results, way)[-1]), gain, told, answer])
    return table(columns, body)


def numbers(point: Point) -> list[str]:
    return [f"{point['alignment']:.3f}", f"{point['uniformity']:.2f}", f"{100 * point['knn']:.1f}"]


def figure(results: Results, course: Course) -> str:
    """Two panels: uniformity and alignment epoch by epoch, and the accuracy over the epochs."""
    ways = {way: mean(results, way) for way in ("start", *course.branches)}
    # The start's first epochs lie far from where the branches are.
    plane = {way: [(p["uniformity"], p["alignment"]) for p in points]
             for way, points in ways.items() if way != "start"}  # fmt: skip
    epochs = {way: [(course.start * (way != "start") + p["epoch"], 100 * p["knn"]) for p in points]
              for way, points in ways.items()}  # fmt: skip
    parts = [
        *panel(plane, 0, "uniformity (lower is better)", "alignment (lower is better)"),
        *panel(epochs, WIDTH, "epoch", "kNN, %"),
        # Where no curve of the left panel goes.
        *(words(WIDTH - MARGIN, MARGIN / 2 + 14 * (number + 1), name, colour)
          for number, (name, colour) in enumerate(COLOURS.items())),
    ]  # fmt: skip
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{2 * WIDTH}" height="{HEIGHT}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect width="{2 * WIDTH}" height="{HEIGHT}" fill="white"/>', *parts, "</svg>", "",
    ])  # fmt: skip


def panel(
    curves: dict[str, list[tuple[float, float]]], left: int, across: str, up: str
) -> list[str]:
    """Curves with a dot for each point, between the least and the greatest of both axes."""
    points = np.array([point for curve in curves.values() for point in curve])
    low, span = points.min(0), np.ptp(points, axis=0).clip(min=1e-9)
    size = np.array([WIDTH - 1.5 * MARGIN, HEIGHT - 1.5 * MARGIN])

    def placed(curve: Sequence[tuple[float, float]]) -> np.ndarray:
        at = (np.array(curve) - low) / span * size
        return np.stack([left + MARGIN + at[:, 0], HEIGHT - MARGIN - at[:, 1]], 1)

    bottom, right = HEIGHT - MARGIN, left + WIDTH - MARGIN / 2
    parts = [
        f'<path d="M{left + MARGIN} {MARGIN / 2}V{bottom}H{right}" fill="none" stroke="#ccc"/>'
    ]
    parts += [words(left + WIDTH / 2, HEIGHT - MARGIN / 3, across),
              words(left + MARGIN / 2, MARGIN / 3, up, anchor="start")]  # fmt: skip
    for axis, (least, extent) in enumerate(zip(low, span, strict=True)):
        for share in (0.0, 1.0):
            label = f"{round(least + share * extent, 2) + 0.0:g}"  # + 0.0: no −0
            x, y = (left + MARGIN + share * size[0], bottom + 14)
            if axis:
                x, y = left + MARGIN - 20, bottom - share * size[1]
            parts.append(words(x, y, label))
    for name, curve in curves.items():
        path = placed(curve)
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in path)
        colour = COLOURS[name]
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"/>' for x, y in path]
    return parts


def words(x: float, y: float, text: str, colour: str = "#333", anchor: str = "middle") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}" fill="{colour}">{text}</text>'


def page(results: Results, course: Course, protocol: Protocol) -> str:
    first = next(iter(results.values()))
    seeds = ", ".join(map(str, results))
    missing = [str(seed) for seed in protocol.seeds if seed not in results]
    state = f"seeds {', '.join(missing)} are not done" if missing else "all are done"
    minutes = sum(result["seconds"] for result in results.values()) / 60
    versions = " ".join(f"{name} {number}" for name, number in first["versions"].items())
    ways = [mean(results, way) for way in course.branches]
    epochs = [
        [f"{points[0]['epoch']:.0f}", *(" / ".join(numbers(point)) for point in points)]
        for points in zip(*ways, strict=True)
    ]
    return f"""\
# From a bad temperature

<!-- Written by benchmarks/trajectories.py --table from benchmarks/results/trajectories. -->

![Alignment against uniformity, and kNN, epoch by epoch](images/trajectories.svg)

[`align_uniform`](methods/align_uniform.md) splits a contrastive loss into two terms: alignment,
how near two views of an image lie, and uniformity, how evenly all images are spread. Wang and Isola
2020 (figure 7) take an encoder from a contrastive loss at a temperature that is far too high,
{course.temperature:g}, and go on from its weights by both terms, which helps, and by one of them
alone, which hurts.

{ends_table(results, course)}

Both are measured of z, between two views of each test image in evaluation mode, and lower is
better; kNN is of h. The numbers are means over the seeds, and a branch goes as the paper says when
every seed's accuracy does.

## Epoch by epoch

Alignment / uniformity / kNN %, means over the seeds.

{table(["epoch", *course.branches], epochs)}

## How it was run

{protocol.images:,} images of CIFAR-10 at {protocol.size} px in batches of {protocol.batch};
{course.start} epochs by the contrastive loss, {course.then} by each branch, AdamW at a rate of
{course.lr:g}; the weights of the two terms are 1. Seeds: {seeds}; {state}. Made on {first["cpu"]},
{first["threads"]} thread per seed, in {minutes:.0f} minutes; {versions}.

```text
python benchmarks/trajectories.py --data cifar10_jpeg.npz --jobs 2
python benchmarks/trajectories.py --table
```
"""


def publish(
    folder: Path = RESULTS, page_file: Path = PAGE, figure_file: Path = FIGURE,
    course: Course = COURSE, protocol: Protocol = PROTOCOL,
) -> None:  # fmt: skip
    results = gathered(course, protocol, folder)
    if not results:
        return
    page_file.write_text(page(results, course, protocol), encoding="utf-8")
    figure_file.write_text(figure(results, course), encoding="utf-8")
