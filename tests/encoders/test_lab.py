"""Two encoders for lightness and colours under one of timm's names."""

import numpy as np
import pytest
import timm
import torch

from selfsight import views
from selfsight.encoders import create_encoder
from selfsight.encoders.lab import split
from selfsight.errors import ConfigError, StorageError
from selfsight.export import load_model, save_model
from selfsight.views import View

MEAN, STD = (0.4, 0.5, 0.45), (0.2, 0.3, 0.25)


def pair(name="test_resnet", size=64, **options):
    encoder = create_encoder(name, size=size, seed=0, **options)
    encoder.mean, encoder.std = MEAN, STD
    return split(encoder).eval()


def test_its_colours_are_the_views():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4, 48, 48, 3), np.uint8)
    images[0] = rng.integers(0, 12, (48, 48, 3))  # where both curves are straight
    plain = {"size": 48, "jitter_p": 0.0, "gray": 0.0, "blur": 0.0, "crop": (0.5, 1.0)}
    rgb, lab = (
        views.apply(images, View(space=space, **plain), mean=MEAN, std=STD)[0]
        for space in ("rgb", "lab")
    )
    found = pair().model.lab(rgb)
    torch.testing.assert_close(found, lab, rtol=0, atol=1e-5)
    assert lab[:, 1:].abs().max() > 0.5


@pytest.mark.parametrize(("rgb", "lab"), [((1, 1, 1), (100, 0, 0)), ((0, 0, 0), (0, 0, 0)),
                                          ((1, 0, 0), (53.24, 80.09, 67.20))])  # fmt: skip
def test_known_colours(rgb, lab):
    x = (torch.tensor(rgb) - torch.tensor(MEAN)) / torch.tensor(STD)
    found = pair().model.lab(x.view(1, 3, 1, 1)).flatten()
    expected = torch.tensor([lab[0] / 50 - 1, lab[1] / 110, lab[2] / 110])
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize(("name", "size", "options"), [
    ("test_resnet", 64, {}),
    ("resnet18_small", 32, {}),
    ("test_vit", 48, {"patch_size": 8}),
])  # fmt: skip
@torch.no_grad()
def test_what_is_exported_is_the_encoder(tmp_path, name, size, options):
    encoder = pair(name, size, **options)
    single = create_encoder(name, size=size, **options)
    assert (encoder.dim, encoder.multiple) == (2 * single.dim, single.multiple)
    assert (encoder.mean, encoder.std) == (MEAN, STD)
    x = torch.randn(2, 3, size, size)
    h = encoder(x)
    save_model(encoder, tmp_path)
    source = f"local-dir:{tmp_path}"
    ours, plain = load_model(tmp_path).eval(), timm.create_model(source, pretrained=True).eval()
    torch.testing.assert_close(ours(x), h, rtol=0, atol=1e-5)
    torch.testing.assert_close(plain(x), h, rtol=0, atol=1e-5)
    assert (ours.mean, ours.std, ours.size) == (MEAN, STD, size)
    assert "import selfsight.encoders" in (tmp_path / "config.json").read_text()

    classifier = timm.create_model(source, pretrained=True, num_classes=12).eval()
    assert classifier(x).shape == (2, 12)
    before = classifier.forward_head(classifier.forward_features(x), pre_logits=True)
    torch.testing.assert_close(before, h)
    levels = timm.create_model(source, pretrained=True, features_only=True).eval()
    wanted = encoder.maps(x, 1)[0]
    torch.testing.assert_close(levels(x)[-1], wanted)
    assert levels.feature_info.channels()[-1] == wanted.shape[1] == 2 * single.token_dim
    pooled, tokens = encoder.tokens(x)
    torch.testing.assert_close(pooled, h)
    assert tokens.shape[2] == encoder.token_dim == 2 * single.token_dim


def test_a_half_is_the_plain_model():
    encoder = pair()
    x = torch.randn(2, 3, 64, 64)
    lab = encoder.model.lab(x)
    halves = encoder.model.lightness(lab[:, :1]), encoder.model.colour(lab[:, 1:])
    torch.testing.assert_close(encoder(x), torch.cat(halves, 1))
    assert not torch.equal(*(h.detach() for h in halves))


@pytest.mark.parametrize("chosen", [
    {"backbone": "local-dir:weights"},
    {"backbone": "lab_pair"},
    {"backbone": "test_resnet", "arguments": {"checkpoint_path": "weights.pth"}},
])  # fmt: skip
def test_nothing_is_read_behind_our_back(chosen):
    with pytest.raises(ConfigError, match=r"not|may not"):
        create_encoder("lab_pair", size=64, **chosen)


def test_a_folder_with_such_arguments_is_refused(tmp_path):
    save_model(pair(), tmp_path)
    config = tmp_path / "config.json"
    text = config.read_text()
    config.write_text(text.replace('"arguments": {}', '"arguments": {"checkpoint_path": "w"}'))
    assert config.read_text() != text
    with pytest.raises(StorageError, match="checkpoint_path"):
        load_model(tmp_path)
