"""What every way to judge an encoder is."""

import abc
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from selfsight.data.base import Counting, Progress, Source
from selfsight.data.sources import Data
from selfsight.data.split import evaluation_split
from selfsight.encoders.base import Encoder
from selfsight.evaluate.report import Score
from selfsight.extraction import extract
from selfsight.features import Features

__all__ = ["OnFeatures", "OnImages", "Protocol", "Sight"]


@dataclass(frozen=True)
class Sight:
    """An encoder and how it is used: on images of `size` pixels, where, and how exactly."""

    encoder: Encoder
    size: int
    device: str | torch.device = "cpu"
    precision: Literal["fp32", "bf16"] = "fp32"
    threads: int = 1
    progress: Counting | None = None

    def embed(self, source: Source, read: Callable[[Tensor], Tensor] | None = None) -> Features:
        """h of every image, or what `read` takes of a batch of them."""
        return extract(
            self.encoder,
            source,
            size=self.size,
            device=self.device,
            precision=self.precision,
            progress=self.counting("embedded"),
            threads=self.threads,
            read=read,
        )

    def counting(self, what: str) -> Progress:
        """To be told (done, total) of what is done next, as `embedded`; silent if nobody waits."""
        return self.progress(what) if self.progress else _silent


def _silent(done: int, total: int) -> None:
    pass


class Protocol(abc.ABC):
    """One way to judge. The keywords of a subclass's constructor are its options; a subclass
    is OnFeatures or OnImages, and final.

    name: what the command line calls it
    options: those it was built with, and the others as they are by default
    """

    name: ClassVar[str]
    options: dict[str, Any]

    def __new__(cls, *given: Any, **named: Any) -> Self:
        protocol = super().__new__(cls)
        bound = inspect.signature(cls.__init__).bind(protocol, *given, **named)
        bound.apply_defaults()
        _, *options = bound.arguments.items()
        protocol.options = dict(options)
        return protocol


class OnFeatures(Protocol):
    """Judges embeddings of labelled images, whoever made them."""

    @abc.abstractmethod
    def measure(self, train: Features, test: Features) -> list[Score]:
        """Learn from `train`, count on `test`; the score that counts comes first.

        Both are labelled, finite, of one width, and numbered by the same classes.
        """


class OnImages(Protocol):
    """Judges an encoder on images and what is known of them: labels, boxes, masks, frames."""

    def open(
        self, data: Data, *, duplicates: Literal["refuse", "drop"] = "refuse", **options: Any
    ) -> tuple[Any, Any]:
        """The training and the test part of `data`.

        duplicates: see `evaluation_split`
        options: those of `open_source`
        """
        return evaluation_split(data, duplicates=duplicates, **options)

    @abc.abstractmethod
    def measure(self, sight: Sight, train: Any, test: Any) -> list[Score]:
        """Learn from `train`, count on `test`; the score that counts comes first."""
