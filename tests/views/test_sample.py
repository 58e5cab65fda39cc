"""The table's distributions are torchvision's, and no draw depends on another's option."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from chance import BOUND, OURS, THEIRS, distance, draw
from torchvision.transforms import ColorJitter, RandomResizedCrop

from selfsight.errors import ConfigError, DataError
from selfsight.views.sample import COLUMNS, DRAWS, ORDERS, boxes, center, sample
from selfsight.views.spec import View

ALL_ON = View(
    size=32,
    jitter_p=0.7,
    **dict.fromkeys(
        ("flip", "rotate", "gray", "blur", "solarize", "equalize", "cutout", "noise", "sobel"), 0.3
    ),
)


def torchvision_crops(height: int, width: int, view: View, stretch: float = 1.0) -> np.ndarray:
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    scale, ratio = list(view.crop), [stretch * r for r in view.ratio]
    return np.array([RandomResizedCrop.get_params(image, scale, ratio) for _ in range(THEIRS)])


def crop_statistics(top, left, h, w, height, width) -> dict[str, np.ndarray]:
    return {
        "height": h,
        "width": w,
        "area": h * w,
        "ratio": w / h,
        "top": top,
        "left": left,
        "vertical slack": top / np.maximum(height - h, 1),
        "horizontal slack": left / np.maximum(width - w, 1),
    }


@pytest.mark.parametrize(
    ("height", "width", "view"),
    [
        (32, 32, View()),
        (300, 400, View(crop=(0.2, 1.0))),
        (400, 300, View(crop=(0.05, 0.14), ratio=(0.5, 3.0))),
        (60, 200, View(crop=(0.3, 1.0))),  # about half fall back
        (5, 7, View()),
    ],
)
def test_crops_are_distributed_as_torchvisions(height, width, view):
    table = draw(view, height, width)
    ours = crop_statistics(
        *(table[c].astype(float) for c in ("top", "left", "height", "width")), height, width
    )
    theirs = crop_statistics(*torchvision_crops(height, width, view).T, height, width)
    for name, values in ours.items():
        assert distance(values, theirs[name]) < BOUND, name


def test_the_crop_test_sees_a_ratio_that_is_off_by_a_twentieth():
    table = draw(View(), 300, 400)
    theirs = torchvision_crops(300, 400, View(), stretch=1.05)
    assert distance(table["width"] / table["height"], theirs[:, 3] / theirs[:, 2]) > BOUND


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 50), (50, 1), (2, 3), (1, 9000), (7, 5)])
@pytest.mark.parametrize("ratio", [(3 / 4, 4 / 3), (2.5, 3.0)])
def test_crops_lie_inside_images_of_any_shape(height, width, ratio):
    table = draw(View(ratio=ratio), height, width, n=500)
    assert (table["height"] >= 1).all()
    assert (table["width"] >= 1).all()
    assert (table["top"] >= 0).all()
    assert (table["left"] >= 0).all()
    assert (table["top"] + table["height"] <= height).all()
    assert (table["left"] + table["width"] <= width).all()


@pytest.mark.parametrize(("height", "width"), [(10, 1000), (1000, 10)])
def test_fallback_is_torchvisions_central_crop(height, width):
    view = View(crop=(1.0, 1.0))
    table = draw(view, height, width, n=3)
    expected = RandomResizedCrop.get_params(
        torch.empty(3, height, width), [1.0, 1.0], [3 / 4, 4 / 3]
    )
    assert [tuple(row[:4]) for row in table.values] == [expected] * 3


@pytest.mark.parametrize("strengths", [(0.8, 0.8, 0.8, 0.2), (1.5, 0.4, 0.2, 0.5)])
def test_jitter_is_distributed_as_torchvisions(strengths):
    b, c, s, h = strengths
    limits = [[max(0, 1 - x), 1 + x] for x in (b, c, s)] + [[-h, h]]
    torch.manual_seed(0)
    theirs = [ColorJitter.get_params(*limits) for _ in range(THEIRS)]
    table = draw(View(jitter=strengths, jitter_p=1.0))
    for number, name in enumerate(("brightness", "contrast", "saturation", "hue")):
        assert distance(table[name], np.array([t[1 + number] for t in theirs])) < BOUND, name
    order = ORDERS[table["order"].astype(int)]
    codes = (order * [64, 16, 4, 1]).sum(1)
    their_codes = np.array([(t[0].numpy() * [64, 16, 4, 1]).sum() for t in theirs])
    assert distance(codes, their_codes) < BOUND
    frequency = np.unique(codes, return_counts=True)[1] / OURS
    assert len(frequency) == 24
    assert np.abs(frequency - 1 / 24).max() < 5 * math.sqrt(1 / 24 / OURS)


def test_absent_jitter_and_strength_zero_do_nothing():
    neutral = {"brightness": 1, "contrast": 1, "saturation": 1, "hue": 0}
    for view in (View(jitter_p=0.0), View(jitter=(0, 0, 0, 0), jitter_p=1.0)):
        table = draw(view, n=100)
        assert all((table[name] == value).all() for name, value in neutral.items())
    fraction = (draw(View(jitter_p=0.8))["brightness"] != 1).mean()
    assert abs(fraction - 0.8) < 5 * math.sqrt(0.16 / OURS)


SWITCHES = {
    "flip": lambda t: t["flip"] == 1,
    "rotate": lambda t: t["turns"] > 0,
    "gray": lambda t: t["gray"] == 1,
    "blur": lambda t: t["sigma"] > 0,
    "solarize": lambda t: t["solarize"] == 1,
    "equalize": lambda t: t["equalize"] == 1,
    "cutout": lambda t: (t["cutout_x"] >= 0) & (t["cutout_y"] >= 0),
    "noise": lambda t: t["noise"] > 0,
    "sobel": lambda t: t["sobel"] == 1,
}


@pytest.mark.parametrize("p", [0.0, 0.2, 0.5, 1.0])
def test_probabilities(p):
    table = draw(View(**dict.fromkeys(SWITCHES, p)))
    for option, happened in SWITCHES.items():
        share = happened(table).mean()
        assert abs(share - p) <= 5 * math.sqrt(p * (1 - p) / OURS), option


def test_ranges_of_blur_turns_cutout_and_noise():
    table = draw(View(blur=1.0, blur_sigma=(0.3, 1.7), rotate=1.0, cutout=1.0, noise=1.0))
    uniform = (np.arange(OURS) + 0.5) / OURS
    one_sided = 1.95 / math.sqrt(OURS)
    assert distance((table["sigma"] - 0.3) / 1.4, uniform) < one_sided
    assert distance(table["cutout_x"], uniform) < one_sided
    assert distance(table["cutout_y"], uniform) < one_sided
    share = np.array([(table["turns"] == turns).mean() for turns in (1, 2, 3)])
    assert np.abs(share - 1 / 3).max() < 5 * math.sqrt(2 / 9 / OURS)
    assert (table["noise"] == np.float32(0.1)).all()
    absent = draw(View(cutout=0.0), n=10)
    assert (absent["cutout_x"] == -1).all()


def test_draws_are_independent():
    """Between columns, between the two views of a sample, and between neighbours."""
    view = replace(ALL_ON, jitter_p=1.0, blur=1.0, cutout=1.0, crop=(0.3, 0.6))
    first, second = draw(view, 500, 500), draw(view, 500, 500, index=1)
    free = [c for c in COLUMNS if c not in ("turns", "noise")]
    x = np.stack([first[c] for c in free] + [second[c] for c in free], axis=1).astype(float)
    for block in (0, len(free)):
        x[:, block + free.index("height")] *= x[:, block + free.index("width")]
    related = np.abs(np.corrcoef(x.T)) - np.eye(x.shape[1])
    for block in (0, len(free)):  # a position depends on its side, the area on the width
        own = [block + free.index(c) for c in ("top", "left", "height", "width")]
        related[np.ix_(own, own)] = 0
    assert related.max() < 5 / math.sqrt(OURS)
    shifted = np.abs([np.corrcoef(x[1:, i], x[:-1, i])[0, 1] for i in range(x.shape[1])])
    assert shifted.max() < 5 / math.sqrt(OURS)


JITTER = {"order", "brightness", "contrast", "saturation", "hue"}
CROP = {"top", "left", "height", "width"}


@pytest.mark.parametrize(
    ("change", "columns"),
    [
        ({"size": 64}, set()),
        ({"count": 3, "space": "lab"}, set()),
        ({"crop": (0.5, 0.9)}, CROP),
        ({"ratio": (0.5, 2.0)}, CROP),
        ({"flip": 0.9}, {"flip"}),
        ({"rotate": 0.9}, {"turns"}),
        ({"jitter": (0.8, 0.8, 0.8, 0.5)}, {"hue"}),
        ({"jitter": (0.1, 0.8, 0.8, 0.2)}, {"brightness"}),
        ({"jitter": (0.8, 0.1, 0.8, 0.2)}, {"contrast"}),
        ({"jitter": (0.8, 0.8, 0.1, 0.2)}, {"saturation"}),
        ({"jitter_p": 0.0}, JITTER),
        ({"gray": 0.9}, {"gray"}),
        ({"blur": 0.9}, {"sigma"}),
        ({"blur_sigma": (1.0, 3.0)}, {"sigma"}),
        ({"solarize": 0.9}, {"solarize"}),
        ({"equalize": 0.9}, {"equalize"}),
        ({"cutout": 0.9}, {"cutout_x", "cutout_y"}),
        ({"noise": 0.9}, {"noise"}),
        ({"sobel": 0.9}, {"sobel"}),
    ],
)
def test_an_option_moves_only_its_own_columns(change, columns):
    before, after = draw(ALL_ON, n=200), draw(replace(ALL_ON, **change), n=200)
    moved = {c for c in COLUMNS if (before[c] != after[c]).any()}
    assert moved == columns


def test_a_higher_probability_only_adds():
    few, many = draw(View(blur=0.3), n=1000), draw(View(blur=0.7), n=1000)
    kept = few["sigma"] > 0
    assert (many["sigma"][kept] == few["sigma"][kept]).all()


def test_a_row_depends_on_its_address_alone():
    rng = np.random.default_rng(0)
    sizes, position = rng.integers(1, 400, (64, 2)), rng.integers(0, 2**40, 64)
    whole = sample(ALL_ON, sizes, seed=7, position=position, index=2)
    again = sample(ALL_ON, sizes, seed=7, position=position, index=2)
    assert whole.values.dtype == np.float32
    assert np.array_equal(whole.values, again.values)
    for rows in (np.array([5]), np.arange(63, -1, -1), np.arange(3, 40, 7)):
        part = sample(ALL_ON, sizes[rows], seed=7, position=position[rows], index=2)
        taken = whole.take(rows)
        assert np.array_equal(part.values, taken.values)
        assert np.array_equal(part.position, taken.position)
        assert (taken.seed, taken.index, len(taken)) == (7, 2, len(rows))
    for other in ({"seed": 8, "index": 2}, {"seed": 7, "index": 1}):
        moved = sample(ALL_ON, sizes, position=position, **other)
        assert (moved["left"] != whole["left"]).any()


PINNED = [
    0,
    3,
    36,
    43,
    0,
    3,
    23,
    1.17986,
    0.7785503,
    0.3372351,
    -0.07230365,
    0,
    0.5514822,
    1,
    0,
    0.2224862,
    0.9907077,
    0.1,
    1,
]


def test_the_layout_of_the_draws_is_pinned():
    """A change here changes every recorded run."""
    assert len(DRAWS) == len(set(DRAWS)) == 41
    assert DRAWS.index("jitter") == 5
    assert DRAWS.index("sobel") == 20
    assert DRAWS[21:] == tuple(f"{k}{i}" for k in ("area", "ratio") for i in range(10))
    table = sample(ALL_ON, np.array([[48, 64]]), seed=3, position=np.array([330]), index=1)
    assert table.values[0] == pytest.approx(PINNED, abs=1e-6)


def test_center_is_the_central_square():
    table = center(224, np.array([[300, 400], [400, 301], [7, 7]]))
    assert boxes(table).tolist() == [[50, 0, 350, 300], [0, 49, 301, 350], [0, 0, 7, 7]]
    # timm resizes the short side to floor(224 / 0.875) = 256 and keeps 224 of it.
    table = center(224, np.array([[256, 256], [512, 1024]]), 0.875)
    assert boxes(table).tolist() == [[16, 16, 240, 240], [288, 32, 736, 480]]
    assert center(32, np.array([[1, 9]]), 0.5)["height"].tolist() == [1]
    photometry = dict(zip(COLUMNS, table.values[0], strict=True))
    on = {name: value for name, value in photometry.items() if value != 0}
    assert on == {
        **{"top": 16, "left": 16, "height": 224, "width": 224},
        **{"brightness": 1, "contrast": 1, "saturation": 1, "cutout_x": -1, "cutout_y": -1},
    }


def test_boxes_turn_round_when_flipped():
    table = draw(View(), n=50)
    box = boxes(table)
    flipped = table["flip"] == 1
    assert 0 < flipped.sum() < 50
    assert ((box[:, 0] > box[:, 2]) == flipped).all()
    assert (np.abs(box[:, 2] - box[:, 0]) == table["width"]).all()
    assert (box[:, 3] - box[:, 1] == table["height"]).all()
    assert (box[:, [0, 2]].min(axis=1) == table["left"]).all()
    assert box.dtype == np.float32


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"flip": 1.1}, "flip is a probability"),
        ({"blur": -0.1}, "blur is a probability"),
        ({"sobel": float("nan")}, "sobel is a probability"),
        ({"size": 0}, "size ≥ 1"),
        ({"count": 0}, "count ≥ 1"),
        ({"crop": (0.0, 1.0)}, "crop needs 0 < low"),
        ({"crop": (0.5, 0.4)}, "crop needs 0 < low"),
        ({"crop": (0.5, 1.1)}, "crop is a fraction"),
        ({"ratio": (-1.0, 1.0)}, "ratio needs 0 < low"),
        ({"blur_sigma": (0.0, 2.0)}, "blur_sigma needs 0 < low"),
        ({"jitter": (0.4, 0.4, 0.4, 0.6)}, "jitter needs"),
        ({"jitter": (-0.4, 0.4, 0.4, 0.1)}, "jitter needs"),
        ({"jitter": (float("nan"), 0.4, 0.4, 0.1)}, "jitter needs"),
        ({"jitter": (0.4, 0.4, 0.4)}, "jitter needs four"),
        ({"space": "lap"}, "did you mean lab"),
        ({"space": "hsv"}, "choose from rgb, lab, raw"),
    ],
)
def test_view_refuses(options, words):
    with pytest.raises(ConfigError, match=words) as caught:
        View(**options)
    assert "\n" not in str(caught.value)


def test_view_scales_with_the_main_crop():
    local = View(size=96)
    assert local.scaled(224) == local
    assert local.scaled(64).size == 27
    assert local.scaled(224, multiple=14).size == 98
    assert local.scaled(8, multiple=16).size == 16
    assert [View(size=s).blur_kernel for s in (8, 32, 96, 224)] == [3, 3, 9, 23]


def test_sizes_and_positions_must_be_as_many():
    with pytest.raises(DataError, match="1 sizes for 4 positions"):
        sample(View(), np.array([[30, 40]]), seed=0, position=np.arange(4), index=0)
