"""How many epochs fit into a given time."""

import functools
import statistics
import time

import torch

from selfsight.data.loader import Loader
from selfsight.distributed import broadcast
from selfsight.methods.base import Clock
from selfsight.train.loop import Engine
from selfsight.train.sweep import Sweeper

__all__ = ["epochs_within"]

_WARM, _TIMED = 3, 7  # the first steps allocate and compile


def epochs_within(
    budget: float, engine: Engine, loader: Loader, sweeper: Sweeper, micros: int
) -> int:
    """Epochs that `budget` seconds allow, from a few real steps. They move the weights."""
    plan = engine.plan
    seconds = []
    for number in range(_WARM + _TIMED):
        start = time.perf_counter()
        clock = Clock(number, plan.total, plan.per_epoch, plan.seed)
        batches = [loader.batch(number, micro, micros) for micro in range(micros)]
        engine.step(clock, batches, functools.partial(sweeper, clock=clock))
        seconds.append(time.perf_counter() - start)
    step = statistics.median(seconds[_WARM:])
    epochs = torch.tensor(max(1, int(budget / (step * plan.per_epoch))), device=plan.device)
    return int(broadcast(epochs))
