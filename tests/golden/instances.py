"""PCL's loss: the method's own forward, on the queries, keys and clusterings of a record."""

from collections.abc import Mapping
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

__all__ = ["RELATIONS", "pcl"]

KINDS = ("im2cluster", "centroids", "density", "negative_prototypes")


def pcl(
    q: Tensor, k: Tensor, queue: Tensor, index: Tensor, *, temperature: float, r: int,
    **clusterings: Tensor,
) -> Mapping[str, Any]:  # fmt: skip
    """clusterings: what KINDS name, numbered from 0; queue: (D, K)."""
    count = len(clusterings) // len(KINDS)
    expected = {f"{kind}{g}" for kind in KINDS for g in range(count)}
    assert set(clusterings) == expected, f"the clusterings are {', '.join(clusterings)}"
    named = {kind: [clusterings[f"{kind}{g}"] for g in range(count)] for kind in KINDS}
    sizes = [len(centroids) for centroids in named["centroids"]]
    method = PCL(
        Given(q.shape[1]), samples=max(len(named["im2cluster"][0]), 2 ** len(sizes)),
        queue=queue.shape[1], clusters=2, granularities=count, negatives=r, warmup_epochs=0,
        temperature=temperature, head="none", norm_groups=1,
    ).double()  # fmt: skip
    method.teacher = Teacher(nn.Identity())
    method.queue.push(queue.T)
    method.clusters.sizes = tuple(sizes)
    method.clusters.prototypes = torch.cat(named["centroids"])
    method.clusters.phi = torch.cat(named["density"])
    starts = np.cumsum([0, *sizes[:-1]]).tolist()
    pairs = zip(named["im2cluster"], starts, strict=True)
    method.clusters.assignment = torch.stack([own + start for own, start in pairs])

    def drawn(seed: int, draw: int, purpose: Purpose, n: int) -> np.ndarray:
        """The record's negatives, each clustering's in turn; images stay where they are."""
        if purpose is Purpose.NEGATIVES:
            return named["negative_prototypes"][draw].numpy()
        return np.arange(n)

    with mock.patch.object(philox, "permutation", drawn):
        output = forward(method, q, k, index=index)
    return {
        "loss": output.loss,
        "loss_infonce": output.metrics["info_nce"],
        "loss_proto": output.metrics["proto_nce"],
    }


RELATIONS = {"pcl_protonce": {"salesforce/PCL@964da1f": Relation(ours=pcl)}}
