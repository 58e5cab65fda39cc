"""Batches of views as a pure function of the step: any rank, any thread, any restart."""

import os
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from selfsight import philox
from selfsight.data.base import Pixels, Skip, Source, printable
from selfsight.data.decode import Undecodable
from selfsight.data.files import allowed_bad
from selfsight.errors import ConfigError, DataError
from selfsight.methods.base import Batch, Key
from selfsight.philox import Purpose
from selfsight.views import View, cpu, expand, render
from selfsight.views.reference import Images, sizes
from selfsight.views.sample import Table, boxes, sample

__all__ = ["Loader", "free_memory"]

_EPOCHS = 2  # orders kept: the one in use and the one being prepared


class Loader:
    """This rank's part of every global batch.

    batch: the global batch: images over all ranks and micro-batches of a step
    threads: that decode and, on a CPU, render; the pixels do not depend on it
    on_skip: called once for each file that has gone bad since the source was opened; its
        place is taken by the next readable image
    max_bad_fraction: how many files may go bad (on each rank) before it is an error
    ahead: batches prepared before they are asked for, by one thread; by default 2 for a GPU and
        none on a CPU, where that thread would take the cores from the step it runs beside
    ram_bytes: decoded images are kept when all of them fit; default a quarter of the free
        memory, shared by the ranks
    """

    def __init__(
        self,
        source: Source,
        views: View | Sequence[View],
        *,
        batch: int,
        seed: int,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device | str = "cpu",
        rank: int = 0,
        world: int = 1,
        threads: int = 1,
        supervised: bool = False,
        on_skip: Callable[[str, str], None] | None = None,
        max_bad_fraction: float = 0.01,
        ram_bytes: int | None = None,
        ahead: int | None = None,
    ) -> None:
        n = len(source)
        if n < 2:
            raise DataError(f"{source.name} holds {n} image; training needs two at least")
        if batch < 1 or batch > n:
            raise ConfigError(
                f"batch {batch} does not fit the {n} images of {source.name}; "
                f"use --batch from 1 to {n}"
            )
        if batch % world:
            raise ConfigError(f"batch {batch} does not divide into {world} ranks")
        if supervised and source.labels is None:
            raise DataError(
                f"{source.name} has no labels, which a supervised method needs; "
                "--labels takes a folder's sub-folders for classes"
            )
        self.source, self.views = source, expand(views)
        self.global_batch, self.seed, self.rank, self.world = batch, seed, rank, world
        self.mean, self.std, self.device = mean, std, torch.device(device)
        self._ahead = ahead if ahead is not None else 2 * (self.device.type != "cpu")
        self.per_epoch = n // batch
        self.labels = source.labels if supervised else None
        self._on_skip, self._allowed = on_skip, allowed_bad(max_bad_fraction, n)
        self._max_bad_fraction = max_bad_fraction
        self._lock = threading.Lock()
        self._orders: OrderedDict[int, NDArray[np.int64]] = OrderedDict()
        self._failed: dict[int, Skip] = {}
        self._reported: set[int] = set()
        if ram_bytes is None:
            ram_bytes = free_memory() // (4 * world)
        needed = 3 * int(source.sizes.astype(np.int64).prod(axis=1).sum())
        self._keep = not source.resident and needed <= ram_bytes
        self._kept: dict[int, Pixels] = {}
        self._threads = threads
        self._stack = source.stack()
        self._onboard = _onboard(self._stack, self.device)

    @property
    def failures(self) -> int:
        """Distinct files of this rank that have gone bad since the source was opened."""
        return len(self._failed)

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Which image is shown when: one permutation per epoch."""
        with self._lock:
            if epoch not in self._orders:
                n = len(self.source)
                self._orders[epoch] = philox.permutation(self.seed, epoch, Purpose.ORDER, n)
                while len(self._orders) > _EPOCHS:
                    self._orders.popitem(last=False)
            return self._orders[epoch]

    def batch(self, step: int, micro: int = 0, micros: int = 1) -> Batch:
        """This rank's part `micro` of `micros` of a step's global batch."""
        if self.global_batch % (self.world * micros):
            raise ConfigError(
                f"batch {self.global_batch} does not divide into {self.world} ranks × "
                f"{micros} accumulated parts; use a multiple of {self.world * micros}"
            )
        size = self.global_batch // (self.world * micros)
        first = (self.rank * micros + micro) * size
        epoch, place = divmod(step, self.per_epoch)
        start = place * self.global_batch + first
        position = step * self.global_batch + first + np.arange(size, dtype=np.int64)
        index, crops, corners = self.render(
            self.order(epoch)[start : start + size], position, self.views, self.seed
        )
        return Batch(
            views=crops,
            index=torch.from_numpy(index).to(self.device),
            boxes=torch.from_numpy(corners).to(self.device),
            key=Key(self.seed, step, torch.from_numpy(position).to(self.device)),
            labels=None
            if self.labels is None
            else torch.from_numpy(self.labels[index]).to(self.device),
        )

    def render(
        self,
        wanted: NDArray[np.int64],
        position: NDArray[np.int64],
        views: Sequence[View],
        seed: int,
    ) -> tuple[NDArray[np.int64], list[Tensor], NDArray[np.float32]]:
        """The numbers of the images that were read (another's where a file has gone bad), a
        tensor for each view, and the views' boxes (N, views, 4). Each image is decoded once."""
        count = len(wanted)
        index = wanted.copy()
        corners = np.empty((count, len(views), 4), np.float32)

        def tables(images: Images, part: slice) -> list[Table]:
            drawn = [
                sample(view, sizes(images), seed=seed, position=position[part], index=number)
                for number, view in enumerate(views)
            ]
            corners[part] = np.stack([boxes(table) for table in drawn], axis=1)
            return drawn

        def fetch(part: slice) -> Images:
            index[part], images = self._fetch(wanted[part])
            return images

        def paint(part: slice) -> None:
            images = fetch(part)
            for view, table, pixels in zip(views, tables(images, part), out, strict=True):
                cpu.paint(images, table, view, mean=self.mean, std=self.std, out=pixels[part])

        def cut(part: slice) -> tuple[list[Pixels], list[Table]]:
            images = fetch(part)
            return _cut(images, tables(images, part))

        if self.device.type == "cpu":
            out = [cpu.empty(count, view, torch.float32) for view in views]
            cpu.in_parts(paint, count, self._pixels(views), self._threads)
        else:
            images: Images
            if self._onboard is not None:
                images = self._onboard[torch.from_numpy(wanted).to(self.device)]
                drawn = tables(images, slice(None))
            else:
                parts = cpu.in_parts(cut, count, self._pixels(views), self._threads)
                images = [image for part, _ in parts for image in part]
                drawn = [Table.joined(same) for same in zip(*(t for _, t in parts), strict=True)]
            out = [
                render(images, table, view, mean=self.mean, std=self.std, device=self.device)
                for view, table in zip(views, drawn, strict=True)
            ]
        self._report(wanted.tolist())
        return index, out, corners

    def stream(
        self, start: int, stop: int, micros: int = 1
    ) -> Generator[tuple[int, list[Batch]], None, None]:
        """(step, its micro-batches) for each step from start to stop; the thread that prepares
        them ahead ends with the iterator."""
        if not self._ahead:
            for step in range(start, stop):
                yield step, self._step(step, micros)
            return
        # An executor's thread ends with the interpreter, too: nobody waits for more than
        # the batches that are already under way.
        producer = ThreadPoolExecutor(1, "selfsight-prefetch")
        ahead: deque[Future[list[Batch]]] = deque()
        following = start
        try:
            for step in range(start, stop):
                while following < min(stop, step + self._ahead + 1):
                    ahead.append(producer.submit(self._step, following, micros))
                    following += 1
                yield step, ahead.popleft().result()
        finally:
            producer.shutdown(wait=True, cancel_futures=True)

    def _step(self, step: int, micros: int) -> list[Batch]:
        return [self.batch(step, micro, micros) for micro in range(micros)]

    def _pixels(self, views: Sequence[View]) -> float:
        """What an image costs: its views' pixels and, where it is decoded, its own."""
        painted = sum(view.size**2 for view in views)
        return painted + (0 if self._keep else self.source.decoded)

    def _fetch(self, wanted: NDArray[np.int64]) -> tuple[NDArray[np.int64], Images]:
        if self._stack is not None:
            return wanted, self._stack[wanted]
        found = [self._next_readable(index) for index in wanted.tolist()]
        return np.array([index for index, _ in found], np.int64), [image for _, image in found]

    def _next_readable(self, index: int) -> tuple[int, Pixels]:
        """The image, or the first after it that can be read."""
        for _ in range(len(self.source)):
            if index not in self._failed:
                try:
                    return index, self._read(index)
                except Undecodable as error:
                    with self._lock:
                        self._failed[index] = Skip(self.source.path(index), str(error))
                    if len(self._failed) > self._allowed:
                        break
            index = (index + 1) % len(self.source)
        with self._lock:
            first = next(iter(self._failed.values()))
        raise DataError(
            f"{self.source.name}: {len(self._failed)} of {len(self.source)} images can no longer "
            f"be read, the first is {printable(first.path)} ({first.reason}); restore them, or "
            f"raise --max-bad-fraction (now {self._max_bad_fraction:g})"
        )

    def _read(self, index: int) -> Pixels:
        image = self._kept.get(index)
        if image is None:
            image = self.source.read(index)
            if self._keep:
                self._kept[index] = image
        return image

    def _report(self, wanted: list[int]) -> None:
        """In the batch's order, whichever thread met the failure first."""
        with self._lock:
            if len(self._reported) == len(self._failed):
                return
            for start in wanted:
                index = start
                while index in self._failed:
                    if index not in self._reported:
                        self._reported.add(index)
                        if self._on_skip is not None:
                            self._on_skip(self._failed[index].path, self._failed[index].reason)
                    index = (index + 1) % len(self.source)


def _onboard(stack: Pixels | None, device: torch.device) -> Tensor | None:
    """A small data set lives on the GPU, as bytes."""
    if stack is None or device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return (
        torch.from_numpy(np.ascontiguousarray(stack)).to(device)
        if stack.nbytes < free // 4
        else None
    )


def _cut(images: Images, tables: Sequence[Table]) -> tuple[list[Pixels], list[Table]]:
    """Of each image what its views look at, and tables that count from there: the rest need
    not travel to the device."""
    edges = np.stack([boxes(table) for table in tables]).astype(np.int64)
    low = np.minimum(edges[..., :2], edges[..., 2:]).min(axis=0)
    high = np.maximum(edges[..., :2], edges[..., 2:]).max(axis=0)
    parts = [
        image[y0:y1, x0:x1].copy()  # lets go of the rest
        for image, (x0, y0), (x1, y1) in zip(images, low, high, strict=True)
    ]
    return parts, [table.moved(low[:, 1], low[:, 0]) for table in tables]


def free_memory() -> int:
    """Bytes that can be had without swapping; half of what is built in where it is unknown."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            fields = dict(line.split(":") for line in lines)
        return 1024 * int(fields["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
