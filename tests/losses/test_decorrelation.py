"""Barlow Twins and VICReg against hand-worked numbers, limits and their D×D form."""

import math

import pytest
import torch
from torch import tensor

from selfsight.errors import ConfigError
from selfsight.losses import (
    barlow_cross_entropy,
    barlow_twins,
    covariance_penalty,
    variance_hinge,
    vicreg,
)

SHAPES = [(4, 9), (5, 13), (6, 12), (7, 8), (6, 6), (9, 4)]
G = 1 / (1 + 1e-5)  # what BatchNorm's ε leaves of a variance of 1


def pair(n, d, dtype=torch.float64):
    generator = torch.Generator().manual_seed(n * d)
    z = torch.randn(2, n, d, generator=generator, dtype=torch.float64)
    return (z[0] + 0.3).to(dtype), (0.7 * z[0] + z[1]).to(dtype)


def plain_barlow(z1, z2):
    x, y = ((z - z.mean(0)) / (z.var(0, correction=0) + 1e-5).sqrt() for z in (z1, z2))
    c = x.T @ y / len(x)
    weight = torch.full_like(c, 0.0051).fill_diagonal_(1.0)
    return (weight * (c - torch.eye(len(c), dtype=c.dtype)).square()).sum()


def plain_penalty(z1, z2):
    c = torch.cov(z1.T)
    return (c - torch.diag(c.diagonal())).square().sum() / len(c) + 0 * z2.sum()


def plain_vicreg(z1, z2):
    loss = 25 * (z1 - z2).square().mean()
    for z in (z1, z2):
        loss = loss + 12.5 * (1 - (z.var(0) + 1e-4).sqrt()).clamp_min(0).mean()
        loss = loss + plain_penalty(z, z)
    return loss


def penalty(z1, z2):
    return covariance_penalty(z1) + 0 * z2.sum()


FORMS = [(barlow_twins, plain_barlow), (penalty, plain_penalty), (vicreg, plain_vicreg)]


def gradients(loss, *z):
    z = [x.detach().clone().requires_grad_() for x in z]
    return torch.stack(torch.autograd.grad(loss(*z), z))


@pytest.mark.parametrize(("loss", "plain"), FORMS)
@pytest.mark.parametrize(("n", "d"), [*SHAPES, (40, 250), (41, 82)])
def test_the_form_changes_nothing(loss, plain, n, d):
    z = pair(n, d)
    torch.testing.assert_close(loss(*z), plain(*z), rtol=1e-12, atol=0)
    exact = gradients(plain, *z)
    scale = exact.abs().max().item()
    torch.testing.assert_close(gradients(loss, *z), exact, rtol=0, atol=1e-12 * scale)
    # float32: to a few roundings of the largest entry.
    z = pair(n, d, torch.float32)
    torch.testing.assert_close(loss(*z).double(), plain(*pair(n, d)), rtol=1e-6, atol=0)
    torch.testing.assert_close(gradients(loss, *z).double(), exact, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("n", [64, 127])
def test_the_gram_form_keeps_its_digits_where_it_cancels_most(n):
    # Orthogonal rows: of all embeddings of this rank the nearest to white.
    d = 2 * n
    z = d**0.5 * torch.linalg.qr(pair(d, n)[0])[0].T
    exact = plain_penalty(z, z)
    torch.testing.assert_close(covariance_penalty(z.float()).double(), exact, rtol=1e-6, atol=0)
    exact = gradients(plain_penalty, z, z)
    got = gradients(penalty, z.float(), z.float()).double()
    torch.testing.assert_close(got, exact, rtol=0, atol=4e-6 * exact.abs().max().item())


@pytest.mark.parametrize(("n", "d"), [(16, 100), (100, 16)])
def test_a_feature_that_dwarfs_the_rest_costs_no_digits(n, d):
    z, _ = pair(n, d)
    z[:, 2] *= 1e4
    exact = plain_penalty(z, z)
    torch.testing.assert_close(covariance_penalty(z.float()).double(), exact, rtol=1e-6, atol=0)
    exact = gradients(plain_penalty, z, z)
    got = gradients(penalty, z.float(), z.float()).double()
    torch.testing.assert_close(got, exact, rtol=0, atol=1e-6 * exact.abs().max().item())


@pytest.mark.parametrize("d", [2, 4, 6])
def test_barlow_twins_by_hand(d):
    # Two opposite samples: every entry of C is G.
    z = torch.ones(2, d, dtype=torch.float64)
    z[1] = -1
    expected = 3 * d * (G - 1) ** 2 + 0.1 * d * (d - 1) * G**2
    assert barlow_twins(z, z, 0.1, invariance=3.0).item() == pytest.approx(expected, rel=1e-12)


def test_barlow_twins_normalized_otherwise():
    z1, z2 = tensor([[1.0, 2.0]]), tensor([[3.0, 4.0]])  # C = [[3, 4], [6, 8]]
    loss = barlow_twins(z1, z2, 0.5, normalize="none")
    assert loss.item() == pytest.approx(2**2 + 7**2 + 0.5 * (4**2 + 6**2))
    z = tensor([[3.0, 4.0]])  # 0.6, 0.8: C = [[0.36, 0.48], [0.48, 0.64]]
    loss = barlow_twins(z, 5 * z, 0.5, normalize="feature")
    assert loss.item() == pytest.approx(0.64**2 + 0.36**2 + 0.5 * 2 * 0.48**2)
    z = tensor([[5.0, 1.0], [1.0, 3.0]])  # 2, −1 about the mean: C = [[4, −2], [−2, 1]]
    loss = barlow_twins(z, z + 7, 0.5, normalize="centre")
    assert loss.item() == pytest.approx(3**2 + 0 + 0.5 * 2 * 2**2)
    with pytest.raises(ConfigError, match=r"unknown normalize 'bacth'.*did you mean batch"):
        barlow_twins(z, z, normalize="bacth")


def test_barlow_cross_entropy_by_hand():
    z = tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)  # C = [[G, −G], [−G, G]]
    expected = -math.log(2) - G / 0.5 + 0.1 * math.log(2)
    assert barlow_cross_entropy(z, z, 0.1, 0.5).item() == pytest.approx(expected, rel=1e-12)


def test_barlow_twins_of_independent_views():
    generator = torch.Generator().manual_seed(0)
    z1, z2 = torch.randn(2, 64, 256, generator=generator)
    assert barlow_twins(z1, z2, 1.0).item() == pytest.approx(256 + 256**2 / 64, rel=0.02)


def test_white_and_aligned_is_the_minimum():
    signs = tensor([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], dtype=torch.float64)
    assert barlow_twins(signs, signs).item() < 1e-8
    white = signs * 0.75**0.5  # unbiased variances of 1
    assert vicreg(white, white).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("d", [3, 20])
def test_vicreg_of_a_collapsed_batch(d):
    z = torch.full((8, d), 0.25)
    assert vicreg(z, z).item() == pytest.approx(24.75, rel=1e-6)


def test_vicreg_by_hand():
    z1, z2 = tensor([[1.0, 1.0], [-1.0, -1.0]]), tensor([[0.0, 0.0], [0.0, 0.0]])
    # Invariance 1; hinges 0 and 0.99; covariance 2·2² / 2 and 0.
    expected = 3 * 1 + 5 * 0.99 / 2 + 7 * 4
    loss = vicreg(z1, z2, invariance=3.0, variance=5.0, covariance=7.0)
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_variance_hinge_by_hand():
    a = ((0.25 - 1e-4) / 2) ** 0.5  # a standard deviation of ½ with the ε
    assert variance_hinge(tensor([[a, 9.0], [-a, -9.0]])).item() == pytest.approx(0.25, rel=1e-6)


@pytest.mark.parametrize("d", [2, 4, 7])
def test_covariance_penalty_by_hand(d):
    z = torch.ones(2, d)
    z[1] = -1  # every covariance is 2
    assert covariance_penalty(z).item() == pytest.approx(4 * (d - 1), rel=1e-6)


@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_symmetries(n, d):
    z1, z2 = pair(n, d)
    rows, columns = torch.randperm(n), torch.randperm(d)
    for loss in (barlow_twins, barlow_cross_entropy, vicreg):
        torch.testing.assert_close(loss(z1, z2), loss(z2, z1))
        torch.testing.assert_close(loss(z1, z2), loss(z1[rows], z2[rows]))
        torch.testing.assert_close(loss(z1, z2), loss(z1[:, columns], z2[:, columns]))
        torch.testing.assert_close(loss(z1, z2), loss(z1 + 3, z2 + 3))
    torch.testing.assert_close(barlow_twins(1e3 * z1, z2), barlow_twins(1e4 * z1, z2))


@pytest.mark.parametrize(("n", "d"), [(3, 7), (4, 5), (5, 3)])
def test_gradients_by_finite_differences(n, d):
    z = [x.requires_grad_() for x in pair(n, d)]
    for normalize in ("batch", "centre", "feature", "none"):
        assert torch.autograd.gradcheck(
            lambda a, b, by=normalize: barlow_twins(a, b, 0.5, normalize=by), z
        )
    assert torch.autograd.gradcheck(lambda a, b: barlow_cross_entropy(a, b, 0.5, 0.5), z)
    assert torch.autograd.gradcheck(lambda a, b: vicreg(0.3 * a, 0.3 * b), z)
    assert torch.autograd.gradcheck(covariance_penalty, z[:1])


@pytest.mark.parametrize(("n", "d"), [(8, 512), (31, 64), (64, 16)])
def test_no_tensor_is_larger_than_two_batches(largest_tensor, n, d):
    z1, z2 = (z.requires_grad_() for z in pair(n, d))
    assert largest_tensor(lambda: barlow_twins(z1, z2).backward()) <= 2 * n * d
    assert largest_tensor(lambda: vicreg(z1, z2).backward()) <= 2 * n * d
    # The meter sees a D×D matrix where there is one.
    assert largest_tensor(lambda: barlow_cross_entropy(z1, z2)) >= d * d


def test_half_precision_is_lifted():
    for n, d in ((4, 20), (8, 3)):
        z1, z2 = pair(n, d, torch.bfloat16)
        for loss in (barlow_twins, barlow_cross_entropy, vicreg):
            with torch.autocast("cpu", torch.bfloat16):
                value = loss(z1, z2)
            assert value.dtype == torch.float32
            torch.testing.assert_close(value, loss(z1.float(), z2.float()))
