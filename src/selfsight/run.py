"""A finished or interrupted run: its encoder, its numbers, its verdict."""

import json
import warnings
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
from selfsight.errors import StorageError
from selfsight.evaluate import (
    DEFAULT,
    OnFeatures,
    Protocol,
    Report,
    Sight,
    judge,
    measure,
    select,
)
from selfsight.evaluate.stored import Evaluation, evaluations, keep, read_folder
from selfsight.export.model import load_model
from selfsight.extraction import pixels
from selfsight.features import Features
from selfsight.machine import cores, device_named, native_bf16
from selfsight.methods import METHODS, create
from selfsight.methods.base import Method
from selfsight.philox import Purpose, seed_for

__all__ = ["Run", "judge_pixels", "sight"]


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

    def sight(
        self,
        size: int | None = None,
        progress: Counting | None = None,
        *,
        device: str = "auto",
        precision: Literal["auto", "fp32", "bf16"] = "auto",
    ) -> Sight:
        """The trained encoder as it is used on this machine."""
        size = size or self.config["size"]
        return sight(self.model, size, progress, device=device, precision=precision)

    def embed(
        self,
        data: Data,
        *,
        device: str = "auto",
        precision: Literal["auto", "fp32", "bf16"] = "auto",
        **options: Any,
    ) -> Features:
        """h of every image of `data`, which are opened with these options."""
        source = open_source(data, labels=None, **options)
        return self.sight(device=device, precision=precision).embed(source)

    def evaluate(
        self,
        data: Data,
        protocols: Sequence[str | Protocol] = DEFAULT,
        *,
        size: int | None = None,
        device: str = "auto",
        precision: Literal["auto", "fp32", "bf16"] = "auto",
        progress: Counting | None = None,
        **options: Any,
    ) -> Report:
        """Numbers on labelled data, with 95% intervals; kept for `selfsight.compare`, with a
        warning where the run's folder cannot be written to.

        size: side of the images, None is that of the training
        """

        def keep(found: Report) -> None:
            try:
                self.keep(found, data)
            except StorageError as error:
                # The numbers may have taken hours, and are worth having all the same.
                text = f"the results of single images are not kept: {error}"
                warnings.warn(text, stacklevel=2)

        # As soon as they are known: a later protocol may fail.
        seen = self.sight(size, progress, device=device, precision=precision)
        return judge(seen, data, protocols, each=keep, **options)

    def keep(self, report: Report, data: Data) -> list[Path]:
        """Write what `report` says of each test image into evaluations/; the files."""
        return [keep(one, self.path / "evaluations") for one in evaluations(report, data)]

    @property
    def evaluations(self) -> list[Evaluation]:
        """What was kept, the newest first."""
        return read_folder(self.path / "evaluations")

    def controls(
        self,
        data: Data,
        protocols: Sequence[str | Protocol] = DEFAULT,
        *,
        size: int | None = None,
        device: str = "auto",
        precision: Literal["auto", "fp32", "bf16"] = "auto",
        progress: Counting | None = None,
        **options: Any,
    ) -> dict[str, Report]:
        """What `evaluate` says of raw pixels, of the encoder before training, and of the
        trained one."""
        before = "starting weights" if self.config["pretrained"] else "untrained"
        how: dict[str, Any] = {"device": device, "precision": precision, "progress": progress}
        start = sight(self.untrained(), size or self.config["size"], **how)
        return {
            "raw pixels": judge_pixels(data, protocols, **options),
            before: judge(start, data, protocols, **options),
            "trained": self.evaluate(data, protocols, size=size, **how, **options),
        }


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
    if next(encoder.parameters(), None) is None:
        # A graph of another runtime has no parameters, and stays on the CPU as it was written.
        device, precision = "cpu", "fp32"
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
