"""Methods whose positives are more than two views: SupCon, NNCLR; and what stands beside them,
DirectCLR, the supervised bound and SimCLR's options."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from cases import CLASSES, batch, clock, make, train
from torch import nn

from selfsight import methods
from selfsight.encoders import create_encoder
from selfsight.errors import ConfigError
from selfsight.losses import info_nce, nt_xent, supcon

VIEWS = {"multi_crop": 2}


def run(method, data=None):
    return method(data or batch(method), clock(0))


def gradients(method, loss):
    params = [p for p in method.parameters() if p.requires_grad]
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, params, retain_graph=True)])


def layers(head, kind=nn.Linear):
    return [layer for layer in head if isinstance(layer, kind)]


# SupCon


@pytest.mark.parametrize("options", [{}, {"inside": True}, {"temperature": 0.5}, VIEWS])
def test_supcon_contrasts_all_crops_of_all_images(options):
    method = make("supcon", "test_resnet", **options)
    data = batch(method)
    out = run(method, data)
    assert len(out.projections) == len(data.views)
    expected = supcon(
        torch.cat(out.projections), data.labels.repeat(len(data.views)),
        temperature=options.get("temperature", 0.1), inside=options.get("inside", False),
    )  # fmt: skip
    torch.testing.assert_close(out.loss, expected)


def test_supcon_of_classes_of_one_image_is_simclr():
    method = make("supcon", "test_resnet", temperature=0.2)
    out = run(method, replace(batch(method), labels=torch.arange(16)))
    torch.testing.assert_close(out.loss, nt_xent(*out.projections, 0.2) * 0.2 / 0.07)


def test_supcon_anchors_may_be_the_first_crops():
    method = make("supcon", "test_resnet", anchors="first", base_temperature=0.1)
    data = batch(method)
    out = run(method, data)
    z = F.normalize(torch.cat(out.projections), dim=1)
    losses = []
    for i in range(16):
        others = [k for k in range(32) if k != i]
        log_p = (z[i] @ z[others].T / 0.1).log_softmax(0)
        same = data.labels.repeat(2)[others] == data.labels[i]
        losses.append(-log_p[same].mean())
    torch.testing.assert_close(out.loss, torch.stack(losses).mean())


def test_supcon_knows_classes_only_apart():
    method = make("supcon", "test_vit")
    data = batch(method)
    renamed = torch.tensor([3, 0, 7, 1])[data.labels]
    torch.testing.assert_close(run(method, replace(data, labels=renamed)).loss,
                               run(method, data).loss)  # fmt: skip
    mixed = replace(data, labels=data.labels.roll(1))
    assert not torch.allclose(run(method, mixed).loss, run(method, data).loss)


def test_supcons_head_has_no_batchnorm():
    method = make("supcon", "test_resnet", layers=3, hidden=12)
    assert [layer.out_features for layer in layers(method.projector)] == [12, 12, 8]
    assert layers(method.projector, nn.BatchNorm1d) == []


# Supervised


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_supervised_is_the_cross_entropy_of_every_crop(smoothing):
    method = make("supervised", "test_resnet", smoothing=smoothing, **VIEWS)
    assert method.classifier.out_features == CLASSES
    data = batch(method)
    out = run(method, data)
    log_p = [method.classifier(h).log_softmax(1) for h in out.projections]
    right = [p.gather(1, data.labels[:, None]).mean() for p in log_p]
    assert len(right) == 4
    spread = torch.stack([p.mean() for p in log_p]).mean()
    expected = -(1 - smoothing) * torch.stack(right).mean() - smoothing * spread
    torch.testing.assert_close(out.loss, expected)
    hits = [(p.argmax(1) == data.labels).float().mean() for p in log_p]
    torch.testing.assert_close(out.metrics["accuracy"], torch.stack(hits).mean())
    assert torch.equal(out.projections[0], out.embedding)


@pytest.mark.parametrize("name", ["supcon", "supervised"])
def test_labels_are_for_supervised_methods_alone(name):
    assert batch(make(name, "test_resnet")).labels.tolist() != [0] * 16
    assert batch(make("simclr", "test_resnet")).labels is None


# NNCLR


def test_nnclrs_neighbour_is_the_nearest_by_cosine():
    method = make("nnclr", "test_resnet", dim=3, queue=3)
    method.queue.rows.copy_(torch.eye(3))
    z = torch.tensor([[3.0, 1.0, 2.0], [0.1, 0.2, 0.1], [-3.0, -2.0, -1.0]])
    assert torch.equal(method.neighbour(z), torch.eye(3)[[0, 1, 2]])


def test_nnclr_with_its_own_projections_in_the_queue_is_simclr_with_a_predictor():
    """Among the first view's projections each is its own neighbour."""
    method = make("nnclr", "test_resnet", queue=16)
    data = batch(method)
    z1, z2 = (z.detach() for z in run(method, data).projections)
    method.queue.rows.copy_(F.normalize(z1, dim=1))
    assert not torch.allclose(method.neighbour(z1), F.normalize(z2, dim=1), atol=1e-2)
    out = run(method, data)
    p1, p2 = (method.predictor(z) for z in out.projections)
    own = torch.arange(16)
    near = (F.normalize(z2, dim=1) @ F.normalize(z1, dim=1).T).argmax(1)
    there, back = info_nce(z1, p2, own), info_nce(z1[near], p1, own)
    torch.testing.assert_close(out.loss, (there + back) / 2)
    # No gradient has passed through the neighbours.
    expected = gradients(method, (there + back) / 2)
    torch.testing.assert_close(gradients(method, out.loss), expected)
    assert not method.neighbour(out.projections[0]).requires_grad


def test_nnclr_remembers_the_first_views_projections_after_the_loss():
    method = make("nnclr", "test_resnet")
    before = method.queue.rows.clone()
    torch.testing.assert_close(before.norm(dim=1), torch.ones(24))
    out = run(method)
    assert torch.equal(method.queue.rows, before)
    method.after_step(out.carry, clock(0))
    torch.testing.assert_close(method.queue.rows[:16], F.normalize(out.projections[0], dim=1))
    assert torch.equal(method.queue.rows[16:], before[:8])


def test_nnclrs_small_crops_predict_the_large_ones_neighbours():
    method = make("nnclr", "test_resnet", predictor=False, temperature=0.2, **VIEWS)
    out = run(method)
    z = out.projections
    n = [method.neighbour(z_i) for z_i in z[:2]]
    losses = [info_nce(n[i], z[j], torch.arange(16), temperature=0.2)
              for i in range(2) for j in range(4) if i != j]  # fmt: skip
    assert len(losses) == 6
    torch.testing.assert_close(out.loss, torch.stack(losses).mean())


def test_nnclrs_heads():
    method = make("nnclr", "test_resnet")
    assert [layer.out_features for layer in layers(method.projector)] == [16, 16, 8]
    assert len(layers(method.projector, nn.BatchNorm1d)) == 3
    assert [layer.out_features for layer in layers(method.predictor)] == [16, 8]
    assert len(layers(method.predictor, nn.BatchNorm1d)) == 1
    bare = make("nnclr", "test_resnet", head="none")
    assert bare.queue.rows.shape == (24, bare.encoder.dim)
    train(bare, 1)


# DirectCLR


def test_directclr_contrasts_the_first_channels():
    method = make("directclr", "test_resnet", temperature=0.2)
    data = batch(method)
    h = [method.encoder(x) for x in data.views]
    z1, z2 = (F.normalize(h_i[:, :8], dim=1) for h_i in h)
    logits = z1 @ z2.T / 0.2
    own = torch.arange(16)
    expected = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    out = run(method, data)
    torch.testing.assert_close(out.loss, expected)
    (gradient,) = torch.autograd.grad(out.loss, out.embedding)
    assert gradient[:, :8].abs().max() > 0
    assert gradient[:, 8:].abs().max() == 0


def test_directclr_of_equal_images_knows_nothing():
    method = make("directclr", "test_vit", **VIEWS)
    data = batch(method)
    data.views[:] = [x[:1].expand_as(x) for x in data.views]
    assert run(method, data).loss.item() == pytest.approx(math.log(16), rel=1e-5)


def test_directclr_takes_the_papers_share_of_any_encoder():
    with torch.device("meta"):
        for name, dim in [("resnet50", 360), ("resnet18", 90), ("vit_tiny_patch16_224", 34)]:
            assert methods.create("directclr", create_encoder(name), samples=1).dim == dim
        with pytest.raises(ConfigError, match=r"360 of the 192 channels .* --method\.dim"):
            methods.create("directclr", create_encoder("vit_tiny_patch16_224"), samples=1, dim=360)


# SimCLR


@pytest.mark.parametrize(
    ("options", "widths"),
    [
        ({"head": "none"}, []),
        ({"head": "linear"}, [8]),
        ({}, ["h", 8]),
        ({"layers": 3}, ["h", "h", 8]),
        ({"layers": 3, "hidden": 12}, [12, 12, 8]),
    ],
)
def test_simclrs_heads(options, widths):
    method = make("simclr", "test_resnet", **options)
    width = method.encoder.dim
    found = layers(method.projector)
    assert [layer.out_features for layer in found] == [width if w == "h" else w for w in widths]
    norms = layers(method.projector, nn.BatchNorm1d)
    assert len(norms) == len(widths)
    assert [norm.bias.requires_grad for norm in norms] == [True] * (len(norms) - 1) + [False] * (
        len(norms) > 0
    )
    out = run(method)
    assert torch.equal(out.projections[0], out.embedding) is (not widths)
    torch.testing.assert_close(out.loss, 2 * nt_xent(*out.projections))


def test_simclrs_crops_are_compared_with_the_two_large_ones():
    method = make("simclr", "test_resnet", **VIEWS)
    assert [view.size for view in method.views] == [46, 27]  # 160 and 96 of 224 px, of 64
    out = run(method)
    z = out.projections
    pairs = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3)]
    losses = [2 * nt_xent(z[i], z[j]) for i, j in pairs]
    torch.testing.assert_close(out.loss, torch.stack(losses).mean())


@pytest.mark.parametrize("options", [{}, VIEWS])
def test_simclrs_second_view_may_have_an_encoder_of_its_own(options):
    method = make("simclr", "test_resnet", other="test_vit", **options)
    data = batch(method)
    if options:  # a ViT takes multiples of its patch
        data.views[:] = [x[..., : x.shape[2] // 16 * 16, : x.shape[3] // 16 * 16]
                         for x in data.views]  # fmt: skip
    out = run(method, data)
    z = out.projections
    assert len(z) == len(data.views)
    torch.testing.assert_close(z[1], method.other(data.views[1]))
    torch.testing.assert_close(z[0], method.projector(method.encoder(data.views[0])))
    out.loss.backward()
    assert all(p.grad is not None for p in method.parameters() if p.requires_grad)
    assert method.product is method.encoder


def test_simclrs_encoders_need_a_head_where_their_widths_differ():
    with pytest.raises(ConfigError, match=r"test_vit .* --method\.head"):
        make("simclr", "test_resnet", head="none", other="test_vit")
