"""An ONNX file as an encoder: images in, embeddings out, and nothing inside to look at."""

import functools
import json
import math
import os
import threading
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from selfsight.encoders.base import Encoder
from selfsight.encoders.weights import Triple
from selfsight.errors import ConfigError, StorageError

__all__ = ["METADATA", "OnnxEncoder"]

# The entry of the file's metadata where an export may say, as JSON, what the graph expects:
# {"size": 224, "mean": [r, g, b], "std": [r, g, b], "crop_pct": 0.875}, each of them optional.
METADATA = "selfsight"

# protobuf holds no more; larger models keep their weights in files beside it.
_MAX_FILE, _MAX_WEIGHTS = 1 << 31, 16 << 30
# What graphs may hold at a time beside their weights, and take for an image.
_MEMORY, _SECONDS = 16 << 30, 60
_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


@final
class OnnxEncoder(Encoder):
    """A graph with one input (N, 3, H, W) and one output (N, D), or (N, C, rows, columns), which
    is averaged over its places. It runs on the CPU by onnxruntime.

    Mean and deviation are those that the file's metadata state, else ImageNet's.

    size: side of the images; None takes the graph's, else the metadata's
    described: whether the metadata state mean and deviation
    """

    multiple, maskable, pretrained = 1, False, True

    def __init__(self, file: str | os.PathLike[str], size: int | None = None) -> None:
        super().__init__()
        path = Path(file)
        self.name = path.name
        self._engine = _engine(path)
        said = self._said()
        self.mean = said.get("mean", IMAGENET_DEFAULT_MEAN)
        self.std = said.get("std", IMAGENET_DEFAULT_STD)
        self.described = "mean" in said and "std" in said
        self._input, self._dtype, self._batch, side = self._takes()
        if size is not None and side is not None and size != side:
            raise ConfigError(
                f"{self.name} takes images of {side} pixels, not {size}; leave --size"
            )
        chosen = size or side or said.get("size")
        if chosen is None:
            raise ConfigError(f"{self.name} takes images of any size; choose one by --size")
        self.size = chosen
        self.crop_pct = said.get("crop_pct", 0.875 if self.size >= 128 else 1.0)
        outputs = [output.name for output in self._engine.get_outputs()]
        if len(outputs) != 1:
            raise ConfigError(
                f"{self.name} has {len(outputs)} outputs, {', '.join(outputs[:5])}; export it with "
                "the embedding alone"
            )
        with torch.no_grad():
            self.dim = int(self(torch.zeros(1, 3, self.size, self.size)).shape[1])
        self.token_dim = self.dim
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            raise ConfigError(
                f"{self.name} is a graph without gradients; embed under torch.no_grad(), and train "
                "a model folder or a timm architecture"
            )
        step = self._batch or max(len(x), 1)
        parts = [self._run(x[start : start + step]) for start in range(0, len(x), step)]
        h = torch.cat(parts).float()
        return (h.mean(dim=(2, 3)) if h.ndim == 4 else h).to(x.device)

    def _run(self, x: Tensor) -> Tensor:
        array = x.detach().cpu().numpy().astype(self._dtype)
        # A graph may be made for one number of images only.
        missing = max((self._batch or 0) - len(array), 0)
        array = np.pad(array, ((0, missing), (0, 0), (0, 0), (0, 0)))
        height, width = x.shape[2:]
        how, seconds = import_module("onnxruntime").RunOptions(), _SECONDS * max(len(array), 1)
        how.log_severity_level = 4
        # A loop in a graph need not end, and nothing else could interrupt it.
        limit = threading.Timer(seconds, setattr, (how, "terminate", True))
        limit.daemon = True
        limit.start()
        try:
            (y,) = self._engine.run(None, {self._input: array}, how)
        except Exception as error:
            if how.terminate:
                raise ConfigError(
                    f"{self.name} took more than {seconds} s for {len(array)} images; it is refused"
                ) from error
            raise ConfigError(
                f"{self.name} does not take images of {height} × {width} pixels: {_line(error)}"
            ) from error
        finally:
            limit.cancel()
        y = np.asarray(y)
        if y.ndim not in (2, 4) or len(y) != len(array) or y.dtype.kind != "f" or 0 in y.shape[1:]:
            raise ConfigError(
                f"{self.name} gives {y.dtype} of shape {y.shape} for {len(array)} images; export "
                "it with one embedding (N, D) or one feature map (N, C, H, W)"
            )
        return torch.from_numpy(y[: len(x)])

    def _takes(self) -> tuple[str, Any, int | None, int | None]:
        """Name and type of the input; images at a time and their side, None where any."""
        inputs = self._engine.get_inputs()
        shape = inputs[0].shape if len(inputs) == 1 else []
        # What is not fixed is a name or None.
        count, channels, *sides = [n if isinstance(n, int) else None for n in shape] or [None] * 2
        fixed = {side for side in sides if side is not None}
        if len(sides) != 2 or channels not in (3, None) or inputs[0].type not in _TYPES:
            found = ", ".join(f"{one.name} {one.type} {one.shape}" for one in inputs[:5])
            raise ConfigError(
                f"{self.name} takes {found or 'nothing'}; an encoder takes one float input of "
                "normalised images (N, 3, H, W)"
            )
        if len(fixed) > 1:
            raise ConfigError(
                f"{self.name} takes images of {sides[0]} × {sides[1]}, not square ones"
            )
        return inputs[0].name, _TYPES[inputs[0].type], count, fixed.pop() if fixed else None

    def _said(self) -> dict[str, Any]:
        """What the metadata say, checked."""
        text = self._engine.get_modelmeta().custom_metadata_map.get(METADATA)
        if text is None:
            return {}
        try:
            given = dict(json.loads(text))
            said: dict[str, Any] = {
                name: _triple(given[name]) for name in ("mean", "std") if name in given
            }
            if "size" in given:
                said["size"] = int(given["size"])
            if "crop_pct" in given:
                said["crop_pct"] = float(given["crop_pct"])
            in_range = said.get("size", 1) >= 1 and 0 < said.get("crop_pct", 1) <= 1
            if not in_range or min(said.get("std", (1.0,))) <= 0:
                raise ValueError("a number is out of range")
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            raise StorageError(
                f"{self.name} has unusable metadata under {METADATA!r} ({_line(error)}); export it "
                "again"
            ) from error
        return said


def _engine(path: Path) -> Any:
    try:
        onnx, runtime = import_module("onnx"), import_module("onnxruntime")
    except ImportError as error:
        raise ConfigError(
            f"an ONNX file needs {error.name}: pip install 'selfsight[export]'"
        ) from error
    try:
        if path.stat().st_size > _MAX_FILE:
            raise ValueError("it is larger than 2 GiB")
        _check_places(onnx, path)
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}") from error
    except StorageError:
        raise
    except Exception as error:  # protobuf's own
        raise _damaged(path, error) from error
    runtime.disable_telemetry_events()
    _limit_memory(runtime)
    options = runtime.SessionOptions()
    options.add_session_config_entry("session.use_env_allocators", "1")
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # its errors are raised as well
    try:
        return runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise _damaged(path, error) from error


@functools.cache
def _limit_memory(runtime: Any) -> None:
    """Once for all graphs: the runtime has one allocator, and a graph of a few bytes may ask for
    any amount."""
    kind = runtime.OrtAllocatorType.ORT_ARENA_ALLOCATOR
    place = runtime.OrtMemoryInfo("Cpu", kind, 0, runtime.OrtMemType.DEFAULT)
    # 1: an arena grows by what is asked for, instead of doubling.
    limits = {"max_mem": _MEMORY, "arena_extend_strategy": 1}
    runtime.create_and_register_allocator(place, runtime.OrtArenaCfg(limits))


def _check_places(onnx: Any, path: Path) -> None:
    """Whether all weights outside the file lie in its folder: a file may name any other."""
    folder, places = path.parent.resolve(), set()
    for tensor in _tensors(onnx, onnx.load(path, load_external_data=False)):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        named = {entry.key: entry.value for entry in tensor.external_data}.get("location", "")
        place = (folder / named).resolve()
        if not named or not place.is_relative_to(folder):
            raise StorageError(
                f"{path} takes weights from {named!r}, outside its folder; put both into one folder"
            )
        if not place.is_file():
            raise StorageError(f"{path} needs {named} beside it, which is not there")
        places.add(place)
    if sum(place.stat().st_size for place in places) > _MAX_WEIGHTS:
        raise StorageError(
            f"{path} takes more than {_MAX_WEIGHTS >> 30} GiB of weights from further files"
        )


def _tensors(onnx: Any, message: Any) -> Iterator[Any]:
    """Every tensor of a model, wherever it is nested: in subgraphs, functions, attributes."""
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        for part in value if isinstance(value, Sequence) else (value,):
            if isinstance(part, onnx.TensorProto):
                yield part
            else:
                yield from _tensors(onnx, part)


def _triple(values: Any) -> Triple:
    r, g, b = (float(value) for value in values)
    if not all(map(math.isfinite, (r, g, b))):
        raise ValueError("a number is not finite")
    return r, g, b


def _damaged(path: Path, error: Exception) -> StorageError:
    return StorageError(
        f"{path} is damaged or no usable ONNX file: {_line(error)}; export it again"
    )


def _line(error: Exception) -> str:
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) <= 200 else f"{words[:200]} …"
