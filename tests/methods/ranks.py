"""One rank of a group that trains every method for some steps; rank 0 writes the weights."""

import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from cases import AMONG_FOUR, NEEDS_TOKENS, RANKED, as_type, clock, engine, loader, make, sweep
from safetensors.torch import save_file

from selfsight.distributed import gather, process_group, rank, world
from selfsight.train.regularize import Regularizer

STEPS = 4  # into the second epoch, where banks have been written


def trained(name, options):
    encoder = "test_vit" if name in NEEDS_TOKENS else "test_resnet"
    method = make(name, encoder, torch.float64, **options)
    if method.recipe.optimizer == "adamw":
        # Adam makes whole steps of vanishing gradients' rounding; SGD shows the gradients.
        method.recipe = replace(method.recipe, optimizer="sgd", lr=0.1)
    # The regulariser reads all ranks too.
    extra = Regularizer(covariance=0.1 if "symmetric" in options else 0.0)
    running = engine(method, regularizer=extra)
    feed = loader(method, rank=rank(), world=world())
    for step in range(STEPS):
        at = clock(step)
        data = as_type(feed.batch(step), torch.float64)
        running.step(at, [data], sweep(method, at, torch.float64))
    state = {key: value.contiguous() for key, value in method.state_dict().items()}
    for key, value in state.items():
        copies = gather(value.double().flatten()).view(world(), -1)
        assert (copies == copies[0]).all(), f"{name}: {key} differs between ranks"
    return state


def main(folder):
    torch.set_num_threads(1)
    with process_group(torch.device("cpu")):
        for case in AMONG_FOUR if world() == 4 else RANKED:
            name, options = RANKED[case]
            state = trained(name, options)
            if rank() == 0:
                save_file(state, folder / f"{case}-{world()}.safetensors")
        if dist.is_initialized():
            dist.barrier()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
