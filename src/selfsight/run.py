"""A finished or interrupted run: its encoder, its numbers, its verdict."""

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from selfsight.data.base import Progress, Source
from selfsight.data.sources import Data, open_source
from selfsight.data.split import evaluation_split
from selfsight.diagnose.checks import Verdict, verdicts
from selfsight.encoders import create_encoder
from selfsight.encoders.base import Encoder
from selfsight.encoders.timm import TimmEncoder
from selfsight.errors import StorageError
from selfsight.evaluate import Report, evaluate
from selfsight.export.model import load_model
from selfsight.features import Features, extract, pixels
from selfsight.machine import cores, native_bf16
from selfsight.methods import METHODS, create
from selfsight.methods.base import Method
from selfsight.philox import Purpose, seed_for

__all__ = ["Run", "embed", "measure"]


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

    def embed(self, data: Data, **options: Any) -> Features:
        """h of every image of `data`."""
        return embed(self.model, open_source(data, labels=None, **options), self.config["size"])

    def evaluate(
        self, data: Data, protocols: Sequence[str] = ("knn", "linear"), **options: Any
    ) -> Report:
        """Accuracy on labelled data, with 95% intervals."""
        split = evaluation_split(data, **options)
        return measure(self.model, split, self.config["size"], protocols)

    def compare(
        self, data: Data, protocols: Sequence[str] = ("knn", "linear"), **options: Any
    ) -> dict[str, Report]:
        """The same for raw pixels, for the encoder before training, and for the trained one."""
        split = evaluation_split(data, **options)
        size, start = self.config["size"], self.untrained()
        before = "starting weights" if self.config["pretrained"] else "untrained"
        return {
            "raw pixels": evaluate(pixels(split[0]), pixels(split[1]), protocols=protocols),
            before: measure(start, split, size, protocols),
            "trained": measure(self.model, split, size, protocols),
        }


def embed(
    encoder: Encoder, source: Source, size: int, progress: Progress | None = None
) -> Features:
    """h of every image, on the fastest device, in the precision it computes natively."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    precision: Literal["fp32", "bf16"] = "bf16" if native_bf16(device) else "fp32"
    return extract(
        encoder,
        source,
        size=size,
        device=device,
        precision=precision,
        progress=progress,
        threads=cores(),
    )


def measure(
    encoder: Encoder,
    split: tuple[Source, Source],
    size: int,
    protocols: Sequence[str],
    progress: Progress | None = None,
) -> Report:
    """An encoder's accuracy: probes learn on the first part and are tested on the second."""
    train, test = (embed(encoder, part, size, progress) for part in split)
    return evaluate(train, test, protocols=tuple(protocols))
