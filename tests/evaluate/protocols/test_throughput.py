"""Images per second: what is counted, and that nothing is left changed."""

import math
import time

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from selfsight.data.base import Arrays
from selfsight.encoders import create_encoder
from selfsight.errors import ConfigError, DataError
from selfsight.evaluate import PROTOCOLS, Sight, judge
from selfsight.evaluate.protocols.throughput import Throughput, median_interval

IMAGES = np.random.default_rng(0).integers(256, size=(5, 20, 24, 3), dtype=np.uint8)


def sight(**settings: object) -> Sight:
    return Sight(create_encoder("test_resnet", size=16, seed=0), 16, **settings)


def test_reports_what_it_ran_on() -> None:
    subject = sight(precision="bf16")
    subject.encoder.train()
    (score,) = judge(subject, IMAGES, [Throughput(batch=7, seconds=0.01, repeats=6)]).scores
    assert score.metric == "images/s"
    assert score.name == "throughput (cpu, bf16, batch=7)"
    assert score.n == len(score.details["rates"]) == 6
    # Of six the interval at 95% goes from the least to the most.
    assert (score.low, score.high) == (min(score.details["rates"]), max(score.details["rates"]))
    assert score.low <= score.value <= score.high
    facts = {name: score.details[name] for name in ("device", "threads", "precision", "size")}
    assert facts == {
        "device": "cpu", "threads": torch.get_num_threads(), "precision": "bf16", "size": 16,
    }  # fmt: skip
    assert subject.encoder.training


def test_counts_images_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock on which a batch takes a quarter of a second, a slow turn half of one."""
    now, calls, seen = [0.0], [0], []
    subject = sight()

    def embed(self: nn.Module, x: Tensor) -> Tensor:
        seen.append((self.training, tuple(x.shape), torch.is_grad_enabled()))
        calls[0] += 1
        now[0] += 0.5 if calls[0] > 24 else 0.25
        return x

    monkeypatch.setattr(type(subject.encoder), "forward", embed)
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    train, test = Throughput().open(Arrays("five", IMAGES))
    (score,) = Throughput(batch=8, seconds=0.9, repeats=6).measure(subject, train, test)
    # One call, four that warm up, and six times four, of which the last five calls are slow.
    assert calls[0] == 1 + 4 + 24
    assert score.details["rates"] == pytest.approx([32, 32, 32, 32, 8 * 4 / 1.25, 16])
    assert score.value == 32
    assert set(seen) == {(False, (8, 3, 16, 16), False)}


def test_the_encoder_sees_the_images_that_embedding_shows_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    subject, seen = sight(), []
    kind = type(subject.encoder)
    forward = kind.forward
    monkeypatch.setattr(kind, "forward", lambda self, x: seen.append(x) or forward(self, x))
    source = Arrays("five", IMAGES)
    subject.embed(source)
    Throughput(batch=7, seconds=0.001, repeats=6).measure(subject, source, source)
    embedded, timed = seen[0], seen[-1]
    torch.testing.assert_close(timed[:5], embedded, rtol=0, atol=0)
    torch.testing.assert_close(timed[5:], embedded[:2], rtol=0, atol=0)
    assert timed.is_contiguous(memory_format=torch.channels_last)


def test_needs_neither_labels_nor_two_images() -> None:
    (score,) = judge(sight(), IMAGES[:1], [Throughput(1, 0.001, 6)]).scores
    assert score.value > 0


@pytest.mark.parametrize(
    ("n", "places"), [(5, None), (6, (0, 5)), (8, (0, 7)), (9, (1, 7)), (20, (5, 14))]
)
def test_interval_of_a_median(n: int, places: tuple[int, int] | None) -> None:
    """By the table of the sign test."""
    values = [float(i * i) for i in range(n)]
    expected = (-math.inf, math.inf) if places is None else tuple(values[i] for i in places)
    assert median_interval(values[::-1]) == expected


def test_refuses_what_it_cannot_use() -> None:
    with pytest.raises(ConfigError, match="repeats ≥ 6"):
        Throughput(repeats=5)
    with pytest.raises(ConfigError, match="seconds > 0"):
        Throughput(seconds=0.0)
    empty = Arrays("none", IMAGES[:0])
    with pytest.raises(DataError, match="none holds no images"):
        Throughput().measure(sight(), empty, empty)


def test_is_known_by_name() -> None:
    assert PROTOCOLS["throughput"] == "selfsight.evaluate.protocols.throughput:Throughput"
