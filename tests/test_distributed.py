"""What crosses ranks has the values and the gradients of one process."""

import multiprocessing
import os
import socket
import sys

import pytest
import torch
from torch import nn

from selfsight.batchnorm import SynchronisedBatchNorm, synchronise
from selfsight.distributed import (
    agree,
    all_sum,
    any_rank,
    barrier,
    broadcast,
    gather,
    process_group,
    rank,
    world,
)

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["selfsight.distributed", "timm.layers"])
ROWS, WIDTH = 3, 4


def x(ranks):
    """Distinct rows for each rank."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(ranks * ROWS, WIDTH, generator=generator, dtype=torch.float64)


def own(whole):
    rows = len(whole) // world()
    return whole[rank() * rows : (rank() + 1) * rows]


def similarity(local, everything, first):
    """A loss over own anchors and all candidates, like the contrastive ones."""
    scores = local @ everything.T
    target = first + torch.arange(len(local))
    return nn.functional.cross_entropy(scores, target)


def check_gather():
    whole = x(world())
    mine = own(whole).clone().requires_grad_()
    rows = gather(mine)
    assert torch.equal(rows, whole)
    # DDP's mean over ranks is part of the promise.
    loss = similarity(mine, rows, rank() * ROWS) / world()
    loss.backward()
    alone = whole.clone().requires_grad_()
    expected = similarity(alone, alone, 0)
    expected.backward()
    assert abs(float(all_sum(loss.detach())) - float(expected.detach())) < 1e-12
    assert (mine.grad - own(alone.grad)).abs().max() < 1e-12
    ids = torch.arange(2) + 10 * rank()
    assert gather(ids).tolist() == [10 * r + i for r in range(world()) for i in range(2)]
    strided = own(whole).repeat(1, 2)[:, ::2]
    assert torch.equal(gather(strided), whole.repeat(1, 2)[:, ::2])


def check_all_sum():
    whole = x(world())
    mine = own(whole).clone().requires_grad_()
    count = all_sum(torch.tensor(float(len(mine)), dtype=torch.float64))
    covariance = all_sum(mine.T @ mine) / count
    before = covariance.detach().clone()
    (covariance.square().sum() / world()).backward()
    alone = whole.clone().requires_grad_()
    expected = alone.T @ alone / len(alone)
    expected.square().sum().backward()
    assert (before - expected).abs().max() < 1e-12
    assert (mine.grad - own(alone.grad)).abs().max() < 1e-12
    # The input is not overwritten, and a transposed one is read in its own order.
    t = own(whole).T
    kept = t.clone()
    total = all_sum(t)
    assert torch.equal(t, kept)
    assert (total - sum(part.T for part in whole.chunk(world()))).abs().max() < 1e-12


def check_small_ones():
    assert broadcast(torch.tensor(rank() + 7)).item() == 7
    assert any_rank(3 * rank()) == 3 * (world() - 1)
    assert agree(True)
    assert not agree(rank() != world() - 1)
    barrier()


def layers():
    """(layer, shape of one rank's part)"""
    from timm.layers import BatchNormAct2d

    return {
        "1d": (nn.BatchNorm1d(WIDTH), (ROWS, WIDTH)),
        "1d of sequences": (nn.BatchNorm1d(WIDTH), (ROWS, WIDTH, 5)),
        "2d": (nn.BatchNorm2d(WIDTH), (2, WIDTH, 3, 2)),
        "2d of one image": (nn.BatchNorm2d(WIDTH), (1, WIDTH, 3, 2)),
        "plain": (nn.BatchNorm1d(WIDTH, affine=False), (ROWS, WIDTH)),
        "average": (nn.BatchNorm1d(WIDTH, momentum=None), (ROWS, WIDTH)),
        "still": (nn.BatchNorm1d(WIDTH, momentum=0.0), (ROWS, WIDTH)),
        "without statistics": (nn.BatchNorm1d(WIDTH, track_running_stats=False), (ROWS, WIDTH)),
        "timm": (BatchNormAct2d(WIDTH), (2, WIDTH, 3, 2)),
        "timm with drop-out": (BatchNormAct2d(WIDTH, drop_layer=nn.Identity), (2, WIDTH, 3, 2)),
    }


def check_batchnorm(name):
    layer, shape = layers()[name]
    layer = layer.double()
    generator = torch.Generator().manual_seed(2)
    for p in layer.parameters():
        p.data += torch.rand(p.shape, generator=generator)
    twin, shape = layers()[name][0].double(), (world() * shape[0], *shape[1:])
    twin.load_state_dict(layer.state_dict())
    names = set(layer.state_dict())
    ours = synchronise(layer)
    assert isinstance(ours, SynchronisedBatchNorm)
    assert set(ours.state_dict()) == names

    for _ in range(3):
        data = 5 + torch.randn(shape, generator=generator, dtype=torch.float64)
        weight = torch.randn(shape, generator=generator, dtype=torch.float64)
        alone, mine = data.clone().requires_grad_(), own(data).clone().requires_grad_()
        expected, found = twin(alone), ours(mine)
        (expected * weight).sum().backward()
        (found * own(weight)).sum().backward()
        assert (found - own(expected)).abs().max() < 1e-12
        assert (mine.grad - own(alone.grad)).abs().max() < 1e-12
    for (key, p), q in zip(ours.named_parameters(), twin.parameters(), strict=True):
        assert (all_sum(p.grad) - q.grad).abs().max() < 1e-11, key
    for key, value in twin.named_buffers():
        assert (ours.get_buffer(key).double() - value.double()).abs().max() < 1e-12, key

    ours.eval()
    twin.eval()
    if name == "without statistics":
        assert (ours(own(data)) - twin(own(data))).abs().max() < 1e-12
        if rank() == 0:  # an evaluation may run on one rank alone
            ours(own(data))
    else:
        before = {key: value.clone() for key, value in ours.named_buffers()}
        assert (ours(own(data)) - own(twin(data))).abs().max() < 1e-12
        assert all(torch.equal(value, before[key]) for key, value in ours.named_buffers())


def check_synchronise():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()))
    net[1].eval()
    keys, parameters = list(net.state_dict()), {id(p) for p in net.parameters()}
    assert synchronise(net) is net
    assert isinstance(net[1][0], SynchronisedBatchNorm)
    assert not net[1][0].training
    assert list(net.state_dict()) == keys
    assert {id(p) for p in net.parameters()} == parameters
    low = net.train()(torch.randn(2, 3, 2, 2).to(memory_format=torch.channels_last))
    assert low.is_contiguous(memory_format=torch.channels_last)
    half = net[1][0](torch.randn(2, 4, 2, 2).bfloat16())
    assert half.dtype == torch.bfloat16


def member(number, ranks, port):
    os.environ.update(RANK=str(number), WORLD_SIZE=str(ranks), LOCAL_RANK=str(number),
                      MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))  # fmt: skip
    torch.set_num_threads(1)
    with process_group(torch.device("cpu")):
        assert (rank(), world()) == (number, ranks)
        check_gather()
        check_all_sum()
        check_small_ones()
        check_synchronise()
        for name in layers():
            check_batchnorm(name)
            barrier()
    assert world() == 1
    sys.exit(0)


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_together_are_one_process(ranks):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    group = [FORKS.Process(target=member, args=(r, ranks, port), daemon=True) for r in range(ranks)]
    try:
        for process in group:
            process.start()
        for process in group:
            process.join(120)
        assert [process.exitcode for process in group] == [0] * ranks
    finally:
        for process in group:
            process.kill()
            process.join()


def test_alone_everything_is_the_identity():
    t = torch.ones(2, 2, requires_grad=True)
    assert gather(t) is t
    assert all_sum(t) is t
    assert broadcast(t) is t
    assert (rank(), world()) == (0, 1)
    assert any_rank(5) == 5
    assert agree(True)
    assert not agree(False)
    barrier()
    layer = nn.BatchNorm1d(3)
    assert synchronise(layer) is layer


def test_one_rank_of_torchrun_needs_no_group(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    with process_group(torch.device("cpu")):
        assert world() == 1
        assert not torch.distributed.is_initialized()
