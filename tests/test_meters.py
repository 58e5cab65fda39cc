"""Meters against values worked by hand, and against the published definitions."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from selfsight import meters

GOLDEN = os.environ.get("SELFSIGHT_GOLDEN")
golden = pytest.mark.skipif(not GOLDEN, reason="SELFSIGHT_GOLDEN is not set")


def gauss(n: int, d: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator, dtype=torch.float64)


def records(method: str) -> list[tuple[dict, dict, dict]]:
    """(record, inputs, outputs) of every stored run of `method`."""
    folder = Path(str(GOLDEN))
    found = []
    for record in json.loads((folder / "index.json").read_text())["records"]:
        if record["method"] == method:
            with np.load(folder / record["file"], allow_pickle=False) as arrays:
                inputs = {name: arrays[key] for name, key in record["inputs"].items()}
                outputs = {name: arrays[key] for name, key in record["outputs"].items()}
            found.append((record, inputs, outputs))
    assert found
    return found


class TestSpread:
    def test_isotropic_is_one_over_root_d(self) -> None:
        assert meters.spread(gauss(4000, 64)).item() == pytest.approx(1 / 8, rel=0.01)

    def test_collapsed_is_zero(self) -> None:
        assert meters.spread(torch.ones(16, 8)).item() == pytest.approx(0, abs=1e-7)

    def test_by_hand(self) -> None:
        z = torch.tensor([[3.0, 0.0], [0.0, 5.0]])  # ẑ = e1, e2: deviation √½ in both
        assert meters.spread(z).item() == pytest.approx(math.sqrt(0.5))

    @golden
    def test_golden(self) -> None:
        for _, inputs, outputs in records("std_of_l2_normalized"):
            value = meters.spread(torch.from_numpy(inputs["x"])).item()
            assert value == pytest.approx(float(outputs["value"]), rel=1e-9)


class TestEffectiveRank:
    def test_counts_equal_directions(self) -> None:
        assert meters.effective_rank(5 * torch.eye(7)).item() == pytest.approx(7, rel=1e-4)

    def test_by_hand(self) -> None:
        p = torch.tensor([0.75, 0.25])
        value = math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
        assert meters.effective_rank(p.diag()).item() == pytest.approx(value, rel=1e-5)

    def test_centring_separates_the_mean_from_the_directions(self) -> None:
        x = gauss(256, 16) * 0.01
        x[:, 0] += 100
        assert meters.effective_rank(x).item() < 1.1
        assert meters.effective_rank(x, centred=True).item() > 15

    def test_constant_is_not_an_error(self) -> None:
        x = torch.zeros(8, 4)
        assert meters.effective_rank(x).isfinite()
        assert meters.effective_rank(x, centred=True).isfinite()

    def test_not_finite_gives_nan(self) -> None:
        x = gauss(8, 4)
        x[3, 2] = torch.inf
        assert meters.effective_rank(x).isnan()

    @golden
    def test_golden(self) -> None:
        compared = 0
        for record, inputs, outputs in records("rankme"):
            x = torch.from_numpy(inputs["x"])
            variants = {
                "rankme": meters.effective_rank(x, eps=1e-5),
                "effective_rank": meters.effective_rank(x, eps=0.0),
                "rankme_eps1e7": meters.effective_rank(x),
                "rankme_centered_eps1e7": meters.effective_rank(x, centred=True),
            }
            for name, stored in outputs.items():
                assert variants[name].item() == pytest.approx(float(stored), rel=1e-8), record
                compared += 1
        assert compared


class TestCorrelation:
    def test_equals_the_correlation_matrix(self) -> None:
        x = gauss(50, 12) @ gauss(12, 12, seed=1)
        matrix = np.corrcoef(x.numpy().T)
        expected = np.abs(matrix[~np.eye(12, dtype=bool)]).mean()
        assert meters.correlation(x).item() == pytest.approx(expected, rel=1e-12)

    def test_blocks_change_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        x = gauss(20, 11)
        whole = meters.correlation(x)
        monkeypatch.setattr(meters, "_BLOCK", 3)
        assert meters.correlation(x).item() == pytest.approx(whole.item(), rel=1e-12)

    def test_constant_channels_are_left_out(self) -> None:
        x = gauss(50, 4).float()
        padded = torch.cat([x, torch.full((50, 2), 0.1)], dim=1)
        assert meters.correlation(padded).item() == pytest.approx(meters.correlation(x).item())

    @pytest.mark.parametrize("x", [torch.ones(8, 4), torch.arange(8.0)[:, None]])
    def test_without_two_channels_it_is_zero(self, x: Tensor) -> None:
        assert meters.correlation(x).item() == 0

    def test_nan_shows(self) -> None:
        x = gauss(8, 4)
        x[0, 0] = torch.nan
        assert meters.correlation(x).isnan()


class TestAlignmentAndUniformity:
    def test_alignment_by_hand(self) -> None:
        a, b = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0, 3.0], [0.0, 4.0]])
        assert meters.alignment(a, b).item() == pytest.approx(1.0)  # 2 and 0

    def test_uniformity_by_hand(self) -> None:
        z = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-1.0, 0.0]])  # squared distances 2, 4, 2
        expected = math.log((2 * math.exp(-4) + math.exp(-8)) / 3)
        assert meters.uniformity(z).item() == pytest.approx(expected, rel=1e-5)
        assert meters.uniformity(torch.ones(5, 3)).item() == pytest.approx(0, abs=1e-5)

    @pytest.mark.parametrize("bad", [torch.nan, torch.inf])
    def test_what_is_not_finite_gives_nan(self, bad: float) -> None:
        z = gauss(8, 4)
        z[3, 2] = bad
        assert meters.alignment(z, z.flip(0)).isnan()
        assert meters.uniformity(z).isnan()
        assert meters.uniformity(z[:1]).isnan()

    @golden
    def test_golden(self) -> None:
        compared = 0
        for record, inputs, outputs in records("align_uniform"):
            z1, z2 = (torch.from_numpy(inputs[name]) for name in ("z1", "z2"))
            hyper = record["hyper_parameters"]
            if "uniform_z1" in outputs:
                value = meters.uniformity(z1, t=hyper["t"]).item()
                assert value == pytest.approx(float(outputs["uniform_z1"]), rel=1e-9)
                compared += 1
            if "align" in outputs:
                value = meters.alignment(z1, z2, alpha=hyper["alpha"]).item()
                assert value == pytest.approx(float(outputs["align"]), rel=1e-9, abs=1e-12)
                compared += 1
        assert compared


class TestAll:
    def test_entropy(self) -> None:
        p = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25]])
        assert meters.entropy(p).tolist() == pytest.approx([0, math.log(4)])

    @pytest.mark.parametrize(
        "meter", [meters.spread, meters.effective_rank, meters.correlation, meters.uniformity]
    )
    def test_half_precision_is_lifted_and_autocast_is_off(self, meter) -> None:
        x = gauss(32, 16).to(torch.bfloat16)
        with torch.autocast("cpu", torch.bfloat16):
            value = meter(x)
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(meter(x.float()).item(), rel=1e-6)

    @pytest.mark.parametrize(
        "meter", [meters.spread, meters.effective_rank, meters.correlation, meters.uniformity]
    )
    def test_differentiates(self, meter) -> None:
        x = gauss(6, 4).requires_grad_()
        assert torch.autograd.gradcheck(meter, (x,))


def test_scale_is_that_of_the_embedding_itself() -> None:
    z = torch.tensor([[0.0, 1.0], [2.0, 1.0]])
    assert meters.scale(z).item() == pytest.approx(2**0.5 / 2)
    assert meters.scale(3 * z + 5).item() == pytest.approx(3 * 2**0.5 / 2)
