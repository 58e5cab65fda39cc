"""DCL, debiased and hard negatives, the simple contrastive loss: what each method does."""

import json

import numpy as np
import pytest
import torch
from cases import BATCH, batch, clock, images, loader, make

import selfsight
from selfsight.data.base import Arrays
from selfsight.errors import DataError
from selfsight.losses import (
    cosine,
    coupling,
    debiased_nce,
    decoupled_nce,
    hard_nce,
    mises_fisher,
    nt_xent,
    simple_contrast,
)
from selfsight.methods.base import sides
from selfsight.methods.debiased import Debiased


def output(method, **changes):
    return method(batch(method, **changes), clock(0))


def gradient(method):
    params = [p for p in method.parameters() if p.requires_grad]
    return torch.cat([g.flatten() for g in torch.autograd.grad(output(method).loss, params)])


def test_dcl_adds_its_two_directions_or_averages_them():
    method = make("dcl", "test_resnet")
    out = output(method)
    expected = decoupled_nce(*sides(*out.projections), temperature=0.1)
    torch.testing.assert_close(out.loss, 2 * expected)
    torch.testing.assert_close(output(make("dcl", "test_resnet", mean=True)).loss, expected)


def test_dclw_weighs_the_pairs_of_the_batch():
    out = output(make("dcl", "test_resnet", weight="vmf", sigma=0.3))
    both = sides(*out.projections)
    s = cosine(*out.projections)
    weight = mises_fisher(s, s, 0.3).repeat(2)
    expected = decoupled_nce(*both, temperature=0.1, weight=weight)
    torch.testing.assert_close(out.loss, 2 * expected)
    assert not torch.allclose(out.loss, output(make("dcl", "test_resnet")).loss)


def test_dclws_stop_gradient_changes_the_gradient_alone():
    plain = make("dcl", "test_resnet", weight="vmf")
    stopped = make("dcl", "test_resnet", weight="vmf", stop_gradient=True)
    torch.testing.assert_close(output(stopped).loss, output(plain).loss)
    assert not torch.allclose(gradient(stopped), gradient(plain), rtol=0.1)


def test_simclr_and_dcl_tell_the_same_coupling_of_the_same_projections():
    told = []
    for name in ("simclr", "dcl"):
        out = output(make(name, "test_resnet", temperature=0.2))
        q = coupling(*sides(*out.projections), temperature=0.2)
        assert 0.1 < q.mean() < 0.99
        torch.testing.assert_close(out.metrics["coupling"], q.mean())
        variation = q.std(correction=0) / q.mean()
        torch.testing.assert_close(out.metrics["coupling_variation"], variation)
        assert not out.metrics["coupling"].requires_grad
        told.append(out.metrics)
    torch.testing.assert_close(*told)


@pytest.mark.parametrize("name", ["dcl", "debiased", "hcl", "simple_contrastive"])
def test_with_small_crops_the_first_two_views_are_compared_with_all(name):
    method = make(name, "test_resnet", multi_crop=2)
    out = output(method)
    z = out.projections
    assert len(z) == 4
    losses = []
    for i, j in [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3)]:
        both = sides(z[i], z[j])
        if name == "dcl":
            losses.append(2 * decoupled_nce(*both, temperature=0.1))
        elif name == "debiased":
            others = [torch.stack([z[v] for v in range(4) if v != k], 1) for k in (i, j)]
            losses.append(debiased_nce(*both, temperature=0.5, known=torch.cat(others)))
        elif name == "hcl":
            losses.append(debiased_nce(*both, temperature=0.5, beta=1.0))
        else:
            losses.append(simple_contrast(*both))
    torch.testing.assert_close(out.loss, torch.stack(losses).mean())


def test_debiased_and_hcl_reduce_to_simclr():
    out = output(make("debiased", "test_resnet", tau_plus=0.0))
    torch.testing.assert_close(out.loss, nt_xent(*out.projections, 0.5))
    plain = output(make("debiased", "test_resnet", tau_plus=0.2)).loss
    easy = output(make("hcl", "test_resnet", tau_plus=0.2, beta=0.0)).loss
    torch.testing.assert_close(easy, plain)
    assert not torch.allclose(output(make("hcl", "test_resnet", tau_plus=0.2)).loss, plain)
    hardless = output(make("hcl", "test_resnet", tau_plus=0.0, beta=0.0)).loss
    torch.testing.assert_close(hardless, out.loss)


def test_debiased_averages_all_positives_that_it_is_given():
    method = make("debiased", "test_resnet", positives=2)
    assert [view.count for view in method.views] == [3]
    out = output(method)
    z = out.projections
    assert len(z) == 3
    known = torch.cat([torch.stack([z[1], z[2]], 1), torch.stack([z[0], z[2]], 1)])
    first = debiased_nce(*sides(z[0], z[1]), temperature=0.5, known=known)
    torch.testing.assert_close(method.contrast(z, 0, 1, None), first)
    assert not torch.allclose(first, debiased_nce(*sides(z[0], z[1]), temperature=0.5))


def test_unbiased_leaves_the_own_class_out_and_estimates_nothing():
    method = make("debiased", "test_resnet", unbiased=True, tau_plus=0.3)
    assert method.supervised
    assert not Debiased.supervised
    assert not make("debiased", "test_resnet").supervised
    data = batch(method)
    out = method(data, clock(0))
    z = torch.nn.functional.normalize(torch.cat(out.projections), dim=1)
    labels = data.labels.repeat(2)
    s = z @ z.T / 0.5
    own_class = labels[:, None] == labels
    assert own_class.sum(1).unique().numel() > 1  # else a mean and a sum could not be told apart
    mean = s.masked_fill(own_class, -torch.inf).logsumexp(1) - (~own_class).sum(1).log()
    positive = s.diagonal(BATCH).repeat(2)
    expected = torch.nn.functional.softplus(np.log(2 * BATCH - 2) + mean - positive).mean()
    torch.testing.assert_close(out.loss, expected)


def test_unbiased_needs_labels_and_its_run_says_so(tmp_path):
    shown, labels = images(24), np.arange(24) % 3
    asked = {"method": "debiased", "encoder": "test_resnet", "size": 32, "epochs": 1, "batch": 8,
             "quiet": True}  # fmt: skip
    chosen = {"hidden": 16, "dim": 8}
    with pytest.raises(DataError, match="--labels"):
        selfsight.pretrain(Arrays("bare", shown), out=tmp_path / "bare",
                           options={**chosen, "unbiased": True}, **asked)  # fmt: skip
    records = []
    for unbiased in (True, False):
        run = selfsight.pretrain(
            Arrays("named", shown, labels), out=tmp_path / str(unbiased),
            options={**chosen, "unbiased": unbiased}, **asked,
        )  # fmt: skip
        records.append(json.loads((run.path / "run.json").read_text()))
    assert [record["supervised"] for record in records] == [True, False]
    assert records[0]["config"]["options"]["unbiased"] is True


def test_labels_reach_the_instance_that_asks_for_them():
    assert loader(make("debiased", "test_resnet", unbiased=True)).batch(0).labels is not None
    assert loader(make("debiased", "test_resnet")).batch(0).labels is None


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, lambda both: simple_contrast(*both)),
        ({"weight": 0.5}, lambda both: simple_contrast(*both, weight=0.5)),
        ({"hardest": 0.2}, lambda both: simple_contrast(*both, hardest=0.2)),
        ({"loss": "contrastive"}, lambda both: hard_nce(*both, temperature=0.1)),
        (
            {"loss": "contrastive", "hardest": 0.2, "temperature": 0.3},
            lambda both: hard_nce(*both, temperature=0.3, hardest=0.2),
        ),
    ],
)
def test_the_simple_contrastive_losses(options, expected):
    out = output(make("simple_contrastive", "test_resnet", **options))
    torch.testing.assert_close(out.loss, expected(sides(*out.projections)))
