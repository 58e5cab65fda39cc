"""Where the official checkpoints of each method keep the encoder: their keys to timm's."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from selfsight.encoders.weights import Triple
from selfsight.errors import ConfigError, suggestion

__all__ = ["LAYOUTS", "Branch", "Found", "Layout", "find", "recognise"]

Branch = Literal["student", "teacher"]

# In front of all keys, and none of the encoder's business.
_CONTAINERS = ("state_dict", "model")
_WRAPPER = "module"

# What `nn.Sequential(*resnet.children())` makes of the names of a ResNet.
_NUMBERED = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}


@dataclass(frozen=True)
class Layout:
    """How a method's checkpoints are keyed, without containers and `module.`.

    signs: it is recognised by keys that begin with all of any of these
    student, teacher: what stands before the encoder's keys; the first that occurs counts
    evaluated: which of the two the paper evaluates
    heads: beginnings of further keys in the same place, which an encoder does without
    mean, std: what its images are normalised by
    arguments: by timm's name, what the method builds an architecture with, if not as timm
    """

    signs: tuple[tuple[str, ...], ...]
    student: tuple[str, ...] = ("",)
    teacher: tuple[str, ...] = ()
    evaluated: Branch = "student"
    heads: tuple[str, ...] = ("fc.", "head.")
    mean: Triple = IMAGENET_DEFAULT_MEAN
    std: Triple = IMAGENET_DEFAULT_STD
    arguments: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Found:
    """An encoder's tensors by timm's keys, where they lay, and what was left there.

    left: the beginnings of the keys that were left
    """

    name: str
    layout: Layout
    branch: Branch
    tensors: dict[str, Tensor]
    left: tuple[str, ...]


# In the order in which they are tried: the tell-tale ones first.
LAYOUTS: dict[str, Layout] = {
    "moco_v3": Layout(
        signs=(("base_encoder.",), ("momentum_encoder.",)),
        student=("base_encoder.",),
        teacher=("momentum_encoder.",),
        # Its ViT-S has narrower heads than timm's, which no shape would tell.
        arguments={"vit_small_patch16_224": {"num_heads": 12}},
    ),
    "moco_v2": Layout(
        signs=(("encoder_q.fc.0.",),), student=("encoder_q.",), teacher=("encoder_k.",)
    ),
    "moco_v1": Layout(signs=(("encoder_q.",),), student=("encoder_q.",), teacher=("encoder_k.",)),
    "mae": Layout(signs=(("decoder_embed.",),), heads=("decoder_", "mask_token", "head.")),
    "ibot": Layout(
        signs=(("student.backbone.masked_embed",),),
        student=("student.backbone.", ""),
        teacher=("teacher.backbone.", ""),
        evaluated="teacher",
        heads=("head.", "masked_embed"),
    ),
    "dino": Layout(
        signs=(("teacher.backbone.",), ("student.backbone.",)),
        student=("student.backbone.",),
        # The backbone alone, as it is published, is the teacher's.
        teacher=("teacher.backbone.", "backbone.", ""),
        evaluated="teacher",
    ),
    "byol": Layout(
        signs=(("online_encoder.",), ("online_network_state_dict.",)),
        student=("online_encoder.net.", "online_network_state_dict.encoder."),
        teacher=("target_encoder.net.", "target_network_state_dict.encoder."),
    ),
    "swav": Layout(
        signs=(("prototypes.",),),
        heads=("projection_head.", "prototypes."),
        std=(0.228, 0.224, 0.225),  # as its code has it
    ),
    "barlow_twins": Layout(signs=(("backbone.", "projector.", "bn."),), student=("backbone.", "")),
    "vicreg": Layout(signs=(("backbone.", "projector."),), student=("backbone.", "")),
    "simsiam": Layout(signs=(("encoder.", "predictor."),), student=("encoder.",)),
    "simclr": Layout(
        signs=(("encoder.", "projector."), ("backbone.fc.",)),
        student=("encoder.", "backbone.", ""),
        # The paper's images, and those of its translations to torch, are not normalised.
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
    ),
    "plain": Layout(signs=(("conv1.",), ("patch_embed.",), ("stem.",))),
}


def find(state: Mapping[str, Tensor], name: str = "auto", branch: Branch | None = None) -> Found:
    """The encoder in a checkpoint.

    state: its tensors, keyed from the outside in as `state_dict.module.encoder_q.conv1.weight`
    name: of a layout; auto takes the one that the keys show
    branch: None takes the one that the paper evaluates
    """
    bare = _bare(state)
    if name == "auto":
        name = recognise(bare)
    elif name not in LAYOUTS:
        near = suggestion(name, LAYOUTS) or f"; known: auto, {', '.join(sorted(LAYOUTS))}"
        raise ConfigError(f"unknown layout {name}{near}")
    layout = LAYOUTS[name]
    branch = branch or layout.evaluated
    if branch not in get_args(Branch):
        raise ConfigError(f"unknown branch {branch}; known: {', '.join(get_args(Branch))}")
    prefixes = layout.student if branch == "student" else layout.teacher
    if not prefixes:
        raise ConfigError(f"checkpoints of {name} hold one encoder; leave --branch {branch}")
    held = [p for p in prefixes if any(key.startswith(p) for key in bare)]
    if not held:
        raise ConfigError(
            f"the checkpoint has no keys like {prefixes[0]}…, where {name} keeps its {branch}, but "
            f"{_sample(bare)}; choose another layout or branch"
        )
    prefix = held[0]
    inner = {key.removeprefix(prefix): v for key, v in bare.items() if key.startswith(prefix)}
    tensors = {key: value for key, value in inner.items() if not key.startswith(layout.heads)}
    taken = {prefix + key for key in tensors}
    left = sorted({_apart(key, prefix) for key in bare.keys() - taken})
    return Found(name, layout, branch, _named(tensors), tuple(left))


def recognise(keys: Iterable[str]) -> str:
    """The layout that keys without containers show."""
    known = list(keys)
    for name, layout in LAYOUTS.items():
        for signs in layout.signs:
            if all(any(key.startswith(sign) for key in known) for sign in signs):
                return name
    raise ConfigError(
        f"keys such as {_sample(known)} are of no layout that is known; name one by --from: "
        f"{', '.join(sorted(LAYOUTS))}"
    )


def _bare(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the container around all weights, and without the wrappers of several GPUs."""
    bare: dict[str, Tensor] = {}
    for key, value in state.items():
        parts = [part for part in key.split(".") if part != _WRAPPER]
        if len(parts) > 1 and parts[0] in _CONTAINERS:
            parts = parts[1:]
        short = ".".join(parts)
        if short in bare:
            raise ConfigError(f"the checkpoint holds {short} twice; keep one of its parts")
        bare[short] = value
    return bare


def _named(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """With a ResNet's names, where its layers are numbered."""
    if not any(key.startswith("0.") for key in tensors):
        return tensors
    split = [(*key.partition("."), value) for key, value in tensors.items()]
    return {_NUMBERED.get(first, first) + dot + rest: value for first, dot, rest, value in split}


def _apart(key: str, prefix: str) -> str:
    """As much of the beginning of `key` as tells it from what begins with `prefix`."""
    parts, count = key.split("."), 1
    while count < len(parts) and prefix.startswith(".".join(parts[:count]) + "."):
        count += 1
    return ".".join(parts[:count])


def _sample(keys: Iterable[str]) -> str:
    firsts = sorted({".".join(key.split(".")[:2]) for key in keys})
    return ", ".join(firsts[:4]) + (", …" if len(firsts) > 4 else "")
