"""Methods with a row of memory for every image: InstDisc, PIRL, CMC; and InfoMin's jigsaw."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from cases import SAMPLES, batch, clock, make, train
from torch import tensor

from selfsight.encoders import create_encoder
from selfsight.errors import ConfigError
from selfsight.losses import binary_nce, noise_scores
from selfsight.memory import Bank

BANKS = {"instdisc": ["instances"], "pirl": ["instances"], "cmc": ["lightnesses", "colours"]}


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_binary_nce_by_hand():
    # One row of noise and mean exp(s) = 1: odds of 2 : 1 for the own row, 1 : 1 for the other.
    scores = tensor([[math.log(2), 0.0]])
    torch.testing.assert_close(binary_nce(scores, tensor(0.0)), tensor(math.log(3)))


@pytest.mark.parametrize("rows", [10, 1000])
def test_binary_nce_is_the_papers_for_any_number_of_rows(rows):
    scores, z = normal(4, 6), rows * normal(4, 6, seed=1).exp().mean()
    p, noise = scores.exp() / z, 5 / rows
    own, others = p[:, 0] / (p[:, 0] + noise), noise / (p[:, 1:] + noise)
    expected = -(own.log() + others.log().sum(1)).mean()
    torch.testing.assert_close(binary_nce(scores, (z / rows).log()), expected)


def test_binary_nce_has_the_gradient_of_its_value():
    z, own, noise = (normal(n, 5, seed=n).requires_grad_() for n in (4, 4, 6))
    own = own.flip(1)

    def loss(z, own, noise):
        return binary_nce(noise_scores(z, own, noise, 0.3), tensor(0.2, dtype=torch.float64))

    assert torch.autograd.gradcheck(loss, (z, own, noise))


def test_binary_nce_is_finite_at_low_temperature():
    z = (1e6 * normal(4, 8, dtype=torch.float32)).requires_grad_()
    scores = noise_scores(z, z.detach(), -z.detach(), 0.004)
    assert scores.max() > 200
    loss = binary_nce(scores, scores.detach().logsumexp((0, 1)) - math.log(scores.numel()))
    (gradient,) = torch.autograd.grad(loss, z)
    assert loss.isfinite()
    assert gradient.isfinite().all()


def test_a_bank_follows_on_the_sphere():
    bank = Bank.random(4, 3)
    before = bank.rows.clone()
    rows = F.normalize(normal(2, 3, dtype=torch.float32), dim=1)
    bank.follow(tensor([2, 0]), rows, 0.25)
    torch.testing.assert_close(bank.rows[2], F.normalize(before[2] / 4 + 3 * rows[0] / 4, dim=0))
    torch.testing.assert_close(bank.rows[0], F.normalize(before[0] / 4 + 3 * rows[1] / 4, dim=0))
    assert torch.equal(bank.rows[[1, 3]], before[[1, 3]])


@pytest.mark.parametrize("name", BANKS)
def test_rows_stay_unit_norm(name):
    method = make(name, "test_resnet")
    before = {key: value.clone() for key, value in method.state_dict().items()}
    train(method, 4)
    for bank in BANKS[name]:
        rows = method.get_submodule(bank).bank.rows
        assert rows.shape == (SAMPLES, 8)
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(SAMPLES))
        assert ((rows - before[f"{bank}.bank.rows"]).abs().sum(1) > 1e-3).all()


@pytest.mark.parametrize("name", BANKS)
def test_the_normaliser_is_the_first_batchs(name):
    method = make(name, "test_resnet")
    banks = [method.get_submodule(bank) for bank in BANKS[name]]
    assert [float(bank.log_mean) for bank in banks] == [-math.inf] * len(banks)
    data = batch(method)
    out = method(data, clock(0))
    expected = []
    # Each half of CMC reads the bank of the other.
    for bank, z in zip(banks, reversed(out.projections[: len(banks)]), strict=True):
        noise = bank.bank.rows[bank.bank.drawn(data.key.seed, data.key.step, 8)]
        scores = noise_scores(z, bank.bank.rows[data.index], noise, 0.07)
        expected.append(scores.exp().mean().log().detach())
    method.after_step(out.carry, clock(0))
    frozen = [bank.log_mean.clone() for bank in banks]
    torch.testing.assert_close(frozen, expected)
    train(method, 3, first=1)
    assert [bank.log_mean for bank in banks] == frozen


def test_instdisc_asks_of_its_row_and_of_the_drawn_ones():
    method = make("instdisc", "test_resnet")
    train(method, 2)
    data, bank = batch(method, step=2), method.instances.bank
    out = method(data, clock(2))
    drawn = bank.drawn(data.key.seed, data.key.step, 8)
    scores = noise_scores(out.projections[0], bank.rows[data.index], bank.rows[drawn], 0.07)
    torch.testing.assert_close(out.loss, binary_nce(scores, method.instances.log_mean))
    assert not torch.equal(drawn, bank.drawn(data.key.seed, data.key.step + 1, 8))


@pytest.mark.parametrize("negatives", [4, SAMPLES, 10 * SAMPLES])
def test_instdiscs_softmax_is_over_all_rows_where_it_can_be(negatives):
    method = make("instdisc", "test_resnet", loss="softmax", negatives=negatives)
    data, rows = batch(method), method.instances.bank.rows
    out = method(data, clock(0))
    z = F.normalize(out.projections[0], dim=1)
    full = F.cross_entropy(z @ rows.T / 0.07, data.index)
    # A few drawn, and the batch: each row once, so an image's own is none of its negatives.
    drawn = method.instances.bank.drawn(data.key.seed, data.key.step, negatives).tolist()
    among = sorted({*drawn, *data.index.tolist()})
    own = tensor([among.index(i) for i in data.index.tolist()])
    some = F.cross_entropy(z @ rows[among].T / 0.07, own)
    assert negatives > 4 or len(among) < SAMPLES
    torch.testing.assert_close(out.loss, some if negatives == 4 else full)


@pytest.mark.parametrize("loss", ["nce", "softmax"])
def test_pirl_of_the_images_alone_is_instdisc(loss):
    pirl = make("pirl", "test_resnet", weight=0.0, loss=loss)
    instdisc = make("instdisc", "test_resnet", loss=loss)
    shared = {key: pirl.state_dict()[key] for key in instdisc.state_dict()}
    instdisc.load_state_dict(shared)
    data = batch(pirl)
    ours = pirl(data, clock(0))
    theirs = instdisc(replace(data, views=data.views[:1]), clock(0))
    torch.testing.assert_close(ours.loss, theirs.loss)
    weights = (pirl.projector[0].weight, instdisc.projector[0].weight)
    grads = [
        torch.autograd.grad(out.loss, weight)[0]
        for out, weight in zip((ours, theirs), weights, strict=True)
    ]
    torch.testing.assert_close(*grads)
    for key in ours.carry:
        torch.testing.assert_close(ours.carry[key], theirs.carry[key])


def test_pirl_halves_the_images_loss_and_the_pieces():
    losses = [make("pirl", "test_resnet", weight=w) for w in (0.0, 0.5, 1.0)]
    image, both, pieces = (m(batch(m), clock(0)).loss for m in losses)
    assert not torch.allclose(pieces, image)
    torch.testing.assert_close(both, (pieces + image) / 2)


def test_pirls_memory_holds_images_only():
    method = make("pirl", "test_resnet", weight=1.0)
    data = batch(method)
    out = method(data, clock(0))
    torch.testing.assert_close(out.carry["z"], F.normalize(out.projections[0], dim=1))
    data.views[1] = data.views[1].flip(3)
    other = method(data, clock(0))
    assert torch.equal(other.carry["z"], out.carry["z"])
    assert not torch.allclose(other.loss, out.loss)


def test_infomin_without_pieces_is_moco_v2():
    infomin = make("infomin", "test_resnet", beta=0.0)
    moco = make("moco_v2", "test_resnet", hidden=16, temperature=0.15)
    moco.load_state_dict({key: infomin.state_dict()[key] for key in moco.state_dict()})
    data = batch(infomin)
    ours = infomin(data, clock(0))
    theirs = moco(replace(data, views=data.views[:2]), clock(0))
    torch.testing.assert_close(ours.loss, theirs.loss)
    for out, method in ((ours, infomin), (theirs, moco)):
        method.after_step(out.carry, clock(0))
    assert torch.equal(infomin.queue.rows, moco.queue.rows)


def test_infomins_pieces_look_for_the_same_key():
    methods = [make("infomin", "test_resnet", beta=b) for b in (0.0, 0.25, 1.0)]
    image, both, pieces = (m(batch(m), clock(0)) for m in methods)
    torch.testing.assert_close(both.loss, 0.75 * image.loss + 0.25 * pieces.loss)
    assert torch.equal(image.projections[1], pieces.projections[1])
    assert not torch.allclose(image.loss, pieces.loss)
    data = batch(methods[2])
    data.views[1] = data.views[1].flip(0)
    assert not torch.allclose(methods[2](data, clock(0)).loss, pieces.loss)


def test_cmc_contrasts_each_half_with_the_others_memory():
    method = make("cmc", "test_resnet")
    train(method, 2)
    data = batch(method, step=2)
    out = method(data, clock(2))
    expected = 0.0
    for z, bank in zip(out.projections, (method.colours, method.lightnesses), strict=True):
        noise = bank.bank.rows[bank.bank.drawn(data.key.seed, data.key.step, 8)]
        scores = noise_scores(z, bank.bank.rows[data.index], noise, 0.07)
        expected = expected + binary_nce(scores, bank.log_mean)
    torch.testing.assert_close(out.loss, expected)
    before = method.lightnesses.bank.rows[data.index].clone()
    method.after_step(out.carry, clock(2))
    moved = F.normalize(before + F.normalize(out.projections[0], dim=1), dim=1)
    torch.testing.assert_close(method.lightnesses.bank.rows[data.index], moved)


def test_cmc_has_two_encoders_that_see_a_part_each():
    method = make("cmc", "test_resnet").eval()
    assert method.encoder.dim == 2 * create_encoder("test_resnet").dim
    model, x = method.encoder.model, torch.randn(2, 3, 64, 64)
    model.lab = lambda lab: lab
    h_l, h_ab = method.encoder(x).chunk(2, 1)
    for channel, same, other in ((0, 1, 0), (1, 0, 1), (2, 0, 1)):
        changed = x.clone()
        changed[:, channel] += 1
        halves = method.encoder(changed).chunk(2, 1)
        assert torch.equal(halves[same], (h_l, h_ab)[same])
        assert not torch.allclose(halves[other], (h_l, h_ab)[other])


def test_cmc_refuses_trained_weights():
    encoder = create_encoder("test_resnet", size=64)
    encoder.pretrained = True
    with pytest.raises(ConfigError, match="cannot start from test_resnet's weights"):
        type(make("cmc", "test_resnet"))(encoder, samples=4)
