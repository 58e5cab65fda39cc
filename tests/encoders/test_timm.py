"""TimmEncoder agrees with the timm model it wraps."""

import pytest
import timm
import torch

from selfsight.encoders import create_encoder
from selfsight.errors import ConfigError

# (timm name, options): class token, average pooling without and with a class token,
# registers, distillation, CLIP's norm before the blocks, attention pooling.
VITS = [
    ("test_vit", {}),
    ("test_vit", {"global_pool": "avg", "class_token": False}),
    ("test_vit", {"global_pool": "avg"}),
    ("test_vit2", {}),
    ("test_vit3", {}),
    ("test_vit", {"reg_tokens": 4, "no_embed_class": True}),
    ("test_vit", {"pre_norm": True}),
    ("test_vit", {"pos_embed": "none"}),
    ("deit_tiny_distilled_patch16_224", {"depth": 2}),
]
CNNS = ["test_resnet", "test_convnext", "test_efficientnet", "resnet18_small"]


def images(size=48, count=2):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def make(name, **options):
    return create_encoder(name, **{"size": 48, "seed": 0, **options}).eval()


@pytest.mark.parametrize(("name", "options"), VITS)
@torch.no_grad()
def test_tokens_of_a_vit(name, options):
    encoder, x = make(name, **options), images()
    assert encoder.maskable
    assert encoder.multiple == 16
    h = encoder(x)
    features = encoder.model.forward_features(x)[:, encoder.model.num_prefix_tokens :]
    pooled, patches = encoder.tokens(x)
    torch.testing.assert_close(pooled, h)
    torch.testing.assert_close(patches, features)
    assert h.shape == (2, encoder.dim)
    rows, columns = encoder.grid(x)
    assert patches.shape == (2, rows * columns, encoder.token_dim) == (2, 9, encoder.dim)

    everything = torch.arange(9).expand(2, -1)
    pooled, patches = encoder.tokens(x, keep=everything)
    torch.testing.assert_close(pooled, h)
    torch.testing.assert_close(patches, features)

    order = torch.stack(
        [torch.randperm(9, generator=torch.Generator().manual_seed(i)) for i in (2, 3)]
    )
    pooled, patches = encoder.tokens(x, keep=order)
    torch.testing.assert_close(pooled, h, atol=1e-5, rtol=1e-4)
    wanted = features.gather(1, order[..., None].expand(-1, -1, features.shape[-1]))
    torch.testing.assert_close(patches, wanted, atol=1e-5, rtol=1e-4)

    pooled, patches = encoder.tokens(
        x, mask=torch.zeros(2, 9, dtype=torch.bool), mask_token=h[:1, None]
    )
    torch.testing.assert_close(pooled, h)


@torch.no_grad()
def test_a_dropped_patch_is_not_seen_and_a_kept_one_keeps_its_place():
    encoder, x = make("test_vit"), images()
    keep = torch.tensor([[0, 4, 7], [8, 1, 2]])
    pooled, patches = encoder.tokens(x, keep=keep)
    y = x.clone()
    y[0, :, :16, 16:] = 9.0  # patches 1 and 2 of the first image
    torch.testing.assert_close(encoder.tokens(y, keep=keep)[0][0], pooled[0], atol=0, rtol=0)
    assert patches.shape == (2, 3, encoder.token_dim)
    # A constant image tells patches apart by position alone.
    flat = torch.ones(1, 3, 48, 48)
    a = encoder.tokens(flat, keep=torch.tensor([[0, 1]]))[0]
    b = encoder.tokens(flat, keep=torch.tensor([[7, 8]]))[0]
    assert (a - b).abs().max() > 1e-4


def test_masked_pixels_get_no_gradient_and_the_mask_token_does():
    encoder, x = make("test_vit"), images().requires_grad_()
    token = torch.zeros(1, 1, encoder.token_dim, requires_grad=True)
    mask = torch.zeros(2, 9, dtype=torch.bool)
    mask[:, [0, 5]] = True
    pooled, patches = encoder.tokens(x, mask=mask, mask_token=token)
    assert patches.shape[1] == 9
    (pooled.sum() + patches.square().sum()).backward()
    per_patch = x.grad.abs().unfold(2, 16, 16).unfold(3, 16, 16).sum((1, 4, 5)).flatten(1)
    assert torch.equal(per_patch == 0, mask)
    assert token.grad.abs().sum() > 0


@torch.no_grad()
def test_mask_then_keep():
    encoder, x = make("test_vit"), images()
    token = torch.full((1, 1, encoder.token_dim), 0.5)
    mask = torch.zeros(2, 9, dtype=torch.bool)
    mask[:, 3] = True
    keep = torch.tensor([[3, 1], [3, 1]])
    patches = encoder.tokens(x, keep=keep, mask=mask, mask_token=token)[1]
    y = x.clone()
    y[:, :, 16:32, :16] = 7.0
    again = encoder.tokens(y, keep=keep, mask=mask, mask_token=token)[1]
    torch.testing.assert_close(again, patches, atol=0, rtol=0)


@pytest.mark.parametrize("name", [*CNNS, "swin_tiny_patch4_window7_224", "test_vit_relpos"])
@torch.no_grad()
def test_tokens_without_masking(name):
    options = {"depths": [1, 1, 1, 1]} if name.startswith("swin") else {}
    encoder, x = make(name, size=64, **options), images(64)
    pooled, patches = encoder.tokens(x)
    torch.testing.assert_close(pooled, encoder(x))
    rows, columns = encoder.grid(x)
    assert pooled.shape == (2, encoder.dim)
    assert patches.shape == (2, rows * columns, encoder.token_dim)
    last = encoder.maps(x, 1)[0]
    assert last.shape[0] == 2
    if name == "test_resnet":
        torch.testing.assert_close(patches, last.flatten(2).transpose(1, 2))
    with pytest.raises(ConfigError, match="neither drop nor mask"):
        encoder.tokens(x, keep=torch.zeros(2, 1, dtype=torch.long))


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "swin_tiny_patch4_window7_224"])
@torch.no_grad()
def test_several_sizes(name):
    options = {"depths": [1, 1, 1, 1]} if name.startswith("swin") else {}
    encoder = make(name, size=64, **options)
    for size in (32, 64, 96):
        x = images(size)
        pooled, patches = encoder.tokens(x)
        torch.testing.assert_close(pooled, encoder(x))
        rows, columns = encoder.grid(x)
        assert patches.shape[1] == rows * columns
    x = torch.randn(1, 3, 64, 96)
    rows, columns = encoder.grid(x)
    assert rows * columns == encoder.tokens(x)[1].shape[1]
    assert rows < columns


@torch.no_grad()
def test_channels_last_images():
    encoder, x = make("test_vit"), images()
    y = x.to(memory_format=torch.channels_last)
    token, mask = torch.zeros(1, 1, encoder.token_dim), torch.arange(18).reshape(2, 9) % 2 == 0
    for a, b in zip(
        encoder.tokens(x, None, mask, token), encoder.tokens(y, None, mask, token), strict=True
    ):
        torch.testing.assert_close(a, b)


def test_checkpointed_blocks_give_the_same_gradient():
    encoder, x = make("test_vit"), images()
    encoder.train()
    encoder.tokens(x)[0].square().sum().backward()
    wanted = [p.grad.clone() for p in encoder.parameters() if p.grad is not None]
    encoder.zero_grad()
    encoder.model.set_grad_checkpointing(True)
    encoder.tokens(x)[0].square().sum().backward()
    found = [p.grad for p in encoder.parameters() if p.grad is not None]
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)


@torch.no_grad()
def test_maps():
    encoder, x = make("test_resnet", size=64), images(64)
    (last,) = encoder.maps(x, 1)
    torch.testing.assert_close(last, encoder.model.forward_features(x))
    a, b = encoder.maps(x, [1, 3])
    assert a.shape[-1] > b.shape[-1]
    vit = make("test_vit")
    assert [m.shape for m in vit.maps(images(), 2)] == [(2, 64, 3, 3)] * 2
    torch.testing.assert_close(
        vit.model.norm(vit.maps(images(), 1)[0].flatten(2).mT), vit.tokens(images())[1]
    )
    for levels in (0, 6, 99, [99], [-1], []):
        with pytest.raises(ConfigError, match="feature levels 0 to"):
            encoder.maps(x, levels)


@pytest.mark.parametrize("options", [{}, {"qk_norm": True}, {"reg_tokens": 2}])
@torch.no_grad()
def test_attention_by_hand(options):
    encoder, x = make("test_vit", **options), images()
    attn = encoder.model.blocks[-1].attn
    seen = []
    handle = attn.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    encoder(x)
    handle.remove()
    e, prefix = seen[0], encoder.model.num_prefix_tokens
    found = encoder.attention(x)
    assert found.shape == (2, attn.num_heads, 9)
    q, k, _ = attn.qkv(e).chunk(3, -1)
    d = attn.head_dim
    for head in range(attn.num_heads):
        part = slice(head * d, head * d + d)
        score = attn.q_norm(q[:, 0, part])[:, None] @ attn.k_norm(k[:, :, part]).mT / d**0.5
        torch.testing.assert_close(found[:, head], score.softmax(-1)[:, 0, prefix:])


@torch.no_grad()
def test_attention_without_class_token_and_of_a_cnn():
    encoder = make("test_vit", global_pool="avg", class_token=False)
    torch.testing.assert_close(encoder.attention(images()).sum(-1), torch.ones(2, 2))
    with pytest.raises(ConfigError, match="no attention"):
        make("test_resnet").attention(images())


def test_seed_and_generator():
    before = torch.get_rng_state()
    a = make("test_vit", seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    b, c = make("test_vit", seed=3), make("test_vit", seed=4)
    key = "blocks.0.attn.qkv.weight"
    assert torch.equal(a.model.state_dict()[key], b.model.state_dict()[key])
    assert not torch.equal(a.model.state_dict()[key], c.model.state_dict()[key])
    # Without a seed the weights are those that timm itself would draw.
    torch.manual_seed(5)
    d = make("test_resnet", seed=None)
    torch.manual_seed(5)
    wanted = timm.create_model("test_resnet", num_classes=0)
    for x, y in zip(d.model.state_dict().values(), wanted.state_dict().values(), strict=True):
        assert torch.equal(x, y)


def test_fresh():
    encoder = make("test_vit", drop_path_rate=0.2, patch_size=8)
    encoder.mean = (0.1, 0.2, 0.3)
    other = encoder.fresh(seed=1)
    assert (other.size, other.multiple, other.mean) == (48, 8, (0.1, 0.2, 0.3))
    assert other.settings == encoder.settings
    assert other.model.blocks[-1].drop_path1.drop_prob == pytest.approx(0.2)
    key = "blocks.0.attn.qkv.weight"
    assert not torch.equal(other.model.state_dict()[key], encoder.model.state_dict()[key])
    assert torch.equal(encoder.fresh(seed=1).model.state_dict()[key], other.model.state_dict()[key])
    before = torch.get_rng_state()
    first, second = make("test_resnet").fresh(), make("test_resnet").fresh("resnet18_small")
    assert not torch.equal(torch.get_rng_state(), before)
    assert (first.name, second.name, second.size) == ("test_resnet", "resnet18_small", 48)


def test_patch_size_and_small_images():
    encoder = create_encoder("vit_tiny_patch16_224", size=32, patch_size=4, depth=1, seed=0)
    assert encoder.multiple == 4
    assert encoder.grid(torch.zeros(1, 3, 32, 32)) == (8, 8)
    assert encoder.crop_pct == 1.0
    assert create_encoder("test_resnet", seed=0).size == 160


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet81", {}, "unknown encoder resnet81; did you mean resnet"),
        ("resnet18.a9_in1k", {}, "resnet18 has no tag a9_in1k; did you mean a"),
        ("local-dir:x", {}, "unknown encoder local-dir:x"),
        ("test_resnet", {"patch_size": 4}, "test_resnet takes no option patch_size"),
        ("test_vit", {"patchsize": 4}, "takes no option patchsize; did you mean patch_size?"),
        ("test_vit", {"size": 50}, "multiples of 16 pixels, got 50 × 50"),
        ("test_vit", {"num_classes": 10}, "sets num_classes itself"),
        ("test_vit", {"checkpoint_path": "x.pth"}, "sets checkpoint_path itself"),
        ("test_vit", {"norm_layer": torch.nn.LayerNorm}, "numbers, strings and lists"),
        ("test_vit", {"global_pool": "best"}, "global_pool=best: Only avg"),
        ("inception_v3", {"size": 32}, "does not take images of 32 × 32"),
        ("crossvit_tiny_240", {}, "several token maps"),
    ],
)
def test_refusals(name, options, message):
    with pytest.raises(ConfigError) as caught:
        create_encoder(name, **options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_patch_projection_of_a_vit_and_of_nothing_else():
    encoder = make("test_vit")
    assert encoder.patch_projection is encoder.model.patch_embed.proj
    assert encoder.patch_projection.weight.shape == (encoder.token_dim, 3, 16, 16)
    with pytest.raises(ConfigError, match=r"test_resnet has no projection of patches; take a ViT"):
        make("test_resnet").patch_projection  # noqa: B018


def test_an_architecture_registered_after_the_first_use():
    create_encoder("test_resnet", seed=0)

    @timm.models.register_model
    def late_resnet(pretrained=False, **options):
        return timm.create_model("test_resnet", pretrained, **options)

    assert create_encoder("late_resnet", seed=0).dim == create_encoder("test_resnet", seed=0).dim
