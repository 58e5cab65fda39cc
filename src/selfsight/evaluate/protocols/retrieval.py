"""Images of the same class, found by similarity."""

from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from selfsight.errors import DataError
from selfsight.evaluate.base import OnFeatures
from selfsight.evaluate.learners.rows import labelled
from selfsight.evaluate.report import Score
from selfsight.features import Features
from selfsight.machine import device_named

__all__ = ["Retrieval", "retrieve"]

# Similarities sorted at a time; what sorting them takes is 50 bytes each.
_BLOCK = 1 << 22
_TOP = (1, 5, 10)


class Retrieval(OnFeatures):
    """Each test image asks for images of its class; the gallery answers by falling cosine.

    mAP is the mean over queries of average precision, and R@k the share of queries with an
    image of their class among the first k. Queries of a class that the gallery lacks are left
    out and counted in the details.

    gallery: `train`, the training images; `test`, all other test images
    """

    name: ClassVar[str] = "retrieval"

    def __init__(self, gallery: Literal["train", "test"] = "train") -> None:
        self.gallery = gallery

    def measure(self, train: Features, test: Features) -> list[Score]:
        device = device_named("auto")
        own = self.gallery == "test"
        x, y = labelled(torch.from_numpy(test.embedding).to(device), test.label)
        if own:
            precision, first = retrieve(x, y, x, y, own=True)
        else:
            among = labelled(torch.from_numpy(train.embedding).to(device), train.label)
            precision, first = retrieve(x, y, *among)
        asked = first > 0
        precision, first = precision[asked], first[asked]
        if len(first) == 0:
            raise DataError("no test image has its class in the gallery; label more images")
        found = {
            "gallery_images": len(test) - 1 if own else len(train),
            "left_out": int((~asked).sum()),
        }
        title = f"retrieval (from {self.gallery})"
        return [
            Score.mean(title, self.name, precision, "mAP", found),
            *(Score.mean(title, self.name, first <= k, f"R@{k}") for k in _TOP),
        ]


@torch.no_grad()
def retrieve(
    query: Tensor,
    query_label: Tensor,
    gallery: Tensor,
    gallery_label: Tensor,
    *,
    own: bool = False,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Of each query its average precision, (Q,), nan where the gallery lacks its class; and
    the place of the first image of its class, (Q,), from 1, or 0.

    Equal similarities share a place in the precision, as in scikit-learn; the first image of
    the class comes after all others that are as similar.

    query: (Q, D); gallery: (N, D); labels: (Q,) and (N,)
    own: the gallery is the queries themselves, and none finds itself
    """
    if query.shape[1] != gallery.shape[1]:
        raise DataError(
            f"queries have {query.shape[1]} channels and the gallery {gallery.shape[1]}; embed "
            "both with the same encoder"
        )
    x, among = F.normalize(query, dim=1), F.normalize(gallery, dim=1)
    n = len(among)
    place = torch.arange(n, device=x.device)
    precision = x.new_empty(len(x), dtype=torch.float64)
    first = torch.empty_like(precision, dtype=torch.int64)
    step = max(1, _BLOCK // n)
    for start in range(0, len(x), step):
        rows = slice(start, start + step)
        similarity = x[rows] @ among.T
        itself = torch.arange(start, start + len(similarity), device=x.device)[:, None]
        if own:
            similarity.scatter_(1, itself, -torch.inf)
        value, index = similarity.sort(dim=1, descending=True)
        relevant = gallery_label[index] == query_label[rows, None]
        if own:
            relevant &= index != itself
        found = relevant.cumsum(dim=1)
        # Where those that are as similar end.
        end = place.expand_as(index).clone()
        end[:, :-1][value[:, :-1] == value[:, 1:]] = n
        end = end.flip(1).cummin(dim=1).values.flip(1)
        share = found.gather(1, end).double() / (end + 1)
        precision[rows] = (share * relevant).sum(dim=1) / found[:, -1]
        last = end.gather(1, relevant.int().argmax(dim=1, keepdim=True))
        before = last + 1 - found.gather(1, last)
        first[rows] = torch.where(found[:, -1] > 0, before[:, 0] + 1, 0)
    return precision.cpu().numpy(), first.cpu().numpy()
