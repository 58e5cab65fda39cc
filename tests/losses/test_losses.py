"""Each loss against numbers worked by hand, limits, symmetries and finite differences."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import tensor

from selfsight.losses import (
    assignment_cross_entropy,
    info_nce,
    negative_cosine,
    nt_xent,
    patch_mse,
    sinkhorn,
)

torch.manual_seed(0)
Z1 = torch.randn(6, 5, dtype=torch.float64)
Z2 = torch.randn(6, 5, dtype=torch.float64)


def test_nt_xent_by_hand():
    # Two orthogonal pairs, τ = 1: each anchor sees its positive at 1 and two others at 0.
    z = torch.eye(2, dtype=torch.float64)
    expected = -1 + math.log(math.e + 2)
    assert nt_xent(z, z, temperature=1.0).item() == pytest.approx(expected, abs=1e-12)


def test_nt_xent_of_a_collapsed_batch():
    z = torch.ones(8, 4)
    assert nt_xent(z, z).item() == pytest.approx(math.log(2 * 8 - 1), rel=1e-6)


def test_nt_xent_ignores_scale_and_order():
    scale = torch.rand(6, 1, dtype=torch.float64) + 0.5
    torch.testing.assert_close(nt_xent(Z1, Z2), nt_xent(scale * Z1, Z2))
    torch.testing.assert_close(nt_xent(Z1, Z2), nt_xent(Z2, Z1))
    order = torch.randperm(6)
    torch.testing.assert_close(nt_xent(Z1, Z2), nt_xent(Z1[order], Z2[order]))


@pytest.mark.parametrize("temperature", [1e-3, 1e-2, 1e2])
def test_nt_xent_is_finite_in_float32(temperature):
    z1, z2 = (100 * z.float().requires_grad_() for z in (Z1, Z2))
    loss = nt_xent(z1, z2, temperature)
    grads = torch.autograd.grad(loss, (z1, z2))
    assert loss.isfinite()
    assert all(g.isfinite().all() for g in grads)


def test_nt_xent_never_sees_itself_at_low_temperature():
    # A mask of −100 would let the self-similarity back in at τ = 0.004.
    z = F.normalize(Z1, dim=1)
    own = torch.arange(12)
    similarity = (torch.cat([z, -z]) @ torch.cat([z, -z]).T) / 0.004
    similarity.fill_diagonal_(-torch.inf)
    expected = F.cross_entropy(similarity, own.roll(6))
    torch.testing.assert_close(nt_xent(z, -z, 0.004), expected)


def test_info_nce_reads_the_positive_where_it_is_said_to_be():
    anchors, candidates = tensor([[1.0, 0.0]]), tensor([[0.0, 1.0], [1.0, 0.0], [-1.0, 0.0]])
    expected = -1 + math.log(1 + math.e + 1 / math.e)
    loss = info_nce(anchors, candidates, tensor([1]), temperature=1.0)
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_negative_cosine():
    assert negative_cosine(tensor([[2.0, 0.0]]), tensor([[5.0, 0.0]])).item() == -1
    assert negative_cosine(tensor([[1.0, 0.0]]), tensor([[0.0, 3.0]])).item() == 0
    mixed = negative_cosine(tensor([[1.0, 0.0], [1.0, 0.0]]), tensor([[1.0, 0.0], [-1.0, 0.0]]))
    assert mixed.item() == 0


def plain_sinkhorn(scores, epsilon, iterations):
    """Algorithm 1 of the SwAV paper's appendix, as printed."""
    q = torch.exp(scores / epsilon).T
    q /= q.sum()
    for _ in range(iterations):
        q /= q.sum(1, keepdim=True)
        q /= len(q)
        q /= q.sum(0, keepdim=True)
        q /= q.shape[1]
    return (q * q.shape[1]).T


@pytest.mark.parametrize("iterations", [1, 3, 10])
def test_sinkhorn_is_the_papers(iterations):
    scores = F.normalize(Z1) @ F.normalize(torch.randn(4, 5, dtype=torch.float64)).T
    expected = plain_sinkhorn(scores, 0.05, iterations)
    torch.testing.assert_close(sinkhorn(scores, 0.05, iterations), expected)


def test_sinkhorn_rows_sum_to_one_and_columns_are_balanced():
    scores = torch.rand(64, 8, dtype=torch.float64) * 2 - 1
    q = sinkhorn(scores, 0.05, 100)
    torch.testing.assert_close(q.sum(1), torch.ones(64, dtype=torch.float64))
    torch.testing.assert_close(
        q.sum(0), torch.full((8,), 8.0, dtype=torch.float64), rtol=1e-3, atol=0
    )
    flat = sinkhorn(torch.zeros(6, 3), 0.05, 3)
    torch.testing.assert_close(flat, torch.full((6, 3), 1 / 3))


def test_sinkhorn_stays_finite_where_the_exponential_does_not():
    scores = F.normalize(torch.randn(64, 16)) @ F.normalize(torch.randn(30, 16)).T
    q = sinkhorn(scores, 0.003)
    assert q.isfinite().all()
    torch.testing.assert_close(q.sum(1), torch.ones(64))


def test_sinkhorn_without_iterations_is_a_softmax():
    scores = torch.randn(5, 4)
    torch.testing.assert_close(sinkhorn(scores, 0.5, 0), (scores / 0.5).softmax(1))


def test_assignment_cross_entropy():
    logits = torch.zeros(3, 4)
    target = torch.eye(4)[:3]
    assert assignment_cross_entropy(logits, target).item() == pytest.approx(math.log(4), rel=1e-6)
    sharp = assignment_cross_entropy(100 * target, target, temperature=0.1)
    assert sharp.item() == pytest.approx(0, abs=1e-6)


def test_patch_mse_reads_only_what_was_hidden():
    prediction = torch.randn(2, 3, 4, requires_grad=True)
    masked = tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    target = torch.randn(2, 3, 4)
    loss = patch_mse(prediction, target, masked)
    expected = (prediction - target).square().mean(2)[masked.bool()].mean()
    torch.testing.assert_close(loss, expected)
    (grad,) = torch.autograd.grad(loss, prediction)
    assert grad[~masked.bool()].abs().max() == 0
    assert grad[masked.bool()].abs().min() > 0


def test_gradients_by_finite_differences():
    z1, z2 = Z1.clone().requires_grad_(), Z2.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: nt_xent(a, b, 0.5), (z1, z2))
    assert torch.autograd.gradcheck(negative_cosine, (z1, z2))
    target = torch.softmax(Z2, 1)
    assert torch.autograd.gradcheck(lambda a: assignment_cross_entropy(a, target, 0.5), (z1,))
    masked = torch.ones(2, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda a: patch_mse(a.view(2, 3, 5), Z2.view(2, 3, 5), masked), (z1,)
    )


def test_half_precision_is_lifted():
    z1, z2 = Z1.bfloat16(), Z2.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        loss = nt_xent(z1, z2)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, nt_xent(z1.float(), z2.float()))
