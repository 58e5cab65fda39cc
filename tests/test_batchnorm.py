import copy

import pytest
import torch
from torch import nn

from selfsight.batchnorm import GroupedBatchNorm, grouped, shuffled
from selfsight.errors import ConfigError


def layer(channels=3):
    return nn.BatchNorm1d(channels)


def test_each_group_has_statistics_of_its_own():
    x = torch.randn(12, 3) * 5 + 2
    y = grouped(layer(), 3)(x)
    for part in y.chunk(3):
        torch.testing.assert_close(part.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
        torch.testing.assert_close(part.var(0, correction=0), torch.ones(3), atol=1e-4, rtol=0)


def test_running_statistics_follow_the_mean_over_groups():
    x = torch.randn(8, 3)
    net = grouped(layer(), 2)
    net(x)
    expected = 0.1 * torch.stack([part.mean(0) for part in x.chunk(2)]).mean(0)
    torch.testing.assert_close(net.running_mean, expected)
    variances = torch.stack([part.var(0) for part in x.chunk(2)]).mean(0)
    torch.testing.assert_close(net.running_var, 0.9 + 0.1 * variances)


def test_one_group_is_the_plain_layer():
    net = layer()
    assert grouped(net, 1) is net


def test_in_evaluation_it_is_the_layer_it_replaced():
    plain = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval()
    ours = grouped(copy.deepcopy(plain), 4)
    x = torch.randn(6, 3, 5, 5)
    torch.testing.assert_close(ours(x), plain(x))
    assert ours.state_dict().keys() == plain.state_dict().keys()


def test_gradients_stay_within_a_group():
    x = torch.randn(8, 3, requires_grad=True)
    (grouped(layer(), 2)(x)[:4] ** 3).sum().backward()
    assert x.grad[:4].abs().min() > 0
    assert x.grad[4:].abs().max() == 0


@pytest.mark.parametrize(("images", "groups"), [(10, 4), (4, 4)])
def test_a_batch_that_does_not_divide_is_refused(images, groups):
    with pytest.raises(ConfigError, match=f"{images} images, .* into {groups} BatchNorm groups"):
        grouped(layer(), groups)(torch.randn(images, 3))


def test_shuffling_keeps_the_order_and_changes_the_groups():
    seen = []

    def network(x):
        seen.append(x.clone())
        return 2 * x

    x = torch.arange(32.0)[:, None]
    for step in (0, 1):
        assert torch.equal(shuffled(network, x, seed=0, step=step), 2 * x)
    assert not torch.equal(seen[0], x)
    assert not torch.equal(seen[0], seen[1])
    assert torch.equal(seen[0].sort(0).values, x)


def test_grouped_layers_are_found_at_any_depth():
    net = grouped(nn.Sequential(nn.Sequential(nn.Linear(2, 3), layer())), 2)
    assert isinstance(net[0][1], GroupedBatchNorm)
