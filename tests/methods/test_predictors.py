"""Predictors that are set, kept symmetric or given steadier targets; BYOL, SimSiam around them."""

import math

import pytest
import torch
import torch.nn.functional as F
from cases import batch, clock, engine, make, train
from torch import nn

from selfsight.errors import ConfigError
from selfsight.predictors import (
    Correlation,
    asymmetry,
    boosted,
    commutator,
    spectral,
    symmetrise,
    weights,
)

CROPS = {"multi_crop": 2}


def loss(method):
    return method(batch(method), clock(0)).loss


def cosine(p, t):
    return F.cosine_similarity(p, t).mean()


def w_p(method):
    return weights(method.predictor)[0]


@pytest.mark.parametrize(
    ("form", "epsilon", "expected"),
    [
        ("outside", 0.1, [1.1, 0.6, 0.1, 0.1]),
        ("outside", 0.0, [1.0, 0.5, 1e-4, 1e-4]),
        ("inside", 0.21, [1.1, math.sqrt(0.46), math.sqrt(0.21), math.sqrt(0.21)]),
        ("inside", 0.0, [1.0, 0.5, 1e-2, 1e-2]),
        ("paper", 0.1, [2.4, 1.4, 0.4, 0.4]),
    ],
)
def test_eigenvalues_raised_by_hand(form, epsilon, expected):
    s = torch.tensor([4.0, 1.0, 0.0, -1e-9])
    torch.testing.assert_close(boosted(s, epsilon, form=form), torch.tensor(expected))


def test_a_cube_root_raises_more():
    torch.testing.assert_close(
        boosted(torch.tensor([8.0, 1.0]), 0.0, 1 / 3), torch.tensor([1.0, 0.5])
    )


def test_the_codes_epsilon_is_the_papers_times_the_root_of_the_largest_eigenvalue():
    s = torch.rand(6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    top = s.max()
    torch.testing.assert_close(
        boosted(s, 0.3) * top.sqrt(), boosted(s, 0.3 / float(top.sqrt()), form="paper")
    )


@pytest.mark.parametrize("form", ["outside", "inside", "paper"])
def test_a_collapsed_batch_leaves_a_finite_predictor(form):
    w = spectral(torch.zeros(3, 3), lambda s: boosted(s, 0.1, form=form))
    assert w.isfinite().all()
    torch.testing.assert_close(w, w[0, 0] * torch.eye(3))


def test_a_spectrum_by_hand():
    """[[2, 1], [1, 2]] has 3 along (1, 1) and 1 along (1, −1)."""
    f = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
    torch.testing.assert_close(spectral(f, lambda s: s), f)
    expected = torch.tensor([[5.0, 4.0], [4.0, 5.0]])
    torch.testing.assert_close(spectral(f, lambda s: s**2), expected)


def test_the_correlation_starts_with_the_first_batch_and_then_decays():
    z = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    own = [z_i.T @ z_i / 5 for z_i in z]
    f, average = Correlation(4, 0.3), Correlation(4, None)
    for z_i in z:
        f.follow(z_i)
        average.follow(z_i)
    torch.testing.assert_close(f(), 0.09 * own[0] + 0.21 * own[1] + 0.7 * own[2])
    torch.testing.assert_close(average(), sum(own) / 3)
    torch.testing.assert_close(average(centred=True), torch.cov(z.flatten(0, 1).T, correction=0))


def test_asymmetry_and_commutator_by_hand():
    turn, step = torch.tensor([[0.0, 1.0], [-1.0, 0.0]]), torch.tensor([[0.0, 1.0], [0.0, 0.0]])
    assert asymmetry(turn).item() == pytest.approx(2)
    assert asymmetry(step).item() == pytest.approx(math.sqrt(2))
    assert asymmetry(torch.eye(2)).item() == 0
    assert commutator(step, torch.diag(torch.tensor([3.0, 1.0]))).item() == pytest.approx(2)
    assert commutator(step, torch.eye(2)).item() == 0


def test_symmetrised_layers_by_hand():
    one, two = nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    w, (w0, w1) = one.weight.clone(), (layer.clone() for layer in weights(two))
    symmetrise(one)
    symmetrise(two)
    assert torch.equal(one.weight, (w + w.T) / 2)
    assert torch.equal(two[0].weight, (w0 + w1.T) / 2)
    assert torch.equal(two[2].weight, two[0].weight.T)


def test_directpred_reads_both_views_before_the_step():
    method = make("directpred", "test_resnet")
    out = method(batch(method), clock(0))
    z = torch.cat(out.projections).detach()
    train(method, 1)
    torch.testing.assert_close(method.correlation(), z.T @ z / 32)
    assert method.correlation.seen == 1


@pytest.mark.parametrize("boost", ["outside", "inside", "paper"])
@pytest.mark.parametrize("centred", [False, True])
def test_directpred_shares_its_eigenvectors_with_the_correlation(boost, centred):
    method = make("directpred", "test_resnet", torch.float64, boost=boost, centred=centred)
    train(method, 2, dtype=torch.float64)
    f, w = method.correlation(centred), w_p(method).detach()
    assert commutator(w, f) < 1e-12 * w.norm() * f.norm()
    s, u = torch.linalg.eigh(f)
    p = (u.T @ w @ u).diagonal()
    assert (p.diff() > 0).all()
    top = s[-1]
    expected = {
        "outside": (s / top).sqrt() + 0.01, "inside": (s / top + 0.01).sqrt(),
        "paper": s.sqrt() + 0.01 * top,
    }[boost]  # fmt: skip
    torch.testing.assert_close(p, expected)


def test_directcopy_is_the_correlation():
    method = make("directpred", "test_resnet", predictor="copy", epsilon=0.2)
    train(method, 2)
    torch.testing.assert_close(w_p(method).detach(), method.correlation() + 0.2 * torch.eye(8))


def test_directpred_trains_between_the_settings():
    method = make("directpred", "test_resnet", freq=2)
    running, _ = train(method, 1)
    set_at_first = w_p(method).detach().clone()
    torch.testing.assert_close(set_at_first, method.closed(method.correlation()))
    train(method, 2, first=1, running=running)
    assert not torch.equal(w_p(method), set_at_first)
    assert commutator(w_p(method).detach(), method.correlation()) > 1e-3
    train(method, 3, first=2, running=running)
    torch.testing.assert_close(w_p(method).detach(), method.closed(method.correlation()))


@pytest.mark.parametrize("options", [{}, CROPS])
def test_directpreds_loss_by_hand(options):
    method = make("directpred", "test_resnet", **options)
    data = batch(method)
    out = method(data, clock(0))
    p = [method.predictor(z) for z in out.projections]
    t = [method.teacher(x) for x in data.views[:2]]
    ways = [-4 * cosine(p[j], t[i]) for i in range(2) for j in range(len(p)) if i != j]
    torch.testing.assert_close(out.loss, torch.stack(ways).mean())
    assert out.carry["z"].shape == (16, len(p), 8)
    assert not out.carry["z"].requires_grad


def test_directpreds_target_starts_from_weights_of_its_own_and_follows():
    method = make("directpred", "test_resnet", momentum=0.9)
    online, target = method.projector[0].weight, method.teacher.network.get_submodule("1")[0].weight
    before = target.clone()
    assert not torch.allclose(online, target)
    train(method, 1)
    torch.testing.assert_close(target, 0.9 * before + 0.1 * online)
    copied = make("directpred", "test_resnet", momentum=0.0)
    train(copied, 1)
    target = copied.teacher.network.get_submodule("1")[0].weight
    assert torch.equal(copied.projector[0].weight, target)


@pytest.mark.parametrize("predictor", ["linear", "nonlinear"])
@pytest.mark.parametrize("momentum", [0.0, 0.996])
@pytest.mark.parametrize("bias", [False, True])
def test_a_trained_predictor_stays_symmetric(predictor, momentum, bias):
    options = {"predictor": predictor, "momentum": momentum, "bias": bias}
    method = make("directpred", "test_resnet", symmetric=True, **options)
    free = make("directpred", "test_resnet", **options)
    for each in (method, free):
        train(each, 2)
    first, last = (weights(method.predictor)[i] for i in (0, -1))
    assert torch.equal(first, last.T)
    assert not torch.allclose(weights(free.predictor)[0], weights(free.predictor)[-1].T)
    linear = [layer for layer in method.predictor if isinstance(layer, nn.Linear)]
    assert len(linear) == (1 if predictor == "linear" else 2)
    assert all((layer.bias is not None) is bias for layer in linear)


def test_directpred_tells_how_far_its_predictor_is_from_symmetric():
    free = make("directpred", "test_resnet", predictor="linear")
    tied = make("directpred", "test_resnet", predictor="linear", symmetric=True)
    layers = make("directpred", "test_resnet", predictor="nonlinear")
    _, steps = train(free, 2)
    metrics = steps[-1].output.metrics
    assert metrics["asymmetry"] > 0.1
    assert metrics["commutator"] > 0
    assert train(tied, 2)[1][-1].output.metrics["asymmetry"] == 0
    assert train(layers, 1)[1][-1].output.metrics == {}


def test_a_predictor_has_a_rate_and_a_decay_of_its_own():
    method = make("directpred", "test_resnet", predictor_lr=10.0, predictor_decay=0.5)
    running, _ = train(method, 1)
    own = {id(p) for p in method.predictor.parameters()}
    for group in running.optimizer.param_groups:
        of_predictor = id(group["params"][0]) in own
        assert group["lr"] == pytest.approx(1.0 if of_predictor else 0.1)
        assert group["weight_decay"] == pytest.approx(0.5 if of_predictor else 4e-4)


def test_directpred_keeps_its_rate_and_decays_every_parameter():
    method = make("directpred", "test_resnet")
    running = engine(method, total=10)
    for at in (0, 9):
        _, (step,) = train(method, at + 1, first=at, total=10, running=running)
        assert step.rate == pytest.approx(0.1)
    assert all(g["weight_decay"] == 4e-4 for g in running.optimizer.param_groups)


def test_fastsiam_with_two_views_is_simsiam():
    fast, plain = make("fastsiam", "test_resnet", views=2), make("simsiam", "test_resnet", dim=24)
    plain.load_state_dict(fast.state_dict())
    data = batch(fast)
    outs = [method(data, clock(0)) for method in (fast, plain)]
    assert torch.equal(outs[0].loss, outs[1].loss)
    grads = []
    for method, out in zip((fast, plain), outs, strict=True):
        out.loss.backward()
        grads.append(torch.cat([p.grad.flatten() for p in method.parameters()]))
    torch.testing.assert_close(*grads)


def test_fastsiams_target_is_the_mean_of_the_others():
    method = make("fastsiam", "test_resnet", views=3)
    out = method(batch(method), clock(0))
    z = out.projections
    p = [method.predictor(z_i) for z_i in z]
    t = [(z[1] + z[2]) / 2, (z[0] + z[2]) / 2, (z[0] + z[1]) / 2]
    expected = -sum(cosine(p_i, t_i) for p_i, t_i in zip(p, t, strict=True)) / 3
    torch.testing.assert_close(out.loss, expected)
    # A mean of vectors that were not normalised first.
    other = -sum(
        cosine(p[i], sum(F.normalize(z[j], dim=1) for j in range(3) if j != i)) for i in range(3)
    )
    assert not torch.allclose(out.loss, other / 3)
    target = method.target(list(z), 0)
    assert not target.requires_grad


@pytest.mark.parametrize("name", ["byol", "directpred"])
def test_a_slow_copy_sees_large_crops_alone(name):
    method = make(name, "test_resnet", **CROPS)
    seen = []
    method.teacher.register_forward_hook(lambda _, x, y: seen.append(x[0].shape[-1]))
    data = batch(method)
    method(data, clock(0))
    large = data.views[0].shape[-1]
    assert [x.shape[-1] < large for x in data.views] == [False, False, True, True]
    assert seen == [large, large]


def test_byol_with_small_crops_by_hand():
    method = make("byol", "test_resnet", **CROPS)
    data = batch(method)
    out = method(data, clock(0))
    p = [method.predictor(z) for z in out.projections]
    t = [method.teacher(x) for x in data.views[:2]]
    ways = [2 - 2 * cosine(p[j], t[i]) for i in range(2) for j in range(4) if i != j]
    # As much as the two directions of two views.
    torch.testing.assert_close(out.loss, 2 * torch.stack(ways).mean())


def test_byols_negatives_with_small_crops_are_both_targets():
    method = make("byol", "test_resnet", beta=1.0, temperature=0.5, **CROPS)
    data = batch(method)
    out = method(data, clock(0))
    p = [F.normalize(method.predictor(z), dim=1) for z in out.projections]
    t = [F.normalize(method.teacher(x), dim=1) for x in data.views[:2]]
    ways = []
    for i in range(2):
        for j in range(4):
            if i != j:
                s = p[j] @ torch.cat([t[i], t[1 - i]]).T / 0.5
                s[torch.arange(16), 16 + torch.arange(16)] = -torch.inf
                ways.append(F.cross_entropy(s, torch.arange(16)))
    torch.testing.assert_close(out.loss, 2 * torch.stack(ways).mean())


def test_simsiam_with_small_crops_by_hand():
    method = make("simsiam", "test_resnet", **CROPS)
    out = method(batch(method), clock(0))
    z = out.projections
    p = [method.predictor(z_i) for z_i in z]
    ways = [-cosine(p[j], z[i]) for i in range(2) for j in range(4) if i != j]
    torch.testing.assert_close(out.loss, torch.stack(ways).mean())


@pytest.mark.parametrize("target", ["stopped", "online"])
def test_byols_branches_can_differ(target):
    method = make("byol", "test_resnet", other="test_vit", target=target)
    data = batch(method)
    out = method(data, clock(0))
    z = [method.projector(method.encoder(data.views[0])), method.other(data.views[1])]
    p = [method.predictor(z_i) for z_i in z]
    torch.testing.assert_close(out.loss, 4 - 2 * cosine(p[0], z[1]) - 2 * cosine(p[1], z[0]))
    out.loss.backward()
    assert all(p.grad is not None for p in method.parameters())
    assert method.product is method.encoder
    assert [name for name, _ in method.named_children()].count("teacher") == 0


@pytest.mark.parametrize("options", [{}, {"target": "stopped", "head": "none"}])
def test_byol_copies_one_network(options):
    with pytest.raises(ConfigError, match="other"):
        make("byol", "test_resnet", other="test_vit", **options)


@pytest.mark.parametrize(
    ("length", "momentum", "rate", "decay"),
    [(40, 0.97, 0.45, 1e-6), (100, 0.99, 0.45, 1e-6), (300, 0.99, 0.3, 1e-6),
     (1000, 0.996, 0.2, 1.5e-6)],
)  # fmt: skip
def test_byols_published_runs(length, momentum, rate, decay):
    method = make("byol", "test_resnet", length=length)
    recipe = method.recipe
    assert (method.momentum, recipe.lr, recipe.weight_decay) == (momentum, rate, decay)
    assert recipe.epochs == length
    assert make("byol", "test_resnet", length=length, momentum=0.5).momentum == 0.5


@pytest.mark.parametrize("name", ["byol", "directpred", "fastsiam", "simsiam"])
def test_projectors_of_other_depths(name):
    for head, layers, count in (("none", 2, 0), ("linear", 2, 1), ("nonlinear", 4, 4)):
        method = make(name, "test_resnet", head=head, layers=layers)
        assert sum(isinstance(layer, nn.Linear) for layer in method.projector) == count
        out = method(batch(method), clock(0))
        assert out.loss.isfinite()
        if head == "none":
            assert torch.equal(out.projections[0], out.embedding)


def test_byols_predictor_can_be_linear():
    (layer,) = make("byol", "test_resnet", predictor_layers=1).predictor
    assert layer.weight.shape == (8, 8)
    assert layer.bias is None
