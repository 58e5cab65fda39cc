"""Mixed images, their targets and erased boxes, against values worked out by hand and timm's."""

import numpy as np
import pytest
import torch
from timm.data.mixup import rand_bbox

from selfsight.evaluate.learners.mixing import cut, erased, mix, mixed, smooth


def batch(count=2, side=4):
    """Image i is i everywhere."""
    return torch.arange(count).float()[:, None, None, None].expand(count, 3, side, side).clone()


def test_smooth_targets():
    label = torch.tensor([1, 0])
    torch.testing.assert_close(smooth(label, 2), torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    expected = torch.tensor([[0.05, 0.85, 0.05, 0.05], [0.85, 0.05, 0.05, 0.05]])
    torch.testing.assert_close(smooth(label, 4, 0.2), expected)


def test_mixup_by_hand():
    x, target = mix(batch(), torch.eye(2), 0.75)
    assert x[0].unique().tolist() == [0.25]
    assert x[1].unique().tolist() == [0.75]
    torch.testing.assert_close(target, torch.tensor([[0.75, 0.25], [0.25, 0.75]]))


def test_cutmix_by_hand():
    # √(1 − 0.75) = 1/2: a box of 2 × 2 pixels about the pixel (2, 1).
    x, target = cut(batch(), torch.eye(2), 0.75, (0.5, 0.25))
    expected = torch.zeros(4, 4)
    expected[1:3, 0:2] = 1
    assert torch.equal(x[0], expected.expand(3, 4, 4))
    assert torch.equal(x[1], 1 - x[0])
    torch.testing.assert_close(target, torch.tensor([[0.75, 0.25], [0.25, 0.75]]))


def test_cutmix_counts_the_area_that_the_edge_leaves():
    x, target = cut(batch(), torch.eye(2), 0.75, (0.0, 0.0))
    assert x[0, 0].sum() == 1
    torch.testing.assert_close(target[0], torch.tensor([15 / 16, 1 / 16]))


def test_the_box_is_timms(monkeypatch):
    for share, down, right in ((0.3, 5, 17), (0.8, 30, 2), (0.01, 12, 16), (1.0, 3, 3)):
        drawn = iter((down, right))
        monkeypatch.setattr(np.random, "randint", lambda *_, size=None, d=drawn: next(d))
        top, bottom, left, end = rand_bbox((2, 3, 32, 24), share)
        x = torch.stack([torch.zeros(3, 32, 24), torch.ones(3, 32, 24)])
        found, target = cut(x, torch.eye(2), share, ((down + 0.5) / 32, (right + 0.5) / 24))
        expected = torch.zeros(32, 24)
        expected[top:bottom, left:end] = 1
        assert torch.equal(found[0, 0], expected)
        assert target[0, 1].item() == pytest.approx((bottom - top) * (end - left) / (32 * 24))


def draws(steps=200, **how):
    x = torch.stack([torch.zeros(3, 8, 8), torch.ones(3, 8, 8)])
    return [
        mixed(x, torch.eye(2), **{"mixup": 0.0, "cutmix": 0.0, "seed": 1, **how}, step=step)
        for step in range(steps)
    ]


def test_mixing_is_a_function_of_the_step():
    first, second = draws(mixup=0.8, cutmix=1.0), draws(mixup=0.8, cutmix=1.0)
    for (x, target), (x2, target2) in zip(first, second, strict=True):
        assert torch.equal(x, x2)
        assert torch.equal(target, target2)
        torch.testing.assert_close(target.sum(dim=1), torch.ones(2))
        # What an image shows of its partner is what its target says.
        assert x[0].mean().item() == pytest.approx(target[0, 1].item(), abs=1e-6)
    other = draws(mixup=0.8, cutmix=1.0, seed=2)
    assert not torch.equal(first[0][1], other[0][1])


def test_mixup_and_cutmix_take_turns():
    boxes = [len(x[0].unique()) == 2 for x, _ in draws(mixup=0.8, cutmix=1.0)]
    assert 70 < sum(boxes) < 130
    assert not any(len(x[0].unique()) == 2 for x, _ in draws(mixup=0.8))
    assert all(x[0].unique().tolist() in ([0], [1], [0, 1]) for x, _ in draws(cutmix=1.0))


def test_the_share_follows_its_law():
    share = torch.stack([target[0, 0] for _, target in draws(2000, mixup=0.2)])
    # Beta(α, α): mean 1/2, variance 1 / (4 (2α + 1)).
    assert share.mean().item() == pytest.approx(0.5, abs=0.04)
    assert share.var().item() == pytest.approx(1 / 5.6, abs=0.02)


def test_no_mixing_leaves_the_batch():
    x, target = batch(), torch.eye(2)
    assert mixed(x, target, mixup=0, cutmix=0, seed=0, step=0) == (x, target)
    assert erased(x, torch.arange(2), 0.0, 0) is x


def test_erased_boxes():
    x = torch.ones(400, 3, 32, 24)
    y = erased(x, torch.arange(400), 0.25, 7)
    gone = (y == 0).all(dim=1)
    assert torch.equal(gone, (y == 0).any(dim=1))
    hit = gone.any(dim=(1, 2))
    assert 70 < hit.sum() < 130
    for box in gone[hit]:
        rows, columns = box.any(dim=1), box.any(dim=0)
        assert torch.equal(box, rows[:, None] & columns)
        for line in (rows, columns):
            places = line.nonzero()[:, 0]
            assert places[-1] - places[0] + 1 == len(places)
        assert 0.01 < box.float().mean() < 0.37
    # By sample, wherever it stands in a batch.
    assert torch.equal(erased(x[:3], torch.arange(100, 103), 0.25, 7), y[100:103])
