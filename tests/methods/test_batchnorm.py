"""Which views share one BatchNorm pass is a fact of each method."""

import pytest
import torch
from cases import batch, clock, make, sweep

SHARED = {"byol": False, "deepcluster_v2": True, "simclr": True, "swav": True}


@pytest.mark.parametrize(("name", "shared"), SHARED.items())
def test_whether_the_second_view_changes_the_first_projection(name, shared):
    method = make(name, "test_resnet")
    method.prepare(clock(0), sweep(method, clock(0)))
    data = batch(method)
    z = method(data, clock(0)).projections[0]
    data.views[1] = data.views[1].flip(0) * 2
    other = method(data, clock(0)).projections[0]
    assert torch.equal(z, other) is not shared
