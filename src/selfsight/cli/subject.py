"""RUN|ENCODER: a run's folder, an exported model's folder, or the name of an architecture."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from selfsight.cli.output import note
from selfsight.cli.parser import Parser, whole
from selfsight.errors import ConfigError, DataError

if TYPE_CHECKING:
    from selfsight.encoders.base import Encoder

__all__ = ["Subject", "open_subject", "take_subject"]


@dataclass(frozen=True)
class Subject:
    """An encoder to use at `size` pixels.

    name: what its row is called
    before: the name and a maker of what it is compared with: the same architecture with the
        weights a run started from, or with random ones
    """

    name: str
    encoder: "Encoder"
    size: int
    before: "tuple[str, Callable[[], Encoder]]"


def take_subject(parser: Parser) -> None:
    add = parser.add_argument
    add("subject", metavar="RUN|ENCODER", help="a run, a model's folder, or a timm architecture")
    add("--size", type=whole(1), metavar="PX", help="side of the images the encoder sees")
    add("--pretrained", action="store_true", help="with trained weights (of an architecture)")


def open_subject(arguments: argparse.Namespace) -> Subject:
    """What was named; a folder goes before an architecture of the same name."""
    name: str = arguments.subject
    folder = Path(name)
    if not folder.exists():
        return _architecture(name, arguments.size, arguments.pretrained)
    if arguments.pretrained:
        raise ConfigError("--pretrained is for the name of an architecture, not for a folder")
    if (folder / "run.json").is_file():
        import selfsight

        run = selfsight.load(folder)
        size = arguments.size or run.config["size"]
        before = "starting weights" if run.config["pretrained"] else "untrained"
        return Subject("trained", run.model, size, (before, run.untrained))
    if (folder / "config.json").is_file():
        from selfsight.export.model import load_model

        model = load_model(folder)
        size = arguments.size or model.size
        return Subject("trained", model, size, ("untrained", lambda: model.fresh(seed=0)))
    raise DataError(f"{name} is neither a run (no run.json) nor a model (no config.json)")


def _architecture(name: str, size: int | None, pretrained: bool) -> Subject:
    if "/" in name and ":" not in name:
        raise DataError(f"{name} does not exist")
    from selfsight.encoders import create_encoder

    encoder = create_encoder(name, size=size, pretrained=pretrained, seed=0)
    if not pretrained:
        note(f"{name} has random weights; --pretrained takes trained ones")
    return Subject(name, encoder, encoder.size, ("untrained", lambda: encoder.fresh(seed=0)))
