"""Weights come from the local cache, a file or a folder, and never from a pickle."""

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from selfsight.encoders import create_encoder
from selfsight.errors import ConfigError, StorageError


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def publish(cache, repository, model, file="model.safetensors"):
    folder = cache / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs/main").write_text("a1b2")
    (folder / "snapshots/a1b2").mkdir(parents=True)
    save_file(model.state_dict(), folder / "snapshots/a1b2" / file)


@pytest.mark.parametrize(
    ("name", "size"), [("test_resnet.r160_in1k", None), ("test_vit", 48), ("test_vit", None)]
)
@torch.no_grad()
def test_from_the_cache(cache, name, size, capfd):
    cfg = timm.get_pretrained_cfg(name)
    torch.manual_seed(0)
    published = timm.create_model(name).eval()
    publish(cache, cfg.hf_hub_id, published)
    before = torch.get_rng_state()
    encoder = create_encoder(name, size=size, pretrained=True).eval()
    assert torch.equal(torch.get_rng_state(), before)
    assert (encoder.mean, encoder.std) == (cfg.mean, cfg.std)
    assert (encoder.crop_pct, encoder.interpolation) == (cfg.crop_pct, cfg.interpolation)
    x = torch.randn(2, 3, encoder.size, encoder.size)
    if size is None:
        wanted = published.forward_head(published.forward_features(x), pre_logits=True)
        torch.testing.assert_close(encoder(x), wanted)
    else:
        big = create_encoder(name, pretrained=True).eval()
        torch.testing.assert_close(encoder(x), big(x), atol=1e-5, rtol=1e-4)
    assert encoder.fresh(seed=0).mean == encoder.mean
    assert capfd.readouterr() == ("", "")


def test_not_in_the_cache(cache, capfd):
    with pytest.raises(ConfigError) as caught:
        create_encoder("resnet18.a1_in1k", pretrained=True)
    message = str(caught.value)
    assert "(timm/resnet18.a1_in1k/model.safetensors)" in message
    assert str(cache) in message
    assert "download=True" in message
    assert "\n" not in message
    assert capfd.readouterr() == ("", "")
    with pytest.raises(ConfigError, match="publishes no safetensors weights for resnet18_small"):
        create_encoder("resnet18_small", pretrained=True)


def test_from_a_file(tmp_path):
    torch.manual_seed(0)
    for classes in (0, 10):
        model = timm.create_model("test_resnet", num_classes=classes)
        save_file(model.state_dict(), tmp_path / "w.safetensors")
        encoder = create_encoder("test_resnet", size=64, pretrained=tmp_path / "w.safetensors")
        for key, value in encoder.model.state_dict().items():
            assert torch.equal(value, model.state_dict()[key]), key
    with pytest.raises(ConfigError, match="do not fit test_vit"):
        create_encoder("test_vit", pretrained=str(tmp_path / "w.safetensors"))


@pytest.mark.parametrize("change", ["missing", "additional", "shape"])
@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_nothing_is_left_out_silently(tmp_path, name, change):
    state = timm.create_model(name, num_classes=0).state_dict()
    key = next(key for key in reversed(state) if state[key].ndim)
    if change == "missing":
        del state[key]
    elif change == "additional":
        state["surprise.weight"] = torch.zeros(2)
    else:
        state[key] = torch.zeros(7)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(ConfigError, match=f"do not fit {name}") as caught:
        create_encoder(name, pretrained=tmp_path / "w.safetensors")
    assert "\n" not in str(caught.value)


def test_refused_files(tmp_path):
    with pytest.raises(ConfigError, match="no weights at"):
        create_encoder("test_resnet", pretrained=tmp_path / "none.safetensors")
    pickle = tmp_path / "w.pth"
    pickle.write_bytes(b"\x80\x04")
    with pytest.raises(ConfigError, match="can run code when opened"):
        create_encoder("test_resnet", pretrained=pickle)
    broken = tmp_path / "w.safetensors"
    for content in (b"", b"\xff" * 64, b"\x08" + b"\x00" * 7 + b"{}      "):
        broken.write_bytes(content)
        with pytest.raises((StorageError, ConfigError), match=r"cannot be read|do not fit"):
            create_encoder("test_resnet", pretrained=broken)


def test_from_a_folder_of_timm(tmp_path):
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", depth=1, num_classes=7, img_size=64)
    timm.models.save_for_hf(model, str(tmp_path), safe_serialization=True)
    encoder = create_encoder("vit_tiny_patch16_224", pretrained=tmp_path)
    assert (encoder.size, len(encoder.model.blocks)) == (64, 1)
    found = load_file(tmp_path / "model.safetensors")
    for key, value in encoder.model.state_dict().items():
        assert torch.equal(value, found[key])
    with pytest.raises(ConfigError, match="holds a vit_tiny_patch16_224, not a test_resnet"):
        create_encoder("test_resnet", pretrained=tmp_path)
