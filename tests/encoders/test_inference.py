"""The form of an encoder that only embeds: the same numbers, and hands off what is unusual."""

import copy
from collections.abc import Callable
from types import MethodType

import pytest
import torch
from torch import Tensor, nn

from selfsight.encoders import create_encoder
from selfsight.encoders.inference import inference_form
from selfsight.encoders.timm import TimmEncoder
from selfsight.machine import native_bf16

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN"
)

RESNETS: dict[str, dict[str, object]] = {
    "resnet18_small": {},  # of basic blocks
    "resnet18": {},  # whose stem pools
    "resnet26d": {},  # of bottlenecks, with a deep stem and pooling shortcuts
    "resnext26ts": {},  # no ResNet of timm's, in spite of its name
    "resnet50": {"layers": (1, 1, 1, 1), "cardinality": 32, "base_width": 4},
    "seresnet18": {},  # whose blocks have more to them
    "resnetblur18": {},
}


def trained(name: str, size: int = 64, **options: object) -> TimmEncoder:
    """As after training: no statistic and no scale is where it began, and no branch is dead."""
    encoder = create_encoder(name, size=size, seed=0, **options).eval()
    generator = torch.Generator().manual_seed(1)
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.running_mean, -0.3, 0.3),
                (module.running_var, 0.5, 2.0),
                (module.weight, 0.3, 1.0),
                (module.bias, -0.3, 0.3),
            ):
                assert tensor is not None
                tensor.data.uniform_(low, high, generator=generator)
    return encoder


def images(size: int = 64) -> Tensor:
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(2))


def made(encoder: TimmEncoder) -> TimmEncoder:
    """The module behind the form."""
    form = inference_form(encoder, torch.float32)
    assert isinstance(form, MethodType)
    assert isinstance(form.__self__, TimmEncoder)
    return form.__self__


def apart(h: Tensor, exact: Tensor) -> float:
    return float((h.double() - exact).norm() / exact.norm())


@torch.no_grad()
@pytest.mark.parametrize("name", RESNETS)
def test_embeddings_are_the_same_in_float32(name: str) -> None:
    encoder, x = trained(name, **RESNETS[name]), images()
    plain = encoder(x)
    assert apart(inference_form(encoder, torch.float32)(x), plain.double()) < 1e-5


@pytest.mark.skipif(not native_bf16("cpu"), reason="bf16 would be emulated")
@torch.no_grad()
@pytest.mark.parametrize("name", ["resnet18_small", "resnet18", "resnet26d", "seresnet18"])
def test_bf16_errs_no_more_than_autocast(name: str) -> None:
    encoder, x = trained(name), images()
    exact = copy.deepcopy(encoder).double()(x.double())
    form = inference_form(encoder, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        plain, quick = apart(encoder(x), exact), apart(form(x), exact)
    assert 1e-4 < quick < 1.02 * plain


def test_nothing_is_left_of_normalisation_in_a_resnet() -> None:
    for name in ("resnet18", "resnet50"):
        form = made(trained(name))
        assert not any(isinstance(part, nn.BatchNorm2d) for part in form.modules())


@torch.no_grad()
def test_the_encoder_is_not_touched() -> None:
    encoder, x = trained("resnet18_small"), images()
    before, h = copy.deepcopy(encoder.state_dict()), encoder(x)
    assert inference_form(encoder, torch.bfloat16)(x).shape == h.shape
    assert all(torch.equal(before[key], value) for key, value in encoder.state_dict().items())
    assert torch.equal(encoder(x), h)
    assert all(p.requires_grad for p in encoder.parameters())


def _instead(encoder: TimmEncoder) -> None:
    encoder.model.layer1.forward = lambda x: x


UNUSUAL: dict[str, Callable[[TimmEncoder], object]] = {
    "training": lambda e: e.model.bn1.train(),
    "a hook": lambda e: e.model.layer1[0].register_forward_hook(lambda *_: None),
    "a hook before": lambda e: e.model.layer2.register_forward_pre_hook(lambda *_: None),
    "another forward": _instead,
    "float64": lambda e: e.double(),
    "another device": lambda e: e.to("meta"),
    "not finite": lambda e: e.model.conv1.weight.data[0].fill_(torch.nan),
}


@pytest.mark.parametrize("why", UNUSUAL)
def test_what_is_unusual_is_left_alone(why: str) -> None:
    encoder = trained("resnet18_small")
    assert inference_form(encoder, torch.float32) is not encoder
    UNUSUAL[why](encoder)
    assert inference_form(encoder, torch.float32) is encoder


def test_other_architectures_and_types_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("test_vit", "test_convnext", "test_efficientnet"):
        encoder = create_encoder(name, size=64).eval()
        assert inference_form(encoder, torch.float32) is encoder
    encoder = trained("resnet18_small")
    assert inference_form(encoder, torch.float64) is encoder
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert inference_form(encoder, torch.float32) is encoder


@torch.no_grad()
def test_a_layer_that_is_not_as_expected_stays() -> None:
    encoder, x = trained("resnet18_small"), images()
    encoder.model.layer1[0].act1 = nn.GELU()
    encoder.model.layer2[0].bn2 = nn.GroupNorm(4, 128)
    encoder.model.bn1 = nn.BatchNorm2d(64, track_running_stats=False)
    encoder.eval()
    form = made(encoder)
    assert isinstance(form.model.layer1[0].act1, nn.GELU)
    assert isinstance(form.model.layer2[0].bn2, nn.GroupNorm)
    assert isinstance(form.model.bn1, nn.BatchNorm2d)
    assert apart(form(x), encoder(x).double()) < 1e-5
