"""What several tests of losses measure."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from selfsight.losses import chunks


class Largest(TorchDispatchMode):
    """Remembers the most numbers that any operation put out."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self.numbers = max(self.numbers, leaf.numel())
        return out


@pytest.fixture
def largest_tensor():
    """How many numbers the largest tensor held that a call made, backward included."""

    def measure(call):
        with Largest() as mode:
            call()
        return mode.numbers

    return measure


@pytest.fixture
def hold(monkeypatch):
    """Sets how many logits are held at once, were it less than a row of them."""

    def change(numbers):
        monkeypatch.setattr(chunks, "_CHUNK", numbers)
        monkeypatch.setattr(chunks, "_ROWS", 1)

    return change
