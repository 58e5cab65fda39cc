"""ResNets for images of 64 pixels and less: a 3×3 stem of stride 1 and no pooling after it.

The stem is the one of SimCLR's CIFAR-10 experiments (Chen et al. 2020, App. B.9); all that
follows is timm's ResNet. The names are known to `timm.create_model` once this is imported.
"""

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn

__all__ = ["resnet18_small", "resnet34_small", "resnet50_small"]

_CFG = {
    "input_size": (3, 32, 32),
    "pool_size": (4, 4),
    "interpolation": "bilinear",
    "crop_pct": 1.0,
    "first_conv": "conv1",
    "classifier": "fc",
}

# timm looks its defaults up under this name.
default_cfgs = generate_default_cfgs(dict.fromkeys(__all__, _CFG))


def _resnet(**kwargs: Any) -> Any:
    model: Any = ResNet(**kwargs)
    model.conv1 = nn.Conv2d(
        model.in_chans,
        model.bn1.num_features,
        3,
        padding=1,
        bias=False,
        device=kwargs.get("device"),
        dtype=kwargs.get("dtype"),
    )
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()
    for level in model.feature_info:
        level["reduction"] = max(1, level["reduction"] // 4)
    return model


def _create(name: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    model: nn.Module = build_model_with_cfg(_resnet, name, pretrained, **kwargs)
    return model


@register_model
def resnet18_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    return _create("resnet18_small", pretrained, block=BasicBlock, layers=(2, 2, 2, 2), **kwargs)


@register_model
def resnet34_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    return _create("resnet34_small", pretrained, block=BasicBlock, layers=(3, 4, 6, 3), **kwargs)


@register_model
def resnet50_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    return _create("resnet50_small", pretrained, block=Bottleneck, layers=(3, 4, 6, 3), **kwargs)
