"""Scores as files, with what each test image adds, so that they can be compared later."""

import base64
import binascii
import contextlib
import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from selfsight.data.base import Source
from selfsight.encoders.base import Encoder
from selfsight.errors import StorageError
from selfsight.evaluate.report import Judged, Report, Score

__all__ = [
    "Evaluation",
    "alike",
    "data_name",
    "evaluations",
    "images_mark",
    "keep",
    "read",
    "read_folder",
    "weights_mark",
]

_FORMAT = "selfsight.evaluation.1"
# A million images with a number each take 11 MB.
_MAX_BYTES = 64 << 20
_MAX_TEXT = 10_000
# Options and details are tables of tables at most.
_MAX_DEPTH = 20


@dataclass(frozen=True)
class Evaluation:
    """What one protocol with its options found on some data; the score that counts is first.

    data: what the data were called
    """

    data: str
    judged: Judged
    scores: tuple[Score, ...]

    @property
    def score(self) -> Score:
        return self.scores[0]

    @property
    def key(self) -> str:
        """Equal where protocol, options and images are, so that a comparison means something."""
        score = self.score
        return alike(score.protocol, score.options, score.images or self.data)

    @property
    def digest(self) -> str:
        """Names the file: one per key, size and precision; that of other weights is replaced."""
        text = f"{self.key} {self.judged.size} {self.judged.precision}"
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def json(self) -> dict[str, Any]:
        return {
            "format": _FORMAT,
            "data": self.data,
            **asdict(self.judged),
            "scores": [_packed(score) for score in self.scores],
        }


def evaluations(report: Report, data: object) -> list[Evaluation]:
    """The scores of several protocols, each protocol's on its own."""
    found: dict[str, list[Score]] = {}
    for score in report.scores:
        group = _canonical([score.protocol, score.options, score.images])
        # As they will be read.
        found.setdefault(group, []).append(replace(score, options=_plain(score.options)))
    return [Evaluation(data_name(data), report.judged, tuple(group)) for group in found.values()]


def data_name(data: object) -> str:
    """What to call data that were given: a path from the root, a name, or `array`."""
    if isinstance(data, str | os.PathLike):
        path = Path(data).expanduser()
        return str(path.resolve()) if path.exists() else os.fspath(data)
    return data.name if isinstance(data, Source) else "array"


def alike(protocol: str, options: Mapping[str, Any], images: str) -> str:
    """The key of what is measured by this protocol, with these options, on these images."""
    return _canonical([protocol, options, images])


def images_mark(*parts: Any) -> str:
    """A digest of training and test parts: equal where their images, labels and order are.
    Empty if a part holds what has no content to digest."""
    total = hashlib.sha256()
    try:
        for part in parts:
            _absorb(total, part)
    except TypeError:
        return ""
    return total.hexdigest()


def weights_mark(encoder: Encoder) -> str:
    """A digest: equal where encoders compute the same. Empty for one that shows no weights."""
    state = encoder.state_dict()
    about = encoder.name, encoder.mean, encoder.std, encoder.crop_pct
    total = hashlib.sha256(repr(about).encode())
    for name, value in state.items():
        total.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        # As bytes, since numpy has no bfloat16.
        total.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    return total.hexdigest() if state else ""


def _absorb(total: Any, part: Any) -> None:
    total.update(type(part).__name__.encode() + b"\0")
    if isinstance(part, Source):
        total.update(part.fingerprint.encode())
        _absorb(total, part.labels)
    elif isinstance(part, np.ndarray) and part.dtype.kind in "biufSU":
        total.update(f"{part.dtype.str}{part.shape}".encode() + part.tobytes())
    elif isinstance(part, str | int | float | bool | os.PathLike | None):
        # File names that are not UTF-8 reach us with lone surrogates.
        total.update(str(part).encode("utf-8", "surrogatepass") + b"\0")
    elif isinstance(part, Mapping):
        _absorb(total, list(part.items()))
    elif isinstance(part, list | tuple):
        for item in (len(part), *part):
            _absorb(total, item)
    elif is_dataclass(part) and not isinstance(part, type):
        for field in fields(part):
            if field.compare:
                _absorb(total, getattr(part, field.name))
    else:
        raise TypeError


def keep(evaluation: Evaluation, folder: Path) -> Path:
    """Write it into `folder`, all at once or not at all; an earlier one of the same is
    replaced."""
    file = folder / f"{evaluation.digest}.json"
    temporary = folder / f".{evaluation.digest}.{os.getpid()}.tmp"
    try:
        folder.mkdir(exist_ok=True)
        with open(temporary, "w", encoding="ascii") as stream:
            json.dump(evaluation.json(), stream, indent=1, allow_nan=False)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, file)
    except OSError as error:
        raise StorageError(f"cannot write {file}: {error.strerror}") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    return file


def read_folder(folder: Path) -> list[Evaluation]:
    """All that are kept in `folder`, the newest first."""
    try:
        files = sorted(folder.glob("*.json"), key=lambda file: file.stat().st_mtime_ns)
    except OSError as error:
        raise StorageError(f"cannot read {folder}: {error.strerror}") from None
    return [evaluation for file in reversed(files) for evaluation in read(file)]


def read(file: Path) -> list[Evaluation]:
    """What `keep` wrote, or what stands under `evaluations` in another JSON document."""
    try:
        if file.stat().st_size > _MAX_BYTES:
            raise ValueError(f"more than {_MAX_BYTES >> 20} MiB")
        document = json.loads(file.read_bytes(), parse_constant=_refuse)
        if not isinstance(document, dict):
            raise ValueError("not an evaluation")
        each = [document] if "format" in document else document.get("evaluations")
        if not isinstance(each, list) or not each:
            raise ValueError("no results of each image in it; write it with evaluate --out")
        return [_evaluation(item) for item in each]
    except OSError as error:
        raise StorageError(f"cannot read {file}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise StorageError(f"{file} cannot be read as an evaluation: {reason[:200]}") from None


def _canonical(value: Any) -> str:
    return json.dumps(_plain(value), sort_keys=True)


def _packed(score: Score) -> dict[str, Any]:
    packed: dict[str, Any] = _plain(score.json())
    packed["images"] = score.images
    if score.each is not None:
        each = np.asarray(score.each)
        two = each.dtype == bool
        raw = np.packbits(each) if two else each.astype("<f8")
        packed["each"] = {
            "kind": "bits" if two else "float64",
            "count": len(each),
            "base64": base64.b64encode(raw.tobytes()).decode("ascii"),
        }
    if score.draws is not None:
        packed["draws"] = _plain(np.asarray(score.draws, np.float64))
    return packed


def _plain(value: Any) -> Any:
    """`value` as JSON knows it; what is not finite becomes null, what is unknown its text."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | None) else str(value)


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no number")


def _evaluation(item: Any) -> Evaluation:
    if not isinstance(item, dict) or item.get("format") != _FORMAT:
        raise ValueError("another format")
    scores = item["scores"]
    if not isinstance(scores, list) or not scores:
        raise ValueError("no scores")
    size = None if item["size"] is None else _count(item, "size")
    # An earlier form did not know them.
    told = (_text({name: "", **item}, name) for name in ("precision", "weights", "version"))
    judged = Judged(size, *told)
    return Evaluation(_text(item, "data"), judged, tuple(_score(score) for score in scores))


def _score(item: Any) -> Score:
    if not isinstance(item, dict):
        raise ValueError("a score is no object")
    options, details = item["options"], item["details"]
    if not isinstance(options, dict) or not isinstance(details, dict):
        raise ValueError("options and details are no objects")
    _check_depth([options, details], _MAX_DEPTH)
    each, draws = item.get("each"), item.get("draws")
    return Score(
        _text(item, "name"),
        _text(item, "protocol"),
        _number(item["value"], math.nan),
        _number(item["low"], -math.inf),
        _number(item["high"], math.inf),
        _count(item, "n"),
        _text(item, "metric"),
        details,
        each=None if each is None else _each(each),
        draws=None if draws is None else _draws(draws),
        options=options,
        images=_text(item, "images"),
    )


def _check_depth(value: Any, left: int) -> None:
    if left == 0:
        raise ValueError("it is nested too deeply")
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            _check_depth(item, left - 1)


def _text(item: dict[str, Any], name: str) -> str:
    text = item[name]
    if not isinstance(text, str) or len(text) > _MAX_TEXT:
        raise ValueError(f"{name} is no short text")
    return text


def _count(item: dict[str, Any], name: str) -> int:
    count = item[name]
    if type(count) is not int or not 0 <= count < 1 << 40:
        raise ValueError(f"{name} is no count")
    return count


def _number(value: Any, missing: float) -> float:
    if value is None:
        return missing
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError("a number is none")
    return float(value)


def _each(item: Any) -> np.ndarray:
    if not isinstance(item, dict) or not isinstance(item["base64"], str):
        raise ValueError("each is no packed list")
    count = _count(item, "count")
    try:
        raw = base64.b64decode(item["base64"], validate=True)
    except binascii.Error as error:
        raise ValueError(f"each is not base64: {error}") from None
    if item["kind"] == "bits" and len(raw) == -(-count // 8):
        return np.unpackbits(np.frombuffer(raw, np.uint8), count=count).astype(bool)
    if item["kind"] == "float64" and len(raw) == 8 * count:
        each = np.frombuffer(raw, "<f8").astype(np.float64)
        if np.isfinite(each).all():
            return each
    raise ValueError(f"each is not {count} numbers")


def _draws(item: Any) -> np.ndarray:
    if not isinstance(item, Sequence) or isinstance(item, str):
        raise ValueError("draws is no list")
    return np.array([_number(value, math.nan) for value in item], np.float64)
