"""A form of an encoder that only embeds: normalisation folded into the convolutions, which add
the shortcut and rectify as they write, in the memory format that CPUs read fastest."""

import copy
from collections.abc import Callable
from typing import Any, final

import torch
from timm.layers.drop import DropPath
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import Tensor, nn

from selfsight.encoders.base import Encoder
from selfsight.encoders.timm import TimmEncoder

__all__ = ["inference_form"]


def inference_form(encoder: Encoder, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """What gives the encoder's embeddings faster, without gradients, or the encoder itself.

    Only timm's ResNets on a CPU in evaluation are changed, in a copy, and of those only the
    layers that are exactly as expected. The form does not follow later changes of the encoder.

    dtype: float32 or bfloat16 of the folded convolutions
    """
    if not _plain(encoder) or not _computes(dtype):
        return encoder
    form: Any = copy.deepcopy(encoder).requires_grad_(False)
    model = form.model
    if _folds(model.conv1, model.bn1) and _rectifies(model.act1):
        model.conv1 = _Convolution(model.conv1, model.bn1, dtype, rectify=True)
        model.bn1, model.act1 = nn.Identity(), nn.Identity()
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        for name, block in stage.named_children():
            pairs = _pairs(block)
            if pairs is not None:
                stage.register_module(name, _Block(pairs, _shortcut(block, dtype), dtype))
    model.layer4.add_module("wide", _Wide())
    forward: Callable[[Tensor], Tensor] = form.forward
    return forward


@final
class _Convolution(nn.Module):
    """A convolution with the normalisation behind it, rectified if told to."""

    weight: Tensor
    bias: Tensor

    def __init__(self, conv: Any, norm: Any, dtype: torch.dtype, *, rectify: bool) -> None:
        super().__init__()
        weight, bias = _folded(conv, norm)
        weight = weight.to(dtype, memory_format=torch.channels_last)
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias.float())
        self.places = list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups
        self.rectify = rectify

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """The shortcut is added before rectifying, and its memory taken for the answer."""
        x = x.to(self.weight.dtype).contiguous(memory_format=torch.channels_last)
        mkldnn: Any = torch.ops.mkldnn
        if shortcut is None:
            then = "relu" if self.rectify else "none"
            y: Tensor = mkldnn._convolution_pointwise(
                x, self.weight, self.bias, *self.places, then, [], ""
            )
            return y
        shortcut = shortcut.to(x.dtype).contiguous(memory_format=torch.channels_last)
        # This one takes no bias of another type.
        layer = self.weight, self.bias.to(x.dtype), *self.places
        after = "relu" if self.rectify else None
        y = mkldnn._convolution_pointwise_.binary(shortcut, x, *layer, "add", 1.0, after, [], None)
        return y


@final
class _Wide(nn.Module):
    """What is pooled is not rounded again."""

    def forward(self, x: Tensor) -> Tensor:
        return x.float()


@final
class _Block(nn.Module):
    """A residual block: the last convolution takes the shortcut."""

    def __init__(
        self,
        pairs: list[tuple[Any, Any]],
        shortcut: nn.Module,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            *(_Convolution(conv, norm, dtype, rectify=True) for conv, norm in pairs)
        )
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.shortcut(x)
        *first, last = self.convolutions
        for convolution in first:
            x = convolution(x)
        y: Tensor = last(x, shortcut)
        return y


def _plain(encoder: Encoder) -> bool:
    """Whether this is a ResNet as timm makes it, on a CPU, in which nobody has a hand.

    A diverged one stays as it is: oneDNN rectifies nan to 0, which would hide it.
    """
    if not isinstance(encoder, TimmEncoder) or type(encoder.model) is not ResNet:
        return False
    if encoder.model.grad_checkpointing:
        return False
    tensors = (*encoder.parameters(), *encoder.buffers())
    return all(
        not t.is_floating_point()
        or ((t.device.type, t.dtype) == ("cpu", torch.float32) and bool(t.isfinite().all()))
        for t in tensors
    ) and not any(
        module.training
        or module._forward_hooks
        or module._forward_pre_hooks
        or "forward" in vars(module)
        for module in encoder.modules()
    )


def _computes(dtype: torch.dtype) -> bool:
    """Whether torch was built with oneDNN, and it knows the type on this CPU."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    supported = torch.ops.mkldnn._is_mkldnn_bf16_supported
    return dtype == torch.float32 or (dtype == torch.bfloat16 and bool(supported()))


def _folds(conv: nn.Module, norm: nn.Module) -> bool:
    return (
        type(conv) is nn.Conv2d
        and conv.padding_mode == "zeros"
        and not isinstance(conv.padding, str)
        and type(norm) is nn.BatchNorm2d
        and norm.running_mean is not None
    )


def _rectifies(act: nn.Module) -> bool:
    return type(act) is nn.ReLU


def _nothing(module: nn.Module | None) -> bool:
    """Whether it passes on what it is given, in evaluation."""
    return module is None or type(module) in (nn.Identity, DropPath)


def _pairs(block: Any) -> list[tuple[Any, Any]] | None:
    """A block's convolutions and normalisations, unless there is more to it."""
    if type(block) is BasicBlock:
        count = 2
    elif type(block) is Bottleneck:
        count = 3
    else:
        return None
    numbers = range(1, count + 1)
    pairs = [(getattr(block, f"conv{i}"), getattr(block, f"bn{i}")) for i in numbers]
    more = block.se, block.aa, block.drop_block, block.drop_path
    fits = (
        all(_folds(*pair) for pair in pairs)
        and all(_rectifies(getattr(block, f"act{i}")) for i in numbers)
        and all(_nothing(part) for part in more)
    )
    return pairs if fits else None


def _shortcut(block: Any, dtype: torch.dtype) -> nn.Module:
    downsample = block.downsample
    if downsample is None:
        return nn.Identity()
    parts: list[nn.Module] = list(downsample.children())
    if type(downsample) is nn.Sequential and len(parts) > 1 and _folds(parts[-2], parts[-1]):
        last = _Convolution(parts[-2], parts[-1], dtype, rectify=False)
        return nn.Sequential(*parts[:-2], last)
    plain: nn.Module = downsample
    return plain


def _folded(conv: Any, norm: Any) -> tuple[Tensor, Tensor]:
    """Weight and bias, in float64."""
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double()
    bias = -norm.running_mean.double()
    if conv.bias is not None:
        bias = bias + conv.bias.detach().double()
    bias = bias * scale
    if norm.bias is not None:
        bias = bias + norm.bias.detach().double()
    return conv.weight.detach().double() * scale[:, None, None, None], bias
