"""What a timm model is made of: its patches, and its layers one behind the other."""

from itertools import chain
from typing import Any

from timm.layers.drop import DropPath
from timm.layers.patch_embed import PatchEmbed
from timm.models._manipulate import MATCH_PREV_GROUP, group_with_matcher
from torch import Tensor, nn

__all__ = ["channels_last", "drops_paths", "layers", "patches", "side", "undecayed"]


def side(model: Any) -> int:
    """Of the patches that the input is cut into without overlap, else 1."""
    embed = getattr(model, "patch_embed", None)
    return int(embed.patch_size[0]) if isinstance(embed, PatchEmbed) else 1


def channels_last(model: Any) -> bool:
    return getattr(model, "output_fmt", "NCHW") == "NHWC"


def patches(model: Any, features: Tensor) -> Tensor:
    """(N, T, token_dim) from what `forward_features` gives."""
    if features.ndim == 3:
        return features[:, getattr(model, "num_prefix_tokens", 0) :]
    return features.flatten(1, 2) if channels_last(model) else features.flatten(2).mT


def layers(model: Any) -> list[list[str]]:
    """Names of the parameters: the stem's, each block's or stage's, and the rest; nothing for
    a model that does not tell."""
    try:
        matcher = model.group_matcher(coarse=True)
    except (AttributeError, AssertionError):
        return []
    if isinstance(matcher, dict):
        matcher = {part: _own(patterns) for part, patterns in matcher.items()}
    # A name that nothing matches keeps a last place for what follows the blocks.
    named = chain(model.named_parameters(), [("", None)])
    found = group_with_matcher(named, matcher)
    return [[name for name in found[place] if name] for place in sorted(found)]


def undecayed(model: Any) -> set[str]:
    """What timm spares weight decay beside biases and norms."""
    named: Any = getattr(model, "no_weight_decay", set)
    return set(named())


def drops_paths(model: nn.Module) -> bool:
    """Whether residual branches are left out in training."""
    return any(isinstance(part, DropPath) and part.drop_prob for part in model.modules())


def _own(patterns: Any) -> Any:
    """One part of timm's matcher without what it counts to the block before, as a last norm:
    that learns as fast as the head, as in the code of BEiT and MAE."""
    if isinstance(patterns, str):
        return patterns
    return [(pattern, place) for pattern, place in patterns if place != MATCH_PREV_GROUP]
