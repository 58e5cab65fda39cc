"""Whitening matrices: what they do to a covariance, and what sets each apart."""

import pytest
import torch

from selfsight.errors import ConfigError
from selfsight.whitening import KINDS, whitening_matrix


def samples(n=50, d=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(d, d, generator=generator, dtype=torch.float64)
    return torch.randn(n, d, generator=generator, dtype=torch.float64) @ mix


def test_two_channels_by_hand():
    # Eigenvalues 9 and 1 along the diagonals; the first eigenvector is (1, 1)/√2.
    cov = torch.tensor([[5.0, 4.0], [4.0, 5.0]], dtype=torch.float64)
    root = 0.5**0.5
    expected = {
        "zca": [[2 / 3, -1 / 3], [-1 / 3, 2 / 3]],
        "pca": [[root / 3, root / 3], [-root, root]],
        "cholesky_lower": [[5**-0.5, 0.0], [-4 / 45**0.5, 5 / 45**0.5]],
        "cholesky": [[5 / 45**0.5, -4 / 45**0.5], [0.0, 5**-0.5]],
    }
    for kind, w in expected.items():
        torch.testing.assert_close(
            whitening_matrix(cov, kind), torch.tensor(w, dtype=torch.float64), msg=kind
        )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("d", [1, 2, 7])
def test_the_covariance_becomes_the_identity(kind, d):
    x = samples(d=d)
    cov = x.T.cov().reshape(d, d)
    w = whitening_matrix(cov, kind)
    torch.testing.assert_close(w @ cov @ w.T, torch.eye(d, dtype=torch.float64))
    z = (x - x.mean(0)) @ w.T
    torch.testing.assert_close(z.T.cov().reshape(d, d), torch.eye(d, dtype=torch.float64))


@pytest.mark.parametrize("kind", KINDS)
def test_scaling_a_channel_changes_only_what_depends_on_units(kind):
    cov = samples().T.cov()
    scale = torch.tensor([1.0, 10.0, 0.1, 3.0, 0.5], dtype=torch.float64)
    w = whitening_matrix(cov, kind)
    rescaled = whitening_matrix(cov * scale * scale[:, None], kind) * scale
    # The triangular forms hold with the correlation's factor too: scaling is diagonal.
    same = kind not in ("zca", "pca")
    assert torch.allclose(w, rescaled) == same


def test_zca_is_symmetric_and_closest():
    x = samples()
    cov = x.T.cov()
    matrices = {kind: whitening_matrix(cov, kind) for kind in KINDS}
    torch.testing.assert_close(matrices["zca"], matrices["zca"].T)
    moved = {kind: (x - x @ w.T).square().sum() for kind, w in matrices.items()}
    assert min(moved, key=moved.__getitem__) == "zca"
    # zca_cor is that for channels of unit variance.
    x = x / x.std(0)
    moved = {kind: (x - x @ (w * cov.diagonal().sqrt()).T).square().sum()
             for kind, w in matrices.items()}  # fmt: skip
    assert min(moved, key=moved.__getitem__) == "zca_cor"


@pytest.mark.parametrize(("kind", "scaled"), [("pca", False), ("pca_cor", True)])
def test_pca_orders_by_what_a_channel_explains_with_fixed_signs(kind, scaled):
    x = samples()
    cov = x.T.corrcoef() if scaled else x.T.cov()
    w = whitening_matrix(x.T.cov(), kind)
    w = w * x.std(0) if scaled else w
    explained = (w @ cov).square().sum(1)
    assert explained.diff().max() < 0
    assert (w.diagonal() > 0).all()


def test_the_cholesky_forms_are_triangular_and_differ():
    cov = samples().T.cov()
    upper, lower = whitening_matrix(cov, "cholesky"), whitening_matrix(cov, "cholesky_lower")
    assert torch.equal(upper, upper.triu())
    assert torch.equal(lower, lower.tril())
    assert not torch.allclose(upper.diagonal(), lower.diagonal())


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_flow(kind):
    cov = samples(d=3).T.cov().requires_grad_()

    def of_symmetric(c):
        return whitening_matrix((c + c.T) / 2, kind)

    assert torch.autograd.gradcheck(of_symmetric, cov)


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_is_computed_in_float32(kind):
    cov = samples().T.cov()
    half = cov.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        w = whitening_matrix(half, kind)
    assert w.dtype == torch.float32
    torch.testing.assert_close(w, whitening_matrix(half.float(), kind))
    assert whitening_matrix(cov, kind).dtype == torch.float64


def test_errors_say_what_to_do():
    with pytest.raises(ConfigError, match=r"unknown whitening zac; did you mean zca\?"):
        whitening_matrix(torch.eye(2), "zac")
    with pytest.raises(ConfigError, match=r"a covariance \(D, D\), got \(3, 2\)"):
        whitening_matrix(torch.ones(3, 2))
