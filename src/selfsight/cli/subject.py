"""RUN|ENCODER: a run's folder, an exported model's folder, an ONNX file, or the name of an
architecture."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from selfsight.cli.output import note
from selfsight.cli.parser import Parser, whole
from selfsight.counting import counting
from selfsight.errors import ConfigError, DataError

if TYPE_CHECKING:
    from selfsight.encoders.base import Encoder
    from selfsight.evaluate import Sight
    from selfsight.features import Features

__all__ = ["Subject", "is_features", "open_features", "open_subject", "take_subject"]

_FEATURES = (".npz", ".parquet")
_PICKLED = (".bin", ".ckpt", ".pt", ".pth", ".tar")


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
    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"

    def sight(self, encoder: "Encoder", whose: str = "") -> "Sight":
        """This encoder, or the one before, as it is to be used; `whose` goes before what is
        counted."""
        from selfsight.run import sight

        def tell(what: str) -> Callable[[int, int], None]:
            return counting(whose + what)

        return sight(encoder, self.size, tell, device=self.device, precision=self.precision)


def take_subject(parser: Parser) -> None:
    add = parser.add_argument
    add("subject", metavar="RUN|ENCODER", help="a run, a model's folder, .onnx, or a timm name")
    add("--size", type=whole(1), metavar="PX", help="side of the images the encoder sees")
    add("--pretrained", action="store_true", help="with trained weights (of an architecture)")
    add("--device", metavar="NAME", help="auto, cpu or cuda")
    add("--precision", choices=("auto", "fp32", "bf16"), help="the device's own by default")


def open_subject(arguments: argparse.Namespace) -> Subject:
    """What was named, to be used as was said."""
    how = {"device": arguments.device, "precision": arguments.precision}
    return replace(_open(arguments), **{name: value for name, value in how.items() if value})


def _open(arguments: argparse.Namespace) -> Subject:
    """A folder goes before an architecture of the same name."""
    name: str = arguments.subject
    folder = Path(name)
    if not folder.exists():
        return _architecture(name, arguments.size, arguments.pretrained)
    if arguments.pretrained:
        raise ConfigError("--pretrained is for the name of an architecture, not for a folder")
    if folder.is_file():
        return _file(folder, arguments.size)
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


def is_features(name: str) -> bool:
    """Whether embeddings are named rather than an encoder."""
    return Path(name).suffix in _FEATURES


def open_features(arguments: argparse.Namespace) -> "tuple[Features, Features]":
    """The training and the test embeddings, which stand in place of the encoder and the data; of
    one file four fifths and one fifth of every class."""
    from selfsight.features import Features

    train, test = Path(arguments.subject), Path(arguments.data)
    for name in ("size", "pretrained", "device", "precision", "controls"):
        if getattr(arguments, name):
            raise ConfigError(f"--{name} is for encoders, and {train} holds embeddings; leave it")
    if not is_features(arguments.data):
        raise ConfigError(
            f"{train} holds embeddings, and DATA those to test on, in an .npz or .parquet file"
        )
    learned = Features.load(train)
    if test.exists() and test.samefile(train):
        return learned.split()
    return learned, Features.load(test)


def _file(file: Path, size: int | None) -> Subject:
    if file.suffix == ".onnx":
        from selfsight.encoders.onnx import OnnxEncoder

        graph = OnnxEncoder(file, size)
        if not graph.described:
            note(f"{file} does not say how its images are normalised; ImageNet's is taken")
        return Subject(file.name, graph, graph.size, ("untrained", lambda: graph.fresh(seed=0)))
    if file.suffix in _FEATURES:
        raise ConfigError(f"{file} holds embeddings, and an encoder is needed")
    if file.suffix in (*_PICKLED, ".safetensors"):
        raise ConfigError(
            f"{file} does not say what it is; make a model folder of it: "
            f"selfsight convert {file} --encoder NAME --out DIR"
        )
    raise DataError(f"{file} is no encoder; take a run, a model's folder, .onnx or a timm name")


def _architecture(name: str, size: int | None, pretrained: bool) -> Subject:
    known = (".onnx", ".safetensors", *_FEATURES, *_PICKLED)
    if ("/" in name and ":" not in name) or Path(name).suffix in known:
        raise DataError(f"{name} does not exist")
    from selfsight.encoders import create_encoder

    encoder = create_encoder(name, size=size, pretrained=pretrained, seed=0)
    if not pretrained:
        note(f"{name} has random weights; --pretrained takes trained ones")
    return Subject(name, encoder, encoder.size, ("untrained", lambda: encoder.fresh(seed=0)))
