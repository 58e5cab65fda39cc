"""Heads that answer with a map, and how they are trained on crops of images and their maps."""

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from selfsight import philox
from selfsight.data.base import Pixels
from selfsight.data.masks import Map, Paired
from selfsight.encoders.base import Encoder
from selfsight.errors import ConfigError, DataError, Diverged
from selfsight.evaluate.base import Sight
from selfsight.philox import Purpose, seed_for

__all__ = [
    "Kind",
    "LinearHead",
    "MapNetwork",
    "Training",
    "UPerNetHead",
    "enlarged",
    "fitted",
    "likeliest",
    "normalised",
]

Kind = Literal["linear", "upernet"]
Loss = Callable[[Tensor, Tensor], Tensor]

_SHARE = 0.5  # of the short side: the smallest crop
_POWER = 0.9
_RATES = {
    ("linear", "adamw"): 1e-2,
    ("linear", "sgd"): 1e-1,
    ("upernet", "adamw"): 1e-3,
    ("upernet", "sgd"): 1e-2,
}
# A trained encoder moves more slowly than the head, which starts from nothing.
_ENCODER = 0.1
# Values of enlarged answers held at a time: 64 MiB in float32.
_BLOCK = 1 << 24
_LONG = 8  # times the short side: what a panorama is squeezed to
_POOLS = (1, 2, 3, 6)


class LinearHead(nn.Module):
    """A linear map of each place of the last feature map, its channels normalised before."""

    def __init__(self, widths: Sequence[int], channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(widths[-1])
        self.answer = nn.Conv2d(widths[-1], channels, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        out: Tensor = self.answer(self.norm(maps[-1]))
        return out


class UPerNetHead(nn.Module):
    """A pyramid from all maps, the last one pooled at four scales.

    Xiao et al. 2018, https://arxiv.org/abs/1807.10221. Maps of one size, as a ViT's, are first
    resized to a pyramid.
    """

    def __init__(self, widths: Sequence[int], channels: int, hidden: int) -> None:
        super().__init__()
        self.pools = nn.ModuleList(_unit(widths[-1], hidden, 1) for _ in _POOLS)
        self.join = _unit(widths[-1] + len(_POOLS) * hidden, hidden, 3)
        self.lateral = nn.ModuleList(_unit(width, hidden, 1) for width in widths[:-1])
        self.smooth = nn.ModuleList(_unit(hidden, hidden, 3) for _ in widths[:-1])
        self.fuse = _unit(len(widths) * hidden, hidden, 3)
        self.answer = nn.Conv2d(hidden, channels, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        maps = _pyramid(maps)
        last, extent = maps[-1], maps[-1].shape[2:]
        pooled = [
            _resized(unit(F.adaptive_avg_pool2d(last, side)), extent)
            for side, unit in zip(_POOLS, self.pools, strict=True)
        ]
        x = self.join(torch.cat([last, *pooled], 1))
        levels = [x]
        for number in reversed(range(len(self.lateral))):
            x = self.lateral[number](maps[number]) + _resized(x, maps[number].shape[2:])
            levels.append(self.smooth[number](x))
        finest = maps[0].shape[2:]
        out: Tensor = self.answer(self.fuse(torch.cat([_resized(x, finest) for x in levels], 1)))
        return out


class MapNetwork(nn.Module):
    """Images (N, 3, H, W) to coarse maps (N, channels, rows, columns)."""

    def __init__(
        self, encoder: Encoder, levels: Sequence[int], head: nn.Module, sight: Sight, tuned: bool
    ) -> None:
        super().__init__()
        self.encoder, self.levels, self.head = encoder.requires_grad_(tuned), levels, head
        self.tuned = tuned
        self.device = torch.device(sight.device)
        right = not tuned or encoder.learns_in_bf16(sight.size, str(sight.device))
        self._half = sight.precision == "bf16" and right

    def forward(self, x: Tensor) -> Tensor:
        half = torch.autocast(self.device.type, torch.bfloat16, enabled=self._half)
        with half, torch.set_grad_enabled(self.tuned and torch.is_grad_enabled()):
            maps = self.encoder.maps(x, self.levels)
        out: Tensor = self.head([m.float() for m in maps])
        return out

    def train(self, mode: bool = True) -> "MapNetwork":
        """A frozen encoder stays as it is."""
        super().train(mode)
        if not self.tuned:
            self.encoder.eval()
        return self

    @torch.no_grad()
    def answers(self, sight: Sight, test: Paired) -> Iterator[tuple[Tensor, Map]]:
        """(channels, rows, columns) and the map, for each image: seen whole, its short side
        resized to the sight's size."""
        self.eval()
        tell = sight.counting("images answered")
        for index in range(len(test)):
            pixels, wanted = test.read(index, sight.size)
            extent = fitted(pixels.shape[0], pixels.shape[1], sight.size, self.encoder.multiple)
            x = normalised(pixels, extent, self.encoder)[None].to(self.device)
            yield self(x)[0], wanted
            tell(index + 1, len(test))


@dataclass(frozen=True)
class Training:
    """How a head, and the encoder if `tuned`, learn maps.

    Crops of half to all of the short side, at random places, resized to the sight's size and
    flipped half the time. The rate falls as (1 − t)^0.9; a trained encoder's is a tenth.

    lr: None is 0.01 for a linear head by AdamW, ten times that by SGD with momentum 0.9, and a
        tenth for an UPerNet head
    hidden: width of an UPerNet head
    """

    head: Kind
    tuned: bool
    hidden: int
    epochs: int
    batch: int
    optimizer: Literal["adamw", "sgd"]
    lr: float | None
    weight_decay: float
    seed: int

    @property
    def name(self) -> str:
        head = {"linear": "linear", "upernet": "UPerNet"}[self.head]
        return head + ", fine-tuned" * self.tuned

    @property
    def rate(self) -> float:
        return self.lr or _RATES[self.head, self.optimizer]

    def fit(
        self, sight: Sight, train: Paired, test: Paired, channels: int, loss: Loss
    ) -> MapNetwork:
        """A network trained on crops of `train`; the sight's own encoder is left as it is.

        test: its sizes only, which the encoder must take
        loss: of (N, channels, size, size) answers and (N, size, size) maps
        """
        if len(train) < 2:
            raise DataError(f"{train.name} has {len(train)} image; a head needs two or more")
        network = self._network(sight, channels, test)
        optimizer = self._optimizer(network)
        batch = min(self.batch, len(train))
        total = self.epochs * (len(train) // batch)
        network.train()
        tell = sight.counting("head trained")
        for step, (x, wanted) in enumerate(self._batches(sight, train, network.encoder, batch)):
            for group in optimizer.param_groups:
                group["lr"] = group["base"] * (1 - step / total) ** _POWER
            out = network(x.to(network.device))
            value = loss(_resized(out, x.shape[2:]), wanted.to(network.device))
            optimizer.zero_grad()
            value.backward()  # type: ignore[no-untyped-call]
            if not value.isfinite():
                raise Diverged(
                    f"the head's loss is {value.item():g} at step {step}; choose a smaller lr"
                )
            optimizer.step()
            tell((step + 1) * batch, total * batch)
        return network

    def _network(self, sight: Sight, channels: int, test: Paired) -> MapNetwork:
        if sight.encoder.levels == 0:
            name = sight.encoder.name
            raise ConfigError(f"{name} gives no feature maps; take a timm architecture")
        encoder = sight.encoder.copied().to(sight.device)
        height, width = test.images.sizes[0].tolist()
        extent = fitted(height, width, sight.size, encoder.multiple)
        # Told now: an encoder of fixed input would fail after the training.
        for shape in ((sight.size, sight.size), extent):
            encoder.grid(torch.empty(1, 3, *shape, device="meta"))
        levels = [encoder.levels - 1] if self.head == "linear" else _spaced(encoder.levels)
        with torch.no_grad():
            probe = torch.zeros(1, 3, sight.size, sight.size, device=sight.device)
            widths = [m.shape[1] for m in encoder.eval().maps(probe, levels)]
        # New weights come from the seed and leave torch's generator where it was.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed_for(self.seed, 0, Purpose.INIT))
            if self.head == "linear":
                head: nn.Module = LinearHead(widths, channels)
            else:
                head = UPerNetHead(widths, channels, self.hidden)
        return MapNetwork(encoder, levels, head.to(sight.device), sight, self.tuned)

    def _optimizer(self, network: MapNetwork) -> torch.optim.Optimizer:
        rate = self.rate
        groups: list[dict[str, Any]] = [{"params": list(network.head.parameters()), "base": rate}]
        if self.tuned:
            groups.append({"params": list(network.encoder.parameters()), "base": rate * _ENCODER})
        if self.optimizer == "sgd":
            return torch.optim.SGD(groups, rate, momentum=0.9, weight_decay=self.weight_decay)
        return torch.optim.AdamW(groups, rate, weight_decay=self.weight_decay)

    def _batches(
        self, sight: Sight, train: Paired, encoder: Encoder, batch: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """(images, maps), the next batch made meanwhile; a rest that fills no batch waits for
        another epoch's order."""
        per_epoch = len(train) // batch

        def sample(position: int, index: int) -> tuple[Tensor, Tensor]:
            pixels, wanted = train.read(index, math.ceil(sight.size / _SHARE))
            draws = philox.uniform(self.seed, position, Purpose.VIEW, 4)
            return _crop(pixels, wanted, draws, sight.size, encoder)

        def prepare(step: int) -> tuple[Tensor, Tensor]:
            epoch, turn = divmod(step, per_epoch)
            order = philox.permutation(self.seed, epoch, Purpose.ORDER, len(train))
            chosen = order[turn * batch : (turn + 1) * batch].tolist()
            made = list(readers.map(sample, range(step * batch, (step + 1) * batch), chosen))
            return torch.stack([x for x, _ in made]), torch.stack([wanted for _, wanted in made])

        with ThreadPoolExecutor(sight.threads) as readers, ThreadPoolExecutor(1) as ahead:
            coming = ahead.submit(prepare, 0)
            for step in range(self.epochs * per_epoch):
                ready = coming.result()
                if step + 1 < self.epochs * per_epoch:
                    coming = ahead.submit(prepare, step + 1)
                yield ready


def enlarged(answer: Tensor, extent: tuple[int, int], channels: int) -> Iterator[Tensor]:
    """(channels, rows, columns) as maps of that height and width, some `channels` at a time: of
    150 classes of a photo not all need be held."""
    for start in range(0, len(answer), channels):
        yield _resized(answer[None, start : start + channels], extent)[0]


def likeliest(answer: Tensor, extent: tuple[int, int]) -> NDArray[np.int16]:
    """(C, rows, columns) to (H, W) numbers of classes; of equals the lower one."""
    at_once = max(1, _BLOCK // (extent[0] * extent[1]))
    best = answer.new_full(extent, -torch.inf)
    number = torch.zeros(extent, dtype=torch.int16, device=answer.device)
    for turn, part in enumerate(enlarged(answer, extent, at_once)):
        value, place = part.max(dim=0)
        better = value > best
        best = torch.where(better, value, best)
        number = torch.where(better, (place + turn * at_once).to(torch.int16), number)
    likeliest: NDArray[np.int16] = number.cpu().numpy()
    return likeliest


def normalised(pixels: Pixels, extent: tuple[int, int], encoder: Encoder) -> Tensor:
    """(3, height, width) of uint8 (H, W, 3), resized with antialiasing, as the encoder sees it."""
    x = torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1)[None] / 255
    x = F.interpolate(x, extent, mode="bilinear", align_corners=False, antialias=True)
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (encoder.mean, encoder.std))
    return (x[0] - mean) / std


def _crop(
    pixels: Pixels, wanted: Map, draws: NDArray[np.float32], size: int, encoder: Encoder
) -> tuple[Tensor, Tensor]:
    """The same square of an image and its map, which may have another resolution, at `size`.

    draws: (4,) in [0, 1): its side, its place, whether it is flipped
    """
    share, down, right, flip = draws.tolist()
    boxes = []
    for height, width in (pixels.shape[:2], wanted.shape):
        side = max(1, round((_SHARE + (1 - _SHARE) * share) * min(height, width)))
        boxes.append((round(down * (height - side)), round(right * (width - side)), side))
    top, left, side = boxes[0]
    x = normalised(pixels[top : top + side, left : left + side], (size, size), encoder)
    top, left, side = boxes[1]
    # Numbers of classes cannot be mixed, and holes of targets would spread: the nearest.
    near = ((np.arange(size) + 0.5) * side / size).astype(np.int64)
    y = torch.from_numpy(wanted[np.ix_(top + near, left + near)])
    return (x.flip(-1), y.flip(-1)) if flip < 0.5 else (x, y)


def fitted(height: int, width: int, size: int, multiple: int) -> tuple[int, int]:
    """Height and width with the short side at `size`, both multiples of `multiple`."""
    short = min(height, width)
    sides = (min(side / short, _LONG) * size for side in (height, width))
    first, second = (max(1, round(side / multiple)) * multiple for side in sides)
    return first, second


def _spaced(count: int) -> list[int]:
    """Four levels, the last one among them: a CNN's last four, a ViT's evenly spaced blocks."""
    if count <= 5:
        return list(range(max(0, count - 4), count))
    return [count * k // 4 - 1 for k in (1, 2, 3, 4)]


def _pyramid(maps: Sequence[Tensor]) -> Sequence[Tensor]:
    if len(maps) == 1 or len({tuple(m.shape[2:]) for m in maps}) > 1:
        return maps
    # The finest is four times as fine, the last half as fine as they are.
    scales = [2.0 ** (len(maps) - 2 - number) for number in range(len(maps))]
    rows, columns = maps[0].shape[2:]
    return [
        _resized(m, (max(1, int(rows * scale)), max(1, int(columns * scale))))
        for m, scale in zip(maps, scales, strict=True)
    ]


def _resized(x: Tensor, extent: Sequence[int]) -> Tensor:
    if tuple(x.shape[2:]) == tuple(extent):
        return x
    return F.interpolate(x, tuple(extent), mode="bilinear", align_corners=False)


def _unit(wide: int, out: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(wide, out, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(out),
        nn.ReLU(),
    )
