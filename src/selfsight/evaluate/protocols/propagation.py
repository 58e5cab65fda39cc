"""Video label propagation: the first frame's objects are followed by likeness of features alone."""

from collections import deque
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from selfsight.data.clips import VOID, open_clips
from selfsight.data.masks import Map, Paired
from selfsight.data.sources import Data
from selfsight.encoders.base import Encoder
from selfsight.errors import ConfigError, DataError
from selfsight.evaluate.base import OnImages, Sight
from selfsight.evaluate.learners.maps import fitted, likeliest, normalised
from selfsight.evaluate.measures.regions import boundary_f, region_j
from selfsight.evaluate.report import Score
from selfsight.ranges import Count, Positive, Whole

__all__ = ["Propagation", "by_clip", "propagated"]

_TOGETHER = 8  # frames that are encoded at a time
_STRIDE = 8  # a CNN's deepest map that is at least so fine
_OBJECTS = 64


class Propagation(OnImages):
    """DAVIS's J (region IoU), F (boundary) and their mean, over objects; nothing is trained.

    Each place of a frame takes the labels of the k most alike places, weighted by e^{s/T}, s
    the cosine, in the first frame and the last `context` ones, no further away than `radius`
    places. As DINO's evaluation (Caron et al. 2021, https://arxiv.org/abs/2104.14294), after Jabri
    et al. 2020. As DAVIS has it, first and last frame are not counted.

    level: number of the feature map; None takes a ViT's last tokens, of a CNN the deepest map
        with a stride of 8 or less
    """

    name: ClassVar[str] = "propagation"

    def __init__(
        self,
        context: Whole = 7,
        k: Count = 5,
        radius: Count = 12,
        temperature: Positive = 0.1,
        level: Whole | None = None,
    ) -> None:
        self.context, self.k, self.radius = context, k, radius
        self.temperature, self.level = temperature, level

    def open(
        self, data: Data, *, duplicates: Literal["refuse", "drop"] = "refuse", **options: Any
    ) -> tuple[list[Paired], list[Paired]]:
        # Nothing is trained, so no image is in both parts.
        return [], open_clips(data, **options)

    def measure(self, sight: Sight, train: Any, test: list[Paired]) -> list[Score]:
        encoder = sight.encoder.copied().to(sight.device).eval()
        level = self.level
        if level is None and not encoder.maskable:
            level = _fine_level(encoder, sight)
        found: list[NDArray[np.float64]] = []
        tell = sight.counting("clips followed")
        for number, clip in enumerate(test):
            found.append(self._follow(encoder, level, sight, clip))
            tell(number + 1, len(test))
        each, per_clip = by_clip(found), [objects.mean(axis=0) for objects in found]
        details = {
            "level": level,
            "size": sight.size,
            "objects": sum(map(len, found)),
            "per_clip": {
                clip.name: {"J": float(j), "F": float(f)}
                for clip, (j, f) in zip(test, per_clip, strict=True)
            },
            "clip_mean": float(np.mean(per_clip)),
        }
        name = f"propagation (k={self.k}, T={self.temperature:g})"
        numbers = (("J&F", each.mean(axis=1)), ("J", each[:, 0]), ("F", each[:, 1]))
        return [
            Score.mean(name, self.name, values, metric, details if metric == "J&F" else {})
            for metric, values in numbers
        ]

    @torch.no_grad()
    def _follow(
        self, encoder: Encoder, level: int | None, sight: Sight, clip: Paired
    ) -> NDArray[np.float64]:
        """(objects, 2): J and F of each, means over the counted frames."""
        single, objects = _objects(clip)
        context: deque[tuple[Tensor, Tensor]] = deque(maxlen=self.context)
        rows: list[list[tuple[float, float]]] = []
        first: tuple[Tensor, Tensor] | None = None
        for index, (features, truth) in enumerate(_features(encoder, level, sight, clip)):
            if first is None:
                first = features, _sampled(truth, objects, features)
                continue
            keys, labels = (torch.stack(part) for part in zip(first, *context, strict=True))
            answer = propagated(features, keys, labels, self.k, self.radius, self.temperature)
            context.append((features, answer))
            if index < len(clip) - 1:
                named = likeliest(_stretched(answer), truth.shape)
                known = np.ones(truth.shape, bool) if single else truth != VOID
                rows.append(
                    [
                        (
                            region_j((truth == value) & known, (named == number) & known),
                            boundary_f((truth == value) & known, (named == number) & known),
                        )
                        for number, value in enumerate(objects.tolist(), 1)
                    ]
                )
        mean: NDArray[np.float64] = np.array(rows).mean(axis=0)
        return mean


def by_clip(found: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    """(clips, 2) numbers whose mean is that over all objects, as DAVIS counts.

    found: of each clip (objects, 2)

    Objects of one clip do well or badly together, so what is independent are the clips. A mean
    over objects is a ratio of two sums over clips, and these numbers are its linear part
    (Cochran 1977, Sampling Techniques, chapter 6): Student's interval of theirs is the ratio's.
    Resampled clips would give nearly the same one, but too narrow where clips are few.
    """
    sums = np.array([objects.sum(axis=0) for objects in found])
    counts = np.array([[len(objects)] for objects in found])
    mean = sums.sum(axis=0) / counts.sum()
    each: NDArray[np.float64] = mean + (sums - mean * counts) / counts.mean()
    return each


def _features(
    encoder: Encoder, level: int | None, sight: Sight, clip: Paired
) -> Iterator[tuple[Tensor, Map]]:
    """(C, rows, columns) of length 1 over C, and the mask, for each frame."""
    half = torch.autocast(
        torch.device(sight.device).type, torch.bfloat16, enabled=sight.precision == "bf16"
    )
    height, width = clip.images.sizes[0].tolist()
    extent = fitted(height, width, sight.size, encoder.multiple)
    rows, columns = encoder.grid(torch.empty(1, 3, *extent, device="meta"))
    for start in range(0, len(clip), _TOGETHER):
        frames = range(start, min(start + _TOGETHER, len(clip)))
        read = [clip.read(index, sight.size) for index in frames]
        x = torch.stack([normalised(image, extent, encoder) for image, _ in read])
        with half:
            if level is None:
                patches = encoder.tokens(x.to(sight.device))[1]
                found = patches.mT.reshape(len(x), patches.shape[2], rows, columns)
            else:
                (found,) = encoder.maps(x.to(sight.device), [level])
        masks = [mask for _, mask in read]
        yield from zip(F.normalize(found.float(), dim=1), masks, strict=True)


def _objects(clip: Paired) -> tuple[bool, NDArray[Any]]:
    """Whether the masks are of 0 and 255, for one object, and the values of the objects. In
    other masks 255 is of no known object."""
    values = np.unique(clip.read(0)[1])
    single = set(values.tolist()) == {0, VOID}
    objects = np.setdiff1d(values, [0] if single else [0, VOID])
    if not 0 < len(objects) <= _OBJECTS:
        raise DataError(
            f"the first mask of {clip.name} has {len(objects)} objects; propagation follows from "
            f"one to {_OBJECTS}"
        )
    return single, objects


def propagated(
    query: Tensor, keys: Tensor, labels: Tensor, k: int, radius: int, temperature: float
) -> Tensor:
    """(L, R, W) labels of the places of a frame.

    query: (C, R, W); keys: (M, C, R, W) of M other frames; labels: (M, L, R, W) of those
    """
    rows, columns = query.shape[1:]
    column = torch.arange(columns, device=query.device)
    far = (column[:, None] - column).abs() > radius
    answer = labels.new_empty(labels.shape[1:])
    # Row by row: what a row can be like lies in a band, which bounds the memory.
    for row in range(rows):
        band = slice(max(0, row - radius), row + radius + 1)
        alike = torch.einsum("cq,mcrw->qmrw", query[:, row], keys[:, :, band]) / temperature
        alike = alike.masked_fill_(far[:, None, None], -torch.inf).flatten(1)
        best, place = alike.topk(min(k, alike.shape[1]), dim=1)
        given = labels[:, :, band].transpose(0, 1).flatten(1)[:, place]
        answer[:, row] = (given * best.softmax(dim=1)).sum(dim=2)
    return answer


def _fine_level(encoder: Encoder, sight: Sight) -> int:
    """The deepest map of a stride that is small enough, else the finest."""
    if encoder.levels == 0:
        raise ConfigError(f"{encoder.name} gives no feature maps; take a timm architecture")
    with torch.no_grad():
        x = torch.zeros(1, 3, sight.size, sight.size, device=sight.device)
        rows = [m.shape[2] for m in encoder.maps(x, encoder.levels)]
    fine = [level for level, count in enumerate(rows) if count * _STRIDE >= sight.size]
    return fine[-1] if fine else 0


def _sampled(truth: NDArray[Any], objects: NDArray[Any], features: Tensor) -> Tensor:
    """(1 + objects, rows, columns): what lies at the middle of each place, background first."""
    rows, columns = features.shape[1:]
    down = ((np.arange(rows) + 0.5) * truth.shape[0] / rows).astype(np.int64)
    right = ((np.arange(columns) + 0.5) * truth.shape[1] / columns).astype(np.int64)
    coarse = truth[np.ix_(down, right)]
    is_object = coarse == objects[:, None, None]
    labels = np.concatenate([~is_object.any(axis=0, keepdims=True), is_object])
    return torch.from_numpy(labels.astype(np.float32)).to(features.device)


def _stretched(answer: Tensor) -> Tensor:
    """Each label's map from 0 to 1, as DINO's evaluation has it: what has become faint everywhere
    can still win."""
    low = answer.amin(dim=(1, 2), keepdim=True)
    high = answer.amax(dim=(1, 2), keepdim=True)
    return (answer - low) / (high - low).clamp_min(1e-12)
