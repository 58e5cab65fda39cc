"""What the papers and the official code say of single methods."""

import math

import pytest
import torch
import torch.nn.functional as F
from cases import SAMPLES, batch, clock, engine, make, train
from torch import nn

from selfsight import philox
from selfsight.encoders import create_encoder
from selfsight.errors import ConfigError
from selfsight.losses import (
    barlow_twins,
    covariance_penalty,
    queue_nce,
    sinkhorn,
    variance_hinge,
    vicreg,
)
from selfsight.methods.base import apart, pairs
from selfsight.optim import LARS, build, set_rates
from selfsight.philox import Purpose


def loss(method, **options):
    return method(batch(method, **options), clock(0)).loss


def gradient(method):
    """Of the loss with respect to the encoder's parameters and the first head's, in one row."""
    head = [m for name, m in method.named_children() if name in ("projector", "expander")]
    params = [p for m in (method.encoder, *head) for p in m.parameters()]
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss(method), params)])


def both(distance, p, t):
    """The mean of p¹ against t² and p² against t¹."""
    return (distance(p[0], t[1]) + distance(p[1], t[0])) / 2


def test_moco_takes_the_queue_as_it_was_before_the_batch():
    method = make("moco_v2", "test_resnet")
    before = method.queue.rows.clone()
    out = method(batch(method), clock(0))
    q, k = out.projections
    torch.testing.assert_close(out.loss, queue_nce(q, k, before, 0.2))
    method.after_step(out.carry, clock(0))
    torch.testing.assert_close(method.queue.rows[:16], F.normalize(k, dim=1))
    assert torch.equal(method.queue.rows[16:], before[:8])


def test_moco_keys_get_no_gradient():
    method = make("moco_v1", "test_resnet")
    out = method(batch(method), clock(0))
    assert out.projections[0].requires_grad
    assert not out.projections[1].requires_grad


@pytest.mark.parametrize("name", ["moco_v1", "moco_v2"])
def test_moco_keys_see_the_images_that_were_dealt_to_their_group(name):
    method = make(name, "test_resnet", norm_groups=4)
    data = batch(method)
    order = philox.permutation(data.key.seed, data.key.step, Purpose.SHUFFLE, 16).tolist()
    k = method(data, clock(0)).projections[1]
    for image in (0, 5):
        kept = data.views[1][image].clone()
        data.views[1][image] = kept.flip(0) + 1
        change = (method(data, clock(0)).projections[1] - k).abs().amax(1)
        data.views[1][image] = kept
        first = order.index(image) // 4 * 4
        group = set(order[first : first + 4])
        assert set((change > 1e-5).nonzero().flatten().tolist()) == group
        assert group != set(range(image // 4 * 4, image // 4 * 4 + 4))


@pytest.mark.parametrize(("decay", "follows"), [(0.0, True), (1.0, False)])
def test_moco_with_momentum_0_copies_the_query_encoder(decay, follows):
    method = make("moco_v1", "test_resnet", momentum=decay)
    train(method, 1)
    student, teacher = method.projector[0].weight, method.teacher.network[1][0].weight
    assert torch.equal(student, teacher) is follows


def test_moco_symmetric_is_the_sum_of_both_directions():
    one, both = make("moco_v2", "test_vit"), make("moco_v2", "test_vit", symmetric=True)
    data = batch(one)
    forth = one(data, clock(0)).loss
    data.views.reverse()
    back = one(data, clock(0)).loss
    data.views.reverse()
    out = both(data, clock(0))
    torch.testing.assert_close(out.loss, forth + back)
    assert out.carry["k"].shape == (16, 2, 8)


def test_moco_v1_drops_its_rate_twice():
    method = make("moco_v1", "test_resnet")
    running = engine(method, total=10)
    rates = []
    for at in (0, 5, 6, 7, 8, 9):
        _, (step,) = train(method, at + 1, first=at, total=10, running=running)
        rates.append(step.rate)
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


def test_simsiam_lies_between_minus_one_and_one_and_stops_gradients():
    method = make("simsiam", "test_resnet")
    assert -1 <= loss(method).item() <= 1
    open_ = make("simsiam", "test_resnet", stop_gradient=False)
    torch.testing.assert_close(loss(open_), loss(method))
    grads = []
    for m in (method, open_):
        loss(m).backward()
        grads.append(m.projector[0].weight.grad)
    assert not torch.allclose(grads[0], grads[1])


def test_simsiam_without_predictor_is_the_cosine_of_the_projections():
    out = (method := make("simsiam", "test_resnet", predictor="none"))(batch(method), clock(0))
    z1, z2 = out.projections
    torch.testing.assert_close(out.loss, -F.cosine_similarity(z1, z2).mean())


def test_simsiams_predictor_keeps_its_rate():
    for rate, kept in (("constant", True), ("cosine", False)):
        method = make("simsiam", "test_resnet", predictor_rate=rate)
        running, _ = train(method, 5)
        ids = {id(p) for p in method.predictor.parameters()}
        of_predictor = [g["lr"] for g in running.optimizer.param_groups
                        if id(g["params"][0]) in ids]  # fmt: skip
        assert all((lr == 0.1) is kept for lr in of_predictor)
        assert of_predictor


@pytest.mark.parametrize(("norm", "layers"), [("none", 0), ("hidden", 3), ("default", 4),
                                              ("all", 5)])  # fmt: skip
def test_simsiams_batchnorm_table(norm, layers):
    method = make("simsiam", "test_resnet", norm=norm)
    heads = [*method.projector, *method.predictor]
    assert sum(isinstance(layer, nn.BatchNorm1d) for layer in heads) == layers


def test_barlow_twins_has_rates_of_its_own_for_what_lars_spares():
    method = make("barlow_twins", "test_resnet")
    running = engine(method, lr=0.2)
    train(method, 1, running=running)
    rates = {g["adapt"]: g["lr"] for g in running.optimizer.param_groups}
    assert rates[True] == pytest.approx(0.2)
    assert rates[False] == pytest.approx(0.0048 / 32)


def test_barlow_twins_is_the_published_loss_and_its_branches_can_differ():
    method = make("barlow_twins", "test_resnet")
    out = method(batch(method), clock(0))
    torch.testing.assert_close(out.loss, barlow_twins(*out.projections))
    other = make("barlow_twins", "test_resnet", other="test_vit")
    out = other(batch(other), clock(0))
    out.loss.backward()
    assert all(p.grad is not None for p in other.other.parameters())
    assert other.product is other.encoder


def test_barlow_twins_trains_with_the_official_steps():
    """Whose gradient lacks a factor of 32, with a decay and a bias rate for that."""
    draw = torch.Generator().manual_seed(0)
    shapes = [(4, 3), (4,)]
    start = [torch.randn(s, generator=draw, dtype=torch.float64) for s in shapes]
    # So small that the decay counts.
    grads = [1e-5 * torch.randn(s, generator=draw, dtype=torch.float64) for s in shapes]
    ours, theirs = ([nn.Parameter(x.clone()) for x in start] for _ in range(2))
    recipe = make("barlow_twins", "test_resnet").recipe
    optimizer = build([{"params": ours}], recipe)
    set_rates(optimizer, recipe, recipe.lr, 0, 10, 0)
    official = LARS([
        {"params": theirs[:1], "lr": 0.2, "weight_decay": 1e-6},
        {"params": theirs[1:], "lr": 0.0048, "adapt": False},
    ])  # fmt: skip
    for p, q, g in zip(ours, theirs, grads, strict=True):
        p.grad, q.grad = g, g / 32
    optimizer.step()
    official.step()
    for p, q, x in zip(ours, theirs, start, strict=True):
        torch.testing.assert_close(p - x, q - x, atol=0, rtol=1e-5)


@pytest.mark.parametrize("options", [{}, {"loss": "cross_entropy"}])
def test_barlow_twins_stop_gradient_changes_the_gradient_alone(options):
    """Each direction leaves one of two equal shares."""
    plain = make("barlow_twins", "test_resnet", **options)
    stopped = make("barlow_twins", "test_resnet", stop_gradient=True, **options)
    torch.testing.assert_close(loss(stopped), loss(plain))
    torch.testing.assert_close(
        gradient(stopped), gradient(plain) / 2, atol=1e-4 * gradient(plain).abs().max(), rtol=1e-3
    )


@pytest.mark.parametrize("stop", [False, True])
def test_barlow_twins_predictor_stands_on_one_side_in_turn(stop):
    method = make("barlow_twins", "test_resnet", predictor=True, stop_gradient=stop)
    out = method(batch(method), clock(0))
    z = out.projections
    p = [method.predictor(z_i) for z_i in z]
    torch.testing.assert_close(out.loss, both(barlow_twins, p, z))
    assert not torch.allclose(out.loss, barlow_twins(*z))
    out.loss.backward()
    assert all(p.grad.norm() > 0 for p in method.predictor.parameters())


def test_vicreg_is_the_published_loss():
    method = make("vicreg", "test_resnet")
    out = method(batch(method), clock(0))
    torch.testing.assert_close(out.loss, vicreg(*out.projections))


def vicreg_by_hand(p, t, z):
    """p is compared with t; z is regularised."""
    hinge = (variance_hinge(z[0]) + variance_hinge(z[1])) / 2
    penalty = covariance_penalty(z[0]) + covariance_penalty(z[1])
    return 25 * both(F.mse_loss, p, t) + 25 * hinge + penalty


def test_vicregs_stop_gradient_changes_the_gradient_alone():
    torch.testing.assert_close(
        loss(make("vicreg", "test_resnet", stop_gradient=True)), loss(make("vicreg", "test_resnet"))
    )
    alone = {"variance": 0.0, "covariance": 0.0}
    plain = gradient(make("vicreg", "test_resnet", **alone))
    stopped = gradient(make("vicreg", "test_resnet", stop_gradient=True, **alone))
    torch.testing.assert_close(stopped, plain / 2, atol=1e-4 * plain.abs().max(), rtol=1e-3)


def test_vicregs_slow_copy_is_the_target_and_follows():
    method = make("vicreg", "test_resnet", momentum=0.9)
    torch.testing.assert_close(loss(method), loss(make("vicreg", "test_resnet")))
    last = method.teacher.network.get_submodule("1")[-1].weight
    last.add_(0.1 * torch.randn(last.shape, generator=torch.Generator().manual_seed(1)))
    data = batch(method)
    out = method(data, clock(0))
    z, t = out.projections, [method.teacher(x) for x in data.views]
    torch.testing.assert_close(out.loss, vicreg_by_hand(z, t, z))
    assert not torch.allclose(out.loss, loss(make("vicreg", "test_resnet")))
    out.loss.backward()
    assert all(p.grad is None for p in method.teacher.parameters())
    method.zero_grad(set_to_none=True)
    before = last.clone()
    train(method, 1)
    torch.testing.assert_close(last, 0.9 * before + 0.1 * method.expander[-1].weight)


@pytest.mark.parametrize("options", [{}, {"stop_gradient": True}, {"other": "test_vit"}])
def test_vicregs_predictor_stands_on_one_side(options):
    method = make("vicreg", "test_resnet", predictor=True, **options)
    out = method(batch(method), clock(0))
    z = out.projections
    p = [method.predictor(z_i) for z_i in z]
    torch.testing.assert_close(out.loss, vicreg_by_hand(p, z, z))
    assert not torch.allclose(out.loss, vicreg_by_hand(z, z, z))
    out.loss.backward()
    assert all(p.grad is not None for p in method.parameters())
    assert all(p.grad.norm() > 0 for p in method.predictor.parameters())


def test_vicreg_follows_one_encoder():
    with pytest.raises(ConfigError, match="momentum"):
        make("vicreg", "test_resnet", momentum=0.9, other="test_vit")


def test_dinos_centre_after_one_step_is_a_tenth_of_the_mean():
    method = make("dino", "test_resnet")
    out = method(batch(method), clock(0))
    assert torch.equal(method.center.mean, torch.zeros(1, 12))
    method.after_step(out.carry, clock(0))
    torch.testing.assert_close(method.center.mean, 0.1 * out.carry["t"])


def test_dino_compares_18_pairs_of_10_crops():
    assert len(list(pairs(10))) == 18
    method = make("dino", "test_vit", multi_crop=8)
    views = [view for view in method.views for _ in range(view.count)]
    assert [view.size < 64 for view in views] == [False, False] + [True] * 8


def test_dinos_teacher_starts_as_the_student_and_is_the_product():
    method = make("dino", "test_resnet")
    assert torch.equal(method.last.weight, method.teacher.network.get_submodule("2").weight)
    assert method.product is not method.encoder
    copies = make("dino", "test_resnet", momentum=0.0, ramp=False)
    train(copies, 1)
    student, teacher = copies.encoder.state_dict(), copies.product.state_dict()
    assert all(torch.equal(student[name], teacher[name])
               for name, _ in copies.encoder.named_parameters())  # fmt: skip


def test_dinos_teacher_is_uniform_or_certain_by_its_temperature():
    entropies = [
        (m := make("dino", "test_resnet", teacher_temperature=t))(batch(m), clock(0))
        .metrics["teacher_entropy"].item()
        for t in (1e-4, 1e4)
    ]  # fmt: skip
    assert entropies[0] < 0.1
    assert entropies[1] == pytest.approx(math.log(12), rel=1e-3)


def test_dinos_teacher_warms_up_by_the_epoch():
    method = make(
        "dino", "test_resnet", warmup_temperature=0.02, teacher_temperature=0.06, warmup_epochs=3
    )
    t = F.normalize(torch.randn(4, 12), dim=1)
    for epoch, temperature in enumerate((0.02, 0.04, 0.06, 0.06)):
        expected = torch.softmax(t / temperature, 1)
        torch.testing.assert_close(method.target(t, epoch), expected)


def test_dinos_head_starts_as_a_transformers_layers():
    method = make("dino", "test_resnet", hidden=256, bottleneck=64, prototypes=256)
    layers = [layer for layer in method.projector if isinstance(layer, nn.Linear)]
    assert len(layers) == 3
    for layer in layers:
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.1)
        assert not layer.bias.any()
    weight = method.last.weight  # as any linear layer's
    assert weight.std().item() == pytest.approx(1 / math.sqrt(3 * 64), rel=0.1)
    assert weight.abs().max() <= 1 / math.sqrt(64)


def test_dinos_last_layer_rests_at_first():
    method = make("dino", "test_resnet", freeze=1.0)
    before = method.last.weight.clone()
    running, _ = train(method, SAMPLES // 16)
    assert torch.equal(before, method.last.weight)
    train(method, 4, first=3, running=running)
    assert not torch.equal(before, method.last.weight)


@pytest.mark.parametrize("centring", ["mean", "sinkhorn", "none"])
def test_dinos_target_by_its_centring(centring):
    method = make("dino", "test_resnet", centring=centring, teacher_temperature=0.07)
    t, c = F.normalize(torch.randn(16, 12), dim=1), torch.rand(1, 12)
    method.center.mean.copy_(c)
    expected = {
        "mean": torch.softmax((t - c) / 0.07, 1),
        "sinkhorn": sinkhorn(t, 0.07),
        "none": torch.softmax(t / 0.07, 1),
    }
    torch.testing.assert_close(method.target(t, 0), expected.pop(centring))
    assert not any(torch.allclose(method.target(t, 0), other) for other in expected.values())


@pytest.mark.parametrize("kind", ["cross_entropy", "mse"])
@pytest.mark.parametrize("predictor", [False, True])
def test_dinos_loss_by_hand(kind, predictor):
    method = make("dino", "test_resnet", loss=kind, predictor=predictor)
    passed = []
    method.predictor.register_forward_hook(lambda _, x, y: passed.append((x[0], y)))
    data = batch(method)
    out = method(data, clock(0))
    # The predictor, if any, is on the student alone.
    ((x, y),) = passed
    assert torch.equal(torch.cat(out.projections), y)
    assert torch.equal(x, y) is not predictor
    t = method.teacher(torch.cat(data.views[:2])).chunk(2)
    s = [method.last(z) for z in out.projections]
    losses = [
        (F.normalize(s[j], dim=1) - F.normalize(t[i], dim=1)).square().sum(1).mean()
        if kind == "mse"
        else F.cross_entropy(s[j] / 0.1, torch.softmax(t[i] / 0.04, 1))
        for i in range(2) for j in range(4) if i != j
    ]  # fmt: skip
    torch.testing.assert_close(out.loss, torch.stack(losses).mean())
    out.loss.backward()
    assert all(p.grad.norm() > 0 for p in method.predictor.parameters())


def test_groups_set_apart_keep_what_they_said():
    a, b, c = (nn.Parameter(torch.zeros(1)) for _ in range(3))
    groups = apart([{"params": [a, b], "lr_scale": 0.1}, {"params": [c]}], [b, c], lr_scale=0.5,
                   constant=True)  # fmt: skip
    assert groups == [
        {"params": [a], "lr_scale": 0.1},
        {"params": [b], "lr_scale": 0.05, "constant": True},
        {"params": [c], "lr_scale": 0.5, "constant": True},
    ]


def test_the_encoder_has_no_groups_left_for_whom_it_serves():
    """A network trained in BatchNorm groups is evaluated like any other."""
    method = make("moco_v2", "test_resnet")
    train(method, 2)
    h = method.product.eval()(torch.zeros(3, 3, 64, 64))
    plain = create_encoder("test_resnet", size=64)
    plain.load_state_dict(method.product.state_dict())
    torch.testing.assert_close(plain.eval()(torch.zeros(3, 3, 64, 64)), h)
