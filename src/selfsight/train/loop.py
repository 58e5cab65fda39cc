"""The training loop."""

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException
from torch.nn.parallel import DistributedDataParallel

from selfsight import optim, philox
from selfsight.batchnorm import synchronise
from selfsight.distributed import agree, all_sum, any_rank, gather, rank, world
from selfsight.errors import ConfigError, Diverged, Stopped
from selfsight.methods.base import Batch, Clock, Method, Output, Sweep
from selfsight.optim import Recipe
from selfsight.philox import Purpose
from selfsight.train.regularize import Regularizer
from selfsight.train.signals import Signals

__all__ = ["Engine", "Listener", "Plan", "Step", "run"]


@dataclass(frozen=True)
class Plan:
    """Numbers of a run; warmup is in steps."""

    total: int
    per_epoch: int
    seed: int
    lr: float
    warmup: int
    micros: int
    precision: str
    device: str
    regularizer: Regularizer = field(default_factory=Regularizer)
    patience: int = 10  # rejected steps in a row that end the run
    gradients: bool = False  # whether each step tells of every layer's gradient


@dataclass(frozen=True)
class Step:
    """What one step did. output: the last part's; None when the step was rejected.
    gradients: norm of each layer's, before clipping, where the plan asks for them."""

    clock: Clock
    loss: float
    norm: float
    rate: float
    output: Output | None
    samples: list[int]
    gradients: dict[str, float] = field(default_factory=dict)


class Listener(Protocol):
    """Who hears of each step, and keeps checkpoints."""

    def step(self, step: Step) -> None: ...

    def due(self, done: int) -> bool:
        """Whether a checkpoint should be written after `done` steps."""

    def save(self, done: int, rejected: int) -> None: ...


class Engine:
    """A method with its optimizer: does one step at a time."""

    def __init__(self, method: Method, recipe: Recipe, plan: Plan) -> None:
        device = torch.device(plan.device)
        method.to(device)
        method.to(memory_format=torch.channels_last)
        synchronise(method)
        self.method, self.recipe, self.plan = method, recipe, plan
        self.optimizer = optim.build(method.groups(), recipe)
        self.network: nn.Module = method
        if world() > 1:
            # torch 2.15 renamed the option.
            known = inspect.signature(DistributedDataParallel).parameters
            new, old = "forward_sync_buffers", "broadcast_buffers"
            options: dict[str, Any] = {new if new in known else old: False}
            self.network = DistributedDataParallel(method, **options)
        names = ("running_mean", "running_var", "num_batches_tracked")
        self._statistics = [b for n, b in method.named_buffers() if n.endswith(names)]

    def step(self, clock: Clock, batches: list[Batch], sweep: Sweep) -> Step:
        """One optimizer step over the parts of a batch; a step that is not finite on every
        rank leaves no trace."""
        try:
            return self._step(clock, batches, sweep)
        except TorchDynamoException as error:
            raise _uncompiled(error, self.plan.device) from error

    def _step(self, clock: Clock, batches: list[Batch], sweep: Sweep) -> Step:
        method, plan = self.method, self.plan
        # Drop-path and drop-out read torch's generator: address it by the step too.
        torch.manual_seed(philox.seed_for(plan.seed, clock.step, Purpose.DROPOUT, view=rank()))
        method.prepare(clock, sweep)
        kept = [b.clone() for b in self._statistics]
        rate = optim.set_rates(
            self.optimizer, self.recipe, plan.lr, clock.step, plan.total, plan.warmup
        )
        outputs = [self._backward(batch, clock, last=batch is batches[-1]) for batch in batches]
        loss = torch.stack([out.loss.detach().float() for out in outputs]).mean()
        loss = all_sum(loss) / world()
        grads = [p.grad for p in method.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm(grads)
        gradients = _gradients(method) if plan.gradients else {}
        finite = agree(bool(loss.isfinite() & norm.isfinite()), plan.device)
        samples: list[int] = []
        if finite:
            optim.clip(method, self.recipe)
            method.after_backward(clock)
            self.optimizer.step()
            method.after_step(_joined([out.carry for out in outputs]), clock)
        else:
            for b, old in zip(self._statistics, kept, strict=True):
                b.copy_(old)
            samples = gather(torch.cat([batch.index for batch in batches])).tolist()
        self.optimizer.zero_grad(set_to_none=True)
        output = outputs[-1] if finite else None
        return Step(clock, float(loss), float(norm), rate, output, samples, gradients)

    def _backward(self, batch: Batch, clock: Clock, *, last: bool) -> Output:
        plan = self.plan
        half = torch.autocast(
            plan.device.partition(":")[0], torch.bfloat16, enabled=plan.precision == "bf16"
        )
        wait = not last and isinstance(self.network, DistributedDataParallel)
        with self.network.no_sync() if wait else nullcontext():  # type: ignore[operator]
            with half:
                output: Output = self.network(batch, clock)
            extra = plan.regularizer(output.projections)
            output = replace(output, loss=output.loss + extra)
            (output.loss / plan.micros).backward()  # type: ignore[no-untyped-call]
        return output


def _uncompiled(error: TorchDynamoException, device: str) -> ConfigError:
    reason = next(iter(str(error).splitlines()), type(error).__name__)
    needs = "a C++ compiler, such as g++," if device == "cpu" else "Triton and a C compiler"
    return ConfigError(
        f"--compile failed ({reason}); install {needs} where it is missing, or train without "
        "--compile"
    )


def _gradients(method: nn.Module) -> dict[str, float]:
    """Norm of each layer's gradient: over the parameters that a module holds itself."""
    norms = {}
    for name, module in method.named_modules():
        grads = [p.grad for p in module.parameters(recurse=False) if p.grad is not None]
        if grads:
            norms[name] = nn.utils.get_total_norm(grads)
    return dict(zip(norms, torch.stack(list(norms.values())).tolist(), strict=True))


def _joined(carries: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The parts' per-sample tensors, one after the other."""
    return {name: torch.cat([carry[name] for carry in carries]) for name in carries[0]}


def run(
    engine: Engine,
    stream: Iterable[tuple[int, list[Batch]]],
    sweep: Callable[..., Iterator[tuple[Tensor, Tensor]]],
    journal: Listener,
    signals: Signals,
    *,
    rejected: int = 0,
) -> None:
    """Train to the end of the stream; Stopped or Diverged when it cannot.

    stream: (step, this rank's parts of the batch) from the first step that is not done
    rejected: steps in a row that were rejected before it
    """
    plan = engine.plan
    for number, batches in stream:
        clock = Clock(number, plan.total, plan.per_epoch, plan.seed)
        step = engine.step(clock, batches, functools.partial(sweep, clock=clock))
        rejected = 0 if step.output is not None else rejected + 1
        journal.step(step)
        done = number + 1
        if rejected >= plan.patience:
            raise Diverged(
                f"the loss or its gradient was not finite in {rejected} steps in a row, the "
                f"last of them {number}; what was saved before stands. Try a lower --lr"
            )
        code = any_rank(signals.code, plan.device)
        if code or done == plan.total or any_rank(int(journal.due(done)), plan.device):
            journal.save(done, rejected)
        if code:
            raise Stopped(f"stopped by {signals.name(code)} after step {done}", code)
    if rejected == plan.total:
        raise Diverged("the loss or its gradient was not finite in any step; try a lower --lr")
