"""Embeddings as arrays: what evaluation, diagnosis and search work on, whoever made them."""

import contextlib
import json
import os
import struct
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import IO, Any, Self

import numpy as np

from selfsight.data.split import stratified
from selfsight.errors import ConfigError, DataError, StorageError

__all__ = ["Features"]


@dataclass(frozen=True, eq=False)
class Features:
    """One embedding per image, in the data's order.

    embedding: (N, D) float32
    label: (N,) int64, or None
    path: a name for each image; numbers when none are given
    classes: the labels' names, if known
    """

    embedding: np.ndarray
    label: np.ndarray | None = None
    path: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        with np.errstate(over="ignore"):  # what is not finite is refused where it is used
            embedding = np.ascontiguousarray(self.embedding, np.float32)
        if embedding.ndim != 2 or embedding.shape[1] == 0:
            raise DataError(f"an embedding is (N, D) with D ≥ 1, got shape {embedding.shape}")
        n = len(embedding)
        path = tuple(self.path) or tuple(str(i) for i in range(n))
        label = None if self.label is None else np.ascontiguousarray(self.label, np.int64)
        if len(path) != n or (label is not None and label.shape != (n,)):
            labels = "no" if label is None else len(label)
            raise DataError(
                f"{n} embeddings need as many paths and labels, got {len(path)} paths "
                f"and {labels} labels"
            )
        if label is not None and n:
            low, high = int(label.min()), int(label.max())
            if low < 0 or high >= _MAX_CLASSES or (self.classes and high >= len(self.classes)):
                raise DataError(
                    f"labels {low} to {high} do not fit {len(self.classes)} class "
                    "names; number them from 0"
                )
        for name, value in (
            ("embedding", embedding),
            ("label", label),
            ("path", path),
            ("classes", tuple(self.classes)),
        ):
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.embedding)

    @property
    def dim(self) -> int:
        return int(self.embedding.shape[1])

    def subset(self, index: np.ndarray) -> Self:
        """The rows with these numbers (n,), in this order."""
        label = None if self.label is None else self.label[index]
        path = tuple(self.path[i] for i in index)
        return type(self)(self.embedding[index], label, path, self.classes)

    def split(self, seed: int = 0) -> tuple[Self, Self]:
        """Four fifths and one fifth of every class, to learn from and to test on."""
        if self.label is None:
            raise DataError("features without labels cannot be split into training and test ones")
        train, test = stratified(self.label, seed)
        if len(test) == 0:
            raise DataError("no class has two embeddings, so none to test on; label more images")
        return self.subset(train), self.subset(test)

    def save(self, file: str | os.PathLike[str]) -> None:
        """Write to .npz (`load` reads it) or .parquet (columns path, label, class,
        embedding), all at once or not at all."""
        file = Path(file)
        write = {".npz": _write_npz, ".parquet": _write_parquet}[_format(file)]
        temporary = file.with_name(f".{os.getpid()}.selfsight.tmp")
        try:
            with open(temporary, "wb") as stream:
                write(self, stream)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, file)
            folder = os.open(file.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise StorageError(
                f"cannot write {file}: {error.strerror}; choose another place"
            ) from error
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()

    @classmethod
    def load(cls, file: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote, or an .npz of others with one array called embedding, features
        or x and, if there are labels, whole numbers called label, labels or y."""
        file = Path(file)
        read = {".npz": _read_npz, ".parquet": _read_parquet}[_format(file)]
        try:
            return cls(**read(file))
        except OSError as error:
            if error.strerror is None:  # pyarrow's complaints about the content
                raise _foreign(file, error) from error
            raise StorageError(f"cannot read {file}: {error.strerror}") from error
        except _BROKEN as error:
            raise _foreign(file, error) from error


_MARK = "selfsight.features.1"
_FOREIGN = {"embedding": ("embedding", "features", "x"), "label": ("label", "labels", "y")}
# Tables are as wide as the largest label; numbers hardly shrink when they are packed.
_MAX_CLASSES, _MAX_GROWTH, _MAX_UNASKED = 1 << 20, 100, 1 << 30
_BROKEN = (
    AttributeError,
    DataError,
    ArithmeticError,
    EOFError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


def _format(file: Path) -> str:
    if file.suffix not in (".npz", ".parquet"):
        raise ConfigError(f"features are .npz or .parquet, got {file.name}; rename it")
    return file.suffix


def _foreign(file: Path, error: Exception) -> StorageError:
    reason = (str(error) or type(error).__name__).splitlines()[0][:200]
    return StorageError(f"{file} is damaged or not a selfsight feature file: {reason}")


# A file name that is not UTF-8 reaches us with lone surrogates; "surrogatepass" keeps any.
def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _decode(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")


def _write_npz(features: Features, stream: IO[bytes]) -> None:
    names = [_encode(name) for name in (*features.path, *features.classes)]
    arrays = {
        "format": np.array(_MARK),
        "embedding": features.embedding,
        "text": np.frombuffer(b"".join(names), np.uint8),
        "length": np.array([len(name) for name in names], np.int64),
    }
    if features.label is not None:
        arrays["label"] = features.label
    np.savez(stream, allow_pickle=False, **arrays)


def _read_npz(file: Path) -> dict[str, Any]:
    # numpy would leave a broken file open.
    with open(file, "rb") as stream, np.load(stream, allow_pickle=False) as archive:
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError("another format")
        parts: Any = archive.zip
        unpacked = sum(part.file_size for part in parts.infolist())
        if unpacked > max(_MAX_UNASKED, _MAX_GROWTH * file.stat().st_size):
            raise ValueError("it would unpack to far more than its size")
        if "format" not in archive:
            return _foreign_npz(archive)
        if str(archive["format"]) != _MARK:
            raise ValueError("another format")
        embedding, length = archive["embedding"], archive["length"]
        text = archive["text"].tobytes()
        label = archive.get("label")
    if (length < 0).any() or length.sum() != len(text) or len(length) < len(embedding):
        raise ValueError("names do not fit")
    ends = np.cumsum(length)
    names = [_decode(text[e - k : e]) for e, k in zip(ends.tolist(), length.tolist(), strict=True)]
    path, classes = tuple(names[: len(embedding)]), tuple(names[len(embedding) :])
    return {"embedding": embedding, "label": label, "path": path, "classes": classes}


def _foreign_npz(archive: Any) -> dict[str, Any]:
    """The arrays of an archive that we did not write, by their names."""
    found: dict[str, Any] = {}
    for field, names in _FOREIGN.items():
        present = [name for name in names if name in archive]
        if len(present) > 1 or (field == "embedding" and not present):
            raise ValueError(f"one array is called {', '.join(names[:-1])} or {names[-1]}")
        found[field] = archive[present[0]] if present else None
    if found["embedding"].dtype.kind not in "fiu":
        raise ValueError(f"embeddings are numbers, not {found['embedding'].dtype}")
    if found["label"] is not None and found["label"].dtype.kind not in "iu":
        raise ValueError(f"labels are whole numbers, not {found['label'].dtype}")
    return found


def _pyarrow() -> tuple[Any, Any]:
    """Slow to import, so not before it is needed; and untyped."""
    return import_module("pyarrow"), import_module("pyarrow.parquet")


def _write_parquet(features: Features, stream: IO[bytes]) -> None:
    pa, pq = _pyarrow()
    label, classes = features.label, features.classes
    named = [None] * len(features) if label is None or not classes else [classes[i] for i in label]
    flat = pa.array(features.embedding.ravel())
    table = pa.table(
        {
            "path": _text(features.path),
            "label": pa.array([None] * len(features) if label is None else label, pa.int64()),
            "class": _text(named),
            "embedding": pa.FixedSizeListArray.from_arrays(flat, features.dim),
        }
    )
    # JSON escapes lone surrogates; the column holds only the classes that occur.
    mark = json.dumps({"format": _MARK, "labelled": label is not None, "classes": classes})
    pq.write_table(table.replace_schema_metadata({"selfsight": mark}), stream)


def _read_parquet(file: Path) -> dict[str, Any]:
    pa, pq = _pyarrow()
    # pyarrow guesses at folders; this asks for the file itself.
    with open(file, "rb") as stream:
        table = pq.read_table(stream)
    mark = json.loads((table.schema.metadata or {})[b"selfsight"])
    column = table["embedding"].combine_chunks()
    # A damaged schema may still be a schema, of other types.
    if mark["format"] != _MARK or not isinstance(column.type, pa.FixedSizeListType):
        raise ValueError("another format")
    dim = column.type.list_size
    embedding = column.flatten().to_numpy(zero_copy_only=False).reshape(len(table), dim)
    path = table["path"].to_pylist()
    label = table["label"].to_numpy() if mark["labelled"] else None
    named = all(isinstance(name, str | bytes) for name in (*path, *mark["classes"]))
    if not named or (label is not None and label.dtype.kind not in "iu"):
        raise ValueError("labels are whole numbers, and paths and classes are names")
    return {
        # Arrow's memory may be read only, which torch would not share.
        "embedding": np.require(embedding, requirements="W"),
        "label": None if label is None else np.require(label, requirements="W"),
        "path": tuple(_decode(name) if isinstance(name, bytes) else name for name in path),
        "classes": tuple(mark["classes"]),
    }


def _text(names: Sequence[str | None]) -> Any:
    """A column of strings, or of bytes where a string would not be valid UTF-8."""
    pa, _ = _pyarrow()
    try:
        return pa.array(names, pa.string())
    except UnicodeEncodeError:
        return pa.array([None if name is None else _encode(name) for name in names], pa.binary())
