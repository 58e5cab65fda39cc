"""PCL's loss: the method's own forward, on the queries, keys and clusterings of a record."""

from collections.abc import Mapping, Sequence
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

from golden.given import Given, forward
from golden.relations import Relation
from selfsight import philox
from selfsight.methods.pcl import PCL
from selfsight.momentum import Teacher
from selfsight.philox import Purpose

__all__ = ["RELATIONS", "pcl", "pcl_apart"]

KINDS = ("im2cluster", "centroids", "density", "negative_prototypes")


def pcl(
    q: Tensor, k: Tensor, queue: Tensor, index: Tensor, *, temperature: float, r: int,
    **clusterings: Tensor,
) -> Mapping[str, Any]:  # fmt: skip
    """clusterings: what KINDS name, numbered from 0; queue: (D, K)."""
    assigned, centroids, density, negatives = _named(clusterings)
    method = _method(q, queue, centroids, density, assigned, temperature, r)

    integers = philox.integers

    def drawn(seed: int, draw: Any, purpose: Purpose, count: int) -> Any:
        """Lots by which the record's negatives come first, each clustering's in turn."""
        if purpose is not Purpose.NEGATIVES:
            return integers(seed, draw, purpose, count)
        lots = np.full(count, 2**31)
        lots[negatives[draw].numpy()] = 0
        return lots

    with mock.patch.object(philox, "integers", drawn):
        return _losses(method, q, k, index)


def pcl_apart(
    q: Tensor, k: Tensor, queue: Tensor, index: Tensor, *, temperature: float, r: int,
    **clusterings: Tensor,
) -> Mapping[str, Any]:  # fmt: skip
    """The same where every image of the batch has a copy of its prototype for its own."""
    assigned, centroids, density, negatives = _named(clusterings)
    assert all(len(others) <= r for others in negatives)
    chosen = [
        torch.cat([own[index], others]) for own, others in zip(assigned, negatives, strict=True)
    ]
    place = torch.arange(len(index))
    method = _method(
        q, queue, [c[at] for c, at in zip(centroids, chosen, strict=True)],
        [phi[at] for phi, at in zip(density, chosen, strict=True)],
        [place for _ in chosen], temperature, r,
    )  # fmt: skip
    return _losses(method, q, k, place)


def _named(clusterings: Mapping[str, Tensor]) -> list[list[Tensor]]:
    """The clusterings' tensors of each of KINDS."""
    count = len(clusterings) // len(KINDS)
    expected = {f"{kind}{g}" for kind in KINDS for g in range(count)}
    assert set(clusterings) == expected, f"the clusterings are {', '.join(clusterings)}"
    return [[clusterings[f"{kind}{g}"] for g in range(count)] for kind in KINDS]


def _method(
    q: Tensor, queue: Tensor, centroids: Sequence[Tensor], density: Sequence[Tensor],
    assigned: Sequence[Tensor], temperature: float, r: int,
) -> PCL:  # fmt: skip
    sizes = [len(c) for c in centroids]
    method = PCL(
        Given(q.shape[1]), samples=max(len(assigned[0]), 2 ** len(sizes)),
        queue=queue.shape[1], clusters=2, granularities=len(sizes), negatives=r, warmup_share=0.0,
        temperature=temperature, head="none", norm_groups=1,
    ).double()  # fmt: skip
    method.teacher = Teacher(nn.Identity())
    method.queue.push(queue.T)
    method.clusters.sizes = tuple(sizes)
    method.clusters.prototypes = torch.cat(list(centroids))
    method.clusters.phi = torch.cat(list(density))
    starts = np.cumsum([0, *sizes[:-1]]).tolist()
    pairs = zip(assigned, starts, strict=True)
    method.clusters.assignment = torch.stack([own + start for own, start in pairs])
    return method


def _losses(method: PCL, q: Tensor, k: Tensor, index: Tensor) -> Mapping[str, Any]:
    output = forward(method, q, k, index=index)
    return {
        "loss": output.loss,
        "loss_infonce": output.metrics["info_nce"],
        "loss_proto": output.metrics["proto_nce"],
    }


def _shared(facts: Mapping[str, Any]) -> bool:
    """Whether two images of the batch are of one cluster, in any clustering."""
    index = facts["index"]
    batches = [facts[name][index] for name in facts if name.startswith("im2cluster")]
    return any(len(np.unique(own)) < len(own) for own in batches)


RELATIONS = {
    "pcl_protonce": {
        "salesforce/PCL@964da1f": Relation(
            ours=pcl, note="a prototype that two images of the batch share is both's negative too",
            theirs=pcl_apart, when=_shared,
        )
    }
}  # fmt: skip
