"""The contrastive losses' two forms agree, and neither holds what it need not."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import tensor

from selfsight.losses import chunks, info_nce, nt_xent, queue_nce, uniformity

PLAIN, CHUNKED = 1 << 60, 20  # logits held at once; 20 is two or three rows of those below


def normal(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def in_pairs(a, b):
    return nt_xent(a, b, 0.2)


def with_itself_excluded(a, b):
    z = torch.cat([b, a])
    positive = torch.arange(len(a)).roll(1)
    return info_nce(a, z, positive, temperature=0.3, exclude=torch.arange(len(a)) + len(b))


def among_all(a, b):
    return info_nce(a, b, torch.arange(len(a)).flip(0), temperature=0.5)


def with_a_queue(a, b):
    return queue_nce(a[:3], b[:3], torch.cat([a[3:], b[3:]]), 0.2)


LOSSES = [in_pairs, with_itself_excluded, among_all, with_a_queue]


def value_and_gradient(loss, *inputs):
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    value = loss(*inputs)
    return value.detach(), torch.stack(torch.autograd.grad(value, inputs))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("n", [4, 7])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_chunks_change_nothing(hold, loss, n, dtype, tolerance):
    z = normal(n, 5, dtype=dtype), normal(n, 5, seed=1, dtype=dtype)
    hold(PLAIN)
    value, gradient = value_and_gradient(loss, *z)
    hold(CHUNKED)
    chunked, chunked_gradient = value_and_gradient(loss, *z)
    torch.testing.assert_close(chunked, value, rtol=tolerance, atol=0)
    scale = gradient.abs().max().item()
    torch.testing.assert_close(chunked_gradient, gradient, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("held", [PLAIN, CHUNKED, 1])
def test_gradients_by_finite_differences(hold, loss, held):
    hold(held)
    z = normal(5, 4).requires_grad_(), normal(5, 4, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(loss, z)


@pytest.mark.parametrize("held", [PLAIN, CHUNKED])
@pytest.mark.parametrize("temperature", [0.004, 0.07, 100.0])
def test_extremes_stay_finite_and_right_in_float32(hold, held, temperature):
    hold(held)
    z = 1e15 * normal(6, 5, dtype=torch.float32), normal(6, 5, seed=1, dtype=torch.float32)
    for loss in (nt_xent, lambda a, b, t: queue_nce(a, b, b.flip(1), t)):
        value, gradient = value_and_gradient(lambda a, b, f=loss: f(a, b, temperature), *z)
        exact = loss(*(x.double() for x in z), temperature)
        assert gradient.isfinite().all()
        # A logit is as large as 1/τ, and is rounded by as much.
        bound = 1e-6 * (1 + 1 / temperature)
        torch.testing.assert_close(value.double(), exact, rtol=1e-6, atol=bound)


@pytest.mark.parametrize("held", [PLAIN, CHUNKED])
def test_limits(hold, held):
    hold(held)
    same = torch.ones(8, 4)
    assert nt_xent(same, same).item() == pytest.approx(math.log(2 * 8 - 1), rel=1e-6)
    queue = torch.ones(11, 4)
    assert queue_nce(same, same, queue).item() == pytest.approx(math.log(1 + 11), rel=1e-6)


@pytest.mark.parametrize("held", [PLAIN, 1])
def test_queue_nce_by_hand(hold, held):
    hold(held)
    q, k = tensor([[2.0, 0.0], [0.0, 3.0]]), tensor([[5.0, 0.0], [0.0, 1.0]])
    queue = tensor([[0.0, 1.0], [-4.0, 0.0]])
    # The first query sees its key at 1 and the queue at 0 and −1, the second at 1 and 0.
    first, second = math.log(math.e + 1 + 1 / math.e), math.log(math.e + math.e + 1)
    expected = -1 + (first + second) / 2
    assert queue_nce(q, k, queue, 1.0).item() == pytest.approx(expected, rel=1e-6)


def test_queue_nce_is_info_nce_of_one_query_and_all_its_candidates():
    q, k, queue = normal(1, 6), normal(1, 6, seed=1), normal(9, 6, seed=2)
    expected = info_nce(q, torch.cat([k, queue]), tensor([0]), temperature=0.07)
    torch.testing.assert_close(queue_nce(q, k, queue), expected)


@pytest.mark.parametrize("held", [PLAIN, CHUNKED])
def test_the_gradient_reaches_what_asks_for_it(hold, held):
    hold(held)
    q, k, queue = normal(6, 5).requires_grad_(), normal(6, 5, seed=1), normal(9, 5, seed=2)
    (alone,) = torch.autograd.grad(queue_nce(q, k, queue), q)
    everything = [x.detach().clone().requires_grad_() for x in (q, k, queue)]
    gradients = torch.autograd.grad(queue_nce(*everything), everything)
    torch.testing.assert_close(gradients[0], alone)
    assert all(g.abs().max() > 0 for g in gradients)


def test_no_tensor_is_as_large_as_all_logits(hold, largest_tensor):
    n, d, k, held = 128, 8, 1024, 2048
    z1, z2 = normal(n, d).requires_grad_(), normal(n, d, seed=1).requires_grad_()
    queue = normal(k, d, seed=2).requires_grad_()

    def sizes():
        pairs = largest_tensor(lambda: nt_xent(z1, z2).backward())
        return pairs, largest_tensor(lambda: queue_nce(z1, z2, queue).backward())

    hold(held)
    # A queue's chunk has a column more, and its normalised rows are held.
    pairs, queued = sizes()
    assert pairs <= held
    assert queued <= max(held // k * (k + 1), k * d)
    hold(PLAIN)
    pairs, queued = sizes()
    assert pairs >= (2 * n) ** 2
    assert queued >= n * k


def test_however_many_the_candidates_32_anchors_are_met_at_once(monkeypatch, largest_tensor):
    n, d, m = 100, 4, 512
    a, c = normal(n, d).requires_grad_(), normal(m, d, seed=1)
    monkeypatch.setattr(chunks, "_CHUNK", m - 1)
    assert [chunks.at_once(width) for width in (1, 7, m, 50 * m)] == [m - 1, 73, 32, 32]
    at = torch.arange(n)
    assert largest_tensor(lambda: info_nce(a, c, at).backward()) == 32 * m
    assert largest_tensor(lambda: uniformity(torch.cat([a] * 4), 2.0).backward()) == 32 * 4 * n


@pytest.mark.parametrize("held", [PLAIN, CHUNKED])
def test_half_precision_is_lifted(hold, held):
    hold(held)
    q, k, queue = (normal(6, 5, seed=s).bfloat16().requires_grad_() for s in range(3))
    with torch.autocast("cpu", torch.bfloat16):
        loss = queue_nce(q, k, queue)
    loss.backward()
    assert loss.dtype == torch.float32
    assert q.grad.dtype == torch.bfloat16
    torch.testing.assert_close(loss, queue_nce(q.float(), k.float(), queue.float()))


def test_the_plain_form_is_cross_entropy():
    z = F.normalize(normal(10, 5), dim=1)
    logits = (z @ z.T / 0.2).fill_diagonal_(-torch.inf)
    expected = F.cross_entropy(logits, torch.arange(10).roll(5))
    torch.testing.assert_close(nt_xent(z[:5], z[5:], 0.2), expected)
