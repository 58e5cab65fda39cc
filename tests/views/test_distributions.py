"""What is drawn against what torchvision's transforms draw, and proof that errors would show."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from chance import BOUND, OURS, THEIRS, distance, draw
from torchvision import transforms as T

from selfsight.views import presets
from selfsight.views.sample import ORDERS, Table
from selfsight.views.spec import View

HEIGHT, WIDTH = 300, 400


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def crops(view: View) -> dict[str, np.ndarray]:
    image = torch.empty(3, HEIGHT, WIDTH)
    drawn = [
        T.RandomResizedCrop.get_params(image, list(view.crop), list(view.ratio))
        for _ in range(THEIRS)
    ]
    return dict(zip(("top", "left", "height", "width"), np.array(drawn, float).T, strict=True))


def jitters(view: View) -> dict[str, np.ndarray]:
    *factors, hue = view.jitter
    limits = [(max(0.0, 1 - x), 1 + x) for x in factors] + [(-hue, hue)]
    drawn = [T.ColorJitter.get_params(*limits) for _ in range(THEIRS)]
    orders = {tuple(order): number for number, order in enumerate(ORDERS.tolist())}
    order = [orders[tuple(each[0].tolist())] for each in drawn]
    factors = np.array([each[1:] for each in drawn]).T
    names = ("brightness", "contrast", "saturation", "hue")
    return {"order": np.array(order, float), **dict(zip(names, factors, strict=True))}


def sigmas(view: View) -> dict[str, np.ndarray]:
    return {"sigma": np.array([T.GaussianBlur.get_params(*view.blur_sigma) for _ in range(THEIRS)])}


def quantities(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    if "top" not in columns:
        return columns
    t, s, h, w = (columns[name] for name in ("top", "left", "height", "width"))
    places = {"down": t / np.maximum(HEIGHT - h, 1), "across": s / np.maximum(WIDTH - w, 1)}
    return {**columns, "area": h * w, "ratio": np.log(w / h), **places}


def gaps(ours: Table, theirs: dict[str, np.ndarray]) -> dict[str, float]:
    """Kolmogorov and Smirnov's statistic of each quantity."""
    mine = quantities({name: ours[name].astype(float) for name in theirs})
    return {name: distance(mine[name], column) for name, column in quantities(theirs).items()}


PAPERS = {
    "simclr": presets.simclr_view(jitter_p=1.0, blur=1.0),
    "moco v1": replace(presets.moco_view(1), blur=1.0),
    "byol": replace(presets.byol_views()[0], jitter_p=1.0),
    "a small crop of dino": replace(presets.dino_views(6)[2], jitter_p=1.0, blur=1.0),
    "a small crop of swav": replace(presets.crops(View(), 4)[1], jitter_p=1.0, blur=1.0),
}


@pytest.mark.parametrize("paper", PAPERS)
@pytest.mark.parametrize("transform", [crops, jitters, sigmas])
def test_parameters_are_distributed_as_torchvisions(paper, transform):
    view = PAPERS[paper]
    for name, gap in gaps(draw(view, HEIGHT, WIDTH), transform(view)).items():
        assert gap < BOUND, name


ON = PAPERS["simclr"]


@pytest.mark.parametrize(
    ("transform", "wrong", "quantity"),
    [
        (crops, {"crop": (0.12, 1.0)}, "area"),
        (crops, {"crop": (0.08, 0.85)}, "area"),
        (crops, {"ratio": (0.72, 4 / 3)}, "ratio"),
        (crops, {"ratio": (3 / 4, 1.4)}, "ratio"),
        (jitters, {"jitter": (0.88, 0.8, 0.8, 0.2)}, "brightness"),
        (jitters, {"jitter": (0.8, 0.72, 0.8, 0.2)}, "contrast"),
        (jitters, {"jitter": (0.8, 0.8, 0.88, 0.2)}, "saturation"),
        (jitters, {"jitter": (0.8, 0.8, 0.8, 0.22)}, "hue"),
        (jitters, {"jitter_p": 0.9}, "brightness"),
        (sigmas, {"blur_sigma": (0.2, 2.0)}, "sigma"),
        (sigmas, {"blur_sigma": (0.1, 2.2)}, "sigma"),
    ],
)
def test_a_wrong_range_crosses_the_bound(transform, wrong, quantity):
    theirs = transform(ON)
    assert gaps(draw(ON, HEIGHT, WIDTH), theirs)[quantity] < BOUND
    assert gaps(draw(replace(ON, **wrong), HEIGHT, WIDTH), theirs)[quantity] > BOUND


@pytest.mark.parametrize(
    ("quantity", "column", "change"),
    [
        ("down", "top", lambda x: np.floor(0.9 * x)),
        ("across", "left", lambda x: x + np.random.default_rng(0).integers(0, 15, len(x))),
        ("area", "width", lambda x: np.maximum(1, x - 15)),
        ("order", "order", lambda x: np.where(x < 2, 0, x)),
        ("order", "order", lambda x: np.minimum(x + 1, 23)),
        ("hue", "hue", np.abs),
        ("brightness", "brightness", lambda x: 1 / np.maximum(x, 0.1)),
    ],
)
def test_a_wrong_formula_crosses_the_bound(quantity, column, change):
    drawn = draw(ON, HEIGHT, WIDTH)
    theirs = (crops if quantity in ("down", "across", "area") else jitters)(ON)
    mine = {name: drawn[name].astype(float) for name in theirs}
    assert distance(quantities(mine)[quantity], quantities(theirs)[quantity]) < BOUND
    mine[column] = change(mine[column])
    assert distance(quantities(mine)[quantity], quantities(theirs)[quantity]) > BOUND


def share(transform: Callable[[torch.Tensor], torch.Tensor]) -> float:
    """How often an image comes out changed."""
    image = torch.randint(256, (3, 20, 20), dtype=torch.uint8)
    return float(np.mean([not torch.equal(transform(image), image) for _ in range(THEIRS)]))


SWITCHES: dict[str, tuple[Callable[[float], object], Callable[[Table], np.ndarray]]] = {
    "flip": (lambda p: T.RandomHorizontalFlip(p), lambda t: t["flip"] > 0),
    "gray": (lambda p: T.RandomGrayscale(p), lambda t: t["gray"] > 0),
    "solarize": (lambda p: T.RandomSolarize(128, p), lambda t: t["solarize"] > 0),
    "equalize": (lambda p: T.RandomEqualize(p), lambda t: t["equalize"] > 0),
    "blur": (lambda p: T.RandomApply([T.RandomInvert(1.0)], p), lambda t: t["sigma"] > 0),
    "jitter_p": (lambda p: T.RandomApply([T.RandomInvert(1.0)], p), lambda t: t["hue"] != 0),
}


@pytest.mark.parametrize("name", SWITCHES)
def test_operators_act_as_often_as_torchvisions(name):
    transform, acts = SWITCHES[name]
    for p in (0.2, 0.5):
        slack = 4 * math.sqrt(p * (1 - p) * (1 / OURS + 1 / THEIRS))
        theirs = share(transform(p))
        assert abs(acts(draw(View(**{name: p}))).mean() - theirs) < slack
        assert abs(acts(draw(View(**{name: p + 0.1}))).mean() - theirs) > slack
