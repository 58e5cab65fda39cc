"""What is said of PIC, PCL and CPC v2."""

import math

import pytest
import torch
import torch.nn.functional as F
from cases import SAMPLES, batch, clock, make, sweep

from selfsight import kmeans, philox
from selfsight.clusters import Clusters, concentrations
from selfsight.encoders import create_encoder
from selfsight.errors import ConfigError
from selfsight.heads import row_context
from selfsight.kmeans import euclidean_kmeans, spherical_kmeans, sums
from selfsight.losses import info_nce, proto_nce, queue_nce
from selfsight.methods import cpc_v2
from selfsight.methods.pcl import PCL
from selfsight.patches import grid
from selfsight.philox import Purpose


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


# PIC


@pytest.mark.parametrize("crops", [0, 2])
def test_pic_classifies_every_view_as_its_image(crops):
    method = make("pic", "test_resnet", multi_crop=crops)
    data = batch(method)
    out = method(data, clock(0))
    assert len(out.projections) == 1 + crops
    w = F.normalize(method.instances, dim=1)
    expected = [
        F.cross_entropy(F.normalize(z, dim=1) @ w.T / 0.2, data.index) for z in out.projections
    ]
    torch.testing.assert_close(out.loss, torch.stack(expected).mean())


def test_pic_starts_at_the_logarithm_of_the_number_of_images_where_all_are_alike():
    method = make("pic", "test_resnet")
    with torch.no_grad():
        method.instances.copy_(method.instances[:1].expand_as(method.instances))
    loss = method(batch(method), clock(0)).loss
    assert loss.item() == pytest.approx(math.log(SAMPLES), rel=1e-5)


def test_pics_small_crops_leave_the_vectors_alone():
    method = make("pic", "test_resnet", multi_crop=2)
    data = batch(method)
    out = method(data, clock(0))
    (all_views,) = torch.autograd.grad(out.loss, method.instances, retain_graph=True)
    alone = info_nce(out.projections[0], method.instances, data.index, temperature=0.2)
    (large,) = torch.autograd.grad(alone, method.instances, retain_graph=True)
    torch.testing.assert_close(all_views, large / 3)
    assert (large.norm(dim=1) > 0).all()  # of images that are not in the batch, too
    moved = torch.autograd.grad(out.loss, [*method.projector.parameters()], retain_graph=True)
    only = torch.autograd.grad(alone / 3, [*method.projector.parameters()])
    assert not any(torch.allclose(a, b) for a, b in zip(moved, only, strict=True))


def test_pic_is_finite_at_a_low_temperature():
    method = make("pic", "test_resnet", temperature=0.004)
    loss = method(batch(method), clock(0)).loss
    loss.backward()
    assert loss.isfinite()
    assert method.instances.grad.isfinite().all()


# Clusters


def test_euclidean_kmeans_ends_at_means_and_nearest_centroids():
    truth = torch.arange(120) % 3
    x = torch.tensor([[0.0, 0], [6, 0], [0, 9]])[truth].double() + 0.3 * normal(120, 2)
    found = [euclidean_kmeans(x, 3, iterations=10, draw=draw) for draw in range(5)]
    centroids, own = min(found, key=lambda one: float((x - one[0][one[1]]).square().sum()))
    assert len(set(zip(truth.tolist(), own.tolist(), strict=True))) == 3
    for k in range(3):
        torch.testing.assert_close(centroids[k], x[own == k].mean(0))
    assert torch.equal(own, torch.cdist(x, centroids).argmin(1))


def test_euclidean_kmeans_goes_by_distance_not_by_angle():
    x = torch.tensor([[1.0, 0], [1.1, 0], [9, 0], [9.1, 0]])
    for draw in range(5):
        own = euclidean_kmeans(x, 2, iterations=5, draw=draw)[1].tolist()
        assert own[0] == own[1] != own[2] == own[3]


@pytest.mark.parametrize("method", [euclidean_kmeans, spherical_kmeans])
def test_kmeans_holds_few_similarities_at_once(monkeypatch, method):
    x, split, parts = normal(300, 4), torch.split, []
    expected = method(x, 20, iterations=4)
    monkeypatch.setattr(torch, "split", lambda x, n: parts.extend(split(x, n)) or split(x, n))
    monkeypatch.setattr(kmeans, "_HELD", 1999)
    torch.testing.assert_close(method(x, 20, iterations=4), expected)
    assert [len(part) for part in parts] == [99, 99, 99, 3] * 5


def test_the_sums_of_clusters():
    x, own = normal(9, 3), torch.tensor([4, 0, 4, 4, 2, 0, 4, 2, 4])
    total, count = sums(x, own, 6)
    assert count[:, 0].tolist() == [2, 0, 2, 0, 5, 0]
    torch.testing.assert_close(total, torch.stack([x[own == k].sum(0) for k in range(6)]))


def test_concentrations_by_hand():
    x = torch.tensor([[3.0, 0], [0, 1], [5, 5], [7, 8], [7, 6], [8, 7]], dtype=torch.float64)
    centroids = torch.tensor([[0.0, 0], [5, 5], [7, 7]], dtype=torch.float64)
    phi = concentrations(x, centroids, torch.tensor([0, 0, 1, 2, 2, 2]), 0.2)
    # Two rows at 3 and 1, one alone, three at 1.
    loose, tight = 2 / math.log(12), 1 / math.log(13)
    tight += 0.2 * (loose - tight)  # the first tenth of (tight, loose, loose)
    mean = (2 * loose + tight) / 3
    expected = torch.tensor([loose, loose, tight], dtype=torch.float64) * 0.2 / mean
    torch.testing.assert_close(phi, expected)


@pytest.mark.parametrize("temperature", [0.07, 0.2])
def test_the_mean_concentration_is_the_temperature(temperature):
    x = F.normalize(normal(300, 8), dim=1)
    centroids, own = euclidean_kmeans(x, 40, iterations=5)
    phi = concentrations(x, centroids, own, temperature)
    assert phi.mean().item() == pytest.approx(temperature, rel=1e-12)
    assert phi.max() > 1.1 * phi.min()


def test_clusters_of_copies_have_the_temperature():
    x = F.normalize(normal(4, 8), dim=1).repeat(6, 1)
    phi = concentrations(x, x[:4], torch.arange(24) % 4, 0.2)
    torch.testing.assert_close(phi, torch.full((4,), 0.2, dtype=torch.float64))


# ProtoNCE


def test_proto_nce_by_hand():
    prototypes = torch.tensor([[1.0, 0], [0, 1]], dtype=torch.float64)
    phi = torch.tensor([0.5, 2.0], dtype=torch.float64)
    loss = proto_nce(3 * prototypes[:1], prototypes, phi, torch.tensor([0]))
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-2)), rel=1e-12)
    loss = proto_nce(prototypes[1:], prototypes, phi, torch.tensor([1]))
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-0.5)), rel=1e-12)


def test_proto_nce_of_one_temperature_is_info_nce():
    q, c = normal(6, 5), F.normalize(normal(9, 5, seed=1), dim=1)
    at = torch.arange(6)
    loss = proto_nce(q, c, torch.full((9,), 0.3, dtype=torch.float64), at)
    torch.testing.assert_close(loss, info_nce(q, c, at, temperature=0.3))


def test_proto_nces_gradient_by_finite_differences():
    c, phi = F.normalize(normal(7, 4), dim=1), normal(7).abs() + 0.1
    q = normal(5, 4, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(lambda q: proto_nce(q, c, phi, torch.arange(5)), q)


def test_proto_nce_is_finite_in_float32():
    q, c = 1e15 * normal(5, 4).float().requires_grad_(), F.normalize(normal(7, 4), dim=1).float()
    q = q.detach().requires_grad_()
    loss = proto_nce(q, c, torch.full((7,), 0.004), torch.arange(5))
    loss.backward()
    assert loss.isfinite()
    assert q.grad.isfinite().all()


def clusters(sizes, samples=20, dim=6):
    made = Clusters(samples, sizes, dim).double()
    made.fit(F.normalize(normal(samples, dim), dim=1), 0.2, iterations=5, seed=0, epoch=0)
    return made


def test_clusters_are_told_apart_by_their_place():
    made = clusters([4, 8])
    assert made.assignment.shape == (2, 20)
    assert set(made.assignment[0].tolist()) <= set(range(4))
    assert set(made.assignment[1].tolist()) <= set(range(4, 12))
    torch.testing.assert_close(made.prototypes.norm(dim=1), torch.ones(12, dtype=torch.float64))
    for part in (made.phi[:4], made.phi[4:]):
        assert part.mean().item() == pytest.approx(0.2, rel=1e-12)


def test_the_contrast_is_with_the_batchs_prototypes_and_with_nobodys():
    made, q = clusters([8]), normal(3, 6, seed=1)
    index = torch.tensor([3, 11, made.assignment[0].tolist().index(0)])
    own = made.assignment[0, index]
    assert len(own.unique()) == 3
    order = philox.integers(7, 2, Purpose.NEGATIVES, 8).argsort().tolist()
    free = [k for k in order if k not in own.tolist()]
    assert len(free) == 5
    for negatives in (0, 2, 100):
        chosen = torch.tensor([*own.tolist(), *free[:negatives]])
        logits = F.normalize(q, dim=1) @ made.prototypes[chosen].T / made.phi[chosen]
        expected = F.cross_entropy(logits, torch.arange(3))
        torch.testing.assert_close(made.contrast(q, index, negatives, 7, 2), expected)


def test_a_prototype_that_images_share_is_a_negative_of_neither():
    made, index, q = clusters([4]), torch.tensor([0, 1, 7, 10, 2]), normal(5, 6, seed=1)
    own = made.assignment[0, index]
    assert own.tolist() == [3, 3, 0, 0, 1]
    logits = F.normalize(q, dim=1) @ made.prototypes.T / made.phi
    torch.testing.assert_close(made.contrast(q, index, 4, 0, 0), F.cross_entropy(logits, own))
    # Of four images that share two prototypes each has one negative.
    two = logits[:4, [0, 3]], torch.tensor([1, 1, 0, 0])
    torch.testing.assert_close(made.contrast(q[:4], index[:4], 0, 0, 0), F.cross_entropy(*two))


def test_the_contrast_is_the_mean_over_clusterings_and_over_views():
    both, q = clusters([4, 8]), normal(6, 6, seed=1)
    index = torch.tensor([3, 11, 5])
    losses = [both.contrast(part, index, 100, 0, 0) for part in q.split(3)]
    torch.testing.assert_close(both.contrast(q, index, 100, 0, 0), torch.stack(losses).mean())
    alone = []
    for g, part in enumerate((slice(0, 4), slice(4, 12))):
        one = Clusters(20, [len(both.phi[part])], 6).double()
        one.prototypes, one.phi = both.prototypes[part], both.phi[part]
        one.assignment = both.assignment[g : g + 1] - part.start
        alone.append(one.contrast(q, index, 100, 0, 0))
    torch.testing.assert_close(both.contrast(q, index, 100, 0, 0), torch.stack(alone).mean())


# PCL


def forbidden(*_):
    raise AssertionError("swept")


def test_pcl_is_moco_while_it_warms_up():
    method = make("pcl", "test_resnet", warmup_share=0.5)
    method.prepare(clock(0), forbidden)
    out = method(batch(method), clock(0))
    torch.testing.assert_close(out.loss, queue_nce(*out.projections, method.queue.rows, 0.2))
    assert set(out.metrics) == {"info_nce"}


def test_pcl_clusters_at_the_start_of_every_epoch_after_the_warm_up():
    method = make("pcl", "test_resnet", warmup_share=0.3)
    for step in (0, 1, 2, 4, 5):
        method.prepare(clock(step), forbidden)
    for step in (3, 6):
        before = method.clusters.prototypes.clone()
        at = clock(step, total=9)
        method.prepare(at, sweep(method, at))
        assert not torch.equal(before, method.clusters.prototypes)


def test_pcl_adds_its_two_losses_and_trains_neither_prototypes_nor_keys():
    method = make("pcl", "test_resnet")
    method.prepare(clock(0), sweep(method, clock(0)))
    data = batch(method)
    out = method(data, clock(0))
    torch.testing.assert_close(out.loss.detach(), sum(out.metrics.values()))
    q, k = out.projections
    torch.testing.assert_close(out.metrics["info_nce"], queue_nce(q, k, method.queue.rows, 0.2))
    expected = method.clusters.contrast(q, data.index, 4, data.key.seed, data.key.step)
    torch.testing.assert_close(out.metrics["proto_nce"], expected.detach())
    assert not k.requires_grad
    assert not any(buffer.requires_grad for buffer in method.clusters.buffers())


def test_pcls_clusters_are_the_slow_encoders():
    method = make("pcl", "test_resnet")
    with torch.no_grad():
        for p in method.encoder.parameters():
            p.zero_()
    method.prepare(clock(0), sweep(method, clock(0)))
    other = make("pcl", "test_resnet")
    other.prepare(clock(0), sweep(other, clock(0)))
    assert torch.equal(method.clusters.assignment, other.clusters.assignment)
    assert len(other.clusters.assignment.unique()) > 6


def test_pcls_small_crops_are_queries():
    method = make("pcl", "test_resnet", warmup_share=0.5, multi_crop=2)
    data = batch(method)
    out = method(data, clock(0))
    k = out.projections[1]
    losses = []
    for view in (0, 2, 3):
        q = method.projector(method.encoder(data.views[view]))
        losses.append(queue_nce(q, k, method.queue.rows, 0.2))
    torch.testing.assert_close(out.loss, torch.stack(losses).mean())


@pytest.mark.parametrize(("samples", "granularities", "sizes"), [
    (1281167, 3, (25000, 50000, 100000)), (600, 3, (12, 24, 48)), (600, 1, (50,)),
    (9, 2, (2, 4)),
])  # fmt: skip
def test_pcls_clusters_fit_the_data_set(samples, granularities, sizes):
    encoder = create_encoder("test_resnet", size=64)
    with torch.device("meta"):
        method = PCL(encoder, samples=samples, queue=8, granularities=granularities, dim=4)
    assert method.clusters.sizes == sizes


def test_pcls_defaults_contrast_what_there_is():
    defaults = {"clusters": None, "granularities": 3, "negatives": 16384}
    method = make("pcl", "test_resnet", **defaults)
    method.prepare(clock(0), sweep(method, clock(0)))
    assert method.clusters.sizes == (2, 4, 8)
    assert method(batch(method), clock(0)).loss.isfinite()
    with pytest.raises(ConfigError, match=r"64 clusters of 48 images; lower .*granularities"):
        make("pcl", "test_resnet", **{**defaults, "granularities": 6})


def test_pcl_refuses_more_clusters_than_images():
    make("pcl", "test_resnet", clusters=12, granularities=3)
    with pytest.raises(ConfigError, match=r"96 clusters of 48 images; lower --method\.clusters"):
        make("pcl", "test_resnet", clusters=12, granularities=4)


@pytest.mark.parametrize(("options", "blur", "drops"), [
    ({}, 0.5, ()), ({"augment": "v1", "schedule": "steps"}, 0.0, (0.6, 0.8))
])  # fmt: skip
def test_pcls_versions(options, blur, drops):
    method = make("pcl", "test_resnet", **options)
    assert method.views[0].blur == blur
    assert method.recipe.drops == drops


# CPC v2


def test_a_context_knows_nothing_of_the_rows_below():
    context = row_context(5, 4, 3).double()
    x = normal(2, 5, 7, 7)
    before = context(x)
    x[:, :, 4, 3] += 1
    changed = (context(x) - before).abs().amax((0, 1)) > 1e-12
    assert not changed[:4].any()
    assert changed[4, 3]
    assert changed[5].any()
    assert changed[6].any()


def test_a_lower_patch_does_not_change_what_is_predicted_from_above(monkeypatch):
    method = make("cpc_v2", "test_vit", directions="down", gray=0.0)
    data = batch(method)
    seen = []
    monkeypatch.setattr(method, "contrast", lambda p, targets, at: seen.append(p) or p.sum())
    method(data, clock(0))
    data.views[0][:, :, 40:] += 1  # the rows of patches from 4 on
    method(data, clock(0))
    before, after = seen[:3], seen[3:]
    # No row predicts that sees a changed patch: its targets would lie beyond the image.
    assert [p.shape[1] for p in after] == [4, 3, 2]
    torch.testing.assert_close(before, after, atol=0, rtol=0)
    data.views[0][:, :, :8] += 1
    method(data, clock(0))
    method(data, clock(0))
    assert not torch.allclose(seen[0][:, 0], seen[6][:, 0])


@pytest.mark.parametrize(("directions", "moves"), [
    ("down", [(1, 0)]), ("vertical", [(1, 0), (-1, 0)]),
    ("all", [(1, 0), (0, -1), (-1, 0), (0, 1)]),
])  # fmt: skip
def test_predictions_lie_k_patches_away_in_each_direction(monkeypatch, directions, moves):
    method = make("cpc_v2", "test_vit", directions=directions)
    # Contexts and predictions that are the place of their own patch.
    place = torch.stack(torch.meshgrid(torch.arange(7.0), torch.arange(7.0), indexing="ij"), 2)
    places = place.view(49, 2).repeat(16, 1)
    width = method.encoder.dim
    method.norm = torch.nn.Identity()
    method.encoder.forward = lambda x: F.pad(places, (0, width - 2))
    method.contexts = torch.nn.ModuleList(torch.nn.Identity() for _ in moves)
    method.predictors = torch.nn.ModuleList(_Repeat(3) for _ in moves)
    found = []
    monkeypatch.setattr(
        method, "contrast",
        lambda p, targets, at: found.append(places[at.flatten()] - p.flatten(0, 2)[:, :2])
        or p.sum(),
    )  # fmt: skip
    method(batch(method), clock(0))
    steps = [torch.tensor(move) * k for move in moves for k in (3, 4, 5)]
    assert len(found) == len(steps)
    for distance, step, k in zip(found, steps, [3, 4, 5] * len(moves), strict=True):
        assert len(distance) == 16 * 7 * (7 - k)
        assert torch.equal(distance, step.float().expand_as(distance))


class _Repeat(torch.nn.Module):
    def __init__(self, times):
        super().__init__()
        self.times = times

    def forward(self, x):
        return x.repeat(1, 1, 1, self.times)


def test_predictions_of_nothing_cost_the_logarithm_of_all_patches():
    method = make("cpc_v2", "test_resnet", directions="vertical", steps=2)
    with torch.no_grad():
        for p in method.predictors.parameters():
            p.zero_()
    loss = method(batch(method), clock(0)).loss
    assert loss.item() == pytest.approx(4 * math.log(16 * 49), rel=1e-5)


def test_products_are_compared_without_normalising(monkeypatch):
    method = make("cpc_v2", "test_vit", directions="down", steps=1)
    given = []
    monkeypatch.setattr(cpc_v2, "info_nce", lambda *a, **k: given.append(a) or info_nce(*a, **k))
    loss = method(batch(method), clock(0)).loss
    ((p, targets, at),) = given
    torch.testing.assert_close(loss, F.cross_entropy(p @ targets.T / 10, at))


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_grey_patch_has_one_colour(share):
    method = make("cpc_v2", "test_vit", gray=share)
    data = batch(method)
    patches = grid(data.views[0], 16, 8)
    seen = method.decoloured(patches, data.key)
    kept = (seen == patches).flatten(2).all(2)
    assert ((seen == 0) | (seen == patches)).all()
    assert set(kept.sum(1).tolist()) == ({3} if share == 0 else {1} if share == 1 else {1, 3})
    assert (kept.sum(1) == 1).float().mean().item() == pytest.approx(share, abs=0.07)
    if share:
        of_each = kept[kept.sum(1) == 1].float().mean(0).tolist()
        assert of_each == pytest.approx([1 / 3] * 3, abs=0.1)


def test_cpc_encodes_patches_of_a_quarter_and_averages_them():
    method = make("cpc_v2", "test_vit", gray=0.0)
    data = batch(method)
    patches = torch.stack([data.views[0][:, :, y : y + 16, x : x + 16]
                           for y in range(0, 56, 8) for x in range(0, 56, 8)], 1)  # fmt: skip
    h = method.encoder(patches.flatten(0, 1)).view(16, 49, -1)
    out = method(data, clock(0))
    torch.testing.assert_close(out.embedding, h.mean(1), atol=1e-5, rtol=1e-4)


def test_cpc_refuses_what_leaves_nothing_to_predict():
    make("cpc_v2", "test_vit", skip=5, steps=1)
    with pytest.raises(ConfigError, match=r"--method\.skip or --method\.steps"):
        make("cpc_v2", "test_vit", skip=4, steps=3)
