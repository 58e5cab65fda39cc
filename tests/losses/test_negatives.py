"""Losses that weigh or correct a batch's negatives: by hand, plainly written, at their limits."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import tensor

from selfsight.errors import ConfigError
from selfsight.losses import (
    cosine,
    coupling,
    debiased_nce,
    decoupled_nce,
    hard_nce,
    info_nce,
    mises_fisher,
    mixed_nce,
    nt_xent,
    queue_nce,
    ring_nce,
    simple_contrast,
    supcon,
    variation,
)
from selfsight.methods.base import sides

E = math.e
PLAIN, CHUNKED = 1 << 60, 20  # logits held at once; 20 is two or three rows of those below


def normal(*shape, seed=0, dtype=torch.float64):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=draw, dtype=torch.float64).to(dtype)


def pair(n=5, d=4, dtype=torch.float64):
    return normal(n, d, dtype=dtype), normal(n, d, seed=1, dtype=dtype)


def nearing():
    """Six pairs, the first apart, the last together."""
    z1, z2 = pair(6)
    return z1, z1.lerp(z2, torch.linspace(1, 0, 6, dtype=torch.float64)[:, None])


# One anchor, its positive at a cosine of 0, and the two views of another image at 1 and 0.
ONE = {
    "anchors": tensor([[2.0, 0.0]]),
    "positives": tensor([[0.0, 3.0]]),
    "candidates": tensor([[2.0, 0.0], [0.0, 3.0], [5.0, 0.0], [0.0, -1.0]]),
    "own": tensor([0]),
    "owners": tensor([0, 0, 1, 1]),
}


@pytest.mark.parametrize(
    ("loss", "options", "expected"),
    [
        (decoupled_nce, {"temperature": 1.0}, math.log(E + 1)),
        (decoupled_nce, {"temperature": 0.5}, math.log(E**2 + 1)),
        (hard_nce, {"temperature": 1.0}, math.log(E + 2)),
        (hard_nce, {"temperature": 1.0, "hardest": 0.5}, math.log(E + 1)),
        (hard_nce, {"temperature": 1.0, "hardest": 0.0}, math.log(E + 1)),
        (simple_contrast, {}, 1 / 2),
        (simple_contrast, {"weight": 3.0}, 3.0),
        (simple_contrast, {"hardest": 0.5}, 1.0),
        (coupling, {"temperature": 1.0}, (E + 1) / (E + 2)),
        (debiased_nce, {"temperature": 1.0, "tau_plus": 0.0}, math.log(E + 2)),
        # The mean of e and 1, less a tenth of e⁰, over nine tenths; two negatives.
        (debiased_nce, {"temperature": 1.0}, math.log(1 + 2 * ((E + 1) / 2 - 0.1) / 0.9)),
        # What is known to be the anchor's own class lies at 0 and at 1.
        (
            debiased_nce,
            {"temperature": 1.0, "known": tensor([[[0.0, 1.0], [1.0, 0.0]]])},
            math.log(1 + 2 * ((E + 1) / 2 * 0.9) / 0.9),
        ),
        # Each negative weighs as much as its own e^s.
        (
            debiased_nce,
            {"temperature": 1.0, "beta": 1.0},
            math.log(1 + 2 * ((E**2 + 1) / (E + 1) - 0.1) / 0.9),
        ),
        # 0.95 of e is more than the negatives' mean of 1.86: the floor, 1/e, stands.
        (
            debiased_nce,
            {"temperature": 1.0, "tau_plus": 0.95, "known": tensor([[[1.0, 0.0]]])},
            math.log(1 + 2 / E),
        ),
    ],
)
def test_by_hand(loss, options, expected):
    assert loss(**ONE, **options).item() == pytest.approx(expected, rel=1e-6)


def test_the_weights_by_hand():
    everyone = tensor([0.0, 0.5 * math.log(3)])
    torch.testing.assert_close(mises_fisher(everyone, everyone, 0.5), tensor([1.5, 0.5]))
    weight = mises_fisher(everyone[1:], everyone, 0.5)
    torch.testing.assert_close(weight, tensor([0.5]))
    s = cosine(*pair(9))
    torch.testing.assert_close(mises_fisher(s, s, 0.2).mean(), tensor(1.0, dtype=s.dtype))
    torch.testing.assert_close(cosine(tensor([[3.0, 4.0]]), tensor([[2.0, 0.0]])), tensor([0.6]))


def test_the_variation_by_hand():
    assert variation(tensor([1.0, 3.0])).item() == pytest.approx(0.5)
    assert variation(torch.zeros(3)).item() == 0


def in_the_open(z1, z2, temperature, tau_plus, beta):
    """The debiased estimator as the papers write it, with exponentials."""
    z = F.normalize(torch.cat([z1, z2]), dim=1)
    n = len(z1)
    scores = (z @ z.T / temperature).exp()
    positive = scores.diagonal(n).repeat(2)
    keep = ~torch.eye(n, dtype=torch.bool).repeat(2, 2)
    negative = scores[keep].view(2 * n, -1)
    weight = negative**beta
    mean = (weight * negative).mean(1) / weight.mean(1)
    left = ((mean - tau_plus * positive) / (1 - tau_plus)).clamp_min(math.exp(-1 / temperature))
    return -(positive / (positive + (2 * n - 2) * left)).log().mean()


@pytest.mark.parametrize("beta", [0.0, 0.5, 2.0])
@pytest.mark.parametrize(("temperature", "tau_plus"), [(0.5, 0.0), (0.5, 0.1), (0.2, 0.3)])
def test_logarithms_change_nothing_about_the_estimator(temperature, tau_plus, beta):
    z = [x.requires_grad_() for x in nearing()]
    options = {"temperature": temperature, "tau_plus": tau_plus, "beta": beta}
    loss, plain = debiased_nce(*sides(*z), **options), in_the_open(*z, **options)
    torch.testing.assert_close(loss, plain, rtol=1e-12, atol=0)
    for ours, theirs in zip(
        torch.autograd.grad(loss, z), torch.autograd.grad(plain, z), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-14)


def test_somewhere_the_floor_held():
    """Else the test above says nothing of it."""
    z = F.normalize(torch.cat(nearing()), dim=1)
    scores = (z @ z.T / 0.2).exp()
    left = (scores.sum(1) - scores.diagonal() - scores.diagonal(6).repeat(2)) / 10
    held = left - 0.3 * scores.diagonal(6).repeat(2) < 0.7 * math.exp(-5)
    assert 0 < held.sum() < 12


def test_what_they_reduce_to():
    z = pair()
    for temperature in (0.1, 1.0):
        expected = nt_xent(*z, temperature)
        both = sides(*z)
        torch.testing.assert_close(hard_nce(*both, temperature=temperature), expected)
        reduced = debiased_nce(*both, temperature=temperature, tau_plus=0.0)
        torch.testing.assert_close(reduced, expected)
        q = coupling(*both, temperature=temperature)
        assert ((q > 0) & (q < 1)).all()


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_the_gradient_of_infonce_is_q_times_the_decoupled_one(temperature):
    """With respect to an anchor, the others held."""
    anchors, positives, candidates, own, owners = sides(*pair(6, 5))
    where = torch.arange(12)
    a = anchors.clone().requires_grad_()
    facts = (a, positives, candidates, own, owners)
    nce = info_nce(a, candidates, where.roll(6), temperature=temperature, exclude=where)
    (coupled,) = torch.autograd.grad(nce, a)
    (free,) = torch.autograd.grad(decoupled_nce(*facts, temperature=temperature), a)
    q = coupling(*facts, temperature=temperature)
    assert q.std() > 0.05
    torch.testing.assert_close(coupled, q[:, None] * free, rtol=1e-9, atol=1e-14)


def cosines(z1, z2):
    """s⁺ and the negatives' s of each anchor of both views."""
    z = F.normalize(torch.cat([z1, z2]), dim=1)
    s, n = z @ z.T, len(z1)
    keep = ~torch.eye(n, dtype=torch.bool).repeat(2, 2)
    return s.diagonal(n).repeat(2), s[keep].view(2 * n, -1)


def contrasts(z, temperature):
    """The contrastive loss by either of the functions that have it."""
    return [hard_nce(*sides(*z), temperature=temperature), nt_xent(*z, temperature)]


def test_cold_the_contrastive_loss_sees_the_nearest_negative_alone():
    z = pair(6)
    positive, negative = cosines(*z)
    expected = (negative.amax(1) - positive).clamp_min(0).mean()
    assert expected > 0.1
    for loss in contrasts(z, 1e-4):
        torch.testing.assert_close(1e-4 * loss, expected, rtol=1e-3, atol=0)


def test_hot_the_contrastive_loss_is_the_simple_one():
    z = [x.requires_grad_() for x in pair(6)]
    tau, n = 1e3, 11  # candidates of an anchor: its positive and ten negatives
    positive, negative = cosines(*z)
    each = -(n - 1) * positive / (n * tau) + negative.sum(1) / (n * tau)
    for loss in contrasts(z, tau):
        # The rest is of the order of 1/τ².
        torch.testing.assert_close(loss, math.log(n) + each.mean(), rtol=0, atol=1e-6)
        hot = torch.autograd.grad(tau * n / (n - 1) * loss, z)
        simple = torch.autograd.grad(simple_contrast(*sides(*z)), z)
        for theirs, ours in zip(hot, simple, strict=True):
            torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-3)
            assert ours.abs().max() > 0.01


@pytest.mark.parametrize("share", [0.01, 0.3, 0.35])
def test_only_the_nearest_negatives_count(share):
    z = pair(6)
    positive, negative = cosines(*z)
    near = negative.sort(1, descending=True).values[:, : math.ceil(share * 10)]
    expected = -positive.mean() + near.mean()
    torch.testing.assert_close(simple_contrast(*sides(*z), hardest=share), expected)
    logits = torch.cat([positive[:, None], near], 1) / 0.2
    expected = F.cross_entropy(logits, torch.zeros(12, dtype=torch.long))
    torch.testing.assert_close(hard_nce(*sides(*z), temperature=0.2, hardest=share), expected)


def weighted(*both):
    s = cosine(*both[:2])
    return decoupled_nce(*both, temperature=0.3, weight=mises_fisher(s, s, 0.5))


def by_class(anchors, positives, candidates, own, owners):
    return debiased_nce(anchors, positives, candidates, own % 2, owners % 2, tau_plus=0.0)


def of_more_views(*both):
    known = torch.stack([both[1], both[0].roll(1, 1)], 1)
    return debiased_nce(*both, temperature=0.4, known=known)


LOSSES = [
    lambda *both: decoupled_nce(*both, temperature=0.2),
    weighted,
    lambda *both: debiased_nce(*both, temperature=0.5),
    lambda *both: debiased_nce(*both, temperature=0.5, beta=1.5),
    by_class,
    of_more_views,
    lambda *both: hard_nce(*both, temperature=0.2),
    lambda *both: hard_nce(*both, temperature=0.2, hardest=0.4),
    lambda *both: simple_contrast(*both),
    lambda *both: simple_contrast(*both, hardest=0.4),
]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("held", [PLAIN, CHUNKED])
def test_gradients_by_finite_differences(hold, loss, held):
    hold(held)
    z = [x.requires_grad_() for x in pair()]
    assert torch.autograd.gradcheck(lambda a, b: loss(*sides(a, b)), z)


@pytest.mark.parametrize("loss", LOSSES)
def test_chunks_change_nothing(hold, loss):
    found = []
    for held in (PLAIN, CHUNKED):
        hold(held)
        z = [x.requires_grad_() for x in pair(7)]
        value = loss(*sides(*z))
        found.append([value, *torch.autograd.grad(value, z)])
    for plain, chunked in zip(*found, strict=True):
        torch.testing.assert_close(chunked, plain, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("loss", LOSSES)
def test_no_tensor_is_as_large_as_all_logits(hold, largest_tensor, loss):
    n, held = 128, 2048
    z = [x.requires_grad_() for x in pair(n, 6)]
    largest = largest_tensor(lambda: loss(*sides(*z)).backward())
    assert largest >= (2 * n) ** 2
    hold(held)
    assert largest_tensor(lambda: loss(*sides(*z)).backward()) <= 2 * held


def test_collapsed():
    z = torch.ones(4, 3, dtype=torch.float64), torch.ones(4, 3, dtype=torch.float64)
    for loss, expected in [
        (decoupled_nce, math.log(6)),
        (debiased_nce, math.log(7)),
        (hard_nce, math.log(7)),
        (simple_contrast, 0.0),
    ]:
        assert loss(*sides(*z)).item() == pytest.approx(expected, abs=1e-12)


def test_unequal_numbers_of_negatives_are_counted():
    """Without weights the mean is over each anchor's own number of negatives."""
    anchors, positives, candidates, own, owners = sides(*pair(6))
    classes = tensor([0, 7, 0, 3, 0, 7])
    own, owners = classes[own], classes[owners]
    options = {"temperature": 0.5, "tau_plus": 0.0}
    loss = debiased_nce(anchors, positives, candidates, own, owners, **options)
    a, c = F.normalize(anchors, dim=1), F.normalize(candidates, dim=1)
    expected = []
    for x, positive, mine in zip(a, positives, own, strict=True):
        s = (c[owners != mine] @ x / 0.5).exp()
        assert len(s) == {0: 6, 7: 8, 3: 10}[int(mine)]
        pull = (F.normalize(positive, dim=0) @ x / 0.5).exp()
        expected.append((1 + 10 * s.mean() / pull).log())
    torch.testing.assert_close(loss, torch.stack(expected).mean())


def test_a_batch_of_one_class_has_the_floor_and_no_pull_but_of_the_positive():
    z = [x.requires_grad_() for x in pair(3)]
    anchors, positives, candidates, own, owners = sides(*z)
    loss = debiased_nce(anchors, positives, candidates, 0 * own + 2, 0 * owners + 2, tau_plus=0.0)
    expected = (1 + 4 * (-2 - 2 * cosine(*z)).exp()).log().mean()
    torch.testing.assert_close(loss, expected)
    for ours, alone in zip(
        torch.autograd.grad(loss, z), torch.autograd.grad(expected, z), strict=True
    ):
        torch.testing.assert_close(ours, alone)


@pytest.mark.parametrize("loss", [decoupled_nce, debiased_nce, hard_nce, simple_contrast])
def test_one_image_alone_is_refused(loss):
    with pytest.raises(ConfigError, match="no negatives"):
        loss(*sides(*pair(1)))


@pytest.mark.parametrize("loss", LOSSES)
def test_half_precision_is_lifted(loss):
    z = [x.bfloat16() for x in pair()]
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(*sides(*z))
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(*sides(*(x.float() for x in z))))


def dclw(z1, z2, temperature):
    both = sides(z1, z2)
    s = cosine(*both[:2])
    return decoupled_nce(*both, temperature=temperature, weight=mises_fisher(s, s))


def mixed(z1, z2, temperature):
    draws = torch.rand(len(z1), 3 * 4 + 2 * 2, generator=torch.Generator().manual_seed(3))
    queue = torch.cat([z2.flip(1), z1.flip(0)])
    return mixed_nce(z1, z2, queue, draws.to(z1), temperature, hardest=5, pairs=4, queries=2)


EVERY = {
    "dcl": lambda a, b, t: decoupled_nce(*sides(a, b), temperature=t),
    "dclw": dclw,
    "debiased": lambda a, b, t: debiased_nce(*sides(a, b), temperature=t),
    "hcl": lambda a, b, t: debiased_nce(*sides(a, b), temperature=t, beta=2.0),
    "hard_nce": lambda a, b, t: hard_nce(*sides(a, b), temperature=t, hardest=0.3),
    "mixed_nce": mixed,
    "nt_xent": nt_xent,
    "queue_nce": lambda a, b, t: queue_nce(a, b, torch.cat([b.flip(1), a.flip(0)]), t),
    "ring_nce": lambda a, b, t: ring_nce(a, b, torch.cat([b.flip(1), a.flip(0)]), t, 0.2, 0.8),
    "simple_contrast": lambda a, b, t: simple_contrast(*sides(a, b)),
    "supcon": lambda a, b, t: supcon(
        torch.cat([a, b]), torch.arange(len(a)).repeat(2) % 3, temperature=t
    ),
}
PLACES = {
    "collapsed": (torch.ones(8, 6), torch.ones(8, 6)),
    "random": pair(8, 6, torch.float32),
    "large": tuple(1e4 * z for z in pair(8, 6, torch.float32)),
}


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("temperature", [0.004, 0.012, 0.05])
def test_low_temperatures_stay_finite_and_right_in_float32(name, place, temperature):
    z = [x.clone().requires_grad_() for x in PLACES[place]]
    value = EVERY[name](*z, temperature)
    exact = EVERY[name](*(x.detach().double() for x in z), temperature)
    # A logit is as large as 1/τ, and is rounded by as much.
    bound = 1e-6 * (1 + 1 / temperature)
    torch.testing.assert_close(value.double(), exact, rtol=1e-5, atol=bound)
    assert all(g.isfinite().all() for g in torch.autograd.grad(value, z))
