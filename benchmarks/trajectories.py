"""Where alignment and uniformity lead from a bad temperature (Wang and Isola 2020, figure 7).

python benchmarks/trajectories.py --data cifar10.npz --jobs 2    # all that is not yet done
python benchmarks/trajectories.py --table                        # the page from the results

An encoder starts by a contrastive loss at a temperature far too high. From its weights three
runs go on: by alignment and uniformity, by alignment alone, and by uniformity alone. The claim:
both terms together raise the accuracy, and either alone makes it worse.

A job is one seed, which leaves one JSON at its end. The data file is that of learn.py.
"""

import argparse
import hashlib
import json
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from learn import HERE, Data, conduct, end, opened, write
from measure import processor
from protocol import PROTOCOL, Protocol
from torch import Tensor

import selfsight
from selfsight.data.base import Arrays
from selfsight.data.loader import Loader
from selfsight.errors import ConfigError
from selfsight.evaluate import evaluate
from selfsight.losses import alignment, uniformity
from selfsight.methods.base import Method
from selfsight.run import sight
from selfsight.train.config import Built, Settings, resolve
from selfsight.train.loop import Engine, Plan, Step, run
from selfsight.train.signals import Signals
from selfsight.train.sweep import Sweeper

RESULTS = HERE / "results" / "trajectories"
METHOD = "align_uniform"

Point = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Course:
    """All numbers but the protocol's: those of the learning benchmark's SimCLR, where it has them.

    temperature: of the start; InfoNCE wants about a tenth of it
    start, then: epochs by the contrastive loss, and by each branch
    """

    temperature: float = 2.5
    start: int = 10
    then: int = 10
    encoder: str = "test_resnet"
    hidden: int = 512
    dim: int = 128
    lr: float = 2e-3
    weight_decay: float = 1e-4
    warmup: float = 1.0

    @property
    def begins(self) -> dict[str, Any]:
        return self._options(alignment=0.0, uniformity=0.0, contrast=1.0)

    @property
    def branches(self) -> dict[str, dict[str, Any]]:
        """The method's options on each way on, by its name."""
        return {
            "both": self._options(),
            "alignment": self._options(uniformity=0.0),
            "uniformity": self._options(alignment=0.0),
        }

    def _options(self, **weights: float) -> dict[str, Any]:
        head = {"head": "nonlinear", "hidden": self.hidden, "dim": self.dim}
        return {**head, "temperature": self.temperature, **weights}


COURSE = Course()
# SimCLR's colours for CIFAR-10 (appendix B.9).
VIEW = {"jitter": (0.4, 0.4, 0.4, 0.1), "jitter_p": 0.8}


def fingerprint(course: Course, protocol: Protocol) -> str:
    """Of all that a result rests on; the choice of seeds changes none."""
    facts = {
        "course": asdict(course),
        "protocol": asdict(replace(protocol, seeds=())),
        "view": VIEW,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


class Watch:
    """Measures the method before the first step and after each epoch; saves nothing."""

    def __init__(self, method: Method, data: Data, protocol: Protocol, seed: int) -> None:
        self.method, self.data, self.size = method, data, protocol.size
        self.per_epoch = protocol.images // protocol.batch
        encoder, test = method.encoder, Arrays(data.test.name, data.test.images)
        self.pairs = Loader(
            test, method.views, batch=min(500, len(test)), seed=seed, mean=encoder.mean,
            std=encoder.std,
        )  # fmt: skip
        self.points = [self.measured(0)]

    def step(self, step: Step) -> None:
        epoch, rest = divmod(step.clock.step + 1, self.per_epoch)
        if not rest:
            self.points.append(self.measured(epoch))

    def due(self, done: int) -> bool:
        return False

    def save(self, done: int, rejected: int) -> None:
        pass

    def measured(self, epoch: int) -> Point:
        """Of test images: alignment and uniformity of z between two views, kNN by h."""
        self.method.eval()
        z = [torch.cat(part) for part in zip(*self._projections(), strict=True)]
        embed = sight(self.method.product, self.size).embed
        train, test = embed(self.data.train), embed(self.data.test)
        self.method.train()
        return {
            "epoch": epoch,
            "alignment": float(alignment(*z)),
            "uniformity": float(torch.stack([uniformity(z_i) for z_i in z]).mean()),
            "knn": evaluate(train, test, protocols=("knn",))["knn"].value,
        }

    @torch.no_grad()
    def _projections(self) -> list[list[Tensor]]:
        network = torch.nn.Sequential(self.method.encoder, self.method.projector)
        return [[network(x) for x in self.pairs.batch(step).views]
                for step in range(self.pairs.per_epoch)]  # fmt: skip


def resolved(
    course: Course, protocol: Protocol, options: dict[str, Any], epochs: int, seed: int, data: Data
) -> Built:
    settings = Settings(
        method=METHOD, encoder=course.encoder, size=protocol.size, epochs=epochs,
        batch=protocol.batch, lr=course.lr, optimizer="adamw", weight_decay=course.weight_decay,
        warmup=min(course.warmup, epochs), seed=seed, device="cpu", options=options, view=VIEW,
    )  # fmt: skip
    return resolve(settings, Arrays(data.train.name, data.train.images))


def travel(built: Built, data: Data, protocol: Protocol, signals: Signals) -> list[Point]:
    """Train to the end; what was measured on the way."""
    config, method = built.config, built.method
    source = Arrays(data.train.name, data.train.images)
    encoder = method.encoder
    loader = Loader(
        source, method.views, batch=config.batch, seed=config.seed, mean=encoder.mean,
        std=encoder.std,
    )  # fmt: skip
    plan = Plan(
        total=config.epochs * loader.per_epoch, per_epoch=loader.per_epoch, seed=config.seed,
        lr=config.lr, warmup=round(config.warmup * loader.per_epoch), micros=1,
        precision=config.precision, device="cpu",
    )  # fmt: skip
    engine = Engine(method, built.recipe, plan)
    watch = Watch(method, data, protocol, config.seed)
    run(engine, loader.stream(0, plan.total), Sweeper(loader), watch, signals)
    return watch.points


def job(seed: int, course: Course, protocol: Protocol, data: Data) -> dict[str, Any]:
    """The start, and the three ways on from it."""
    started, signals = time.monotonic(), Signals()
    with signals.caught():
        first = resolved(course, protocol, course.begins, course.start, seed, data)
        points = {"start": travel(first, data, protocol, signals)}
        weights = first.method.state_dict()
        for name, options in course.branches.items():
            built = resolved(course, protocol, options, course.then, seed, data)
            built.method.load_state_dict(weights)
            points[name] = travel(built, data, protocol, signals)
    return {
        "seed": seed,
        "fingerprint": fingerprint(course, protocol),
        "points": points,
        "seconds": round(time.monotonic() - started, 1),
        "versions": {
            "python": platform.python_version(),
            "selfsight": selfsight.__version__,
            **{name: version(name) for name in ("torch", "timm")},
        },
        "cpu": processor(),
        "threads": torch.get_num_threads(),
    }


def gathered(course: Course, protocol: Protocol, folder: Path) -> dict[int, dict[str, Any]]:
    """seed → result, of those that were made with these numbers."""
    found = {}
    for file in sorted(folder.glob("seed-*.json")):
        result = json.loads(file.read_bytes())
        if result["fingerprint"] == fingerprint(course, protocol):
            found[result["seed"]] = result
    return dict(sorted(found.items()))


def perform(seed: int, course: Course, protocol: Protocol, data: Data, folder: Path) -> bool:
    """Do a job and write its result whole; False when it was done before."""
    if seed in gathered(course, protocol, folder):
        return False
    result = job(seed, course, protocol, data)
    write(folder / f"seed-{seed}.json", result)
    ends = ", ".join(f"{name} {100 * way[-1]['knn']:.1f}" for name, way in result["points"].items())
    print(f"seed {seed}: kNN {ends} | {result['seconds']:.0f} s", flush=True)
    return True


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, help="the .npz of JPEGs")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(PROTOCOL.seeds))
    parser.add_argument("--table", action="store_true", help="write the page and stop")
    parser.add_argument("--job", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args(words)
    if args.table:
        from trajectories_page import publish

        publish()
        return 0
    if args.data is None:
        raise ConfigError("--data FILE: which file holds CIFAR-10?")
    if args.job:
        torch.set_num_threads(1)
        data = opened(args.data, PROTOCOL, tune=False)
        perform(int(args.job[1]), COURSE, PROTOCOL, data, RESULTS)
        return 0
    done = gathered(COURSE, PROTOCOL, RESULTS)
    jobs = [("seed", seed) for seed in args.seeds if seed not in done]
    print(f"{len(jobs)} jobs to do", flush=True)
    return 1 if conduct(words, jobs, args.jobs, script=Path(__file__)) else 0


if __name__ == "__main__":
    end(main)
