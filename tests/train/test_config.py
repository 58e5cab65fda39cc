"""What a run is when the user leaves it open, and what is refused."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch

from selfsight.data.base import Arrays
from selfsight.data.loader import Loader
from selfsight.errors import ConfigError, DataError, Error
from selfsight.train import config as subject
from selfsight.train.config import Config, Settings, differences, resolve, seconds


def photos(count=64, size=40):
    return Arrays("photos", np.zeros((count, size, size, 3), np.uint8))


def built(source=None, **asked):
    settings = Settings(**{"encoder": "test_resnet", "device": "cpu", **asked})
    return resolve(settings, source or photos())


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.parametrize(
    ("side", "encoder", "why", "size", "size_why"),
    [
        (32, "resnet18_small", "3×3 stem, for the images' 32 px", 32, "near the images' 32 px"),
        (64, "resnet18_small", "3×3 stem, for the images' 64 px", 64, "near the images' 64 px"),
        (100, "resnet18", "on a CPU", 96, "near the images' 100 px"),
        (128, "resnet18", "on a CPU", 128, "usual on a CPU"),
        (400, "resnet18", "on a CPU", 128, "usual on a CPU"),
        (20, "resnet18_small", "3×3 stem, for the images' 20 px", 32, "near the images' 20 px"),
    ],
)
@pytest.mark.usefixtures("no_gpu")
def test_defaults_follow_the_images_and_say_why(side, encoder, why, size, size_why):
    config = resolve(Settings(), photos(300, side)).config
    assert (config.encoder, config.reasons["encoder"]) == (encoder, why)
    assert (config.size, config.reasons["size"]) == (size, size_why)
    assert (config.method, config.device, config.seed) == ("simclr", "cpu", 0)
    assert (config.batch, config.reasons["batch"]) == (256, "usual")
    assert (config.optimizer, config.epochs, config.warmup) == ("lars", 100, 10)
    assert (config.lr, config.reasons["lr"]) == (0.3, "recipe 0.3 × 256/256")
    assert config.precision in ("fp32", "bf16")
    rows = config.table()
    assert [name for name, _, _ in rows] == list(config.json())
    assert [name for name, _, reason in rows if not reason] == []


def test_what_is_given_says_so():
    asked = {"method": "byol", "size": 48, "epochs": 7, "batch": 16, "lr": 0.5, "seed": 3,
             "precision": "fp32", "optimizer": "sgd", "weight_decay": 0.0, "warmup": 0.0,
             "accumulate": 2, "options": {"dim": 8, "hidden": 16}}  # fmt: skip
    run = built(**asked)
    for name, value in {**asked, "encoder": "test_resnet", "device": "cpu"}.items():
        assert getattr(run.config, name) == value
        assert run.config.reasons[name] == "given", name
    assert (run.recipe.optimizer, run.recipe.weight_decay) == ("sgd", 0.0)
    assert run.method.encoder.size == 48


@pytest.mark.parametrize(
    ("count", "batch"), [(2, 2), (3, 2), (7, 4), (16, 16), (255, 128), (256, 256), (1000, 256)]
)
def test_the_batch_fits_a_small_set(count, batch):
    assert built(photos(count)).config.batch == batch


def test_a_learning_rate_follows_the_batch_by_the_recipe_s_rule():
    assert built(batch=32).config.lr == pytest.approx(0.3 * 32 / 256)
    assert built(batch=32).config.reasons["lr"] == "recipe 0.3 × 32/256"
    assert built(batch=32, lr=0.0).config.lr == 0


@pytest.mark.parametrize(
    ("epochs", "warmup", "why"),
    [(200, 10, "recipe"), (100, 10, "recipe"), (50, 5, "a tenth of the run, below the recipe's 10"),
     (1, 0.1, "a tenth of the run, below the recipe's 10")],
)  # fmt: skip
def test_a_short_run_warms_up_for_a_tenth(epochs, warmup, why):
    config = built(epochs=epochs).config
    assert (config.warmup, config.reasons["warmup"]) == (pytest.approx(warmup), why)


def test_views_are_scaled_to_the_size():
    swav = {"method": "swav", "options": {"prototypes": 6, "hidden": 16, "dim": 8}}
    sizes = {size: [view.size for view in built(size=size, **swav).method.views]
             for size in (32, 96, 224)}  # fmt: skip
    assert [sorted(set(found)) for found in sizes.values()] == [[14, 32], [41, 96], [96, 224]]


def test_views_are_multiples_of_the_patch():
    run = built(encoder="test_vit", size=96, method="swav",
                options={"prototypes": 6, "hidden": 16, "dim": 8})  # fmt: skip
    multiple = run.method.encoder.multiple
    assert multiple > 1
    assert {view.size % multiple for view in run.method.views} == {0}
    assert max(view.size for view in run.method.views) == 96


def test_at_32_px_nothing_is_blurred():
    assert {view.blur for view in built(size=32).method.views} == {0.0}
    assert max(view.blur for view in built(size=64).method.views) == 0.5


@pytest.mark.parametrize(
    ("size", "encoder", "precision"),
    [(32, "test_resnet", "fp32"), (80, "test_resnet", "bf16"), (32, "test_vit", "bf16")],
)
@pytest.mark.usefixtures("no_gpu")
def test_tiny_crops_are_not_computed_in_bf16(monkeypatch, size, encoder, precision):
    """oneDNN's weight gradient holds whatever lay in the memory where a stride exceeds its map."""
    monkeypatch.setattr(subject, "native_bf16", lambda device: True)
    config = built(size=size, encoder=encoder, options={"multi_crop": 2}).config
    assert config.precision == precision
    assert config.reasons["precision"]
    assert built(size=size, encoder=encoder).config.precision == "bf16"
    monkeypatch.setattr(subject, "native_bf16", lambda device: False)
    assert built(size=size, encoder=encoder).config.precision == "fp32"
    given = {"size": size, "encoder": encoder, "options": {"multi_crop": 2}, "precision": "bf16"}
    if precision == "bf16":
        assert built(**given).config.precision == "bf16"
    else:
        with pytest.raises(ConfigError, match=r"images of \d+ px, .* wrong gradients in bf16"):
            built(**given)


@pytest.mark.parametrize("method", ["cpc_v2", "infomin", "pirl"])
@pytest.mark.usefixtures("no_gpu")
def test_the_pieces_of_an_image_may_be_too_small_for_bf16(monkeypatch, method):
    monkeypatch.setattr(subject, "native_bf16", lambda device: True)
    assert built(method=method, size=96).config.precision == "fp32"
    assert built(method=method, size=128).config.precision == "bf16"


def test_what_does_not_fit_into_memory_is_a_wrong_option():
    with pytest.raises(ConfigError, match="simclr does not fit into memory with these options"):
        built(options={"dim": 10**14})


def test_the_weights_depend_on_the_seed_alone():
    before = torch.random.get_rng_state()
    one, other, third = (built(seed=seed).method.state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert not all(torch.equal(one[key], third[key]) for key in one)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"method": "simclrr"}, "unknown method simclrr; did you mean simclr?"),
        ({"method": "MoCo v3"}, "unknown method MoCo v3; did you mean moco_v3?"),
        ({"encoder": "resnet81"}, "unknown encoder resnet81; did you mean resnet"),
        ({"options": {"temprature": 1}}, "unknown option temprature .*did you mean temperature?"),
        ({"optimizer": "adamm", "lr": 1.0}, "unknown optimizer adamm; did you mean adamw?"),
        ({"optimizer": "sgd"}, "--optimizer sgd needs --lr: the recipe's is for lars"),
        ({"precision": "fp23"}, "unknown precision fp23; did you mean fp32?"),
        ({"device": "tpu"}, "unknown device tpu; it is auto, cpu or cuda"),
        ({"method": "mae"}, "mae needs patch tokens; test_resnet has none"),
        ({"batch": 65}, "batch 65 is larger than the 64 images of photos; use --batch 64 or less"),
        ({"batch": 1}, "batch 1 does not divide into 1 parts of 2 images"),
        ({"batch": 16, "accumulate": 3}, "batch 16 does not divide into 3 parts of 2 images"),
        ({"batch": 16, "accumulate": 16}, "batch 16 does not divide into 16 parts of 2 images"),
        ({"epochs": 0}, "--epochs 0: must be 1 or more"),
        ({"epochs": -3}, "--epochs -3: must be 1 or more"),
        ({"accumulate": 0}, "--accumulate 0: must be 1 or more"),
        ({"batch": 0}, "--batch 0: must be 1 or more"),
        ({"size": 0}, "--size 0: must be 1 or more"),
        ({"seed": -1}, "--seed -1: must be 0 or more"),
        ({"lr": -0.1}, "--lr -0.1: must be 0 or more"),
        ({"lr": math.nan}, "--lr nan: must be 0 or more"),
        ({"lr": math.inf}, "--lr inf: must be 0 or more"),
        ({"weight_decay": -1.0}, "--weight-decay -1.0: must be 0 or more"),
        ({"warmup": -1.0}, "--warmup -1.0: must be 0 or more"),
    ],
)
def test_refusals_are_one_line_with_a_way_out(asked, says):
    with pytest.raises(ConfigError, match=says.replace("?", r"\?")) as caught:
        built(**asked)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.usefixtures("no_gpu")
def test_a_gpu_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match="torch sees no CUDA device here; see selfsight doctor"):
        built(device="cuda")


@pytest.mark.parametrize(
    ("text", "value"), [("2h", 7200), ("90m", 5400), ("1.5h", 5400), ("45s", 45), ("1d", 86400),
                        (" 2 h ", 7200), ("0.5m", 30)],
)  # fmt: skip
def test_times(text, value):
    assert seconds(text) == value


@pytest.mark.parametrize("text", ["", "2", "h", "-2h", "0h", "0.0m", "2w", "1e3h", "2h30m", "nanh"])
def test_times_that_are_none(text):
    with pytest.raises(ConfigError, match="for example 2h"):
        seconds(text)


def test_differences_name_what_was_and_what_is():
    old = built(batch=16).config
    recorded = json.loads(json.dumps(old.json()))
    assert differences(recorded, old) == []
    new = dataclasses.replace(old, batch=32, options={"dim": 8})
    assert differences(recorded, new) == ["batch was 16, is 32", "options was {}, is {'dim': 8}"]
    assert differences({}, old)[0] == "accumulate was None, is 1"


def test_every_setting_can_be_recorded_and_read_back():
    assert {f.name for f in dataclasses.fields(Settings)} | {"reasons"} == {
        f.name for f in dataclasses.fields(Config)
    }


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("batch", range(1, 10))
def test_a_batch_either_runs_or_is_refused_before_anything_is_written(monkeypatch, batch, world):
    """For N images: refused, or at least one step, whole batches, each image once an epoch."""
    monkeypatch.setattr(subject, "world", lambda: world)
    for count in range(2, 13):
        source = photos(count, 8)
        fits = batch <= count and batch % world == 0 and batch >= 2 * world
        try:
            run = built(source, batch=batch, size=32)
        except Error as error:
            assert not fits, error
            assert error.exit_code == 2
            continue
        assert fits
        ranks = [Loader(source, run.method.views, batch=run.config.batch, seed=0, mean=(0,) * 3,
                        std=(1,) * 3, rank=rank, world=world) for rank in range(world)]  # fmt: skip
        steps = ranks[0].per_epoch
        assert steps == count // batch >= 1
        shown = [i for step in range(steps) for r in ranks for i in r.batch(step).index.tolist()]
        assert len(shown) == len(set(shown)) == steps * batch


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_images_are_refused(count):
    with pytest.raises((ConfigError, DataError)):
        Loader(photos(count), [], batch=1, seed=0, mean=(0,) * 3, std=(1,) * 3)
