"""Writes down what a run does, measures it, and keeps its checkpoints."""

import math
import time
from typing import Any

from selfsight.distributed import rank
from selfsight.train import checkpoint
from selfsight.train.checkpoint import Checkpoint
from selfsight.train.folder import RunFolder
from selfsight.train.log import Lines, Teller
from selfsight.train.loop import Engine, Step
from selfsight.train.watch import OnlineKNN, readings

__all__ = ["Journal"]

_PATIENCE = 600.0  # seconds of work that a power cut may cost


class Journal:
    """metrics.jsonl holds nothing of the clock on the wall, so that two equal runs write
    equal bytes; timing.jsonl holds the rest."""

    def __init__(
        self,
        folder: RunFolder,
        engine: Engine,
        teller: Teller,
        *,
        save_every: int,
        keep: int,
        knn: OnlineKNN | None,
    ) -> None:
        self._folder, self._engine, self._teller = folder, engine, teller
        self._save_every, self._keep, self._knn = save_every, keep, knn
        plan = engine.plan
        epochs = max(1, plan.total // plan.per_epoch)
        self._watch_every = max(1, min(50, plan.per_epoch // 4))
        self._knn_every = plan.per_epoch * max(1, epochs // 20)
        self._writes = rank() == 0
        self._metrics = Lines(folder.metrics) if self._writes else None
        self._timing = Lines(folder.timing) if self._writes else None
        self._saved = self._marked = time.monotonic()

    def step(self, step: Step) -> None:
        clock = step.clock
        done = clock.step + 1
        values: dict[str, Any] = {"step": clock.step, "epoch": clock.epoch, "lr": step.rate}
        if step.output is None:
            values |= {"rejected": True, "samples": step.samples}
        else:
            values |= {"loss": step.loss, "gradient": step.norm}
            values |= {name: float(value) for name, value in step.output.metrics.items()}
            if clock.step % self._watch_every == 0 or done == clock.total:
                values |= readings(step.output)
        if step.gradients:
            finite = {name: g if math.isfinite(g) else None for name, g in step.gradients.items()}
            values["gradients"] = finite
        if self._knn is not None and (done % self._knn_every == 0 or done == clock.total):
            values["knn"] = self._knn(self._engine.method) if self._writes else None
        if self._metrics is not None:
            self._metrics.write(**values)
        self._time(done)
        self._teller.step(done, step.loss)

    def _time(self, done: int) -> None:
        if self._timing is not None and done % self._watch_every == 0:
            now = time.monotonic()
            self._timing.write(step=done - 1, seconds=round(now - self._marked, 4))
            self._marked = now

    def due(self, done: int) -> bool:
        if not self._writes:
            return False
        return done % self._save_every == 0 or time.monotonic() - self._saved > _PATIENCE

    def save(self, done: int, rejected: int) -> None:
        if self._metrics is None:
            return
        self._metrics.settle()
        method = self._engine.method
        checkpoint.save(
            self._folder.checkpoints,
            Checkpoint(
                step=done,
                method=method.state_dict(),
                optimizer=checkpoint.optimizer_tensors(self._engine.optimizer, method),
                state={"rejected": rejected},
            ),
            keep=self._keep,
        )
        self._saved = time.monotonic()

    def close(self) -> None:
        for lines in (self._metrics, self._timing):
            if lines is not None:
                lines.close()
