"""A detector over tiny encoders finds planted squares, and an untrained one does not."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from selfsight.data.base import Arrays, Pixels
from selfsight.data.boxes import Boxes, Objects
from selfsight.data.decode import Undecodable
from selfsight.encoders import create_encoder
from selfsight.encoders.base import Encoder
from selfsight.errors import ConfigError, DataError, Diverged
from selfsight.evaluate import select
from selfsight.evaluate.base import Sight
from selfsight.evaluate.learners.detector import Backbone, Design, build, find, fit
from selfsight.evaluate.measures.average_precision import Found
from selfsight.evaluate.protocols.detection import RECIPES, Detection, scores
from selfsight.evaluate.report import Report

SIDE = 32
COLOURS = {"green": (40, 230, 40), "red": (230, 40, 40)}
QUICK: dict[str, Any] = {"batch": 4, "width": 16, "anchor": 4.0, "max_size": 48}
TRAINED = {"iterations": 45, "lr": 0.03, "optimizer": "adamw", "weight_decay": 0.0, **QUICK}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def planted(n: int, seed: int) -> Boxes:
    """A square or two of two colours on noise."""
    draw = np.random.default_rng(seed)
    images = draw.integers(0, 90, (n, SIDE, SIDE, 3), np.uint8)
    objects = []
    for image in images:
        corners: list[tuple[int, int, int, int]] = []
        labels = []
        for half in range(int(draw.integers(1, 3))):
            side = int(draw.integers(10, 16))
            x, y = int(draw.integers(0, SIDE - side)), 16 * half + int(draw.integers(0, 17 - side))
            labels.append(int(draw.integers(2)))
            image[y : y + side, x : x + side] = [*COLOURS.values()][labels[-1]]
            corners.append((x, y, x + side, y + side))
        objects.append(Objects.inside((SIDE, SIDE), corners, labels))
    return Boxes(Arrays("planted", images), tuple(objects), tuple(COLOURS))


@pytest.fixture(scope="module")
def parts() -> tuple[Boxes, Boxes]:
    return planted(32, 0), planted(16, 1)


@pytest.fixture
def encoder() -> Encoder:
    return create_encoder("test_resnet", size=SIDE, seed=0)


def state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in module.state_dict().items()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("frozen", [False, True])
def test_finds_what_an_untrained_head_does_not(
    encoder: Encoder, parts: tuple[Boxes, Boxes], frozen: bool
) -> None:
    before = state(encoder)
    told: list[tuple[int, ...]] = []
    sight = Sight(encoder, SIDE, progress=lambda what: lambda *count: told.append(count))
    trained = Detection(frozen=frozen, **TRAINED).measure(sight, *parts)
    untrained = Detection(**TRAINED | {"iterations": 1, "lr": 1e-9}).measure(sight, *parts)
    assert trained[1].value > 0.4
    assert untrained[1].value < 0.15
    assert trained[1].low > untrained[1].high
    assert [score.metric for score in trained] == ["AP", "AP50", "AP75"]
    assert trained[0].value < trained[1].value
    for score in trained:
        assert score.n == 16
        assert score.draws is not None
        assert score.low <= score.value <= score.high
    details = trained[0].details
    assert set(details["per_class"]) == {"green", "red"}
    assert details["per_class_AP50"]["red"] > 0.3
    assert details["areas"]["large"] is None
    assert details["train"]["images"] == 32
    assert told[44] == (45, 45)
    assert told[60] == (16, 16)
    # The encoder that is judged stays as it was.
    assert equal(before, state(encoder))
    assert Report(trained)["detection"] is trained[0]


def fitted(encoder: Encoder, train: Boxes, frozen: bool = False, **chosen: Any) -> Any:
    protocol = Detection(**QUICK | {"iterations": 2, "frozen": frozen} | chosen)
    sight = Sight(encoder, SIDE)
    design, schedule = (
        protocol._design(train),
        protocol._schedule(train, adaptive=False, seed=protocol.seed),
    )
    detector = build(encoder, 2, design, half=False, seed=protocol.seed)
    fit(detector, sight, train, schedule)
    return detector


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
@pytest.mark.parametrize("frozen", [False, True])
def test_frozen_is_frozen_to_the_bit(parts: tuple[Boxes, Boxes], name: str, frozen: bool) -> None:
    encoder = create_encoder(name, size=SIDE, seed=0)
    before = state(encoder)
    detector = fitted(encoder, parts[0], frozen)
    assert equal(before, state(encoder)) is frozen
    fresh = build(create_encoder(name, size=SIDE, seed=0), 2, detector.design, False, 0)
    heads = state(fresh.model.roi_heads)
    assert not equal(heads, state(detector.model.roi_heads))


def test_the_seed_decides(parts: tuple[Boxes, Boxes]) -> None:
    def trained(seed: int) -> dict[str, torch.Tensor]:
        encoder = create_encoder("test_resnet", size=SIDE, seed=0)
        return state(fitted(encoder, parts[0], seed=seed).model)

    torch.manual_seed(1)
    position = torch.get_rng_state()
    first = trained(0)
    assert torch.equal(position, torch.get_rng_state())
    torch.manual_seed(2)
    assert equal(first, trained(0))
    assert not equal(first, trained(1))


def test_boxes_are_said_in_stored_pixels(encoder: Encoder) -> None:
    """Images of several shapes are seen at another size; boxes come back inside them."""

    class Shapes(Arrays):
        def read(self, index: int, least: int = 0) -> Pixels:
            height, width = self.sizes[index]
            return np.full((height // 2, width // 2, 3), 128, np.uint8)

    images = Shapes("shapes", np.zeros((2, 8, 8, 3), np.uint8))
    images.sizes = np.array([[40, 120], [120, 40]], np.int32)
    one = Objects.inside((40, 40), [(0, 0, 40, 40)], [0])
    part = Boxes(images, (one, one), ("a", "b"))
    design = Design(4, 16, 4.0, True, (SIDE,), 4 * SIDE)
    detector = build(encoder, 2, design, half=False, seed=0)
    found = find(detector, Sight(encoder, SIDE), part)
    for said, (height, width) in zip(found, images.sizes.tolist(), strict=True):
        assert len(said.scores) > 0
        assert said.boxes.min() >= 0
        assert said.boxes[:, [0, 2]].max() <= width + 1e-3
        assert said.boxes[:, [1, 3]].max() <= height + 1e-3
        # Of the image as it was read, half of it would be out of reach.
        assert said.boxes[:, [0, 2]].max() > width / 2
        assert set(said.labels.tolist()) <= {0, 1}


@pytest.mark.parametrize(
    ("name", "options", "strides"),
    [
        ("test_resnet", {}, (4, 8, 16, 32, 64)),
        ("test_vit", {}, (4, 8, 16, 32, 64)),
        ("test_vit", {"patch_size": 14}, (4, 8, 16, 32, 64)),
        ("test_vit", {"patch_size": 4}, (1, 2, 4, 8, 16)),
        ("resnet18_small", {}, (1, 2, 4, 8, 16)),
    ],
)
def test_the_pyramid(name: str, options: dict[str, Any], strides: tuple[int, ...]) -> None:
    size = 28 if options.get("patch_size") == 14 else SIDE
    encoder = create_encoder(name, size=size, seed=0, **options)
    backbone = Backbone(encoder, Design(4, 8, 8.0, False, (SIDE,), SIDE), half=False).eval()
    assert backbone.strides == strides
    with torch.no_grad():
        maps = backbone(torch.randn(1, 3, 64, 96))
    assert [tuple(m.shape[1:]) for m in maps.values()] == [
        (8, -(-64 // stride), -(-96 // stride)) for stride in strides
    ]


def test_the_last_levels_are_taken(encoder: Encoder) -> None:
    backbone = Backbone(encoder, Design(2, 8, 8.0, False, (SIDE,), SIDE), half=False)
    assert backbone.strides == (16, 32, 64)


def test_encoders_without_maps(parts: tuple[Boxes, Boxes], encoder: Encoder) -> None:
    encoder.levels = 0
    with pytest.raises(ConfigError, match="test_resnet gives no feature maps"):
        Detection(**QUICK).measure(Sight(encoder, SIDE), *parts)


def test_encoders_of_fixed_input(parts: tuple[Boxes, Boxes]) -> None:
    encoder = create_encoder("mixer_s32_224", size=224, seed=0)
    with pytest.raises(ConfigError, match="does not take images of 64 × 96") as caught:
        Detection(**QUICK).measure(Sight(encoder, 224), *parts)
    assert "\n" not in str(caught.value)


def test_divergence_is_told(encoder: Encoder, parts: tuple[Boxes, Boxes]) -> None:
    protocol = Detection(**TRAINED | {"optimizer": "sgd", "lr": 1e15, "warmup": 0})
    with pytest.raises(Diverged, match=r"not finite at iteration \d.*lower lr"):
        protocol.measure(Sight(encoder, SIDE), *parts)


class Gone(Arrays):
    def read(self, index: int, least: int = 0) -> Pixels:
        raise Undecodable("changed since the data set was opened")


def test_parts_that_cannot_be_used(encoder: Encoder, parts: tuple[Boxes, Boxes]) -> None:
    train, test = parts
    sight, quick = Sight(encoder, SIDE), Detection(iterations=1, **QUICK)
    with pytest.raises(DataError, match="different classes"):
        quick.measure(sight, train, replace(test, classes=("a", "b")))
    bare = tuple(o.subset(np.zeros(len(o.labels), bool)) for o in test.objects)
    with pytest.raises(DataError, match="no box on any test image"):
        quick.measure(sight, train, replace(test, objects=bare))
    crowded = tuple(replace(o, crowd=np.ones(len(o.labels), bool)) for o in train.objects)
    with pytest.raises(DataError, match="no box on any training image"):
        quick.measure(sight, replace(train, objects=crowded), test)
    strip = Boxes(
        Arrays("strip", np.zeros((1, 1, 60, 3), np.uint8)), test.objects[:1], test.classes
    )
    with pytest.raises(DataError, match=r"strip\[0\] has 60 × 1 pixels, of which none are left"):
        quick.measure(sight, train, strip)
    gone = Boxes(Gone("gone", np.zeros((32, 8, 8, 3), np.uint8)), train.objects, train.classes)
    with pytest.raises(DataError, match=r"cannot read gone\[\d+\]: changed since"):
        quick.measure(sight, gone, test)


def test_half_precision_is_the_encoders_alone(encoder: Encoder, parts: tuple[Boxes, Boxes]) -> None:
    sight = Sight(encoder, SIDE, precision="bf16")
    quick = Detection(iterations=1, **QUICK)
    scores = quick.measure(sight, parts[0], parts[1].subset([0, 1]))
    assert np.isfinite(scores[0].details["loss"])
    assert (
        scores[0].details["loss"]
        != (
            quick.measure(Sight(encoder, SIDE), parts[0], parts[1].subset([0, 1]))[0].details[
                "loss"
            ]
        )
    )


def test_crowds_and_bare_images_are_trained_beside(
    encoder: Encoder, parts: tuple[Boxes, Boxes]
) -> None:
    """Crowds are no targets; an image left without any is all background."""
    objects = list(parts[0].objects)
    for number in range(8):
        one = objects[number]
        objects[number] = replace(one, crowd=np.ones(len(one.labels), bool))
    fitted(encoder, replace(parts[0], objects=tuple(objects)), batch=32)


def test_scores_of_voc() -> None:
    """A difficult object counts neither way, and VOC's own AP stands beside."""
    objects = Objects.inside((50, 50), [(0, 0, 10, 10), (20, 0, 30, 10)], [0, 0])
    objects = replace(objects, difficult=np.array([False, True]))
    images = Arrays("x", np.zeros((3, 50, 50, 3), np.uint8))
    part = Boxes(images, (objects,) * 3, ("a", "b"), kind="voc")
    box, label = np.array([[0.0, 0, 10, 10]]), np.zeros(1, np.int64)
    found = [Found(box, np.array([0.9]), label)] * 2 + [Found(box + 30, np.array([0.5]), label)]
    report = {score.metric: score for score in scores("x", found, part, {})}
    assert list(report) == ["AP", "AP50", "AP75", "VOC-AP50"]
    # Two of three objects at full precision.
    assert report["VOC-AP50"].value == pytest.approx(2 / 3)
    assert report["AP"].value == pytest.approx(67 / 101)
    details = report["AP"].details
    assert details["per_class"] == {"a": pytest.approx(67 / 101), "b": None}
    assert details["voc07"] == dict.fromkeys(("AP", "AP50", "AP75"), pytest.approx(7 / 11))
    assert details["detections"] == 3


def test_options_and_recipes(parts: tuple[Boxes, Boxes]) -> None:
    train = parts[0]
    with pytest.raises(ConfigError, match="iterations or epochs, not both"):
        Detection(iterations=3, epochs=2.0)
    with pytest.raises(ConfigError, match="unknown option iteration"):
        select(("detection",), {"detection": {"iteration": 3}})
    plain = Detection()
    schedule = plain._schedule(train, adaptive=False, seed=0)
    assert (schedule.total, schedule.batch, schedule.warmup) == (48, 8, 4)
    assert schedule.recipe.optimizer == "sgd"
    assert schedule.recipe.rate(8) == 0.01
    assert plain._schedule(train, adaptive=True, seed=0).recipe.optimizer == "adamw"
    assert plain._design(train).sizes == (SIDE,)
    voc = Detection("voc")
    schedule = voc._schedule(train, adaptive=False, seed=0)
    assert (schedule.total, schedule.batch, schedule.warmup) == (24_000, 16, 100)
    assert schedule.recipe.rate(16) == 0.02
    design = voc._design(train)
    assert (design.sizes[0], design.sizes[-1], design.max_size) == (480, 800, 1333)
    assert Detection("voc", epochs=2.0)._schedule(train, adaptive=False, seed=0).total == 4
    assert Detection("voc", size=100)._design(train).sizes == (100,)
    drops = [round(RECIPES["coco"].iterations * share) for share in RECIPES["coco"].drops]
    assert drops == [120_000, 160_000]
