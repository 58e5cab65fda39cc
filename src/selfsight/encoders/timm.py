"""Any timm model as an encoder; with `parts`, all that knows timm's insides."""

import copy
import functools
import inspect
import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import timm
import torch
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers.attention import Attention
from timm.models import PretrainedCfg, checkpoint_seq
from timm.models._input import _get_global_pool
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from selfsight.encoders import parts
from selfsight.encoders.base import Encoder
from selfsight.encoders.weights import RESERVED, Triple, Weights, find
from selfsight.errors import ConfigError, suggestion

__all__ = ["TimmEncoder", "create_encoder"]


@final
class TimmEncoder(Encoder):
    """`.model` is the plain timm module with num_classes=0; `.settings` are the arguments
    it was built with and `.options` those of them that the caller chose."""

    def __init__(
        self,
        model: nn.Module,
        *,
        name: str,
        size: int,
        options: dict[str, Any],
        settings: dict[str, Any],
        mean: Triple,
        std: Triple,
        crop_pct: float,
        interpolation: str,
    ) -> None:
        super().__init__()
        self.model: Any = model
        self.name, self.size, self.options, self.settings = name, size, options, settings
        self.mean, self.std, self.crop_pct = mean, std, crop_pct
        self.interpolation = interpolation
        self.multiple = parts.side(model)
        # Behind a convolutional stem a dropped patch would still be seen by its neighbours.
        self.maskable = isinstance(model, VisionTransformer) and self.multiple > 1
        shape = self._shape(size, size)
        self.dim, self.token_dim = shape.dim, shape.token_dim
        self.levels = len(getattr(model, "feature_info", ()))

    @property
    def architecture(self) -> str:
        """timm's name without a tag."""
        return self.name.partition(".")[0]

    @property
    def pool(self) -> str | None:
        """How timm pools: avg, token, …"""
        pool: str | None = _get_global_pool(self.model)
        return pool

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        if height % self.multiple or width % self.multiple:
            raise _not_multiples(self.name, self.multiple, height, width)
        h: Tensor = self.model(x)
        return h

    def tokens(
        self,
        x: Tensor,
        keep: Tensor | None = None,
        mask: Tensor | None = None,
        mask_token: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        model = self.model
        if not self.maskable:
            if keep is not None or mask is not None:
                raise ConfigError(
                    f"{self.name} can neither drop nor mask patches; "
                    "take a ViT such as vit_small_patch16_224"
                )
            features = model.forward_features(x)
            return model.forward_head(features), parts.patches(model, features)
        e = model.patch_embed(x)
        if mask is not None:
            assert mask_token is not None
            e = torch.where(mask.reshape(*e.shape[:3], 1), mask_token.to(e.dtype), e)
        e = model._pos_embed(e)
        prefix = model.num_prefix_tokens
        if keep is not None:
            kept = e[:, prefix:].gather(1, keep[..., None].expand(-1, -1, e.shape[-1]))
            e = torch.cat([e[:, :prefix], kept], 1)
        e = model.norm_pre(e)
        e = checkpoint_seq(model.blocks, e) if model.grad_checkpointing else model.blocks(e)
        e = model.norm(e)
        return model.forward_head(e), e[:, prefix:]

    def maps(self, x: Tensor, levels: int | Sequence[int]) -> list[Tensor]:
        count = len(self.model.feature_info)
        wanted = range(count - levels, count) if isinstance(levels, int) else levels
        if not wanted or not all(0 <= level < count for level in wanted):
            raise ConfigError(f"{self.name} has feature levels 0 to {count - 1}, not {levels}")
        maps: list[Tensor] = self.model.forward_intermediates(
            x, indices=list(wanted), stop_early=True, intermediates_only=True
        )
        return maps

    def last_tokens(self, x: Tensor, blocks: int) -> list[tuple[Tensor, Tensor]]:
        if not (self.maskable and self.model.has_class_token):
            return []
        found = self.model.forward_intermediates(
            x, indices=min(blocks, len(self.model.blocks)), return_prefix_tokens=True, norm=True,
            output_fmt="NLC", intermediates_only=True,
        )  # fmt: skip
        return [(prefix[:, 0], patches) for patches, prefix in found]

    def attention(self, x: Tensor) -> Tensor:
        """A model without a class token asks with the mean of its patches' queries."""
        model = self.model
        block = model.blocks[-1] if self.maskable else None
        attn = block.attn if isinstance(block, Block) else None
        if block is None or not isinstance(attn, Attention):
            raise ConfigError(
                f"{self.name} has no attention to show; take a ViT such as vit_small_patch16_224"
            )
        e = model.norm_pre(model._pos_embed(model.patch_embed(x)))
        e = block.norm1(model.blocks[:-1](e))
        qkv = attn.qkv(e).reshape(*e.shape[:2], 3, attn.num_heads, attn.head_dim)
        q, k, _ = qkv.permute(2, 0, 3, 1, 4)
        q, k = attn.q_norm(q).float(), attn.k_norm(k).float()
        prefix = model.num_prefix_tokens
        query = q[:, :, :1] if model.has_class_token else q[:, :, prefix:].mean(2, keepdim=True)
        weight: Tensor = (attn.scale * query @ k.transpose(-2, -1)).softmax(-1)
        return weight[:, :, 0, prefix:]

    def fresh(self, name: str | None = None, seed: int | None = None) -> "TimmEncoder":
        other = create_encoder(name or self.name, size=self.size, seed=seed, **self.options)
        return self._shows(other)

    def copied(self, *, drop_path: float = 0.0, average: bool = False) -> "TimmEncoder":
        changed: dict[str, Any] = {}
        if drop_path != self.options.get("drop_path_rate", 0.0):
            changed["drop_path_rate"] = drop_path
        if average and self.pool != "avg":
            if not self.maskable:
                raise ConfigError(f"{self.name} pools in a way of its own; leave mean pooling")
            changed["global_pool"] = "avg"
        if not changed:
            return copy.deepcopy(self)
        other = create_encoder(self.name, size=self.size, seed=0, **{**self.options, **changed})
        if drop_path and not parts.drops_paths(other.model):
            raise ConfigError(f"{self.name} has no residual branches to drop; leave drop-path")
        state, new = self.model.state_dict(), other.model.state_dict()
        if "global_pool" in changed:
            # timm then takes the norm after the mean, not before; as MAE it starts afresh.
            state = {key: value for key, value in state.items() if key in new}
            state |= {key: value for key, value in new.items() if key.startswith("fc_norm.")}
        other.model.load_state_dict(state)
        other.pretrained = self.pretrained
        return self._shows(other)

    def layers(self) -> list[list[str]]:
        found = parts.layers(self.model)
        return [[f"model.{name}" for name in part] for part in found] or super().layers()

    def undecayed(self) -> frozenset[str]:
        return frozenset(f"model.{name}" for name in parts.undecayed(self.model))

    def grid(self, x: Tensor) -> tuple[int, int]:
        shape = self._shape(*x.shape[-2:])
        return shape.rows, shape.columns

    @property
    def patch_projection(self) -> nn.Conv2d:
        projection = self.model.patch_embed.proj if self.maskable else None
        if not isinstance(projection, nn.Conv2d):
            raise ConfigError(f"{self.name} has no projection of patches; take a ViT")
        return projection

    def fix_positions(self, positions: Tensor) -> None:
        learned = self.model.pos_embed if self.maskable else None
        if learned is None:
            raise ConfigError(f"{self.name} has no positions of patches to fix; take a ViT")
        prefix = learned.shape[1] - len(positions)
        with torch.no_grad():
            learned.copy_(F.pad(positions, (0, 0, prefix, 0)))
        learned.requires_grad_(False)

    def _shows(self, other: "TimmEncoder") -> "TimmEncoder":
        """The other encoder, which will be shown the same views."""
        other.mean, other.std = self.mean, self.std
        other.crop_pct, other.interpolation = self.crop_pct, self.interpolation
        return other

    def _shape(self, height: int, width: int) -> "_Shape":
        return _shape(self.name, json.dumps(self.settings, sort_keys=True), height, width)


def create_encoder(
    name: str,
    *,
    size: int | None = None,
    pretrained: bool | str | os.PathLike[str] = False,
    download: bool = False,
    seed: int | None = None,
    **options: Any,
) -> TimmEncoder:
    """An encoder for `size` pixels with new weights, or with given ones.

    name: any timm name, with or without a tag
    size: side of the input in pixels; None takes what the weights or timm were made for
    pretrained: True takes timm's weights from the local Hugging Face cache, a path those of
        a .safetensors file or of a model folder; nothing is fetched
    download: let True fetch what the cache does not hold
    seed: of new weights; None draws them from torch's generator, a number leaves it untouched
    options: passed to timm, such as patch_size, drop_path_rate, global_pool, class_token
    """
    published_cfg = _published(name)
    for option in options:
        if option in RESERVED:
            raise ConfigError(f"create_encoder sets {option} itself; leave it out")
    weights = find(name, published_cfg, pretrained, download) if pretrained else None
    options = {**(weights.options if weights else {}), **options}
    size = size or (weights.size if weights else int(published_cfg.input_size[-1]))
    accepted = _accepted(name)
    settings = dict(options)
    if "img_size" in accepted:
        settings["img_size"] = size
    if "dynamic_img_size" in accepted:
        settings["dynamic_img_size"] = True
    try:
        key = json.dumps(settings, sort_keys=True)
    except TypeError:
        raise ConfigError(f"options of {name} are numbers, strings and lists: {options}") from None
    _shape(name, key, size, size)
    # Weights that are about to be replaced must not move torch's generator.
    model = _build(name, settings, 0 if weights and seed is None else seed)
    if weights:
        _fill(model, name, settings, weights)
    # Nothing is cut off small pictures.
    crop_pct = weights.crop_pct if weights else 0.875 if size >= 128 else 1.0
    encoder = TimmEncoder(
        model,
        name=name,
        size=size,
        options=options,
        settings=settings,
        mean=weights.mean if weights else IMAGENET_DEFAULT_MEAN,
        std=weights.std if weights else IMAGENET_DEFAULT_STD,
        crop_pct=crop_pct,
        interpolation=weights.interpolation if weights else "bilinear",
    )
    encoder.pretrained = weights is not None
    return encoder


def _published(name: str) -> PretrainedCfg:
    """timm's own configuration of `name`."""
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        hint = suggestion(architecture, timm.list_models())
        raise ConfigError(f"unknown encoder {name}{hint} (`timm.list_models()` lists all)")
    try:
        found: PretrainedCfg | None = timm.get_pretrained_cfg(name)
    except RuntimeError:
        known = [n.partition(".")[2] for n in timm.list_pretrained(f"{architecture}.*")]
        raise ConfigError(f"{architecture} has no tag {tag}{suggestion(tag, known)}") from None
    return found or PretrainedCfg()


def _build(name: str, settings: dict[str, Any], seed: int | None = None) -> nn.Module:
    if seed is None:
        model: nn.Module = timm.create_model(name, num_classes=0, **settings)
        return model
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return _build(name, settings)


@functools.cache
def _accepted(name: str) -> frozenset[str]:
    """Arguments of the constructor behind `name`; on "meta" nothing is allocated or drawn."""
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=0)
    found: set[str] = set()
    for kind in type(model).__mro__:
        if "__init__" in vars(kind):
            parameters = inspect.signature(vars(kind)["__init__"]).parameters
            found |= set(parameters)
            if all(p.kind is not p.VAR_KEYWORD for p in parameters.values()):
                break
    return frozenset(found - {"self", "args", "kwargs"})


@dataclass(frozen=True)
class _Shape:
    dim: int
    token_dim: int
    rows: int
    columns: int


def _not_multiples(name: str, patch: int, height: int, width: int) -> ConfigError:
    return ConfigError(
        f"{name} takes images whose sides are multiples of {patch} pixels, got {height} × {width}"
    )


@functools.lru_cache(maxsize=256)
def _shape(name: str, settings: str, height: int, width: int) -> _Shape:
    """What comes out of a model for images of height × width, without computing it."""
    try:
        with torch.device("meta"):
            model: Any = timm.create_model(name, num_classes=0, **json.loads(settings)).eval()
            patch = parts.side(model)
            if height % patch or width % patch:
                raise _not_multiples(name, patch, height, width)
            x = torch.empty(1, 3, height, width)
            features, dim = model.forward_features(x), model(x).shape[-1]
    except ConfigError:
        raise
    except Exception as error:
        option = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if option:
            hint = suggestion(option[1], _accepted(name))
            raise ConfigError(f"{name} takes no option {option[1]}{hint}") from error
        given = "".join(f", {k}={v}" for k, v in json.loads(settings).items() if k not in RESERVED)
        raise ConfigError(
            f"{name} does not take images of {height} × {width} pixels{given}: {_line(error)}"
        ) from error
    if not isinstance(features, Tensor):
        raise ConfigError(f"{name} gives several token maps where one is needed; take another")
    count, token_dim = parts.patches(model, features).shape[1:]
    if features.ndim == 4:
        rows = features.shape[1 if parts.channels_last(model) else 2]
    else:
        rows = round(math.sqrt(count * height / width))
    if rows == 0 or count % rows:
        raise ConfigError(f"{name} gives {count} tokens, which are no map; take another encoder")
    return _Shape(dim, token_dim, rows, count // rows)


def _fill(model: nn.Module, name: str, settings: dict[str, Any], weights: Weights) -> None:
    """Load all of `weights` but a classifier into `model`, or nothing."""
    state = weights.read()
    heads = tuple(f"{layer}." for layer in weights.classifier)
    shapes = {key: value.shape for key, value in state.items() if not key.startswith(heads)}
    if shapes != {key: value.shape for key, value in model.state_dict().items()}:
        state = _adapted(name, settings, weights)
    model.load_state_dict({key: state[key] for key in model.state_dict()})


def _adapted(name: str, settings: dict[str, Any], weights: Weights) -> dict[str, Tensor]:
    """What timm makes of weights for another size, or in another format: it fills a model
    with the file's classifier, so that no key may be missing or left over."""
    overlay: dict[str, Any] = {
        "file": str(weights.file),
        "hf_hub_id": None,
        "url": None,
        "source": None,
        "input_size": (3, weights.grid, weights.grid),
    }
    classes = None if weights.published else weights.classes()
    if classes is not None:
        overlay |= {"num_classes": classes, "label_offset": None}
    try:
        with torch.random.fork_rng(devices=[]):
            donor = timm.create_model(
                name,
                pretrained=True,
                pretrained_cfg_overlay=overlay,
                num_classes=classes,
                **settings,
            )
    except (AssertionError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"the weights in {weights.file} do not fit {name}: {_line(error)}"
        ) from error
    return donor.state_dict()


def _line(error: Exception) -> str:
    """An exception's words on one line."""
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) <= 200 else f"{words[:200]} …"
