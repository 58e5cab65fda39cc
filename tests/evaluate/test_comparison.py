"""What is called a difference, over test images and over seeds."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from selfsight.data.base import Arrays
from selfsight.encoders import create_encoder
from selfsight.errors import StorageError
from selfsight.evaluate import KNN, PROTOCOLS, create, options
from selfsight.evaluate.comparison import Comparison, Entry, compare, difference
from selfsight.evaluate.report import Judged, Report, Score
from selfsight.evaluate.statistics import bootstrap, interval, mean_interval, paired, spread, welch
from selfsight.evaluate.stored import (
    Evaluation,
    data_name,
    evaluations,
    images_mark,
    keep,
    read,
    read_folder,
    weights_mark,
)

DRAW = np.random.default_rng(0)


def accuracy(right: np.ndarray, **more: Any) -> Score:
    low, high = interval(right)
    return Score(
        "kNN", "knn", float(right.mean()), low, high, len(right), each=right, images="i", **more
    )


def mean(each: np.ndarray) -> Score:
    value = float(each.mean())
    return Score("r", "retrieval", value, *mean_interval(each), len(each), "mAP", each=each)


def drawn(x: np.ndarray) -> Score:
    draws = bootstrap(lambda rows: float(np.median(x[rows])), len(x), 200)
    return Score("m", "maps", float(np.median(x)), *spread(draws), len(x), "mIoU", draws=draws)


def entries(scores: list[Score], recipes: str = "", size: int = 32) -> list[Entry]:
    recipes = recipes or " " * len(scores)
    return [
        Entry(f"run{i}", Evaluation("set", Judged(size), (score,)), recipe.strip(), i)
        for i, (score, recipe) in enumerate(zip(scores, recipes, strict=True))
    ]


def right(share: float, n: int = 400, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(n) < share


def test_right_and_wrong_by_newcombe() -> None:
    a, b = right(0.8), right(0.5, seed=1)
    assert difference(accuracy(a), accuracy(b)) == paired(a, b)
    counted = mean(a.astype(float)), mean(b.astype(float))
    assert difference(*counted) == paired(a, b)


def test_other_numbers_by_their_differences() -> None:
    a = DRAW.random(50)
    b = a - 0.05 + 0.01 * DRAW.normal(size=50)
    found = difference(mean(a), mean(b))
    assert found is not None
    assert found.value == pytest.approx(a.mean() - b.mean())
    assert (found.low, found.high) == pytest.approx(mean_interval(a - b))
    # Their own intervals overlap by far: it is the pairs that tell.
    assert mean(a).low < mean(b).high
    assert found.significant


def test_draws_are_paired() -> None:
    x = DRAW.normal(size=80)
    a, b = drawn(x + 1), drawn(x)
    found = difference(a, b)
    assert found is not None
    assert (found.value, found.low, found.high) == pytest.approx((1, 1, 1))
    assert found.high - found.low < a.high - a.low


def test_what_cannot_be_paired() -> None:
    one = accuracy(right(0.8))
    for other in (
        accuracy(right(0.5, n=399)),
        accuracy(right(0.5), metric="top-5"),
        Score("kNN", "knn", 0.5, 0.4, 0.6, 400, images="i"),
        Score("kNN", "knn", 0.5, 0.4, 0.6, 400, images="j", each=right(0.5)),
    ):
        assert difference(one, other) is None
    told = compare(entries([one, Score("kNN", "knn", 0.5, 0.4, 0.6, 400, images="i")]))
    assert told.pairs[0].words == "cannot tell: the results of single test images are missing"
    assert told.differences()[0][1:4] == ("", "", "")


@pytest.mark.parametrize(("share", "words"), [(0.5, "a difference"), (0.79, "no difference shown")])
def test_the_words_of_two(share: float, words: str) -> None:
    told = compare(entries([accuracy(right(0.8)), accuracy(right(share, seed=1))]))
    (pair,) = told.pairs
    assert pair.words == words
    assert pair.difference is not None
    assert pair.difference.significant == (words == "a difference") == (pair.p < 0.05)
    assert (pair.over, pair.p) == ("test images", pair.adjusted)
    assert told.title == "knn, accuracy on set (n=400)"
    assert [note.partition(":")[0] for note in told.notes] == ["over test images"]
    assert words in str(told)


def test_an_encoder_does_not_differ_from_itself() -> None:
    for score in (accuracy(right(1.0)), mean(DRAW.random(9)), drawn(DRAW.normal(size=30))):
        (pair,) = compare(entries([score, score])).pairs
        assert pair.words == "no difference shown"
        assert pair.p == pytest.approx(1, abs=1e-9)


def test_several_comparisons_are_adjusted() -> None:
    # 64 against 46 of 100 is a difference alone; of three pairs one as wide comes by chance.
    shifted = [accuracy((np.arange(100) + 29 * i) % 100 < n) for i, n in enumerate((64, 46, 55))]
    two, three = compare(entries(shifted[:2])), compare(entries(shifted))
    (alone,), (among, *others) = two.pairs, three.pairs
    assert among.difference == alone.difference
    assert 0.05 / 3 < alone.p == among.p < 0.05
    assert among.adjusted == pytest.approx(3 * among.p)
    assert (alone.words, among.words) == ("a difference", "no difference shown")
    assert [pair.words for pair in others] == ["no difference shown"] * 2
    assert any("pairs of one table together (Holm)" in note for note in three.notes)
    assert not any("Holm" in note for note in two.notes)


def means(each: np.ndarray) -> list[Score]:
    """each: (encoders, n) numbers of images, of whose means only resamples are kept."""
    n = each.shape[1]
    often = np.random.default_rng(n).multinomial(n, np.full(n, 1 / n), size=1000)
    drawn = each @ often.T / n
    return [
        Score("m", "maps", float(row.mean()), 0, 1, n, "mIoU", images="i", draws=draws)
        for row, draws in zip(each, drawn, strict=True)
    ]


def test_draws_show_a_difference_among_many_pairs() -> None:
    # 2 of 1,001 is the least share of draws, and 28 times that is more than 0.05.
    noise = 0.05 * np.random.default_rng(0).normal(size=(8, 100))
    told = compare(entries(means(np.linspace(0.1, 0.8, 8)[:, None] + noise)))
    assert len(told.pairs) == 28
    assert {pair.words for pair in told.pairs} == {"a difference"}


@pytest.mark.parametrize("n", [12, 60])
def test_draws_without_a_difference_seldom_show_one_among_many_pairs(n: int) -> None:
    """Each image has its difficulty, which is skewed, and equal encoders differ at random."""
    draw, alarms = np.random.default_rng(n), []
    for _ in range(100):
        each = draw.exponential(size=n) * (1 + 0.3 * draw.normal(size=(8, n)))
        alarms.append(any(p.words == "a difference" for p in compare(entries(means(each))).pairs))
    # 5% of 100, and three binomial deviations.
    assert np.mean(alarms) < 0.05 + 3 * (0.05 * 0.95 / 100) ** 0.5


def test_runs_that_differ_only_in_their_seed_are_one_row() -> None:
    shares = [0.50, 0.52, 0.48, 0.80, 0.82, 0.84]
    scores = [accuracy(np.arange(100) < 100 * share) for share in shares]
    told = compare(entries(scores, "aaabbb"))
    assert [group.name for group in told.groups] == ["run0 (3 seeds)", "run3 (3 seeds)"]
    (pair,) = told.pairs
    expected = welch(shares[:3], shares[3:])
    assert pair.difference == expected
    assert (pair.over, pair.words) == ("seeds", "a difference")
    assert told.groups[0].value == pytest.approx(0.5)
    # t of 2 degrees of freedom is 4.303: 0.5 ± 4.303 · 0.02 / √3.
    assert told.groups[0].high == pytest.approx(0.5 + 4.3027 * 0.02 / 3**0.5, abs=1e-4)
    assert told.notes[0].startswith("over seeds")
    assert "run0 (3 seeds): run0, run1, run2" in told.notes
    assert "test images" not in {row[3] for row in told.values()}


def test_one_seed_is_not_compared_with_several() -> None:
    scores = [accuracy(right(share)) for share in (0.5, 0.6, 0.9)]
    told = compare(entries(scores, "aab"))
    assert told.pairs[0].words == "cannot tell: run2 has one seed, train more"
    assert [group.over for group in told.groups] == ["seeds", "test images"]
    assert compare(entries(scores, "aaa")).pairs == ()


def test_the_same_seed_twice_is_no_second_seed() -> None:
    scores = [accuracy(right(share)) for share in (0.5, 0.5)]
    twice = [Entry(f"run{i}", e.evaluation, "a", 7) for i, e in enumerate(entries(scores))]
    assert [group.over for group in compare(twice).groups] == ["test images", "test images"]


def test_sizes_that_differ_are_told() -> None:
    scores = [accuracy(right(0.5)), accuracy(right(0.6))]
    mixed = [entries(scores)[0], entries(scores, size=64)[1]]
    assert compare(mixed).notes[-1] == "the images were of different sizes: run0 32 px, run1 64 px"
    exact, old = (
        Entry(name, Evaluation("set", Judged(32, *how), (score,)), notes=("so",))
        for name, how, score in zip(
            "ab", (("fp32", "w", "1"), ("bf16", "w", "")), scores, strict=True
        )
    )
    assert compare([exact, old]).notes[1:] == (
        "the precisions differ: a fp32, b bf16",
        "the versions of selfsight differ: a 1, b ?",
        "a: so",
        "b: so",
    )


def test_json_holds_what_was_found() -> None:
    told = compare(entries([accuracy(right(0.8)), accuracy(right(0.5, seed=1))]))
    facts = json.loads(json.dumps(told.json()))
    assert facts["pairs"][0]["words"] == "a difference"
    assert facts["pairs"][0]["low"] > 0
    assert [run["members"] for run in facts["runs"]] == [["run0"], ["run1"]]
    assert isinstance(told, Comparison)


@pytest.mark.parametrize("make", [lambda: right(0.7, 13), lambda: DRAW.normal(size=13)])
def test_an_evaluation_comes_back_as_it_was(tmp_path: Path, make: Callable[[], Any]) -> None:
    each = make()
    score = Score(
        "n", "knn", float(each.mean()), -np.inf, 0.5, 13, details={"x": float("nan")},
        each=each, draws=np.array([0.5, np.nan]), options={"k": 5, "some": (1, 2)}, images="i",
    )  # fmt: skip
    other = Score("top", "knn", 0.5, 0, 1, 13, "top-5", options=score.options, images="i")
    first = evaluations(Report([score, other], Judged(32)), "set")
    assert len(first) == 1
    file = keep(first[0], tmp_path / "evaluations")
    assert list((tmp_path / "evaluations").iterdir()) == [file]
    (again,) = read(file)
    assert (again.key, again.digest, again.judged) == (
        first[0].key, first[0].digest, first[0].judged,
    )  # fmt: skip
    assert (again.score.low, again.score.high) == (-np.inf, 0.5)
    assert again.score.each is not None
    assert again.score.each.dtype == each.dtype
    np.testing.assert_array_equal(again.score.each, each)
    np.testing.assert_array_equal(again.score.draws, score.draws)  # type: ignore[arg-type]
    assert [one.metric for one in again.scores] == ["accuracy", "top-5"]
    wrapped = tmp_path / "out.json"
    wrapped.write_text(json.dumps({"subject": "x", "evaluations": [first[0].json()]}))
    assert read(wrapped)[0].key == again.key


def test_a_file_of_an_earlier_form_is_read(tmp_path: Path) -> None:
    document = Evaluation("set", Judged(32, "fp32", "w"), (accuracy(right(0.5, 9)),)).json()
    for name in ("precision", "weights", "version"):
        del document[name]
    (tmp_path / "e.json").write_text(json.dumps(document))
    assert read(tmp_path / "e.json")[0].judged == Judged(32, version="")


def test_another_precision_is_kept_beside_and_other_weights_replace(tmp_path: Path) -> None:
    scores = (accuracy(right(0.5)),)
    for judged in (Judged(32, "fp32", "a"), Judged(32, "bf16", "a"), Judged(32, "fp32", "b")):
        keep(Evaluation("set", judged, scores), tmp_path)
    assert {(one.judged.precision, one.judged.weights) for one in read_folder(tmp_path)} == {
        ("bf16", "a"),
        ("fp32", "b"),
    }


def test_a_mark_stands_for_weights_and_normalisation() -> None:
    one, same, other = (create_encoder("test_resnet", seed=seed) for seed in (0, 0, 1))
    assert weights_mark(one) == weights_mark(same) != weights_mark(other)
    same.mean = (0.0, 0.0, 0.0)
    assert weights_mark(same) != weights_mark(one)
    assert weights_mark(one.bfloat16()) not in ("", weights_mark(other))


def test_a_list_of_labels_is_what_it_names(tmp_path: Path) -> None:
    def marked(name: str, text: str) -> Any:
        (tmp_path / name).write_text(text)
        return create("few", labels=str(tmp_path / name)).options["labels"]

    first = marked("a.txt", "x/1.jpg\nx/2.jpg\n")
    assert marked("b.txt", "x/2.jpg\n\nx/1.jpg") == first
    assert marked("a.txt", "x/1.jpg\nx/3.jpg\n") != first
    assert create("few", labels=0.1).options["labels"] == 0.1


def test_the_newest_comes_first(tmp_path: Path) -> None:
    import os

    for number, k in enumerate((5, 3, 4)):
        score = accuracy(right(0.5), options={"k": k})
        file = keep(Evaluation("set", Judged(32), (score,)), tmp_path)
        os.utime(file, ns=(number, number))
    assert [one.score.options["k"] for one in read_folder(tmp_path)] == [4, 3, 5]
    assert read_folder(tmp_path / "none") == []


def damaged(change: Callable[[dict[str, Any]], object]) -> str:
    document = Evaluation("set", Judged(32), (accuracy(right(0.5, 9)),)).json()
    change(document)
    return json.dumps(document)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "[" * 100_000,
        '{"evaluations": []}',
        '{"format": "selfsight.evaluation.9"}',
        '{"evaluations": [3]}',
        damaged(lambda d: d.pop("scores")),
        damaged(lambda d: d.update(scores=[])),
        damaged(lambda d: d.update(size=True)),
        damaged(lambda d: d.update(weights=3)),
        damaged(lambda d: d["scores"][0].update(value="1")),
        damaged(lambda d: d["scores"][0].update(value=float("nan"))),
        damaged(lambda d: d["scores"][0].update(n=-1)),
        damaged(lambda d: d["scores"][0].update(name="x" * 100_000)),
        damaged(lambda d: d["scores"][0].update(options=[])),
        damaged(lambda d: d["scores"][0].update(draws="123")),
        damaged(lambda d: d["scores"][0]["each"].update(count=10**9)),
        damaged(lambda d: d["scores"][0]["each"].update(base64="?")),
        damaged(lambda d: d["scores"][0]["each"].update(base64=3)),
        damaged(lambda d: d["scores"][0]["each"].update(kind="object")),
    ],
    ids=range(21),
)
def test_a_damaged_file_is_told_in_one_line(tmp_path: Path, text: str) -> None:
    file = tmp_path / "e.json"
    file.write_text(text)
    with pytest.raises(StorageError, match=r"e\.json cannot be read as an evaluation") as caught:
        read(file)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    evaluation = Evaluation("set", Judged(32), (accuracy(right(0.5)),))
    with pytest.raises(StorageError, match="cannot write"):
        keep(evaluation, tmp_path / "file")
    with pytest.raises(StorageError, match="cannot read"):
        read(tmp_path / "none.json")


def test_a_mark_stands_for_images_labels_and_order() -> None:
    images = DRAW.integers(0, 255, (4, 8, 8, 3)).astype(np.uint8)
    labels = np.array([0, 1, 0, 1])

    def mark(x: np.ndarray, y: np.ndarray) -> str:
        return images_mark(Arrays("set", x, y, ("a", "b")), (1, "é\udcff", None, {"a": 2.5}))

    assert mark(images, labels) == mark(images.copy(), labels.copy()) != ""
    assert len({mark(images, labels), mark(images[::-1], labels), mark(images, labels[::-1])}) == 3
    other = labels.copy()
    other[0] = 1
    assert mark(images, other) != mark(images, labels)
    assert images_mark(object()) == ""
    assert data_name(images) == "array"
    assert data_name("synthetic") == "synthetic"


@pytest.mark.parametrize("name", PROTOCOLS)
def test_protocols_keep_their_options(name: str) -> None:
    assert set(create(name).options) == set(options(name))
    assert KNN(k=7).options["k"] == 7
