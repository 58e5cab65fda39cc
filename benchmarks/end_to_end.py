"""Training with SimCLR, images per second: lightly's documented example and our loop.

    pip install -e ".[bench]"
    python benchmarks/end_to_end.py --folder PHOTOS [--only memory folder] \\
        [--out benchmarks/results/end_to_end.json]

Both train the same: a ResNet-18 with ImageNet's stem, a projector of 512 and 128, each view in a
forward pass of its own (so BatchNorm sees one view at a time), NT-Xent at 0.5 in float32 or in
what `auto` chooses, plain SGD at 0.06.

- memory: 4,096 drawn images of 32 px, batch 256, no blur
- folder: 160 JPEGs of PHOTOS in a folder of their own, 224 px, batch 32, with blur

A turn is an epoch. lightly's example runs in plain torch with 0, 1 and 2 loader workers that
stay between epochs, once with the allocator as it is and once keeping its pages; ours always
keeps them, as `selfsight pretrain` does. Ours is the loader and the training loop without
checkpoints and watchers; nothing decoded is kept from one epoch to the next. `step alone` is
the same loop over one batch that lies ready: what the loader costs is the difference. About 20
minutes on two idle cores.
"""

import argparse
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from measure import (
    THREADS,
    Crew,
    Work,
    header,
    interleaved,
    photographs,
    probe,
    rates,
    summary,
    write,
)
from PIL import Image

from selfsight.data import open_source
from selfsight.data.base import Arrays, Source
from selfsight.data.loader import Loader
from selfsight.data.synthetic import synthetic
from selfsight.encoders.base import Encoder
from selfsight.encoders.timm import create_encoder
from selfsight.heads import mlp
from selfsight.losses import nt_xent
from selfsight.methods.base import Batch, Clock, Method, Output
from selfsight.optim import Recipe
from selfsight.train.config import Settings, resolve
from selfsight.train.loop import Engine, Plan, Step, run
from selfsight.train.signals import Signals
from selfsight.train.sweep import Sweeper
from selfsight.views.presets import simclr_view

TEMPERATURE, RATE = 0.5, 0.06
FAR = 1 << 20  # steps of a run that nobody finishes


class Case(NamedTuple):
    title: str
    images: int
    batch: int
    size: int
    blur: float


CASES = {
    "memory": Case("images of 32 px in memory, batch 256", 4096, 256, 32, 0.0),
    "folder": Case("JPEGs of a folder at 224 px, batch 32", 160, 32, 224, 0.5),
}
WORKERS = {f"lightly, {n} workers": n for n in (0, 1, 2)}
OURS = ("selfsight, fp32", "selfsight, auto")
ALONE = ", step alone"


class TwoPasses(Method):
    """SimCLR as lightly's example has it: BatchNorm's statistics are of one view."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__(encoder)
        widths = (encoder.dim, encoder.dim, 128)
        self.projector = mlp(*widths, bias=False, last_bias=False, last_norm="affine")
        self.views = [simclr_view(count=2)]
        self.recipe = Recipe(
            optimizer="sgd", momentum=0.0, lr=RATE, rule="fixed", weight_decay=0.0, exempt="none"
        )

    def forward(self, batch: Batch, clock: Clock) -> Output:
        h = [self.encoder(x) for x in batch.views]
        z = tuple(self.projector(h_i) for h_i in h)
        return Output(nt_xent(*z, TEMPERATURE), embedding=h[0], projections=z)


class Silent:
    """Hears of the steps and keeps nothing."""

    def step(self, step: Step) -> None:
        assert step.output is not None

    def due(self, done: int) -> bool:
        return False

    def save(self, done: int, rejected: int) -> None: ...


class Drawn(torch.utils.data.Dataset):
    """Images in memory, as torchvision's CIFAR10 hands them over."""

    def __init__(self, images: Iterable, transform: Callable) -> None:
        self.images, self.transform = list(images), transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[list[torch.Tensor], int]:
        return self.transform(Image.fromarray(self.images[index])), 0


def drawn(case: Case) -> Arrays:
    return Arrays("drawn", synthetic(case.images, size=case.size)[0])


def lightly(case: Case, folder: Path | None, workers: int) -> Work:
    """An epoch of the example at docs.lightly.ai/self-supervised-learning/examples/simclr."""
    import torchvision
    from lightly.data import LightlyDataset
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead
    from lightly.transforms import SimCLRTransform

    resnet = torchvision.models.resnet18()
    backbone = torch.nn.Sequential(*list(resnet.children())[:-1])
    head = SimCLRProjectionHead(512, 512, 128)
    model = torch.nn.Sequential(backbone, torch.nn.Flatten(), head)
    transform = SimCLRTransform(input_size=case.size, gaussian_blur=case.blur)
    dataset: torch.utils.data.Dataset
    if folder is None:
        dataset = Drawn(drawn(case).images, transform)
    else:
        dataset = LightlyDataset(str(folder), transform=transform)
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=case.batch, shuffle=True, drop_last=True, num_workers=workers,
        persistent_workers=workers > 0,
    )  # fmt: skip
    criterion = NTXentLoss(TEMPERATURE)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)

    def epoch() -> int:
        total = torch.zeros(())
        for views, *_ in loader:
            x0, x1 = views
            loss = criterion(model(x0), model(x1))
            total += loss.detach()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        assert total.isfinite()
        return sum(p.numel() for p in model.parameters())

    return epoch


def selfsight(case: Case, folder: Path | None, precision: str, *, alone: bool) -> Work:
    """An epoch, or as many steps on one batch."""
    source: Source = drawn(case)
    if folder is not None:
        source = open_source(folder, cache=folder.parent)
    if precision == "auto":
        asked = Settings(encoder="resnet18", size=case.size, batch=case.batch)
        precision = resolve(asked, source).config.precision
    method = TwoPasses(create_encoder("resnet18", size=case.size))
    encoder, views = method.encoder, [simclr_view(size=case.size, blur=case.blur, count=2)]
    loader = Loader(
        source, views, batch=case.batch, seed=0, mean=encoder.mean, std=encoder.std,
        threads=THREADS, ram_bytes=0,
    )  # fmt: skip
    plan = Plan(
        total=FAR, per_epoch=loader.per_epoch, seed=0, lr=RATE, warmup=0, micros=1,
        precision=precision, device="cpu",
    )  # fmt: skip
    engine, sweeper = Engine(method, method.recipe, plan), Sweeper(loader)
    ready = loader.batch(0) if alone else None
    done = 0

    def epoch() -> int:
        nonlocal done
        first, done = done, done + loader.per_epoch
        if ready is None:
            stream = loader.stream(first, done)
        else:
            stream = ((step, [ready]) for step in range(first, done))
        run(engine, stream, sweeper, Silent(), Signals())
        return sum(p.numel() for p in method.parameters())

    return epoch


def build(case: Case, folder: Path | None, side: str, number: int, processes: int) -> Work:
    if side in WORKERS:
        return lightly(case, folder, WORKERS[side])
    loop = side.removesuffix(ALONE)
    return selfsight(case, folder, loop.rpartition(" ")[2], alone=loop != side)


def measured(case: Case, folder: Path | None, turns: int) -> dict[str, object]:
    print(case.title, flush=True)
    made = partial(build, case, folder)
    with ExitStack() as stack:
        theirs = {
            allocator: stack.enter_context(Crew(made, keep=allocator == "pages kept"))
            for allocator in ("default", "pages kept")
        }
        ours = stack.enter_context(Crew(made))
        sides = {f"{s}, {kind}": crew.side(s) for kind, crew in theirs.items() for s in WORKERS}
        sides |= {f"{s}{what}": ours.side(f"{s}{what}") for s in OURS for what in ("", ALONE)}
        before = probe()
        taken = interleaved(sides, turns, 0)
        after = probe()
        (parameters,) = {*ours.ask(OURS[0], 1), *theirs["default"].ask("lightly, 0 workers", 1)}
    steps = case.images // case.batch
    found = {side: rates(steps * case.batch, times) for side, times in taken.items()}
    summary(found, [before, after])
    return {
        "title": case.title,
        "batch": case.batch,
        "size": case.size,
        "steps": steps,
        "turns": turns,
        "parameters": parameters,
        "rates": found,
        "probe_gflops": [before, after],
        "load": os.getloadavg(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, help="of photographs, for the case of that name")
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), metavar="CASE")
    parser.add_argument("--turns", type=int, default=5, help="that are counted")
    parser.add_argument("--steps", type=int, help="of an epoch, fewer for a trial")
    parser.add_argument("--out", type=Path, help="where the numbers are written as JSON")
    options = parser.parse_args()
    if "folder" in options.only and options.folder is None:
        parser.error("--folder: which photographs?")
    torch.set_num_threads(THREADS)
    cases = {}
    with tempfile.TemporaryDirectory(prefix="end-to-end-") as temporary:
        for name in options.only:
            folder, case = None, CASES[name]
            if options.steps:
                case = case._replace(images=options.steps * case.batch)
            if name == "folder":
                folder = Path(temporary) / "photos"
                folder.mkdir()
                chosen = photographs(options.folder, case.images)
                for number, file in enumerate(chosen):
                    shutil.copyfile(file, folder / f"{number}.jpg")
            cases[name] = measured(case, folder, options.turns)
    result = {
        **header("python benchmarks/end_to_end.py --folder PHOTOS", "lightly", "torchvision"),
        "cases": cases,
    }
    if options.out:
        write(options.out, result)


if __name__ == "__main__":
    main()
