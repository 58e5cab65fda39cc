"""Each evaluation protocol, from the command line and from Python, on a run and on the same
architecture untrained.

selfsight pretrain imagenette224/train --method simclr --encoder resnet18 --size 96 --batch 128 \
    --epochs 12 --threads 1 --out runs/imagenette
python benchmarks/protocols.py --data DIR --run runs/imagenette    # all that is not yet done
python benchmarks/protocols.py --table                             # the page from the results

DIR holds the folders imagenette224, bccd, camvid and davis2016_frames; --bccd PATH and so on say
that one of them lies elsewhere. What the protocols read beside these is made of them and lies in
--made DIR: a part of imagenette224, and camvid with a distance for each pixel.

A job is one protocol and encoder in a process with one thread. It runs `selfsight evaluate`, does
the same from Python, and leaves one JSON if both say the same, to the last digit; that of
throughput, which is never the same twice, if neither is more than twice the other.
"""

import argparse
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from learn import HERE, conduct, end, write
from measure import processor
from PIL import Image

import selfsight
from selfsight.cli.output import plain
from selfsight.encoders import create_encoder
from selfsight.errors import ConfigError, suggestion
from selfsight.evaluate import Report, create, judge
from selfsight.run import sight

RESULTS = HERE / "results" / "protocols"
RUN = "runs/imagenette"
DATA = ("imagenette224", "bccd", "camvid", "davis2016_frames")
ENCODERS = ("run", "untrained")
PER_CLASS = {"train": 60, "test": 50}
TOLD = ("metric", "value", "low", "high", "n")
# A time, which other work on the machine may double.
_LOOSE = {"throughput": 2.0}


@dataclass(frozen=True)
class Case:
    """A protocol with its options, the name of the data, and the side of the images."""

    protocol: str
    data: str
    size: int
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def words(self, subject: str, data: str, out: str) -> list[str]:
        """The command, after `selfsight`."""
        told = [
            word
            for name, value in self.options.items()
            for word in (f"--{self.protocol}.{name}", str(value))
        ]
        return [
            "evaluate", subject, data, "--size", str(self.size), "--protocols", self.protocol,
            *told, "--out", out, "--json",
        ]  # fmt: skip


_PHOTOS, _DISTANCE = "imagenette_part", "camvid_distance"
CASES = {
    case.protocol: case
    for case in (
        Case("knn", _PHOTOS, 96),
        Case("linear", _PHOTOS, 96),
        Case("sweep", _PHOTOS, 96, {"epochs": 20}),
        Case("recipe", _PHOTOS, 96, {"of": "simclr", "epochs": 1}),
        Case("few", _PHOTOS, 96, {"labels": 5}),
        Case("finetune", _PHOTOS, 96, {"labels": 20, "epochs": 5}),
        Case("retrieval", _PHOTOS, 96),
        Case("clustering", _PHOTOS, 96),
        Case("multilabel", "bccd", 128),
        Case(
            "detection",
            "bccd",
            96,
            {"iterations": 40, "batch": 4, "lr": 0.04, "size": 128, "width": 64},
        ),
        Case("segmentation", "camvid", 144, {"epochs": 10}),
        Case("dense", _DISTANCE, 144, {"epochs": 10, "loss": "log", "zero": "unknown"}),
        Case("propagation", "davis2016_frames", 128),
        Case("throughput", _PHOTOS, 96, {"batch": 32}),
    )
}


def place(protocol: str, encoder: str, folder: Path = RESULTS) -> Path:
    return folder / f"{protocol}-{encoder}.json"


def part_of_photos(source: Path, out: Path) -> None:
    """Of each class the first photographs of either part."""
    for part, count in PER_CLASS.items():
        for label in sorted(entry for entry in (source / part).iterdir() if entry.is_dir()):
            (out / part / label.name).mkdir(parents=True)
            for file in sorted(label.iterdir())[:count]:
                shutil.copyfile(file, out / part / label.name / file.name)


def with_distances(source: Path, out: Path) -> None:
    """The images of a segmentation's two parts, with targets in place of masks."""
    void = json.loads((source / "labels.json").read_bytes()).index("void(ignore)")
    for part in ("train", "test"):
        shutil.copytree(source / part / "images", out / part / "images")
        (out / part / "targets").mkdir()
        for file in sorted((source / part / "masks").iterdir()):
            mask = np.asarray(Image.open(file))
            target = np.where(mask == void, 0, distances(mask)).astype(np.uint16)
            Image.fromarray(target).save(out / part / "targets" / file.name)


def distances(mask: np.ndarray) -> np.ndarray:
    """Steps across and down from each pixel to the nearest one of another value, which there is."""
    edge = np.zeros(mask.shape, bool)
    for axis in (0, 1):
        changes = np.diff(mask.astype(np.int64), axis=axis) != 0
        none = np.zeros_like(edge.take([0], axis))
        edge |= np.concatenate([changes, none], axis) | np.concatenate([none, changes], axis)
    far = np.where(edge, 1, sum(mask.shape) + 1)
    for axis in (0, 1):
        steps = np.arange(mask.shape[axis]).reshape((-1, 1) if axis == 0 else (1, -1))
        ahead = np.minimum.accumulate(far - steps, axis) + steps
        behind = np.flip(np.minimum.accumulate(np.flip(far + steps, axis), axis), axis) - steps
        far = np.minimum(ahead, behind)
    return far


# What is made, of what, and how.
MADE: dict[str, tuple[str, Callable[[Path, Path], None]]] = {
    _PHOTOS: ("imagenette224", part_of_photos),
    _DISTANCE: ("camvid", with_distances),
}


def prepared(found: dict[str, Path], folder: Path) -> dict[str, Path]:
    """The data by name, with those that are made, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (source, make) in MADE.items():
        if not (folder / name).is_dir():
            with tempfile.TemporaryDirectory(dir=folder) as half:
                make(found[source], Path(half) / name)
                os.rename(Path(half) / name, folder / name)
    return found | {name: folder / name for name in MADE}


def weights(run: Path | None) -> str:
    """Stands for the encoder's weights."""
    if run is None:
        return "seed 0"
    return hashlib.sha256((run / "model" / "model.safetensors").read_bytes()).hexdigest()


def pretraining(record: dict[str, Any]) -> list[str]:
    """The command that made the run, without what names this machine's folders."""
    data = record["data"]["name"]
    words = ["/".join(Path(word).parts[-2:]) if word == data else word for word in record["argv"]]
    told = [RUN if before == "--out" else word for before, word in pairwise(words)]
    return ["selfsight", *told]


def is_done(case: Case, encoder: str, of: str, folder: Path = RESULTS) -> bool:
    file = place(case.protocol, encoder, folder)
    if not file.is_file():
        return False
    found = json.loads(file.read_bytes())
    return bool((found["fingerprint"], found["weights"]) == (case.fingerprint, of))


def shell(words: Sequence[str]) -> str:
    """What `selfsight` prints."""
    command = [sys.executable, "-m", "selfsight", *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise ConfigError(f"selfsight {words[0]} left with {done.returncode}, as told above")
    return done.stdout


def from_command_line(case: Case, subject: str, data: Path) -> tuple[list[Any], list[Any]]:
    """The scores that it prints, and the evaluations that it keeps with `--out`."""
    with tempfile.TemporaryDirectory(prefix="protocols-") as folder:
        out = Path(folder) / "out.json"
        (report,) = json.loads(shell(case.words(subject, str(data), str(out))))["results"].values()
        return report["scores"], json.loads(out.read_bytes())["evaluations"]


def from_python(case: Case, architecture: str, run: Path | None, data: Path) -> Report:
    protocol = create(case.protocol, **case.options)
    if run is not None:
        return selfsight.load(run).evaluate(data, [protocol], size=case.size)
    encoder = create_encoder(architecture, size=case.size, seed=0)
    return judge(sight(encoder, case.size), data, [protocol])


def check_agreement(case: Case, told: list[Any], found: list[Any]) -> None:
    """All that both say, details too; of a time, the number roughly."""
    loose = _LOOSE.get(case.protocol)
    if loose is None:
        same = told == found
    else:
        a, b = told[0]["value"], found[0]["value"]
        same = max(a, b) <= loose * min(a, b)
    if not same:
        values = [[score["value"] for score in scores] for scores in (told, found)]
        raise ConfigError(
            f"{case.protocol}: the command line says {values[0]} and Python {values[1]}"
        )


def job(case: Case, encoder: str, run: Path, data: Path) -> dict[str, Any]:
    """Both ways, which must agree."""
    record = selfsight.load(run).record
    architecture, of = record["config"]["encoder"], run if encoder == "run" else None
    started = time.monotonic()
    told, kept = from_command_line(case, str(of or architecture), data)
    between = time.monotonic()
    found = plain(from_python(case, architecture, of, data).json()["scores"])
    ended = time.monotonic()
    check_agreement(case, told, found)
    words = case.words(RUN if of else architecture, case.data, place(case.protocol, encoder).name)
    return {
        "protocol": case.protocol,
        "encoder": encoder,
        "fingerprint": case.fingerprint,
        "weights": weights(of),
        "pretraining": pretraining(record) if of else [],
        "command": ["selfsight", *words],
        "seconds": {
            "command line": round(between - started, 1),
            "Python": round(ended - between, 1),
        },
        "python": [{name: score[name] for name in TOLD} for score in found],
        "versions": {
            "python": platform.python_version(),
            "selfsight": selfsight.__version__,
            **{name: version(name) for name in ("torch", "timm")},
        },
        "cpu": processor(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1),
        # As `evaluate --out` keeps them, but for where the data lie on this machine.
        "evaluations": [{**one, "data": case.data} for one in kept],
    }


def perform(case: Case, encoder: str, run: Path, data: Path) -> None:
    result = job(case, encoder, run, data)
    write(place(case.protocol, encoder), result)
    first, seconds = result["python"][0], result["seconds"]
    print(
        f"{case.protocol}, {encoder}: {first['metric']} {first['value']:.4g} "
        f"[{first['low']:.4g}, {first['high']:.4g}], n={first['n']:,}, "
        f"{seconds['command line']:.0f} + {seconds['Python']:.0f} s",
        flush=True,
    )


def located(args: argparse.Namespace) -> dict[str, Path]:
    """Where each of the data lies."""
    found = {}
    for name in DATA:
        path = vars(args)[name] or (args.data and args.data / name)
        if path is None:
            raise ConfigError(f"--data DIR: which folder holds {name}? or --{name} PATH")
        if not path.is_dir():
            raise ConfigError(f"{path} is no folder; --{name} PATH says where {name} is")
        found[name] = path.resolve()
    return found


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--data", type=Path, metavar="DIR", help=f"holds {', '.join(DATA)}")
    for name in DATA:
        parser.add_argument(f"--{name}", type=Path, metavar="PATH", help="if it is not in DIR")
    parser.add_argument("--made", type=Path, metavar="DIR", help="for what is made of them",
                        default=Path(tempfile.gettempdir()) / "selfsight_protocols")  # fmt: skip
    parser.add_argument("--run", type=Path, help="a finished run")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--only", nargs="+", metavar="PROTOCOL", help=f"of {', '.join(CASES)}")
    parser.add_argument("--encoders", nargs="+", choices=ENCODERS, default=ENCODERS)
    parser.add_argument("--table", action="store_true", help="write the page and stop")
    parser.add_argument("--job", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args(words)
    if args.table:
        from protocols_page import publish

        publish()
        return 0
    for name in args.only or ():
        if name not in CASES:
            raise ConfigError(f"there is no protocol {name}{suggestion(name, CASES)}")
    if args.run is None:
        raise ConfigError("--run RUN: which run is judged? selfsight pretrain makes one")
    data = prepared(located(args), args.made.resolve())
    if args.job:
        torch.set_num_threads(1)
        protocol, encoder = args.job
        perform(CASES[protocol], encoder, args.run, data[CASES[protocol].data])
        return 0
    of = {"run": weights(args.run), "untrained": weights(None)}
    jobs = [
        (protocol, encoder)
        for protocol, encoder in product(args.only or CASES, args.encoders)
        if not is_done(CASES[protocol], encoder, of[encoder])
    ]
    print(f"{len(jobs)} jobs to do", flush=True)
    return 1 if conduct(words, jobs, args.jobs, script=Path(__file__)) else 0


if __name__ == "__main__":
    end(main)
