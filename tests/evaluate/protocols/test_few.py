"""Few labels: which are drawn, that no other is looked at, and what is said of them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from selfsight.errors import ConfigError, DataError
from selfsight.evaluate import create, evaluate
from selfsight.evaluate.protocols.few import Few
from selfsight.evaluate.protocols.linear import LinearProbe
from selfsight.features import Features


def features(n: int, seed: int, noise: float = 1.5) -> Features:
    draw = np.random.default_rng(seed)
    y = np.sort(draw.choice(3, size=n, p=(0.6, 0.3, 0.1)))
    x = np.random.default_rng(9).normal(size=(3, 8))[y] + noise * draw.normal(size=(n, 8))
    path = tuple(f"photos/{'abc'[label]}/{i}.jpg" for i, label in enumerate(y))
    return Features(x.astype(np.float32), y, path, ("a", "b", "c"))


TRAIN, TEST = features(200, 0), features(90, 1)
COUNTS = np.bincount(TRAIN.label).tolist()


@pytest.mark.parametrize(
    ("labels", "wanted"),
    [
        (0.1, [max(1, round(0.1 * n)) for n in COUNTS]),
        (0.001, [1, 1, 1]),
        (1, [1, 1, 1]),
        (7, [7, 7, 7]),
    ],
)
def test_draws_of_each_class(labels: int | float, wanted: list[int]) -> None:
    draws = Few(labels).draw(TRAIN)
    assert len(draws) == 5
    for rows in draws:
        assert np.bincount(TRAIN.label[rows]).tolist() == wanted
        assert len(set(rows.tolist())) == len(rows)
    assert len({tuple(rows) for rows in draws}) == 5
    again, other = Few(labels).draw(TRAIN), Few(labels, seed=1).draw(TRAIN)
    assert all(np.array_equal(a, b) for a, b in zip(draws, again, strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(draws, other, strict=True))


def test_labels_that_were_not_drawn_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    few = Few(5, seeds=1)
    (rows,) = few.draw(TRAIN)
    before = few.measure(TRAIN, TEST)
    label = (TRAIN.label + 1) % 3
    label[rows] = TRAIN.label[rows]
    monkeypatch.setattr(few, "draw", lambda train: [rows])
    after = few.measure(replace(TRAIN, label=label), TEST)
    assert np.array_equal(before[0].each, after[0].each)
    assert before[0].json() == after[0].json()


def test_the_mean_over_draws_and_both_intervals() -> None:
    few = Few(4, seeds=4)
    shares = []
    for rows in few.draw(TRAIN):
        probe = LinearProbe(folds=5)
        probe.fit(TRAIN.embedding[rows], TRAIN.label[rows], TRAIN.embedding)
        shares.append(probe.score(TEST.embedding, TEST.label))
    accuracy, over = few.measure(TRAIN, TEST)
    assert (accuracy.name, accuracy.metric, accuracy.n) == ("few (4 per class)", "accuracy", 90)
    assert accuracy.value == pytest.approx(np.mean(shares))
    assert accuracy.each.mean() == pytest.approx(np.mean(shares))
    assert accuracy.low < accuracy.value < accuracy.high
    assert accuracy.details["images"] == [12] * 4
    assert len(accuracy.details["strength"]) == 4
    assert accuracy.details["tuned"] == [True] * 4
    assert np.sum(accuracy.details["confusion"]) == 4 * 90
    recall = accuracy.details["per_class"]
    confusion = np.array(accuracy.details["confusion"])
    assert recall["b"] == pytest.approx(confusion[1, 1] / confusion[1].sum())
    assert (over.metric, over.n) == ("over draws", 4)
    assert over.details["draws"] == pytest.approx(shares)
    # 3.1824 is Student's quantile for three degrees of freedom.
    half = 3.1824463 * np.std(shares, ddof=1) / 2
    assert (over.low, over.high) == pytest.approx((over.value - half, over.value + half))


def test_one_image_per_class_has_none_to_choose_by() -> None:
    score = Few(1, seeds=2).measure(TRAIN, TEST)[0]
    assert score.details["tuned"] == [False, False]
    assert score.details["strength"] == pytest.approx([0.01, 0.01])


def test_a_class_with_one_image_keeps_the_others_from_choosing() -> None:
    score = Few(0.03, seeds=2).measure(TRAIN, TEST)[0]
    assert min(np.bincount(TRAIN.label[Few(0.03).draw(TRAIN)[0]])) == 1
    assert score.details["tuned"] == [False, False]


def test_more_labels_are_better() -> None:
    one, many = (Few(k, seeds=3).measure(TRAIN, TEST)[0].value for k in (1, 15))
    assert many > one + 0.05


def test_top_five_of_many_classes() -> None:
    y = np.arange(60) % 7
    x = np.eye(7, dtype=np.float32)[y] + 0.01 * np.random.default_rng(0).normal(size=(60, 7))
    many = Features(x, y)
    assert [score.metric for score in Few(2, seeds=2).measure(many, many)] == [
        "accuracy", "top-5", "over draws",
    ]  # fmt: skip


def test_a_published_list(tmp_path: Path) -> None:
    rows = [0, 1, 150, 151, 152, 199]
    names = [TRAIN.path[i].rpartition("/")[2] for i in rows]
    file = tmp_path / "1percent.txt"
    file.write_text("\n".join([*names, "", names[0], "elsewhere.jpg"]) + "\r\n")
    report = evaluate(TRAIN, TEST, [create("few", labels=str(file))])
    (score,) = report.scores
    assert score.name == "few (1percent.txt, 6 labels)"
    assert (score.details["images"], score.details["unmatched"]) == ([6], 1)
    probe = LinearProbe([0.01])  # one class has a single image
    probe.fit(TRAIN.embedding[rows], TRAIN.label[rows], TRAIN.embedding)
    assert score.value == probe.score(TEST.embedding, TEST.label)
    assert np.isin(score.each, (0, 1)).all()


def test_a_list_names_as_much_of_a_path_as_it_needs(tmp_path: Path) -> None:
    path = tuple(f"root/{'ab'[i % 2]}/{i // 2}.jpg" for i in range(8))
    train = Features(np.random.default_rng(0).normal(size=(8, 3)), np.arange(8) % 2, path)
    file = tmp_path / "list.txt"
    file.write_text("a/1.jpg\n./b/3.jpg\nroot/b/0.jpg\n")
    assert Few(str(file)).draw(train)[0].tolist() == [1, 2, 7]
    file.write_text("a/1.jpg\n3.jpg\n")
    with pytest.raises(DataError, match=r"3.jpg may be root/a/3.jpg or root/b/3.jpg"):
        Few(str(file)).draw(train)
    file.write_text("a/1.jpg\na/2.jpg\n")
    with pytest.raises(DataError, match=r"list.txt names no image of class 1; each class"):
        Few(str(file)).draw(train)
    file.write_text("oot/a/1.jpg\n")
    with pytest.raises(DataError, match="names none of the 8 training images"):
        Few(str(file)).draw(train)


def test_refuses_what_it_cannot_use(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="class c has 30 training images; ask for at most 30"):
        Few(50).measure(TRAIN, TEST)
    for labels in (0, 0.0, 1.0, 2.5, -1):
        with pytest.raises(ConfigError, match="a share between 0 and 1, a whole number"):
            Few(labels)
    with pytest.raises(ConfigError, match=r"none.txt: No such file"):
        Few(str(tmp_path / "none.txt"))
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(DataError, match=r"empty.txt names no images"):
        Few(str(tmp_path / "empty.txt"))
    with pytest.raises(ConfigError, match=r"--few.labels 0 of few"):
        create("few", labels=0)
