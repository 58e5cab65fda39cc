"""Does each method learn, and do the failures that papers predict happen? See protocol.py.

python benchmarks/learn.py --data cifar10.npz --jobs 2    # all that is not yet done
python benchmarks/learn.py --table                        # the page from the results

A job is one entry and seed in a process with one thread; it leaves one JSON, written at its
end, so that an interrupted one leaves nothing and is done again. The data file holds JPEGs
one after the other: train_jpeg, train_offsets, train_labels and the same of test.
"""

import argparse
import base64
import hashlib
import io
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from measure import processor
from PIL import Image
from protocol import ENTRIES, FAILURES, PROTOCOL, Entry, Protocol, fingerprint

import selfsight
from selfsight.data.base import Arrays
from selfsight.data.loader import Loader
from selfsight.diagnose.checks import Verdict, verdicts
from selfsight.encoders.base import Encoder
from selfsight.errors import ConfigError, Diverged, Error, Stopped, suggestion
from selfsight.evaluate import Report, evaluate
from selfsight.extraction import pixels
from selfsight.methods import method_class
from selfsight.methods.base import Clock
from selfsight.run import Run, sight
from selfsight.train.config import Settings, resolve

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "learn"
TUNING = HERE / "results" / "tune"
PROBES = ("knn", "linear")

# BatchNorm forgets a tenth per step: after so many, 3e-5 of what was before is left.
_REMEMBERED = 100


@dataclass(frozen=True)
class Data:
    """Both labelled; what a training is given of `train` says `shown`."""

    train: Arrays
    test: Arrays

    @property
    def fingerprint(self) -> str:
        total = hashlib.sha256()
        for part in (self.train, self.test):
            total.update(part.images.tobytes() + part.labels.tobytes())
        return total.hexdigest()


def opened(file: Path, protocol: Protocol, *, tune: bool) -> Data:
    """The protocol's images; with `tune` others of the training set stand for the test's."""
    with open(file, "rb") as stream, np.load(stream, allow_pickle=False) as stored:
        labels = stored["train_labels"].astype(np.int64)
        train = first_of_each(labels, protocol.per_class)
        if tune:
            held = first_of_each(labels, protocol.tuning, after=protocol.per_class)
            test = _images(stored, "train", held)
        else:
            test = _images(stored, "test", np.arange(len(stored["test_labels"])))
        return Data(_images(stored, "train", train), test)


def first_of_each(labels: np.ndarray, count: int, after: int = 0) -> np.ndarray:
    """Numbers of the first `count` images of each class, in order."""
    chosen = [np.flatnonzero(labels == c)[after : after + count] for c in np.unique(labels)]
    return np.sort(np.concatenate(chosen))


def _images(stored: Any, split: str, numbers: np.ndarray) -> Arrays:
    content, offsets = stored[f"{split}_jpeg"], stored[f"{split}_offsets"]
    images = [
        np.asarray(Image.open(io.BytesIO(content[offsets[i] : offsets[i + 1]].tobytes())))
        for i in numbers.tolist()
    ]
    labels = stored[f"{split}_labels"][numbers].astype(np.int64)
    return Arrays(f"CIFAR-10 {split}", np.stack(images), labels)


def shown(method: str, train: Arrays) -> Arrays:
    """The pixels alone, unless the method is a bound that learns from labels."""
    labels = train.labels if method_class(method).supervised else None
    return Arrays(train.name, train.images, labels)


def packed(correct: np.ndarray) -> str:
    """Right or wrong, one bit per image."""
    return base64.b64encode(np.packbits(correct.astype(bool)).tobytes()).decode()


def unpacked(text: str, n: int) -> np.ndarray:
    bits = np.frombuffer(base64.b64decode(text), np.uint8)
    return np.unpackbits(bits, count=n).astype(bool)


def job(
    entry: Entry, seed: int, protocol: Protocol, data: Data, raw: dict[str, Any]
) -> dict[str, Any]:
    """Train, measure, and measure the controls; `raw` is what pixels themselves reach."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="learn-") as folder:
        out, diverged = Path(folder) / "run", None
        try:
            run = selfsight.pretrain(
                shown(entry.method, data.train), out=out, method=entry.method,
                encoder=entry.encoder,
                size=protocol.size, epochs=entry.epochs(protocol), batch=protocol.batch,
                lr=entry.lr, optimizer=entry.optimizer, weight_decay=entry.weight_decay,
                warmup=entry.warmup, seed=seed, device="cpu", options=entry.options,
                view=entry.view, threads=1, save_every=1 << 30, quiet=True,
            )  # fmt: skip
        except Diverged as error:
            run, diverged = selfsight.load(out), str(error)
        trained = time.monotonic()
        scores = {"raw": raw, **_scores(run, data, trained=diverged is None)}
        return {
            "name": entry.name,
            "seed": seed,
            "fingerprint": fingerprint(entry, protocol),
            "diverged": diverged,
            "epochs": entry.epochs(protocol),
            "config": run.config,
            "scores": scores,
            "readings": readings(run.metrics),
            "seconds": {
                "train": round(trained - started, 1),
                "measure": round(time.monotonic() - trained, 1),
            },
            "versions": {
                "python": platform.python_version(),
                "selfsight": selfsight.__version__,
                **{name: version(name) for name in ("torch", "timm")},
            },
            "cpu": processor(),
            "threads": torch.get_num_threads(),
        }


def _scores(run: Run, data: Data, *, trained: bool) -> dict[str, Any]:
    encoders: dict[str, Encoder] = {"untrained": run.untrained(), "lr0": unmoved(run, data.train)}
    if trained:
        encoders["trained"] = run.model
    size = run.config["size"]
    scores = {}
    for name, encoder in encoders.items():
        train, test = (sight(encoder, size).embed(part) for part in (data.train, data.test))
        scores[name] = _stored(evaluate(train, test, protocols=PROBES))
    return scores


def raw_scores(data: Data, folder: Path) -> dict[str, Any]:
    """Of the pixels: the same for all jobs, slow by the linear probe, so kept in a file."""
    file, of = folder / "raw.json", data.fingerprint
    if file.is_file():
        kept = json.loads(file.read_bytes())
        if kept["data"] == of:
            scores: dict[str, Any] = kept["scores"]
            return scores
    scores = _stored(evaluate(pixels(data.train), pixels(data.test), protocols=PROBES))
    write(file, {"data": of, "scores": scores})
    return scores


def write(file: Path, content: Any) -> None:
    """All at once or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(f".{os.getpid()}.tmp")
    lines = ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in content.items())
    temporary.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
    os.replace(temporary, file)


def _stored(report: Report) -> dict[str, Any]:
    found = {}
    for probe in PROBES:
        score = report[probe]
        assert score.each is not None
        found[probe] = {
            "metric": score.metric, "accuracy": score.value, "low": score.low,
            "high": score.high, "n": score.n, "options": score.options,
            "correct": packed(score.each),
        }  # fmt: skip
    return found


@torch.no_grad()
def unmoved(run: Run, source: Arrays) -> Encoder:
    """The encoder after the run's steps at a learning rate of zero.

    Then no weight moves, a teacher that starts as a copy stays one, and BatchNorm's statistics
    are all that a step changes. They come from forward passes alone, so no backward is done;
    and steps that they have forgotten are not done either.
    """
    config = run.config
    source = shown(config["method"], source)
    built = resolve(Settings(**config), source)
    method, encoder = built.method, built.method.encoder
    if all(not name.endswith("running_mean") for name, _ in method.product.named_buffers()):
        return method.product
    loader = Loader(
        source, method.views, batch=config["batch"], seed=config["seed"],
        mean=encoder.mean, std=encoder.std, supervised=method.supervised,
    )  # fmt: skip
    total = config["epochs"] * loader.per_epoch
    half = torch.autocast("cpu", torch.bfloat16, enabled=config["precision"] == "bf16")
    method.train().to(memory_format=torch.channels_last)
    for step, (batch,) in loader.stream(max(0, total - _REMEMBERED), total):
        with half:
            method(batch, Clock(step, total, loader.per_epoch, config["seed"]))
    return method.product


def readings(metrics: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The steps at which the watchers looked: what a verdict is made of, to four digits, and
    what the method says of itself."""
    kept = ["loss", "rejected", "teacher_entropy", "invariance", "variance", "covariance",
            "coupling", "coupling_variation"]  # fmt: skip
    for name in ("h", "z"):
        kept += [
            f"{name}_{meter}" for meter in ("spread", "scale", "centred_rank", "dim", "samples")
        ]
    return [
        {"step": row["step"], **{k: _short(row[k]) for k in kept if k in row}}
        for row in metrics if row.get("h_dim")
    ]  # fmt: skip


def _short(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value


def place(entry: Entry, seed: int, protocol: Protocol, folder: Path) -> Path:
    """Trials of the same entry lie beside each other while it is tuned."""
    trial = f"-{fingerprint(entry, protocol)[:8]}" if folder == TUNING else ""
    return folder / f"{entry.name}-{seed}{trial}.json"


def is_done(entry: Entry, seed: int, protocol: Protocol, folder: Path) -> bool:
    """Under this protocol: what was made under another one is done again."""
    file = place(entry, seed, protocol, folder)
    if not file.is_file():
        return False
    found: str = json.loads(file.read_bytes())["fingerprint"]
    return found == fingerprint(entry, protocol)


def perform(entry: Entry, seed: int, protocol: Protocol, data: Data, folder: Path) -> bool:
    """Do a job and write its result whole; False when it was done before."""
    if is_done(entry, seed, protocol, folder):
        return False
    result = job(entry, seed, protocol, data, raw_scores(data, folder))
    write(place(entry, seed, protocol, folder), result)
    print(summary(result), flush=True)
    return True


def verdict(result: dict[str, Any], steps: int | None = None) -> dict[str, Verdict]:
    """What the watchers say of a run as it stood after so many steps, or at its end."""
    rows = [row for row in result["readings"] if steps is None or row["step"] < steps]
    return verdicts(rows)


def summary(result: dict[str, Any]) -> str:
    """One line: percent by kNN and by the linear probe, trained and controls."""
    shown = []
    for name, probes in result["scores"].items():
        numbers = "/".join(f"{100 * probes[probe]['accuracy']:.1f}" for probe in PROBES)
        shown.append(f"{name} {numbers}")
    last = ", ".join(f"{name} {told.state}" for name, told in verdict(result).items())
    seconds = result["seconds"]
    return (
        f"{result['name']} seed {result['seed']}: {', '.join(reversed(shown))} | "
        f"{result['diverged'] or last} | {seconds['train']:.0f} + {seconds['measure']:.0f} s"
    )


def ordered(
    entries: Sequence[Entry], failures: Sequence[Entry], seeds: Sequence[int]
) -> Iterator[tuple[Entry, int]]:
    """Seed by seed, the intact entries before the failures."""
    for seed in seeds:
        yield from ((entry, seed) for entry in [*entries, *failures])


def conduct(
    words: Sequence[str],
    jobs: Sequence[tuple[str, int | str]],
    together: int,
    *,
    script: Path = HERE / "learn.py",
) -> int:
    """Run each job as a process of the script, `together` at a time; how many failed."""
    one = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    waiting, running, failed = list(jobs), [], 0
    try:
        while waiting or running:
            while waiting and len(running) < together:
                name, which = waiting.pop(0)
                command = [sys.executable, str(script), *words, "--job", name, str(which)]
                running.append(subprocess.Popen(command, env={**os.environ, **one}))
            time.sleep(0.2)
            for process in [p for p in running if p.poll() is not None]:
                running.remove(process)
                failed += process.returncode != 0
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait()
    return failed


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, help="the .npz of JPEGs")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these entries")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(PROTOCOL.seeds))
    parser.add_argument("--table", action="store_true", help="write the page and stop")
    parser.add_argument("--tune", action="store_true", help="measure on held-out training images")
    parser.add_argument("--epochs", type=int, help="with --tune")
    parser.add_argument("--lr", type=float, help="with --tune")
    parser.add_argument("--option", nargs="+", default=[], metavar="K=V", help="with --tune")
    parser.add_argument("--job", nargs=2, help=argparse.SUPPRESS)
    return parser


def _chosen(args: argparse.Namespace) -> tuple[list[Entry], list[Entry], Protocol]:
    """What is run: the protocol's entries, or with --tune variations of some."""
    known = [entry.name for entry in [*ENTRIES, *FAILURES]]
    for name in args.only or ():
        if name not in known:
            raise ConfigError(f"there is no entry {name}{suggestion(name, known)}")
    changed = args.epochs is not None or args.lr is not None or bool(args.option)
    if changed and not args.tune:
        raise ConfigError("--epochs, --lr and --option are for --tune; edit protocol.py")
    protocol = PROTOCOL if args.epochs is None else replace(PROTOCOL, epochs=args.epochs)
    options = {}
    for word in args.option:
        name, _, value = word.partition("=")
        try:
            options[name] = json.loads(value)
        except ValueError:
            options[name] = value

    def varied(entry: Entry) -> Entry:
        lr = entry.lr if args.lr is None else args.lr
        return replace(entry, lr=lr, options={**entry.options, **options})

    wanted = [[varied(entry) for entry in part if args.only is None or entry.name in args.only]
              for part in (ENTRIES, FAILURES)]  # fmt: skip
    return wanted[0], wanted[1], protocol


def main(words: Sequence[str]) -> int:
    args = _parser().parse_args(words)
    if args.table:
        from learn_page import publish

        publish()
        return 0
    if args.data is None:
        raise ConfigError("--data FILE: which file holds CIFAR-10?")
    entries, failures, protocol = _chosen(args)
    folder = TUNING if args.tune else RESULTS
    if args.job:
        torch.set_num_threads(1)
        name, seed = args.job[0], int(args.job[1])
        entry = next(entry for entry in [*entries, *failures] if entry.name == name)
        perform(entry, seed, protocol, opened(args.data, protocol, tune=args.tune), folder)
        return 0
    jobs = [
        (entry.name, seed)
        for entry, seed in ordered(entries, failures, args.seeds)
        if not is_done(entry, seed, protocol, folder)
    ]
    print(f"{len(jobs)} jobs to do", flush=True)
    return 1 if conduct(words, jobs, args.jobs) else 0


def end(main: Callable[[Sequence[str]], int]) -> NoReturn:
    """Run a script's main and leave by its code; an error is one line."""
    # What a signal ends closes its folders and its processes on the way.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        sys.exit(main(sys.argv[1:]))
    except Stopped as error:
        sys.exit(error.exit_code)
    except Error as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    end(main)
