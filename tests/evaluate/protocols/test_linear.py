"""The linear probe against scikit-learn, and on features that are hard to fit."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from selfsight.errors import ConfigError, DataError
from selfsight.evaluate.learners import probe
from selfsight.evaluate.learners.probe import fifth
from selfsight.evaluate.protocols import linear
from selfsight.evaluate.protocols.linear import STRENGTHS, LinearProbe


def clusters(
    n: int, d: int = 24, classes: int = 4, noise: float = 1.5, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    y = draw.integers(classes, size=n)
    fixed = np.random.default_rng(99)
    x = fixed.normal(size=(classes, d))[y] + noise * draw.normal(size=(n, d))
    return (x @ fixed.normal(size=(d, d)) + 3).astype(np.float32), y


def standardised(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    return (x - x.mean(0)) / x.std(0)


@pytest.mark.parametrize("strength", [1e-4, 1e-2, 1.0])
def test_equals_scikit_learn(strength: float) -> None:
    (x, y), (test, test_y) = clusters(600), clusters(1000, seed=1)
    ours = LinearProbe([strength]).fit(x, y)
    theirs = LogisticRegression(C=1 / (strength * len(x)), tol=1e-8, max_iter=5000)
    theirs.fit(standardised(x), y)
    scale = np.abs(theirs.coef_).max()
    np.testing.assert_allclose(ours.weight.numpy(), theirs.coef_, atol=1e-2 * scale)
    # The loss leaves a common shift of the biases open.
    bias = ours.bias.numpy() - ours.bias.numpy().mean()
    np.testing.assert_allclose(bias, theirs.intercept_ - theirs.intercept_.mean(), atol=1e-2)
    their_x = (test - x.mean(0, dtype=np.float64)) / x.std(0, dtype=np.float64)
    assert ours.score(test, test_y) == pytest.approx(theirs.score(their_x, test_y), abs=0.005)
    assert ours.converged
    assert not ours.tuned
    assert not ours.at_edge


def test_more_channels_than_samples_equals_scikit_learn() -> None:
    x, y = clusters(40, d=100)
    ours = LinearProbe([1e-2]).fit(x, y)
    theirs = LogisticRegression(C=1 / (1e-2 * 40), tol=1e-8, max_iter=5000)
    theirs.fit(standardised(x), y)
    np.testing.assert_allclose(ours.weight.numpy(), theirs.coef_, atol=1e-2)
    assert ours.converged


def test_binary_is_no_special_case() -> None:
    x, y = clusters(200, classes=2)
    ours = LinearProbe([0.1]).fit(x, y)
    # Two rows of opposite sign share scikit-learn's single one; their penalty is half.
    theirs = LogisticRegression(C=2 / (0.1 * 200), tol=1e-8, max_iter=5000)
    theirs.fit(standardised(x), y)
    difference = (ours.weight[1] - ours.weight[0]).numpy()
    np.testing.assert_allclose(difference, theirs.coef_[0], atol=1e-2)


def test_chooses_on_training_features_and_reports_the_edge() -> None:
    (x, y), (test, test_y) = clusters(400, noise=4.0), clusters(1000, noise=4.0, seed=1)
    best = max(LinearProbe([s]).fit(x, y).score(test, test_y) for s in STRENGTHS)
    for folds in (1, 5):
        ours = LinearProbe(folds=folds).fit(x, y)
        assert ours.tuned
        assert ours.strength in STRENGTHS
        assert ours.at_edge == (ours.strength in (STRENGTHS[0], STRENGTHS[-1]))
        assert ours.score(test, test_y) > best - 0.05
    low = LinearProbe([1e-5, 1e-4]).fit(x, y)  # both far too weak
    assert low.at_edge


def test_the_split_is_seeded_and_keeps_every_class() -> None:
    y = torch.tensor([0] * 10 + [1] * 2 + [2])
    fitted, held = fifth(y, 3)
    assert sorted([*fitted.tolist(), *held.tolist()]) == list(range(13))
    assert torch.bincount(y[fitted]).tolist() == [8, 1, 1]
    assert torch.bincount(y[held]).tolist() == [2, 1]
    assert fifth(y, 3)[1].tolist() == held.tolist()
    assert fifth(y, 4)[1].tolist() != held.tolist()


def test_five_fifths_hold_out_every_image_once() -> None:
    y = torch.tensor([0] * 9 + [1] * 3 + [2])
    splits = [fifth(y, 0, number) for number in range(5)]
    assert sorted(torch.cat([held for _, held in splits]).tolist()) == list(range(12))
    for fitted, held in splits:
        assert sorted([*fitted.tolist(), *held.tolist()]) == list(range(13))


def test_one_image_of_each_class_leaves_nothing_to_hold_out() -> None:
    x, _ = clusters(5)
    ours = LinearProbe().fit(x, np.arange(5))
    assert not ours.tuned
    assert ours.score(x, np.arange(5)) == 1


def test_may_be_standardised_by_other_images() -> None:
    (x, y), (others, _) = clusters(8, d=4, classes=2), clusters(500, d=4)
    ours = LinearProbe([1e-2]).fit(x, y, others)
    np.testing.assert_allclose(ours.mean.numpy(), others.mean(0), rtol=1e-5)
    np.testing.assert_allclose(ours.scale.numpy(), others.std(0), rtol=1e-5)
    z = (x - others.mean(0, dtype=np.float64)) / others.std(0, dtype=np.float64)
    # Already standardised: by two points of deviation 1 about 0.
    poles = np.concatenate([np.ones((1, 4)), -np.ones((1, 4))])
    theirs = LinearProbe([1e-2]).fit(z, y, poles)
    np.testing.assert_allclose(ours.weight.numpy(), theirs.weight.numpy(), atol=1e-3)


def test_class_numbers_need_not_be_consecutive() -> None:
    x, y = clusters(300, noise=0.3)
    numbers = np.array([2, 3, 11, 40])[y]
    assert LinearProbe().fit(x, numbers).score(x, numbers) > 0.99


def test_constant_and_badly_scaled_channels() -> None:
    x, y = clusters(300, noise=0.3)
    plain = LinearProbe([0.01]).fit(x, y)
    padded = np.concatenate([x, np.full((300, 2), 0.1, np.float32)], axis=1)
    ours = LinearProbe([0.01]).fit(padded, y)
    assert ours.weight[:, -2:].abs().max() < 1e-4
    np.testing.assert_allclose(ours.weight[:, :-2].numpy(), plain.weight.numpy(), atol=1e-3)
    huge = LinearProbe([0.01]).fit(x * 1e6 + 1e6, y)
    np.testing.assert_allclose(huge.weight.numpy(), plain.weight.numpy(), atol=1e-2)


def test_all_channels_constant_predicts_the_most_frequent_class() -> None:
    y = np.array([0, 1, 1, 1, 1, 0, 1, 1, 1, 1])
    assert (LinearProbe().fit(np.ones((10, 3)), y).predict(np.ones((4, 3))) == 1).all()


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = clusters(200)
    whole = LinearProbe([1e-2, 1e-1]).fit(x, y)
    monkeypatch.setattr(linear, "_BLOCK", 500)
    monkeypatch.setattr(probe, "_BLOCK", 500)
    parts = LinearProbe([1e-2, 1e-1]).fit(x, y)
    assert parts.strength == whole.strength
    np.testing.assert_allclose(parts.weight.numpy(), whole.weight.numpy(), atol=1e-3)


def test_is_deterministic() -> None:
    x, y = clusters(200)
    first, second = (LinearProbe().fit(x, y) for _ in range(2))
    assert torch.equal(first.weight, second.weight)
    assert first.strength == second.strength


def test_refuses_what_it_cannot_use() -> None:
    x, y = clusters(30)
    with pytest.raises(DataError, match="two classes or more"):
        LinearProbe().fit(x, np.zeros(30, int))
    broken = x.copy()
    broken[7, 0] = np.inf
    with pytest.raises(DataError, match=r"rows 7\)"):
        LinearProbe().fit(broken, y)
    with pytest.raises(DataError, match="24 channels, got 2"):
        LinearProbe([1.0]).fit(x, y).predict(x[:, :2])
    for strengths in ([], [0.0], [-1.0], [np.inf]):
        with pytest.raises(ConfigError, match="strengths > 0"):
            LinearProbe(strengths)
