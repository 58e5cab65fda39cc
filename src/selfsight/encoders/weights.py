"""Where an encoder's weights lie and what they expect; safetensors only, nothing is fetched."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import PretrainedCfg
from torch import Tensor

from selfsight.errors import ConfigError, StorageError

__all__ = ["RESERVED", "Triple", "Weights", "find", "read_folder"]

Triple = tuple[float, float, float]

# Arguments that `create_encoder` derives from its own.
_DERIVED = frozenset({"dynamic_img_size", "img_size", "in_chans", "num_classes"})

# With those that would change what timm builds, or read a file behind our back.
# fmt: off
RESERVED = _DERIVED | {
    "cache_dir", "checkpoint_path", "device", "dtype", "exportable", "feature_cls",
    "features_only", "no_jit", "out_indices", "pretrained", "pretrained_cfg",
    "pretrained_cfg_overlay", "pretrained_model_args", "pretrained_strict", "pruned",
    "scriptable", "use_naflex",
}
# fmt: on

_MAX_CONFIG = 1 << 20


@dataclass(frozen=True)
class Weights:
    """A safetensors file and what it was made for.

    classifier: names of the layers that an encoder does without
    published: whether the file is timm's, with the classifier that timm's configuration says
    grid: side of the images that its position embeddings were made for
    options: arguments of the model beside the size
    sha256: of the file, when it is known
    """

    file: Path
    architecture: str
    classifier: tuple[str, ...]
    size: int
    mean: Triple = IMAGENET_DEFAULT_MEAN
    std: Triple = IMAGENET_DEFAULT_STD
    crop_pct: float = 0.875
    interpolation: str = "bilinear"
    published: bool = False
    grid: int = 224
    options: dict[str, Any] = field(default_factory=dict)
    sha256: str | None = None

    def read(self) -> dict[str, Tensor]:
        """All tensors, on the CPU."""
        try:
            if self.sha256 is not None:
                with self.file.open("rb") as stream:
                    found = hashlib.file_digest(stream, "sha256").hexdigest()
                if found != self.sha256:
                    raise StorageError(f"{self.file} is not what was written; export it again")
            return load_file(self.file)
        except (OSError, SafetensorError) as error:
            raise _unreadable(self.file, error) from error

    def classes(self) -> int:
        """Outputs of the classifier in the file; 0 without one."""
        try:
            with safe_open(self.file, "pt") as tensors:
                for name in self.classifier:
                    if f"{name}.weight" in tensors.keys():  # noqa: SIM118
                        return int(tensors.get_slice(f"{name}.weight").get_shape()[0])
        except (OSError, SafetensorError) as error:
            raise _unreadable(self.file, error) from error
        return 0


def find(
    name: str, cfg: PretrainedCfg, pretrained: bool | str | os.PathLike[str], download: bool
) -> Weights:
    """The weights that `create_encoder` was asked for; cfg: timm's for `name`."""
    if isinstance(pretrained, bool):
        return _weights(name, cfg, _cached(name, cfg, download), published=True)
    path = Path(pretrained).expanduser()
    if path.is_dir():
        weights = read_folder(path)
        if weights.architecture != name.partition(".")[0]:
            raise ConfigError(f"{path} holds a {weights.architecture}, not a {name}")
        return weights
    if not path.exists():
        raise ConfigError(f"no weights at {path}; pretrained= is True, a file or a model folder")
    if path.suffix != ".safetensors":
        raise ConfigError(
            f"{path} is not a .safetensors file, and other formats can run code when opened; "
            "if you trust it, convert it with safetensors.torch.save_file"
        )
    return _weights(name, cfg, path)


def _weights(name: str, cfg: PretrainedCfg, file: Path, **more: Any) -> Weights:
    """Weights for which timm's configuration of `name` holds."""
    classifier = cfg.classifier or ()
    options = {
        "architecture": name.partition(".")[0],
        "grid": int(cfg.input_size[-1]),
        **more,
    }
    return Weights(
        file=file,
        classifier=(classifier,) if isinstance(classifier, str) else tuple(classifier),
        size=int(cfg.input_size[-1]),
        mean=_triple(cfg.mean),
        std=_triple(cfg.std),
        crop_pct=float(cfg.crop_pct),
        interpolation=str(cfg.interpolation),
        **options,
    )


def read_folder(folder: str | os.PathLike[str]) -> Weights:
    """What a timm model folder, config.json beside model.safetensors, says of itself."""
    path = Path(folder)
    for part in (path / "config.json", path / "model.safetensors"):
        if not part.is_file():
            raise StorageError(f"{path} is no model folder: it holds no {part.name}")
    try:
        with (path / "config.json").open("rb") as stream:
            text = stream.read(_MAX_CONFIG + 1)
        if len(text) > _MAX_CONFIG:
            raise ValueError("it is larger than 1 MB")
        config = json.loads(text)
        # Old folders of timm keep everything at the top.
        cfg = config.get("pretrained_cfg", config)
        args = dict(config.get("model_args", {}))
        grid = args.get("img_size", cfg["input_size"][1:])
        sides = {grid} if isinstance(grid, int) else set(grid)
        if len(sides) != 1 or args.get("in_chans", cfg["input_size"][0]) != 3:
            raise ValueError("the encoder must take square images of three channels")
        forbidden = set(args) & (RESERVED - _DERIVED)
        if forbidden:
            raise ValueError(f"model_args may not set {', '.join(sorted(forbidden))}")
        side = int(sides.pop())
        if cfg.get("fixed_input_size"):
            cfg["input_size"] = [3, side, side]
        known = {key: cfg[key] for key in cfg.keys() & set(PretrainedCfg.__dataclass_fields__)}
        return _weights(
            str(config["architecture"]),
            PretrainedCfg(**known),
            path / "model.safetensors",
            architecture=str(config["architecture"]),
            grid=side,
            options={key: value for key, value in args.items() if key not in _DERIVED},
            sha256=config.get("selfsight", {}).get("sha256"),
        )
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise StorageError(
            f"{path / 'config.json'} does not describe a model ({type(error).__name__}: {error}); "
            "export it again"
        ) from error
    except OSError as error:
        raise _unreadable(path / "config.json", error) from error


def _cached(name: str, cfg: PretrainedCfg, download: bool) -> Path:
    """timm's file for `name` in the local Hugging Face cache."""
    import huggingface_hub

    repository, _, revision = (cfg.hf_hub_id or "").partition("@")
    file = cfg.hf_hub_filename or "model.safetensors"
    if file.endswith(".bin"):
        # Published beside the pickle.
        file = file.removesuffix(".bin").replace("pytorch_model", "model") + ".safetensors"
    if not repository or not file.endswith(".safetensors"):
        raise ConfigError(f"timm publishes no safetensors weights for {name}; take another tag")
    found = huggingface_hub.try_to_load_from_cache(repository, file, revision=revision or None)
    if isinstance(found, str):
        return Path(found)
    if not download:
        cache = huggingface_hub.constants.HF_HUB_CACHE
        raise ConfigError(
            f"the weights of {name} ({repository}/{file}) are not in {cache}; "
            f"run `hf download {repository} {file}` first, or pass download=True from Python"
        )
    try:
        return Path(huggingface_hub.hf_hub_download(repository, file, revision=revision or None))
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise StorageError(f"{repository}/{file} could not be fetched: {reason}") from error


def _triple(values: Sequence[float]) -> Triple:
    r, g, b = (float(value) for value in values)
    return r, g, b


def _unreadable(file: Path, error: Exception) -> StorageError:
    reason = str(error).strip().partition("\n")[0]
    return StorageError(f"{file} cannot be read: {reason}; export or fetch it again")
