"""Alignment, uniformity, and relations to a queue: by hand, at their limits, and in chunks."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import tensor

from selfsight.errors import ConfigError
from selfsight.losses import alignment, info_nce, relation_consistency, uniformity

PLAIN, CHUNKED = 1 << 60, 20  # logits held at once; 20 is one to three rows of those below


def normal(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def evenly(z, others):
    return uniformity(z, 3.0)


def away_from_others(z, others):
    return uniformity(z, 3.0, others)


def related(z, others):
    return relation_consistency(z, z.flip(1), others, 0.3, 0.2)


LOSSES = [evenly, away_from_others, related]


def value_and_gradient(loss, *inputs):
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    value = loss(*inputs)
    gradients = torch.autograd.grad(value, inputs, allow_unused=True, materialize_grads=True)
    return value.detach(), torch.cat(gradients)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("n", [4, 7])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_chunks_change_nothing(hold, loss, n, dtype, tolerance):
    z = normal(n, 5, dtype=dtype), normal(9, 5, seed=1, dtype=dtype)
    hold(PLAIN)
    value, gradient = value_and_gradient(loss, *z)
    hold(CHUNKED)
    chunked, chunked_gradient = value_and_gradient(loss, *z)
    torch.testing.assert_close(chunked, value, rtol=tolerance, atol=0)
    scale = gradient.abs().max().item()
    torch.testing.assert_close(chunked_gradient, gradient, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("held", [PLAIN, CHUNKED])
def test_gradients_by_finite_differences(hold, loss, held):
    hold(held)
    assert torch.autograd.gradcheck(
        loss, (normal(5, 4).requires_grad_(), normal(9, 4, seed=1).requires_grad_())
    )


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, 3.0])
def test_alignment_by_finite_differences(alpha):
    z = normal(5, 4).requires_grad_(), normal(5, 4, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: alignment(a, b, alpha), z)


def test_no_tensor_is_as_large_as_all_pairs(hold, largest_tensor):
    n, d, k, held = 256, 8, 512, 4096
    z, others = normal(n, d).requires_grad_(), normal(k, d, seed=1)

    def sizes():
        return [largest_tensor(lambda f=f: f(z, others).backward()) for f in LOSSES]

    hold(held)
    assert max(sizes()) <= held
    hold(PLAIN)
    assert min(sizes()) >= n * n


@pytest.mark.parametrize("alpha", [1, 2, 3])
def test_alignment_by_hand(alpha):
    # Distances √2 and 0 on the circle, whatever the lengths.
    a, b = tensor([[2.0, 0.0], [0.0, 1.0]]), tensor([[0.0, 3.0], [0.0, 4.0]])
    assert alignment(a, b, alpha).item() == pytest.approx(2 ** (alpha / 2) / 2)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, 3.0])
def test_what_is_aligned_has_no_gradient(alpha):
    z = normal(6, 3).requires_grad_()
    loss = alignment(z, z.detach().clone(), alpha)
    (gradient,) = torch.autograd.grad(loss, z)
    assert loss.item() == pytest.approx(0, abs=1e-70)
    assert torch.equal(gradient, torch.zeros_like(z))


def test_uniformity_by_hand():
    z = tensor([[1.0, 0.0], [0.0, 2.0], [-1.0, 0.0]])  # squared distances 2, 4, 2
    within = 2 * math.exp(-4) + math.exp(-8)
    assert uniformity(z).item() == pytest.approx(math.log(within / 3), rel=1e-6)
    others = tensor([[0.0, 5.0]])  # 2, 0, 2
    beside = 2 * math.exp(-4) + 1
    expected = math.log((within + beside) / 6)
    assert uniformity(z, 2.0, others).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("t", [0.5, 2.0, 5.0])
def test_uniformity_is_the_mean_over_distinct_pairs(t):
    z, others = normal(23, 5), normal(11, 5, seed=1)
    pairs = torch.pdist(F.normalize(z)).square()
    torch.testing.assert_close(uniformity(z, t), (-t * pairs).exp().mean().log())
    crossed = torch.cdist(F.normalize(z), F.normalize(others)).square().flatten()
    both = (-t * torch.cat([pairs, crossed])).exp().mean().log()
    torch.testing.assert_close(uniformity(z, t, others), both)


def test_the_uniformity_of_one_image_is_refused_unless_others_are_there():
    z, others = normal(1, 5), normal(4, 5, seed=1)
    with pytest.raises(ConfigError, match=r"use a --batch of 2 images or more"):
        uniformity(z)
    apart = torch.cdist(F.normalize(z), F.normalize(others)).square()
    torch.testing.assert_close(uniformity(z, 3.0, others), (-3 * apart).exp().mean().log())


def test_uniformity_between_collapse_and_the_sphere():
    assert uniformity(torch.ones(9, 4)).item() == pytest.approx(0, abs=1e-6)
    assert uniformity(normal(500, 500)).item() == pytest.approx(-4, abs=0.02)


@pytest.mark.parametrize("t", [0.5, 125.0])
def test_extremes_stay_finite_and_right_in_float32(t):
    z, others = 1e15 * normal(7, 5, dtype=torch.float32), normal(9, 5, dtype=torch.float32)
    for loss in (lambda a, b: uniformity(a, t, b), lambda a, b: alignment(a, b[:7], min(t, 4.0))):
        value, gradient = value_and_gradient(loss, z, others)
        assert gradient.isfinite().all()
        exact = loss(z.double(), others.double())
        torch.testing.assert_close(value.double(), exact, rtol=1e-4, atol=2e-6 * (1 + t))


def test_a_contrastive_loss_is_made_of_both():
    """Wang and Isola, theorem 1: alignment over τ, and a potential of t = 1/(2τ)."""
    z1, z2, tau, n = normal(400, 8), normal(400, 8, seed=1), 0.5, 400
    z2 = z1 + 0.3 * z2
    loss = info_nce(z1, z2, torch.arange(n), temperature=tau)
    crossed = torch.cdist(F.normalize(z1), F.normalize(z2)).square() / (2 * tau)
    spread = (-crossed).exp().mean(1).log().mean()
    parts = alignment(z1, z2) / (2 * tau) + spread + math.log(n)
    torch.testing.assert_close(loss, parts)


def test_relations_by_hand():
    # Scores 1, 0 and −1 of the student, 0, 1 and 0 of the teacher.
    z, t = tensor([[2.0, 0.0]]), tensor([[0.0, 0.5]])
    queue = tensor([[3.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    p = tensor([1.0, math.e**2, 1.0]) / (2 + math.e**2)  # τ_t = 1/2
    r = tensor([math.e, 1.0, 1 / math.e])
    expected = -(p * (r / r.sum()).log()).sum()
    torch.testing.assert_close(relation_consistency(z, t, queue, 1.0, 0.5), expected)


def test_relations_are_no_less_than_the_teachers_entropy():
    z, t, queue = normal(6, 5), normal(6, 5, seed=1), normal(9, 5, seed=2)
    logits = F.normalize(t) @ F.normalize(queue).T / 0.1
    entropy = torch.special.entr(logits.softmax(1)).sum(1).mean()
    assert relation_consistency(z, t, queue, 0.1, 0.1) > entropy + 0.1
    torch.testing.assert_close(relation_consistency(t, t, queue, 0.1, 0.1), entropy)


def test_a_certain_teacher_names_one_row():
    z, t, queue = normal(6, 5), normal(6, 5, seed=1), normal(9, 5, seed=2)
    nearest = (F.normalize(t) @ F.normalize(queue).T).argmax(1)
    expected = info_nce(z, queue, nearest, temperature=0.1)
    torch.testing.assert_close(relation_consistency(z, t, queue, 0.1, 1e-4), expected)


def test_low_temperatures_stay_finite_and_right_in_float32():
    z, t, queue = (normal(6, 5, seed=s, dtype=torch.float32) for s in range(3))
    value, gradient = value_and_gradient(
        lambda *x: relation_consistency(*x, 0.004, 0.004), 1e15 * z, t, queue
    )
    assert gradient.isfinite().all()
    exact = relation_consistency(z.double(), t.double(), queue.double(), 0.004, 0.004)
    torch.testing.assert_close(value.double(), exact, rtol=1e-4, atol=0)


@pytest.mark.parametrize("held", [PLAIN, CHUNKED])
def test_half_precision_is_lifted(hold, held):
    hold(held)
    z, others = (normal(6, 5, seed=s).bfloat16().requires_grad_() for s in range(2))
    for loss in LOSSES:
        with torch.autocast("cpu", torch.bfloat16):
            value = loss(z, others)
        (gradient,) = torch.autograd.grad(value, z)
        assert (value.dtype, gradient.dtype) == (torch.float32, torch.bfloat16)
        torch.testing.assert_close(value, loss(z.float(), others.float()))
