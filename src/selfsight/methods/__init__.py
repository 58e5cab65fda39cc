"""The catalogue: one line per method."""

import dataclasses
import importlib
import inspect
import os
import re
import sys
from typing import Any

from selfsight.errors import ConfigError, suggestion
from selfsight.ranges import check

METHODS = {
    "adco": "selfsight.methods.adco:AdCo",
    "align_uniform": "selfsight.methods.align_uniform:AlignUniform",
    "barlow_twins": "selfsight.methods.barlow_twins:BarlowTwins",
    "byol": "selfsight.methods.byol:BYOL",
    "cmc": "selfsight.methods.cmc:CMC",
    "cpc_v2": "selfsight.methods.cpc_v2:CPCV2",
    "dcl": "selfsight.methods.dcl:DCL",
    "debiased": "selfsight.methods.debiased:Debiased",
    "deepcluster_v2": "selfsight.methods.deepcluster_v2:DeepClusterV2",
    "dino": "selfsight.methods.dino:DINO",
    "directclr": "selfsight.methods.directclr:DirectCLR",
    "directpred": "selfsight.methods.directpred:DirectPred",
    "fastsiam": "selfsight.methods.fastsiam:FastSiam",
    "feature_transformation": "selfsight.methods.feature_transformation:FeatureTransformation",
    "hcl": "selfsight.methods.hcl:HCL",
    "infomin": "selfsight.methods.infomin:InfoMin",
    "instdisc": "selfsight.methods.instdisc:InstDisc",
    "mae": "selfsight.methods.mae:MAE",
    "mochi": "selfsight.methods.mochi:MoCHi",
    "moco_align_uniform": "selfsight.methods.moco_align_uniform:MoCoAlignUniform",
    "moco_v1": "selfsight.methods.moco_v1:MoCoV1",
    "moco_v2": "selfsight.methods.moco_v2:MoCoV2",
    "moco_v3": "selfsight.methods.moco_v3:MoCoV3",
    "nnclr": "selfsight.methods.nnclr:NNCLR",
    "pcl": "selfsight.methods.pcl:PCL",
    "pic": "selfsight.methods.pic:PIC",
    "pirl": "selfsight.methods.pirl:PIRL",
    "ressl": "selfsight.methods.ressl:ReSSL",
    "ring": "selfsight.methods.ring:Ring",
    "simclr": "selfsight.methods.simclr:SimCLR",
    "simple_contrastive": "selfsight.methods.simple_contrastive:SimpleContrastive",
    "simsiam": "selfsight.methods.simsiam:SimSiam",
    "supcon": "selfsight.methods.supcon:SupCon",
    "supervised": "selfsight.methods.supervised:Supervised",
    "swav": "selfsight.methods.swav:SwAV",
    "vicreg": "selfsight.methods.vicreg:VICReg",
}

DEFAULT = "simclr"

# Every method once, under what it learns by; the pages list them in this order.
FAMILIES = {
    "Contrast within the batch": (
        "simclr moco_v3 directclr nnclr dcl debiased hcl simple_contrastive align_uniform cpc_v2"
    ),
    "Contrast with a memory": (
        "instdisc cmc pirl pic moco_v1 moco_v2 infomin adco mochi ring feature_transformation "
        "moco_align_uniform"
    ),
    "Self-distillation": "byol simsiam fastsiam directpred dino ressl",
    "Clusters": "deepcluster_v2 swav pcl",
    "Decorrelation": "barlow_twins vicreg",
    "Masked images": "mae",
    "Labels": "supervised supcon",
}

# What a constructor may ask for by name and is told, as facts of the data.
_TOLD = ("classes", "samples")

__all__ = [
    "DEFAULT",
    "FAMILIES",
    "METHODS",
    "create",
    "describe",
    "method_class",
    "options",
    "trusted",
]


def method_class(name: str) -> Any:
    """The class behind a name of the catalogue, or behind my.module:MyMethod."""
    target = name if ":" in name else METHODS.get(name)
    if target is None:
        raise ConfigError(f"unknown method {name}{suggestion(name, METHODS)}")
    module, _, attribute = target.partition(":")
    if ":" in name and os.getcwd() not in sys.path:
        # A user's own method lies where they stand, as it does for `python -m`.
        sys.path.append(os.getcwd())
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"cannot load the method {name}: {error}; run from the folder that holds {module}"
        ) from None


def trusted(name: str | None, where: object) -> None:
    """Refuse to load code because a file says so: a method of the user's own must be named
    by the user."""
    if name is not None and name not in METHODS:
        raise ConfigError(
            f"{where} was trained with {name}, which is not of the catalogue; name it yourself: "
            f"selfsight pretrain DATA --method {name} --out DIR --resume"
        )


def options(name: str) -> dict[str, inspect.Parameter]:
    """A method's options: the keyword parameters of its constructor."""
    parameters = inspect.signature(method_class(name)).parameters.values()
    return {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in _TOLD}


def create(name: str, encoder: Any, *, samples: int, classes: int = 1, **chosen: Any) -> Any:
    """The method over an encoder, for a data set of `samples` images of `classes` classes."""
    check(chosen, options(name), "method", name)
    cls = method_class(name)
    if cls.needs_tokens and not encoder.maskable:
        raise ConfigError(
            f"{name} needs patch tokens; {encoder.name} has none. "
            "Try --encoder vit_tiny_patch16_224"
        )
    parameters, data = inspect.signature(cls).parameters, {"samples": samples, "classes": classes}
    told = {fact: data[fact] for fact in _TOLD if fact in parameters}
    try:
        return cls(encoder, **told, **chosen)
    except (MemoryError, RuntimeError) as error:
        if "memory" not in str(error).lower() and not isinstance(error, MemoryError):
            raise
        raise ConfigError(
            f"{name} does not fit into memory with these options; lower those that count in "
            f"thousands: see selfsight methods {name}"
        ) from error


def describe(name: str) -> dict[str, Any]:
    """What a method is, in plain values: for tables, pages and JSON."""
    import torch

    from selfsight.encoders import create_encoder

    cls = method_class(name)
    module = inspect.getmodule(cls)
    assert module is not None
    title, _, rest = inspect.cleandoc(module.__doc__ or "").partition("\n\n")
    cited, _, equation = rest.partition("\nLoss: ")
    with torch.device("meta"):
        example = create(name, create_encoder("vit_tiny_patch16_224"), samples=1_281_167)
    return {
        "name": name,
        "title": title,
        "paper": " ".join(cited.split()),
        "equation": " ".join(equation.split()),
        "options": {p.name: p.default for p in options(name).values()},
        "help": inspect.cleandoc(cls.__doc__ or ""),
        "views": [dataclasses.asdict(view) for view in example.views],
        "recipe": dataclasses.asdict(example.recipe),
        "deviations": _deviations(inspect.getsource(module)),
    }


def _deviations(source: str) -> list[str]:
    """The comments `# Differs from the paper: …`, each with the lines it goes on over."""
    found = re.findall(r"# Differs from the paper: (.*(?:\n *# .*)*)", source)
    return [re.sub(r"\n *# ", " ", text) for text in found]
