"""Fine-tuning: what learns and how fast, what stays, and what is read."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from selfsight.cli.values import typed
from selfsight.data.base import Arrays, Source
from selfsight.encoders import create_encoder
from selfsight.errors import ConfigError, DataError, Diverged
from selfsight.evaluate import Sight, judge, options
from selfsight.evaluate.learners.tuning import TUNINGS, Tuning
from selfsight.evaluate.protocols.few import Few
from selfsight.evaluate.protocols.finetune import Finetune, Tuned, groups, thaw
from selfsight.evaluate.protocols.linear import LinearProbe
from selfsight.features import Features

CLASSES = ("red", "green", "blue")
VIT_BLOCKS = [f"blocks.{number}." for number in range(6)]


def coloured(count: int = 36, seed: int = 0, side: int = 16) -> Arrays:
    """Noise that is brighter in the channel of its class."""
    draw = np.random.default_rng(seed)
    images = draw.integers(0, 120, (count, side, side, 3), np.uint8)
    labels = np.arange(count) % 3
    images[np.arange(count), :, :, labels] += 90
    return Arrays("colours", images, labels, CLASSES)


def sight(name: str = "test_resnet", size: int = 16, **options: object) -> Sight:
    return Sight(create_encoder(name, size=size, seed=0, **options), size)


def state(module: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in module.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


SHORT = {"epochs": 3, "batch": 12}


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_a_planted_task_is_learned(name: str) -> None:
    start = sight(name)
    before = state(start.encoder)
    protocol = Finetune(epochs=12, batch=12, lr=0.02)
    score, *others = protocol.measure(start, coloured(), coloured(30, seed=1))
    assert others == []
    assert score.value > 0.9
    assert (score.protocol, score.metric, score.n) == ("finetune", "accuracy", 30)
    assert set(score.details["per_class"]) == set(CLASSES)
    assert score.details["epoch"] == 12
    assert score.details["images"] == 36
    assert json.loads(json.dumps(score.json()))["details"]["rate"] == pytest.approx(0.02 * 12 / 256)
    assert same(before, state(start.encoder))
    assert all(p.requires_grad and p.grad is None for p in start.encoder.parameters())


def test_the_seed_says_all() -> None:
    chosen = {**SHORT, "mixup": 0.8, "cutmix": 1.0, "erase": 0.5, "drop_path": 0.3}
    start, train = sight(), coloured()
    torch.manual_seed(1)
    first = Finetune(**chosen).fit(start, train)
    torch.manual_seed(2)
    expected = torch.rand(3)
    torch.manual_seed(2)
    second = Finetune(**chosen).fit(start, train)
    assert torch.equal(torch.rand(3), expected)
    assert same(state(first.encoder), state(second.encoder))
    assert same(state(first.head), state(second.head))
    third = Finetune(**chosen, seed=1).fit(start, train)
    assert not same(state(first.encoder), state(third.encoder))
    assert not torch.equal(first.head.weight, third.head.weight)


def test_half_precision_leaves_the_weights_whole() -> None:
    start = sight("test_vit")
    tuned = Finetune(**SHORT).fit(replace(start, precision="bf16"), coloured())
    assert {p.dtype for p in tuned.encoder.parameters()} == {torch.float32}
    full = Finetune(**SHORT).fit(start, coloured())
    assert not torch.equal(full.head.weight, tuned.head.weight)
    torch.testing.assert_close(full.loss, tuned.loss, atol=0.05, rtol=0)


def test_images_too_small_for_half_precision_have_whole_gradients() -> None:
    """On a CPU those of a CNN at 16 px hold whatever lay in memory."""
    start = sight("test_resnet")
    tuned = Finetune(**SHORT).fit(replace(start, precision="bf16"), coloured())
    full = Finetune(**SHORT).fit(start, coloured())
    assert torch.equal(full.head.weight, tuned.head.weight)


def test_the_test_images_are_embedded_once() -> None:
    told: list[tuple[str, int, int]] = []
    watched = replace(sight(), progress=lambda what: lambda *count: told.append((what, *count)))
    protocol = Finetune(epochs=2, batch=12, choose="held_out")
    protocol.measure(watched, coloured(), coloured(12, 1))
    # Of the test images only; those held out are embedded after each epoch.
    assert [count for count in told if count[0] == "embedded"] == [("embedded", 12, 12)]
    assert ("fine-tuned", *told[0][1:]) == told[0]


def test_through_judge() -> None:
    report = judge(sight(), coloured(60), [Finetune(**SHORT)])
    assert report["finetune"].n == 12
    assert report["finetune"].name == "fine-tuning (48 images, 3 epochs)"


def test_the_head_starts_as_the_linear_probe() -> None:
    start, draw = sight(), np.random.default_rng(0)
    images = draw.integers(0, 256, (40, 16, 16, 3), np.uint8)
    # Class 1 has no training image.
    train = Arrays("three", images, np.arange(40) % 2 * 2, ("a", "b", "c"))
    still = {"epochs": 1, "batch": 40, "lr": 1e-30, "head_lr": 1e-30}
    protocol = Finetune(**still, head="probe")
    # One step at a rate of nothing, which only BatchNorm's statistics have noticed.
    tuned = protocol.fit(start, train)
    probe = LinearProbe().fit(start.embed(train).embedding, train.labels)
    tuned.encoder.load_state_dict(start.encoder.state_dict())
    answers = tuned.answers(start, train)
    expected = probe.logits(start.embed(train).embedding)
    np.testing.assert_allclose(answers[:, [0, 2]], expected[:, [0, 2]], rtol=1e-3, atol=1e-3)
    assert (answers[:, 1] < -15).all()
    drawn = Finetune(**still, head_std=0.5).fit(start, train).head
    assert drawn.weight.std().item() == pytest.approx(0.5, rel=0.1)
    assert drawn.bias.abs().max() < 1e-20


@pytest.mark.parametrize(
    ("name", "first", "kept"),
    [
        ("test_resnet", 3, ("conv1", "bn1", "layer1", "layer2")),
        ("test_resnet", -2, ("conv1", "bn1", "layer1", "layer2")),
        ("test_resnet", 1, ("conv1", "bn1")),
        ("test_vit", -1, ("cls_token", "pos_embed", "patch_embed", *VIT_BLOCKS[:5])),
        ("test_vit", 0, ()),
    ],
)  # fmt: skip
def test_frozen_layers_stay_bit_by_bit(name: str, first: int, kept: tuple[str, ...]) -> None:
    start = sight(name)
    before = state(start.encoder)
    # Decay alone would move a weight without a gradient.
    tuned = Finetune(**SHORT, lr=0.1, weight_decay=0.5, from_layer=first).fit(start, coloured())
    after = state(tuned.encoder)
    for key, value in before.items():
        frozen = key.removeprefix("model.").startswith(kept) if kept else False
        assert torch.equal(value, after[key]) == frozen, key
    assert not tuned.encoder.training


def test_frozen_layers_are_in_evaluation_mode() -> None:
    encoder = create_encoder("test_resnet", size=16, seed=0)
    thaw(encoder, 3)
    mode = {name: part.training for name, part in encoder.model.named_modules()}
    assert not any(mode[n] for n in ("conv1", "conv1.1", "bn1", "layer1.0.bn1", "layer2.0.bn2"))
    assert all(mode[n] for n in ("", "layer3", "layer3.0.bn1", "layer4.0.bn2"))
    thaw(encoder, 0)
    assert all(part.training for part in encoder.modules())
    assert all(p.requires_grad for p in encoder.parameters())


@pytest.mark.parametrize("first", [7, -7])
def test_a_layer_that_is_not_there(first: int) -> None:
    encoder = create_encoder("test_vit", size=16, seed=0)
    with pytest.raises(ConfigError, match=r"test_vit has 6 blocks or stages; .* from -6 to 6"):
        thaw(encoder, first)


def rates(name: str, **numbers: object) -> dict[str, tuple[float, float | None]]:
    """Of each parameter: its factor on the rate, and its decay if it has one of its own."""
    encoder = create_encoder(name, size=16, seed=0)
    head = nn.Linear(encoder.dim, 2)
    names = {id(p): n.removeprefix("model.") for n, p in encoder.named_parameters()}
    names |= {id(p): f"head.{n}" for n, p in head.named_parameters()}
    found = {}
    for group in groups(encoder, head, replace(Tuning(), **numbers)):
        for p in group["params"]:
            found[names.pop(id(p))] = (group["lr_scale"], group.get("decay"))
    assert not names
    return found


def test_layer_decay_of_a_vit() -> None:
    # Six blocks: 0.5 for the last, 0.5⁶ for the first, 0.5⁷ before them.
    found = rates("test_vit", layer_decay=0.5, head_lr=None)
    for start, scale, decay in (
        ("cls_token", 0.0078125, 0.0), ("pos_embed", 0.0078125, 0.0),
        ("patch_embed.proj.weight", 0.0078125, None),
        ("blocks.0.attn.qkv.weight", 0.015625, None), ("blocks.1.mlp.fc1.bias", 0.03125, None),
        ("blocks.2.norm1.weight", 0.0625, None), ("blocks.3.norm2.bias", 0.125, None),
        ("blocks.4.attn.proj.weight", 0.25, None), ("blocks.5.mlp.fc2.weight", 0.5, None),
        ("norm.weight", 1.0, None), ("head.weight", 1.0, None), ("head.bias", 1.0, None),
    ):  # fmt: skip
        assert found[start] == (scale, decay), start


def test_layer_decay_of_a_cnn() -> None:
    found = rates("test_resnet", layer_decay=0.1, lr=0.01, head_lr=0.2)
    for start, scale in (
        ("conv1.0.weight", 1e-5), ("bn1.bias", 1e-5), ("layer1.0.conv1.weight", 1e-4),
        ("layer2.0.bn1.weight", 1e-3), ("layer3.0.downsample.1.weight", 1e-2),
        ("layer4.0.conv2.weight", 0.1), ("head.weight", 20.0),
    ):  # fmt: skip
        assert found[start] == (pytest.approx(scale), None), start


def test_without_layer_decay_all_learn_alike() -> None:
    assert {scale for scale, _ in rates("test_vit", layer_decay=1.0, head_lr=None).values()} == {
        1.0
    }


def test_an_encoder_that_does_not_tell_its_layers_apart() -> None:
    encoder = create_encoder("csatv2", size=64, seed=0)
    with pytest.raises(ConfigError, match=r"csatv2 does not tell its layers apart.* layer_decay"):
        groups(encoder, nn.Linear(encoder.dim, 2), Tuning())
    assert groups(encoder, nn.Linear(encoder.dim, 2), replace(Tuning(), layer_decay=1.0))


def test_drop_path_reaches_the_model() -> None:
    encoder = create_encoder("test_vit", size=16, seed=0)
    x = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    copied = encoder.copied(drop_path=0.5)
    probability = [block.drop_path1.drop_prob for block in copied.model.blocks[1:]]
    assert probability == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    assert torch.equal(copied.eval()(x), encoder.eval()(x))
    copied.train()
    with torch.random.fork_rng(devices=[]):
        assert not torch.equal(copied(x), copied(x))
    assert (copied.mean, copied.crop_pct) == (encoder.mean, encoder.crop_pct)
    # What was pre-trained with drop-path is fine-tuned without it unless it is asked for.
    plain = copied.copied()
    assert torch.equal(plain.train()(x), encoder(x))
    tuned = Finetune(**SHORT, drop_path=0.5).fit(sight("test_vit"), coloured())
    assert tuned.encoder.options["drop_path_rate"] == 0.5


def test_drop_path_where_there_is_nothing_to_drop() -> None:
    with pytest.raises(ConfigError, match="drop"):
        create_encoder("vgg11", size=32, seed=0).copied(drop_path=0.1)


def test_mean_pooling() -> None:
    encoder = create_encoder("test_vit", size=32, seed=0)
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    copied = encoder.copied(average=True).eval()
    blocks = encoder.eval().model
    tokens = blocks.blocks(blocks.norm_pre(blocks._pos_embed(blocks.patch_embed(x))))
    expected = nn.functional.layer_norm(tokens[:, 1:].mean(dim=1), (64,), eps=1e-6)
    torch.testing.assert_close(copied(x), expected)
    assert copied.layers()[-1] == ["model.fc_norm.weight", "model.fc_norm.bias"]
    resnet = create_encoder("test_resnet", size=32, seed=0)
    assert torch.equal(resnet.copied(average=True).eval()(x), resnet.eval()(x))
    with pytest.raises(ConfigError, match="swin"):
        create_encoder("swinv2_tiny_window8_256", size=64, seed=0, global_pool="max").copied(
            average=True
        )


class Watched(Source):
    """Says which images were read."""

    def __init__(self, source: Arrays) -> None:
        self.source, self.seen = source, set[int]()
        self.name, self.sizes, self.labels = source.name, source.sizes, source.labels
        self.classes = source.classes

    def read(self, index, least=0):
        self.seen.add(index)
        return self.source.read(index, least)

    def path(self, index):
        return self.source.path(index)

    def digest(self, index):
        return self.source.digest(index)

    @property
    def fingerprint(self):
        return self.source.fingerprint


@pytest.mark.parametrize(("labels", "count"), [(2, 6), (0.25, 9)])
@pytest.mark.parametrize("choose", ["last", "held_out"])
def test_only_labelled_images_count(labels: float, count: int, choose: str) -> None:
    train = coloured()
    protocol = Finetune(epochs=2, batch=4, labels=labels, choose=choose)
    watched = Watched(train)
    tuned = protocol.fit(sight(), watched)
    known = Features(np.zeros((36, 1)), train.labels, classes=CLASSES)
    shown = Few(labels, seeds=1).draw(known)[0]
    assert len(shown) == count
    assert np.bincount(train.labels[shown]).tolist() == [count // 3] * 3
    assert watched.seen <= set(shown.tolist())
    assert tuned.images == count - (3 if choose == "held_out" else 0)
    images = train.images.copy()
    images[np.setdiff1d(np.arange(36), shown)] = 255
    again = protocol.fit(sight(), Arrays("colours", images, train.labels, CLASSES))
    assert same(state(tuned.encoder), state(again.encoder))
    images[shown] = 255
    other = protocol.fit(sight(), Arrays("colours", images, train.labels, CLASSES))
    assert not same(state(tuned.encoder), state(other.encoder))


def test_the_epoch_chosen_on_held_out_training_images(monkeypatch: pytest.MonkeyPatch) -> None:
    protocol = Finetune(epochs=4, batch=12, choose="held_out")
    seen: list[dict[str, torch.Tensor]] = []
    right = iter([1, 3, 3, 0])

    def answers(tuned: Tuned, sight: Sight, source: Source) -> np.ndarray:
        seen.append(state(tuned.encoder))
        assert len(source) == 6
        assert source.labels is not None
        given = (source.labels + 1) % 3
        count = next(right)
        given[:count] = source.labels[:count]
        return np.eye(3)[given]

    monkeypatch.setattr(Tuned, "answers", answers)
    tuned = protocol.fit(sight(), coloured())
    # Of equals the later.
    assert tuned.epoch == 3
    assert same(state(tuned.encoder), seen[2])
    assert not same(state(tuned.encoder), seen[3])


def test_recipes() -> None:
    swav = TUNINGS["swav_1pct"]
    assert (swav.lr, swav.head_lr, swav.epochs, swav.labels) == (0.02, 5.0, 20, 0.01)
    assert swav.recipe.rate(64) == 0.02
    # 0.005 · √1024
    assert TUNINGS["simclr_v2_1pct"].recipe.rate(1024) == pytest.approx(0.16)
    assert TUNINGS["mae_base"].recipe.rate(1024) == pytest.approx(2e-3)
    huge = Finetune("mae_huge", epochs=7).tuning
    assert (huge.layer_decay, huge.drop_path, huge.lr, huge.epochs) == (0.75, 0.3, 1e-3, 7)
    assert (huge.mixup, huge.cutmix, huge.erase, huge.average) == (0.8, 1.0, 0.25, True)


@pytest.mark.parametrize("of", sorted(set(TUNINGS) - {"default"}))
def test_every_recipe_runs(of: str) -> None:
    name = "test_vit" if of.startswith("mae") else "test_resnet"
    labels = None if of.startswith("mae") else 4
    score = Finetune(of, epochs=2, labels=labels).measure(sight(name), coloured(), coloured(12, 1))[
        0
    ]
    assert score.name.startswith(f"fine-tuning ({of}, ")
    assert score.details["batch"] == (12 if labels else 36)


def test_swavs_steps_and_the_heads_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[list[float]] = []
    step = torch.optim.SGD.step

    def watched(self, closure=None):
        steps.append(sorted({group["lr"] for group in self.param_groups}))
        return step(self)

    monkeypatch.setattr(torch.optim.SGD, "step", watched)
    Finetune("swav_10pct", epochs=5, labels=4).fit(sight(), coloured())
    assert [pair[0] for pair in steps] == pytest.approx([0.01] * 3 + [0.002, 0.0004])
    assert [pair[1] for pair in steps] == pytest.approx([0.2] * 3 + [0.04, 0.008])


def test_a_head_of_zeros_grows_under_lars() -> None:
    tuned = Finetune("simclr_v2_10pct", labels=4, epochs=2).fit(sight(), coloured())
    assert tuned.head.weight.abs().max() > 1e-3


def test_divergence_is_one_line() -> None:
    start = sight()
    protocol = Finetune(**SHORT, optimizer="sgd", lr=1e30)
    with pytest.raises(Diverged, match=r"not finite; try a lower --finetune\.lr") as caught:
        protocol.measure(start, coloured(), coloured(12, 1))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ({"lr": -1.0}, r"--finetune.lr -1.0 of finetune: must be above 0"),
        ({"layer_decay": 0.0}, "layer_decay 0.0 .* above 0, up to 1"),
        ({"of": "swav_1"}, "did you mean swav_1pct"),
        ({"choose": "best"}, "must be last or held_out"),
        ({"labels": 0}, "labels 0"),
        ({"labels": "no/such/list.txt"}, "no/such/list.txt"),
        ({"batch": 1}, "must be 2 or more"),
    ],
)
def test_wrong_options(chosen: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        Finetune(**chosen)
    assert "\n" not in str(caught.value)


def test_unusable_data() -> None:
    start, train = sight(), coloured()
    plain = Arrays("plain", train.images)
    one = Arrays("one", train.images, np.zeros(36, np.int64), ("a", "b"))
    for data, words in (
        (plain, "plain has no labels"),
        (one, "all training images have one class"),
    ):
        with pytest.raises(DataError, match=words):
            Finetune(**SHORT).fit(start, data)
    with pytest.raises(DataError, match="none can be held out"):
        Finetune(**SHORT, labels=1, choose="held_out").fit(start, train)
    with pytest.raises(DataError, match="no labelled images to test on"):
        Finetune(**SHORT).measure(start, train, plain)


def test_options_from_the_command_line() -> None:
    written = {
        "finetune.of": "mae_base", "finetune.labels": "0.1", "finetune.from-layer": "-2",
        "finetune.layer_decay": "0.65", "finetune.average": "false", "finetune.epochs": "3",
    }  # fmt: skip
    found = typed("finetune", written, options("finetune"), "finetune")
    protocol = Finetune(**found)
    assert (protocol.tuning.labels, protocol.from_layer) == (0.1, -2)
    assert (protocol.tuning.average, protocol.tuning.epochs) == (False, 3)
    assert protocol.tuning == replace(TUNINGS["mae_base"], labels=0.1, average=False, epochs=3)
