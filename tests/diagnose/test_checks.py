"""The verdict on embeddings made to be healthy or not, and on histories that were measured."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from selfsight import meters
from selfsight.diagnose import Reading, verdict, verdicts
from selfsight.errors import ConfigError


def reading(x: Tensor, step: int = 0, loss: float | None = None) -> Reading:
    return Reading(
        step=step,
        spread=meters.spread(x).item(),
        rank=meters.effective_rank(x, centred=True).item(),
        dim=x.shape[1],
        n=len(x),
        loss=loss,
    )


def gauss(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def history(
    spread: list[float], rank: list[float], loss: list[float], *, n: int = 64, dim: int = 128
) -> list[Reading]:
    """spread in units of 1/√D."""
    return [
        Reading(step=50 * i, spread=s / math.sqrt(dim), rank=r, dim=dim, n=n, loss=value)
        for i, (s, r, value) in enumerate(zip(spread, rank, loss, strict=True))
    ]


SIZES = [(n, d) for n in (64, 256) for d in (128, 512, 2048)]

# Spread, rank and loss of short runs on 4,000 CIFAR-10 images, every 4, 8 or 12 steps; N = 64
# unless named otherwise. The limits were chosen with these runs in view.
HEALTHY = {
    "simclr (N=128)": (
        [0.79, 0.51, 0.45, 0.45, 0.48, 0.49],
        [66.7, 61.1, 46.5, 37.5, 37.4, 36.1],
        [5.56, 5.48, 5.39, 5.34, 5.36, 5.36],
    ),
    "byol (N=128)": (
        [0.80, 0.81, 0.83, 0.83, 0.84, 0.84],
        [76.3, 63.0, 42.5, 40.9, 38.5, 35.7],
        [4.01, 1.60, 1.61, 1.66, 1.69, 1.70],
    ),
    "swav": (
        [0.77, 0.80, 0.71, 0.61, 0.55, 0.49, 0.46, 0.44, 0.42, 0.41, 0.38],
        [41.8, 43.5, 40.6, 37.0, 36.0, 33.1, 30.9, 27.0, 30.7, 26.6, 26.9],
        [6.02, 5.97, 5.86, 5.81, 5.77, 5.73, 5.74, 5.71, 5.72, 5.70, 5.72],
    ),
    "simsiam": (
        [1.00, 1.00, 1.00, 1.00, 1.00, 1.00, 0.99, 1.00],
        [51.1, 48.9, 48.3, 48.4, 47.1, 48.0, 44.1, 45.8],
        [-0.00, -0.01, -0.01, -0.02, -0.03, -0.04, -0.05, -0.06],
    ),
    "vicreg": (
        [0.81, 0.84, 0.69, 0.54, 0.46, 0.45, 0.43, 0.43, 0.43],
        [50.9, 51.9, 52.4, 49.7, 51.0, 49.8, 51.0, 50.0, 50.7],
        [26.31, 23.25, 22.44, 22.31, 21.90, 22.09, 22.17, 22.23, 22.07],
    ),
    "moco without BatchNorm": (
        [0.78, 0.45, 0.50, 0.47, 0.46, 0.47, 0.50, 0.45],
        [37.5, 27.6, 17.7, 16.0, 16.5, 15.2, 15.6, 15.5],
        [8.91, 7.96, 8.12, 7.94, 8.12, 7.61, 7.79, 8.03],
    ),
}
MAE_H = (
    [0.65, 0.61, 0.56, 0.48, 0.40, 0.36, 0.39, 0.30],
    [28.2, 11.8, 6.8, 6.7, 6.8, 7.1, 7.1, 7.7],
    [0.95, 0.95, 0.76, 0.73, 0.74, 0.77, 0.75, 0.77],
)
# SimSiam without stop-gradient: BatchNorm at the end keeps the spread up to the last.
NO_STOP_GRADIENT = (
    [
        1.00,
        1.00,
        1.00,
        1.00,
        0.98,
        0.96,
        0.91,
        0.90,
        0.86,
        0.76,
        0.76,
        0.76,
        0.75,
        0.72,
        0.63,
        0.61,
        0.66,
        0.60,
    ],
    [
        51.1,
        49.2,
        48.4,
        46.9,
        40.8,
        38.8,
        28.0,
        25.6,
        19.6,
        14.8,
        13.5,
        14.5,
        12.9,
        9.1,
        8.8,
        6.4,
        5.4,
        5.9,
    ],
    [
        -0.00,
        -0.00,
        -0.02,
        -0.04,
        -0.12,
        -0.19,
        -0.30,
        -0.41,
        -0.50,
        -0.55,
        -0.54,
        -0.59,
        -0.62,
        -0.64,
        -0.69,
        -0.70,
        -0.76,
        -0.76,
    ],
)
# First epochs of ablations on 10,000 CIFAR-10 images, every 39 steps, N = 64.
COLLAPSED = {
    "simsiam without stop-gradient": (
        [0.997, 0.791, 0.632, 0.525, 0.555], [51.6, 14.6, 4.2, 3.6, 3.0],
        [-0.01, -0.57, -0.84, -0.87, -0.8], "dimensional collapse",
    ),
    "byol without predictor": (
        [0.779, 0.082, 0.058, 0.052, 0.05], [43.4, 15.0, 10.8, 9.7, 8.4],
        [3.98, 0.05, 0.02, 0.01, 0.01], "complete collapse",
    ),
    "dino without centring": (
        [0.581, 0.076, 0.047, 0.046, 0.046], [36.8, 7.1, 4.1, 4.9, 4.2],
        [5.74, 0.08, 0.0, 0.0, 0.0], "complete collapse",
    ),
    "dino without sharpening": (
        [0.581, 0.075, 0.044, 0.038, 0.036], [36.8, 6.1, 3.6, 4.0, 3.5],
        [6.09, 6.21, 6.24, 6.24, 6.24], "complete collapse",
    ),
    "swav without equipartition": (
        [0.773, 0.13, 0.103, 0.099, 0.098], [42.8, 17.0, 8.6, 10.8, 9.3],
        [4.44, 0.01, 0.01, 0.0, 0.0], "complete collapse",
    ),
}  # fmt: skip
# Ten epochs of what learned on the same images, its lowest readings among them.
LEARNED = {
    "dino": (
        [0.58, 0.19, 0.29, 0.34, 0.33, 0.31, 0.29], [36.8, 7.4, 5.3, 4.0, 4.0, 4.4, 4.2],
        [5.74, 6.22, 6.06, 5.99, 5.95, 5.96, 5.86],
    ),
    "swav": (
        [0.78, 0.422, 0.386, 0.515, 0.396, 0.46, 0.478], [39.4, 30.9, 18.3, 8.4, 7.1, 7.5, 7.6],
        [4.82, 4.57, 4.47, 4.32, 4.4, 4.25, 4.12],
    ),
    "deepcluster_v2": (
        [0.78, 0.799, 0.749, 0.343, 0.459, 0.563, 0.609], [47.3, 38.4, 27.9, 11.5, 9.1, 9.4, 9.8],
        [4.59, 4.44, 4.35, 4.31, 4.1, 4.02, 3.56],
    ),
}  # fmt: skip
# DINO's first steps: few directions, but a loss that stands still.
DINO_START = (
    [0.65, 0.14, 0.15, 0.22, 0.15, 0.14],
    [23.3, 8.5, 4.5, 3.6, 3.8, 3.7],
    [6.59, 6.50, 6.51, 6.65, 6.77, 6.81],
)


class TestHealthy:
    @pytest.mark.parametrize(("n", "d"), SIZES)
    def test_isotropic_and_clustered(self, n: int, d: int) -> None:
        clusters = gauss(10, d, 1)[torch.arange(n) % 10] * 2 + gauss(n, d)
        for x in (gauss(n, d), clusters, clusters.relu(), (gauss(n, d) + 2).relu()):
            for name in ("h", "z"):
                assert verdict([reading(x, i) for i in range(3)], name).state == "healthy"

    @pytest.mark.parametrize("name", HEALTHY)
    def test_first_epochs_at_every_step(self, name: str) -> None:
        n = 128 if "128" in name else 64
        readings = history(*HEALTHY[name], n=n)
        for stop in range(3, len(readings) + 1):
            assert verdict(readings[:stop], "z").state == "healthy"

    @pytest.mark.parametrize("name", LEARNED)
    def test_what_learned_is_never_called_collapsed(self, name: str) -> None:
        readings = history(*LEARNED[name])
        for stop in range(3, len(readings) + 1):
            assert verdict(readings[:stop], "z").state in ("healthy", "uncertain")

    def test_masked_modelling_at_every_step(self) -> None:
        readings = history(*MAE_H, dim=192)
        for stop in range(3, len(readings) + 1):
            assert verdict(readings[:stop], "h").state == "healthy"

    def test_it_says_that_healthy_is_not_useful(self) -> None:
        found = verdict([reading(gauss(64, 128), i) for i in range(3)])
        assert "not the same as useful" in found.advice
        assert "\n" not in str(found)


class TestCollapse:
    @pytest.mark.parametrize(("n", "d"), SIZES)
    @pytest.mark.parametrize("noise", [0.0, 1e-6, 1e-3])
    @pytest.mark.parametrize("name", ["h", "z"])
    def test_a_constant_with_noise(self, n: int, d: int, noise: float, name: str) -> None:
        x = 1 + noise * gauss(n, d)
        found = verdict([reading(x, i) for i in range(3)], name)  # type: ignore[arg-type]
        assert found.state == "complete collapse"

    def test_a_spread_that_vanishes_or_vanished_long_ago(self) -> None:
        spread = [0.8, 0.3, 0.04, 0.03, 0.03]
        readings = history(spread, [40.0] * 5, [4, 3, 1, 0, 0])
        assert verdict(readings, "z").state == "complete collapse"
        assert verdict(readings[:4], "z").state == "healthy"  # two low readings may be chance
        always = history([0.03] * 20, [40.0] * 20, [4.0] * 20)
        assert verdict(always[:19], "z").state == "uncertain"
        assert verdict(always, "z").state == "complete collapse"

    def test_one_direction(self) -> None:
        line = gauss(64, 1) @ gauss(1, 128, 1) + 1e-4 * gauss(64, 128, 2)
        readings = [reading(gauss(64, 128)), *(reading(line, i) for i in range(1, 4))]
        assert verdict(readings, "z").state == "complete collapse"
        assert verdict(readings, "h").state == "complete collapse"

    @pytest.mark.parametrize(("n", "d"), SIZES)
    def test_five_directions(self, n: int, d: int) -> None:
        x = gauss(n, 5) @ gauss(5, d, 1)
        readings = [reading(gauss(n, d), 0), *(reading(x, i) for i in range(1, 4))]
        assert verdict(readings, "z").state == "dimensional collapse"
        # Few from the start on is no proof: DINO's z uses four while it learns.
        assert verdict([reading(x)] * 20, "z").state == "uncertain"

    @pytest.mark.parametrize("name", COLLAPSED)
    def test_within_the_first_epoch(self, name: str) -> None:
        *measured, state = COLLAPSED[name]
        assert verdict(history(*measured), "z").state == state

    def test_what_shrinks_to_nothing_unnoticed_by_its_direction(self) -> None:
        """VICReg without its variance term."""
        readings = history([0.8, 0.4, 0.34, 0.33], [50.0] * 4, [8.1, 0.1, 0.02, 0.01])
        scales = [0.5, 0.02, 0.006, 0.004]
        shrinking = [replace(r, scale=c) for r, c in zip(readings, scales, strict=True)]
        assert verdict(readings, "z").state == "healthy"
        assert verdict(shrinking[:3], "z").state == "healthy"  # two low readings may be chance
        assert verdict(shrinking, "z").state == "complete collapse"
        assert verdict(shrinking, "h").state == "healthy"

    def test_without_stop_gradient(self) -> None:
        readings = history(*NO_STOP_GRADIENT, dim=1024)
        assert verdict(readings, "z").state == "dimensional collapse"
        assert verdict(readings[:4], "z").state == "healthy"

    def test_evidence_has_numbers_and_limits(self) -> None:
        found = verdict(history(*NO_STOP_GRADIENT, dim=1024), "z")
        assert "centred rank 5.9 of 63 (limit 7.56; 51.1 at first) at step 850" in found.evidence
        assert "spread·√D 0.6 (limit 0.18)" in found.evidence
        assert found.advice


class TestUncertain:
    def test_a_start_without_progress(self) -> None:
        assert verdict(history(*DINO_START), "z").state == "uncertain"

    def test_a_recovery(self) -> None:
        rank = [40.0, 5.0, 4.0, 4.5, 5.5]
        assert verdict(history([0.5] * 5, rank, [4, 3, 2, 1, 1]), "z").state == "uncertain"

    def test_too_little_to_go_by(self) -> None:
        x = gauss(64, 128)
        assert verdict([], "z").state == "uncertain"
        assert verdict([reading(x)] * 2, "z").state == "uncertain"
        assert verdict([reading(x[:31])] * 3, "z").state == "uncertain"
        assert verdict([reading(x[:, :7])] * 3, "z").state == "uncertain"


class TestDiverging:
    @pytest.mark.parametrize("loss", [math.nan, math.inf])
    def test_a_loss_that_is_no_number(self, loss: float) -> None:
        x = reading(gauss(64, 128))
        found = verdict([replace(x, loss=1.0), replace(x, loss=loss)], "z")
        assert found.state == "diverging"
        assert str(loss) in found.evidence

    def test_an_embedding_that_is_no_number(self) -> None:
        x = reading(gauss(64, 128))
        assert verdict([x, x, replace(x, spread=math.nan)], "h").state == "diverging"

    def test_a_loss_that_rose_far(self) -> None:
        x = reading(gauss(64, 128))
        rose = [replace(x, loss=value) for value in (4.0, 3.0, 3.0, 20.0, 30.0, 50.0)]
        assert verdict(rose, "z").state == "diverging"
        dipped = [replace(x, loss=value) for value in (4.0, 0.1, 0.1, 1.5, 2.0, 1.8)]
        assert verdict(dipped, "z").state == "healthy"
        spike = [replace(x, loss=value) for value in (4.0, 3.0, 3.0, 3.0, 90.0, 3.0)]
        assert verdict(spike, "z").state == "healthy"


class TestRows:
    def row(self, step: int, **more: object) -> dict[str, object]:
        x = gauss(64, 128, step)
        values: dict[str, object] = {"step": step, "loss": 1.0}
        for name in "hz":
            values |= {
                f"{name}_samples": 64,
                f"{name}_dim": 128,
                f"{name}_spread": meters.spread(x).item(),
                f"{name}_centred_rank": meters.effective_rank(x, centred=True).item(),
            }
        return values | more

    def test_h_and_z(self) -> None:
        rows = [self.row(0), {"step": 1, "loss": 1.0}, self.row(2), self.row(3)]
        found = verdicts(rows)
        assert {name: v.state for name, v in found.items()} == {"h": "healthy", "z": "healthy"}
        assert verdicts(rows[:3])["h"].state == "uncertain"

    def test_no_projection_no_verdict_on_it(self) -> None:
        rows = [
            {key: value for key, value in self.row(i).items() if not key.startswith("z")}
            for i in range(3)
        ]
        assert list(verdicts(rows)) == ["h"]
        assert verdicts([])["h"].state == "uncertain"

    def test_null_is_not_a_number(self) -> None:
        rows = [self.row(0), self.row(1), self.row(2, loss=None)]
        assert verdicts(rows)["h"].state == "diverging"
        rows = [self.row(0), self.row(1), self.row(2, z_spread=None)]
        assert verdicts(rows)["z"].state == "diverging"

    def test_rejected_to_the_end(self) -> None:
        rows = [self.row(i) for i in range(4)]
        rejected = [{"step": i, "rejected": True, "samples": [1]} for i in range(4, 7)]
        assert verdicts([*rows, *rejected])["z"].state == "diverging"
        assert verdicts([*rows, *rejected, self.row(7)])["z"].state == "healthy"


def test_unknown_name() -> None:
    with pytest.raises(ConfigError, match="unknown embedding p; known: h, z"):
        verdict([], "p")  # type: ignore[arg-type]


def test_untrained_network_is_not_called_collapsed() -> None:
    """Random convolutions, ReLU and pooling, without normalisation: nearly one direction."""
    torch.manual_seed(0)
    layers: list[torch.nn.Module] = []
    for a, b in ((3, 32), (32, 64), (64, 128), (128, 256)):
        layers += [torch.nn.Conv2d(a, b, 3, stride=2, padding=1), torch.nn.ReLU()]
    network = torch.nn.Sequential(*layers, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    draw = np.random.default_rng(0)
    # Smooth images of different brightness, as photographs are.
    coarse = torch.from_numpy(draw.random((64, 3, 4, 4), np.float32))
    x = torch.nn.functional.interpolate(coarse, size=32, mode="bilinear") - 0.5
    with torch.no_grad():
        h = network(x)
    assert verdict([reading(h, i) for i in range(3)], "h").state in ("healthy", "uncertain")
