"""The search against sorting all float64 similarities, where rounding, ties and sizes are bad."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from selfsight.evaluate.learners import neighbours
from selfsight.evaluate.learners.neighbours import Metric, Neighbours

ROWS, QUERIES, DIM = 700, 24, 21


def cases() -> Iterator[tuple[str, Tensor]]:
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw)

    def whole(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=draw)

    x = normal(ROWS, DIM)
    yield "normal", x
    yield "repeated rows", x[whole(0, 40, ROWS)]
    yield "all the same", x[:1].repeat(ROWS, 1)
    yield "near ties", x[:1] + 1e-6 * normal(ROWS, DIM)
    yield "far from the origin", x + 1e4
    yield "whole numbers", whole(-3, 4, ROWS, DIM).float()
    yield "bits", whole(0, 2, ROWS, DIM).float()
    yield "huge", 1e37 * x
    yield "tiny", 1e-40 * x
    yield "of all sizes", x * 10.0 ** whole(-30, 30, ROWS, 1)
    yield "empty rows", x * whole(0, 2, ROWS, 1)
    yield "rising", x[:1] + torch.linspace(0, 3, ROWS)[:, None] * x[1:2]
    yield "one channel", x[:, :1]
    yield "one row apart", torch.cat([x[:1], 1e3 * x[1:2].repeat(ROWS - 1, 1)])


CASES = dict(cases())


def sorted_all(
    q: Tensor, x: Tensor, k: int, metric: Metric, own: Tensor | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Similarities and numbers of the k nearest, from all of them in float64."""
    if metric == "cosine":
        q, x = neighbours._unit(q), neighbours._unit(x)
        near = q.double().numpy() @ x.double().numpy().T
    else:
        apart = q.double().numpy()[:, None] - x.double().numpy()
        near = -np.sqrt((apart**2).sum(2)).clip(max=np.finfo(np.float32).max)
    if x.dtype == torch.float32:
        near = near.astype(np.float32)
    if own is not None:
        near[np.arange(len(q)), own.numpy()] = -np.inf
    order = np.argsort(-near, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(near, order, 1), order


def found(
    q: Tensor, x: Tensor, k: int, metric: Metric, own: Tensor | None = None
) -> tuple[np.ndarray, np.ndarray]:
    blocks = list(Neighbours(x, metric).search(q, k, own))
    return tuple(torch.cat([block[i] for block in blocks]).numpy() for i in (1, 2))


@pytest.fixture(params=["bfloat16", "float32"])
def first(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """In what the scores are computed first, whatever this machine is good at."""
    monkeypatch.setattr(neighbours, "native_bf16", lambda _: request.param == "bfloat16")
    return request.param


@pytest.fixture(params=["room for all", "little room"])
def room(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Candidates all fit, or are cut down and given up in the middle of small blocks."""
    if request.param == "little room":
        monkeypatch.setattr(neighbours, "_room", lambda k: 2 * k + 2 * neighbours.LANES)
        monkeypatch.setattr(neighbours, "_ROWS", 150)
        monkeypatch.setattr(neighbours, "_QUERIES", 7)
        monkeypatch.setattr(neighbours, "_BLOCK", 5 * ROWS)
        monkeypatch.setattr(neighbours, "_PIECE", 33)
        monkeypatch.setattr(neighbours, "_STRETCH", 4 * 50 * DIM)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.usefixtures("first", "room")
def test_equals_sorting_everything(case: str, metric: Metric) -> None:
    x = CASES[case]
    size = x.abs().double().mean().float()
    between = size * torch.randn(
        QUERIES // 2, x.shape[1], generator=torch.Generator().manual_seed(1)
    )
    q, own = torch.cat([x[5 : 5 + QUERIES // 2], between]), torch.arange(5, 5 + QUERIES)
    for k in (1, 9, 60, ROWS - 1):
        for skipped in (None, own):
            expected = sorted_all(q, x, k, metric, skipped)
            near, number = found(q, x, k, metric, skipped)
            np.testing.assert_array_equal(number, expected[1])
            np.testing.assert_array_equal(near, expected[0])


def candidates(case: str, metric: Metric, kind: torch.dtype) -> np.ndarray:
    x = CASES[case]
    own = np.full(QUERIES, -1)
    return neighbours._approximation(x, metric, kind).candidates(x[:QUERIES], 9, own)[1]


def test_few_rows_are_compared_in_earnest() -> None:
    assert candidates("normal", "euclidean", torch.bfloat16).mean() < 20
    assert candidates("normal", "euclidean", torch.float32).mean() < 9.1
    # Rounding as they are would leave a thousandth of their length, which is all they differ by.
    assert candidates("far from the origin", "euclidean", torch.bfloat16).mean() < 20


def test_rows_that_are_all_alike_are_left_to_the_comparison() -> None:
    for kind in (torch.bfloat16, torch.float32):
        assert (candidates("all the same", "euclidean", kind) == ROWS).all()
        assert (candidates("huge", "euclidean", kind) == -1).all()


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("case", ["normal", "near ties", "far from the origin", "whole numbers"])
def test_scores_lie_within_their_error(case: str, metric: Metric, kind: torch.dtype) -> None:
    """Two scores of a query differ by what half the squared distances, or the cosines, differ
    by, up to the error; and the error is no more than ten times what occurs."""
    x = CASES[case] if metric == "euclidean" else neighbours._unit(CASES[case])
    made = neighbours._approximation(x, metric, kind)
    q, error = made._queries(x[:QUERIES])
    scores = q.double() @ made.rows.double().T
    if metric == "cosine":
        exact = x[:QUERIES].double() @ x.double().T
    else:
        apart = x[:QUERIES, None].double() - x.double()
        exact = -apart.square().sum(dim=2) / 2
    off = scores - exact
    spread = (off.amax(dim=1) - off.amin(dim=1)).numpy()
    assert (spread <= error).all()
    if case == "normal" and kind == torch.bfloat16:
        assert (spread > error / 10).all()


@pytest.mark.usefixtures("first")
def test_threads_change_nothing() -> None:
    x = CASES["near ties"]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = found(x[:QUERIES], x, 9, "cosine")
        torch.set_num_threads(5)
        several = found(x[:QUERIES], x, 9, "cosine")
    finally:
        torch.set_num_threads(before)
    for a, b in zip(one, several, strict=True):
        np.testing.assert_array_equal(a, b)


def test_reduced_float32_products_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "native_bf16", lambda _: False)
    x = CASES["rising"]
    expected = sorted_all(x[:QUERIES], x, 9, "cosine")
    exact = candidates("rising", "euclidean", torch.float32)
    settings = torch.backends.mkldnn.matmul
    before = settings.fp32_precision
    try:
        settings.fp32_precision = "bf16"
        near, number = found(x[:QUERIES], x, 9, "cosine")
        reduced = candidates("rising", "euclidean", torch.float32)
    finally:
        settings.fp32_precision = before
    np.testing.assert_array_equal(number, expected[1])
    np.testing.assert_array_equal(near, expected[0])
    assert reduced.mean() > exact.mean()


def test_float64_is_not_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "_BLOCK64", 5 * ROWS)
    x = CASES["whole numbers"].double()
    x[: ROWS // 2] += 2.0**-20  # less than float32 tells, and squares are exact
    own = torch.arange(QUERIES)
    for k in (30, ROWS - 1):
        expected = sorted_all(x[:QUERIES], x, k, "euclidean", own)
        near, number = found(x[:QUERIES], x, k, "euclidean", own)
        np.testing.assert_array_equal(number, expected[1])
        np.testing.assert_allclose(near, expected[0], rtol=1e-14)
    near, number = found(x[:QUERIES], x, 30, "cosine", own)
    expected = sorted_all(x[:QUERIES], x, 30, "cosine", own)
    np.testing.assert_allclose(near, expected[0], rtol=1e-14)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("case", ["normal", "repeated rows", "whole numbers", "huge", "empty rows"])
def test_an_accelerator_finds_the_same(case: str, metric: Metric) -> None:
    """It sorts products in float64, which any device can."""
    x, own = CASES[case], torch.arange(QUERIES)
    rows = Neighbours(x, metric)
    q = neighbours._unit(x[:QUERIES]) if metric == "cosine" else x[:QUERIES]
    for skipped in (None, own):
        near, number = rows._sorted(q, 30, skipped)
        expected = sorted_all(x[:QUERIES], x, 30, metric, skipped)
        np.testing.assert_array_equal(number, expected[1])
        np.testing.assert_array_equal(near, expected[0])


def test_lengths_do_not_count_for_the_cosine() -> None:
    """Not even where float32 does not hold their squares."""
    x = CASES["normal"]
    near, number = found(x[:QUERIES], x, 9, "cosine")
    for size in (1e-38, 1e30, 1e37):
        again, same = found(x[:QUERIES] * size, x * size, 9, "cosine")
        np.testing.assert_array_equal(same, number)
        np.testing.assert_allclose(again, near, rtol=1e-5)
