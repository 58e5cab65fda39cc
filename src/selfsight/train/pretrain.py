"""From a folder of images to a run: open, resolve, build, train, export."""

import sys
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from selfsight.counting import counting
from selfsight.data.base import Source, printable
from selfsight.data.loader import Loader
from selfsight.data.reduced import Reduced, reduce
from selfsight.data.sources import Data, open_source
from selfsight.distributed import (
    any_rank,
    barrier,
    broadcast,
    local,
    process_group,
    rank,
    ranks_here,
    world,
)
from selfsight.encoders.timm import TimmEncoder
from selfsight.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    Error,
    Stopped,
    StorageError,
)
from selfsight.export.model import save_model
from selfsight.machine import cache_folder, cores, keep_pages
from selfsight.memory import Queue
from selfsight.methods import trusted
from selfsight.run import Run
from selfsight.train import checkpoint
from selfsight.train.config import Built, Settings, needs_labels, resolve, seconds
from selfsight.train.folder import RunFolder
from selfsight.train.journal import Journal
from selfsight.train.log import Lines, Teller, truncate
from selfsight.train.loop import Engine, Plan, run
from selfsight.train.measure import epochs_within
from selfsight.train.record import record, refuse_changes
from selfsight.train.regularize import Regularizer
from selfsight.train.signals import Signals
from selfsight.train.sweep import Sweeper
from selfsight.train.watch import OnlineKNN
from selfsight.views.cpu import compile_kernels

__all__ = ["Habits", "pretrain", "resume"]


@dataclass(frozen=True, kw_only=True)
class Habits:
    """How a run is done, which changes nothing about what it computes."""

    max_bad_fraction: float = 0.01
    save_every: int | None = None
    keep: int = 2
    threads: int | None = None  # that decode images; None: one per core, shared by the ranks
    labels: bool = False
    download: bool = False
    cache: str | None = None
    follow_links: bool = False
    whole: bool = False  # large photos are decoded whole, not reduced once into the cache
    gradients: bool = False  # each step writes down the norm of each layer's gradient
    quiet: bool = False

    def __post_init__(self) -> None:
        for name, least in (("save_every", 1), ("keep", 2), ("threads", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name} {value}: must be {least} or more")


def pretrain(
    data: Data,
    settings: Settings,
    habits: Habits,
    *,
    out: str | Path,
    time: str | None = None,
    resume: bool = False,
) -> Run:
    """Train a method on `data` and leave the run in `out`."""
    if time is not None and settings.epochs is not None:
        raise ConfigError("epochs and time exclude each other; keep one")
    folder, signals = RunFolder(out), Signals()
    keep_pages()
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        stack.enter_context(process_group(_device(settings)))
        stack.enter_context(signals.caught())
        _first(lambda: folder.claim(resume=resume))
        _first(lambda: stack.enter_context(folder.lock()))
        recorded = folder.read() if folder.started else None
        if recorded is not None:
            settings = _continued(settings, recorded)
        if needs_labels(settings.method):
            habits = replace(habits, labels=True)
        source = _open(data, habits)
        built = resolve(settings, source)
        if recorded is not None and recorded["data"].get("reduced") is None:
            habits = replace(habits, whole=True)  # as it was begun
        opened, source = source, _reduced(source, built, habits, signals)
        compile_kernels(_telling(habits))
        code = any_rank(signals.code)
        if code:
            raise Stopped(f"stopped by {signals.name(code)} before the first step", code)
        if time is not None and recorded is None:
            built = _within(built, settings, opened, source, habits, time)
        if recorded is None:
            _first(lambda: folder.write(record(built, data, source, asdict(habits))))
        else:
            refuse_changes(recorded, built, source)
            built = replace(built, config=replace(built.config, reasons=recorded["reasons"]))
        try:
            _train(folder, built, source, habits, signals)
        except (ConfigError, DataError):
            if recorded is None and rank() == 0:
                folder.forget()
            raise
        barrier()
    return Run(folder.path)


def resume(path: str | Path, *, quiet: bool = False) -> Run:
    """Continue a run from what its folder says."""
    record = RunFolder(path).read()
    try:
        settings, habits = Settings(**record["config"]), Habits(**record["habits"])
        reopens, name = record["reopens"], record["data"]["name"]
    except (KeyError, TypeError) as error:
        raise StorageError(f"{path}/run.json is not of this version: {error}") from None
    if not reopens:
        raise ConfigError(
            f"{path} was trained on an array in memory; call selfsight.pretrain with it again"
        )
    trusted(settings.method, path)
    return pretrain(name, settings, replace(habits, quiet=quiet), out=path, resume=True)


def _device(settings: Settings) -> torch.device:
    cuda = torch.cuda.is_available() and settings.device in (None, "auto", "cuda")
    return torch.device("cuda" if cuda else "cpu")


def _first(action: Any) -> None:
    """Do something on rank 0; a failure there ends all ranks, told once."""
    code = 1
    try:
        if rank() == 0:
            action()
        code = 0
    except Error as error:
        code = error.exit_code
        raise
    finally:
        code = any_rank(code)
        if code and rank() > 0:
            sys.exit(code)


def _open(data: Data, habits: Habits) -> Source:
    def opened() -> Source:
        return open_source(
            data,
            labels=habits.labels,
            max_bad_fraction=habits.max_bad_fraction,
            download=habits.download,
            cache=habits.cache,
            follow_links=habits.follow_links,
            progress=None if habits.quiet else counting("checked"),
        )

    # Rank 0 checks new data and leaves the manifest for the others.
    found: list[Source] = []
    _first(lambda: found.append(opened()))
    source = found[0] if found else opened()
    if len(source) < 2:
        raise DataError(f"{source.name} holds {len(source)} image; a run needs at least 2")
    return source


def _telling(habits: Habits) -> Callable[[str], None]:
    """Before there is a Teller."""

    def tell(text: str) -> None:
        if not habits.quiet and rank() == 0:
            print(text, file=sys.stderr, flush=True)

    return tell


def _reduced(source: Source, built: Built, habits: Habits, signals: Signals) -> Source:
    """The source with photos much larger than the views reduced, once, into the cache."""
    if habits.whole:
        return source
    short = 2 * max(view.size for view in built.method.views)
    threads = habits.threads or cores()
    count = counting(f"reduced to {short} px")

    def progress(done: int, total: int) -> None:
        if not habits.quiet:
            count(done, total)
        if signals.code:
            name = signals.name(signals.code)
            raise Stopped(f"stopped by {name} while photos were reduced", signals.code)

    def reduced() -> Source:
        return reduce(source, short, cache_folder(habits.cache), threads=threads, progress=progress)

    found: list[Source] = []
    _first(lambda: found.append(reduced()))
    return found[0] if found else reduced()


def _within(
    built: Built, settings: Settings, opened: Source, source: Source, habits: Habits, time: str
) -> Built:
    """The same run with as many epochs as fit into `time`.

    opened: what the settings speak of; source: the same with its large photos reduced
    """
    engine, loader = _engine(built, source, habits), _loader(built, source, habits, None)
    sweeper = Sweeper(loader)
    epochs = epochs_within(seconds(time), engine, loader, sweeper, built.config.accumulate)
    # The measured steps moved the weights; resolving again starts from the same seed.
    again = resolve(replace(settings, epochs=epochs), opened)
    reasons = {**again.config.reasons, "epochs": f"what fits into {time} at the measured rate"}
    return replace(again, config=replace(again.config, reasons=reasons))


def _continued(settings: Settings, record: dict[str, Any]) -> Settings:
    """What was asked before, under what is asked now."""
    if settings.method is None:
        trusted(record["config"].get("method"), "the run")
    names = {f.name for f in fields(Settings)}
    before = {name: v for name, v in record["config"].items() if name in names}
    now = {name: getattr(settings, name) for name in names}
    given = {name: v for name, v in now.items() if v is not None and v != {} and v != "auto"}
    return Settings(**{**before, **given})


def _plan(built: Built, source: Source, habits: Habits) -> Plan:
    config = built.config
    per_epoch = len(source) // config.batch
    return Plan(
        total=config.epochs * per_epoch,
        per_epoch=per_epoch,
        seed=config.seed,
        lr=config.lr,
        warmup=round(config.warmup * per_epoch),
        micros=config.accumulate,
        precision=config.precision,
        device=local(config.device),
        regularizer=Regularizer(**config.regularize),
        gradients=habits.gradients,
    )


def _engine(built: Built, source: Source, habits: Habits) -> Engine:
    return Engine(built.method, built.recipe, _plan(built, source, habits))


def _loader(built: Built, source: Source, habits: Habits, skipped: Lines | None) -> Loader:
    config, encoder = built.config, built.method.encoder

    def note(path: str, reason: str) -> None:
        if skipped is not None:
            skipped.write(path=printable(path), reason=reason)

    return Loader(
        source,
        built.method.views,
        batch=config.batch,
        seed=config.seed,
        mean=encoder.mean,
        std=encoder.std,
        device=local(config.device),
        rank=rank(),
        world=world(),
        threads=habits.threads or max(1, cores() // ranks_here()),
        supervised=built.method.supervised,
        on_skip=note,
        max_bad_fraction=habits.max_bad_fraction,
    )


def _train(
    folder: RunFolder, built: Built, source: Source, habits: Habits, signals: Signals
) -> None:
    config = built.config
    with ExitStack() as stack:
        skipped = None
        if rank() == 0:
            folder.skipped.unlink(missing_ok=True)
            skipped = stack.enter_context(closing(Lines(folder.skipped)))
            for skip in source.skipped:
                skipped.write(path=printable(skip.path), reason=skip.reason)
        loader = _loader(built, source, habits, skipped)
        engine = _engine(built, source, habits)
        plan = engine.plan
        quiet = habits.quiet or rank() > 0
        teller = stack.enter_context(Teller(plan.total, config.batch, quiet=quiet))
        start, rejected = _restore(folder, engine, teller)
        _announce(built, source, plan, start, teller)
        knn = None
        if source.labels is not None:
            knn = OnlineKNN.over(
                source, size=config.size, device=plan.device, precision=config.precision,
                seed=config.seed,
            )  # fmt: skip
        save_every = habits.save_every or max(plan.per_epoch, plan.total // 20)
        journal = stack.enter_context(closing(Journal(
            folder, engine, teller, save_every=save_every, keep=habits.keep, knn=knn
        )))  # fmt: skip
        sweeper = Sweeper(loader)
        stream = stack.enter_context(closing(loader.stream(start, plan.total, micros=plan.micros)))
        teller.started(start)
        try:
            run(engine, stream, sweeper, journal, signals, rejected=rejected)
        except torch.OutOfMemoryError:
            raise ConfigError(
                f"a batch of {config.batch} does not fit into this GPU's memory; take a smaller "
                "--batch, or compute it in parts with --accumulate 4"
            ) from None
        if rank() == 0:
            product = built.method.product
            assert isinstance(product, TimmEncoder)
            save_model(product, folder.model, size=config.size)


def _restore(folder: RunFolder, engine: Engine, teller: Teller) -> tuple[int, int]:
    """Put the newest valid checkpoint back; (steps done, rejected in a row)."""
    found = checkpoint.newest(folder.checkpoints, teller.say) if rank() == 0 else None
    step = torch.tensor(found.step if found else 0, device=engine.plan.device)
    done = int(broadcast(step))
    if rank() == 0:
        truncate(folder.metrics, done)
        truncate(folder.timing, done)
    if not done:
        return 0, 0
    found = found or checkpoint.load(folder.checkpoints / checkpoint.name(done))
    try:
        engine.method.load_state_dict(found.method)
        checkpoint.restore_optimizer(engine.optimizer, engine.method, found.optimizer)
        return done, int(found.state["rejected"])
    except (KeyError, RuntimeError, ValueError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"{folder.checkpoints / checkpoint.name(done)} does not fit the method: {reason}"
        ) from None


def _announce(built: Built, source: Source, plan: Plan, start: int, teller: Teller) -> None:
    for name, value, reason in built.config.table():
        shown = " ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else value
        if shown != "":
            teller.say(f"{name:<13} {shown!s:<24} {reason}".rstrip())
    if source.skipped:
        count = len(source.skipped)
        teller.say(f"skipped       {count} unreadable file{'s' * (count > 1)}, see skipped.jsonl")
    seen = len(source) * built.config.epochs
    for queue in built.method.modules():
        if isinstance(queue, Queue) and len(queue.rows) > seen:
            teller.say(f"queue         of {len(queue.rows):,}: {seen:,} images in this run do not "
                       "fill it; lower --method.queue")  # fmt: skip
    if isinstance(source, Reduced):
        count = int(source.large.sum())
        teller.say(
            f"reduced       {count:,} photo{'s' * (count > 1)} to a short side of {source.short} "
            f"px, kept in {source.folder}; --whole reads them as they are"
        )
    if start == plan.total:
        teller.say("the run is finished; nothing is left to train")
    elif start:
        teller.say(f"continuing after step {start} of {plan.total}")
    else:
        steps = f"{plan.total:,} step" + "s" * (plan.total > 1)
        teller.say(f"{len(source):,} images, {steps} of {built.config.batch}")
