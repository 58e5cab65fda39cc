"""The encoder trained on with labels, a linear layer behind it: what its weights are worth as a
start."""

import copy
import inspect
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from selfsight import optim, philox
from selfsight.data.base import Source
from selfsight.data.loader import Loader
from selfsight.encoders.base import Encoder
from selfsight.errors import ConfigError, DataError, Diverged
from selfsight.evaluate.base import OnImages, Sight
from selfsight.evaluate.learners.mixing import erased, mixed, smooth
from selfsight.evaluate.learners.probe import fifth
from selfsight.evaluate.learners.tuning import TUNINGS, Of, Tuning
from selfsight.evaluate.measures.classified import classified
from selfsight.evaluate.protocols.few import Few
from selfsight.evaluate.protocols.linear import LinearProbe
from selfsight.evaluate.report import Score
from selfsight.features import Features
from selfsight.philox import Purpose
from selfsight.ranges import Count, Part, Positive, Range, Several, Share, Weight, Whole, check
from selfsight.schedules import steps
from selfsight.views import View

__all__ = ["Finetune", "Tuned", "groups", "thaw"]

# Above 0, up to 1.
Decay = Annotated[float, Range(0, 1, above=True)]

# SwAV's steps: epochs 12 and 16 of 20.
_DROPS, _DROP = (0.6, 0.8), 0.2
# Log-odds that a class without training images starts from.
_NEVER = -20.0


@dataclass(frozen=True)
class Tuned:
    """A fine-tuned encoder and its classifier.

    epoch: after how many epochs these weights were taken
    loss: mean of that epoch
    images: labelled ones that it learned from; batch: how many at a time
    rate: the trunk's learning rate at its highest
    """

    encoder: Encoder
    head: nn.Linear
    epoch: int
    loss: float
    images: int
    batch: int
    rate: float

    def answers(self, sight: Sight, source: Source) -> NDArray[np.float32]:
        """(N, classes) logits of the images, shown and computed as `sight` does."""
        h = replace(sight, encoder=self.encoder).embed(source).embedding
        weight, bias = (p.detach().float().cpu().numpy() for p in self.head.parameters())
        logits: NDArray[np.float32] = h @ weight.T + bias
        if not np.isfinite(logits).all():
            raise _diverged("the answers are")
        return logits


class Finetune(OnImages):
    """Cross-entropy over a copy of the encoder and a linear head, on random crops and flips.

    of: a paper's recipe, whose numbers the other options replace
    labels: how many of the training labels are used, as `few` says it and, by the same seed, those
        of its first draw; nothing else is read. None: the recipe's, or all
    epochs, batch: how long, and how many images at a time, which are all where they are fewer
    optimizer: adamw, lars or sgd
    lr: rate for 256 images; head_lr: the head's, which is the same in recipes that have none
    rule: how the rates grow with the batch
    weight_decay: spares biases, norms, positions and class tokens
    warmup: share of the run in which the rates rise; then by `schedule` along a cosine to 0 or
        in SwAV's two steps
    layer_decay: d; of L blocks, or stages of a CNN, number i from 1 learns at d^(L+1−i) times the
        head's rate, the stem at d^(L+1) (BEiT and MAE)
    drop_path: probability of leaving out a residual branch of the last block
    crop: smallest share of an image that a random crop shows
    mixup, cutmix: α of the law that mixing shares are drawn from; 0 for none
    smoothing: share of the target that is spread over all classes
    erase: probability that a box of an image is erased
    average: the head reads the mean of a ViT's patches, with a norm of its own
    head: how it starts: drawn, with deviation `head_std`; or as the linear probe of the same
        labels, so that it does not first pull the features out of shape (Kumar et al. 2022,
        https://arxiv.org/abs/2202.10054), for encoders whose BatchNorm knows such images
    from_layer: first block or stage that learns; 0 is the stem, so all do; −2: the last two.
        What comes before is frozen, statistics of BatchNorm included
    choose: the weights after the last epoch, or after the best one on a stratified fifth of the
        labelled training images, which are then not learned from
    seed: of the choice of labels, the head, order, crops, mixing and drop-path
    """

    name: ClassVar[str] = "finetune"

    def __init__(
        self,
        of: Of = "default",
        *,
        labels: Count | Decay | str | None = None,
        epochs: Count | None = None,
        batch: Several | None = None,
        optimizer: Literal["adamw", "lars", "sgd"] | None = None,
        lr: Positive | None = None,
        head_lr: Positive | None = None,
        rule: Literal["linear", "sqrt", "fixed"] | None = None,
        weight_decay: Weight | None = None,
        warmup: Part | None = None,
        schedule: Literal["cosine", "steps"] | None = None,
        layer_decay: Decay | None = None,
        drop_path: Part | None = None,
        crop: Decay | None = None,
        mixup: Weight | None = None,
        cutmix: Weight | None = None,
        smoothing: Part | None = None,
        erase: Share | None = None,
        average: bool | None = None,
        head: Literal["drawn", "probe"] | None = None,
        head_std: Weight | None = None,
        from_layer: int = 0,
        choose: Literal["last", "held_out"] = "last",
        seed: Whole = 0,
    ) -> None:
        # fmt: off
        given = {
            "labels": labels, "epochs": epochs, "batch": batch, "optimizer": optimizer, "lr": lr,
            "head_lr": head_lr, "rule": rule, "weight_decay": weight_decay, "warmup": warmup,
            "schedule": schedule, "layer_decay": layer_decay, "drop_path": drop_path,
            "crop": crop, "mixup": mixup, "cutmix": cutmix, "smoothing": smoothing, "erase": erase,
            "average": average, "head": head, "head_std": head_std,
        }
        rest = {"of": of, "from_layer": from_layer, "choose": choose, "seed": seed}
        # fmt: on
        check(given | rest, inspect.signature(type(self)).parameters, self.name, self.name)
        numbers: dict[str, Any] = {k: value for k, value in given.items() if value is not None}
        self.of, self.tuning = of, replace(TUNINGS[of], **numbers)
        self.from_layer, self.choose, self.seed = from_layer, choose, seed
        # Read here, so that a wrong one is told before anything is trained.
        few = self.tuning.labels
        self.few = None if few is None else Few(few, seeds=1, seed=seed)

    def measure(self, sight: Sight, train: Source, test: Source) -> list[Score]:
        if test.labels is None or len(test) == 0:
            raise DataError(f"{test.name} has no labelled images to test on")
        tuned = self.fit(sight, train)
        found = {
            "recipe": asdict(self.tuning),
            "images": tuned.images,
            "batch": tuned.batch,
            "rate": tuned.rate,
            "epoch": tuned.epoch,
            "loss": tuned.loss,
        }
        recipe = "" if self.of == "default" else f"{self.of}, "
        name = f"fine-tuning ({recipe}{tuned.images:,} images, {self.tuning.epochs} epochs)"
        answers = tuned.answers(sight, test)
        return classified(name, self.name, answers, test.labels, test.classes, **found)

    def fit(self, sight: Sight, train: Source) -> Tuned:
        """Train a copy of the encoder; that of `sight` stays as it is."""
        if train.labels is None:
            raise DataError(f"{train.name} has no labels; sort its images into a folder per class")
        rows = np.arange(len(train)) if self.few is None else self.few.draw(_listed(train))[0]
        label = train.labels[rows]
        if len(np.unique(label)) < 2:
            raise DataError("all training images have one class; fine-tuning needs two or more")
        held = None
        if self.choose == "held_out":
            fitted, rest = (np.sort(part) for part in fifth(torch.from_numpy(label), self.seed))
            if len(rest) == 0:
                raise DataError(
                    "every class has one labelled image, so that none can be held out; leave "
                    "choose at last"
                )
            rows, held = rows[fitted], train.subset(rows[rest])
        device = torch.device(sight.device)
        # Layers draw their first weights, and drop-path its branches, from torch's generator.
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            source = train if len(rows) == len(train) else train.subset(rows)
            return self._train(sight, source, held, train.class_count)

    def _train(self, sight: Sight, source: Source, held: Source | None, classes: int) -> Tuned:
        tuning = self.tuning
        encoder = sight.encoder.copied(drop_path=tuning.drop_path, average=tuning.average)
        head = self._head(replace(sight, encoder=encoder, progress=None), source, classes)
        encoder.to(sight.device).to(memory_format=torch.channels_last)
        thaw(encoder, self.from_layer)
        optimizer = _optimizer(encoder, head, tuning)
        batch = min(tuning.batch, len(source))
        view = View(size=sight.size, crop=(tuning.crop, 1.0), jitter_p=0.0, gray=0.0, blur=0.0)
        loader = Loader(
            source, view, batch=batch, seed=self.seed, mean=encoder.mean, std=encoder.std,
            device=sight.device, threads=sight.threads, supervised=True,
        )  # fmt: skip
        total, rate = tuning.epochs * loader.per_epoch, tuning.recipe.rate(batch)
        warmup = round(tuning.warmup * total)
        half = sight.precision == "bf16" and encoder.learns_in_bf16(sight.size, str(sight.device))
        tell = sight.counting("fine-tuned")
        losses: list[Tensor] = []
        best, most = None, -1
        with closing(loader.stream(0, total)) as stream:
            for step, (part,) in stream:
                drop = steps(step / total, _DROPS, _DROP) if tuning.schedule == "steps" else 1.0
                optim.set_rates(optimizer, tuning.recipe, drop * rate, step, total, warmup)
                torch.manual_seed(philox.seed_for(self.seed, step, Purpose.DROPOUT))
                loss = self._loss(encoder, head, part, half)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                losses.append(loss.detach())
                epoch, left = divmod(step + 1, loader.per_epoch)
                tell((step + 1) * batch, total * batch)
                if left:
                    continue
                tuned = Tuned(encoder, head, epoch, _mean(losses), len(source), batch, rate)
                losses.clear()
                if held is not None:
                    answers = tuned.answers(replace(sight, progress=None), held)
                    right = int((answers.argmax(axis=1) == held.labels).sum())
                    if right >= most:
                        best, most = copy.deepcopy(tuned), right
        chosen = best or tuned
        chosen.encoder.eval()
        return chosen

    def _head(self, sight: Sight, source: Source, classes: int) -> nn.Linear:
        dim, std = sight.encoder.dim, self.tuning.head_std
        if self.tuning.head == "probe":
            x = sight.embed(source).embedding
            probe = LinearProbe(seed=self.seed).fit(x, source.labels)
            known = torch.zeros(classes, dim, dtype=torch.float64)
            bias = torch.full((classes,), _NEVER, dtype=torch.float64)
            known[probe.classes] = probe.weight / probe.scale
            bias[probe.classes] = probe.bias - known[probe.classes] @ probe.mean.double()
        else:
            known = std * philox.normal(self.seed, torch.arange(classes), Purpose.INIT, dim)
            bias = torch.zeros(classes)
        head = nn.Linear(dim, classes)
        with torch.no_grad():
            head.weight.copy_(known)
            head.bias.copy_(bias)
        return head.to(sight.device)

    def _loss(self, encoder: Encoder, head: nn.Linear, part: Any, half: bool) -> Tensor:
        """part: the loader's batch, of one view."""
        tuning, key, (x,) = self.tuning, part.key, part.views
        target = smooth(part.labels, head.out_features, tuning.smoothing)
        x = erased(x, key.position, tuning.erase, self.seed)
        x, target = mixed(
            x, target, mixup=tuning.mixup, cutmix=tuning.cutmix, seed=self.seed, step=key.step
        )
        with torch.autocast(x.device.type, torch.bfloat16, enabled=half):
            logits: Tensor = head(encoder(x))
        return -(target * logits.float().log_softmax(dim=1)).sum(dim=1).mean()


def thaw(encoder: Encoder, first: int) -> None:
    """Let the layers from number `first` on learn, and put what comes before in evaluation mode.

    first: 0 is the stem, 1 to L are blocks or stages; −1 is the last of them
    """
    frozen: set[str] = set()
    if first:
        layers = encoder.layers()
        blocks = len(layers) - 2
        if not -blocks <= first <= blocks:
            raise ConfigError(
                f"{encoder.name} has {blocks} blocks or stages; from_layer goes from {-blocks} to "
                f"{blocks}, got {first}"
            )
        start = first if first > 0 else blocks + 1 + first
        frozen = {name for layer in layers[:start] for name in layer}
    for name, parameter in encoder.named_parameters():
        parameter.requires_grad_(name not in frozen)
    encoder.train()
    for part in encoder.modules():
        known = [parameter.requires_grad for parameter in part.parameters()]
        if known and not any(known):
            part.eval()


def groups(encoder: Encoder, head: nn.Linear, tuning: Tuning) -> list[dict[str, Any]]:
    """What `optim.build` takes: a group for each rate, and for what weight decay spares."""
    named = dict(encoder.named_parameters())
    if not named:
        raise ConfigError(f"{encoder.name} has no weights that could be trained")
    layers = [list(named)] if tuning.layer_decay == 1 else encoder.layers()
    spared, found = encoder.undecayed(), []
    for above, layer in enumerate(reversed(layers)):
        learned = [name for name in layer if named[name].requires_grad]
        for names, more in (
            ([name for name in learned if name not in spared], {}),
            ([name for name in learned if name in spared], {"decay": 0.0}),
        ):
            params = [named[name] for name in names]
            found.append({"params": params, "lr_scale": tuning.layer_decay**above, **more})
    scale = 1.0 if tuning.head_lr is None else tuning.head_lr / tuning.lr
    return [*found, {"params": list(head.parameters()), "lr_scale": scale}]


def _optimizer(encoder: Encoder, head: nn.Linear, tuning: Tuning) -> torch.optim.Optimizer:
    optimizer = optim.build(groups(encoder, head, tuning), tuning.recipe)
    for group in optimizer.param_groups:
        # As in SimCLR's code the head has no trust ratio: from 0 it could not grow.
        if any(group["params"][0] is parameter for parameter in head.parameters()):
            group["adapt"] = False
    return optimizer


def _listed(source: Source) -> Features:
    """Labels and paths without embeddings: all that a choice of labels reads."""
    nothing = np.zeros((len(source), 1), np.float32)
    path = tuple(source.path(i) for i in range(len(source)))
    return Features(nothing, source.labels, path, source.classes)


def _mean(losses: list[Tensor]) -> float:
    """Of an epoch; looked at no more often, so that a GPU need not wait for each step."""
    mean = float(torch.stack(losses).mean())
    if not np.isfinite(mean):
        raise _diverged("the loss is")
    return mean


def _diverged(what: str) -> Diverged:
    return Diverged(f"fine-tuning came apart: {what} not finite; try a lower --finetune.lr")
