"""The libraries that views.py measures, each in the form that was fastest here.

Each is imported where it is built: a process loads what it measures and nothing else.
"""

import io
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from selfsight.views import IMAGENET_MEAN, IMAGENET_STD
from selfsight.views.spec import View

__all__ = ["BATCHED", "PER_IMAGE", "Peer", "grids", "one_by_one", "products"]

Content = bytes | np.ndarray  # a JPEG, or pixels (H, W, 3)


class Peer(NamedTuple):
    """opened: from content to what the library takes; views: of one image; joined: a batch."""

    opened: Callable[[Content], Any]
    views: Callable[[Any], Sequence[Any]]
    joined: Callable[[list[Any]], Tensor] = torch.stack


def one_by_one(peer: Peer, images: Sequence[Content], batch: int) -> None:
    """All views of the images, in batches."""
    for start in range(0, len(images), batch):
        made = [peer.views(peer.opened(image)) for image in images[start : start + batch]]
        for crop in zip(*made, strict=True):
            peer.joined(list(crop))


def pil(content: Content) -> Image.Image:
    if isinstance(content, bytes):
        return Image.open(io.BytesIO(content)).convert("RGB")
    return Image.fromarray(content)


def each(transforms: Sequence[Callable[[Any], Any]]) -> Callable[[Any], list[Any]]:
    return lambda image: [transform(image) for transform in transforms]


def lightly(views: Sequence[View]) -> Peer:
    """Its published transforms; their other defaults are our views'."""
    from lightly.transforms import SimCLRTransform, SwaVTransform

    first, *others = views
    if len(others) > 1:
        return Peer(pil, SwaVTransform())
    return Peer(pil, SimCLRTransform(input_size=first.size, gaussian_blur=first.blur))


def torchvision_v1(views: Sequence[View]) -> Peer:
    from torchvision import transforms as T

    def made(view: View) -> Callable[[Any], Tensor]:
        blur = T.GaussianBlur(view.blur_kernel, view.blur_sigma)
        return T.Compose([
            T.RandomResizedCrop(view.size, view.crop, view.ratio),
            T.RandomHorizontalFlip(view.flip),
            T.RandomApply([T.ColorJitter(*view.jitter)], view.jitter_p),
            T.RandomGrayscale(view.gray),
            *[T.RandomApply([blur], view.blur)] * (view.blur > 0),
            T.ToTensor(),
            T.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ])  # fmt: skip

    return Peer(pil, each([made(view) for view in views]))


def _v2(view: View) -> Callable[[Any], Tensor]:
    from torchvision.transforms import v2

    blur = v2.GaussianBlur(view.blur_kernel, view.blur_sigma)
    return v2.Compose([
        v2.RandomResizedCrop(view.size, view.crop, view.ratio),
        v2.RandomHorizontalFlip(view.flip),
        v2.RandomApply([v2.ColorJitter(*view.jitter)], view.jitter_p),
        v2.RandomGrayscale(view.gray),
        *[v2.RandomApply([blur], view.blur)] * (view.blur > 0),
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(IMAGENET_MEAN, IMAGENET_STD),
    ])  # fmt: skip


def torchvision_v2_pil(views: Sequence[View]) -> Peer:
    return Peer(pil, each([_v2(view) for view in views]))


def torchvision_v2(views: Sequence[View]) -> Peer:
    """On tensors of bytes, as its documentation advises, from its own decoder."""
    from torchvision.io import decode_jpeg

    def opened(content: Content) -> Tensor:
        if isinstance(content, bytes):
            return decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8))
        return torch.from_numpy(content).permute(2, 0, 1)

    return Peer(opened, each([_v2(view) for view in views]))


def albumentations(views: Sequence[View]) -> Peer:
    """Tried: ToTensorV2 or one stack (faster); OpenCV's threads off or not (level); the blur's
    kernel of 23 or as wide as sigma asks (faster, taken); normalising each image or the batch
    (faster at 32 px); simplejpeg, faster than OpenCV's decoder."""
    import albumentations as A
    import cv2
    import simplejpeg

    cv2.setNumThreads(1)
    late = all(view.size <= 32 for view in views)

    def made(view: View) -> Callable[[Any], np.ndarray]:
        transform = A.Compose([
            A.RandomResizedCrop((view.size, view.size), scale=view.crop, ratio=view.ratio),
            A.HorizontalFlip(p=view.flip),
            A.ColorJitter(*view.jitter, p=view.jitter_p),
            A.ToGray(p=view.gray),
            *[A.GaussianBlur(0, view.blur_sigma, p=view.blur)] * (view.blur > 0),
            *[A.Normalize(IMAGENET_MEAN, IMAGENET_STD)] * (not late),
        ])  # fmt: skip
        return lambda image: transform(image=image)["image"]

    def opened(content: Content) -> np.ndarray:
        return simplejpeg.decode_jpeg(content) if isinstance(content, bytes) else content

    scale = 1 / (255 * torch.tensor(IMAGENET_STD))
    shift = 255 * torch.tensor(IMAGENET_MEAN)

    def joined(crops: list[np.ndarray]) -> Tensor:
        batch = torch.from_numpy(np.stack(crops))
        if late:
            batch = batch.float().sub_(shift).mul_(scale)
        return batch.permute(0, 3, 1, 2)

    return Peer(opened, each([made(view) for view in views]), joined)


PER_IMAGE = {
    "lightly": lightly,
    "torchvision v1, PIL": torchvision_v1,
    "torchvision v2, PIL": torchvision_v2_pil,
    "torchvision v2, tensors": torchvision_v2,
    "albumentations": albumentations,
}

Batched = Callable[[Tensor], Any]  # uint8 (N, 3, H, W) → two views of each


def kornia(view: View) -> Batched:
    """Tried: cropping by slices (level), ColorJiggle (level), ImageSequential (level), one view
    after the other (slower), batches of 32 to 1,024 (256 is as good as any)."""
    import kornia.augmentation as K

    pipeline = torch.nn.Sequential(
        K.RandomResizedCrop((view.size,) * 2, view.crop, view.ratio, cropping_mode="resample"),
        K.RandomHorizontalFlip(p=view.flip),
        K.ColorJitter(*view.jitter, p=view.jitter_p),
        K.RandomGrayscale(p=view.gray),
        K.Normalize(torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)),
    )

    def made(images: Tensor) -> Any:
        return pipeline(images.float().div_(255).repeat(2, 1, 1, 1)).chunk(2)

    return made


def kornia_compiled(view: View) -> Batched:
    return torch.compile(kornia(view))


def boxes(view: View, count: int, side: int) -> tuple[Tensor, ...]:
    """x, y, width and height of crops: the first of ten tries that fits."""
    area = torch.empty(count, 10).uniform_(*view.crop) * side**2
    low, high = view.ratio
    ratio = torch.empty(count, 10).uniform_(math.log(low), math.log(high)).exp()
    w, h = (area * ratio).sqrt(), (area / ratio).sqrt()
    chosen = ((w <= side) & (h <= side)).float().argmax(1, keepdim=True)
    w, h = (x.gather(1, chosen).squeeze(1).clamp(max=side) for x in (w, h))
    return torch.rand(count) * (side - w), torch.rand(count) * (side - h), w, h


def grids(images: Tensor, box: tuple[Tensor, ...], flip: Tensor, size: int) -> Tensor:
    """Crops by grid_sample."""
    x, y, w, h = box
    count, _, _, side = images.shape
    none = torch.zeros_like(x)
    turned = torch.where(flip, -1.0, 1.0) * w / side
    across = torch.stack([turned, none, (2 * x + w) / side - 1], 1)
    down = torch.stack([none, h / side, (2 * y + h) / side - 1], 1)
    grid = F.affine_grid(torch.stack([across, down], 1), [count, 3, size, size], False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def products(images: Tensor, box: tuple[Tensor, ...], flip: Tensor, size: int) -> Tensor:
    """The same crops by two products with interpolation matrices: three times as fast."""
    x, y, w, h = box
    count, _, _, side = images.shape
    middles, pixels = torch.arange(size) + 0.5, torch.arange(side) + 0.5

    def weights(start: Tensor, extent: Tensor, turned: Tensor | None) -> Tensor:
        at = start[:, None] + middles * extent[:, None] / size
        if turned is not None:
            at = torch.where(turned[:, None], (2 * start + extent)[:, None] - at, at)
        at = at.clamp(0.5, side - 0.5)
        return (1 - (at[..., None] - pixels).abs()).clamp(min=0)

    rows = images.permute(0, 2, 1, 3).reshape(count, side, 3 * side)
    rows = (weights(y, h, None) @ rows).reshape(count, size, 3, side)
    lines = rows.permute(0, 2, 1, 3).reshape(count, 3 * size, side)
    return (lines @ weights(x, w, flip).mT).reshape(count, 3, size, size)


def grey(x: Tensor) -> Tensor:
    return (x * torch.tensor((0.299, 0.587, 0.114))[:, None, None]).sum(1, keepdim=True)


def jitter(x: Tensor, view: View) -> Tensor:
    """Always in one order, which is less than the others do."""
    count = len(x)
    chosen = torch.rand(count) < view.jitter_p

    def drawn(low: float, high: float, none: float) -> Tensor:
        factor = torch.where(chosen, torch.empty(count).uniform_(low, high), none)
        return factor[:, None, None, None]

    brightness, contrast, saturation = (drawn(1 - s, 1 + s, 1.0) for s in view.jitter[:3])
    x = (x * brightness).clamp(0, 1)
    x = torch.lerp(grey(x).mean((2, 3), keepdim=True), x, contrast).clamp(0, 1)
    x = torch.lerp(grey(x), x, saturation).clamp(0, 1)
    r, g, b = x.split(1, 1)
    value, low = x.amax(1, keepdim=True), x.amin(1, keepdim=True)
    chroma = value - low
    by = torch.where(chroma == 0, 1.0, chroma)
    blue = torch.where(value == g, 2 + (b - r) / by, 4 + (r - g) / by)
    turn = 6 * drawn(-view.jitter[3], view.jitter[3], 0.0)
    hue = torch.where(value == r, (g - b) / by, blue) + turn
    k = (hue + torch.tensor((5.0, 3.0, 1.0))[:, None, None]).remainder(6)
    return value - chroma * torch.minimum(k, 4 - k).clamp(0, 1)


def plain(view: View, crop: Callable[..., Tensor]) -> Batched:
    """What can be written in torch alone. Tried: both views as one batch, batches of 64 to
    1,024, eager (slower throughout)."""
    mean = torch.tensor(IMAGENET_MEAN)[:, None, None]
    std = torch.tensor(IMAGENET_STD)[:, None, None]

    def once(x: Tensor) -> Tensor:
        count, _, _, side = x.shape
        x = crop(x, boxes(view, count, side), torch.rand(count) < view.flip, view.size)
        x = jitter(x, view)
        gray = (torch.rand(count) < view.gray)[:, None, None, None]
        return (torch.where(gray, grey(x), x) - mean) / std

    def made(images: Tensor) -> Any:
        x = images.float() / 255
        return once(x), once(x)

    return torch.compile(made, dynamic=False)


BATCHED = {
    "kornia": kornia,
    "kornia, compiled": kornia_compiled,
    "torch, compiled, grid_sample": lambda view: plain(view, grids),
    "torch, compiled, matrix products": lambda view: plain(view, products),
}
