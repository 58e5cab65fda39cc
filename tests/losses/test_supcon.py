"""The supervised contrastive loss by hand, at its limits and in parts."""

import math
from functools import partial

import pytest
import torch
from torch import tensor

from selfsight.losses import nt_xent, supcon

LABELS = tensor([0, 1, 0, 2, 1, 0, 3])  # 2 and 3 are alone
plain = partial(supcon, temperature=0.3, base_temperature=0.3)
inside = partial(plain, inside=True)
each = pytest.mark.parametrize("loss", [plain, inside], ids=["outside", "inside"])


def normal(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def test_by_hand():
    # The first sees its class at 1 and 0, and a stranger at 0.
    z = tensor([[2.0, 0, 0], [1, 0, 0], [0, 3, 0], [0, 0, 1]])
    first = partial(supcon, z, tensor([7, 7, 7, 5]), tensor([0]), temperature=1.0)
    total = math.e + 2
    outside = math.log(total) - 1 / 2
    assert first(base_temperature=1.0).item() == pytest.approx(outside, rel=1e-6)
    assert first(base_temperature=0.1).item() == pytest.approx(10 * outside, rel=1e-6)
    assert first(base_temperature=1.0, inside=True).item() == pytest.approx(
        -math.log((math.e + 1) / 2 / total), rel=1e-6
    )


@each
def test_unique_labels_make_it_nt_xent(loss):
    z1, z2 = normal(6, 5), normal(6, 5, seed=1)
    together = loss(torch.cat([z1, z2]), torch.arange(6).repeat(2))
    torch.testing.assert_close(together, nt_xent(z1, z2, 0.3))


def test_inside_by_hand_in_double_precision():
    z, own = normal(5, 4), torch.arange(5)
    s = torch.nn.functional.normalize(z, dim=1)
    e = (s @ s.T / 0.3).exp().fill_diagonal_(0)
    share = e[:, :3].sum(1) / e.sum(1) / 2  # two of the first three
    expected = -share[:3].log().mean()
    value = inside(z, tensor([0, 0, 0, 1, 2]), own[:3])
    torch.testing.assert_close(value, expected, rtol=1e-14, atol=0)


@each
def test_limits(loss):
    same = torch.ones(14, 4, dtype=torch.float64)
    labels = torch.arange(7).repeat(2)
    assert loss(same, labels).item() == pytest.approx(math.log(14 - 1))
    scaled = supcon(same, labels, temperature=0.1, base_temperature=0.07)
    assert scaled.item() == pytest.approx(math.log(14 - 1) / 0.7)
    # Classes that have collapsed, each to a corner of its own: log of the positives' number.
    corners = torch.eye(2, dtype=torch.float64).repeat(6, 1)
    cold = partial(loss, temperature=0.004, base_temperature=0.004)
    assert cold(corners, torch.arange(2).repeat(6)).item() == pytest.approx(math.log(5))


@each
def test_who_is_alone_counts_as_nothing(loss):
    z = normal(7, 5).requires_grad_()
    paired = (LABELS < 2).nonzero()[:, 0]
    value = loss(z, LABELS)
    torch.testing.assert_close(value * 7, loss(z, LABELS, paired) * 5)
    (gradient,) = torch.autograd.grad(value, z)
    assert gradient.isfinite().all()
    assert gradient[3].abs().max() > 0  # it is pushed away all the same
    assert loss(z, torch.arange(7)).item() == 0


@each
@pytest.mark.parametrize("held", [1 << 60, 16, 1])
def test_chunks_change_nothing(hold, loss, held):
    z = normal(7, 5).requires_grad_()
    anchors = tensor([5, 0, 3, 4])
    expected = loss(z, LABELS, anchors)
    (gradient,) = torch.autograd.grad(expected, z)
    hold(held)
    value = loss(z, LABELS, anchors)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(torch.autograd.grad(value, z)[0], gradient)
    assert torch.autograd.gradcheck(lambda x: loss(x, LABELS), z)


def test_no_tensor_is_as_large_as_all_logits(hold, largest_tensor):
    n = 256
    z, labels = normal(n, 8).requires_grad_(), torch.arange(n) % 10
    assert largest_tensor(lambda: plain(z, labels).backward()) == n * n
    hold(16 * n)
    assert largest_tensor(lambda: plain(z, labels).backward()) == 16 * n


@each
@pytest.mark.parametrize("temperature", [0.004, 100.0])
def test_extremes_stay_finite_and_right_in_float32(loss, temperature):
    z = (1e15 * normal(7, 5, dtype=torch.float32)).requires_grad_()
    value = loss(z, LABELS, temperature=temperature)
    exact = loss(z.detach().double(), LABELS, temperature=temperature)
    bound = 1e-6 * (temperature + 1) / 0.3
    torch.testing.assert_close(value.double(), exact, rtol=1e-6, atol=bound)
    assert torch.autograd.grad(value, z)[0].isfinite().all()


def test_half_precision_is_lifted():
    z = normal(7, 5, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(plain(z, LABELS), plain(z.float(), LABELS))
