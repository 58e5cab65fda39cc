"""The small stem under timm's own names."""

import pytest
import timm
import torch

from selfsight.encoders import small


@pytest.mark.parametrize("name", small.__all__)
@torch.no_grad()
def test_small(name):
    model = timm.create_model(name, num_classes=12).eval()
    x = torch.randn(1, 3, 32, 32)
    assert model(x).shape == (1, 12)
    assert model.conv1.weight.shape == (64, 3, 3, 3)
    assert model.forward_features(x).shape[-2:] == (4, 4)
    same = timm.create_model(name.removesuffix("_small"), num_classes=12).state_dict()
    found = model.state_dict()
    assert list(found) == list(same)
    assert [k for k in found if found[k].shape != same[k].shape] == ["conv1.weight"]
    # He et al.: the deviation that keeps the variance, over the fan out.
    assert model.conv1.weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.1)


@torch.no_grad()
def test_features_only():
    model = timm.create_model("resnet18_small", features_only=True)
    assert model.feature_info.reduction() == [1, 1, 2, 4, 8]
    assert [m.shape[-1] for m in model(torch.randn(1, 3, 32, 32))] == [32, 32, 16, 8, 4]
