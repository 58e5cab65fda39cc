"""A finished or interrupted run: its encoder, its numbers, its verdict."""

import contextlib
import json
import shlex
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from selfsight.data.base import Counting
from selfsight.data.sources import Data, open_source
from selfsight.data.split import evaluation_split
from selfsight.diagnose.checks import Verdict, verdicts
from selfsight.encoders import create_encoder
from selfsight.encoders.base import Encoder
from selfsight.encoders.timm import TimmEncoder
from selfsight.errors import ConfigError, DataError, StorageError
from selfsight.evaluate import (
    DEFAULT,
    OnFeatures,
    Protocol,
    Report,
    Sight,
    judge,
    measure,
    openings,
    select,
)
from selfsight.evaluate.comparison import Comparison, Entry, compare
from selfsight.evaluate.stored import (
    Evaluation,
    alike,
    data_name,
    evaluations,
    images_mark,
    keep,
    read,
    read_folder,
)
from selfsight.export.model import load_model
from selfsight.features import Features, pixels
from selfsight.machine import cores, device_named, native_bf16
from selfsight.methods import METHODS, create
from selfsight.methods.base import Method
from selfsight.philox import Purpose, seed_for

__all__ = ["Run", "compare_runs", "judge_pixels", "sight"]


class Run:
    """A run's folder, read when asked."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not (self.path / "run.json").is_file():
            raise StorageError(f"{path} holds no run: there is no run.json in it")

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @cached_property
    def record(self) -> dict[str, Any]:
        """run.json whole."""
        try:
            record: dict[str, Any] = json.loads((self.path / "run.json").read_bytes())
        except (OSError, ValueError) as error:
            raise StorageError(f"{self.path / 'run.json'} cannot be read: {error}") from None
        if not isinstance(record, dict) or "config" not in record:
            raise StorageError(f"{self.path / 'run.json'} is not a run of selfsight")
        return record

    @property
    def config(self) -> dict[str, Any]:
        """What was resolved: method, encoder, size, rates and the rest."""
        config: dict[str, Any] = self.record["config"]
        return config

    @cached_property
    def model(self) -> TimmEncoder:
        """The trained encoder with its tokens, maps and attention."""
        if not (self.path / "model").is_dir():
            raise StorageError(
                f"{self.path} has no model yet; finish it with: selfsight resume {self.path}"
            )
        return load_model(self.path / "model")

    @property
    def encoder(self) -> nn.Module:
        """The trained encoder as a plain timm module."""
        module: nn.Module = self.model.model
        return module

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """One dictionary per step; a line that a kill cut short is left out."""
        path = self.path / "metrics.jsonl"
        try:
            lines = path.read_bytes().splitlines(keepends=True)
            return [json.loads(line) for line in lines if line.endswith(b"\n")]
        except (OSError, ValueError) as error:
            raise StorageError(f"{path} cannot be read: {error}") from None

    @property
    def verdict(self) -> dict[str, Verdict]:
        """What the watchers say of h and, where the method has one, of z."""
        return verdicts(self.metrics)

    def untrained(self) -> Encoder:
        """The encoder as it was before the first step: the control."""
        config = self.config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_for(config["seed"], 0, Purpose.INIT))
            encoder = create_encoder(
                config["encoder"], size=config["size"], pretrained=config["pretrained"]
            )
            # A method of the catalogue may change its encoder as it is built: MAE fixes the
            # positions. Others are not loaded because a file names them.
            if config["method"] not in METHODS:
                return encoder
            samples = self.record["data"]["images"]
            method: Method = create(config["method"], encoder, samples=samples, **config["options"])
        return method.product

    def sight(self, size: int | None = None, progress: Counting | None = None) -> Sight:
        """The trained encoder as it is used on this machine."""
        return sight(self.model, size or self.config["size"], progress)

    def embed(self, data: Data, **options: Any) -> Features:
        """h of every image of `data`."""
        return self.sight().embed(open_source(data, labels=None, **options))

    def evaluate(
        self,
        data: Data,
        protocols: Sequence[str | Protocol] = DEFAULT,
        *,
        progress: Counting | None = None,
        **options: Any,
    ) -> Report:
        """Numbers on labelled data, with 95% intervals; kept for `compare_runs` where the
        run's folder can be written to."""
        report = judge(self.sight(progress=progress), data, protocols, **options)
        with contextlib.suppress(StorageError):
            self.keep(report, data)
        return report

    def keep(self, report: Report, data: Data, size: int | None = None) -> list[Path]:
        """Write what `report` says of each test image into evaluations/; the files."""
        found = evaluations(report.scores, data, size or self.config["size"])
        return [keep(one, self.path / "evaluations") for one in found]

    @property
    def evaluations(self) -> list[Evaluation]:
        """What was kept, the newest first."""
        return read_folder(self.path / "evaluations")

    def compare(
        self, data: Data, protocols: Sequence[str | Protocol] = DEFAULT, **options: Any
    ) -> dict[str, Report]:
        """The same for raw pixels, for the encoder before training, and for the trained one."""
        before = "starting weights" if self.config["pretrained"] else "untrained"
        start = sight(self.untrained(), self.config["size"])
        return {
            "raw pixels": judge_pixels(data, protocols, **options),
            before: judge(start, data, protocols, **options),
            "trained": self.evaluate(data, protocols, **options),
        }


def compare_runs(
    runs: Sequence[str | Path | Run],
    data: Data | None = None,
    protocols: Sequence[str | Protocol] | None = None,
    *,
    progress: Counting | None = None,
    **opening: Any,
) -> list[Comparison]:
    """What is and what is not a difference between runs, by each protocol.

    runs: also files of `selfsight evaluate --out`
    data: on which what was not kept is measured; None takes the newest that all have kept
    protocols: None takes all that were kept, or nearest neighbours and the linear probe on data
    opening: as of `evaluate`
    """
    compared = [_Compared(run) for run in runs]
    if len({each.path.resolve() for each in compared}) < max(2, len(compared)):
        raise ConfigError("a comparison needs two or more different runs")
    if data is None:
        keys = _common(compared, protocols)
    else:
        chosen = select(DEFAULT if protocols is None else protocols)
        keys = _keys(chosen, data, **opening)
        for each in compared:
            missing = [p for p, key in zip(chosen, keys, strict=True) if key not in each.found]
            if missing:
                each.measure(data, missing, progress, **opening)
    return [compare([each.entry(key) for each in compared]) for key in keys]


class _Compared:
    """One of those that are compared, and its evaluations by their key."""

    def __init__(self, run: str | Path | Run) -> None:
        self.path = run.path if isinstance(run, Run) else Path(run)
        self.run = None if self.path.is_file() else Run(self.path)
        kept = read(self.path) if self.run is None else self.run.evaluations
        self.found: dict[str, Evaluation] = {}
        for one in kept:
            self.found.setdefault(one.key, one)

    def measure(
        self, data: Data, protocols: list[Protocol], progress: Counting | None, **opening: Any
    ) -> None:
        if self.run is None:
            names = ", ".join(protocol.name for protocol in protocols)
            raise DataError(
                f"{self.path} does not hold {names} on these images with these options, and "
                "only a run can be measured again"
            )
        report = self.run.evaluate(data, protocols, progress=progress, **opening)
        found = evaluations(report.scores, data, self.run.config["size"])
        self.found |= {one.key: one for one in found}

    def entry(self, key: str) -> Entry:
        recipe, seed = "", None
        if self.run is not None:
            config = dict(self.run.config)
            seed = config.pop("seed", None)
            recipe = json.dumps([config, self.run.record["data"]["fingerprint"]], sort_keys=True)
        return Entry(str(self.path), self.found[key], recipe, seed)


def _keys(protocols: list[Protocol], data: Data, **opening: Any) -> list[str]:
    """Of what the protocols would measure on the data as they are now."""
    return [
        alike(protocol.name, protocol.options, images_mark(*parts) or data_name(data))
        for protocol, parts in zip(protocols, openings(protocols, data, **opening), strict=True)
    ]


def _common(compared: list[_Compared], protocols: Sequence[str | Protocol] | None) -> list[str]:
    """The newest evaluation that all have, of each protocol."""
    first, *others = compared
    common = [one for key, one in first.found.items() if all(key in each.found for each in others)]

    def newest(protocol: str | Protocol) -> str:
        for one in common:
            score = one.score
            if protocol == score.protocol or (
                isinstance(protocol, Protocol)
                and alike(protocol.name, protocol.options, score.images or one.data) == one.key
            ):
                return one.key
        raise nothing(f" by {protocol if isinstance(protocol, str) else protocol.name}")

    def nothing(by: str = "") -> DataError:
        paths = [str(each.path) for each in compared]
        return DataError(
            f"{', '.join(paths)} have no evaluation{by} in common, of the same images with the "
            f"same options; measure them alike: selfsight compare {shlex.join(paths)} --data DATA"
        )

    if protocols is None:
        protocols = sorted({one.score.protocol for one in common})
    if not protocols:
        raise nothing()
    return [newest(protocol) for protocol in protocols]


def sight(
    encoder: Encoder,
    size: int,
    progress: Counting | None = None,
    *,
    device: str = "auto",
    precision: Literal["auto", "fp32", "bf16"] = "auto",
) -> Sight:
    """An encoder on the fastest device, in the precision it computes natively, or as told."""
    device = device_named(device)
    if precision == "auto":
        precision = "bf16" if native_bf16(device) else "fp32"
    return Sight(encoder, size, device, precision, cores(), progress)


def judge_pixels(data: Data, protocols: Sequence[str | Protocol], **options: Any) -> Report:
    """What the images themselves reach by the protocols that ask for no encoder."""
    chosen = [one for one in select(protocols) if isinstance(one, OnFeatures)]
    if not chosen:
        return Report([])
    train, test = evaluation_split(data, **options)
    return measure(pixels(train), pixels(test), chosen)
