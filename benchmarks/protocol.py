"""What benchmarks/learn.py claims, and every number it rests on, fixed before it is run.

The claim: each method, on the same small budget, learns something about images that its
encoder did not know before, by accuracies on images that neither training nor tuning saw.
A method passes when the 95% interval of its paired difference lies above zero

- against the untrained encoder of the same seed,
- against the same steps at a learning rate of zero, in which BatchNorm's statistics move and
  no weight does,
- and, unless it paints what was hidden, against raw pixels.

It is counted by kNN; for a masked autoencoder, whose features are not made for distances, by a
linear probe. The budget is equal in views that are back-propagated: a method that does so for
one view per step has twice the epochs of one that does so for two. Nobody has multi-crop.

FAILURES are ablations of which the papers say that they do worse or collapse. Each stands
beside its intact twin, from which it takes all else, the tuned rates included.

Rates and options were tuned on images of the training set that no training here sees
(`--tune`); the test images are for the end. Data: CIFAR-10 (Krizhevsky 2009).
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import nn

__all__ = ["ENTRIES", "FAILURES", "PROTOCOL", "Entry", "Protocol", "fingerprint", "vit_32"]


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """What holds for all entries.

    per_class: training images of each class, the first ones; all are shown without labels,
        except to `supcon` and `supervised`, and the probes learn from them with labels
    tuning: images of each class that follow; `--tune` measures on them
    epochs: of a method that back-propagates two views
    """

    per_class: int = 1000
    classes: int = 10
    tuning: int = 200
    size: int = 32
    batch: int = 64
    epochs: int = 10
    seeds: tuple[int, ...] = (0, 1, 2)

    @property
    def images(self) -> int:
        return self.per_class * self.classes

    @property
    def views(self) -> int:
        """Back-propagated views that every method gets."""
        return 2 * self.images * self.epochs


PROTOCOL = Protocol()

# Below 32 px timm has no small ViT with as many patches as a masked autoencoder needs.
ENCODER, VIT = "test_resnet", "vit_32"
VIT_SIZES = {"patch_size": 4, "embed_dim": 96, "depth": 4, "num_heads": 2}

default_cfgs = generate_default_cfgs(
    {VIT: {"input_size": (3, 32, 32), "first_conv": "patch_embed.proj", "classifier": "head"}}
)


@register_model
def vit_32(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Four blocks, 96 wide, over 8 × 8 patches of 4 px."""
    model: nn.Module = build_model_with_cfg(
        VisionTransformer, VIT, pretrained, pretrained_filter_fn=checkpoint_filter_fn,
        **{**VIT_SIZES, **kwargs},
    )  # fmt: skip
    return model


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One method as it is run, all but the seed.

    views: that a step back-propagates for each image
    warmup: in epochs
    view: numbers that replace the paper's in every view
    measure: the probe by which it passes
    beats_pixels: whether it has to
    twin: the intact entry beside which an ablation stands
    expect: what its paper says
    """

    name: str
    method: str
    options: dict[str, Any] = field(default_factory=dict)
    optimizer: str = "adamw"
    lr: float = 2e-3
    weight_decay: float = 1e-4
    warmup: float = 1.0
    views: int = 2
    encoder: str = ENCODER
    view: dict[str, Any] = field(default_factory=dict)
    measure: str = "knn"
    beats_pixels: bool = True
    twin: str | None = None
    expect: str = ""

    def epochs(self, protocol: Protocol) -> int:
        return protocol.views // (self.views * protocol.images)


def fingerprint(entry: Entry, protocol: Protocol) -> str:
    """Of all that the protocol says of a result; words and the choice of seeds change none."""
    facts = {**asdict(entry), "protocol": asdict(protocol)}
    if entry.encoder == VIT:
        facts["sizes"] = VIT_SIZES
    for name in ("twin", "expect", "measure", "beats_pixels"):
        del facts[name]
    del facts["protocol"]["seeds"]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


_LEARNS = "learns"
# SimCLR's colours for CIFAR-10 (appendix B.9), for all.
_MILD = {"jitter": (0.4, 0.4, 0.4, 0.1), "jitter_p": 0.8, "solarize": 0.0}
# What follows itself by a predictor learns less by AdamW.
_SGD = {"optimizer": "sgd", "lr": 0.05, "weight_decay": 5e-4}

ENTRIES = [
    Entry(
        name="simclr", method="simclr", expect=_LEARNS, view=_MILD,
        options={"temperature": 0.2, "hidden": 512, "dim": 128},
    ),
    Entry(
        name="dcl", method="dcl", expect=_LEARNS, view=_MILD,
        options={"temperature": 0.2, "hidden": 512, "dim": 128},
    ),
    Entry(
        name="debiased", method="debiased", expect=_LEARNS, view=_MILD,
        options={"temperature": 0.2, "tau_plus": 0.1, "hidden": 512, "dim": 128},
    ),
    Entry(
        name="hcl", method="hcl", expect=_LEARNS, view=_MILD,
        options={"temperature": 0.5, "tau_plus": 0.1, "hidden": 512, "dim": 128},
    ),
    Entry(
        name="simple_contrastive", method="simple_contrastive", expect=_LEARNS, view=_MILD,
        options={"hardest": 0.1, "hidden": 512, "dim": 128},
    ),
    Entry(
        name="nnclr", method="nnclr", expect=_LEARNS, view=_MILD,
        options={"temperature": 0.2, "queue": 4096, "hidden": 512, "dim": 128,
                 "predictor_hidden": 512},
    ),
    Entry(
        name="directclr", method="directclr", expect=_LEARNS, view=_MILD,
        options={"temperature": 0.2},
    ),
    Entry(
        name="supcon", method="supcon", expect=_LEARNS, view=_MILD,
        options={"temperature": 0.1, "hidden": 512, "dim": 128},
    ),
    Entry(name="supervised", method="supervised", expect=_LEARNS),
    Entry(
        name="byol", method="byol", expect=_LEARNS, view=_MILD, **_SGD,
        options={"hidden": 512, "dim": 128, "momentum": 0.97},
    ),
    Entry(
        name="directpred", method="directpred", expect=_LEARNS, view=_MILD, **_SGD,
        options={"hidden": 512, "dim": 128, "momentum": 0.97},
    ),
    Entry(
        name="swav", method="swav", expect=_LEARNS, view=_MILD,
        options={"prototypes": 100, "hidden": 512, "dim": 128, "multi_crop": 0, "freeze": 0.5},
    ),
    Entry(
        name="deepcluster_v2", method="deepcluster_v2", expect=_LEARNS, view=_MILD,
        options={"clusters": 100, "hidden": 512, "dim": 128, "multi_crop": 0},
    ),
    Entry(
        name="mae", method="mae", encoder=VIT, views=1, measure="linear", beats_pixels=False,
        options={"depth": 1, "width": 64, "heads": 1},
        lr=1.5e-3, weight_decay=0.05, warmup=3.0, expect=_LEARNS,
    ),
    Entry(
        name="moco_v1", method="moco_v1", views=1, expect=_LEARNS, view=_MILD,
        options={"queue": 4096, "dim": 128, "temperature": 0.1, "momentum": 0.99},
    ),
    Entry(
        name="moco_v2", method="moco_v2", views=1, expect=_LEARNS, view=_MILD,
        options={"queue": 4096, "hidden": 512, "dim": 128, "temperature": 0.2, "momentum": 0.99},
    ),
    Entry(
        name="instdisc", method="instdisc", views=1, expect=_LEARNS, view=_MILD,
        options={"negatives": 4096, "dim": 128, "temperature": 0.1},
    ),
    Entry(
        name="pirl", method="pirl", expect=_LEARNS, view=_MILD,
        options={"negatives": 4096, "dim": 128, "temperature": 0.1},
    ),
    Entry(
        name="cmc", method="cmc", expect=_LEARNS, view={**_MILD, "gray": 0.0},
        options={"negatives": 4096, "dim": 128, "temperature": 0.1},
    ),
    Entry(
        name="infomin", method="infomin", expect=_LEARNS, view=_MILD,
        options={"queue": 4096, "hidden": 512, "dim": 128, "temperature": 0.15, "momentum": 0.99},
    ),
    Entry(
        name="moco_v3", method="moco_v3", expect=_LEARNS, view=_MILD,
        options={"hidden": 512, "dim": 128, "temperature": 0.2, "momentum": 0.97},
    ),
    Entry(
        name="ring", method="ring", views=1, expect=_LEARNS, view=_MILD,
        options={"queue": 4096, "hidden": 512, "dim": 128, "temperature": 0.1, "momentum": 0.99},
    ),
    Entry(
        name="feature_transformation", method="feature_transformation", views=1, expect=_LEARNS,
        view=_MILD,
        options={"queue": 4096, "hidden": 512, "dim": 128, "temperature": 0.2, "momentum": 0.99},
    ),
    Entry(
        name="mochi", method="mochi", views=1, expect=_LEARNS, view=_MILD,
        options={"queue": 4096, "hidden": 512, "dim": 128, "temperature": 0.2, "momentum": 0.99,
                 "hardest": 128, "mixed_pairs": 128, "mixed_queries": 16, "warmup_share": 0.1},
    ),
    Entry(
        name="adco", method="adco", views=1, expect=_LEARNS, view=_MILD,
        options={"queue": 4096, "hidden": 512, "dim": 128, "temperature": 0.14, "momentum": 0.99,
                 "bank_temperature": 0.03},
    ),
    Entry(
        name="pcl", method="pcl", views=1, expect=_LEARNS, view=_MILD,
        options={"queue": 4096, "clusters": 250, "negatives": 250, "hidden": 512, "dim": 128,
                 "temperature": 0.2, "momentum": 0.99, "warmup_share": 0.1},
    ),
    Entry(
        # AdamW moves all its instances' vectors at every step, and they are met once an epoch.
        name="pic", method="pic", views=1, expect=_LEARNS, view=_MILD, **{**_SGD, "lr": 0.015},
        options={"temperature": 0.2, "hidden": 512, "dim": 128},
    ),
    Entry(
        name="cpc_v2", method="cpc_v2", views=1, expect=_LEARNS,
        options={"layers": 2, "hidden": 128, "dim": 64},
    ),
    Entry(
        # Its student's colours are these, and its teacher's view has none.
        name="ressl", method="ressl", views=1, expect=_LEARNS,
        options={"queue": 4096, "hidden": 512, "dim": 128, "momentum": 0.99},
    ),
    Entry(
        name="align_uniform", method="align_uniform", expect=_LEARNS, view=_MILD,
        options={"head": "nonlinear", "hidden": 512, "dim": 128},
    ),
    Entry(
        name="moco_align_uniform", method="moco_align_uniform", views=1, expect=_LEARNS,
        view=_MILD, options={"queue": 4096, "hidden": 512, "dim": 128, "momentum": 0.99},
    ),
    Entry(
        name="simsiam", method="simsiam", expect=_LEARNS, view=_MILD, **{**_SGD, "lr": 0.12},
        options={"hidden": 512, "dim": 512, "bottleneck": 128},
    ),
    Entry(
        name="fastsiam", method="fastsiam", views=4, expect=_LEARNS, view=_MILD,
        **{**_SGD, "lr": 0.12}, options={"hidden": 512, "dim": 512, "bottleneck": 128},
    ),
    Entry(
        name="barlow_twins", method="barlow_twins", expect=_LEARNS, view=_MILD,
        options={"hidden": 512, "dim": 512, "lambd": 0.02},
    ),
    Entry(
        name="vicreg", method="vicreg", expect=_LEARNS, view=_MILD,
        options={"hidden": 512, "dim": 512},
    ),
    Entry(
        name="dino", method="dino", expect=_LEARNS, view=_MILD,
        options={"hidden": 512, "bottleneck": 128, "prototypes": 512, "momentum": 0.95,
                 "multi_crop": 0, "freeze": 0.1, "teacher_temperature": 0.06},
    ),
]  # fmt: skip

_INTACT = {entry.name: entry for entry in ENTRIES}


def _without(twin: str, name: str, expect: str, **options: Any) -> Entry:
    """The twin with other options and nothing else changed."""
    intact = _INTACT[twin]
    return replace(
        intact, name=f"{twin}_{name}", twin=twin, expect=expect,
        options={**intact.options, **options},
    )  # fmt: skip


FAILURES = [
    _without("simsiam", "no_stop_gradient", "complete collapse (figure 2)", stop_gradient=False),
    _without("simsiam", "no_predictor", "complete collapse (table 1a)", predictor="none"),
    _without("byol", "no_predictor", "collapse to 0.2% (table 5b)", predictor=False),
    _without(
        "byol", "no_predictor_no_teacher", "collapse to 0.1% (table 5b)",
        predictor=False, momentum=0.0, ramp=False,
    ),
    _without("vicreg", "no_variance", "complete collapse (table 4)", variance=0.0),
    _without("barlow_twins", "no_invariance", "0.1%: learns nothing (table 5)", invariance=0.0),
    _without("dino", "no_centring", "one output wins (figure 7)", centring="none"),
    _without(
        "dino", "no_sharpening", "uniform outputs (figure 7)", teacher_temperature=0.1
    ),
    _without(
        "dino", "no_centring_no_sharpening", "collapse (figure 7)",
        centring="none", teacher_temperature=0.1,
    ),
    _without("swav", "no_equipartition", "all images in one cluster (section 3.1)", iterations=0),
    _without(
        "align_uniform", "no_uniformity", "all images on one point", uniformity=0.0
    ),
    _without("simclr", "cold", "worse than at a moderate temperature (table 5)", temperature=0.01),
    _without("simclr", "hot", "worse than at a moderate temperature (table 5)", temperature=10.0),
]  # fmt: skip
