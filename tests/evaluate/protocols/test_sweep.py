"""The sweep of linear heads: each against the optimum it descends to, and what is chosen."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from selfsight.errors import ConfigError, Diverged
from selfsight.evaluate import evaluate
from selfsight.evaluate.protocols import sweep
from selfsight.evaluate.protocols.sweep import DECAYS, RATES, Sweep, descend
from selfsight.features import Features


def clusters(n: int, noise: float = 2.5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    y = draw.integers(4, size=n)
    fixed = np.random.default_rng(99)
    x = fixed.normal(size=(4, 12))[y] + noise * draw.normal(size=(n, 12))
    return (5 * x + 3).astype(np.float32), y


def plain(x: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x, and what leaves it as it is."""
    rows = torch.from_numpy(x)
    return rows, torch.zeros(x.shape[1]), torch.ones(x.shape[1])


def test_descends_to_scikit_learns_optimum() -> None:
    x, y = clusters(300)
    ours = Sweep((1.0,), (1e-2,), epochs=400, batch=300).fit(x, y)
    z = (x - x.mean(0, dtype=np.float64)) / x.std(0, dtype=np.float64)
    theirs = LogisticRegression(C=1 / (1e-2 * len(x)), tol=1e-8, max_iter=5000).fit(z, y)
    np.testing.assert_allclose(ours.weight.numpy(), theirs.coef_, atol=1e-3)
    bias = ours.bias.numpy() - ours.bias.numpy().mean()
    np.testing.assert_allclose(bias, theirs.intercept_ - theirs.intercept_.mean(), atol=1e-3)
    assert not ours.tuned
    assert not ours.at_edge


def test_the_best_of_the_sweep_is_as_good_as_the_best_optimum() -> None:
    (x, y), (test, test_y) = clusters(400), clusters(1000, seed=1)
    ours = Sweep(epochs=20, batch=64).fit(x, y)
    z, test_z = ((v - x.mean(0)) / x.std(0) for v in (x, test))
    best = max(
        LogisticRegression(C=c, max_iter=5000).fit(z, y).score(test_z, test_y)
        for c in 10.0 ** np.arange(-4, 3)
    )
    assert ours.score(test, test_y) > best - 0.02


def test_heads_side_by_side_equal_each_alone() -> None:
    x, y = clusters(100)
    grid = [(0.01, 0.0), (0.1, 1e-2), (3.0, 1e-3), (1e30, 1.0)]
    how = {"epochs": 3, "batch": 32, "seed": 5}
    together = descend(*[(v := plain(x))[0], torch.from_numpy(y)], *v[1:], grid, **how)
    assert not together[0][3].isfinite().all()  # and the others do not know of it
    for place, pair in enumerate(grid[:3]):
        alone = descend(*[(v := plain(x))[0], torch.from_numpy(y)], *v[1:], [pair], **how)
        for one, all_ in zip(alone, together, strict=True):
            torch.testing.assert_close(one[0], all_[place], rtol=1e-4, atol=1e-5)


def test_a_head_is_torchs_sgd() -> None:
    x, y = clusters(64)
    rows, mean, scale = plain(x / 10)
    weight, bias = descend(
        rows, torch.from_numpy(y), mean, scale, [(0.3, 0.05)], epochs=4, batch=64, seed=0
    )
    head = torch.nn.Linear(12, 4)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    groups = [{"params": [head.weight], "weight_decay": 0.05}, {"params": [head.bias]}]
    optimizer = torch.optim.SGD(groups, lr=0.3, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4)
    for _ in range(4):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(head(rows), torch.from_numpy(y)).backward()
        optimizer.step()
        schedule.step()
    torch.testing.assert_close(weight[0], head.weight.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(bias[0], head.bias.detach(), rtol=1e-4, atol=1e-5)


def test_chooses_on_a_fifth_and_reports_the_edge() -> None:
    x, y = clusters(200)
    ours = Sweep(epochs=5, batch=40).fit(x, y)
    assert len(ours.held_out) == len(RATES) * len(DECAYS)
    best = max(share for _, _, share in ours.held_out)
    assert (ours.rate, ours.decay, best) in ours.held_out
    assert ours.at_edge == (ours.rate in (RATES[0], RATES[-1]) or ours.decay == DECAYS[-1])
    assert Sweep((1e-8, 1e-7), (0.0,), epochs=1).fit(x, y).at_edge


@pytest.mark.parametrize(
    ("rate", "decay", "edge"),
    [
        (0.1, 1e-4, False),
        (1e-3, 1e-4, True),
        (1e2, 1e-4, True),
        (0.1, 1e-2, True),
        (0.1, 0.0, False),  # nothing is below no decay
    ],
)
def test_edges(rate: float, decay: float, edge: bool) -> None:
    ours = Sweep((1e-3, 0.1, 1e2), (0.0, 1e-4, 1e-2))
    ours.rate, ours.decay = rate, decay
    assert ours._edge() == edge


def test_of_equals_the_likelier() -> None:
    x, y = clusters(200, noise=0.01)  # all heads get all of it right
    ours = Sweep((1e-6, 1e-1), (0.0, 10.0), epochs=5, batch=40).fit(x, y)
    assert [share for _, _, share in ours.held_out] == [1, 1, 1, 1]
    assert (ours.rate, ours.decay) == (0.1, 0.0)


def test_the_scale_of_features_moves_the_rate_unless_standardised() -> None:
    x, y = clusters(200)
    rates = tuple(10.0**power for power in range(-6, 5))
    shares = {}
    for standardise in (True, False):
        for scale in (1.0, 1e-2):
            chosen = Sweep(rates, (0.0,), epochs=5, batch=40, standardise=standardise)
            shares[standardise, scale] = np.array(chosen.fit(scale * x, y).held_out)[:, 2]
    assert np.abs(shares[True, 1.0] - shares[True, 1e-2]).max() < 0.1
    # Shrinking features by 100 asks for a rate higher by 10⁴.
    assert np.abs(shares[False, 1.0] - shares[False, 1e-2]).max() > 0.2


def test_few_at_a_time_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = clusters(150)
    whole = Sweep(epochs=3, batch=32).fit(x, y)
    monkeypatch.setattr(sweep, "_WEIGHTS", 5 * 4 * 12)
    parts = Sweep(epochs=3, batch=32).fit(x, y)
    np.testing.assert_allclose(
        np.array(parts.held_out)[:, 2], np.array(whole.held_out)[:, 2], atol=0.04
    )


def test_is_deterministic_and_seeded() -> None:
    x, y = clusters(150)
    first, second, other = (
        Sweep((0.1,), (0.0,), epochs=2, batch=32, seed=s).fit(x, y) for s in (0, 0, 1)
    )
    assert torch.equal(first.weight, second.weight)
    assert not torch.equal(first.weight, other.weight)


def test_reports() -> None:
    (x, y), (test, test_y) = clusters(100), clusters(50, seed=1)
    report = evaluate(Features(x, y), Features(test, test_y), [Sweep(epochs=2, batch=16)])
    score = report["sweep"]
    found = {"rate", "decay", "at_edge", "tuned", "held_out"}
    assert found < set(score.details)
    assert score.name.startswith("sweep (lr=")
    assert (score.metric, score.n) == ("accuracy", 50)


def test_one_image_of_each_class_leaves_nothing_to_hold_out() -> None:
    x, _ = clusters(5)
    ours = Sweep(epochs=50).fit(x, np.arange(5))
    assert not ours.tuned
    assert ours.score(x, np.arange(5)) == 1


def test_refuses_what_it_cannot_use() -> None:
    x, y = clusters(60)
    for rates in ((), (0.0,), (-1.0,), (np.inf,)):
        with pytest.raises(ConfigError, match="rates > 0"):
            Sweep(rates)
    for decays in ((), (-1.0,), (np.nan,)):
        with pytest.raises(ConfigError, match="decays ≥ 0"):
            Sweep(decays=decays)
    with pytest.raises(Diverged, match="diverged at rate 1e\\+30"):
        Sweep((1e30, 1e35), (1.0,), epochs=3).fit(x, y)
