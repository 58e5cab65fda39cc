"""The official linear evaluations, each as its paper's code runs it: one head, one rate, views or
cached features, the last epoch."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsight import philox
from selfsight.data.base import Source
from selfsight.data.loader import Loader
from selfsight.encoders.base import Encoder
from selfsight.errors import ConfigError, DataError, Diverged
from selfsight.evaluate.base import OnImages, Sight
from selfsight.evaluate.learners.probe import moments, standardised
from selfsight.evaluate.measures.classified import classified
from selfsight.evaluate.report import Score
from selfsight.optim import LARS
from selfsight.philox import Purpose, seed_for
from selfsight.ranges import Count, Range, Whole
from selfsight.schedules import cosine, steps, warmup_cosine
from selfsight.views import View

__all__ = ["PRESETS", "PaperRecipe", "Preset"]

_MOMENTUM = 0.9
# Images that go through the encoder at a time, whatever the batch.
_PART = 256
# Of ViT-B.
_WIDE = 768


@dataclass(frozen=True, kw_only=True)
class Preset:
    """One official evaluation.

    optimizer: sgd and nesterov have momentum 0.9; lars spares the bias decay and trust ratio,
        larc (apex's) does not; adam adds the decay to the gradient
    lr: the rate for `batch` images, or for 256 with `scaled`, which multiplies it by batch / 256
    lr_vit: in its place for a transformer
    schedule: steps divides by ten after 60% and 80% of the run; exponential ends at 1e-4 of lr
    by_epoch: whether the schedule stands still within an epoch
    warmup: share of the run that precedes a cosine
    init: deviation of the first weights, whose biases are 0; None takes torch's own
    normalized: whether a BatchNorm without parameters precedes the head
    cached: whether the head sees each image's central crop, embedded once, instead of a new
        random crop, flipped by chance, every epoch
    standardized: whether cached channels are standardised by the training ones
    tokens: whether the head reads class tokens instead of h, where the encoder has them: those of
        the last four blocks or, from ViT-B's width on, the last one beside the mean of the patches
    """

    optimizer: Literal["sgd", "nesterov", "lars", "larc", "adam"] = "sgd"
    lr: float
    scaled: bool = True
    lr_vit: float | None = None
    batch: int = 256
    epochs: int = 100
    weight_decay: float = 0.0
    schedule: Literal["cosine", "steps", "exponential", "constant"] = "cosine"
    by_epoch: bool = True
    warmup: float = 0.0
    init: float | None = 0.01
    normalized: bool = False
    cached: bool = False
    standardized: bool = False
    tokens: bool = False

    def rate(self, batch: int, *, transformer: bool) -> float:
        """The rate at the top of the schedule."""
        base = self.lr_vit if transformer and self.lr_vit is not None else self.lr
        return base * batch / 256 if self.scaled else base

    def factor(self, step: int, per_epoch: int) -> float:
        """On the rate, at a step of a run of `epochs`."""
        total = per_epoch * self.epochs
        progress = step // per_epoch / self.epochs if self.by_epoch else step / total
        if self.schedule == "steps":
            return steps(progress, (0.6, 0.8))
        if self.schedule == "exponential":
            return float(1e-4**progress)
        if self.schedule == "constant":
            return 1.0
        if self.warmup:
            return warmup_cosine(step, total, round(self.warmup * total))
        return cosine(1.0, 0.0, progress)


PRESETS = {
    "barlow_twins": Preset(lr=0.3, scaled=False, weight_decay=1e-6),
    # Differs from the paper: it sweeps the rate; this is the one of the official code.
    "byol": Preset(
        optimizer="nesterov", lr=0.2, batch=1024, epochs=80, by_epoch=False, init=None
    ),
    # Differs from the paper: the last epoch counts, not the one that is best on the test images.
    "directpred": Preset(
        optimizer="adam", lr=3e-4, scaled=False, batch=128, epochs=50, weight_decay=1e-3,
        schedule="constant", init=None, cached=True, standardized=True,
    ),
    "dino": Preset(lr=0.001, batch=1024, tokens=True),
    "mae": Preset(
        optimizer="lars", lr=0.1, batch=16384, epochs=90, by_epoch=False, warmup=1 / 9,
        normalized=True,
    ),
    "moco": Preset(lr=30.0, scaled=False, schedule="steps"),
    "moco_v3": Preset(lr=0.1, lr_vit=3.0, batch=1024, epochs=90),
    "sdbn": Preset(lr=30.0),
    "simclr": Preset(
        optimizer="nesterov", lr=0.1, batch=4096, epochs=90, weight_decay=1e-6, by_epoch=False,
        init=0.0,
    ),
    "simsiam": Preset(optimizer="larc", lr=0.1, batch=4096, epochs=90),
    "swav": Preset(lr=0.3, scaled=False, weight_decay=1e-6),
    "vicreg": Preset(lr=0.02, scaled=False, weight_decay=1e-6),
    "w_mse": Preset(
        optimizer="adam", lr=1e-2, scaled=False, batch=1000, epochs=500, weight_decay=5e-6,
        schedule="exponential", init=None, cached=True,
    ),
}  # fmt: skip


class PaperRecipe(OnImages):
    """A linear head on the frozen encoder, in eval mode, trained as a paper's own code does.

    of: whose
    epochs, batch, lr: in place of the paper's; lr is the rate itself, not scaled by the batch
    seed: of the first weights, the order and the crops

    Nothing is chosen, so nothing is held out: the head of the last epoch is tested once. A
    batch larger than the training part is reduced to it.
    """

    name: ClassVar[str] = "recipe"

    def __init__(
        self,
        of: Literal[
            "barlow_twins", "byol", "directpred", "dino", "mae", "moco", "moco_v3", "sdbn",
            "simclr", "simsiam", "swav", "vicreg", "w_mse",
        ] = "simclr",
        *,
        epochs: Count | None = None,
        batch: Count | None = None,
        lr: Annotated[float, Range(0, 1e6, above=True)] | None = None,
        seed: Whole = 0,
    ) -> None:  # fmt: skip
        if of not in PRESETS:
            raise ConfigError(f"no recipe of {of}; known: {', '.join(PRESETS)}")
        self.of, self.epochs, self.batch, self.lr, self.seed = of, epochs, batch, lr, seed

    def measure(self, sight: Sight, train: Source, test: Source) -> list[Score]:
        _check(train, test)
        preset, changed = self._fitted(len(train))
        transformer = sight.encoder.maskable
        rate = self.lr or preset.rate(preset.batch, transformer=transformer)
        if self.lr:
            own = PRESETS[self.of]
            changed["lr"] = {"recipe": own.rate(own.batch, transformer=transformer), "used": rate}
        if preset.normalized and preset.batch < 2:
            raise ConfigError(f"the recipe of {self.of} normalises over the batch; use two or more")
        with sight.encoder.resting(sight.device) as encoder:
            read = _tokens(encoder) if preset.tokens else encoder
            head = self._head(preset, _width(read, sight), train.class_count).to(sight.device)
            if preset.cached:
                x = _embedded(sight, train, read)
                shift = moments(x) if preset.standardized else None
                seen = _cached(_shifted(x, shift), train, preset, self.seed)
            else:
                shift, seen = None, _views(sight, read, train, preset, self.seed)
            _train(head, seen, preset, rate, len(train) // preset.batch)
            # The only look at the test images, when nothing is left to choose.
            with torch.no_grad():
                answers = head(_shifted(_embedded(sight, test, read), shift)).double().cpu().numpy()
        if not np.isfinite(answers).all():
            raise Diverged(f"the recipe of {self.of} diverged at rate {rate:g}; lower --recipe.lr")
        said = "".join(f", {name}={change['used']:g}" for name, change in changed.items())
        used = {**asdict(preset), "lr": rate}
        assert test.labels is not None
        return classified(
            f"recipe ({self.of}{said})", self.name, answers, test.labels, test.classes,
            recipe=used, changed=changed, epoch="last", test_crop=sight.encoder.crop_pct,
            width=head[-1].in_features,
        )  # fmt: skip

    def _fitted(self, n: int) -> tuple[Preset, dict[str, dict[str, float]]]:
        """The preset with the user's numbers and a batch that n images fill; what is changed."""
        own = PRESETS[self.of]
        if self.batch is not None and self.batch > n:
            raise ConfigError(
                f"--recipe.batch {self.batch} is more than the {n} training images; use at most {n}"
            )
        # Whole parts of the encoder's batch, where there are several.
        most = n // _PART * _PART if n > _PART else n
        batch = self.batch or (own.batch if own.batch <= n else most)
        used = {"epochs": self.epochs or own.epochs, "batch": batch}
        was = {"epochs": own.epochs, "batch": own.batch}
        changed: dict[str, dict[str, float]] = {
            name: {"recipe": was[name], "used": used[name]}
            for name in used
            if used[name] != was[name]
        }
        return replace(own, epochs=used["epochs"], batch=used["batch"]), changed

    def _head(self, preset: Preset, dim: int, classes: int) -> nn.Sequential:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_for(self.seed, 0, Purpose.INIT))
            linear = nn.Linear(dim, classes)
            if preset.init is not None:
                nn.init.normal_(linear.weight, std=preset.init)
                nn.init.zeros_(linear.bias)
        before = [nn.BatchNorm1d(dim, eps=1e-6, affine=False)] if preset.normalized else []
        return nn.Sequential(*before, linear)


Read = Callable[[Tensor], Tensor]
Stream = Iterator[tuple[Tensor, Tensor]]


def _tokens(encoder: Encoder) -> Read:
    """What DINO's head reads of images, (N, width): class tokens, or h where there are none."""
    wide = encoder.dim >= _WIDE

    def read(x: Tensor) -> Tensor:
        found = encoder.last_tokens(x, 1 if wide else 4)
        if not found:
            h: Tensor = encoder(x)
            return h
        patches = [found[-1][1].mean(dim=1)] if wide else []
        return torch.cat([token for token, _ in found] + patches, dim=1)

    return read


@torch.no_grad()
def _width(read: Read, sight: Sight) -> int:
    return read(torch.zeros(1, 3, sight.size, sight.size, device=sight.device)).shape[1]


def _train(head: nn.Module, seen: Stream, preset: Preset, rate: float, per_epoch: int) -> None:
    """seen: (h, labels) of each step's batch."""
    optimizer = _optimizer(head, preset)
    head.train()
    for step, (h, y) in enumerate(seen):
        for group in optimizer.param_groups:
            group["lr"] = rate * preset.factor(step, per_epoch)
        optimizer.zero_grad()
        F.cross_entropy(head(h), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    head.eval()


def _optimizer(head: nn.Module, preset: Preset) -> torch.optim.Optimizer:
    weights = [p for p in head.parameters() if p.ndim > 1]
    biases = [p for p in head.parameters() if p.ndim <= 1]
    decay = preset.weight_decay
    if preset.optimizer == "lars":
        groups: list[dict[str, Any]] = [
            {"params": weights, "weight_decay": decay},
            {"params": biases, "adapt": False},
        ]
        return LARS(groups, momentum=_MOMENTUM)
    both = weights + biases
    if preset.optimizer == "larc":
        return LARS(both, weight_decay=decay, momentum=_MOMENTUM, joint=False)
    if preset.optimizer == "adam":
        return torch.optim.Adam(both, weight_decay=decay)
    nesterov = preset.optimizer == "nesterov"
    return torch.optim.SGD(both, momentum=_MOMENTUM, weight_decay=decay, nesterov=nesterov)


def _views(sight: Sight, read: Read, train: Source, preset: Preset, seed: int) -> Stream:
    """What is read of random crops, flipped by chance."""
    encoder, device = sight.encoder, torch.device(sight.device)
    view = View(size=sight.size, jitter_p=0.0, gray=0.0, blur=0.0)
    loader = Loader(
        train, view, batch=preset.batch, seed=seed, mean=encoder.mean,
        std=encoder.std, device=device, threads=sight.threads, supervised=True,
    )  # fmt: skip
    total = preset.epochs * loader.per_epoch
    least = -(-preset.batch // _PART)
    micros = next(m for m in range(least, preset.batch + 1) if preset.batch % m == 0)
    half = torch.autocast(device.type, torch.bfloat16, enabled=sight.precision == "bf16")
    tell = sight.counting("images trained on")
    for step, parts in loader.stream(0, total, micros):
        with torch.no_grad(), half:
            h = torch.cat([read(part.views[0]).float() for part in parts])
        labels = [part.labels for part in parts if part.labels is not None]
        yield h, torch.cat(labels)
        tell((step + 1) * preset.batch, total * preset.batch)


def _cached(x: Tensor, train: Source, preset: Preset, seed: int) -> Stream:
    """Rows of x (N, D), an order of its own for each epoch."""
    y = torch.from_numpy(train.labels).to(x.device)
    for epoch in range(preset.epochs):
        order = philox.permutation(seed, epoch, Purpose.ORDER, len(x))
        for place in range(len(x) // preset.batch):
            rows = torch.from_numpy(order[place * preset.batch :][: preset.batch]).to(x.device)
            yield x[rows], y[rows]


def _embedded(sight: Sight, source: Source, read: Read) -> Tensor:
    """(N, D): what is read of the central crops."""
    # Differs from the paper: the crop is the encoder's own share of the short side, which is 224
    # of 256 pixels in most of the official code.
    found = sight.embed(source, None if read is sight.encoder else read)
    h = torch.from_numpy(found.embedding).to(sight.device)
    bad = (~h.isfinite().all(dim=1)).nonzero()[:, 0].tolist()
    if bad:
        raise DataError(
            f"{len(bad)} embeddings are not finite, the first of {source.path(bad[0])}; the "
            "encoder diverged, or needs fp32"
        )
    return h


def _shifted(x: Tensor, shift: tuple[Tensor, Tensor] | None) -> Tensor:
    return x if shift is None else standardised(x, *shift)


def _check(train: Source, test: Source) -> None:
    for source, which in ((train, "training"), (test, "test")):
        if len(source) == 0:
            raise DataError(f"there are no {which} images")
        if source.labels is None:
            raise DataError(f"the {which} images have no labels; sort them into a folder per class")
    if len(np.unique(train.labels)) < 2:  # type: ignore[arg-type]
        raise DataError("all training images have one class; evaluation needs two or more")
