"""selfsight: from a folder of unlabelled images to an encoder you can trust.

run = selfsight.pretrain("photos/", method="simclr", out="runs/photos")
print(run.evaluate("labelled/"))
features = run.embed("photos/")
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selfsight.comparing import Candidate
    from selfsight.evaluate.comparison import Comparison
    from selfsight.features import Features
    from selfsight.run import Run

__all__ = ["Features", "Run", "compare", "load", "pretrain", "resume"]

__version__ = "0.1.0"


def pretrain(
    data: Any,
    *,
    out: str | Path,
    method: str | None = None,
    encoder: str | None = None,
    size: int | None = None,
    epochs: int | None = None,
    time: str | None = None,
    batch: int | None = None,
    lr: float | None = None,
    seed: int | None = None,
    device: str | None = None,
    pretrained: bool | str | None = None,
    resume: bool = False,
    optimizer: str | None = None,
    weight_decay: float | None = None,
    warmup: float | None = None,
    accumulate: int | None = None,
    precision: str | None = None,
    compile: bool | None = None,
    options: dict[str, Any] | None = None,
    view: dict[str, Any] | None = None,
    regularize: dict[str, float] | None = None,
    **habits: Any,
) -> "Run":
    """Train an encoder on unlabelled images; what is left out is chosen and explained.

    data: a folder, a list, an array file, a set's name, an array of images, or "synthetic"
    out: the run's folder, new or empty unless `resume`
    time: how long to train, as "2h", instead of `epochs`
    compile: compile the encoder by torch.compile
    options: of the method, as {"temperature": 0.2}
    view: numbers that hold for every view, as {"crop": (0.2, 1.0), "gray": 0.0}
    regularize: weights of VICReg's terms, added to the method's loss, as {"variance": 1.0}
    habits: how the run is done: max_bad_fraction, save_every, keep, threads, labels,
        download, cache, whole, gradients, quiet
    """
    from dataclasses import fields

    from selfsight.errors import ConfigError, suggestion
    from selfsight.train.config import Settings
    from selfsight.train.pretrain import Habits, pretrain

    known = {f.name for f in fields(Habits)}
    for name in habits:
        if name not in known:
            near = suggestion(name, {*known, *(f.name for f in fields(Settings))})
            raise ConfigError(f"pretrain takes no {name}{near}; a method's go into options={{…}}")
    if isinstance(pretrained, str) and Path(pretrained).exists():
        pretrained = str(Path(pretrained).resolve())  # so that a resume finds it from anywhere

    settings = Settings(
        method=method,
        encoder=encoder,
        size=size,
        epochs=epochs,
        batch=batch,
        lr=lr,
        seed=seed,
        device=device,
        precision=precision,
        compile=compile,
        optimizer=optimizer,
        weight_decay=weight_decay,
        warmup=warmup,
        accumulate=accumulate,
        pretrained=pretrained,
        options=options or {},
        view=view or {},
        regularize=regularize or {},
    )
    return pretrain(data, settings, Habits(**habits), out=out, time=time, resume=resume)


def resume(path: str | Path, *, quiet: bool = False) -> "Run":
    """Continue an interrupted run, bit by bit as if nothing had happened."""
    from selfsight.train.pretrain import resume

    return resume(path, quiet=quiet)


def load(path: str | Path) -> "Run":
    """A run that lies in a folder."""
    from selfsight.run import Run

    return Run(path)


def compare(
    encoders: "Sequence[str | Path | Run | Candidate]",
    data: Any = None,
    protocols: "Sequence[Any] | None" = None,
    **how: Any,
) -> "list[Comparison]":
    """What is and what is not a difference between encoders, by each protocol.

    encoders: runs, or their folders; files of `selfsight evaluate --out`; and any encoder as
        `selfsight.comparing.Candidate`
    data: on which what was not kept by an evaluation is measured
    how: size of the images that runs see, and how to open the data
    """
    from selfsight.comparing import compare_encoders

    return compare_encoders(encoders, data, protocols, **how)


def __getattr__(name: str) -> Any:
    # torch is imported when it is needed: the command line answers --help without it.
    if name == "Run":
        from selfsight.run import Run

        return Run
    if name == "Features":
        from selfsight.features import Features

        return Features
    raise AttributeError(f"module selfsight has no attribute {name}")
