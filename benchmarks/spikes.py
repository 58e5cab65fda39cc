"""Where a ViT's gradients spike (Chen, Xie and He 2021, section 4.2 and figure 5).

python benchmarks/spikes.py --data cifar10.npz --jobs 2    # all that is not yet done
python benchmarks/spikes.py --table                        # the page from the results

The claim: in training a ViT by contrast, sudden gradients begin in the first layer, the patch
projection, and reach the last one later; with that layer left as it was drawn there are fewer.
So MoCo v3 is trained twice at a rate that is too high, with the projection learned and with it
frozen, and every layer's gradient is written down at every step.

A job is one seed of one of them, which leaves one JSON. The data file is that of learn.py.
"""

import argparse
import json
import platform
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from learn import HERE, conduct, end, opened, shown, write
from measure import processor
from protocol import PROTOCOL, VIT

import selfsight
from selfsight.data.base import Arrays
from selfsight.errors import ConfigError

RESULTS = HERE / "results" / "spikes"
PAGE = HERE.parent / "docs" / "spikes.md"

WAYS = {"learned": False, "frozen": True}
SEEDS = (0, 1, 2)
SETTINGS: dict[str, Any] = {
    "method": "moco_v3", "encoder": VIT, "size": 32, "epochs": 6, "batch": 64, "lr": 3e-3,
    "optimizer": "adamw", "weight_decay": 0.1, "warmup": 1.0,
    "view": {"jitter": (0.4, 0.4, 0.4, 0.1), "jitter_p": 0.8, "solarize": 0.0},
}  # fmt: skip
OPTIONS = {"hidden": 512, "dim": 128}

# From the patches to the last block; what the heads do is not asked.
LAYERS = ("patch_embed.proj", *(f"blocks.{i}.attn.qkv" for i in range(4)))
# A spike is a gradient so many times the median of those before it, after the warm-up.
TIMES, BEFORE, WARMED = 3.0, 50, 157


def spikes(norms: Sequence[float]) -> list[int]:
    """Steps at which a layer's gradient spikes."""
    g = np.asarray(norms)
    usual = [np.median(g[step - BEFORE : step]) for step in range(WARMED, len(g))]
    return (WARMED + np.flatnonzero(g[WARMED:] > TIMES * np.array(usual))).tolist()


def job(way: str, seed: int, train: Arrays) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="spikes-") as folder:
        run = selfsight.pretrain(
            shown("moco_v3", train), out=Path(folder) / "run", seed=seed, device="cpu",
            options={**OPTIONS, "frozen_patches": WAYS[way]}, threads=1, save_every=1 << 30,
            gradients=True, quiet=True, **SETTINGS,
        )  # fmt: skip
        rows = run.metrics
    gradients = {}
    for layer in LAYERS:
        norms = [row["gradients"].get(f"encoder.model.{layer}") for row in rows]
        # A frozen layer has none.
        gradients[layer] = [float(f"{norm:.3g}") for norm in norms if norm]
    return {
        "way": way,
        "seed": seed,
        "settings": json.dumps({**SETTINGS, **OPTIONS}, sort_keys=True),
        "loss": [float(f"{row['loss']:.4g}") for row in rows],
        "gradients": gradients,
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "timm")},
        },
        "cpu": processor(),
        "threads": torch.get_num_threads(),
    }


def gathered(folder: Path = RESULTS) -> list[dict[str, Any]]:
    """The results that were made with these settings."""
    wanted = json.dumps({**SETTINGS, **OPTIONS}, sort_keys=True)
    found = [json.loads(file.read_bytes()) for file in sorted(folder.glob("*.json"))]
    return [result for result in found if result["settings"] == wanted]


def page(results: Sequence[dict[str, Any]]) -> str:
    from learn_page import table

    body, last = [], results[-1]
    for way in WAYS:
        own = [result for result in results if result["way"] == way]
        for layer in LAYERS:
            counts = [len(spikes(result["gradients"][layer])) for result in own]
            most = [max(result["gradients"][layer], default=0.0) for result in own]
            body.append([way, f"`{layer}`", " ".join(map(str, counts)),
                         " ".join(f"{value:.2g}" for value in most)])  # fmt: skip
        losses = " ".join(f"{np.mean(result['loss'][-50:]):.2f}" for result in own)
        body.append([way, "loss of the last 50 steps", "", losses])
    columns = ["patch projection", "layer", "spikes, each seed", "largest norm, each seed"]
    versions = " ".join(f"{name} {number}" for name, number in last["versions"].items())
    steps, seeds = len(last["loss"]), sorted({result["seed"] for result in results})
    return f"""\
# Where a ViT's gradients spike

<!-- Written by benchmarks/spikes.py --table from benchmarks/results/spikes; do not edit. -->

Chen, Xie and He 2021 (section 4.2) trace the unstable training of ViTs by contrast to sudden
gradients that begin in the first layer, the patch projection, and leave it as it was drawn.
[`moco_v3`](methods/moco_v3.md) does so unless told otherwise, and `--gradients` writes down the
norm of every layer's gradient at every step. Here a rate that is too high, {SETTINGS["lr"]:g},
makes them visible in a small ViT.

{table(columns, body)}

A spike is a norm of more than {TIMES:g} times the median of the {BEFORE} steps before it, after the
warm-up. `blocks.0` stands next to the patches and `blocks.3` last.

## How it was run

The learning benchmark's 10,000 images and its small ViT, batch {SETTINGS["batch"]}, {steps} steps,
AdamW; seeds {", ".join(map(str, seeds))} of {len(SEEDS)} planned. Made on {last["cpu"]},
{last["threads"]} thread per run; {versions}.

```text
python benchmarks/spikes.py --data cifar10_jpeg.npz --jobs 2
python benchmarks/spikes.py --table
```
"""


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, help="the .npz of JPEGs")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--table", action="store_true", help="write the page and stop")
    parser.add_argument("--job", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args(words)
    if args.table:
        if results := gathered():
            PAGE.write_text(page(results), encoding="utf-8")
        return 0
    if args.data is None:
        raise ConfigError("--data FILE: which file holds CIFAR-10?")
    if args.job:
        torch.set_num_threads(1)
        way, seed = args.job[0], int(args.job[1])
        train = opened(args.data, PROTOCOL, tune=True).train
        write(RESULTS / f"{way}-{seed}.json", job(way, seed, train))
        print(f"{way} {seed} is done", flush=True)
        return 0
    done = {(result["way"], result["seed"]) for result in gathered()}
    jobs = [(way, seed) for seed in args.seeds for way in WAYS if (way, seed) not in done]
    print(f"{len(jobs)} jobs to do", flush=True)
    return 1 if conduct(words, jobs, args.jobs, script=Path(__file__)) else 0


if __name__ == "__main__":
    end(main)
