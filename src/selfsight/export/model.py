"""The exported model: a folder that `timm.create_model("local-dir:…", pretrained=True)` loads."""

import hashlib
import json
import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file

from selfsight.encoders.small import __all__ as small
from selfsight.encoders.timm import TimmEncoder, create_encoder
from selfsight.encoders.weights import read_folder
from selfsight.errors import ConfigError, StorageError

__all__ = ["load_model", "save_model"]


def save_model(
    encoder: TimmEncoder,
    folder: str | os.PathLike[str],
    *,
    size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    extra: dict[str, Any] | None = None,
) -> None:
    """Write config.json and model.safetensors.

    size, mean, std: of the images to give it; None takes the encoder's
    extra: JSON about where the weights come from, kept under "selfsight"
    """
    size = size or encoder.size
    if size != encoder.size and not _flexible(encoder):
        raise ConfigError(f"{encoder.name} was built for {encoder.size} pixels, not {size}")
    path = Path(folder)
    tensors = {
        key: value.detach().cpu().contiguous() for key, value in encoder.model.state_dict().items()
    }
    written: list[Path] = []
    try:
        path.mkdir(parents=True, exist_ok=True)
        weights = _temporary(path, "model.safetensors", written)
        # One key: with several the file would not come out the same twice.
        save_file(tensors, weights, {"format": "pt"})
        _sync(weights)
        with weights.open("rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        config = _config(encoder, size, mean or encoder.mean, std or encoder.std)
        config["selfsight"] = {**(extra or {}), "sha256": sha256}
        description = _temporary(path, "config.json", written)
        description.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        _sync(description)
        # Between the two renames the hash tells that they do not belong together.
        weights.replace(path / "model.safetensors")
        description.replace(path / "config.json")
        _sync(path)
    except (OSError, SafetensorError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise StorageError(f"the model could not be written to {path}: {reason}") from error
    finally:
        for file in written:
            file.unlink(missing_ok=True)


def load_model(folder: str | os.PathLike[str]) -> TimmEncoder:
    """The encoder of a model folder, with its size, mean and deviation."""
    try:
        return create_encoder(read_folder(folder).architecture, pretrained=folder)
    except ConfigError as error:
        raise StorageError(f"{folder} does not hold a usable model: {error}") from error


def _flexible(encoder: TimmEncoder) -> bool:
    return "img_size" not in encoder.settings or "dynamic_img_size" in encoder.settings


def _config(
    encoder: TimmEncoder, size: int, mean: Sequence[float], std: Sequence[float]
) -> dict[str, Any]:
    """What timm reads; it never looks at "requires"."""
    cfg = encoder.model.pretrained_cfg
    config: dict[str, Any] = {
        "architecture": encoder.architecture,
        "num_classes": 0,
        "num_features": encoder.model.num_features,
    }
    if encoder.pool:
        config["global_pool"] = encoder.pool
    # Drop rates belong to a training, not to the weights.
    args = {k: v for k, v in encoder.settings.items() if not ("drop" in k and k.endswith("_rate"))}
    if args:
        config["model_args"] = args
    config["pretrained_cfg"] = {
        "tag": "selfsight",
        "custom_load": False,
        "input_size": [3, size, size],
        "fixed_input_size": not _flexible(encoder),
        "interpolation": encoder.interpolation,
        "crop_pct": encoder.crop_pct,
        "crop_mode": "center",
        "mean": list(mean),
        "std": list(std),
        "num_classes": 0,
        "pool_size": None,
        "first_conv": cfg.get("first_conv"),
        "classifier": cfg.get("classifier"),
    }
    if encoder.architecture in (*small, "lab_pair"):
        config["requires"] = "import selfsight.encoders"
    return config


def _temporary(folder: Path, name: str, written: list[Path]) -> Path:
    written.append(folder / f".{uuid.uuid4().hex}-{name}")
    return written[-1]


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
