"""Losses of negatives that are chosen, moved or mixed: by hand, at their limits, in chunks."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import tensor

from selfsight.losses import (
    extrapolated,
    hard_mixes,
    interpolated,
    mixed_nce,
    queue_nce,
    ring_nce,
    score_moments,
    score_nce,
)

PLAIN, CHUNKED = 1 << 60, 20  # logits held at once; 20 is two rows of those below
MIXES = {"hardest": 3, "pairs": 4, "queries": 2}


def normal(*shape, seed=0, dtype=torch.float64):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=draw, dtype=torch.float64).to(dtype)


def rows(dtype=torch.float64):
    """q, k and a queue of 7."""
    return tuple(normal(n, 5, seed=seed, dtype=dtype) for seed, n in enumerate((4, 4, 7)))


def uniforms(n, mixes=MIXES):
    draw = torch.Generator().manual_seed(3)
    return torch.rand(n, 3 * mixes["pairs"] + 2 * mixes["queries"], generator=draw)


def ring(q, k, queue, temperature=0.2):
    return ring_nce(q, k, queue, temperature, 0.3, 0.8)


def mixed(q, k, queue, temperature=0.2):
    return mixed_nce(q, k, queue, uniforms(len(q)), temperature, **MIXES)


def full_ring(q, k, queue, temperature=0.2):
    return ring_nce(q, k, queue, temperature, 0.3, 1.0)


def transformed(q, k, queue, temperature=0.2):
    n = interpolated(queue, tensor([0.3]), torch.arange(len(queue)).flip(0))
    return score_nce(*extrapolated(q, k, tensor([1.4])), n, temperature)


LOSSES = [ring, full_ring, mixed, transformed]


def circle(*degrees):
    angle = torch.deg2rad(tensor(degrees, dtype=torch.float64))
    return torch.stack([angle.cos(), angle.sin()], 1)


def value_and_gradient(loss, q):
    q = q.clone().requires_grad_()
    value = loss(q)
    return value.detach(), torch.autograd.grad(value, q)[0]


def test_scores_by_hand():
    q, k, n = tensor([[1.0, 2.0]]), tensor([[0.1, 0.2]]), tensor([[-0.1, 0.1], [0.1, -0.2]])
    loss = score_nce(q, k, n, 0.5)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-0.8) + math.exp(-1.6)))


def test_a_ring_by_hand():
    """Of eight negatives the four nearest, less the nearest of these: those at 40, 60 and 80."""
    q, k = 3 * circle(0), circle(30)
    queue = circle(100, 20, 120, 40, 140, 60, 160, 80)
    loss = ring_nce(q, k, queue, 0.5, 0.25, 0.5)
    cosine = [math.cos(math.radians(a)) / 0.5 for a in (30, 40, 60, 80)]
    expected = math.log(sum(map(math.exp, cosine))) - cosine[0]
    assert loss.item() == pytest.approx(expected)


@pytest.mark.parametrize(("outer", "kept"), [(0.01, 10), (1.0, 90)])
def test_a_ring_keeps_one_negative(outer, kept):
    q, k, queue = circle(0), circle(30), circle(10, 50, 90)
    expected = queue_nce(q, k, circle(kept), 0.5)
    torch.testing.assert_close(ring_nce(q, k, queue, 0.5, 1.0, outer), expected)


@pytest.mark.parametrize(
    "loss",
    [
        lambda q, k, queue, t: ring_nce(q, k, queue, t, 0.0, 1.0),
        lambda q, k, queue, t: mixed_nce(q, k, queue, torch.zeros(len(q), 0), t, hardest=3,
                                         pairs=0, queries=0),
        lambda q, k, queue, t: score_nce(
            *extrapolated(q, k, 1.0), interpolated(queue, 1.0, torch.arange(6, -1, -1)), t),
    ],
    ids=["ring", "mochi", "unmoved"],
)  # fmt: skip
def test_the_losses_reduce_to_mocos(loss):
    q, k, queue = rows()
    value, gradient = value_and_gradient(lambda q: loss(q, k, queue, 0.1), q)
    expected, slope = value_and_gradient(lambda q: queue_nce(q, k, queue, 0.1), q)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient, slope)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("temperature", [0.004, 100.0])
def test_extremes_stay_finite_and_right_in_float32(loss, temperature):
    q, k, queue = rows(torch.float32)
    value, gradient = value_and_gradient(lambda q: loss(q, k, queue, temperature), 1e15 * q)
    exact = loss(*(x.double() for x in (q, k, queue)), temperature)
    assert gradient.isfinite().all()
    bound = 1e-6 * (1 + 1 / temperature)
    torch.testing.assert_close(value.double(), exact, rtol=1e-5, atol=4 * bound)


@pytest.mark.parametrize("loss", [ring, full_ring, transformed])
@pytest.mark.parametrize("held", [PLAIN, CHUNKED])
def test_gradients_by_finite_differences(hold, loss, held):
    hold(held)
    _, k, queue = rows()
    assert torch.autograd.gradcheck(lambda q: loss(q, k, queue), normal(4, 5).requires_grad_())


@pytest.mark.parametrize("loss", LOSSES)
def test_chunks_change_nothing(hold, loss):
    q, k, queue = rows()
    found = []
    for held in (PLAIN, CHUNKED):
        hold(held)
        found.append(value_and_gradient(lambda q: loss(q, k, queue), q))
    for plain, chunked in zip(*found, strict=True):
        torch.testing.assert_close(chunked, plain, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("loss", LOSSES)
def test_no_tensor_is_as_large_as_all_scores(hold, largest_tensor, loss):
    n, length, held = 128, 64, 1024
    q, k, queue = normal(n, 5).requires_grad_(), normal(n, 5, seed=1), normal(length, 5, seed=2)
    largest = largest_tensor(lambda: loss(q, k, queue).backward())
    assert largest >= n * length
    hold(held)
    assert largest_tensor(lambda: loss(q, k, queue).backward()) <= 2 * held


def test_moments_of_scores_that_are_not_formed():
    q, k, n = rows()
    s, scores = (q * k).sum(1), q @ n.T
    expected = {
        "positive_mean": s.mean(),
        "positive_variance": s.var(correction=0),
        "negative_mean": scores.mean(),
        "negative_variance": scores.var(1, correction=0).mean(),
    }
    torch.testing.assert_close(score_moments(q, k, n), expected)


def test_half_precision_is_lifted():
    q, k, queue = (x.bfloat16() for x in rows())
    for loss in LOSSES:
        assert loss(q, k, queue).dtype == torch.float32


@pytest.mark.parametrize("extrapolation", [1.0, 1.3, 2.0])
def test_extrapolated_scores_fall_as_the_paper_says(extrapolation):
    q, k, queue = rows()
    q, k, n = (F.normalize(x, dim=1) for x in (q, k, queue))
    q_far, k_far = extrapolated(3 * q, 2 * k, extrapolation)
    s = (q * k).sum(1)
    lost = 2 * extrapolation * (1 - extrapolation) * (1 - s)
    torch.testing.assert_close((q_far * k_far).sum(1), s + lost)
    assert (lost <= 0).all()
    # The negatives meet the query that has moved, as in the official code.
    mixed = extrapolation * q @ n.T + (1 - extrapolation) * k @ n.T
    torch.testing.assert_close(q_far @ n.T, mixed)


def test_interpolated_negatives_lie_between_two_of_the_queue():
    _, _, queue = rows()
    partners = torch.arange(7).roll(2)
    n = F.normalize(queue, dim=1)
    between = interpolated(queue, 0.3, partners)
    torch.testing.assert_close(between, 0.3 * n + 0.7 * n[partners])


def test_each_dimension_may_have_its_own_transformation():
    q, k = extrapolated(circle(0), circle(90), tensor([[1.5, 2.0]]))
    torch.testing.assert_close(q, tensor([[1.5, -1.0]], dtype=torch.float64))
    torch.testing.assert_close(k, tensor([[-0.5, 2.0]], dtype=torch.float64))
    mu = tensor([[0.25, 1.0], [0.5, 0.0]])
    n = interpolated(circle(0, 90), mu, tensor([1, 0]))
    torch.testing.assert_close(n, tensor([[0.25, 0.0], [0.5, 0.0]], dtype=torch.float64))


def test_mixes_by_hand():
    q, queue = circle(0), circle(180, 30, 60)
    # α, β/2 and picks: the nearest with the second nearest, the second nearest with q
    draws = tensor([[0.75, 0.5, 0.0, 0.999, 0.5]])
    mixes = hard_mixes(q, queue, draws, hardest=2, pairs=1, queries=1)
    n1, n2 = circle(30)[0], circle(60)[0]
    expected = torch.stack([0.75 * n1 + 0.25 * n2, 0.25 * q[0] + 0.75 * n2])
    torch.testing.assert_close(mixes[0], F.normalize(expected, dim=1))


def test_mixes_are_of_the_hardest_and_lean_to_them():
    q, _, queue = (F.normalize(x, dim=1) for x in rows())
    options = {"hardest": 2, "pairs": 200, "queries": 200}
    mixes = hard_mixes(q, queue, uniforms(4, options), **options)
    torch.testing.assert_close(mixes.norm(dim=2), torch.ones(4, 400, dtype=torch.float64))
    for query, mix in zip(q, mixes, strict=True):
        n = queue[(queue @ query).topk(2).indices]
        basis = torch.linalg.lstsq(n.T, mix[:200].T).solution  # α and 1 − α, to scale
        torch.testing.assert_close(n.T @ basis, mix[:200].T)
        assert (basis > -1e-9).all()
        towards = mix[200:]
        assert ((towards @ n.T).amax(1) > towards @ query).all()
        assert (towards @ query > (n @ query).amin()).all()


@pytest.mark.parametrize("hardest", [1, 3, 7, 1000, 1024, 4095])
def test_the_largest_draw_picks_the_last_of_the_hardest(hardest):
    q, queue = circle(0).float(), circle(*range(1, hardest + 1)).float()
    largest = tensor([[1.0, 0.5, *[1 - 2.0**-24] * 3]])
    mixes = hard_mixes(q, queue, largest, hardest=hardest, pairs=1, queries=1)
    last = (queue @ q[0]).sort(descending=True).indices[-1]
    torch.testing.assert_close(mixes[0, 0] @ q[0], queue[last] @ q[0])


def test_mixes_count_as_further_rows_of_the_queue():
    """Their gradient, too, is that of rows which are given."""
    q, k, queue = (x[:1] if len(x) == 4 else x for x in rows())
    unit = F.normalize(q, dim=1), F.normalize(queue, dim=1)
    more = torch.cat([queue, hard_mixes(*unit, uniforms(1), **MIXES)[0]])
    value, gradient = value_and_gradient(lambda q: mixed(q, k, queue), q)
    expected, slope = value_and_gradient(lambda q: queue_nce(q, k, more, 0.2), q)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient, slope)
