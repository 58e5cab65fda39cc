"""The official recipes: their numbers, their heads, and what they leave alone."""

import copy

import numpy as np
import pytest
import torch

from selfsight.data.base import Arrays
from selfsight.encoders import create_encoder
from selfsight.encoders.base import Encoder
from selfsight.errors import ConfigError, DataError, Diverged
from selfsight.evaluate import Sight, create, judge
from selfsight.evaluate.protocols import recipe
from selfsight.evaluate.protocols.recipe import (
    PRESETS,
    PaperRecipe,
    Preset,
    _cached,
    _optimizer,
    _train,
)


def source(n: int, name: str, seed: int) -> Arrays:
    """Red, green and blue noise."""
    draw = np.random.default_rng(seed)
    labels = draw.permutation(n) % 3
    noise = draw.integers(0, 100, (n, 28, 24, 3))
    images = noise + 150 * np.eye(3, dtype=np.int64)[labels][:, None, None]
    return Arrays(name, images.astype(np.uint8), labels, ("red", "green", "blue"))


TRAIN, TEST = source(48, "train", 0), source(24, "test", 1)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    torch.manual_seed(0)
    return create_encoder("test_resnet", size=24)


@pytest.mark.parametrize(
    ("name", "batch", "rate"),
    [
        ("moco", 256, 30),
        ("moco", 64, 30),  # not scaled
        ("moco_v3", 1024, 0.4),
        ("simsiam", 4096, 1.6),
        ("swav", 512, 0.3),
        ("byol", 1024, 0.8),
        ("simclr", 4096, 1.6),
        ("dino", 1024, 0.004),
        ("mae", 16384, 6.4),
        ("sdbn", 128, 15),
        ("vicreg", 256, 0.02),
        ("w_mse", 1000, 0.01),
        ("directpred", 128, 3e-4),
    ],
)
def test_rates(name: str, batch: int, rate: float) -> None:
    assert PRESETS[name].rate(batch, transformer=False) == pytest.approx(rate)


def test_a_transformer_may_have_its_own_rate() -> None:
    assert PRESETS["moco_v3"].rate(1024, transformer=True) == pytest.approx(12)
    assert PRESETS["mae"].rate(256, transformer=True) == pytest.approx(0.1)


def test_schedules() -> None:
    moco = [PRESETS["moco"].factor(10 * epoch + 9, 10) for epoch in (0, 59, 60, 79, 80, 99)]
    assert moco == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    swav = PRESETS["swav"]
    assert swav.factor(500, 10) == swav.factor(509, 10) == pytest.approx(0.5)
    byol = PRESETS["byol"]
    assert byol.factor(400, 10) == pytest.approx(0.5)
    assert byol.factor(409, 10) < byol.factor(400, 10)
    mae = PRESETS["mae"]
    assert [mae.factor(s, 10) for s in (0, 50, 100, 500)] == pytest.approx([0, 0.5, 1, 0.5])
    w_mse = PRESETS["w_mse"]
    assert w_mse.factor(0, 4) == 1
    assert 1e-2 * w_mse.factor(4 * 250, 4) == pytest.approx(1e-4)
    assert PRESETS["directpred"].factor(300, 10) == 1


@pytest.mark.parametrize("name", PRESETS)
def test_every_recipe_runs_and_learns(name: str, encoder: Encoder) -> None:
    # A rate for so few steps; what is tested is that each path comes to its end.
    lr = 0.03 if PRESETS[name].optimizer == "adam" else 30.0
    protocol = create("recipe", of=name, epochs=8, batch=12, lr=lr)
    score = protocol.measure(Sight(encoder, 24), TRAIN, TEST)[0]
    assert score.name == f"recipe ({name}, epochs=8, batch=12, lr={lr:g})"
    assert score.details["changed"]["epochs"] == {"recipe": PRESETS[name].epochs, "used": 8}
    assert score.details["epoch"] == "last"
    # Trust ratios allow weights to grow by a hundredth of themselves at a step.
    assert score.value > 0.6 or PRESETS[name].optimizer in ("lars", "larc")


@pytest.mark.parametrize("name", ["simclr", "w_mse"])
def test_the_encoder_rests(name: str, encoder: Encoder) -> None:
    encoder.train()
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    PaperRecipe(name, epochs=1, batch=12).measure(Sight(encoder, 24), TRAIN, TEST)
    assert all(module.training for module in encoder.modules())
    for key, value in encoder.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_test_labels_are_only_counted(encoder: Encoder) -> None:
    other = Arrays("test", TEST.images, (TEST.labels + 1) % 3, TEST.classes)
    protocol = PaperRecipe("simclr", epochs=2, batch=12, lr=0.3)
    first, second = (protocol.measure(Sight(encoder, 24), TRAIN, t)[0] for t in (TEST, other))
    a, b = (np.array(score.details["confusion"]) for score in (first, second))
    assert np.array_equal(a.sum(axis=0), b.sum(axis=0))  # the same answers
    assert np.array_equal(a, np.roll(b, -1, axis=0))


def test_threads_change_nothing_and_seeds_do(encoder: Encoder) -> None:
    heads = []
    for threads, seed in ((1, 0), (3, 0), (1, 1)):
        protocol = PaperRecipe("swav", epochs=1, batch=12, seed=seed)
        score = protocol.measure(Sight(encoder, 24, threads=threads), TRAIN, TEST)[0]
        heads.append(score)
    assert np.array_equal(heads[0].each, heads[1].each)
    assert heads[0].details["confusion"] == heads[1].details["confusion"]
    assert heads[0].details["confusion"] != heads[2].details["confusion"]


def test_a_batch_goes_through_the_encoder_in_parts(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    sight, preset = Sight(encoder.eval(), 24), Preset(lr=1.0, batch=12, epochs=1)
    whole = list(recipe._views(sight, sight.encoder, TRAIN, preset, 0))
    monkeypatch.setattr(recipe, "_PART", 5)
    parts = list(recipe._views(sight, sight.encoder, TRAIN, preset, 0))
    assert len(whole) == len(parts) == 4
    for (h, y), (same_h, same_y) in zip(whole, parts, strict=True):
        torch.testing.assert_close(h, same_h)
        assert torch.equal(y, same_y)


def linear(x: torch.Tensor, y: torch.Tensor) -> torch.nn.Sequential:
    head = torch.nn.Sequential(torch.nn.Linear(x.shape[1], int(y.max()) + 1))
    torch.manual_seed(1)
    torch.nn.init.normal_(head[0].weight)
    torch.nn.init.zeros_(head[0].bias)
    return head


def test_larc_moves_biases_by_their_own_norm_and_lars_does_not() -> None:
    x, y = torch.randn(8, 3, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 2
    moved = {}
    for name in ("lars", "larc"):
        head = linear(x, y)
        with torch.no_grad():
            head[0].bias.fill_(2.0)
        before = head[0].bias.detach().clone()
        preset = Preset(optimizer=name, lr=1.0, batch=8, epochs=1)
        _train(head, iter([(x, y)]), preset, 1.0, 1)
        moved[name] = float((head[0].bias.detach() - before).norm())
    # Trust 0.001 × ‖b‖ for apex's form, the gradient itself for the official one.
    head = linear(x, y)
    torch.nn.functional.cross_entropy(head(x), y).backward()
    assert moved["larc"] == pytest.approx(0.001 * 2 * 2**0.5, rel=1e-3)
    assert moved["lars"] == pytest.approx(float(head[0].bias.grad.norm()), rel=1e-3)


def test_adam_decays_through_the_gradient() -> None:
    preset = PRESETS["w_mse"]
    optimizer = _optimizer(torch.nn.Linear(2, 2), preset)
    assert type(optimizer) is torch.optim.Adam
    assert {group["weight_decay"] for group in optimizer.param_groups} == {5e-6}
    nesterov = _optimizer(torch.nn.Linear(2, 2), PRESETS["simclr"])
    assert nesterov.param_groups[0]["nesterov"]
    assert nesterov.param_groups[0]["momentum"] == 0.9
    assert {group["weight_decay"] for group in nesterov.param_groups} == {1e-6}


def test_first_weights() -> None:
    weight = PaperRecipe("moco", seed=3)._head(PRESETS["moco"], 500, 20)[0].weight
    assert float(weight.detach().std()) == pytest.approx(0.01, rel=0.05)
    zero = PaperRecipe("simclr")._head(PRESETS["simclr"], 500, 20)[0]
    assert not zero.weight.any()
    norm, _ = PaperRecipe("mae")._head(PRESETS["mae"], 5, 2)
    assert (norm.affine, norm.eps) == (False, 1e-6)
    assert not torch.equal(
        weight, PaperRecipe("moco", seed=4)._head(PRESETS["moco"], 500, 20)[0].weight
    )


def test_cached_rows_are_seen_once_an_epoch() -> None:
    x = torch.arange(48.0)[:, None]
    preset = Preset(lr=1.0, batch=12, epochs=2)
    seen = list(_cached(x, TRAIN, preset, 0))
    assert len(seen) == 8
    for epoch in (seen[:4], seen[4:]):
        rows = torch.cat([h for h, _ in epoch])[:, 0]
        assert sorted(rows.tolist()) == list(range(48))
        assert torch.cat([y for _, y in epoch]).tolist() == TRAIN.labels[rows.int()].tolist()
    assert not torch.equal(seen[0][0], seen[4][0])


def test_a_batch_larger_than_the_data_is_said(encoder: Encoder) -> None:
    protocol = PaperRecipe("mae", epochs=1)
    score = protocol.measure(Sight(encoder, 24), TRAIN, TEST)[0]
    assert score.details["changed"]["batch"] == {"recipe": 16384, "used": 48}
    assert score.details["recipe"]["lr"] == pytest.approx(0.1 * 48 / 256)
    assert "batch=48" in score.name
    assert PaperRecipe("mae")._fitted(1000)[0].batch == 768


@pytest.mark.parametrize("dim", [64, 768])
def test_dinos_head_reads_class_tokens(dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    vit = create_encoder("test_vit", size=32, seed=0).eval()
    x = torch.rand(2, 3, 32, 32)
    blocks, behind, e = vit.model.blocks, [], vit.model._pos_embed(vit.model.patch_embed(x))
    for block in blocks:
        e = block(e)
        behind.append(vit.model.norm(e))
    monkeypatch.setattr(vit, "dim", dim)
    read = recipe._tokens(vit)(x)
    if dim == 64:
        torch.testing.assert_close(read, torch.cat([e[:, 0] for e in behind[-4:]], dim=1))
        score = PaperRecipe("dino", epochs=1).measure(Sight(vit, 32), TRAIN, TEST)[0]
        assert score.details["width"] == 4 * 64
    else:  # as wide as ViT-B
        last = behind[-1]
        torch.testing.assert_close(read, torch.cat([last[:, 0], last[:, 1:].mean(dim=1)], dim=1))


def test_dinos_head_reads_h_where_there_is_no_class_token(encoder: Encoder) -> None:
    pooled = create_encoder("test_vit", size=32, seed=0, class_token=False, global_pool="avg")
    for one, size in ((encoder, 24), (pooled, 32)):
        with one.resting("cpu"), torch.no_grad():
            x = torch.rand(2, 3, size, size)
            assert torch.equal(recipe._tokens(one)(x), one(x))


def test_through_judge(encoder: Encoder) -> None:
    images = np.concatenate([TRAIN.images, TEST.images])
    data = Arrays("both", images, np.concatenate([TRAIN.labels, TEST.labels]), TRAIN.classes)
    told: list[tuple[int, ...]] = []
    sight = Sight(encoder, 24, progress=lambda what: lambda *count: told.append(count))
    report = judge(sight, data, [PaperRecipe("simsiam", epochs=1, batch=19)])
    assert report["recipe"].n == 15
    assert (19, 57) in told


def test_refuses_what_it_cannot_use(encoder: Encoder) -> None:
    sight = Sight(encoder, 24)
    with pytest.raises(ConfigError, match=r"must be barlow_twins or .*did you mean simclr"):
        create("recipe", of="simcler")
    with pytest.raises(ConfigError, match=r"--recipe.epochs 0 of recipe: must be 1 or more"):
        create("recipe", epochs=0)
    with pytest.raises(ConfigError, match=r"--recipe.batch 49 is more than the 48 training images"):
        PaperRecipe("moco", batch=49).measure(sight, TRAIN, TEST)
    with pytest.raises(ConfigError, match="recipe of mae normalises over the batch"):
        PaperRecipe("mae", batch=1).measure(sight, TRAIN, TEST)
    with pytest.raises(ConfigError, match=r"--recipe.lr 10000000.0 of recipe: must be above 0, up"):
        create("recipe", lr=1e7)
    with pytest.raises(DataError, match="training images have no labels"):
        PaperRecipe().measure(sight, Arrays("x", TRAIN.images), TEST)
    one = Arrays("x", TRAIN.images, np.zeros(48, np.int64))
    with pytest.raises(DataError, match="all training images have one class"):
        PaperRecipe().measure(sight, one, TEST)
    with pytest.raises(DataError, match="there are no test images"):
        PaperRecipe().measure(sight, TRAIN, Arrays("x", TRAIN.images[:0], TRAIN.labels[:0]))


def test_divergence_is_said(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = recipe._embedded
    monkeypatch.setattr(recipe, "_embedded", lambda *given: 1e36 * plain(*given))
    with pytest.raises(Diverged, match=r"recipe of moco diverged at rate 1e\+06; lower --"):
        PaperRecipe("moco", epochs=2, batch=12, lr=1e6).measure(Sight(encoder, 24), TRAIN, TEST)


def test_embeddings_that_are_not_finite(encoder: Encoder) -> None:
    broken = copy.deepcopy(encoder)
    with torch.no_grad():
        next(broken.parameters()).fill_(torch.nan)
    with pytest.raises(DataError, match=r"48 embeddings are not finite, the first of train\[0\]"):
        PaperRecipe("w_mse").measure(Sight(broken, 24), TRAIN, TEST)
