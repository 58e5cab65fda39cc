"""What a method learns does not depend on how many ranks share its batch."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cases import AMONG_FOUR, RANKED
from safetensors.torch import load_file

HERE = Path(__file__).parent
COMPARED = [(case, 2) for case in RANKED] + [(case, 4) for case in AMONG_FOUR]


def launch(folder, world):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world)}
    path = {"PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, HERE / "ranks.py", folder],
            env={**os.environ, **group, **path, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    for process in ranks:
        _, errors = process.communicate(timeout=900)
        assert process.returncode == 0, errors


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    for world in (1, 2, 4):
        launch(folder, world)
    return folder


@pytest.mark.parametrize(("case", "world"), COMPARED)
def test_ranks_do_not_change_the_result(folder, case, world):
    """Some steps in float64 with distinct data per rank."""
    alone = load_file(folder / f"{case}-1.safetensors")
    together = load_file(folder / f"{case}-{world}.safetensors")
    assert alone.keys() == together.keys()
    for key, value in alone.items():
        if torch.equal(value, together[key]):  # nothing, or not a number of any size
            continue
        difference = (value.double() - together[key].double()).norm(torch.inf)
        assert difference <= 1e-9 * value.double().norm(torch.inf) + 1e-15, key
