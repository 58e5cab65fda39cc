"""Assignments to prototypes, and masked patches."""

import copy
from collections.abc import Mapping
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from golden.given import START, Given, forward
from selfsight import philox
from selfsight.heads import cosines, sincos_positions
from selfsight.kmeans import spherical_kmeans
from selfsight.losses import patch_mse
from selfsight.losses import sinkhorn as balanced
from selfsight.masking import ORDERS
from selfsight.methods.deepcluster_v2 import DeepClusterV2
from selfsight.methods.mae import MAE
from selfsight.methods.swav import SwAV

Outputs = Mapping[str, Any]


def sinkhorn(scores: Tensor, *, epsilon: float, iterations: int) -> Outputs:
    return {"Q": balanced(scores, epsilon, iterations)}


def _swav(method: SwAV, z: Tensor, queue: Tensor | None) -> tuple[Tensor, Tensor]:
    """The loss of one step, and the queue after it. queue: (2, rows, D), one per large crop."""
    method.projector = nn.Identity()
    if queue is not None:
        method.queue.push(queue.transpose(0, 1))
    output = forward(method, *z)
    # The step writes to the prototypes, which the loss is still to be derived by.
    later = copy.deepcopy(method)
    later.after_step(output.carry, START)
    return output.loss, later.queue.rows.transpose(0, 1)


def swav(
    z: Tensor, prototypes: Tensor, queue: Tensor | None = None, *, temperature: float,
    epsilon: float, sinkhorn_iterations: int, nmb_crops: list[int], crops_for_assign: list[int],
) -> Outputs:  # fmt: skip
    """The queue holds embeddings as they come; the source's are normalised by its model."""
    assert sum(nmb_crops) == len(z), "nmb_crops is not the arrays'"
    method = SwAV(
        Given(z.shape[2]), prototypes=len(prototypes), hidden=1, dim=z.shape[2],
        temperature=temperature, epsilon=epsilon, iterations=sinkhorn_iterations,
        queue=0 if queue is None else queue.shape[1], queue_from=0,
    ).double()  # fmt: skip
    with torch.no_grad():
        method.prototypes.weight.copy_(prototypes)
    method.prototypes.normalize()
    loss, after = _swav(method, z, queue)
    weight = torch.autograd.grad(loss, method.prototypes.weight, retain_graph=True)[0]
    return {"loss": loss, "grad_prototypes": weight, "queue_after": F.normalize(after, dim=2)}


class _Scores(nn.Module):
    """Prototypes whose scores are given."""

    def forward(self, x: Tensor) -> Tensor:
        return x

    def normalize(self) -> None:
        pass


def swav_scores(
    scores: Tensor, prototypes: Tensor | None = None, queue: Tensor | None = None, *,
    temperature: float, epsilon: float, sinkhorn_iterations: int, nmb_crops: list[int],
    crops_for_assign: list[int],
) -> Outputs:  # fmt: skip
    assert sum(nmb_crops) == len(scores), "nmb_crops is not the arrays'"
    older = None
    if queue is not None and prototypes is not None:
        unit = F.normalize(prototypes, dim=1)
        older = torch.stack([cosines(rows, unit) for rows in queue])
    method = SwAV(
        Given(scores.shape[2]), prototypes=1, hidden=1, dim=scores.shape[2],
        temperature=temperature, epsilon=epsilon, iterations=sinkhorn_iterations,
        queue=0 if older is None else older.shape[1], queue_from=0,
    ).double()  # fmt: skip
    method.prototypes = _Scores()
    return {"loss": _swav(method, scores, older)[0]}


def _classified(scores: Tensor, index: Tensor, assignment: Tensor, temperature: float) -> Tensor:
    """The loss of one clustering. scores: (views, N, K).

    The scores enter as the cosines of unit vectors with the rows of a scaled identity.
    """
    views, _, k = scores.shape
    reach = 2 * float(scores.detach().norm(dim=2).max())
    z = scores / reach
    z = torch.cat([z, (1 - z.square().sum(2, keepdim=True)).sqrt()], 2)
    method = DeepClusterV2(
        Given(k + 1), samples=max(len(assignment), k), clusters=k, heads=1, hidden=1, dim=k + 1,
        temperature=temperature, multi_crop=views - 2,
    ).double()  # fmt: skip
    method.projector = nn.Identity()
    method.centroids.copy_(reach * torch.eye(k, k + 1, dtype=torch.float64))
    method.assignments[0, : len(assignment)] = assignment
    return forward(method, *z, index=index).loss


def deepcluster(
    ids: Tensor, assignments: Tensor, scores0: Tensor, scores1: Tensor, *, temperature: float,
    ignore_index: int,
) -> Outputs:  # fmt: skip
    """A head at a time, since they differ in width here; their mean is the loss."""
    assert ignore_index == -100, f"we ignore -100, the record {ignore_index}"
    losses = [
        _classified(scores.unflatten(0, (-1, len(ids))), ids, assignment, temperature)
        for scores, assignment in zip((scores0, scores1), assignments, strict=True)
    ]
    return {"loss": torch.stack(losses).mean()}


def deepcluster_marked(
    outputs: Tensor, assignments: Tensor, *, temperature: float, ignore_index: int
) -> Outputs:
    """outputs: (heads, views, N, K); what is ignored is marked by another number."""
    marked = assignments.masked_fill(assignments == ignore_index, -100)
    ids = torch.arange(assignments.shape[1])
    losses = [
        _classified(scores, ids, assignment, temperature)
        for scores, assignment in zip(outputs, marked, strict=True)
    ]
    return {"loss": torch.stack(losses).mean()}


def deepcluster_unmarked(
    outputs: Tensor, assignments: Tensor, *, temperature: float, ignore_index: int
) -> Outputs:
    """Nothing is ignored: what the source marks counts as the first cluster."""
    return deepcluster_marked(
        outputs, assignments.clamp_min(0), temperature=temperature, ignore_index=ignore_index
    )


def kmeans(
    memory: Tensor, index: Tensor, init_perm0: Tensor, init_perm1: Tensor, *,
    nmb_prototypes: list[int], iters: int,
) -> Outputs:  # fmt: skip
    """Heads take turns between the banks, as in the method's `prepare`."""
    found: dict[str, Any] = {}
    assignments = torch.full((len(nmb_prototypes), len(index)), -100)
    for head, (clusters, order) in enumerate(
        zip(nmb_prototypes, (init_perm0, init_perm1), strict=True)
    ):
        with mock.patch.object(philox, "permutation", return_value=order.numpy()):
            centroids, assignment = spherical_kmeans(
                memory[head % len(memory)], clusters, iterations=iters
            )
        found[f"centroids{head}"] = centroids
        assignments[head, index] = assignment
    return {**found, "assignments": assignments}


def mae_masking(x: Tensor, noise: Tensor, *, mask_ratio: float) -> Outputs:
    patches = noise.shape[1]
    order = ORDERS["random"](noise, 1, patches)
    keep = order[:, : int(patches * (1 - mask_ratio))]
    return {
        "x_masked": x.gather(1, keep[:, :, None].expand(-1, -1, x.shape[2])),
        "mask": torch.ones_like(noise).scatter(1, keep, 0.0),
        "ids_restore": order.argsort(1),
    }


def mae_loss(
    imgs: Tensor, pred: Tensor, mask: Tensor, *, norm_pix_loss: bool, patch_size: int,
    channels_last: bool = False,
) -> Outputs:  # fmt: skip
    """channels_last: a patch's values run over rows, columns and channels; ours over channels,
    rows and columns."""
    p = patch_size
    encoder = Given(4, multiple=p, size=imgs.shape[2])
    plain, norm = (MAE(encoder, target=t, depth=1, width=4, heads=1) for t in ("pixel", "norm"))
    patches, prediction = plain.targets(imgs), pred
    if channels_last:
        patches = patches.unflatten(2, (3, p, p)).permute(0, 1, 3, 4, 2).flatten(2)
        prediction = pred.unflatten(2, (p, p, 3)).permute(0, 1, 4, 2, 3).flatten(2)
    targets = (norm if norm_pix_loss else plain).targets(imgs)
    return {"loss": patch_mse(prediction, targets, mask), "target_patches": patches}


def mae_positions(
    *, embed_dim: int, grid_size: int, cls_token: bool, with_class: bool = False
) -> Outputs:
    """with_class: a first row of zeros stands for the class token."""
    rows = sincos_positions(embed_dim, grid_size, grid_size)
    return {"pos_embed": F.pad(rows, (0, 0, int(with_class and cls_token), 0))}
