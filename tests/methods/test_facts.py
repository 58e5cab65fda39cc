"""What the papers and the official code say of single methods."""

import math

import pytest
import torch
import torch.nn.functional as F
from cases import SAMPLES, batch, clock, engine, make, train
from torch import nn

from selfsight.encoders import create_encoder
from selfsight.losses import barlow_twins, queue_nce, vicreg
from selfsight.methods.base import apart, pairs


def loss(method, **options):
    return method(batch(method, **options), clock(0)).loss


def test_moco_takes_the_queue_as_it_was_before_the_batch():
    method = make("moco_v2", "test_resnet")
    before = method.queue.rows.clone()
    out = method(batch(method), clock(0))
    q, k = out.projections
    torch.testing.assert_close(out.loss, queue_nce(q, k, before, 0.2))
    method.after_step(out.carry, clock(0))
    assert torch.equal(method.queue.rows[:16], k)
    assert torch.equal(method.queue.rows[16:], before[:8])


def test_moco_keys_get_no_gradient():
    method = make("moco_v1", "test_resnet")
    out = method(batch(method), clock(0))
    assert out.projections[0].requires_grad
    assert not out.projections[1].requires_grad


@pytest.mark.parametrize(("decay", "follows"), [(0.0, True), (1.0, False)])
def test_moco_with_momentum_0_copies_the_query_encoder(decay, follows):
    method = make("moco_v1", "test_resnet", momentum=decay)
    train(method, 1)
    student, teacher = method.projector.weight, method.teacher.network.get_submodule("1").weight
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


@pytest.mark.parametrize("options", [{"stop_gradient": True}, {"predictor": True}])
def test_barlow_twins_asymmetries_change_the_gradient(options):
    grads = []
    for extra in ({}, options):
        method = make("barlow_twins", "test_resnet", **extra)
        loss(method).backward()
        grads.append(method.projector[0].weight.grad)
    assert not torch.allclose(*grads)


def test_vicreg_is_the_published_loss():
    method = make("vicreg", "test_resnet")
    out = method(batch(method), clock(0))
    torch.testing.assert_close(out.loss, vicreg(*out.projections))


def test_vicregs_switches():
    plain = make("vicreg", "test_resnet")
    assert loss(make("vicreg", "test_resnet", variance=0.0)) < loss(plain)
    out = (slow := make("vicreg", "test_resnet", momentum=0.9))(batch(slow), clock(0))
    out.loss.backward()
    assert all(p.grad is None for p in slow.teacher.parameters())
    mixed = make("vicreg", "test_resnet", other="test_vit", predictor=True, stop_gradient=True)
    loss(mixed).backward()
    assert all(p.grad is not None for p in mixed.predictor.parameters())


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
        (m := make("dino", "test_resnet", teacher_temperature=t, cold=t))(batch(m), clock(0))
        .metrics["teacher_entropy"].item()
        for t in (1e-4, 1e4)
    ]  # fmt: skip
    assert entropies[0] < 0.1
    assert entropies[1] == pytest.approx(math.log(12), rel=1e-3)


def test_dinos_teacher_warms_up_by_the_epoch():
    method = make("dino", "test_resnet", cold=0.02, teacher_temperature=0.06, cold_epochs=3)
    t = F.normalize(torch.randn(4, 12), dim=1)
    for at, temperature in ((0, 0.02), (3, 0.04), (6, 0.06), (30, 0.06)):
        expected = torch.softmax(t / temperature, 1)
        torch.testing.assert_close(method.target(t, clock(at, total=60)), expected)


def test_dinos_last_layer_rests_at_first():
    method = make("dino", "test_resnet", freeze=1.0)
    before = method.last.weight.clone()
    running, _ = train(method, SAMPLES // 16)
    assert torch.equal(before, method.last.weight)
    train(method, 4, first=3, running=running)
    assert not torch.equal(before, method.last.weight)


@pytest.mark.parametrize("options", [{"centring": "sinkhorn"}, {"centring": "none"},
                                     {"loss": "mse"}, {"predictor": True}])  # fmt: skip
def test_dinos_other_rows_train(options):
    method = make("dino", "test_resnet", **options)
    _, steps = train(method, 2)
    assert all(step.output is not None for step in steps)


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
