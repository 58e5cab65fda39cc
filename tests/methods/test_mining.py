"""Methods that choose, move, mix or learn MoCo's negatives, and their losses."""

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
    hard_mixes,
    info_nce,
    mixed_nce,
    queue_nce,
    ring_nce,
    score_nce,
    transformed_scores,
)
from selfsight.philox import Purpose

MIXES = {"hardest": 3, "pairs": 4, "queries": 2}
METHODS = ["adco", "feature_transformation", "mochi", "ring"]


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


def transformed(q, k, queue, temperature=0.2):
    partners = torch.arange(len(queue)).flip(0)
    scores = transformed_scores(
        q, k, queue, extrapolation=tensor([1.4]), interpolation=tensor([0.3]), partners=partners
    )
    return score_nce(*scores, temperature)


LOSSES = [ring, mixed, transformed]


def circle(*degrees):
    angle = torch.deg2rad(tensor(degrees, dtype=torch.float64))
    return torch.stack([angle.cos(), angle.sin()], 1)


def value_and_gradient(loss, q):
    q = q.clone().requires_grad_()
    value = loss(q)
    return value.detach(), torch.autograd.grad(value, q)[0]


def test_scores_by_hand():
    loss = score_nce(tensor([[0.5]]), tensor([[0.1, -0.3]]), 0.5)
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
        lambda q, k, queue, t: score_nce(*transformed_scores(q, k, queue), t),
        lambda q, k, queue, t: score_nce(
            *transformed_scores(q, k, queue, extrapolation=tensor(1.0),
                                interpolation=tensor(1.0), partners=torch.arange(6, -1, -1)), t),
    ],
    ids=["ring", "mochi", "untransformed", "unmoved"],
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


@pytest.mark.parametrize("loss", [ring, transformed])
def test_gradients_by_finite_differences(loss):
    _, k, queue = rows()
    assert torch.autograd.gradcheck(lambda q: loss(q, k, queue), normal(4, 5).requires_grad_())


def test_half_precision_is_lifted():
    q, k, queue = (x.bfloat16() for x in rows())
    for loss in LOSSES:
        assert loss(q, k, queue).dtype == torch.float32


@pytest.mark.parametrize("extrapolation", [1.0, 1.3, 2.0])
def test_extrapolated_scores_fall_as_the_paper_says(extrapolation):
    q, k, queue = rows()
    s, n = transformed_scores(q, k, queue)
    far, moved = transformed_scores(q, k, queue, extrapolation=extrapolation)
    lost = 2 * extrapolation * (1 - extrapolation) * (1 - s)
    torch.testing.assert_close(far, s + lost)
    assert (lost <= 0).all()
    # The negatives meet the query that has moved, as in the official code.
    m = F.normalize(k, dim=1) @ F.normalize(queue, dim=1).T
    torch.testing.assert_close(moved, extrapolation * n + (1 - extrapolation) * m)


def test_interpolated_negatives_lie_between_two_of_the_queue():
    q, k, queue = rows()
    partners = torch.arange(7).roll(2)
    _, n = transformed_scores(q, k, queue)
    s, between = transformed_scores(q, k, queue, interpolation=0.3, partners=partners)
    torch.testing.assert_close(between, 0.3 * n + 0.7 * n[:, partners])
    torch.testing.assert_close(s, F.cosine_similarity(q, k)[:, None])


def test_each_dimension_may_have_its_own_transformation():
    q, k, queue = circle(0), circle(90), circle(0, 90)
    s, n = transformed_scores(
        q, k, queue, extrapolation=tensor([[1.5, 2.0]]),
        interpolation=tensor([[0.25, 1.0], [0.5, 0.0]]), partners=tensor([1, 0]),
    )  # fmt: skip
    # q′ = (1.5, −1), k′ = (−0.5, 2); n′ = (0.25, 0) and (0.5, 0)
    torch.testing.assert_close(s, tensor([[-2.75]], dtype=torch.float64))
    torch.testing.assert_close(n, tensor([[0.375, 0.75]], dtype=torch.float64))


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


def test_a_pick_rounded_up_stays_inside():
    largest = tensor([[0.5, 0.5, *[1 - 2.0**-24] * 3]])
    q, _, queue = (F.normalize(x, dim=1) for x in rows(torch.float32))
    assert hard_mixes(q[:1], queue, largest, hardest=7, pairs=1, queries=1).isfinite().all()


def test_mixes_count_as_further_rows_of_the_queue():
    """Their gradient, too, is that of rows which are given."""
    q, k, queue = (x[:1] if len(x) == 4 else x for x in rows())
    unit = F.normalize(q, dim=1), F.normalize(queue, dim=1)
    more = torch.cat([queue, hard_mixes(*unit, uniforms(1), **MIXES)[0]])
    value, gradient = value_and_gradient(lambda q: mixed(q, k, queue), q)
    expected, slope = value_and_gradient(lambda q: queue_nce(q, k, more, 0.2), q)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient, slope)


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
    method = make("mochi", "test_resnet", warmup_epochs=1)
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
    law = method.transformation(data.key)
    s, n = transformed_scores(q, k, method.queue.rows, **law)
    torch.testing.assert_close(out.loss, score_nce(s, n, 0.2))
    torch.testing.assert_close(out.metrics["positive_mean"], s.mean())
    torch.testing.assert_close(out.metrics["positive_variance"], s.var(correction=0))
    torch.testing.assert_close(out.metrics["negative_mean"], n.mean())
    expected = (n - n.mean(1, keepdim=True)).square().mean()
    torch.testing.assert_close(out.metrics["negative_variance"], expected)


def test_feature_transformation_draws_once_for_a_step():
    method = make("feature_transformation", "test_resnet")
    laws = [method.transformation(batch(method, step=step).key) for step in (0, 1)]
    for law in laws:
        assert law["extrapolation"].numel() == law["interpolation"].numel() == 1
        assert 1 <= law["extrapolation"] <= 2
        assert 0 <= law["interpolation"] <= 1
        assert sorted(law["partners"].tolist()) == list(range(24))
    assert all(not torch.equal(laws[0][name], laws[1][name]) for name in laws[0])
    assert laws[0]["extrapolation"] - 1 != laws[0]["interpolation"]


def test_feature_transformation_draws_for_each_dimension():
    method = make("feature_transformation", "test_resnet", draw="dimension")
    law = method.transformation(batch(method).key)
    assert law["extrapolation"].shape == (BATCH, 8)
    assert law["interpolation"].shape == (24, 8)
    assert law["interpolation"].unique().numel() == 24 * 8
    # The positives' draws belong to the samples, whoever holds them.
    second = method.transformation(batch(method, rank=1, world=2).key)
    assert torch.equal(second["extrapolation"], law["extrapolation"][8:])
    assert torch.equal(second["interpolation"], law["interpolation"])


@pytest.mark.parametrize("on", ["extrapolation", "interpolation"])
def test_feature_transformation_has_two_parts(on):
    off = {"extrapolate", "interpolate"} - {on.replace("ion", "e")}
    method = make("feature_transformation", "test_resnet", **dict.fromkeys(off))
    found = set(method.transformation(batch(method).key))
    assert found == ({on} if on == "extrapolation" else {on, "partners"})


def test_adco_contrasts_with_the_batch_and_the_bank():
    method = make("adco", "test_resnet")
    out = method(batch(method), clock(0))
    q, k = (F.normalize(x, dim=1) for x in out.projections)
    assert not k.requires_grad
    logits = torch.cat([q @ k.T, q @ method.bank.rows.T], 1) / 0.12
    torch.testing.assert_close(out.loss, F.cross_entropy(logits, torch.arange(BATCH)))


def test_adcos_bank_starts_as_the_first_keys():
    method = make("adco", "test_resnet")
    running, (first,) = train(method, 1)
    k = F.normalize(first.output.projections[1], dim=1)
    torch.testing.assert_close(method.bank.rows[:16], k)
    torch.testing.assert_close(method.bank.rows.norm(dim=1), torch.ones(24))
    train(method, 2, first=1, running=running)
    torch.testing.assert_close(method.bank.rows[16:], k[:8])
    assert not method.velocity.any()
    filled = method.bank.rows.clone()
    train(method, 3, first=2, running=running)
    assert not torch.equal(method.bank.rows, filled)


def climbing(**options):
    """AdCo with a bank of keys that have gone astray, and what a step puts out."""
    method = make("adco", "test_resnet", torch.float64, **options)
    out = method(batch(method, dtype=torch.float64), clock(0))
    k = F.normalize(out.carry["k"][:, 0], dim=1)
    method.bank.push(torch.cat([k, k[:8]]) + 0.3 * normal(24, 8))
    return method, out


def height(method, carry):
    q, k = (carry[name].transpose(0, 1) for name in "qk")
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
@pytest.mark.parametrize(("symmetric", "losses"), [(False, 3), (True, 6)])
def test_small_crops_are_queries(name, symmetric, losses, monkeypatch):
    function = {"adco": "info_nce", "feature_transformation": "transformed_scores",
                "mochi": "mixed_nce", "ring": "ring_nce"}[name]  # fmt: skip
    method = make(name, "test_resnet", multi_crop=2, symmetric=symmetric)
    original, seen = globals()[function], []

    def counted(q, k, *rest, **options):
        seen.append((q, k))
        return original(q, k, *rest, **options)

    monkeypatch.setattr(f"selfsight.methods.{name}.{function}", counted)
    method(batch(method), clock(0))
    assert len(seen) == losses
    keys = 2 if symmetric else 1
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
