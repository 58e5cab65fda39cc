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
    "barlow_twins": {"hidden": 16, "dim": 8},
    "byol": {"hidden": 16, "dim": 8},
    "deepcluster_v2": {"clusters": 5, "hidden": 16, "dim": 8, "multi_crop": 2},
    "dino": {"hidden": 16, "bottleneck": 8, "prototypes": 12, "multi_crop": 2, "freeze": 0.5},
    "mae": {"depth": 1, "width": 16, "heads": 2},
    "moco_v1": {"queue": 24, "dim": 8, "norm_groups": 4, "momentum": 0.9},
    "moco_v2": {"queue": 24, "dim": 8, "norm_groups": 4, "momentum": 0.9},
    "simclr": {"dim": 8},
    "simsiam": {"hidden": 16, "dim": 16, "bottleneck": 8},
    "swav": {"prototypes": 6, "hidden": 16, "dim": 8, "multi_crop": 2, "queue": 16,
             "queue_from": 0, "freeze": 0.5},
    "vicreg": {"hidden": 16, "dim": 8},
}  # fmt: skip

# Whether views of one resolution share a BatchNorm pass (METHODS without entry have none).
SHARED = {"barlow_twins": False, "byol": False, "deepcluster_v2": True, "dino": True,
          "moco_v1": False, "moco_v2": False, "simclr": True, "simsiam": False, "swav": True,
          "vicreg": False}  # fmt: skip
# What is trained on several ranks: every method, and options that cross ranks otherwise. Not
# those that leave gradients of pure rounding, which AdamW would blow up.
RANKED = {name: (name, {}) for name in SMALL} | {
    "barlow_twins-asymmetric": ("barlow_twins", {"predictor": True, "stop_gradient": True}),
    "barlow_twins-entropies": ("barlow_twins", {"loss": "cross_entropy"}),
    "moco_v2-symmetric": ("moco_v2", {"symmetric": True}),
    "vicreg-momentum": ("vicreg", {"momentum": 0.9, "predictor": True}),
}
NEEDS_TOKENS = {"mae"}
BATCH, SAMPLES, SIZE = 16, 48, 64


def encoders(name):
    return ["test_vit"] if name in NEEDS_TOKENS else ["test_resnet", "test_vit"]


def images(samples=SAMPLES, size=40):
    return np.random.default_rng(0).integers(0, 256, (samples, size, size, 3), np.uint8)


def make(name, encoder, dtype=torch.float32, **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        built = create_encoder(encoder, size=SIZE)
        method = methods.create(name, built, samples=SAMPLES, **{**SMALL[name], **options})
    method.views = [view.scaled(SIZE, multiple=built.multiple) for view in method.views]
    return method.to(dtype)


def loader(method, **options):
    encoder = method.encoder
    return Loader(Arrays("test", images()), method.views, batch=BATCH, seed=0,
                  mean=encoder.mean, std=encoder.std, **options)  # fmt: skip


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
