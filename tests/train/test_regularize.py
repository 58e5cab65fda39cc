import numpy as np
import pytest
import torch

import selfsight
from selfsight.errors import ConfigError
from selfsight.losses import covariance_penalty, variance_hinge
from selfsight.train.regularize import Regularizer


def images():
    return np.random.default_rng(0).integers(0, 256, (32, 32, 32, 3), np.uint8)


def train(out, **options):
    return selfsight.pretrain(images(), out=out, encoder="test_resnet", size=32, epochs=2,
                              batch=16, quiet=True, **options)  # fmt: skip


def test_it_adds_the_weighed_terms():
    z = [torch.randn(16, 4, requires_grad=True), torch.randn(16, 4, requires_grad=True)]
    total = Regularizer(variance=3.0, covariance=0.5)(z)
    hinge = (variance_hinge(z[0]) + variance_hinge(z[1])) / 2
    penalty = covariance_penalty(z[0]) + covariance_penalty(z[1])
    torch.testing.assert_close(total, 3 * hinge + 0.5 * penalty)
    total.backward()
    assert z[0].grad.abs().sum() > 0


def test_without_weights_it_adds_nothing():
    assert Regularizer()([torch.ones(2, 2)]) == 0.0


def test_a_run_adds_and_records_them(tmp_path):
    plain = train(tmp_path / "plain", method="simsiam", options={"hidden": 16, "dim": 16})
    kept = train(tmp_path / "kept", method="simsiam", options={"hidden": 16, "dim": 16},
                 regularize={"covariance": 2.0})  # fmt: skip
    assert kept.config["regularize"] == {"covariance": 2.0}
    assert kept.metrics[0]["loss"] > plain.metrics[0]["loss"]


def test_what_has_no_projections_says_so(tmp_path):
    with pytest.raises(ConfigError, match="no projections"):
        selfsight.pretrain(images(), out=tmp_path / "run", method="mae", encoder="test_vit",
                           size=32, epochs=1, batch=16, quiet=True,
                           regularize={"variance": 1.0})  # fmt: skip


def test_a_misspelt_term_is_named(tmp_path):
    with pytest.raises(ConfigError, match="varance to regularize; did you mean variance"):
        train(tmp_path / "run", regularize={"varance": 1.0})


@pytest.mark.parametrize("term", ["variance", "covariance"])
def test_a_negative_weight_would_reward_collapse(tmp_path, term):
    with pytest.raises(ConfigError, match=rf"--regularize\.{term} -1\.0: must be 0 or more"):
        train(tmp_path / "run", regularize={term: -1.0})


def test_a_run_refused_in_its_first_step_leaves_nothing(tmp_path):
    for options in ({"norm_groups": 3}, {"norm_groups": 4}):
        out = tmp_path / "run"
        try:
            train(out, method="moco_v1", options={"queue": 32, **options})
        except ConfigError as error:
            assert "16 images, the batch or a part of it, do not divide into 3" in str(error)
            assert not out.exists()
    assert (out / "model").is_dir()
