"""Heads, teachers, memories, masks and clusters."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from selfsight import philox
from selfsight.heads import Decoder, Prototypes, mlp, sincos_positions
from selfsight.kmeans import spherical_kmeans
from selfsight.masking import BLOCKS, ORDERS
from selfsight.memory import Bank, Queue
from selfsight.momentum import Teacher
from selfsight.philox import Purpose


def kinds(net):
    return [type(layer).__name__ for layer in net]


def test_mlp_shapes_and_norms():
    assert kinds(mlp(8)) == []
    assert kinds(mlp(8, 4)) == ["Linear"]
    assert kinds(mlp(8, 6, 4)) == ["Linear", "BatchNorm1d", "ReLU", "Linear"]
    assert kinds(mlp(8, 6, 4, norm=False)) == ["Linear", "ReLU", "Linear"]
    net = mlp(8, 6, 4, bias=False, last_bias=False, last_norm="plain")
    assert net[0].bias is None
    assert net[3].bias is None
    assert not net[4].affine
    scaled = mlp(8, 4, last_norm="scale")[-1]
    assert scaled.weight.requires_grad
    assert not scaled.bias.requires_grad


def test_prototypes_are_cosines_and_return_to_the_sphere():
    heads = Prototypes(5, 3)
    z = torch.randn(4, 5)
    expected = F.cosine_similarity(z[:, None], heads.weight[None], dim=2)
    torch.testing.assert_close(heads(z), expected)
    with torch.no_grad():
        heads.weight.mul_(3)
    heads.normalize()
    torch.testing.assert_close(heads.weight.norm(dim=1), torch.ones(3))


def test_teacher_follows_parameters_but_not_buffers():
    teacher, student = Teacher(nn.BatchNorm1d(2)), nn.BatchNorm1d(2)
    with torch.no_grad():
        student.weight.fill_(3.0)
    student.running_mean.fill_(7.0)
    teacher.update(student, 0.75)
    assert teacher.network.weight.tolist() == [1.5, 1.5]
    assert teacher.network.running_mean.tolist() == [0, 0]
    assert not any(p.requires_grad for p in teacher.parameters())
    teacher.update(student, 0.0)
    assert teacher.network.weight.tolist() == [3, 3]
    teacher.update(nn.BatchNorm1d(2), 1.0)
    assert teacher.network.weight.tolist() == [3, 3]


def test_queue_is_first_in_first_out():
    queue = Queue(4, 1)
    queue.push(torch.tensor([[1.0], [2.0], [3.0]]))
    assert not queue.full
    queue.push(torch.tensor([[4.0], [5.0]]))
    assert queue.full
    assert queue.rows[:, 0].tolist() == [4, 5, 1, 2]
    assert not Queue(0, 1).full


def test_bank_writes_rows():
    bank = Bank(3, 2)
    bank.write(torch.tensor([2, 0]), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert bank.rows.tolist() == [[3, 4], [0, 0], [1, 2]]


def test_positions_are_distinct_unit_waves():
    p = sincos_positions(16, 3, 5)
    assert p.shape == (15, 16)
    assert torch.cdist(p, p).fill_diagonal_(1).min() > 0.01
    torch.testing.assert_close(p[0], torch.tensor([0.0, 1.0, 0.0, 1.0]).repeat_interleave(4))


def test_decoder_puts_tokens_where_they_came_from():
    decoder = Decoder(6, 8, depth=0, heads=2, out=8)
    nn.init.eye_(decoder.predict.weight)
    pooled, tokens = torch.randn(1, 6), torch.randn(1, 2, 6)
    keep = torch.tensor([[3, 1]])
    out = decoder(pooled, tokens, keep, (2, 2))
    swapped = decoder(pooled, tokens.flip(1), keep.flip(1), (2, 2))
    torch.testing.assert_close(out, swapped)
    moved = decoder(pooled, tokens, keep.flip(1), (2, 2))
    assert (moved - out)[0, [1, 3]].abs().max() > 1e-3
    torch.testing.assert_close(moved[0, [0, 2]], out[0, [0, 2]])


def draws(n, rows, columns):
    return philox.uniform(0, torch.arange(n), Purpose.MASK, rows * columns + 4 * BLOCKS)


@pytest.mark.parametrize("name", ORDERS)
def test_orders_are_permutations(name):
    order = ORDERS[name](draws(50, 7, 5), 7, 5)
    torch.testing.assert_close(order.sort(1).values, torch.arange(35).expand(50, -1))


def test_random_order_hides_every_patch_alike():
    hidden = ORDERS["random"](draws(4000, 4, 4), 4, 4)[:, 4:]
    share = torch.bincount(hidden.flatten(), minlength=16) / 4000
    assert (share - 0.75).abs().max() < 0.04


def test_grid_order_keeps_a_lattice():
    keep = ORDERS["grid"](draws(3, 4, 4), 4, 4)[:, :4]
    assert keep.sort(1).values.tolist() == [[0, 2, 8, 10]] * 3


def test_block_order_hides_neighbours():
    def touching(name):
        hidden = ORDERS[name](draws(200, 14, 14), 14, 14)[:, 98:]
        mask = torch.zeros(200, 196).scatter(1, hidden, 1.0).view(200, 14, 14)
        return (mask[:, :, 1:] * mask[:, :, :-1]).sum() / mask[:, :, 1:].sum()

    assert touching("random") < 0.55
    assert touching("block") > 0.75


def test_kmeans_finds_clusters_and_is_deterministic():
    centres = F.normalize(torch.randn(4, 16, generator=torch.Generator().manual_seed(0)), dim=1)
    truth = torch.arange(200) % 4
    x = centres[truth] + 0.05 * torch.randn(200, 16, generator=torch.Generator().manual_seed(1))
    found = [spherical_kmeans(x, 4, iterations=10, seed=0, draw=draw) for draw in range(5)]
    best = max(((F.normalize(x) * c[a]).sum(), i) for i, (c, a) in enumerate(found))[1]
    centroids, assignment = found[best]
    torch.testing.assert_close(centroids.norm(dim=1), torch.ones(4))
    assert len({(int(a), int(b)) for a, b in zip(truth, assignment, strict=True)}) == 4
    again = spherical_kmeans(x, 4, iterations=10, seed=0, draw=best)
    torch.testing.assert_close(again, found[best], rtol=0, atol=0)


def test_kmeans_keeps_an_empty_cluster_where_it_was():
    x = torch.eye(2).repeat(3, 1)
    centroids, assignment = spherical_kmeans(x, 4, iterations=3)
    assert centroids.isfinite().all()
    assert set(assignment.tolist()) <= set(range(4))
