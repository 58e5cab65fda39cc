"""Every method at a size for tests: a new method is tested by its line here."""

import numpy as np
import torch

from selfsight import methods
from selfsight.data.base import Arrays
from selfsight.data.loader import Loader
from selfsight.encoders import create_encoder
from selfsight.methods.base import Clock
from selfsight.train.loop import Engine, Plan
from selfsight.train.sweep import Sweeper

SMALL = {
    "align_uniform": {"dim": 8},
    "adco": {"queue": 24, "dim": 8, "norm_groups": 4, "momentum": 0.9},
    "barlow_twins": {"hidden": 16, "dim": 8},
    "byol": {"hidden": 16, "dim": 8},
    "cpc_v2": {"layers": 2, "hidden": 16, "dim": 8},
    "dcl": {"dim": 8},
    "debiased": {"hidden": 16, "dim": 8},
    "deepcluster_v2": {"clusters": 5, "hidden": 16, "dim": 8, "multi_crop": 2},
    "dino": {"hidden": 16, "bottleneck": 8, "prototypes": 12, "multi_crop": 2, "freeze": 0.5},
    "directclr": {"dim": 8},
    "directpred": {"hidden": 16, "dim": 8, "momentum": 0.9},
    "fastsiam": {"views": 3, "hidden": 16, "dim": 24, "bottleneck": 8},
    "feature_transformation": {"queue": 24, "dim": 8, "norm_groups": 4, "momentum": 0.9},
    "cmc": {"loss": "nce", "negatives": 8, "dim": 8},
    "infomin": {"queue": 24, "hidden": 16, "dim": 8, "norm_groups": 4, "momentum": 0.9},
    "instdisc": {"loss": "nce", "negatives": 8, "dim": 8},
    "hcl": {"hidden": 16, "dim": 8},
    "mae": {"depth": 1, "width": 16, "heads": 2},
    "pirl": {"loss": "nce", "negatives": 8, "dim": 8},
    "mochi": {"queue": 24, "dim": 8, "norm_groups": 4, "momentum": 0.9, "hardest": 8,
              "mixed_pairs": 6, "mixed_queries": 4, "warmup_share": 0.0},
    "moco_align_uniform": {"queue": 24, "hidden": 16, "dim": 8, "norm_groups": 4, "momentum": 0.9},
    "moco_v1": {"queue": 24, "dim": 8, "norm_groups": 4, "momentum": 0.9},
    "moco_v2": {"queue": 24, "dim": 8, "norm_groups": 4, "momentum": 0.9},
    "moco_v3": {"hidden": 16, "dim": 8, "momentum": 0.9},
    "nnclr": {"queue": 24, "hidden": 16, "dim": 8, "predictor_hidden": 16},
    "ring": {"queue": 24, "dim": 8, "norm_groups": 4, "momentum": 0.9},
    "ressl": {"queue": 24, "hidden": 16, "dim": 8, "norm_groups": 4, "momentum": 0.9,
              "multi_crop": 2},
    "pcl": {"queue": 24, "clusters": 6, "granularities": 2, "negatives": 4, "iterations": 5,
            "warmup_share": 0.0, "dim": 8, "norm_groups": 4, "momentum": 0.9},
    "pic": {"dim": 8},
    "simclr": {"dim": 8},
    "simple_contrastive": {"dim": 8},
    "simsiam": {"hidden": 16, "dim": 16, "bottleneck": 8},
    "supcon": {"dim": 8},
    "supervised": {},
    "swav": {"prototypes": 6, "hidden": 16, "dim": 8, "multi_crop": 2, "queue": 16,
             "queue_from": 0, "freeze": 0.5},
    "vicreg": {"hidden": 16, "dim": 8},
}  # fmt: skip

# Whether views of one resolution share a BatchNorm pass (METHODS without entry have none).
SHARED = {"adco": False, "align_uniform": True, "barlow_twins": False, "byol": False, "dcl": True,
          "debiased": True, "deepcluster_v2": True, "dino": True, "directclr": False,
          "directpred": False, "fastsiam": False, "feature_transformation": False, "hcl": True,
          "infomin": False, "mochi": False, "moco_align_uniform": False, "moco_v1": False,
          "moco_v2": False, "moco_v3": False, "nnclr": False, "pcl": False, "pirl": False,
          "ressl": False, "ring": False, "simclr": True, "simple_contrastive": True,
          "simsiam": False, "supcon": True, "supervised": True, "swav": True,
          "vicreg": False}  # fmt: skip
# What is trained on several ranks: every method, and options that cross ranks otherwise. Not
# those that leave gradients of pure rounding, which AdamW would blow up.
RANKED = {name: (name, {}) for name in SMALL} | {
    "align_uniform-contrast": ("align_uniform", {"contrast": 1.0, "multi_crop": 2}),
    "adco-symmetric": ("adco", {"symmetric": True}),
    "barlow_twins-asymmetric": ("barlow_twins", {"predictor": True, "stop_gradient": True}),
    "barlow_twins-entropies": ("barlow_twins", {"loss": "cross_entropy"}),
    "byol-crops": ("byol", {"beta": 0.5, "multi_crop": 2}),
    "byol-other": ("byol", {"other": "test_resnet", "target": "stopped", "predictor_layers": 1}),
    "dcl-weighted": ("dcl", {"weight": "vmf", "multi_crop": 2}),
    "debiased-positives": ("debiased", {"positives": 2, "multi_crop": 1}),
    "debiased-unbiased": ("debiased", {"unbiased": True}),
    "directpred-paper": (
        "directpred",
        {"boost": "paper", "centred": True, "freq": 2, "multi_crop": 1},
    ),
    "directpred-tied": ("directpred", {"predictor": "nonlinear", "symmetric": True}),
    "feature_transformation-dimension": ("feature_transformation", {"draw": "dimension"}),
    "moco_v1-bank": ("moco_v1", {"mechanism": "bank"}),
    "moco_v1-end_to_end": ("moco_v1", {"mechanism": "end_to_end", "multi_crop": 1}),
    "instdisc-all": ("instdisc", {"loss": "softmax", "negatives": 48, "head": "nonlinear"}),
    "instdisc-softmax": ("instdisc", {"loss": "softmax"}),
    "moco_align_uniform-crops": ("moco_align_uniform", {"multi_crop": 2}),
    "moco_v2-symmetric": ("moco_v2", {"symmetric": True}),
    "ring-crops": ("ring", {"symmetric": True, "multi_crop": 2}),
    "nnclr-multi_crop": ("nnclr", {"multi_crop": 2}),
    "pic-crops": ("pic", {"multi_crop": 2}),
    "pcl-crops": ("pcl", {"multi_crop": 2, "warmup_share": 0.5}),
    "simclr-other": ("simclr", {"other": "test_resnet", "multi_crop": 1}),
    "simple_contrastive-hard": ("simple_contrastive", {"hardest": 0.3}),
    "simple_contrastive-hard_contrastive": (
        "simple_contrastive",
        {"loss": "contrastive", "hardest": 0.3},
    ),
    "supcon-first": ("supcon", {"anchors": "first", "inside": True, "multi_crop": 1}),
    "vicreg-momentum": ("vicreg", {"momentum": 0.9, "predictor": True}),
}
# Of these also four at once: each way in which ranks tell each other something.
AMONG_FOUR = [
    *("adco", "barlow_twins", "dcl-weighted", "deepcluster_v2", "dino", "directpred-paper"),
    *("instdisc", "mae", "moco_v2-symmetric", "pcl", "simclr", "swav", "vicreg"),
]
NEEDS_TOKENS = {"mae"}
BATCH, SAMPLES, SIZE, CLASSES = 16, 48, 64, 4


def encoders(name):
    return ["test_vit"] if name in NEEDS_TOKENS else ["test_resnet", "test_vit"]


def images(samples=SAMPLES, size=40):
    return np.random.default_rng(0).integers(0, 256, (samples, size, size, 3), np.uint8)


def make(name, encoder, dtype=torch.float32, **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        built = create_encoder(encoder, size=SIZE)
        method = methods.create(name, built, samples=SAMPLES, classes=CLASSES,
                                **{**SMALL[name], **options})  # fmt: skip
    method.views = [view.scaled(SIZE, multiple=built.multiple) for view in method.views]
    return method.to(dtype)


def loader(method, **options):
    encoder = method.encoder
    source = Arrays("test", images(), labels=np.arange(SAMPLES) % CLASSES)
    return Loader(source, method.views, batch=BATCH, seed=0, mean=encoder.mean,
                  std=encoder.std, supervised=method.supervised, **options)  # fmt: skip


def batch(method, step=0, dtype=torch.float32, **options):
    return as_type(loader(method, **options).batch(step), dtype)


def as_type(batch, dtype):
    batch.views[:] = [x.to(dtype) for x in batch.views]
    return batch


def engine(method, total=6, micros=1, lr=0.1, precision="fp32", **more):
    plan = Plan(total=total, per_epoch=SAMPLES // BATCH, seed=0, lr=lr, warmup=0,
                micros=micros, precision=precision, device="cpu", **more)  # fmt: skip
    return Engine(method, method.recipe, plan)


def clock(step, total=6):
    return Clock(step, total, SAMPLES // BATCH, 0)


def sweep(method, at, dtype=torch.float32):
    sweeper = Sweeper(loader(method))
    return lambda network, view: sweeper(network, view, at, dtype)


def train(method, steps, *, first=0, total=6, dtype=torch.float32, running=None, **options):
    running = running or engine(method, total, **options)
    feed = loader(method)
    done = []
    for step in range(first, steps):
        at = clock(step, total)
        parts = [as_type(feed.batch(step, m, running.plan.micros), dtype)
                 for m in range(running.plan.micros)]  # fmt: skip
        done.append(running.step(at, parts, sweep(method, at, dtype)))
    return running, done
