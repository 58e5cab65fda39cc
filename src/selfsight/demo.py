"""The main job on the embedded synthetic set, in a few minutes on two CPU cores."""

import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw

import selfsight
from selfsight.data.base import Arrays, Source
from selfsight.data.sources import SYNTHETIC
from selfsight.data.synthetic import synthetic
from selfsight.diagnose.checks import HEALTHY_IS_NOT_USEFUL, Verdict
from selfsight.errors import ConfigError
from selfsight.evaluate import DEFAULT, Report, evaluate
from selfsight.extraction import pixels
from selfsight.features import Features
from selfsight.run import sight

__all__ = ["RECIPE", "Result", "neighbour_sheet", "run"]

# Chosen by trying settings on the draw with seed 0 of the set. The demo draws others.
RECIPE = {
    "method": "simclr",
    "encoder": "test_resnet",
    "size": 32,
    "batch": 128,
    "epochs": 24,
    "optimizer": "adamw",
    "lr": 0.002,
    "weight_decay": 1e-4,
    "options": {"temperature": 0.2, "strength": 0.5},
    "view": {"gray": 0.5},
}

_FRESH = 1000  # the first seed of the demo's images
_SPLITS: tuple[Literal["train", "test"], ...] = ("train", "test")


@dataclass(frozen=True)
class Result:
    """reports: of raw pixels, the untrained and the trained encoder; seconds: of the work."""

    path: Path
    sheet: Path
    reports: dict[str, Report]
    verdict: dict[str, Verdict]
    seconds: float

    def __str__(self) -> str:
        rows = [f"{'':<14}{'kNN (k=20)':<24}{'linear probe':<24}"]
        for name, report in self.reports.items():
            cells = ["  ".join(report[probe].shown()) for probe in DEFAULT]
            rows.append(f"{name:<14}{cells[0]:<24}{cells[1]:<24}".rstrip())
        n = self.reports["trained"][DEFAULT[0]].n
        program = _program()
        said = "\n".join(f"{name}: {v.state} ({v.evidence})" for name, v in self.verdict.items())
        return (
            f"\nAccuracy on {n:,} held-out images of 12 classes, with 95% intervals. Pre-training "
            f"saw no label.\n\n" + "\n".join(rows) + f"\n\nVerdict\n{said}\n{HEALTHY_IS_NOT_USEFUL}"
            f"\n\nThe run lies in        {self.path}"
            f"\nThe model lies in      {self.path / 'model'}"
            f"\nNearest neighbours in  {self.sheet}"
            f"\nAll of it took         {self.seconds:.0f} s"
            "\n\nNext, with your own images:"
            f"\n  {program} check photos/"
            f"\n  {program} pretrain photos/ --out runs/photos"
            f"\n  {program} evaluate runs/photos labelled/      one sub-folder per class"
        )

    def json(self) -> dict[str, object]:
        return {
            "run": str(self.path),
            "sheet": str(self.sheet),
            "seconds": self.seconds,
            "verdict": {name: v.state for name, v in self.verdict.items()},
            "results": {name: report.json() for name, report in self.reports.items()},
        }


def run(out: str | Path | None = None, seed: int = 0, quiet: bool = False) -> Result:
    """Pre-train without labels, then measure raw pixels, the untrained and the trained encoder."""
    start = time.monotonic()

    def tell(text: str) -> None:
        if not quiet:
            print(text, file=sys.stderr, flush=True)

    tell("drawing the synthetic images")
    train, test, unlabelled = _draw(seed)
    result = selfsight.pretrain(
        unlabelled,
        out=_free(out),
        seed=seed,
        quiet=quiet,
        **RECIPE,  # type: ignore[arg-type]
    )
    tell("measuring on held-out images")
    trained, before = result.sight(), sight(result.untrained(), result.config["size"])
    features = {
        "raw pixels": (pixels(train), pixels(test)),
        "untrained": (before.embed(train), before.embed(test)),
        "trained": (trained.embed(train), trained.embed(test)),
    }
    reports = {name: evaluate(known, new) for name, (known, new) in features.items()}
    sheet = result.path / "neighbours.png"
    neighbour_sheet(test, {name: new for name, (_, new) in features.items()}).save(sheet)
    return Result(result.path, sheet, reports, result.verdict, time.monotonic() - start)


def _program() -> str:
    """What to type: the command's name, or where it lies when no folder of PATH has it."""
    if shutil.which("selfsight"):
        return "selfsight"
    path = Path(sys.prefix) / "bin" / "selfsight"
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _draw(seed: int) -> tuple[Source, Source, Source]:
    """Training and test images with labels, and the training images without."""
    parts = [
        Arrays(f"synthetic:{split}", *synthetic(SYNTHETIC[split], split=split, seed=_FRESH + seed))
        for split in _SPLITS
    ]
    return parts[0], parts[1], Arrays("synthetic", parts[0].images)


def _free(out: str | Path | None) -> Path:
    """`out`, or the first of runs/demo, runs/demo-2, … that is not there."""
    if out is not None:
        return Path(out)
    for number in range(1, 1000):
        path = Path("runs") / ("demo" if number == 1 else f"demo-{number}")
        if not path.exists():
            return path
    raise ConfigError("runs/ holds a thousand demos; give --out another folder")


def neighbour_sheet(
    source: Source, features: dict[str, Features], *, queries: int = 6, neighbours: int = 5
) -> Image.Image:
    """A picture: for some images, their nearest neighbours by each embedding.

    One row per query; left the query, then a block of neighbours for each of `features`,
    those of the query's class framed.
    """
    side, gap, head = 64, 8, 18
    chosen = np.linspace(0, len(source) - 1, queries).round().astype(int)
    width = side + len(features) * (neighbours * side + 2 * gap)
    sheet = Image.new("RGB", (width, head + queries * (side + gap)), "white")
    pen = ImageDraw.Draw(sheet)
    pen.text((0, 2), "query", "black")
    for row, query in enumerate(chosen):
        y = head + row * (side + gap)
        _place(sheet, source, int(query), 0, y, side)
        x = side + 2 * gap
        for name, found in features.items():
            if row == 0:
                pen.text((x, 2), f"nearest by {name}", "black")
            unit = found.embedding / np.linalg.norm(found.embedding, axis=1, keepdims=True)
            similarity = unit @ unit[query]
            similarity[query] = -np.inf
            for index in np.argsort(-similarity, kind="stable")[:neighbours]:
                _place(sheet, source, int(index), x, y, side)
                if source.labels is not None and source.labels[index] == source.labels[query]:
                    pen.rectangle((x, y, x + side - 1, y + side - 1), outline="lime", width=3)
                x += side
            x += 2 * gap
    return sheet


def _place(sheet: Image.Image, source: Source, index: int, x: int, y: int, side: int) -> None:
    picture = Image.fromarray(source.read(index))
    sheet.paste(picture.resize((side, side), Image.Resampling.NEAREST), (x, y))
