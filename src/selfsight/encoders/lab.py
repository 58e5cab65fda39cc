"""Two encoders side by side, one for an image's lightness and one for its colours.

It takes normalised RGB as every encoder does, turns it into CIE Lab and gives both embeddings,
the lightness's first (Tian et al. 2019, "Contrastive multiview coding"). Its name is known to
`timm.create_model` once this is imported.
"""

from collections.abc import Sequence
from typing import Any

import timm
import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from selfsight.encoders.base import Encoder
from selfsight.encoders.timm import TimmEncoder, create_encoder
from selfsight.encoders.weights import RESERVED
from selfsight.errors import ConfigError

__all__ = ["LabPair", "lab_pair", "split"]

# Row of XYZ / white point of D65 for linear red, green and blue: the views' numbers.
_XYZ = (
    (0.4124564 / 0.95047, 0.3575761 / 0.95047, 0.1804375 / 0.95047),
    (0.2126729, 0.7151522, 0.0721750),
    (0.0193339 / 1.08883, 0.1191920 / 1.08883, 0.9503041 / 1.08883),
)

# timm looks its defaults up under this name.
default_cfgs = generate_default_cfgs({"lab_pair": {"classifier": "fc"}})


class LabPair(nn.Module):
    """A timm model for L and one for a and b; what they give is concatenated by channels.

    backbone, arguments: timm's name of both models, and what else it builds them with
    mean, std: what the input was normalised by
    """

    lightness: Any
    colour: Any
    fc: nn.Module
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: str = "resnet18",
        arguments: dict[str, Any] | None = None,
        mean: Sequence[float] = (0.0, 0.0, 0.0),
        std: Sequence[float] = (1.0, 1.0, 1.0),
        num_classes: int = 1000,
        in_chans: int = 3,
    ) -> None:
        super().__init__()
        arguments = {**(arguments or {})}
        if backbone == "lab_pair" or backbone not in timm.list_models() or in_chans != 3:
            raise ConfigError(f"lab_pair takes RGB and a timm architecture, not {backbone}")
        # A model folder may have chosen them.
        forbidden = set(arguments) & (RESERVED - {"img_size", "dynamic_img_size"})
        if forbidden:
            raise ConfigError(f"arguments may not set {', '.join(sorted(forbidden))}")
        self.lightness, self.colour = (
            timm.create_model(backbone, in_chans=channels, num_classes=0, **arguments)
            for channels in (1, 2)
        )
        one = self.lightness
        self.num_features = 2 * one.num_features
        self.head_hidden_size = 2 * one.head_hidden_size
        self.feature_info = [
            {**level, "num_chs": 2 * level["num_chs"], "module": f"lightness.{level['module']}"}
            for level in one.feature_info
        ]
        self.output_fmt = getattr(one, "output_fmt", "NCHW")
        self.num_prefix_tokens = getattr(one, "num_prefix_tokens", 0)
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        self.reset_classifier(num_classes)

    @property
    def patch_embed(self) -> nn.Module:
        """The lightness's, if it has one: it says what sizes fit."""
        return self.lightness.patch_embed  # type: ignore[no-any-return]

    def get_classifier(self) -> nn.Module:
        return self.fc

    def reset_classifier(self, num_classes: int) -> None:
        self.num_classes, wide = num_classes, self.head_hidden_size
        self.fc = nn.Linear(wide, num_classes) if num_classes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        x = self.lab(x)
        parts = self.lightness.forward_features(x[:, :1]), self.colour.forward_features(x[:, 1:])
        return torch.cat(parts, self._channels(parts[0]))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        parts = x.chunk(2, self._channels(x))
        both = self.lightness.forward_head(parts[0]), self.colour.forward_head(parts[1])
        h = torch.cat(both, 1)
        return h if pre_logits else self.fc(h)

    def forward_intermediates(
        self, x: Tensor, *, intermediates_only: bool = False, **options: Any
    ) -> Any:
        x = self.lab(x)
        ends, maps = zip(
            self.lightness.forward_intermediates(x[:, :1], **options),
            self.colour.forward_intermediates(x[:, 1:], **options),
            strict=True,
        )
        both = [torch.cat(level, 1) for level in zip(*maps, strict=True)]
        return both if intermediates_only else (torch.cat(ends, self._channels(ends[0])), both)

    def lab(self, x: Tensor) -> Tensor:
        """Normalised RGB under D65 to CIE Lab as L / 50 - 1, a / 110, b / 110, like a view's."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        rgb = (x.to(dtype) * self.std + self.mean).clamp(0, 1)
        linear = torch.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
        r, g, b = linear.unbind(1)
        t = torch.stack([m[0] * r + m[1] * g + m[2] * b for m in _XYZ], 1)
        root = t.clamp(min=1e-3) ** (1 / 3)  # whose slope at 0 is infinite
        fx, fy, fz = torch.where(t > 216 / 24389, root, (24389 / 27 * t + 16) / 116).unbind(1)
        planes = (116 * fy - 16) / 50 - 1, 500 * (fx - fy) / 110, 200 * (fy - fz) / 110
        return torch.stack(planes, 1).to(x.dtype)

    def _channels(self, features: Tensor) -> int:
        return 1 if features.ndim == 4 and self.output_fmt == "NCHW" else features.ndim - 1


@register_model
def lab_pair(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    levels = {"feature_cls": "getter", "out_indices": kwargs.pop("out_indices", 4)}
    model: nn.Module = build_model_with_cfg(
        LabPair, "lab_pair", pretrained, feature_cfg=levels, **kwargs
    )
    return model


def split(encoder: Encoder) -> Encoder:
    """Two new encoders like this one, for lightness and for colours, as one."""
    assert isinstance(encoder, TimmEncoder)
    if encoder.pretrained:
        raise ConfigError(
            f"two encoders of one and of two channels cannot start from {encoder.name}'s weights; "
            "train without --pretrained"
        )
    pair = create_encoder(
        "lab_pair", size=encoder.size, backbone=encoder.architecture, arguments=encoder.settings,
        mean=list(encoder.mean), std=list(encoder.std),
    )  # fmt: skip
    pair.mean, pair.std = encoder.mean, encoder.std
    pair.crop_pct, pair.interpolation = encoder.crop_pct, encoder.interpolation
    return pair
