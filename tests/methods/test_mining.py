"""Methods that choose, move, mix or learn MoCo's negatives."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import BATCH, batch, clock, make, train
from torch import tensor

from selfsight import philox
from selfsight.errors import ConfigError
from selfsight.losses import (
    extrapolated,
    info_nce,
    interpolated,
    mixed_nce,
    queue_nce,
    ring_nce,
    score_moments,
    score_nce,
)
from selfsight.philox import Purpose

METHODS = ["adco", "feature_transformation", "mochi", "ring"]


def normal(*shape, seed=0, dtype=torch.float64):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=draw, dtype=torch.float64).to(dtype)


def circle(*degrees):
    angle = torch.deg2rad(tensor(degrees, dtype=torch.float64))
    return torch.stack([angle.cos(), angle.sin()], 1)


@pytest.mark.parametrize("alpha", [0.75, 1.6, 2.0, 5.0])
def test_beta_draws_follow_their_law(alpha):
    n = 20_000
    x = np.sort(philox.beta(0, np.arange(n), Purpose.MIX, 1, alpha)[:, 0].astype(np.float64))
    fine = np.linspace(0, 1, 200_001)
    middle = (fine[1:] + fine[:-1]) / 2
    law = np.cumsum((middle * (1 - middle)) ** (alpha - 1))
    law = np.interp(x, fine[1:], law / law[-1])
    assert np.abs(law - (np.arange(n) + 0.5) / n).max() < 1.63 / math.sqrt(n)  # 99%
    assert x.mean() == pytest.approx(0.5, abs=0.01)
    assert x.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.03)


def test_beta_draws_are_those_of_numpy_and_torch():
    ours = philox.beta(5, torch.arange(6), Purpose.MIX, 3, 1.6)
    theirs = philox.beta(5, np.arange(6), Purpose.MIX, 3, 1.6)
    assert ours.dtype == torch.float32
    assert theirs.dtype == np.float32
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=0, atol=1e-6)


OFF = {
    "ring": {"anneal": "none", "outer": 1.0, "inner": 0.0},
    "mochi": {"mixed_pairs": 0, "mixed_queries": 0},
    "feature_transformation": {"extrapolate": None, "interpolate": None},
}


@pytest.mark.parametrize("name", OFF)
@pytest.mark.parametrize("symmetric", [False, True])
def test_without_their_own_part_they_are_moco(name, symmetric):
    same = {"temperature": 0.2, "symmetric": symmetric}
    method = make(name, "test_resnet", **same, **OFF[name])
    moco = make("moco_v2", "test_resnet", **same)
    ours, theirs = train(method, 3)[1], train(moco, 3)[1]
    assert [step.loss for step in ours] == pytest.approx([step.loss for step in theirs], rel=1e-5)
    whole = train(make(name, "test_resnet", **same), 1)[1]
    assert whole[0].loss != pytest.approx(ours[0].loss, rel=1e-5)


def test_mochi_mixes_after_the_warm_up():
    method = make("mochi", "test_resnet", warmup_share=0.5)
    data = batch(method)
    out = method(data, clock(2))
    q, k = out.projections
    plain = queue_nce(q, k, method.queue.rows, 0.2)
    torch.testing.assert_close(out.loss, plain)
    out = method(data, clock(3))
    draws = data.key.per_sample(Purpose.MIX, 3 * 6 + 2 * 4)
    whole = mixed_nce(q, k, method.queue.rows, draws, 0.2, hardest=8, pairs=6, queries=4)
    torch.testing.assert_close(out.loss, whole)
    assert whole > plain + 0.1


def test_mochi_needs_as_many_keys_as_it_mixes():
    with pytest.raises(ConfigError, match=r"queue of 24; lower --method\.hardest"):
        make("mochi", "test_resnet", hardest=25)


@pytest.mark.parametrize(
    ("anneal", "fractions"),
    [
        ("linear", [1.0, 0.955, 0.55, 0.1, 0.1]),
        ("steps", [1.0, 1.0, 0.5, 0.1, 0.1]),
        ("exponential", [1.0, 0.1**0.05, 0.1**0.5, 0.1, 0.1]),
        ("none", [0.1] * 5),
    ],
)
def test_the_ring_closes(anneal, fractions):
    method = make("ring", "test_resnet", anneal=anneal, until=0.4)
    at = (0.0, 0.02, 0.2, 0.4, 0.9)
    assert [method.fraction(progress) for progress in at] == pytest.approx(fractions)


def test_the_ring_is_as_wide_as_the_clock_says():
    method = make("ring", "test_resnet", until=1.0)
    data = batch(method)
    for step, outer in ((0, 1.0), (3, 0.55)):
        out = method(data, clock(step))
        expected = ring_nce(*out.projections, method.queue.rows, 0.07, 0.1, outer)
        torch.testing.assert_close(out.loss, expected)


def test_feature_transformation_remembers_the_keys_as_they_were_and_shows_its_scores():
    method = make("feature_transformation", "test_resnet")
    data = batch(method)
    out = method(data, clock(0))
    q, k = out.projections
    torch.testing.assert_close(out.carry["k"], F.normalize(k, dim=1)[:, None])
    lam, mu, partners = method.transformation(data.key)
    moved = *extrapolated(q, k, lam), interpolated(method.queue.rows, mu, partners)
    torch.testing.assert_close(out.loss, score_nce(*moved, 0.2))
    assert out.metrics == score_moments(*moved)


def test_feature_transformation_draws_once_for_a_step():
    method = make("feature_transformation", "test_resnet")
    laws = [method.transformation(batch(method, step=step).key) for step in (0, 1)]
    for lam, mu, partners in laws:
        assert lam.numel() == mu.numel() == 1
        assert 1 <= lam <= 2
        assert 0 <= mu <= 1
        assert lam - 1 != mu
        assert sorted(partners.tolist()) == list(range(24))
    assert not any(torch.equal(first, second) for first, second in zip(*laws, strict=True))


def test_feature_transformation_draws_for_each_dimension():
    method = make("feature_transformation", "test_resnet", draw="dimension")
    lam, mu, partners = method.transformation(batch(method).key)
    assert lam.shape == (BATCH, 8)
    assert mu.shape == (24, 8)
    assert mu.unique().numel() == 24 * 8
    # The positives' draws belong to the samples, whoever holds them.
    second = method.transformation(batch(method, rank=1, world=2).key)
    for theirs, ours in zip(second, (lam[8:], mu, partners), strict=True):
        assert torch.equal(theirs, ours)


@pytest.mark.parametrize("off", ["extrapolate", "interpolate"])
def test_feature_transformation_has_two_parts(off):
    method = make("feature_transformation", "test_resnet", **{off: None})
    lam, mu, _ = method.transformation(batch(method).key)
    assert (lam == 1) == (off == "extrapolate")
    assert (mu == 1) == (off == "interpolate")


def test_adco_contrasts_with_the_batch_and_the_bank():
    method = make("adco", "test_resnet")
    out = method(batch(method), clock(0))
    q, k = (F.normalize(x, dim=1) for x in out.projections)
    assert not k.requires_grad
    logits = torch.cat([q @ k.T, q @ method.bank.rows.T], 1) / 0.12
    torch.testing.assert_close(out.loss, F.cross_entropy(logits, torch.arange(BATCH)))


def same(method):
    query = torch.nn.Sequential(method.encoder, method.projector).parameters()
    keys = method.teacher.parameters()
    return all(torch.equal(ours, theirs) for ours, theirs in zip(keys, query, strict=True))


def test_adcos_bank_starts_as_the_first_keys():
    method = make("adco", "test_resnet")
    running, (first,) = train(method, 1)
    k = F.normalize(first.output.projections[1], dim=1)
    torch.testing.assert_close(method.bank.rows[:16], k)
    assert not same(method)
    torch.testing.assert_close(method.bank.rows.norm(dim=1), torch.ones(24))
    train(method, 2, first=1, running=running)
    torch.testing.assert_close(method.bank.rows[16:], k[:8])
    assert not method.velocity.any()
    filled = method.bank.rows.clone()
    # The key encoder starts anew from the query encoder, once.
    assert same(method)
    train(method, 3, first=2, running=running)
    assert not same(method)
    assert not torch.equal(method.bank.rows, filled)


def climbing(**options):
    """AdCo with a bank of keys that have gone astray, and what a step puts out."""
    method = make("adco", "test_resnet", torch.float64, **options)
    out = method(batch(method, dtype=torch.float64), clock(0))
    k = F.normalize(out.carry["k"][:, 0], dim=1)
    method.bank.push(torch.cat([k, k[:8]]) + 0.3 * normal(24, 8))
    return method, out


def height(method, carry):
    q, k = carry["q"].movedim(0, 2), carry["k"].movedim(0, 1)
    return method.contrast(q, k, method.bank.rows, method.bank_temperature).item()


@pytest.mark.parametrize("symmetric", [False, True])
def test_adcos_bank_climbs_its_own_loss(symmetric):
    options = {"bank_lr": 1e-4, "bank_decay": 0.0, "bank_temperature": 0.5}
    method, out = climbing(symmetric=symmetric, **options)
    before = height(method, out.carry)
    method.after_step(out.carry, clock(0))
    gained = height(method, out.carry) - before
    # To first order, the rate times the squared length of the gradient.
    assert gained == pytest.approx(1e-4 * method.velocity.square().sum().item(), rel=0.01)
    assert gained > 0


def test_adcos_steps_are_the_official_ones():
    """Momentum and decay on a gradient that was derived by hand (equation 7)."""
    method, out = climbing(bank_lr=0.5, bank_decay=0.01)
    q, k = (F.normalize(x.detach(), dim=1) for x in out.projections)
    w, v = method.bank.rows.clone(), 0
    for _ in range(2):
        n = F.normalize(w, dim=1)
        s = q @ n.T
        p = torch.softmax(torch.cat([q @ k.T, s], 1) / 0.02, 1)[:, BATCH:]
        g = (p.T @ q - (p * s).sum(0)[:, None] * n) / BATCH
        v = 0.9 * v - g / w.norm(dim=1, keepdim=True) / 0.02 + 0.01 * w
        w = w - 0.5 * v
        method.after_step(out.carry, clock(0))
    torch.testing.assert_close(method.bank.rows, w)


def test_adco_symmetric_is_the_mean_of_both_directions():
    one, both = (make("adco", "test_vit", symmetric=symmetric) for symmetric in (False, True))
    data = batch(one)
    forth = one(data, clock(0)).loss
    data.views.reverse()
    back = one(data, clock(0)).loss
    data.views.reverse()
    torch.testing.assert_close(both(data, clock(0)).loss, (forth + back) / 2)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("symmetric", [False, True])
def test_small_crops_are_queries(name, symmetric, monkeypatch):
    function = {"adco": "info_nce", "feature_transformation": "extrapolated",
                "mochi": "mixed_nce", "ring": "ring_nce"}[name]  # fmt: skip
    method = make(name, "test_resnet", multi_crop=2, symmetric=symmetric)
    original, seen = globals()[function], []

    def counted(q, k, *rest, **options):
        seen.append((q, k))
        return original(q, k, *rest, **options)

    monkeypatch.setattr(f"selfsight.methods.{name}.{function}", counted)
    method(batch(method), clock(0))
    keys = 2 if symmetric else 1
    assert sum(len(q) for q, _ in seen) == keys * 3 * BATCH
    own = [k[:BATCH] for _, k in seen]
    assert len({tuple(k.flatten().tolist()) for k in own}) == keys


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("head", ["none", "linear"])
def test_heads(name, head):
    method = make(name, "test_resnet", head=head)
    width = method.encoder.dim if head == "none" else 8
    train(method, 3)
    remembered = method.bank if name == "adco" else method.queue
    assert remembered.rows.shape == (24, width)


def test_info_nce_is_what_adcos_bank_climbs():
    """One query, one key, one negative on a circle: the negative turns to the query."""
    q, k = circle(0), circle(20)
    n = circle(50).requires_grad_()
    loss = info_nce(q, torch.cat([k, n]), tensor([0]), temperature=0.5)
    (g,) = torch.autograd.grad(loss, n)
    turned = F.normalize(n.detach() + g, dim=1)
    assert (turned @ q.T).item() > (n @ q.T).item()
