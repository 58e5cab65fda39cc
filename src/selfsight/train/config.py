"""What a run is: every value, and where it came from."""

import json
import math
import os
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import torch

from selfsight.data.base import Source
from selfsight.distributed import world
from selfsight.encoders import create_encoder
from selfsight.encoders.base import Encoder
from selfsight.encoders.timm import TimmEncoder
from selfsight.errors import ConfigError, DataError, suggestion
from selfsight.machine import device_named, native_bf16
from selfsight.methods import DEFAULT, create, method_class
from selfsight.methods.base import Method
from selfsight.optim import OPTIMIZERS, Recipe
from selfsight.philox import Purpose, seed_for
from selfsight.train.regularize import Regularizer
from selfsight.views.compiled import kernels_folder
from selfsight.views.presets import adapted, fitted

__all__ = ["Built", "Config", "Settings", "differences", "needs_labels", "resolve", "seconds"]

# What the command line refuses by itself and a caller from Python may still pass.
_LEAST = {"size": 1, "epochs": 1, "batch": 1, "accumulate": 1, "seed": 0}
_LEAST |= {"lr": 0, "weight_decay": 0, "warmup": 0}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the user asked for; None leaves the choice to `resolve`."""

    method: str | None = None
    encoder: str | None = None
    size: int | None = None
    epochs: int | None = None
    batch: int | None = None
    lr: float | None = None
    seed: int | None = None
    device: str | None = None
    precision: str | None = None
    compile: bool | None = None
    optimizer: str | None = None
    weight_decay: float | None = None
    warmup: float | None = None
    accumulate: int | None = None
    pretrained: bool | str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    view: dict[str, Any] = field(default_factory=dict)
    regularize: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Config:
    """The resolved run. `reasons` holds where each value came from."""

    method: str
    options: dict[str, Any]
    view: dict[str, Any]
    regularize: dict[str, float]
    encoder: str
    size: int
    epochs: int
    batch: int
    accumulate: int
    optimizer: str
    lr: float
    weight_decay: float
    warmup: float
    precision: str
    compile: bool = False
    device: str
    pretrained: bool | str
    seed: int
    reasons: dict[str, str] = field(default_factory=dict, compare=False)

    def table(self) -> list[tuple[str, Any, str]]:
        """(name, value, reason) of each value."""
        return [(name, value, self.reasons.get(name, "")) for name, value in self.json().items()]

    def json(self) -> dict[str, Any]:
        values = asdict(self)
        del values["reasons"]
        return values


@dataclass(frozen=True)
class Built:
    """A run's moving parts, made from its config."""

    config: Config
    method: Method
    recipe: Recipe


def seconds(text: str) -> float:
    """`90m`, `2h`, `1.5h`, `45s`, `1d` in seconds."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd])", text.strip())
    if found is None or float(found[1]) == 0:
        raise ConfigError(f"--time {text}: write a number and s, m, h or d, for example 2h")
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[found[2]]


def needs_labels(method: str | None) -> bool:
    """Whether a method learns from labels: they are read then without being asked for."""
    return bool(method_class(method or DEFAULT).supervised)


def resolve(settings: Settings, source: Source) -> Built:
    """Choose what the user left open, and build the run."""
    for name, least in _LEAST.items():
        number = getattr(settings, name)
        if number is not None and not least <= number < math.inf:
            raise ConfigError(f"--{name.replace('_', '-')} {number}: must be {least} or more")
    chosen: dict[str, Any] = {}
    reasons: dict[str, str] = {}

    def choose(name: str, default: Callable[[], tuple[Any, str]]) -> Any:
        given = getattr(settings, name)
        chosen[name], reasons[name] = (given, "given") if given is not None else default()
        return chosen[name]

    short = int(source.sizes.min(1).max())
    method = choose("method", lambda: (DEFAULT, "learns from most sets with the least tuning"))
    seed = choose("seed", lambda: (0, "the same seed gives the same run"))
    device = device_named(choose("device", lambda: ("auto", "")))
    if needs_labels(method):
        _labelled(method, source)
    if device != chosen["device"]:
        chosen["device"], reasons["device"] = device, "the fastest here"
    encoder_name = choose("encoder", lambda: _encoder(method, device, short))
    size = choose("size", lambda: _size(device, short))
    choose("pretrained", lambda: (False, "from scratch"))
    chosen["options"] = _frozen(settings.options)
    chosen["view"] = adapted(size, _frozen(settings.view))
    for part in ("options", "view"):
        reasons[part] = "given" if chosen[part] else "the method's own"
    chosen["regularize"] = _frozen(settings.regularize)
    terms = [f.name for f in fields(Regularizer)]
    for term in chosen["regularize"]:
        if term not in terms:
            raise ConfigError(f"unknown term {term} to regularize{suggestion(term, terms)}")
    Regularizer(**chosen["regularize"])
    reasons["regularize"] = "given" if settings.regularize else "the method's loss alone"
    if chosen["view"] != settings.view:
        reasons["view"] = f"no blur at {size} px, as in SimCLR's appendix B.9"

    generator = torch.random.get_rng_state()
    try:
        torch.manual_seed(seed_for(seed, 0, Purpose.INIT))
        encoder = create_encoder(encoder_name, size=size, pretrained=chosen["pretrained"])
        built = create(
            method, encoder, samples=len(source), classes=source.class_count, **chosen["options"]
        )
    finally:
        torch.random.set_rng_state(generator)

    if built.supervised:  # by its options, too
        _labelled(method, source)
    recipe: Recipe = built.recipe
    batch = choose("batch", lambda: _batch(len(source)))
    parts = choose("accumulate", lambda: (1, "the batch is computed in one piece")) * world()
    if batch > len(source):
        raise ConfigError(
            f"batch {batch} is larger than the {len(source):,} images of {source.name}; "
            f"use --batch {_batch(len(source))[0]} or less"
        )
    if batch % parts or batch < 2 * parts:
        raise ConfigError(
            f"batch {batch} does not divide into {parts} parts of 2 images or more; "
            "change --batch, --accumulate or the number of ranks"
        )
    optimizer = choose("optimizer", lambda: (recipe.optimizer, "recipe"))
    if optimizer not in OPTIMIZERS:
        raise ConfigError(f"unknown optimizer {optimizer}{suggestion(optimizer, OPTIMIZERS)}")
    if settings.lr is None and optimizer != recipe.optimizer:
        raise ConfigError(
            f"--optimizer {optimizer} needs --lr: the recipe's is for {recipe.optimizer}"
        )
    choose("lr", lambda: (recipe.rate(batch), _rule(recipe, batch)))
    choose("weight_decay", lambda: (recipe.weight_decay, "recipe"))
    epochs = choose("epochs", lambda: (100, "enough to tell whether it works"))
    choose("warmup", lambda: _warmup(recipe, epochs))
    built.views = fitted(built.views, size, encoder.multiple, chosen["view"])
    choose("precision", lambda: ("auto", ""))
    if chosen["precision"] == "auto":
        chosen["precision"], reasons["precision"] = _precision(device, encoder, built.smallest)
    elif chosen["precision"] not in ("fp32", "bf16"):
        known = ["auto", "fp32", "bf16"]
        hint = suggestion(chosen["precision"], known) or "; known: auto, fp32, bf16"
        raise ConfigError(f"unknown precision {chosen['precision']}{hint}")
    elif chosen["precision"] == "bf16" and not encoder.learns_in_bf16(built.smallest, device):
        raise ConfigError(
            f"--precision bf16: images of {built.smallest} px, the smallest that the encoder is "
            "given, have wrong gradients in bf16 on a CPU; use fp32 or a larger --size"
        )
    if choose("compile", lambda: (False, "compiled only when asked for")):
        _compile(built)
    config = Config(**chosen, reasons=reasons)
    return Built(config, built, _recipe(recipe, config))


def _labelled(method: str, source: Source) -> None:
    if source.class_count < 2:
        flag = "" if needs_labels(method) else " and add --labels"
        raise DataError(
            f"{method} learns from labels of 2 classes or more, and {source.name} has "
            f"{source.class_count or 'none'}; put images in one sub-folder per class, or give a "
            f"CSV with the columns path,label{flag}"
        )


def _encoder(method: str, device: str, short: int) -> tuple[str, str]:
    if method_class(method).needs_tokens:
        return "vit_tiny_patch16_224", f"{method} needs patch tokens"
    if short <= 64:
        return "resnet18_small", f"3×3 stem, for the images' {short} px"
    if device == "cpu":
        return "resnet18", "on a CPU"
    return "resnet50", "on a GPU"


def _size(device: str, short: int) -> tuple[int, str]:
    usual = 128 if device == "cpu" else 224
    if short < usual:
        return max(32, short // 32 * 32), f"near the images' {short} px"
    return usual, f"usual on a {device.partition(':')[0].upper()}"


def _batch(images: int) -> tuple[int, str]:
    if images >= 256:
        return 256, "usual"
    return 1 << (images.bit_length() - 1), f"what {images} images fill"


def _rule(recipe: Recipe, batch: int) -> str:
    how = {"linear": f" × {batch}/{recipe.batch}", "fixed": ""}.get(
        recipe.rule, f" × √({batch}/{recipe.batch})"
    )
    return f"recipe {recipe.lr:g}{how}"


def _warmup(recipe: Recipe, epochs: int) -> tuple[float, str]:
    tenth = epochs / 10
    if recipe.warmup <= tenth:
        return recipe.warmup, "recipe"
    return tenth, f"a tenth of the run, below the recipe's {recipe.warmup:g}"


def _precision(device: str, encoder: Encoder, side: int) -> tuple[str, str]:
    if not encoder.learns_in_bf16(side, device):
        return "fp32", f"images of {side} px are too small for bf16 on a CPU"
    if native_bf16(device):
        return "bf16", "this device computes bf16 natively"
    return "fp32", "this device has no native bf16"


def _compile(method: Method) -> None:
    """Have torch compile the encoders when they are first called. In place: the names of what
    they hold stay the same."""
    if "TORCHINDUCTOR_CACHE_DIR" not in os.environ:
        # Left alone, torch reads pickles from a folder of /tmp that anybody can put there.
        folder = kernels_folder()
        if folder is None:
            raise ConfigError(
                "--compile needs a cache that nobody else can write to; set SELFSIGHT_CACHE to a "
                "folder of your own"
            )
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "torch")
    for module in method.modules():
        if isinstance(module, TimmEncoder):
            # A ViT's blocks are alike, so one is compiled for all, and whatever the masks do
            # to the tokens happens outside of them.
            for part in module.model.blocks if module.maskable else [module.model]:
                # Two sizes of crops are two programs: one for any size would be slower, and
                # which of them ran would depend on where the run was resumed.
                part.compile(dynamic=False)


def _recipe(recipe: Recipe, config: Config) -> Recipe:
    end = recipe.weight_decay_end if config.weight_decay == recipe.weight_decay else None
    name: Any = config.optimizer
    return replace(recipe, optimizer=name, weight_decay=config.weight_decay, weight_decay_end=end)


def differences(old: dict[str, Any], new: Config) -> list[str]:
    """What changed against a recorded config, one line per value."""
    now = json.loads(json.dumps(new.json()))
    old = {"compile": False, **old}  # older runs had no choice
    return [
        f"{name} was {old.get(name)!r}, is {value!r}"
        for name, value in sorted(now.items())
        if old.get(name) != value
    ]


def _frozen(values: dict[str, Any]) -> dict[str, Any]:
    """Sorted, and with the tuples that JSON turned into lists."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in sorted(values.items())}
