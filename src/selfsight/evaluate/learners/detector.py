"""Faster R-CNN (Ren et al. 2015, https://arxiv.org/abs/1506.01497) over any encoder's maps."""

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.ops import feature_pyramid_network, poolers

from selfsight import optim, philox
from selfsight.data.base import Pixels
from selfsight.data.boxes import Boxes
from selfsight.data.decode import Undecodable
from selfsight.encoders.base import Encoder
from selfsight.errors import ConfigError, DataError, Diverged
from selfsight.evaluate.base import Sight
from selfsight.evaluate.measures.average_precision import Found
from selfsight.philox import Purpose, seed_for

__all__ = ["Backbone", "Design", "Detector", "Schedule", "build", "find", "fit"]

# They carry no types.
_theirs: Any = detection
_pyramids: Any = feature_pyramid_network
_pools: Any = poolers

_RATIOS = (0.5, 1.0, 2.0)
_POOLED = 7  # side of what is cut out of a map for a box
_PADDED = 32

Read = TypeVar("Read")


@dataclass(frozen=True)
class Design:
    """levels: at most so many of a CNN's last maps
    width: channels of the pyramid; the heads have four times as many
    anchor: side of a map's anchors, in cells
    frozen: the encoder stays as it is, statistics of BatchNorm included
    sizes: short sides of the images, one of them drawn each time; tests use the last
    max_size: of the long side
    """

    levels: int
    width: int
    anchor: float
    frozen: bool
    sizes: tuple[int, ...]
    max_size: int


@dataclass(frozen=True)
class Schedule:
    """total: iterations; warmup: of them; flip: probability of a mirrored image"""

    recipe: optim.Recipe
    total: int
    batch: int
    warmup: int
    flip: float
    seed: int


class Backbone(nn.Module):
    """Normalised images to a pyramid of maps.

    Of a CNN's maps: Lin et al. 2017, https://arxiv.org/abs/1612.03144. Where all maps are of one
    size, as a ViT's, the last is enlarged and reduced: Li et al. 2022,
    https://arxiv.org/abs/2203.16527.

    strides: pixels per cell of each map, the coarsest, which serves only proposals, included
    """

    def __init__(self, encoder: Encoder, design: Design, half: bool) -> None:
        super().__init__()
        if encoder.levels == 0:
            raise ConfigError(f"{encoder.name} gives no feature maps; take a timm architecture")
        self.encoder, self.frozen, self._half = encoder, design.frozen, half
        self.out_channels = design.width
        # Boxes are cut out of maps whose cells are powers of two: patches of 14 pixels are
        # shown images that are smaller by 14/16.
        self.cell = 2 ** round(math.log2(encoder.multiple))
        self.unit = max(_PADDED, self.cell)
        self.last = min(2, encoder.levels)
        shapes = self._shapes()
        self.plain = len(shapes) == 2 and shapes[0][1:] == shapes[1][1:]
        self.last = 1 if self.plain else min(design.levels, encoder.levels)
        shapes = self._shapes()
        strides = [2 * self.unit / rows for _, rows, _ in shapes]
        channels = [shape[0] for shape in shapes]
        if self.plain:
            wide = channels[0]
            self.scaled = _scaled(wide)
            channels = [wide // 4, wide // 2, wide, wide]
            strides = [strides[0] * factor for factor in (0.25, 0.5, 1, 2)]
        if any(math.log2(stride) % 1 for stride in strides):
            raise ConfigError(
                f"{encoder.name} has maps with cells of {strides} pixels; detection needs powers "
                "of two"
            )
        self.strides = (*strides, 2 * strides[-1])
        # SSL encoders differ in scale by orders of magnitude, so the pyramid is normalised.
        self.pyramid = _pyramids.FeaturePyramidNetwork(
            channels,
            design.width,
            extra_blocks=_pyramids.LastLevelMaxPool(),
            norm_layer=nn.BatchNorm2d,
        )
        encoder.requires_grad_(not design.frozen)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        if self.cell != self.encoder.multiple:
            sides = [side * self.encoder.multiple // self.cell for side in x.shape[2:]]
            x = F.interpolate(x, sides, mode="bilinear", antialias=True)
        half = torch.autocast(x.device.type, torch.bfloat16, enabled=self._half)
        with half, torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            maps = self.encoder.maps(x, self.last)
        maps = [m.float() for m in maps]
        if self.plain:
            maps = [scale(maps[-1]) for scale in self.scaled]
        named = OrderedDict((str(number), m) for number, m in enumerate(maps))
        out: dict[str, Tensor] = self.pyramid(named)
        return out

    def train(self, mode: bool = True) -> "Backbone":
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
        return self

    @torch.no_grad()
    def _shapes(self) -> list[tuple[int, int, int]]:
        """Channels, rows and columns of the maps of an image of 2 × 3 units, as it is padded."""
        rows, columns = (n * self.unit * self.encoder.multiple // self.cell for n in (2, 3))
        device = next(self.encoder.parameters()).device
        try:
            with self.encoder.resting(device) as encoder:
                maps = encoder.maps(torch.zeros(1, 3, rows, columns, device=device), self.last)
        except ConfigError:
            raise
        # Architectures of fixed input refuse another one each in its own way.
        except Exception as error:
            raise ConfigError(
                f"{self.encoder.name} does not take images of {rows} × {columns} pixels, and "
                f"detection needs any: {str(error).splitlines()[0] if str(error) else error!r}"
            ) from error
        return [(m.shape[1], m.shape[2], m.shape[3]) for m in maps]


@dataclass(frozen=True)
class Detector:
    """model: torchvision's, which learns from lists of images in [0, 1] and of targets"""

    model: Any
    design: Design


def build(encoder: Encoder, classes: int, design: Design, half: bool, seed: int) -> Detector:
    """A detector over `encoder`, which it keeps and trains; the rest is new, by the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_for(seed, 0, Purpose.INIT))
        backbone = Backbone(encoder, design, half)
        strides = backbone.strides
        sizes = tuple((design.anchor * stride,) for stride in strides)
        pool = _pools.MultiScaleRoIAlign([str(i) for i in range(len(strides) - 1)], _POOLED, 2)
        # Otherwise guessed from the first images before they are padded: wrong for small ones.
        pool.scales = [1 / stride for stride in strides[:-1]]
        finest, coarsest = (int(math.log2(stride)) for stride in (strides[0], strides[-2]))
        pool.map_levels = _pools.initLevelMapper(finest, coarsest)
        wide = 4 * design.width
        heads = _theirs.faster_rcnn
        model = _theirs.FasterRCNN(
            backbone,
            min_size=design.sizes,
            max_size=design.max_size,
            image_mean=encoder.mean,
            image_std=encoder.std,
            size_divisible=max(backbone.unit, int(strides[-2])),
            rpn_anchor_generator=heads.AnchorGenerator(sizes, (_RATIOS,) * len(sizes)),
            box_roi_pool=pool,
            box_head=heads.TwoMLPHead(design.width * _POOLED**2, wide),
            box_predictor=heads.FastRCNNPredictor(wide, classes + 1),
        )
    return Detector(model, design)


def fit(detector: Detector, sight: Sight, train: Boxes, schedule: Schedule) -> float:
    """Trains in place; the mean loss of the last tenth. Crowds are no objects to learn."""
    device = torch.device(sight.device)
    model = detector.model.to(device).train()
    params = [p for p in model.parameters() if p.requires_grad]
    optimizer = optim.build([{"params": params}], schedule.recipe)
    rate = schedule.recipe.rate(schedule.batch)
    tell = sight.counting("iterations trained")
    late: list[float] = []
    steps = (range(s * schedule.batch, (s + 1) * schedule.batch) for s in range(schedule.total))
    orders: dict[int, NDArray[np.int64]] = {}

    def read(position: int) -> tuple[Tensor, dict[str, Tensor]]:
        epoch, place = divmod(position, len(train))
        if epoch not in orders:
            orders[epoch] = philox.permutation(schedule.seed, epoch, Purpose.ORDER, len(train))
        flip = philox.uniform(schedule.seed, position, Purpose.VIEW, 1)[0] < schedule.flip
        index = int(orders[epoch][place])
        return _example(train, index, max(detector.design.sizes), bool(flip))

    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        batches = _ahead(read, steps, sight.threads)
        for step, examples in enumerate(batches):
            # Which proposals are learned from is drawn by torch; so is what the encoder drops.
            drawn = seed_for(schedule.seed, step, Purpose.SUBSET)
            torch.default_generator.manual_seed(drawn)
            if device.type == "cuda":
                torch.cuda.manual_seed(drawn)
            optim.set_rates(optimizer, schedule.recipe, rate, step, schedule.total, schedule.warmup)
            images = [_float(image.to(device)) for image, _ in examples]
            targets = [{k: v.to(device) for k, v in target.items()} for _, target in examples]
            loss = torch.stack([*model(images, targets).values()]).sum()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            if not loss.isfinite():
                raise _diverged(step, rate)
            optimizer.step()
            if step >= 0.9 * schedule.total:
                late.append(loss.item())
            tell(step + 1, schedule.total)
    if not all(p.isfinite().all() for p in params):
        raise _diverged(schedule.total, rate)
    return float(np.mean(late)) if late else loss.item()


@torch.no_grad()
def find(detector: Detector, sight: Sight, test: Boxes) -> list[Found]:
    """What the detector says of each image, in the pixels of the image as it is stored."""
    device = torch.device(sight.device)
    model = detector.model.to(device).eval()
    found = []
    tell = sight.counting("images searched")

    def read(index: int) -> Pixels:
        return _pixels(test, index, detector.design.sizes[-1])

    # One at a time: beside larger ones it would be padded, and be seen otherwise.
    for index, (pixels,) in enumerate(_ahead(read, ([i] for i in range(len(test))), sight.threads)):
        (said,) = model([_float(_tensor(pixels).to(device))])
        height, width = test.images.sizes[index].tolist()
        scale = np.array([width / pixels.shape[1], height / pixels.shape[0]] * 2)
        boxes, scores, labels = (said[k].cpu().numpy() for k in ("boxes", "scores", "labels"))
        found.append(Found(boxes * scale, scores, labels.astype(np.int64) - 1))
        tell(index + 1, len(test))
    return found


def _scaled(wide: int) -> nn.ModuleList:
    """A map at four times its resolution, at twice, as it is, and at half."""

    def up(into: int) -> nn.ConvTranspose2d:
        return nn.ConvTranspose2d(2 * into, into, 2, 2)

    four = nn.Sequential(up(wide // 2), nn.BatchNorm2d(wide // 2), nn.GELU(), up(wide // 4))
    return nn.ModuleList([four, up(wide // 2), nn.Identity(), nn.MaxPool2d(2)])


def _example(train: Boxes, index: int, least: int, flip: bool) -> tuple[Tensor, dict[str, Tensor]]:
    pixels = _pixels(train, index, least)
    objects = train.objects[index]
    # Difficult ones are learned from, as in detectron2.
    objects = objects.subset(~objects.crowd)
    height, width = train.images.sizes[index].tolist()
    rows, columns = pixels.shape[:2]
    scale = np.array([columns / width, rows / height] * 2, np.float32)
    boxes = objects.boxes * scale
    image = _tensor(pixels)
    if flip:
        image = image.flip(2)
        boxes = np.stack(
            [columns - boxes[:, 2], boxes[:, 1], columns - boxes[:, 0], boxes[:, 3]], 1
        )
    target = {"boxes": torch.from_numpy(boxes), "labels": torch.from_numpy(objects.labels + 1)}
    return image, target


def _pixels(part: Boxes, index: int, least: int) -> Pixels:
    try:
        return part.images.read(index, least)
    except (Undecodable, OSError) as error:
        raise DataError(
            f"cannot read {part.images.path(index)}: {error}; it was readable before, so restore "
            "it or start again without it"
        ) from error


def _tensor(pixels: Pixels) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels).copy()).permute(2, 0, 1)


def _float(image: Tensor) -> Tensor:
    return image.float() / 255


def _ahead(
    read: Callable[[int], Read], groups: Iterable[Sequence[int]], threads: int
) -> Iterator[list[Read]]:
    """read(item) of all items of a group, the next group read meanwhile."""
    with ThreadPoolExecutor(threads) as pool:
        coming: list[Future[Read]] | None = None
        for group in groups:
            following = [pool.submit(read, item) for item in group]
            if coming is not None:
                yield [future.result() for future in coming]
            coming = following
        if coming is not None:
            yield [future.result() for future in coming]


def _diverged(step: int, rate: float) -> Diverged:
    return Diverged(
        f"the detector's loss is not finite at iteration {step:,}; choose a lower lr (it was "
        f"{rate:g} at its highest)"
    )
