import itertools
import math

import pytest
import torch
from torch import nn

from selfsight.errors import ConfigError
from selfsight.optim import LARS, Recipe, build, clip, set_rates
from selfsight.schedules import cosine, linear, warmup_cosine


def recipe(**changes):
    return Recipe(**{"optimizer": "sgd", "lr": 0.1, "weight_decay": 0.01, **changes})


def test_schedules():
    assert linear(1.0, 3.0, 0.25) == 1.5
    assert cosine(0.996, 1.0, 0.0) == 0.996
    assert cosine(0.996, 1.0, 1.0) == 1.0
    assert cosine(0.0, 1.0, 0.5) == pytest.approx(0.5)
    k, total = 30, 100
    published = 1 - (1 - 0.9) * (1 + math.cos(math.pi * k / total)) / 2
    assert cosine(0.9, 1.0, k / total) == pytest.approx(published)


def test_warm_up_reaches_the_base_rate_at_its_end_and_the_last_rate_after_the_run():
    rates = [warmup_cosine(step, 20, 5, last=0.1) for step in range(21)]
    assert rates[0] == 0
    assert rates[1] == pytest.approx(0.2)
    assert rates[5] == 1
    assert rates[20] == pytest.approx(0.1)
    assert all(a > b for a, b in itertools.pairwise(rates[5:]))
    assert warmup_cosine(0, 20, 5, first=0.5) == 0.5


def test_the_rate_follows_the_batch():
    assert recipe(rule="linear").rate(512) == pytest.approx(0.2)
    assert recipe(rule="sqrt").rate(1024) == pytest.approx(0.2)
    assert recipe(rule="fixed").rate(1024) == pytest.approx(0.1)


def test_lars_by_hand():
    p = nn.Parameter(torch.tensor([[3.0, 4.0]]))
    optimizer = LARS([{"params": [p]}], lr=2.0, weight_decay=0.1, momentum=0.9, trust=0.001)
    p.grad = torch.tensor([[1.0, 0.0]])
    optimizer.step()
    direction = torch.tensor([[1.3, 0.4]])
    update = 0.001 * 5 / direction.norm() * direction
    torch.testing.assert_close(p.detach(), torch.tensor([[3.0, 4.0]]) - 2.0 * update)
    # The buffer holds no learning rate: halving the rate halves the whole second move.
    before, buffer = p.detach().clone(), update.clone()
    optimizer.param_groups[0]["lr"] = 1.0
    p.grad = torch.zeros(1, 2)
    optimizer.step()
    decayed = 0.1 * before
    second = 0.9 * buffer + 0.001 * before.norm() / decayed.norm() * decayed
    torch.testing.assert_close(p.detach(), before - second)


def test_larc_adds_norms_where_lars_takes_the_norm_of_the_sum():
    for joint, size in ((True, torch.tensor([1.3, 0.4]).norm()), (False, 1 + 0.1 * 5)):
        p = nn.Parameter(torch.tensor([[3.0, 4.0]]))
        p.grad = torch.tensor([[1.0, 0.0]])
        LARS([{"params": [p]}], lr=1.0, weight_decay=0.1, joint=joint).step()
        moved = torch.tensor([[3.0, 4.0]]) - p.detach()
        torch.testing.assert_close(moved, 0.001 * 5 / size * torch.tensor([[1.3, 0.4]]))


def test_lars_leaves_zero_weights_and_spared_parameters_unadapted():
    p, spared = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.ones(2))
    p.grad, spared.grad = torch.ones(2, 2), torch.ones(2)
    groups = [{"params": [p]}, {"params": [spared], "adapt": False}]
    LARS(groups, lr=0.5).step()
    assert p.tolist() == [[-0.5, -0.5]] * 2
    assert spared.tolist() == [0.5, 0.5]


@pytest.mark.parametrize("name", ["sgd", "lars", "larc", "adamw"])
def test_one_dimensional_parameters_are_spared_decay(name):
    net = nn.Linear(3, 2)
    optimizer = build([{"params": list(net.parameters())}], recipe(optimizer=name))
    set_rates(optimizer, recipe(), 0.1, step=0, total=10, warmup=0)
    decay = {p: g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert decay == {net.weight: 0.01, net.bias: 0.0}
    nothing_spared = build([{"params": list(net.parameters())}], recipe(exempt="none"))
    set_rates(nothing_spared, recipe(), 0.1, step=0, total=10, warmup=0)
    assert {g["weight_decay"] for g in nothing_spared.param_groups} == {0.01}


def test_a_group_may_scale_its_rate_or_keep_it():
    a, b, c = (nn.Parameter(torch.zeros(1, 1)) for _ in range(3))
    groups = [{"params": [a]}, {"params": [b], "lr_scale": 10.0}, {"params": [c], "constant": True}]
    optimizer = build(groups, recipe())
    rate = set_rates(optimizer, recipe(last=0.0), 0.1, step=5, total=10, warmup=0)
    assert rate == pytest.approx(0.05)
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.05, 0.5, 0.1])


def test_decay_may_move():
    p = nn.Parameter(torch.zeros(1, 1))
    moving = recipe(weight_decay=0.04, weight_decay_end=0.4)
    optimizer = build([{"params": [p]}], moving)
    set_rates(optimizer, moving, 0.1, step=5, total=10, warmup=0)
    assert optimizer.param_groups[0]["weight_decay"] == pytest.approx(0.22)


def test_an_unknown_optimizer_is_named():
    with pytest.raises(ConfigError, match="unknown optimizer adam; did you mean adamw"):
        build([], recipe(optimizer="adam"))


def test_clipping_is_of_all_together_or_of_each():
    def norms(each):
        net = nn.Linear(2, 2)
        net.weight.grad, net.bias.grad = torch.full((2, 2), 3.0), torch.full((2,), 4.0)
        clip(net, recipe(clip=1.0, clip_each=each))
        return net.weight.grad.norm().item(), net.bias.grad.norm().item()

    weight, bias = norms(each=False)
    assert math.hypot(weight, bias) == pytest.approx(1, abs=1e-4)
    assert norms(each=True) == pytest.approx((1, 1), abs=1e-4)
