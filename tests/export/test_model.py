"""What timm, torchvision and selfsight read from an exported folder."""

import json

import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file

from selfsight.encoders import create_encoder
from selfsight.errors import ConfigError, StorageError
from selfsight.export import load_model, save_model

CASES = [
    ("test_resnet", 64, {}),
    ("resnet18_small", 32, {}),
    ("test_convnext", 64, {}),
    ("test_efficientnet", 64, {}),
    ("test_vit", 48, {"patch_size": 8, "drop_path_rate": 0.1}),
    ("test_vit", 48, {"global_pool": "avg", "class_token": False}),
    (
        "swin_tiny_patch4_window7_224",
        64,
        {"depths": [1, 1, 1, 1], "embed_dim": 24, "num_heads": [2, 2, 2, 2]},
    ),
]


def make(name, size, options):
    encoder = create_encoder(name, size=size, seed=0, **options)
    with torch.no_grad():  # so that no weight has the value that it is initialised with
        generator = torch.Generator().manual_seed(1)
        for tensor in encoder.model.state_dict().values():
            if tensor.is_floating_point():
                tensor += 0.05 * torch.rand(tensor.shape, generator=generator)
    return encoder.eval()


@pytest.mark.parametrize(("name", "size", "options"), CASES)
@torch.no_grad()
def test_timm_and_we_load_it(tmp_path, name, size, options):
    encoder = make(name, size, options)
    encoder.mean, encoder.std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    save_model(encoder, tmp_path, extra={"method": "simclr"})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    source, x = f"local-dir:{tmp_path}", torch.randn(2, 3, size, size)
    h = encoder(x)

    for arguments in ({}, {"num_classes": 0}):
        plain = timm.create_model(source, pretrained=True, **arguments).eval()
        torch.testing.assert_close(plain(x), h, atol=0, rtol=0)
    config = timm.data.resolve_model_data_config(plain)
    assert (config["mean"], config["std"]) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    assert tuple(config["input_size"]) == (3, size, size)
    assert config["interpolation"] == encoder.interpolation

    classifier = timm.create_model(source, pretrained=True, num_classes=12).eval()
    assert classifier(x).shape == (2, 12)
    h12 = classifier.forward_head(classifier.forward_features(x), pre_logits=True)
    torch.testing.assert_close(h12, h, atol=0, rtol=0)

    levels = timm.create_model(source, pretrained=True, features_only=True).eval()(x)
    wanted = encoder.maps(x, 1)[0]
    if levels[-1].shape != wanted.shape:
        levels[-1] = levels[-1].permute(0, 3, 1, 2)
    torch.testing.assert_close(levels[-1], wanted, atol=0, rtol=0)

    ours = load_model(tmp_path).eval()
    torch.testing.assert_close(ours(x), h, atol=0, rtol=0)
    assert (ours.size, ours.mean, ours.std) == (size, encoder.mean, encoder.std)
    assert (ours.crop_pct, ours.interpolation) == (encoder.crop_pct, encoder.interpolation)
    assert (ours.name, ours.multiple) == (name, encoder.multiple)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["selfsight"]["method"] == "simclr"
    assert written["num_classes"] == 0
    assert ("requires" in written) == (name == "resnet18_small")


@torch.no_grad()
def test_another_size(tmp_path):
    encoder = make("test_vit", 48, {})
    save_model(encoder, tmp_path, size=64, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    x = torch.randn(1, 3, 64, 64)
    for model in (
        timm.create_model(f"local-dir:{tmp_path}", pretrained=True),
        load_model(tmp_path),
    ):
        torch.testing.assert_close(model.eval()(x), encoder(x), atol=1e-5, rtol=1e-4)
    assert load_model(tmp_path).size == 64
    assert load_model(tmp_path).mean == (0.5, 0.5, 0.5)
    with pytest.raises(ConfigError, match="built for 64 pixels, not 96"):
        save_model(make("test_vit_relpos", 64, {}), tmp_path, size=96)


@torch.no_grad()
def test_torchvision_loads_it(tmp_path):
    encoder = make("resnet18", 32, {})
    save_model(encoder, tmp_path)
    model = torchvision.models.resnet18()
    result = model.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=False)
    assert result.missing_keys == ["fc.weight", "fc.bias"]
    assert result.unexpected_keys == []
    model.fc = torch.nn.Identity()
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model.eval()(x), encoder(x))


def test_saving_replaces_and_leaves_no_traces(tmp_path, monkeypatch):
    first, second = make("test_resnet", 64, {}), create_encoder("test_resnet", size=64, seed=9)
    save_model(first, tmp_path / "a" / "model")
    save_model(second.to(memory_format=torch.channels_last), tmp_path / "a" / "model")
    for key, value in load_model(tmp_path / "a" / "model").model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[key])
    save_model(second, tmp_path / "b")
    for name in ("config.json", "model.safetensors"):
        same = [(tmp_path / folder / name).read_bytes() for folder in ("a/model", "b")]
        assert same[0] == same[1]
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="could not be written"):
        save_model(first, tmp_path / "file")

    def full(*arguments):
        raise OSError("No space left on device")

    monkeypatch.setattr("selfsight.export.model._sync", full)
    with pytest.raises(StorageError, match="No space left"):
        save_model(first, tmp_path / "a" / "model")
    assert len(list((tmp_path / "a" / "model").iterdir())) == 2


@pytest.fixture
def folder(tmp_path):
    save_model(make("test_resnet", 64, {}), tmp_path)
    return tmp_path


def refused(folder, match):
    with pytest.raises(StorageError, match=match) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_missing_and_cut_files(folder, name):
    content = (folder / name).read_bytes()
    for keep in (0, 1, 9, len(content) // 2, len(content) - 3):
        (folder / name).write_bytes(content[:keep])
        refused(folder, "export it again")
    (folder / name).unlink()
    refused(folder, f"holds no {name}")


def test_one_flipped_bit(folder):
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-5] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    refused(folder, "not what was written")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"architecture": "os.system"}, "unknown encoder os.system"),
        ({"architecture": ["test_resnet"]}, "unknown encoder"),
        ({"architecture": "test_vit"}, "do not fit test_vit"),
        ({"model_args": {"checkpoint_path": "/etc/passwd"}}, "may not set checkpoint_path"),
        ({"model_args": {"colour": "red"}}, "takes no option colour"),
        ({"model_args": 3}, "does not describe a model"),
        ({"model_args": {"img_size": [64, 32]}}, "square images"),
        ({"pretrained_cfg": {}}, "does not describe a model"),
        ({"pretrained_cfg": {"input_size": [3, 64, 64], "mean": [1]}}, "does not describe"),
        ({"selfsight": 1}, "does not describe a model"),
    ],
)
def test_hostile_descriptions(folder, change, match):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    refused(folder, match)


def test_deep_and_large_descriptions(folder):
    for text in ("[" * 500_000, "[" * 2_000_000, "3", "null"):
        (folder / "config.json").write_text(text)
        refused(folder, "does not describe a model")
