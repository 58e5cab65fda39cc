"""Official checkpoints as model folders; the untrusted file is opened by another process."""

import hashlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from selfsight.encoders.layouts import Branch, Found, find
from selfsight.encoders.timm import TimmEncoder, create_encoder
from selfsight.encoders.weights import Triple
from selfsight.errors import ConfigError, StorageError
from selfsight.export.model import save_model

__all__ = ["Converted", "convert", "read_checkpoint"]

_QUARANTINE = Path(__file__).with_name("quarantine.py")

# Reading holds the file's tensors, their copies, and what an archive was packed from.
_MEMORY, _FACTOR = 1 << 30, 4
_SECONDS, _BYTES_PER_SECOND = 120, 20 << 20


@dataclass(frozen=True)
class Converted:
    """What became of a checkpoint.

    left: the beginnings of the keys that are not in the model: heads, another branch
    """

    encoder: TimmEncoder
    layout: str
    branch: Branch
    left: tuple[str, ...]


def convert(
    checkpoint: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    encoder: str,
    layout: str = "auto",
    branch: Branch | None = None,
    size: int | None = None,
    mean: Triple | None = None,
    std: Triple | None = None,
) -> Converted:
    """Write the encoder of an official checkpoint as a model folder.

    encoder: the architecture, by timm's name
    layout: a name in `LAYOUTS`, or auto for the one that the keys show
    branch: None takes the one that the method's paper evaluates
    size: side of the images it was trained on; None takes the architecture's
    mean, std: what they were normalised by; None takes the layout's
    """
    path, folder = Path(checkpoint), Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} exists; choose another place, or empty it")
    if std is not None and min(std) <= 0:
        raise ConfigError(f"a deviation is above 0, got {', '.join(f'{part:g}' for part in std)}")
    model = create_encoder(encoder, size=size, seed=0)
    try:
        folder.absolute().parent.mkdir(parents=True, exist_ok=True)
        state = read_checkpoint(path, folder.absolute().parent)
        with path.open("rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise StorageError(f"{error.filename or path}: {error.strerror}") from error
    found = find(state, layout, branch)
    arguments = found.layout.arguments.get(model.architecture)
    if arguments:
        model = create_encoder(encoder, size=size, seed=0, **arguments)
    _fill(model, found)
    model.mean, model.std = mean or found.layout.mean, std or found.layout.std
    model.pretrained = True
    said = {
        "checkpoint": path.name,
        "checkpoint_sha256": sha256,
        "layout": found.name,
        "branch": found.branch,
        "left": list(found.left),
    }
    save_model(model, folder, extra={"converted": said})
    return Converted(model, found.name, found.branch, found.left)


def read_checkpoint(path: Path, scratch: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file or of a pickled checkpoint, by dotted keys.

    scratch: a folder with room for a copy
    """
    if not path.is_file():
        raise StorageError(f"there is no checkpoint at {path}")
    if path.suffix == ".safetensors":
        return _load(path, path)
    with tempfile.TemporaryDirectory(prefix=".selfsight-", dir=scratch) as place:
        out, why = Path(place, "tensors.safetensors"), Path(place, "why")
        size = path.stat().st_size
        seconds = _SECONDS + size // _BYTES_PER_SECOND
        limits = [str(_MEMORY + _FACTOR * size), str(seconds)]
        # Isolated: neither the environment, the user's packages nor the folder we stand in choose
        # what it imports; and there is no secret in the environment, and no home, to take.
        words = [sys.executable, "-I", str(_QUARANTINE), str(path.absolute()), str(out)]
        home = Path(place, "home")
        home.mkdir()
        given = {"HOME": str(home), "TMPDIR": str(home), "OMP_NUM_THREADS": "1"}
        # Where torch's own libraries may have to be found.
        given |= {k: v for k, v in os.environ.items() if k == "LD_LIBRARY_PATH"}
        try:
            with why.open("wb") as complaints:
                code = subprocess.run(
                    words + limits,
                    cwd=place,
                    env=given,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=complaints,
                    timeout=2 * seconds,
                ).returncode
        except subprocess.TimeoutExpired:
            raise StorageError(
                f"{path} was not read within {2 * seconds} s; it is refused"
            ) from None
        if code:
            with why.open("rb") as complaints:
                said = complaints.read(1 << 16).decode("utf-8", "replace")
            raise StorageError(f"{path} {_refusal(code, said)}")
        return _load(out, path)


def _load(file: Path, path: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_file(file)
        return tensors
    except SafetensorError as error:
        raise StorageError(f"{path} cannot be read: {_line(str(error))}") from error


def _refusal(code: int, said: str) -> str:
    """Why the other process gave up, in the user's words."""
    wanted = re.search(r"GLOBAL (\S+)", said)
    if wanted:
        return (
            f"is refused: it asks for {wanted[1][:100]}, and only tensors are read; ask its author "
            "for the state_dict alone, as safetensors"
        )
    if code < 0:
        return f"is refused: reading it took more time or memory than its size (signal {-code})"
    if re.search(r"allocate memory|MemoryError|bad_alloc|bad allocation", said):
        return "is refused: it would unpack to far more than its size"
    return f"is damaged or no checkpoint of torch: {_line(said) or 'no reason given'}"


def _fill(model: TimmEncoder, found: Found) -> None:
    """Load all of the encoder, or nothing."""
    own: Mapping[str, Tensor] = model.model.state_dict()
    given = dict(found.tensors)
    for key, value in own.items():
        # A count of batches that the features do not depend on; old checkpoints lack it.
        if key.endswith("num_batches_tracked"):
            given.setdefault(key, torch.zeros_like(value))
    both = own.keys() & given.keys()
    other = [
        f"{key} ({_shape(given[key])}, not {_shape(own[key])})"
        for key in sorted(both)
        if given[key].shape != own[key].shape
        or given[key].is_floating_point() != own[key].is_floating_point()
    ]
    faults = {
        "lacks": sorted(own.keys() - given.keys()),
        "also has": sorted(given.keys() - own.keys()),
        "differs in": other,
    }
    if any(faults.values()):
        what = "; ".join(f"{word} {_some(keys)}" for word, keys in faults.items() if keys)
        advice = "name the architecture that it was trained with"
        if other and all(key.startswith("pos_embed") for key in other):
            advice = "give --size, the side of the images that it was trained on"
        raise ConfigError(
            f"the {found.branch} of this {found.name} checkpoint is no {model.name}: it {what}; "
            f"{advice}"
        )
    broken = [key for key, value in given.items() if not bool(value.isfinite().all())]
    if broken:
        raise ConfigError(f"the checkpoint is not finite in {_some(sorted(broken))}; take another")
    model.model.load_state_dict(given)


def _some(keys: list[str]) -> str:
    rest = len(keys) - 4
    return ", ".join(keys[:4]) + (f" and {rest} more" if rest > 0 else "")


def _shape(value: Any) -> str:
    kind = "" if value.is_floating_point() else f" {value.dtype}".replace("torch.", "")
    return ("×".join(map(str, value.shape)) or "a number") + kind


def _line(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= 200 else f"{words[:200]} …"
