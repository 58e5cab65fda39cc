"""What the papers and the official code say of momentum contrast: v3, and v1's mechanisms."""

import math

import pytest
import torch
import torch.nn.functional as F
from cases import SAMPLES, batch, clock, encoders, engine, make, sweep, train
from torch import nn

from selfsight import philox
from selfsight.encoders import create_encoder
from selfsight.errors import ConfigError
from selfsight.heads import sincos_positions
from selfsight.losses import chunks, queue_nce
from selfsight.methods.moco_v1 import MoCoV1
from selfsight.methods.moco_v3 import MoCoV3
from selfsight.philox import Purpose
from selfsight.schedules import cosine
from selfsight.train.checkpoint import optimizer_tensors, restore_optimizer

MECHANISMS = ["queue", "bank", "end_to_end"]


class Constant(nn.Module):
    """Every image at the same place."""

    def __init__(self, dim):
        super().__init__()
        self.dim = dim

    def forward(self, x):
        return torch.ones(len(x), self.dim, device=x.device)


def snapshot(method):
    return {key: value.clone() for key, value in method.state_dict().items()}


# MoCo v3


@pytest.mark.parametrize("encoder", encoders("moco_v3"))
@pytest.mark.parametrize("temperature", [0.2, 1.0, 0.004])
def test_v3_of_a_collapsed_network_is_four_tau_log_n(encoder, temperature):
    method = make("moco_v3", encoder, temperature=temperature)
    method.predictor, method.teacher.network = Constant(8), Constant(8)
    loss = method(batch(method), clock(0)).loss
    assert loss.item() == pytest.approx(4 * temperature * math.log(16), rel=1e-5)


def test_v3_by_hand():
    """Queries and keys on two axes: cosines 1 and 0 alone."""
    method = make("moco_v3", "test_resnet", temperature=0.5)
    q, k = torch.eye(2), torch.tensor([[3.0, 0.0], [0.0, 2.0]])
    right = 2 * 0.5 * -math.log(math.exp(2) / (math.exp(2) + 1))
    wrong = 2 * 0.5 * -math.log(1 / (math.exp(2) + 1))
    assert method.contrast(q, k).item() == pytest.approx(right, rel=1e-6)
    assert method.contrast(q, k.flip(0)).item() == pytest.approx(wrong, rel=1e-6)


def test_v3_keeps_the_gradient_while_the_temperature_falls():
    """Where all logits are equal, 2τ·CE has the same gradient for every τ."""
    method = make("moco_v3", "test_resnet")
    k = torch.eye(4)
    grads = []
    for method.temperature in (1.0, 0.1):
        q = torch.ones(4, 4, requires_grad=True)
        grads += torch.autograd.grad(method.contrast(q, k), q)
    assert grads[0].abs().max() > 0.01
    torch.testing.assert_close(grads[0], grads[1])


def test_v3_adds_both_directions_and_reads_the_other_view_only():
    method = make("moco_v3", "test_resnet")
    data = batch(method)
    loss = method(data, clock(0)).loss
    q = [method.predictor(method.projector(method.encoder(x))) for x in data.views]
    k = [method.teacher(x) for x in data.views]
    ways = [F.cross_entropy(F.normalize(q[i], dim=1) @ F.normalize(k[1 - i], dim=1).T,
                            torch.arange(16)) for i in (0, 1)]  # fmt: skip
    torch.testing.assert_close(loss, 2 * (ways[0] + ways[1]))


def test_v3_keys_and_frozen_parts_get_no_gradient():
    method = make("moco_v3", "test_vit")
    method(batch(method), clock(0)).loss.backward()
    assert all(p.grad is None for p in method.teacher.parameters())
    assert all(p.grad is None for p in method.encoder.patch_projection.parameters())
    assert method.encoder.model.pos_embed.grad is None
    for block in method.encoder.model.blocks:
        assert block.attn.qkv.weight.grad.abs().sum() > 0


def test_v3_leaves_the_frozen_patch_projection_as_it_was_drawn():
    for frozen in (True, False):
        method = make("moco_v3", "test_vit", frozen_patches=frozen)
        before = snapshot(method)
        train(method, 2)
        name = "encoder.model.patch_embed.proj.weight"
        assert torch.equal(before[name], method.state_dict()[name]) is frozen
        followed = name.replace("encoder", "teacher.network.0", 1)
        assert torch.equal(before[followed], method.state_dict()[followed]) is frozen


def test_v3_draws_the_patch_projection_as_one_linear_layer():
    weight = make("moco_v3", "test_vit").encoder.patch_projection.weight.flatten(1)
    limit = math.sqrt(6 / sum(weight.shape))
    assert 0.98 * limit < weight.abs().max() <= limit
    assert weight.std().item() == pytest.approx(limit / math.sqrt(3), rel=0.02)


def test_v3_fixes_sines_and_cosines_unless_positions_are_learned():
    wanted = sincos_positions(64, 4, 4)
    for positions in ("fixed", "learned"):
        encoder = make("moco_v3", "test_vit", positions=positions).encoder
        found = encoder.model.pos_embed
        assert found.requires_grad is (positions == "learned")
        assert torch.allclose(found[0, -16:], wanted) is (positions == "fixed")


def test_v3_keeps_what_trained_weights_know():
    encoder = create_encoder("test_vit", size=64, seed=1)
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    encoder.pretrained = True
    method = MoCoV3(encoder, hidden=16, dim=8)
    for key, value in method.encoder.state_dict().items():
        assert torch.equal(value, before[key]), key


@pytest.mark.parametrize(
    ("encoder", "layers", "last_norm", "temperature", "optimizer", "smallest"),
    [("test_resnet", 2, False, 1.0, "lars", 0.2), ("test_vit", 3, True, 0.2, "adamw", 0.08)],
)
def test_v3_has_a_recipe_for_each_kind(
    encoder, layers, last_norm, temperature, optimizer, smallest
):
    method = make("moco_v3", encoder)
    linear = [layer for layer in method.projector if isinstance(layer, nn.Linear)]
    assert len(linear) == layers
    assert sum(isinstance(layer, nn.Linear) for layer in method.predictor) == 2
    assert [layer.bias for layer in linear] == [None] * layers
    assert isinstance(method.projector[-1], nn.BatchNorm1d)
    assert not method.projector[-1].affine
    assert isinstance(method.predictor[-1], nn.BatchNorm1d) is last_norm
    assert method.temperature == temperature
    assert method.recipe.optimizer == optimizer
    assert [view.crop for view in method.views] == [(smallest, 1.0)] * 2
    assert [view.solarize for view in method.views] == [0.0, 0.2]


def test_v3_vit_decays_everything_and_resnet_spares_biases_and_norms():
    for encoder, spared in (("test_vit", False), ("test_resnet", True)):
        method = make("moco_v3", encoder)
        groups = engine(method).optimizer.param_groups
        assert any(not group["decays"] for group in groups) is spared
        assert all(p.ndim <= 1 for g in groups if not g["decays"] for p in g["params"])


def test_v3_moves_the_key_encoder_by_the_momentum_of_its_next_use():
    """Official: m is read off the schedule right before the keys are computed."""
    for ramp in (True, False):
        method = make("moco_v3", "test_resnet", ramp=ramp)
        name = "network.1.0.weight"
        ours = method.teacher.get_parameter(name).clone()
        with torch.no_grad():
            method.projector[0].weight.add_(1.0)
        method.after_step({}, clock(2, total=6))
        decay = cosine(0.9, 1.0, 3 / 6) if ramp else 0.9
        expected = decay * ours + (1 - decay) * method.projector[0].weight
        torch.testing.assert_close(method.teacher.get_parameter(name), expected)


@pytest.mark.parametrize("encoder", encoders("moco_v3"))
@pytest.mark.parametrize("options", [
    {"head": "none"}, {"head": "linear"}, {"layers": 1}, {"predictor": False}, {"norm": False},
    {"multi_crop": 2}, {"frozen_patches": False, "positions": "learned"},
], ids=str)  # fmt: skip
def test_v3_learns_with_each_option(encoder, options):
    method = make("moco_v3", encoder, **options)
    _, steps = train(method, 2)
    assert all(step.output is not None for step in steps)
    assert len(steps[0].output.projections) == 2 + options.get("multi_crop", 0)


def test_v3_small_crops_are_queries_of_both_keys():
    method = make("moco_v3", "test_resnet", multi_crop=1)
    data = batch(method)
    loss = method(data, clock(0)).loss
    q = [method.predictor(method.projector(method.encoder(x))) for x in data.views]
    k = [method.teacher(x) for x in data.views[:2]]
    ways = [method.contrast(q[i], k[j]) for i, j in ((0, 1), (1, 0), (2, 0), (2, 1))]
    torch.testing.assert_close(loss, 2 * torch.stack(ways).mean())


# The mechanisms of MoCo's figures 2 and 3


def test_the_same_loss_of_other_keys_for_each_mechanism():
    """Cross-entropy of all candidates, written out."""
    for mechanism in MECHANISMS:
        method = make("moco_v1", "test_resnet", mechanism=mechanism)
        data = batch(method)
        out = method(data, clock(0))
        q, k = (F.normalize(z, dim=1) for z in out.projections)
        if mechanism == "bank":
            rows = method.instances.bank.rows
            drawn = philox.integers(data.key.seed, 0, Purpose.NEGATIVES, 24) * SAMPLES >> 32
            among = sorted({*drawn.tolist(), *data.index.tolist()})
            torch.testing.assert_close(k, rows[data.index])
            logits = q @ rows[among].T
            target = torch.tensor([among.index(i) for i in data.index.tolist()])
        elif mechanism == "queue":
            logits = torch.cat([(q * k).sum(1, keepdim=True), q @ method.queue.rows.T], 1)
            target = torch.zeros(16, dtype=torch.long)
        else:
            logits, target = q @ k.T, torch.arange(16)
        torch.testing.assert_close(out.loss, F.cross_entropy(logits / 0.07, target))


def test_only_end_to_end_keys_carry_a_gradient():
    carried = {}
    for mechanism in MECHANISMS:
        method = make("moco_v1", "test_resnet", mechanism=mechanism)
        carried[mechanism] = method(batch(method), clock(0)).projections[1].requires_grad
    assert carried == {"queue": False, "bank": False, "end_to_end": True}


def test_end_to_end_learns_from_both_views():
    """Without the keys' gradient the encoder would move elsewhere."""
    method = make("moco_v1", "test_resnet", mechanism="end_to_end")
    data = batch(method)
    weight = method.projector[0].weight
    (whole,) = torch.autograd.grad(method(data, clock(0)).loss, weight)
    q, k = method(data, clock(0)).projections
    own = torch.arange(16)
    stopped = queue_nce(q, k.detach(), k.detach(), 0.07, own)
    (part,) = torch.autograd.grad(stopped, weight)
    assert (whole - part).norm() > 0.1 * whole.norm()
    closed = queue_nce(q.detach(), k, k, 0.07, own)
    (rest,) = torch.autograd.grad(closed, weight)
    torch.testing.assert_close(whole, part + rest, rtol=1e-4, atol=1e-5)


def test_end_to_end_keys_are_dealt_to_groups_anew():
    method = make("moco_v1", "test_resnet", mechanism="end_to_end", norm_groups=4)
    data = batch(method)
    order = philox.permutation(data.key.seed, data.key.step, Purpose.SHUFFLE, 16).tolist()
    k = method(data, clock(0)).projections[1]
    data.views[1][5] = data.views[1][5].flip(0) + 1
    change = (method(data, clock(0)).projections[1] - k).abs().amax(1)
    first = order.index(5) // 4 * 4
    assert set((change > 1e-5).nonzero().flatten().tolist()) == set(order[first : first + 4])


def test_the_bank_keeps_each_images_last_query():
    method = make("moco_v1", "test_resnet", mechanism="bank")
    before = method.instances.bank.rows.clone()
    torch.testing.assert_close(before.norm(dim=1), torch.ones(SAMPLES))
    data = batch(method)
    out = method(data, clock(0))
    assert torch.equal(method.instances.bank.rows, before)
    method.after_step(out.carry, clock(0))
    seen = data.index
    torch.testing.assert_close(
        method.instances.bank.rows[seen], F.normalize(out.projections[0], dim=1)
    )
    rest = torch.ones(SAMPLES, dtype=torch.bool).index_fill(0, seen, False)
    assert torch.equal(method.instances.bank.rows[rest], before[rest])
    assert [view.count for view in method.views] == [1]


def test_the_banks_negatives_are_drawn_anew_in_each_step_from_all_rows():
    bank = make("moco_v1", "test_resnet", mechanism="bank").instances.bank
    drawn = [bank.drawn(0, step, 4000) for step in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    counts = torch.bincount(drawn[0], minlength=SAMPLES)
    assert len(counts) == SAMPLES
    assert (counts - 4000 / SAMPLES).abs().max() < 5 * math.sqrt(4000 / SAMPLES)


def test_a_bank_without_images_is_refused():
    with pytest.raises(ConfigError, match="needs samples="):
        MoCoV1(create_encoder("test_resnet", size=64, seed=0), mechanism="bank")


@pytest.mark.parametrize("mechanism", ["bank", "end_to_end"])
def test_each_mechanism_resumes_bit_by_bit(mechanism):
    method = make("moco_v1", "test_resnet", mechanism=mechanism)
    running, _ = train(method, 4)
    saved = snapshot(method)
    state = {k: v.clone() for k, v in optimizer_tensors(running.optimizer, method).items()}
    train(method, 6, first=4, running=running)
    other = make("moco_v1", "test_resnet", mechanism=mechanism)
    resumed = engine(other)
    other.load_state_dict(saved)
    restore_optimizer(resumed.optimizer, other, state)
    train(other, 6, first=4, running=resumed)
    for key, value in method.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_a_rejected_step_leaves_no_trace_of_any_mechanism(mechanism):
    method = make("moco_v1", "test_resnet", mechanism=mechanism)
    running, _ = train(method, 1)
    before = snapshot(method)
    poisoned = batch(method, step=1)
    poisoned.views[0][3] = torch.nan
    assert running.step(clock(1), [poisoned], sweep(method, clock(1))).output is None
    for key, value in method.state_dict().items():
        assert torch.equal(value, before[key]), key


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_the_loss_of_each_mechanism_falls_on_a_repeated_batch(mechanism):
    method = make("moco_v1", "test_resnet", mechanism=mechanism)
    data = batch(method)
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    for _ in range(15):
        loss = method(data, clock(0)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert min(losses[-3:]) < losses[0] - 0.1


# Small crops and heads of v1 and v2


@pytest.mark.parametrize("name", ["moco_v1", "moco_v2"])
def test_small_crops_are_queries_of_the_large_crops_key(name):
    method = make(name, "test_resnet", multi_crop=2)
    data = batch(method)
    assert [x.shape[-1] < data.views[0].shape[-1] for x in data.views] == [False, False, True, True]
    out = method(data, clock(0))
    q = [method.projector(method.encoder(data.views[i])) for i in (0, 2, 3)]
    k = out.projections[1]
    losses = [queue_nce(q_i, k, method.queue.rows, method.temperature) for q_i in q]
    torch.testing.assert_close(out.loss, torch.stack(losses).mean())


def test_v2_symmetric_small_crops_are_queries_of_both_keys():
    method = make("moco_v2", "test_vit", multi_crop=1, symmetric=True)
    data = batch(method)
    out = method(data, clock(0))
    q = [method.projector(method.encoder(x)) for x in data.views]
    k = [method.teacher(x) for x in data.views[:2]]
    ways = [(0, 1), (2, 1), (1, 0), (2, 0)]
    losses = [queue_nce(q[i], k[j], method.queue.rows, 0.2) for i, j in ways]
    torch.testing.assert_close(out.loss, 2 * torch.stack(losses).mean())


def test_the_bank_takes_small_crops_as_queries_of_the_images_row():
    method = make("moco_v1", "test_resnet", mechanism="bank", multi_crop=2)
    data = batch(method)
    assert len(data.views) == 3
    out = method(data, clock(0))
    q = [method.projector(method.encoder(x)) for x in data.views]
    at = data.index, data.key.seed, data.key.step
    losses = [method.instances(q_i, *at)[0] for q_i in q]
    torch.testing.assert_close(out.loss, torch.stack(losses).mean())
    torch.testing.assert_close(out.carry["k"], F.normalize(q[0], dim=1))


@pytest.mark.parametrize("name", ["moco_v1", "moco_v2"])
@pytest.mark.parametrize(
    ("options", "widths"),
    [({"head": "none"}, []), ({"head": "linear"}, [8]),
     ({"head": "nonlinear", "hidden": 12}, [12, 8]),
     ({"head": "nonlinear", "hidden": 12, "layers": 3}, [12, 12, 8])],
)  # fmt: skip
def test_heads(name, options, widths):
    method = make(name, "test_resnet", **options)
    linear = [layer.out_features for layer in method.projector if isinstance(layer, nn.Linear)]
    assert linear == widths
    assert not any(isinstance(layer, nn.BatchNorm1d) for layer in method.projector)
    assert method.queue.rows.shape == (24, widths[-1] if widths else method.encoder.dim)
    _, (step,) = train(method, 1)
    assert step.output is not None


# The loss with a row of the queue left out


@pytest.mark.parametrize("held", [1 << 21, 8])
def test_queue_nce_leaves_out_a_row_of_the_queue(monkeypatch, held):
    monkeypatch.setattr(chunks, "_CHUNK", held)
    monkeypatch.setattr(chunks, "_ROWS", 1)
    make_rows = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 5, 3, generator=make_rows, dtype=torch.float64).requires_grad_()
    loss = queue_nce(q, k, k, 0.5, torch.arange(5))
    logits = F.normalize(q, dim=1) @ F.normalize(k, dim=1).T / 0.5
    expected = F.cross_entropy(logits, torch.arange(5))
    torch.testing.assert_close(loss, expected)
    for mine, theirs in zip(torch.autograd.grad(loss, (q, k)),
                            torch.autograd.grad(expected, (q, k)), strict=True):  # fmt: skip
        torch.testing.assert_close(mine, theirs)


def test_queue_nce_with_a_row_left_out_has_the_gradient_of_its_value():
    draw = torch.Generator().manual_seed(0)
    q, k, queue = (torch.randn(n, 3, generator=draw, dtype=torch.float64).requires_grad_()
                   for n in (4, 4, 6))  # fmt: skip
    own = torch.tensor([0, 5, 2, 2])
    assert torch.autograd.gradcheck(lambda *x: queue_nce(*x, 0.3, own), (q, k, queue))


def test_queue_nce_without_its_own_row_is_finite_when_cold():
    z = F.normalize(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    z.requires_grad_()
    loss = queue_nce(z, z, z, 0.004, torch.arange(6))
    loss.backward()
    assert loss.isfinite()
    assert z.grad.isfinite().all()
